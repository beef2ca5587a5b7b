"""What an extractive model learns from a question, a text and the answer in it: one window after the other.

The windows are those of inference (`llmkit.heads.span.split`). Labels follow run_qa.py of Transformers: a window that
does not hold a whole answer is labelled with the null answer. Of several answers that learns the first, and this all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmkit.errors import UsageError
from llmkit.heads.base import Features
from llmkit.heads.span import Document, Window, split
from llmkit.tasks import Example, QuestionContext

if TYPE_CHECKING:
    from llmkit.models.load import Loaded

__all__ = ["span_features"]


def span_features(loaded: Loaded, example: Example, *, max_seq_len: int, doc_stride: int) -> list[Features]:
    """One `Features` a window. See `split` for the two lengths."""
    if not isinstance(example.prompt, QuestionContext):
        raise UsageError("an extractive model learns to mark answers in a text", "give question, context and answers")
    document = split(loaded, example.prompt, max_seq_len=max_seq_len, doc_stride=doc_stride)
    answers = [tokens for span in example.spans if (tokens := _tokens(document, *span))]
    return [_labelled(window, answers) for window in document.windows]


def _tokens(document: Document, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of the characters ``[start, end)``; None if no token is of them."""
    text = document.context[start:end]
    start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
    first = bisect_right(document.chars, start, key=lambda chars: chars[1])
    last = bisect_left(document.chars, end, key=lambda chars: chars[0]) - 1
    return (first, last) if first <= last else None


def _labelled(window: Window, answers: Sequence[tuple[int, int]]) -> Features:
    shift = window.text_at - window.begin
    inside = [(first + shift, last + shift) for first, last in answers if window.begin <= first and last < window.end]
    starts, ends = zip(*inside or [(window.null_at, window.null_at)], strict=True)
    return Features(window.input_ids, token_type_ids=window.token_type_ids, start_positions=starts, end_positions=ends)
