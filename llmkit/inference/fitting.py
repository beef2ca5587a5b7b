"""Making a prompt fit the model's context, without losing anything unseen.

Knows the order in which things give way: examples first, then, only if the caller allows it, the beginning
of the input. What was cut is counted and logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmkit.config.settings import GenerationSettings
from llmkit.errors import ContextOverflowError, UsageError
from llmkit.heads.base import Encoded, encode_text
from llmkit.log import log
from llmkit.models.load import Loaded
from llmkit.tasks import Head, Prompt, Row, Task, Wording

__all__ = ["Fitted", "fit"]


@dataclass(frozen=True)
class Fitted:
    """A row, its encoded prompt, and the number of input tokens that were cut from it."""

    row: Row
    encoded: Encoded
    truncated: int = 0


@dataclass(frozen=True)
class _Budget:
    """How long a prompt may be: ``limit`` at most, ``comfortable`` to leave the whole output its room."""

    limit: int
    comfortable: int
    hard: bool


def _budget(loaded: Loaded, max_new_tokens: int) -> _Budget | None:
    context = loaded.context
    if context.tokens is None:
        return None
    if loaded.head is Head.SEQ2SEQ:  # the output has the decoder's own positions
        return _Budget(context.tokens, context.tokens, context.hard)
    comfortable = context.tokens - min(max_new_tokens, context.tokens // 2)
    return _Budget(context.tokens - 1, comfortable, context.hard)


def fit(
    task: Task,
    row: Row,
    wording: Wording,
    loaded: Loaded,
    settings: GenerationSettings,
    max_new_tokens: int,
    encode: Callable[[Prompt], Encoded],
) -> Fitted:
    """Render and encode a row so that it fits.

    Raises:
        ContextOverflowError: the row alone is longer than the context and ``on_overflow`` is ``error``.
    """
    chat = bool(getattr(loaded.tokenizer, "chat_template", None))

    def attempt(row: Row, wording: Wording) -> Encoded:
        return encode(task.render(row, loaded.head, chat=chat, wording=wording))

    budget = _budget(loaded, max_new_tokens)
    encoded = attempt(row, wording)
    if budget is None:
        return Fitted(row, encoded)
    dropped = 0
    while wording.examples and len(encoded.input_ids) > budget.comfortable:
        dropped += 1
        wording = replace(wording, examples=wording.examples[1:])
        encoded = attempt(row, wording)
    if dropped:
        log.warning("%d of %d examples left out: they do not fit the context", dropped, dropped + len(wording.examples))
    length = len(encoded.input_ids)
    if length <= budget.limit:
        return Fitted(row, encoded)
    if settings.on_overflow == "truncate":
        return _truncate(task, row, lambda shorter: attempt(shorter, wording), loaded, budget)
    if settings.on_overflow == "chunk":
        raise UsageError(f"{task.name} cannot be done in chunks", "use --on-overflow truncate, or a shorter input")
    if not budget.hard:
        log.warning("the input has %d tokens, more than the %d this model was trained on", length, budget.limit)
        return Fitted(row, encoded)
    raise ContextOverflowError(
        f"the input has {length} tokens and {loaded.source.name} reads {budget.limit}",
        "shorten it, use a model with a longer context, or cut its beginning with --on-overflow truncate",
    )


def _truncate(task: Task, row: Row, attempt: Callable[[Row], Encoded], loaded: Loaded, budget: _Budget) -> Fitted:
    """Cut the beginning of the row's text until the prompt leaves the output its room."""
    text = str(row[task.input_column])
    whole = len(encode_text(loaded.tokenizer, text, special=False))
    encoded, kept, rest = attempt(row), whole, text
    while (excess := len(encoded.input_ids) - budget.comfortable) > 0:
        if kept <= excess:
            raise ContextOverflowError(
                f"without any of the input the prompt has more than the {budget.comfortable} tokens there is room for",
                "use fewer --max-new-tokens, a shorter --system, or a model with a longer context",
            )
        kept -= excess
        rest = _last_tokens(loaded.tokenizer, text, kept)
        encoded = attempt({**row, task.input_column: rest})
    cut = whole - len(encode_text(loaded.tokenizer, rest, special=False))
    log.warning("the input was cut: its first %d of %d tokens are not read", cut, whole)
    return Fitted(row, encoded, cut)


def _last_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The end of a text, ``count`` tokens long, on a character boundary."""
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        return text[offsets[-count][0] :]
    ids = encode_text(tokenizer, text, special=False)
    return str(tokenizer.decode(ids[-count:], skip_special_tokens=True)).lstrip("\ufffd")
