"""Preparation of a run: everything that can be checked before weights are loaded, on the meta device.

Runs and dry runs both start with it, so that they refuse the same. Does not know the output folder
(`llmkit.training.output_folder`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe, SourceSection
from llmkit.data.sources import contents_of
from llmkit.errors import InputError, UsageError
from llmkit.heads import BaseHead, head_of
from llmkit.heads.preference import make_objective, rewards_of
from llmkit.log import log, warn
from llmkit.metrics.score import measure_names
from llmkit.models.adapters import NeedsWeightsError
from llmkit.models.devices import has_bfloat16, pick_device
from llmkit.models.load import Loaded
from llmkit.models.quantize import quantization_config
from llmkit.tasks import Task, find_task
from llmkit.training.accelerator import check_sharding, check_trackers
from llmkit.training.activation_memory import failure_of, unreached
from llmkit.training.dataset import Examples, Part, make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.optimizer_check import check_optimizer
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.row_counts import describe
from llmkit.training.sampler import count_updates
from llmkit.training.schedule import check_schedule
from llmkit.training.teacher import check_teacher, open_teacher
from llmkit.training.trainable import check_reached, make_trainable
from llmkit.training.validation_answers import expected_rows

__all__ = ["Preparation", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """The model, examples and trained parameters of a recipe."""

    recipe: Recipe
    task: Task
    device: str
    half: bool
    """Whether to compute in bfloat16."""
    loaded: Loaded
    """The model without weights."""
    model: Any
    """The model with its adapter, and ``requires_grad`` set."""
    examples: Examples
    updates: int
    teacher: Loaded | None = None
    """Without weights."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """The examples by name."""
        found = {"train": self.examples.train}
        if self.examples.validation is not None:
            found["validation"] = self.examples.validation
        return found


def prepare(recipe: Recipe, processes: int) -> Preparation:
    """Prepare a run: its settings, model, examples, trained tensors, loss and schedule.

    Args:
        processes: number of processes.

    Raises:
        LlmkitError: the recipe is inconsistent with the model, the machine or its rows.
    """
    train = recipe.train
    device = pick_device(str(getattr(recipe.model, "device", "auto")))
    _check_settings(recipe, device, processes)
    task = open_task(recipe)
    loaded = open_model(recipe, task, weights=False)
    _check_loss_type(recipe, head_of(loaded.head))
    encoder = make_encoder(recipe, task, loaded)
    if (teacher := open_teacher(recipe, weights=False)) is not None:
        check_teacher(teacher, loaded, encoder.max_length)
    examples = make_examples(recipe, encoder)
    _refuse_empty("train", examples.train)
    if examples.validation is not None:
        _refuse_empty("validation", examples.validation)
        _warn_of_same_files(recipe)
    updates = count_updates(train, len(examples.train.examples), processes)
    _check_steps(recipe, updates)
    if train.compares_answers and examples.validation is not None:
        expected_rows(examples.validation, task, "metric_for_best_model")
    elif train.num_completions_to_print and examples.validation is not None:
        expected_rows(examples.validation, task, "num_completions_to_print", train.num_completions_to_print)
    model = _outline(recipe, task, loaded)
    _check_loss(recipe, model, loaded, examples.train)
    averaged = recipe.accelerate.local_sgd_steps is not None
    optimizer = check_optimizer(model, train, updates, device, averaged=averaged)
    check_schedule(train, updates, len(optimizer.param_groups), own_warmup="warmup_steps" in optimizer.defaults)
    if train.packing is True:
        _check_packing(recipe, model, head_of(loaded.head))
    half = not train.fp16 and (has_bfloat16(device) if train.bf16 == "auto" else train.bf16)
    return Preparation(recipe, task, device, half, loaded, model, examples, updates, teacher)


def _outline(recipe: Recipe, task: Task, loaded: Loaded) -> Any:
    """The model with its adapter on the meta device; weights are loaded only if PEFT creates the adapter from them."""
    try:
        return make_trainable(recipe, loaded)
    except NeedsWeightsError:
        return make_trainable(recipe, open_model(recipe, task, weights=True)).to("meta")


def _check_settings(recipe: Recipe, device: str, processes: int) -> None:
    """Checks that need neither model nor data."""
    import torch

    several, train = recipe.accelerate, recipe.train
    if several.deepspeed_config is not None:
        raise UsageError(
            "accelerate.deepspeed_config is not supported in this version", "leave it out", code="not_supported"
        )
    check_sharding(recipe, device)
    check_trackers(train.report_to)
    if several.local_sgd_steps is not None and processes == 1:
        raise UsageError(
            "accelerate.local_sgd_steps requires more than one process",
            "leave it out, or set accelerate.num_processes",
            code="no_effect",
        )
    for section in (recipe.model, recipe.teacher):
        if bits := getattr(section, "quantize", None):
            quantization_config(bits, device, torch.float32, getattr(section, "quantization", None))
    if train.fp16 and device == "cpu":
        raise UsageError("train.fp16 needs a GPU", "leave it out", code="device_unavailable")
    known = [*measure_names(find_task(recipe.task).metrics), *rewards_of(recipe.method)]
    if train.best_metric not in ("loss", *known):
        raise UsageError(
            f"train.metric_for_best_model: {recipe.task} does not have the metric {train.metric_for_best_model}",
            f"use eval_loss, {', '.join(known)}",
            code="unknown_metric",
        )
    if train.answers_validation_rows:
        _check_answers(recipe)


def _check_answers(recipe: Recipe) -> None:
    """Refuse to answer validation rows where that is not possible."""
    train = recipe.train
    measured = train.compares_answers
    key = f"metric_for_best_model: {train.best_metric}" if measured else "num_completions_to_print"
    fix = "use eval_loss" if measured else "leave it out"
    if any(source.task not in (None, recipe.task) for source in recipe.data.train):
        problem = f"train.{key} is of one task, and the recipe is a mixture"
    elif recipe.accelerate.fsdp_config is not None:
        problem = f"train.{key} needs generated answers, which FSDP does not support"
    elif recipe.method is not None:
        problem = f"train.{key} needs rows with one answer, and those of method: {recipe.method.name} are preferences"
    else:
        return
    raise UsageError(problem, fix, code="not_supported")


def _check_loss_type(recipe: Recipe, head: BaseHead) -> None:
    """Refuse losses of tokens for a model that extracts answers."""
    keys = {"train.loss_type: dft": recipe.train.loss_type == "dft", "teacher": recipe.teacher is not None}
    if not head.writes and (key := next((key for key, is_set in keys.items() if is_set), None)):
        raise UsageError(
            f"{key} is about generated tokens, and the model extracts answers", "leave it out", code="not_supported"
        )


def _refuse_empty(name: str, part: Part) -> None:
    if len(part.examples):
        return
    left_out = list(describe(part.ledger, name))[1:]
    raise InputError(
        f"no rows are left in data.{name}" + (f" ({'; '.join(left_out)})" if left_out else ""),
        "raise data.max_length, fix the rows, or use others; inspect them: llmkit data check",
        code="no_rows",
    )


def _warn_of_same_files(recipe: Recipe) -> None:
    trained = {content for source in recipe.data.train for _, content in _contents(source)}
    for name, content in (each for source in recipe.data.validation or () for each in _contents(source)):
        if content in trained:
            text = "data.validation: %s is also trained on, so its metrics do not apply to new rows"
            warn("validation_overlap", text, name)


def _contents(source: SourceSection) -> Iterator[tuple[str, tuple[str, str | None]]]:
    """The names of files or rows, with what tells whether two sources have the same rows of them."""
    if source.rows is not None:
        yield source.rows.kind, (source.rows.sha256, source.where)
    for name, content in contents_of(source):
        yield Path(name).name, (content, source.where)


def _check_steps(recipe: Recipe, updates: int) -> None:
    if recipe.data.streaming and recipe.train.save_strategy == "epoch":
        log.info("train.save_strategy: epoch saves when the stream or the run ends; set save_steps for earlier ones")
    for kind in ("eval", "save"):
        steps = getattr(recipe.train, f"{kind}_steps")
        if steps is not None and steps > updates:
            raise UsageError(
                f"train.{kind}_steps is {steps}, but the run has {updates} updates",
                f"lower it, or set train.{kind}_strategy to epoch or no",
                code="not_supported",
            )


def _check_packing(recipe: Recipe, model: Any, head: BaseHead) -> None:
    fix = "leave it out: examples of similar length are padded together"
    if _is_prompt_learning(model):
        assert recipe.adapter is not None
        raise UsageError(
            f"train.packing with {recipe.adapter.peft_type}: only the first of the packed examples would have its "
            "virtual tokens",
            fix,
            code="not_supported",
        )
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not head.one_sequence or "position_ids" not in inspect.signature(base.forward).parameters:
        raise UsageError(f"train.packing: {type(base).__name__} does not support packing", fix, code="not_supported")


def _check_loss(recipe: Recipe, model: Any, loaded: Loaded, part: Part) -> None:
    """Check the forward and backward pass of one example, by shapes.

    PEFT adds adapters to models that do not support them, and every trained parameter must have a part in the loss.
    """
    head = head_of(loaded.head)
    objective = make_objective(model, head, method=recipe.method)
    batch = objective.batch([part.examples[0]], pad_id=loaded.tokenizer.pad_token_id or 0)
    if _is_prompt_learning(model):
        base = model.get_base_model()
        if failure_of(base, make_objective(base, head, method=recipe.method), batch) is not None:
            return  # it cannot run without weights
        if (error := failure_of(model, objective, batch)) is not None:
            assert recipe.adapter is not None
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{type(loaded.model).__name__} does not run with {recipe.adapter.peft_type} ({reason})",
                "use another adapter.peft_type, such as LORA",
                code="not_supported",
            )
    if (alpha := recipe.train.neftune_noise_alpha) is not None:
        failure = failure_of(model, objective.with_noise(model, alpha), batch)
        if isinstance(failure, UsageError):
            raise failure
    check_reached(recipe, model, unreached(model, objective, batch))


def _is_prompt_learning(model: Any) -> bool:
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
