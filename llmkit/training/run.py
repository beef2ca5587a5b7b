"""A whole training run: from a recipe to a folder that holds the tuned model.

Knows what comes first and what is written in the end. How it is trained is the loop's business.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe
from llmkit.config.settings import DType, GenerationSettings
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import NotEnoughMemoryError, UsageError
from llmkit.evaluation.evaluate import greedy, prediction_of, without_reasoning
from llmkit.evaluation.no_answer import fit_no_answer_threshold
from llmkit.files import BUILDING, disk_errors, locked, write_whole
from llmkit.heads import BaseHead, head_of
from llmkit.heads.end_tokens import declare_ends
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.tuned_config import Contract, write_contract
from llmkit.log import log, warn
from llmkit.metrics.answers import Threshold
from llmkit.metrics.score import score
from llmkit.models.devices import pick_device
from llmkit.models.load import Loaded
from llmkit.models.memory import is_out_of_memory, peak_memory
from llmkit.models.processes import Worker, join_process_group
from llmkit.models.quiet import quiet_transformers
from llmkit.models.reachability import offline
from llmkit.models.wheels import weights_hash
from llmkit.progress import activity
from llmkit.tasks import PromptOptions, Task
from llmkit.tasks.output import Output
from llmkit.training.accelerator import TRACKERS, make_accelerator
from llmkit.training.checkpoint import checkpoints, last_intact, load_trained
from llmkit.training.dataset import Part
from llmkit.training.disk_cache import digest
from llmkit.training.hub import push, reserve
from llmkit.training.loop import EXAMPLES, Trainer, TrainingStats
from llmkit.training.model_card import draw_losses, model_card
from llmkit.training.prepare import expected_rows, prepare
from llmkit.training.probes import is_causal, supports_packing
from llmkit.training.provenance import RESOLVED, Provenance, changes, commented_recipe, provenance_of
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.reload_check import check_reload, logits_of_rows
from llmkit.training.row_counts import describe
from llmkit.training.trainable import freeze_as, is_swept_in, make_trainable

__all__ = ["find_checkpoint", "finetune", "packs"]

_LOCK = ".lock"
_BUILDING = f"{BUILDING}result"
"""Where the result is written, before it is moved to its place."""
_BEFORE_CHECKPOINTS = (RESOLVED, f"{RESOLVED}.tmp", _LOCK, TRACKERS)
"""What a run writes before its first checkpoint, beside one that is not complete."""
_GO_ON = "and go on with `resume`"


def finetune(
    recipe: Recipe,
    *,
    resume: bool = False,
    on_log: Callable[[TrainingStats], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Train by a recipe, and write the result to ``train.output_dir``.

    Args:
        resume: go on from the last checkpoint there.
        on_log: called with what was measured, every ``train.logging_steps``.
        should_stop: asked after each update; True saves a checkpoint and ends.

    Raises:
        UsageError: what the recipe asks for cannot be, or is not there yet.
    """
    with offline(getattr(recipe.model, "offline", False)):
        return _train(recipe, resume, on_log, should_stop)


def _train(
    recipe: Recipe, resume: bool, on_log: Callable[[TrainingStats], None], should_stop: Callable[[], bool]
) -> Trainer:
    member = join_process_group(
        recipe.accelerate.num_processes, pick_device(str(getattr(recipe.model, "device", "auto")))
    )
    if member.rank:
        log.setLevel("ERROR")  # the first says it
    folder = Path(recipe.train.output_dir)
    found = find_checkpoint(recipe, folder, resume=resume)
    member.barrier()
    with _claimed(folder, member):
        if recipe.train.push_to_hub and not member.rank:
            reserve(recipe.train.hub_model_id or folder.name, private=recipe.train.hub_private_repo)
        with _memory_errors():
            run = _prepare(recipe, on_log, should_stop, member)
            if found is not None:
                run.trainer.resume(found)
                log.info("resumed from %s", found)
            if not member.rank:
                with disk_errors(folder, _GO_ON):
                    write_whole(folder / RESOLVED, commented_recipe(recipe, run.provenance))
            run.trainer.run()
        if not run.trainer.stopped:
            with activity(f"writing {folder}"):
                _finish(run)
    return run.trainer


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemoryError(
            "memory ran out in training",
            "lower train.per_device_train_batch_size or data.max_length; `dry_run` says what it takes",
        ) from error


# The folder.


def find_checkpoint(recipe: Recipe, folder: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a run that begins. Nothing is written.

    A run that was killed without a checkpoint begins again, also one that was killed while it moved its result there.

    Raises:
        UsageError: the folder has something else in it, or what there is to go on from is of another run.
    """
    content = list(folder.iterdir()) if folder.is_dir() else []
    found = checkpoints(folder)
    names = [path.name for path in content]
    begun = not found and (
        _BUILDING in names or all(name in _BEFORE_CHECKPOINTS or name.startswith(BUILDING) for name in names)
    )
    if not resume:
        if not begun:
            fix = "go on with `resume`, " if found else ""
            raise UsageError(
                f"{folder} is not empty", f"{fix}remove it, or set another train.output_dir", code="output_exists"
            )
        return None
    if not content:
        raise UsageError(f"{folder} has no checkpoint to resume from", "leave `resume` out", code="nothing_to_resume")
    if not found and not begun:
        raise UsageError(
            f"{folder} has no checkpoint to resume from",
            "remove it, or set another train.output_dir",
            code="nothing_to_resume",
        )
    if (folder / RESOLVED).is_file() and (
        differ := changes(load_recipe(str(folder / RESOLVED), trusted=MAY_RUN_CODE), recipe)
    ):
        raise UsageError(
            f"the recipe changed since the run in {folder} began ({'; '.join(differ)})",
            "undo the change, or begin another run: set another train.output_dir",
            code="resume_mismatch",
        )
    if not found:
        warn("fresh_start", "%s has no checkpoint: the run begins at its first update", folder)
        return None
    return last_intact(found)


@contextmanager
def _claimed(folder: Path, member: Worker) -> Iterator[None]:
    """The folder is this run's alone; if nothing comes of it, none is left."""
    if member.rank:
        yield
        return
    new = not folder.exists()
    lock = locked(folder / _LOCK, f"writing to {folder}", "set train.output_dir")
    with ExitStack() as stack:
        with disk_errors(folder, "or set train.output_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            if new:
                stack.callback(_remove_empty, folder)
            stack.enter_context(lock)
        for left in folder.glob(f"{BUILDING}*"):  # by a run that was killed
            if left.name != _BUILDING:  # which says that what is beside it is not complete
                shutil.rmtree(left, ignore_errors=True)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it has content, or the disk went away, which has been said
        folder.rmdir()


# Before the first update.


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    trainer: Trainer
    loaded: Loaded
    provenance: Provenance
    parts: Mapping[str, Part]


def _prepare(
    recipe: Recipe, on_log: Callable[[TrainingStats], None], should_stop: Callable[[], bool], member: Worker
) -> _Run:
    import torch
    from accelerate.utils import set_seed

    train = recipe.train
    with activity("preparing the rows", forks=True), member.local_main_process_first():
        ready = prepare(recipe, member.world)
    task, device, parts = ready.task, ready.device, ready.parts
    for name, part in parts.items():
        for line in describe(part.ledger, name):
            log.info("%s", line)
    set_seed(train.seed)
    # Weights that are trained are kept in float32, whatever is computed in; frozen ones as small as can be.
    small: DType = "bfloat16" if ready.half else "float32"
    loaded = open_model(recipe, task, weights=True, dtype=small if recipe.adapter is not None else "float32")
    if getattr(recipe.model, "quantize", None):
        import peft

        prepare_quantized: Any = peft.prepare_model_for_kbit_training
        prepare_quantized(loaded.model, use_gradient_checkpointing=False)
    model = make_trainable(recipe, loaded)
    freeze_as(model, ready.model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    precision = "fp16" if train.fp16 else "bf16" if ready.half else "no"
    accelerator = make_accelerator(recipe, device, precision, member)
    head = head_of(loaded.head)
    packed = packs(recipe, model, head, device)
    masked = not head.one_sequence or not is_causal(model)
    set_seed(train.seed + member.rank)  # the same weights everywhere, but not the same dropout
    if train.torch_compile:
        model = torch.compile(model)
    provenance = provenance_of(recipe, ready.loaded)
    examples = parts["train"].examples
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        head=head,
        train=train,
        examples=examples,
        validation=parts["validation"].examples if "validation" in parts and train.eval_strategy != "no" else None,
        pad_id=head.pad_id(loaded),
        packed=packed,
        masked=masked,
        local_sgd_steps=recipe.accelerate.local_sgd_steps,
        hashes={
            **{f"base model ({name})": each for name, each in provenance.files.items()},
            "base model": digest(provenance.commit, provenance.files),
            **{f"data ({Path(each.name).name})": each.hash for each in provenance.data},
            "data": parts["train"].rows.origin,
            "recipe": digest(recipe.model_dump(mode="json", exclude_defaults=True, exclude={"train": {"output_dir"}})),
            EXAMPLES: digest({name: part.content_hash() for name, part in parts.items()}),
        },
        may_be_unused=partial(is_swept_in, recipe),
        on_log=on_log,
        should_stop=should_stop,
        validation_metrics=_validation_metrics(recipe, task, replace(loaded, model=model), parts, accelerator),
    )
    return _Run(recipe, trainer, ready.loaded, provenance, parts)


def _validation_metrics(
    recipe: Recipe, task: Task, loaded: Loaded, parts: Mapping[str, Part], accelerator: Any
) -> Callable[[], dict[str, float]] | None:
    """What gives the task's figures on the validation rows, where evaluations compare one of them."""
    if recipe.train.best_metric == "loss":
        return None
    from accelerate.utils import gather_object

    expected = expected_rows(parts["validation"], task, recipe.train.best_metric)
    rows, references = [row for row, _ in expected], [each for _, each in expected]
    prompt_options = PromptOptions(system=recipe.prompt.system, raw=recipe.prompt.raw)
    pipeline = greedy(Pipeline(task, TransformersEngine(loaded), GenerationSettings(), prompt_options))
    references = without_reasoning(pipeline, references)
    rank, world = accelerator.process_index, accelerator.num_processes

    def validation_metrics() -> dict[str, float]:
        with accelerator.autocast():
            answers = pipeline.map(rows[rank::world], errors="yield")
            mine = [
                (rank + number * world, prediction_of(answer.to_dict()) if isinstance(answer, Output) else None)
                for number, answer in enumerate(answers)
            ]
        texts = [text for _, text in sorted(gather_object(mine), key=itemgetter(0))]
        return {each.name: each.value for each in score(task.metrics, texts, references, language=task.target_language)}

    return validation_metrics


def _expected(part: Part, task: Task) -> list[dict[str, Any]]:
    """Rows with what is expected apart from what the model gets."""
    return [given for row in part.used_rows() if (given := task.without_target(row)) is not None]


def packs(recipe: Recipe, model: Any, head: BaseHead, device: str) -> bool:
    """Whether the examples of a micro-batch go through the model as one row.

    Raises:
        UsageError: ``train.packing`` is true and the model lets examples see each other.
    """
    wanted = recipe.train.packing
    if wanted is False or (wanted == "auto" and device == "cpu"):  # where one long row is no faster than several
        return False
    able = head.one_sequence and supports_packing(model)
    if wanted is True and not able:
        raise UsageError(
            "train.packing: this model does not support packing (examples would attend to each other)",
            "leave it out: examples of like length are padded together",
            code="not_supported",
        )
    if not able and head.one_sequence:
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
    trained = logits_of_rows(trainer, model)
    if not trainer.accelerator.is_main_process:
        return
    threshold = _no_answer_threshold(run)
    with disk_errors(folder, _GO_ON), _moved_when_complete(folder) as building:
        _write_model(run, model, weights, building)
        _write_report(run, threshold, building)
    check_reload(recipe, trainer, run.loaded.source, trained)
    if recipe.train.push_to_hub:
        repo = recipe.train.hub_model_id or folder.name
        log.info("pushed: %s", push(folder, repo, private=recipe.train.hub_private_repo).url)


@contextmanager
def _moved_when_complete(folder: Path) -> Iterator[Path]:
    """A folder whose content is moved to ``folder`` once all of it is on the disk.

    It is removed last: where it is left, the run was killed among the moves, and its result may be written again.
    """
    building = folder / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    for path in building.iterdir():
        if (place := folder / path.name).is_dir():
            shutil.rmtree(place)
        path.replace(place)
    building.rmdir()


def _write_model(run: _Run, model: Any, weights: Any, folder: Path) -> None:
    """The weights and the tokenizer. ``weights`` are those of a model in shards."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = run.loaded.source.lasting_base
        if getattr(config, "tokenizer_name_or_path", None):  # of prompt tuning: the folder it was loaded from
            config.tokenizer_name_or_path = config.base_model_name_or_path
        if run.loaded.source.adapter is None:
            config.revision = getattr(run.recipe.model, "revision", None)
    options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    if hasattr(model, "peft_config"):
        # New tokens are kept as such; to find out whether there are any, PEFT would ask the Hub about the base model.
        options["save_embedding_layers"] = False
    if run.trainer.head.writes:
        declare_ends(run.loaded)
    with quiet_transformers():
        model.eval().save_pretrained(folder, **options)
    run.loaded.tokenizer.save_pretrained(folder)


def _write_report(run: _Run, threshold: Threshold | None, folder: Path) -> None:
    """How the model was asked in training, what was measured, and the card."""
    recipe, trainer = run.recipe, run.trainer
    settings = recipe.settings.model_dump(mode="json")
    if threshold is not None:
        settings["no_answer_threshold"] = threshold.value
    longest = max(run.parts["train"].examples["targets"][:], default=0)
    side = recipe.data.truncation_side
    overrides = _overrides(run) if hasattr(trainer.model, "peft_config") else None
    base = _embedded_base(run)
    contract = Contract(
        recipe.task, settings, recipe.prompt.system, recipe.prompt.raw, longest, side, overrides or None, base
    )
    write_contract(folder, contract)
    entries = "".join(f"{json.dumps(entry)}\n" for entry in trainer.progress.log)
    (folder / "log.jsonl").write_text(entries, encoding="utf-8")
    metrics = _metrics(trainer)
    if threshold is not None:
        metrics |= {"no_answer_threshold": threshold.value, "f1_with_no_answer_threshold": 100 * threshold.figure}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    draw_losses(trainer.progress.log, folder / "loss.png", trainer.head.unit)
    ledgers = [list(describe(part.ledger, name)) for name, part in run.parts.items()]
    card = model_card(recipe, run.provenance, metrics, trainer.folder.name, ledgers)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _embedded_base(run: _Run) -> dict[str, Any] | None:
    """What differs between the model that was tuned and the Hub model named as its base."""
    source = run.loaded.source
    return None if source.origin is None else asdict(source.origin) | {"sha256": weights_hash(source.folder)}


def _overrides(run: _Run) -> dict[str, Any]:
    """What an adapter has to know of its base's config, in addition to what one that was trained on knew."""
    return run.loaded.source.config_overrides() | dict(getattr(run.recipe.model, "config_overrides", {}))


def _no_answer_threshold(run: _Run) -> Threshold | None:
    """The best on the validation rows, where the model marks answers, some rows have none, and the recipe is silent."""
    recipe, trainer, task = run.recipe, run.trainer, open_task(run.recipe)
    part = run.parts.get("validation")
    if part is None or trainer.head.writes or getattr(recipe.settings, "no_answer_threshold", 0) is not None:
        return None
    rows = _expected(part, task)
    if trainer.sharded:
        if not all(task.references(row) for row in rows):
            warn(
                "threshold_not_fitted",
                "no no_answer_threshold is fitted, since the model is in shards; set it in the recipe",
            )
        return None
    loaded = replace(run.loaded, model=trainer.model)
    with trainer.accelerator.autocast():
        found = fit_no_answer_threshold(
            Pipeline(task, TransformersEngine(loaded), GenerationSettings(), PromptOptions()), rows
        )
    if found is not None:
        log.info("no_answer_threshold %.4f, fitted on the validation rows: F1 %.2f", found.value, 100 * found.figure)
    return found


def _metrics(trainer: Trainer) -> dict[str, Any]:
    """Figures of the whole run, over all times that it was resumed."""
    progress = trainer.progress
    last = {
        key: value for entry in progress.log for key, value in entry.items() if key == "loss" or key.startswith("eval_")
    }
    best = f"eval_{trainer.train.best_metric}"
    found: dict[str, Any] = {
        "updates": progress.step,
        "epochs": progress.epoch + progress.update / trainer.sampler.updates,
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
