"""The one place that decides which head, and so which Auto class, a checkpoint gets for a task.

Works on the plain dictionary of ``config.json``, before torch is imported and before any weight is read.
Knows nothing of where the files are or how weights are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.errors import CheckpointError, TaskMismatchError
from llmkit.models.tables import AUTO_CLASSES, class_names, masked_lm_types
from llmkit.tasks import TASKS, Head, find_task

__all__ = ["Resolution", "natural_head", "resolve", "tasks_for"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Resolution:
    """What a checkpoint is loaded as."""

    task: str
    head: Head
    auto_class: str
    model_class: str
    model_type: str
    new_head: bool
    """No architecture in the config carries this head: its weights would be newly initialised."""


def _architectures(config: Config) -> tuple[str, ...]:
    return tuple(config.get("architectures") or ())


def _is_span_architecture(name: str) -> bool:
    # XLM and Flaubert call it ForQuestionAnsweringSimple.
    return "ForQuestionAnswering" in name


def _is_causal_architecture(name: str) -> bool:
    return name.endswith(("ForCausalLM", "LMHeadModel", "LMHead"))


def _is_encoder_only(config: Config, model_type: str) -> bool:
    """Encoders that Transformers also lists as causal, so that they load there without one missing key.

    Generation from such a model is noise: it was trained to see both sides of every token.
    """
    if config.get("is_decoder") or any(_is_causal_architecture(name) for name in _architectures(config)):
        return False
    if model_type in class_names(Head.SEQ2SEQ):
        return False
    return model_type not in class_names(Head.CAUSAL) or model_type in masked_lm_types()


def _remote_heads(config: Config) -> dict[Head, str]:
    """Heads that the checkpoint's own code provides (``auto_map``): head → class name."""
    auto_map = config.get("auto_map") or {}
    return {head: str(auto_map[auto]).rpartition(".")[2] for head, auto in AUTO_CLASSES.items() if auto in auto_map}


def _heads(config: Config) -> dict[Head, str]:
    """Every head this checkpoint's type can be built with: head → class name."""
    model_type = str(config.get("model_type", ""))
    heads = {head: names[model_type] for head in Head if model_type in (names := class_names(head))}
    heads |= _remote_heads(config)
    if config.get("is_encoder_decoder"):
        if not any(_is_causal_architecture(name) for name in _architectures(config)):
            heads.pop(Head.CAUSAL, None)
    elif Head.CAUSAL in heads and Head.SEQ2SEQ in heads and "is_encoder_decoder" in config:
        heads.pop(Head.SEQ2SEQ)
    if not _remote_heads(config) and _is_encoder_only(config, model_type):
        heads = {head: name for head, name in heads.items() if head is Head.SPAN}
    return heads


def natural_head(config: Config) -> Head | None:
    """The head a checkpoint was made for, or None where it has none that llmkit serves."""
    heads = _heads(config)
    architectures = _architectures(config)
    if Head.SPAN in heads and any(_is_span_architecture(name) for name in architectures):
        return Head.SPAN
    if Head.CAUSAL in heads and any(_is_causal_architecture(name) for name in architectures):
        return Head.CAUSAL
    return next((head for head in (Head.SEQ2SEQ, Head.CAUSAL, Head.SPAN) if head in heads), None)


def _has_trained_head(config: Config, head: Head) -> bool:
    """Whether the saved architecture carries the head. Without a saved architecture the loader finds out."""
    architectures = _architectures(config)
    if not architectures:
        return True
    if head is Head.SPAN:
        return any(_is_span_architecture(name) for name in architectures)
    return not any(_is_span_architecture(name) or name.endswith("Classification") for name in architectures)


def tasks_for(config: Config, *, trained: bool = False) -> list[str]:
    """Names of the tasks that fit a checkpoint; ``trained`` leaves out those whose head would be new."""
    head = natural_head(config)
    if head is None or (trained and not _has_trained_head(config, head)):
        return []
    return [info.name for info in TASKS.values() if head in info.heads]


def describe(config: Config) -> str:
    """One phrase: what the checkpoint is."""
    kinds = {
        Head.CAUSAL: "a decoder (causal head)",
        Head.SEQ2SEQ: "an encoder-decoder (seq2seq head)",
        Head.SPAN: "an encoder that marks answers in a text (span head)",
    }
    name = next(iter(_architectures(config)), str(config.get("model_type", "model without a model_type")))
    head = natural_head(config)
    return f"{name}, {kinds[head]}" if head else f"{name}, which has no text head that llmkit serves"


def resolve(task: str, config: Config, *, head: Head | str | None = None, model: str = "MODEL") -> Resolution:
    """Map a task and a ``config.json`` to the head and class to load.

    An explicit ``head`` wins if the model type has it. Otherwise the saved architecture decides, then
    ``is_encoder_decoder``; an encoder-only model gets a span head at most. ``model`` is only for messages.

    Raises:
        CheckpointError: the config names no ``model_type``.
        TaskMismatchError: the model cannot do the task; the message names the tasks that fit it.
    """
    info = find_task(task)
    model_type = config.get("model_type")
    if not model_type and not config.get("auto_map"):
        raise CheckpointError(f"the config.json of {model} names no model_type", "add one, or choose another model")
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
        auto_class=AUTO_CLASSES[chosen],
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
    command = " ".join(filter(None, ("llmkit", task.verb, task.sample, "--model", model)))
    return f"it fits {', '.join(fitting)}; run: {command}"
