"""A whole training run: from a recipe to a folder that holds the tuned model.

Knows what comes first and what is written in the end. How it is trained is the loop's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import load_recipe
from llmkit.config.settings import DType, GenerationSettings
from llmkit.errors import UsageError
from llmkit.evaluation.evaluate import given_part, greedy, references_of, target_language
from llmkit.evaluation.no_answer import fit_no_answer_threshold
from llmkit.heads.decoding import pad_id
from llmkit.inference.contract import Contract, write_contract
from llmkit.inference.pipeline import Pipeline
from llmkit.log import log
from llmkit.metrics.answers import Threshold
from llmkit.metrics.judge import MEASURES, judge
from llmkit.models.load import Loaded, has_bfloat16, pick_device
from llmkit.models.memory import peak_memory
from llmkit.models.processes import Member, join
from llmkit.models.quiet import quiet_transformers
from llmkit.tasks import Head, Task, Wording
from llmkit.training.card import draw_losses, model_card
from llmkit.training.checkpoint import checkpoints, load_trained
from llmkit.training.dataset import Part, prepare
from llmkit.training.encoding import make_encoder
from llmkit.training.hub import push, reserve
from llmkit.training.ledger import describe
from llmkit.training.loop import Measured, Trainer
from llmkit.training.probes import keeps_examples_apart, sees_nothing_ahead
from llmkit.training.provenance import Provenance, changes, commented_recipe, provenance_of
from llmkit.training.sharding import check_trackers, make_accelerator
from llmkit.training.start import open_model, open_task
from llmkit.training.store import digest
from llmkit.training.trainable import make_trainable

__all__ = ["finetune"]

_RECIPE = "resolved.yaml"
_LOCK = ".lock"


def finetune(
    recipe: Recipe,
    *,
    resume: bool = False,
    told: Callable[[Measured], None] = lambda _: None,
    stop_asked: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train by a recipe, and write the result to ``train.output_dir``.

    Args:
        resume: go on from the last checkpoint there.
        told: called with what was measured, every ``train.logging_steps``.
        stop_asked: asked after each update; True saves a checkpoint and ends.

    Raises:
        UsageError: what the recipe asks for cannot be, or is not there yet.
    """
    _refuse_missing(recipe)
    check_trackers(recipe.train.report_to)
    member = join(recipe.accelerate.num_processes, pick_device(str(getattr(recipe.model, "device", "auto"))))
    if member.rank:
        log.setLevel("ERROR")  # the first says it
    folder = Path(recipe.train.output_dir)
    found = _look(recipe, folder, resume=resume)
    member.barrier()
    with _claimed(folder, member):
        if recipe.train.push_to_hub and not member.rank:
            reserve(recipe.train.hub_model_id or folder.name, private=recipe.train.hub_private_repo)
        run = _prepare(recipe, told, stop_asked, member)
        if found is not None:
            run.trainer.resume(found)
            log.info("resumed from %s", found)
        if not member.rank:
            (folder / _RECIPE).write_text(commented_recipe(recipe, run.provenance), encoding="utf-8")
        run.trainer.run()
        if not run.trainer.stopped:
            _finish(run)
    return run.trainer


def _refuse_missing(recipe: Recipe) -> None:
    several = recipe.accelerate
    if several.deepspeed_config is not None:
        raise UsageError(
            "accelerate.deepspeed_config is not there yet in this version", "leave it out, or try --dry-run"
        )
    metric, known = recipe.train.metric_for_best_model, MEASURES[recipe.task]
    if metric is None:
        return
    if metric.removeprefix("eval_") not in ("loss", *known):
        raise UsageError(
            f"train.metric_for_best_model: {metric} is none of {recipe.task}", f"eval_loss, {', '.join(known)}"
        )
    if metric != "eval_loss" and several.fsdp_config is not None:
        raise UsageError("train.metric_for_best_model with fsdp_config: shards write no text", "use eval_loss")


# The folder.


def _look(recipe: Recipe, folder: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run. Nothing is written."""
    found = checkpoints(folder) if folder.is_dir() else []
    used = folder.is_dir() and any(path.name != _LOCK for path in folder.iterdir())
    if used and not resume:
        raise UsageError(f"{folder} is not empty", "go on with --resume, remove it, or set train.output_dir")
    if not resume:
        return None
    if not found:
        raise UsageError(f"{folder} holds no checkpoint to resume from", "leave --resume out")
    if (folder / _RECIPE).is_file() and (differ := changes(load_recipe(str(folder / _RECIPE)), recipe)):
        raise UsageError(
            f"the recipe changed since {folder} was begun ({'; '.join(differ)}), so the run would not go on but be "
            "another",
            "put it back as it was, or begin a new run in another train.output_dir",
        )
    return found[-1]


@contextmanager
def _claimed(folder: Path, member: Member) -> Iterator[None]:
    """The folder is this run's alone; if nothing comes of it, none is left."""
    from filelock import FileLock, Timeout

    if member.rank:
        yield
        return
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(f"another run is writing to {folder}", "set train.output_dir") from error
    try:
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()


# Before the first update.


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    trainer: Trainer
    loaded: Loaded
    provenance: Provenance
    parts: Mapping[str, Part]


def _prepare(recipe: Recipe, told: Callable[[Measured], None], stop_asked: Callable[[], bool], member: Member) -> _Run:
    import torch
    from accelerate.utils import set_seed

    train, task = recipe.train, open_task(recipe)
    device = pick_device(str(getattr(recipe.model, "device", "auto")))
    half = has_bfloat16(device) if train.bf16 == "auto" else train.bf16
    half = half and not train.fp16
    if train.fp16 and device == "cpu":
        raise UsageError("train.fp16 needs a GPU", "leave it out")
    with member.one_a_machine_first():
        encoder = make_encoder(recipe, task, open_model(recipe, task, weights=False))
        prepared = prepare(recipe, encoder)
    parts = {"train": prepared.train}
    if prepared.validation is not None:
        parts["validation"] = prepared.validation
    for name, part in parts.items():
        for line in describe(part.ledger, name):
            log.info("%s", line)
    set_seed(train.seed)
    # Weights that are trained are kept in float32, whatever is computed in; frozen ones as small as can be.
    small: DType = "bfloat16" if half else "float32"
    loaded = open_model(recipe, task, weights=True, dtype=small if recipe.adapter is not None else "float32")
    if getattr(recipe.model, "quantize", None):
        import peft

        ready: Any = peft.prepare_model_for_kbit_training
        ready(loaded.model, use_gradient_checkpointing=train.activation_checkpointing)
    model = make_trainable(recipe, loaded)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if train.activation_checkpointing:
        model.enable_input_require_grads()
        loaded.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    precision = "fp16" if train.fp16 else "bf16" if half else "no"
    accelerator = make_accelerator(recipe, device, precision, member)
    if recipe.accelerate.local_sgd_steps is not None and accelerator.num_processes == 1:
        raise UsageError("accelerate.local_sgd_steps is about several processes, and this is one", "leave it out")
    packed = _packs(recipe, model, loaded.head, device)
    masked = loaded.head is not Head.CAUSAL or not sees_nothing_ahead(model)
    set_seed(train.seed + member.rank)  # the same weights everywhere, but not the same dropout
    if train.torch_compile:
        model = torch.compile(model)
    provenance = provenance_of(recipe, encoder.loaded)
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        head=loaded.head,
        train=train,
        examples=prepared.train.examples,
        validation=parts["validation"].examples if "validation" in parts and train.eval_strategy != "no" else None,
        pad_id=pad_id(loaded) if loaded.head is not Head.SPAN else int(loaded.tokenizer.pad_token_id or 0),
        packed=packed,
        masked=masked,
        local_sgd_steps=recipe.accelerate.local_sgd_steps,
        hashes={
            **{f"data ({Path(each.name).name})": each.hash for each in provenance.data},
            "data": digest(prepared.train.rows.key, list(prepared.train.order)),
            "recipe": digest(recipe.model_dump(mode="json", exclude={"train": {"output_dir"}})),
        },
        told=told,
        stop_asked=stop_asked,
        judged=_judged(recipe, task, replace(loaded, model=model), parts, accelerator),
    )
    return _Run(recipe, trainer, encoder.loaded, provenance, parts)


def _judged(
    recipe: Recipe, task: Task, loaded: Loaded, parts: Mapping[str, Part], accelerator: Any
) -> Callable[[], dict[str, float]] | None:
    """What gives the task's figures of the model as it is, on the validation rows; None if nobody asks for them."""
    if recipe.train.metric_for_best_model in (None, "eval_loss"):
        return None
    from accelerate.utils import gather_object

    rows = _expected(parts["validation"], recipe)
    wording = Wording(system=recipe.prompt.system, raw=recipe.prompt.raw)
    pipeline = greedy(Pipeline(task, loaded, GenerationSettings(), wording))
    rank, world = accelerator.process_index, accelerator.num_processes
    language = target_language(task)

    def judged() -> dict[str, float]:
        with accelerator.autocast():
            answers = pipeline.map(rows[rank::world], errors="yield")
            mine = [(rank + number * world, getattr(answer, "text", "")) for number, answer in enumerate(answers)]
        texts = [text for _, text in sorted(gather_object(mine))]
        measures = judge(recipe.task, texts, [references_of(row, task) for row in rows], language=language)
        return {each.name: each.value for each in measures}

    return judged


def _expected(part: Part, recipe: Recipe) -> list[dict[str, Any]]:
    """Rows with what is expected apart from what is given."""
    return [given_part(row, recipe.task) for row in part.rows.readable(part.order)]


def _packs(recipe: Recipe, model: Any, head: Head, device: str) -> bool:
    """Whether the examples of a micro-batch go through the model as one row."""
    wanted = recipe.train.packing
    if wanted is False or (wanted == "auto" and device == "cpu"):  # where one long row is no faster than several
        return False
    able = head is Head.CAUSAL and keeps_examples_apart(model)
    if wanted is True and recipe.adapter is not None and model.active_peft_config.is_prompt_learning:
        raise UsageError(
            f"train.packing with {recipe.adapter.peft_type}: only the first of several packed examples would have its "
            "virtual tokens",
            "leave it out: examples of like length are padded together",
        )
    if wanted is True and not able:
        raise UsageError(
            "train.packing: this model lets packed examples see each other, or takes none",
            "leave it out: examples of like length are padded together",
        )
    if not able and head is Head.CAUSAL:
        log.info("not packed, since the model would not keep examples apart: those of like length are padded together")
    return able


# After the last.


def _finish(run: _Run) -> None:
    """Write the tuned model, its tokenizer, and what was measured."""
    recipe, trainer = run.recipe, run.trainer
    folder, progress = trainer.folder, trainer.progress
    if recipe.train.load_best_model_at_end and progress.best_step is not None:
        load_trained(folder / f"checkpoint-{progress.best_step}", trainer.trained)
    model = getattr(trainer.model, "_orig_mod", trainer.model)  # as it was before torch.compile
    weights = trainer.accelerator.get_state_dict(model) if trainer.sharded else None
    if not trainer.accelerator.is_main_process:
        return
    for config in getattr(model, "peft_config", {}).values():
        if run.loaded.source.adapter is None:
            config.base_model_name_or_path = run.loaded.source.name
    options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if hasattr(model, "peft_config"):
        # New tokens are kept as such; to find out whether there are any, PEFT would ask the Hub about the base model.
        options["save_embedding_layers"] = False
    with quiet_transformers():
        model.eval().save_pretrained(folder, **options)
    run.loaded.tokenizer.save_pretrained(folder)
    threshold = _no_answer_threshold(run)
    settings = recipe.settings.model_dump(mode="json")
    if threshold is not None:
        settings["no_answer_threshold"] = threshold.value
    longest = max(run.parts["train"].examples["targets"][:], default=0)
    side = recipe.data.truncation_side
    contract = Contract(recipe.task, settings, recipe.prompt.system, recipe.prompt.raw, longest, side)
    write_contract(folder, contract)
    entries = "".join(f"{json.dumps(entry)}\n" for entry in progress.log)
    (folder / "log.jsonl").write_text(entries, encoding="utf-8")
    metrics = _metrics(trainer)
    if threshold is not None:
        metrics |= {"no_answer_threshold": threshold.value, "f1_with_no_answer_threshold": 100 * threshold.figure}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draw_losses(progress.log, folder / "loss.png", "window" if trainer.head is Head.SPAN else "predicted token")
    ledgers = [list(describe(part.ledger, name)) for name, part in run.parts.items()]
    card = model_card(recipe, run.provenance, metrics, folder.name, ledgers)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if recipe.train.push_to_hub:
        repo = recipe.train.hub_model_id or folder.name
        log.info("pushed: %s", push(folder, repo, private=recipe.train.hub_private_repo))


def _no_answer_threshold(run: _Run) -> Threshold | None:
    """The best on the validation rows, where the model marks answers, some rows have none, and the recipe is silent."""
    recipe, trainer, task = run.recipe, run.trainer, open_task(run.recipe)
    part = run.parts.get("validation")
    if part is None or trainer.head is not Head.SPAN or recipe.settings.no_answer_threshold is not None:
        return None
    rows = _expected(part, recipe)
    if trainer.sharded:
        if not all(references_of(row, task) for row in rows):
            log.warning("no no_answer_threshold is fitted, since the model is in shards; set it in the recipe")
        return None
    loaded = replace(run.loaded, model=trainer.model)
    with trainer.accelerator.autocast():
        found = fit_no_answer_threshold(Pipeline(task, loaded, GenerationSettings(), Wording()), rows)
    if found is not None:
        log.info("no_answer_threshold %.4f, fitted on the validation rows: F1 %.2f", found.value, 100 * found.figure)
    return found


def _metrics(trainer: Trainer) -> dict[str, Any]:
    """Figures of the whole run, over all times that it was resumed."""
    progress = trainer.progress
    last = {
        key: value for entry in progress.log for key, value in entry.items() if key == "loss" or key.startswith("eval_")
    }
    best = f"eval_{(trainer.train.metric_for_best_model or 'loss').removeprefix('eval_')}"
    found: dict[str, Any] = {
        "updates": progress.step,
        "epochs": progress.epoch + progress.update / trainer.schedule.updates,
        "train_loss": last.get("loss"),
        **{key: value for key, value in last.items() if key != "loss"},
        f"best_{best}": progress.best_metric,
        "best_update": progress.best_step,
        "tokens": progress.tokens,
        "train_seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
        "peak_memory_bytes": peak_memory(trainer.accelerator.device.type),
        "processes": trainer.accelerator.num_processes,
    }
    return {key: value for key, value in found.items() if value is not None}
