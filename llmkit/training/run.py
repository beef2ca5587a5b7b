"""A training run: from a recipe to the folder of a tuned model.

Knows the order of its steps. The loop is in `llmkit.training.loop`, the folder in `llmkit.training.output_folder`, the
files of the result in `llmkit.training.result`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.recipe import Recipe, TokenizerSection
from llmkit.config.settings import DType
from llmkit.data.prompt_files import with_contents
from llmkit.errors import NotEnoughMemoryError, UsageError
from llmkit.files import disk_errors, write_whole
from llmkit.heads import BaseHead, head_of
from llmkit.hub.reachability import offline
from llmkit.log import log
from llmkit.models.devices import pick_device
from llmkit.models.load import Loaded
from llmkit.models.memory import is_out_of_memory, return_freed_tensors
from llmkit.models.processes import Worker, join_process_group
from llmkit.progress import activity
from llmkit.reporting.report import write_page
from llmkit.training.accelerator import make_accelerator
from llmkit.training.checkpoint import load_trained
from llmkit.training.dataset import Part
from llmkit.training.disk_cache import digest
from llmkit.training.encoding import make_encoder, max_length
from llmkit.training.loop import Trainer
from llmkit.training.output_folder import RESUME, claim_folder, find_checkpoint, moved_when_complete
from llmkit.training.preference import ReferenceModel, disable_dropout, with_references
from llmkit.training.prepare import prepare
from llmkit.training.probes import is_causal, supports_packing
from llmkit.training.progress_lines import TrainingStats
from llmkit.training.provenance import (
    EXAMPLES,
    RESOLVED,
    SHORT_RECIPE,
    Provenance,
    commented_recipe,
    may_change,
    provenance_of,
    with_length_of,
)
from llmkit.training.push import push, reserve
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.reload_check import ReloadCheck
from llmkit.training.result import ModelFiles, Run, fitted_threshold, write_report
from llmkit.training.row_counts import Tally, describe
from llmkit.training.stream import ExampleStream
from llmkit.training.teacher import make_distillation, open_teacher
from llmkit.training.trainable import freeze_as, initial_batches, is_swept_in, make_trainable
from llmkit.training.trainer_checkpoint import continue_trainer_run, find_trainer_checkpoint
from llmkit.training.validation_answers import validation_answers

__all__ = ["finetune", "packs"]


def finetune(
    recipe: Recipe,
    *,
    resume: bool = False,
    on_log: Callable[[TrainingStats], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    text: str | None = None,
    keep_model: bool = True,
) -> Trainer:
    """Train a model from a recipe, and write the result to ``train.output_dir``.

    Args:
        resume: continue from the last checkpoint there.
        on_log: called with the statistics of every ``train.logging_steps`` updates.
        should_stop: called after each update; True saves a checkpoint and ends the run.
        text: the recipe as YAML, to be saved with the result.
        keep_model: leave the trained model and its optimizer in memory. Otherwise they are freed once they are saved,
            so that loading the result for a check needs no more memory than training.

    Raises:
        UsageError: the recipe is inconsistent with the model or the data.
    """
    if recipe.train.activation_checkpointing and pick_device(str(getattr(recipe.model, "device", "auto"))) == "cpu":
        return_freed_tensors()
    with offline(getattr(recipe.model, "offline", False)):
        return _train(with_contents(recipe, open_task(recipe)), resume, on_log, should_stop, text, keep_model)


def _train(
    recipe: Recipe,
    resume: bool,
    on_log: Callable[[TrainingStats], None],
    should_stop: Callable[[], bool],
    text: str | None,
    keep_model: bool,
) -> Trainer:
    worker = join_process_group(
        recipe.accelerate.num_processes, pick_device(str(getattr(recipe.model, "device", "auto")))
    )
    if worker.rank:
        log.setLevel("ERROR")  # the first process logs
    folder = Path(recipe.train.output_dir)
    found = find_checkpoint(recipe, folder, resume=resume)
    given = recipe.train.resume_from_checkpoint
    of_trainer = None if found is not None or given is None else find_trainer_checkpoint(user_path(given))
    worker.barrier()
    with claim_folder(folder, worker):
        if recipe.train.push_to_hub and not worker.rank:
            reserve(recipe.train.hub_model_id or folder.name, private=recipe.train.hub_private_repo)
        with _memory_errors():
            run = _prepare(recipe, on_log, should_stop, worker)
            if found is not None:
                run.trainer.resume(found)
                log.info("resumed from %s", found)
            elif of_trainer is not None:
                continue_trainer_run(run.trainer, of_trainer)
            if not worker.rank:
                with disk_errors(folder, RESUME):
                    write_whole(folder / RESOLVED, commented_recipe(recipe, run.provenance))
                    short = folder / SHORT_RECIPE
                    if text is not None:
                        write_whole(short, text)
                    elif found is not None and short.is_file():
                        write_whole(short, with_length_of(recipe, short.read_text(encoding="utf-8")))
            run.trainer.run()
        if run.trainer.stream is not None:
            for line in describe(run.ledgers()["train"], "train"):
                log.info("%s", line)
        if not run.trainer.stopped:
            with activity(f"writing {folder}"):
                _finish(run, keep_model=keep_model)
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
            "lower train.per_device_train_batch_size or data.max_length; `dry_run` estimates the memory needed",
        ) from error


# Before the first update.


def _prepare(
    recipe: Recipe, on_log: Callable[[TrainingStats], None], should_stop: Callable[[], bool], worker: Worker
) -> Run:
    import numpy as np
    import torch
    from accelerate.utils import set_seed

    train = recipe.train
    with activity("preparing the rows", forks=True), worker.local_main_process_first():
        ready = prepare(recipe, worker.world)
    task, device, parts = ready.task, ready.device, ready.parts
    for name, part in parts.items():
        for line in describe(part.ledger, name):
            log.info("%s", line)
    set_seed(train.seed)
    # Trained weights are kept in float32, whatever the computation's precision; frozen ones in half precision.
    small: DType = "bfloat16" if ready.half else "float32"
    loaded = open_model(recipe, task, weights=True, dtype=small if recipe.adapter is not None else "float32")
    if getattr(loaded.model, "is_quantized", False):
        import peft

        prepare_quantized: Any = peft.prepare_model_for_kbit_training
        prepare_quantized(loaded.model, use_gradient_checkpointing=False)
    precision = "fp16" if train.fp16 else "bf16" if ready.half else "no"
    accelerator = make_accelerator(recipe, device, precision, worker)
    tables = {name: part.examples for name, part in parts.items()}
    if recipe.method is not None:
        tables = _with_references(recipe, loaded, tables, accelerator)
    head = head_of(loaded.head)
    rows = parts["train"].examples
    model = make_trainable(recipe, loaded, initial_batches(rows, head, head.pad_id(loaded), loaded.device, train.seed))
    freeze_as(model, ready.model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if recipe.method is not None and recipe.method.disable_dropout:
        disable_dropout(model)
    teacher = open_teacher(recipe, weights=True, dtype=small)
    models = [model] if teacher is None else [model, teacher.model]
    packed = packs(recipe, models, head, device)
    masked = not head.one_sequence or not all(map(is_causal, models))
    set_seed(train.seed + worker.rank)  # the same weights everywhere, but not the same dropout
    if train.torch_compile:
        model = torch.compile(model)
    provenance = provenance_of(recipe, ready.loaded, ready.teacher)
    examples = parts["train"].examples
    by_task = parts["train"].by_task()
    targets = np.asarray(examples["targets"][:])
    longest = Counter({name: int(targets[mine].max()) for name, mine in by_task.items()})
    stream = None
    if recipe.data.streaming:
        stream = ExampleStream(
            recipe, parts["train"].rows, make_encoder(recipe, task, ready.loaded), Tally(longest=longest)
        )
    files = ModelFiles(recipe, loaded, head, longest)
    trainer = Trainer(
        accelerator=accelerator,
        model=model,
        head=head,
        train=train,
        examples=tables["train"],
        validation=tables["validation"] if "validation" in parts and train.eval_strategy != "no" else None,
        validation_tasks=parts["validation"].by_task() if "validation" in parts else {},
        pad_id=head.pad_id(loaded),
        packed=packed,
        teacher=None if teacher is None else (teacher.model, make_distillation(recipe)),
        masked=masked,
        method=recipe.method,
        local_sgd_steps=recipe.accelerate.local_sgd_steps,
        hashes=_hashes(recipe, provenance, parts, loaded.tokenizer.get_vocab()),
        may_be_unused=partial(is_swept_in, recipe),
        on_log=on_log,
        should_stop=should_stop,
        validation_metrics=validation_answers(recipe, task, replace(loaded, model=model), parts, accelerator),
        write_model=files.write,
        stream=stream,
    )
    return Run(recipe, trainer, ready.loaded, provenance, parts, files)


def _with_references(recipe: Recipe, loaded: Loaded, tables: Mapping[str, Any], accelerator: Any) -> dict[str, Any]:
    """The examples of preferences with the log-probabilities of the model before training."""
    from accelerate.utils import gather_object

    rank, world = accelerator.process_index, accelerator.num_processes
    reference = ReferenceModel(
        loaded, head_of(loaded.head), recipe.method, rank, world, gather_object, accelerator.autocast
    )
    used = {name: each for name, each in tables.items() if name == "train" or recipe.train.eval_strategy != "no"}
    return with_references(used, recipe.train, reference, max_length(recipe.data, loaded))


def _hashes(
    recipe: Recipe, provenance: Provenance, parts: Mapping[str, Part], vocabulary: Mapping[str, int]
) -> dict[str, str]:
    """Hashes of everything that must be the same when a run is resumed, by what errors call it."""
    kinds = {"__all__": {"rows": {"kind"}}}  # the same rows, however they were passed in Python
    allowed = may_change(recipe)
    data = {**dict.fromkeys(allowed.get("data", ()), True), "train": kinds, "validation": kinds}
    unlike: Any = {**allowed, "data": data}
    settings = recipe.model_dump(mode="json", exclude_defaults=True, exclude=unlike)
    return {
        **{f"base model ({name})": each for name, each in provenance.files.items()},
        "base model": digest(provenance.commit, provenance.files),
        **{f"teacher ({name})": each for name, each in provenance.teacher_files.items()},
        **({} if provenance.teacher is None else {"teacher": str(provenance.teacher_commit)}),
        **{f"data ({each.key})": each.hash for each in provenance.data},
        "data": parts["train"].rows.origin,
        "recipe": digest(settings),
        **({} if recipe.tokenizer == TokenizerSection() else {"tokenizer": digest(vocabulary)}),
        EXAMPLES: digest({name: part.content_hash() for name, part in parts.items()}),
    }


def packs(recipe: Recipe, models: Sequence[Any], head: BaseHead, device: str) -> bool:
    """Whether the examples of a micro-batch are packed into one row, for a model and its teacher.

    Raises:
        UsageError: ``train.packing`` is true, and the model does not separate packed examples.
    """
    wanted = recipe.train.packing
    saves_time = device != "cpu"
    if recipe.method is not None or wanted is False or (wanted == "auto" and not saves_time):
        return False
    able = head.one_sequence and all(map(supports_packing, models))
    if wanted is True and not able:
        raise UsageError(
            "train.packing: this model does not support packing (examples would attend to each other)",
            "leave it out: examples of similar length are padded together",
            code="not_supported",
        )
    if not able and head.one_sequence:
        log.info("not packing: examples would attend to each other; those of similar length are padded together")
    return able


# After the last update.


def _finish(run: Run, *, keep_model: bool) -> None:
    """Write the tuned model, its tokenizer and the report."""
    recipe, trainer = run.recipe, run.trainer
    folder, progress = trainer.folder, trainer.progress
    if not keep_model:
        trainer.free_optimizer()
    if recipe.train.load_best_model_at_end and progress.best_step is not None:
        load_trained(folder / f"checkpoint-{progress.best_step}", trainer.trained)
    model = trainer.plain_model
    weights = trainer.accelerator.get_state_dict(model) if trainer.sharded else None
    check = ReloadCheck.of(recipe, trainer, run.loaded.source)
    if trainer.accelerator.is_main_process:
        threshold = fitted_threshold(run)
        with disk_errors(folder, RESUME), moved_when_complete(folder) as building:
            run.files.write(building, model.eval(), weights, None if threshold is None else threshold.value)
            write_report(run, threshold, building)
    del weights
    if not keep_model:
        trainer.free_model()
    if not trainer.accelerator.is_main_process:
        return
    if recipe.train.report:
        write_page(folder, [])
    check.run()
    if recipe.train.push_to_hub:
        repo = recipe.train.hub_model_id or folder.name
        log.info("pushed: %s", push(folder, repo, private=recipe.train.hub_private_repo).url)
