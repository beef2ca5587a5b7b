"""The teacher of a distillation: a frozen model with the student's tokenizer, of which only the logits are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkit.config.declaration import setting_fields
from llmkit.config.recipe import Recipe
from llmkit.config.settings import DType, LoadSettings
from llmkit.errors import UsageError
from llmkit.heads.token_loss import Distillation
from llmkit.models.load import Loaded, load_model

__all__ = ["check_teacher", "make_distillation", "open_teacher"]


def open_teacher(recipe: Recipe, *, weights: bool, dtype: DType = "auto") -> Loaded | None:
    """The teacher of a recipe, if it has one, on the student's device and without gradients.

    Args:
        weights: False leaves the model on the meta device.
        dtype: of the weights, if the recipe does not set it.
    """
    if recipe.teacher is None:
        return None
    section: Any = recipe.teacher
    names = {item.name for item in setting_fields(LoadSettings)} & type(section).model_fields.keys()
    values: dict[str, Any] = {name: getattr(section, name) for name in names}
    values |= {name: getattr(recipe.model, name) for name in ("device", "threads", "offline")}
    settings = LoadSettings(model=section.name_or_path, **values)
    if settings.dtype == "auto":
        settings = replace(settings, dtype=dtype)
    loaded = load_model(settings, recipe.task, weights=weights, fallback=False)
    loaded.model.requires_grad_(False)
    return loaded


def make_distillation(recipe: Recipe) -> Distillation:
    """How the teacher of a recipe takes part in the loss."""
    section: Any = recipe.teacher
    return Distillation(section.kd_ratio, section.beta, section.temperature)


def check_teacher(teacher: Loaded, student: Loaded, max_length: int | None) -> None:
    """Refuse a teacher whose head, tokenizer or context does not match the student's.

    Args:
        max_length: maximum number of tokens of an example, or of the encoder's input.
    """
    name = teacher.source.name
    if teacher.head != student.head:
        raise UsageError(
            f"teacher: {name} is a {teacher.head} model, and {student.source.name} a {student.head} model",
            f"use a {student.head} model as teacher",
            code="not_supported",
        )
    if difference := _difference(teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()):
        raise UsageError(
            f"teacher: {name} has another tokenizer than {student.source.name}: {difference}",
            "use a teacher with the same tokenizer",
            code="not_supported",
        )
    limit = teacher.context.tokens if teacher.context.hard else None
    if limit is not None and (max_length is None or max_length > limit):
        raise UsageError(
            f"teacher: {name} has a context of {limit} tokens, and examples may be longer",
            f"set data.max_length to {limit} or less",
            code="not_supported",
        )


def _difference(teacher: Mapping[str, int], student: Mapping[str, int]) -> str:
    """The token with the lowest id that differs, in words; empty if there is none."""
    differ = [token for token in {**teacher, **student} if teacher.get(token) != student.get(token)]
    if not differ:
        return ""
    first = min(differ, key=lambda token: (min(teacher.get(token, 2**62), student.get(token, 2**62)), token))
    mine, its = (f"id {ids[first]}" if first in ids else "missing" for ids in (student, teacher))
    return f"{len(differ):,} tokens differ, such as {first!r} ({its} there, {mine} here)"
