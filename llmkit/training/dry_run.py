"""The dry run of a recipe: what would be trained on which rows, and the memory it would need, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.config.paths import user_path
from llmkit.config.recipe import Recipe
from llmkit.errors import NotEnoughMemoryError
from llmkit.files import in_units
from llmkit.heads import head_of
from llmkit.hub.reachability import offline
from llmkit.training.memory_estimate import Plan, make_plan
from llmkit.training.output_folder import find_checkpoint
from llmkit.training.prepare import Preparation, prepare
from llmkit.training.recipe_model import open_model
from llmkit.training.row_counts import describe
from llmkit.training.run import packs
from llmkit.training.teacher import open_teacher
from llmkit.training.trainable import make_trainable
from llmkit.training.trainer_checkpoint import find_trainer_checkpoint

__all__ = ["dry_run"]


def dry_run(recipe: Recipe) -> Iterator[str]:
    """Everything that happens before the first update, without weights.

    Raises:
        LlmkitError: what training would raise before its first update.
    """
    with offline(getattr(recipe.model, "offline", False)):
        yield from _report(recipe)


def _report(recipe: Recipe) -> Iterator[str]:
    find_checkpoint(recipe, Path(recipe.train.output_dir), resume=False)
    if recipe.train.resume_from_checkpoint is not None:
        find_trainer_checkpoint(user_path(recipe.train.resume_from_checkpoint))
    ready = prepare(recipe, recipe.accelerate.num_processes or 1)
    resolution = ready.loaded.resolution
    new = " from random weights" if getattr(recipe.model, "config", None) else ""
    yield f"{resolution.task}: {ready.loaded.source.name} as {resolution.model_class} ({resolution.head}){new}"
    for name, part in ready.parts.items():
        yield from describe(part.ledger, name)
    yield from _sentences(make_plan(ready), ready.device)
    if recipe.train.packing is True:
        yield from _try_packing(ready)


def _try_packing(ready: Preparation) -> Iterator[str]:
    """Check whether the model separates packed examples, which takes its weights."""
    recipe = ready.recipe
    try:
        loaded = open_model(recipe, ready.task, weights=True)
        teacher = open_teacher(recipe, weights=True)
    except NotEnoughMemoryError as error:
        yield f"packing was not checked: {error}"
        return
    models = [make_trainable(recipe, loaded), *(() if teacher is None else (teacher.model,))]
    packs(recipe, models, head_of(loaded.head), ready.device)


def _sentences(plan: Plan, device: str) -> Iterator[str]:
    share = plan.trainable / plan.parameters
    yield f"parameters: {plan.parameters:,}, of which {plan.trainable:,} are trained ({share:.2%})"
    parts = ", ".join(f"{name} {in_units(getattr(plan, name))}" for name in _SIZES if name != "teacher" or plan.teacher)
    yield f"memory, estimated for the longest batch: {in_units(plan.memory)} ({parts})"
    room = "fits in" if plan.memory < plan.available else "is more than"
    yield f"this {room} the {in_units(plan.available)} free on {device}"
    yield f"updates: {plan.updates:,}"


_SIZES = ("weights", "gradients", "optimizer", "activations", "logits", "teacher")
