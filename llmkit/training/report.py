"""The dry run of a recipe: what would be trained, on what, and what it would take, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.recipe import Recipe
from llmkit.models.load import has_bfloat16, pick_device
from llmkit.training.dataset import prepare
from llmkit.training.encoding import make_encoder
from llmkit.training.ledger import describe
from llmkit.training.plan import Plan, make_plan
from llmkit.training.start import open_model, open_task

__all__ = ["dry_run"]


def dry_run(recipe: Recipe) -> Iterator[str]:
    """Everything that happens before the first update, without weights.

    Raises:
        LlmkitError: what training would raise before it begins.
    """
    task = open_task(recipe)
    loaded = open_model(recipe, task, weights=False)
    encoder = make_encoder(recipe, task, loaded)
    prepared = prepare(recipe, encoder)
    device = pick_device(str(getattr(recipe.model, "device", "auto")))
    half = recipe.train.fp16 or (has_bfloat16(device) if recipe.train.bf16 == "auto" else recipe.train.bf16)
    resolution = loaded.resolution
    new = " from random weights" if getattr(recipe.model, "config", None) else ""
    yield f"{resolution.task}: {loaded.source.name} as {resolution.model_class} ({resolution.head}){new}"
    yield from describe(prepared.train.ledger, "train")
    if prepared.validation is not None:
        yield from describe(prepared.validation.ledger, "validation")
    yield from _sentences(make_plan(recipe, loaded, prepared.train, half=half, device=device), device)


def _sentences(plan: Plan, device: str) -> Iterator[str]:
    share = plan.trainable / plan.parameters
    yield f"parameters: {plan.parameters:,}, of which {plan.trainable:,} are trained ({share:.2%})"
    parts = ", ".join(f"{name} {_size(getattr(plan, name))}" for name in _SIZES)
    yield f"memory, estimated for the longest batch: {_size(plan.memory)} ({parts})"
    room = "fits in" if plan.memory < plan.available else "is more than"
    yield f"which {room} the {_size(plan.available)} free on {device}"
    yield f"updates: {plan.updates:,}"


_SIZES = ("weights", "gradients", "optimizer", "activations", "logits")


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
