"""Decides which head, and so which Auto class, a checkpoint gets for a task. No other module does.

Works on the dictionary of ``config.json``, before torch is imported and before any weights are loaded. Does not know
where files are (`llmkit.models.locate`) or how weights are loaded (`llmkit.models.load`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.config.commands import command_line
from llmkit.errors import CheckpointError, TaskMismatchError
from llmkit.models.families import OTHER_INPUTS
from llmkit.models.tables import (
    HEADS,
    auto_class,
    class_names,
    config_class,
    decoder_class,
    encoder_decoder_class,
    masked_lm_types,
    multimodal_class,
)
from llmkit.tasks import TASKS, Head, find_task

__all__ = ["Resolution", "natural_head", "resolve", "tasks_for"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Resolution:
    """The task, head and classes with which a checkpoint is loaded."""

    task: str
    head: Head
    auto_class: str
    model_class: str
    model_type: str
    new_head: bool
    """No architecture in the config has this head: its weights would be newly initialised."""


def _architectures(config: Config) -> tuple[str, ...]:
    return tuple(config.get("architectures") or ())


def _is_named(config: Config, head: Head) -> bool:
    """Whether the name of an architecture shows that it has this head."""
    return any(re.search(HEADS[head].architecture, name) for name in _architectures(config))


def _is_encoder_only(config: Config, model_type: str) -> bool:
    """Whether a model is an encoder, although Transformers may also list its type as causal.

    It would load as causal without a missing key, and generate noise: it was trained with attention in both directions.
    """
    if config.get("is_decoder") or _is_named(config, Head.CAUSAL):
        return False
    if encoder_decoder_class(model_type) or _has_text_decoder(config):
        return False
    return not decoder_class(model_type) or model_type in masked_lm_types()


def _other_input(config: Config) -> str | None:
    return next((what for name, what in OTHER_INPUTS.items() if name in config), None)


def _has_text_decoder(config: Config) -> bool:
    """Whether a model is a decoder with encoders of images or audio. Transformers lists some of them as seq2seq."""
    text = config.get("text_config")
    return isinstance(text, Mapping) and not (config.get("is_encoder_decoder") or text.get("is_encoder_decoder"))


def _remote_heads(config: Config) -> dict[Head, str]:
    """Heads that the checkpoint's own code provides (``auto_map``): head → class name."""
    auto_map = config.get("auto_map") or {}
    named = {head: auto_map[facts.auto_class] for head, facts in HEADS.items() if facts.auto_class in auto_map}
    return {head: str(name).rpartition(".")[2] for head, name in named.items()}


def _heads(config: Config) -> dict[Head, str]:
    """The possible heads of a checkpoint's type: head → class name."""
    if _other_input(config):
        return {}
    model_type = str(config.get("model_type", ""))
    heads = {head: names[model_type] for head in Head if model_type in (names := class_names(head))}
    if _has_text_decoder(config):
        heads.pop(Head.SEQ2SEQ, None)
        if found := multimodal_class(model_type):
            heads.setdefault(Head.CAUSAL, found)
    if not heads and config_class(model_type):
        # A part of a larger model, saved alone: its class is known, but its type has no entry.
        heads = {head: name for head in Head for name in _architectures(config) if name in class_names(head).values()}
    heads = _remote_heads(config) | heads
    if config.get("is_encoder_decoder"):
        heads = {head: name for head, name in heads.items() if not HEADS[head].one_sequence or _is_named(config, head)}
    elif {Head.CAUSAL, Head.SEQ2SEQ} <= heads.keys() and "is_encoder_decoder" in config:
        heads.pop(Head.SEQ2SEQ)
    if not _remote_heads(config) and _is_encoder_only(config, model_type):
        heads = {head: name for head, name in heads.items() if not HEADS[head].writes}
    return heads


def natural_head(config: Config) -> Head | None:
    """The head a checkpoint was trained with; None if llmkit does not support it."""
    heads = _heads(config)
    fitting = [head for head in HEADS if head in heads]
    return next((head for head in reversed(fitting) if _is_named(config, head)), next(iter(fitting), None))


def _auto_class(config: Config, head: Head, model_class: str) -> str:
    found = auto_class(str(config.get("model_type")), head, model_class)
    return HEADS[head].auto_class if found == model_class and head in _remote_heads(config) else found


def _has_trained_head(config: Config, head: Head) -> bool:
    """Whether the saved architecture has the head. If none was saved, the loader checks it."""
    architectures = _architectures(config)
    if not architectures:
        return True
    if not HEADS[head].writes:
        return _is_named(config, head)
    return not any("ForQuestionAnswering" in name or name.endswith("Classification") for name in architectures)


def tasks_for(config: Config, *, trained: bool = False) -> list[str]:
    """Names of the tasks that a checkpoint supports; ``trained`` excludes those whose head would be new."""
    head = natural_head(config)
    if head is None or (trained and not _has_trained_head(config, head)):
        return []
    return [info.name for info in TASKS.values() if head in info.heads]


def describe(config: Config) -> str:
    """A phrase that describes the checkpoint."""
    name = next(iter(_architectures(config)), str(config.get("model_type", "model without a model_type")))
    head, other = natural_head(config), _other_input(config)
    if head is None:
        return f"{name}, which takes {other}" if other else f"{name}, which has no text head that llmkit supports"
    return f"{name}, {HEADS[head].description}"


def resolve(task: str, config: Config, *, head: Head | str | None = None, model: str = "MODEL") -> Resolution:
    """Map a task and a ``config.json`` to the head and class to load.

    An explicit ``head`` takes precedence if the model type has it. Otherwise the saved architecture decides, then
    ``is_encoder_decoder``; an encoder-only model gets a span head at most. ``model`` is used in messages only.

    Raises:
        CheckpointError: the config names no ``model_type``.
        TaskMismatchError: the model does not support the task; the message names tasks that it supports.
    """
    info = find_task(task)
    model_type = config.get("model_type")
    if not model_type and not config.get("auto_map"):
        raise CheckpointError(f"the config.json of {model} has no model_type", "add one, or choose another model")
    heads = _heads(config)
    chosen = Head(head) if head is not None else natural_head(config)
    if head is not None and chosen not in heads:
        options = ", ".join(heads) or "none"
        raise TaskMismatchError(
            f"{model} is {describe(config)} and cannot be loaded with the {chosen} head",
            f"heads of {model_type}: {options}",
        )
    if chosen is None or chosen not in info.heads:
        raise TaskMismatchError(f"{model} is {describe(config)}; it cannot do {info.name}", _what_fits(config, model))
    return Resolution(
        task=info.name,
        head=chosen,
        auto_class=_auto_class(config, chosen, heads[chosen]),
        model_class=heads[chosen],
        model_type=str(model_type),
        new_head=not _has_trained_head(config, chosen),
    )


def _what_fits(config: Config, model: str) -> str:
    fitting = tasks_for(config)
    if not fitting:
        return "choose another model: llmkit models"
    task = TASKS[fitting[0]]
    if not tasks_for(config, trained=True):
        return f"after fine-tuning it fits {task.name}"
    command = command_line(task.verb, task.sample, **task.sample_options, model=model)
    return f"it fits {', '.join(fitting)}; run: {command}"
