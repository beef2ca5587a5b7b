"""Splits a question and a text into windows for an extractive model, with the character offsets of each token.

Knows tokenizers with offsets, and the inputs of the models of Transformers. Does not know logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from llmkit.errors import ContextOverflowError, UsageError
from llmkit.heads.base import Encoded, refuse_halves, refuse_unknown_ids
from llmkit.tasks import QuestionContext
from llmkit.text.graphemes import graphemes

if TYPE_CHECKING:
    from llmkit.models.load import Loaded

__all__ = ["Document", "Window", "split", "takes", "takes_token_types"]

MIN_ROOM = 16
"""Minimum number of text tokens in a window: with fewer, the model sees no complete sentence."""


@dataclass(frozen=True)
class Window:
    """One input of the model: the question and a section of the text."""

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    """Empty if the model has no token types."""
    null_at: int
    """The position whose logits stand for "no answer"."""
    text_at: int
    """The position of the first token of the text."""
    begin: int
    end: int
    """The section ``[begin, end)`` in tokens of the whole text."""


@dataclass(frozen=True, kw_only=True)
class Document(Encoded):
    """A question and a text as windows, with the character offsets of each token of the text.

    ``input_ids`` are the ids of all windows, special tokens and overlap included.
    """

    prompt: QuestionContext
    windows: tuple[Window, ...] = ()
    chars: tuple[tuple[int, int], ...] = ()
    """For each token of the text its characters ``[start, end)``, widened to grapheme clusters and without surrounding
    white space. Both ends are equal for a token of white space."""
    extents: tuple[tuple[int, int], ...] = ()
    """For each token of the text the first token that starts at its character, and the last that ends at its character.
    All token spans of the same characters have the same extent, so that they count in the same window."""


def split(loaded: Loaded, prompt: QuestionContext) -> Document:
    """Split the text, but never the question, into windows of at most ``prompt.settings.max_seq_len`` tokens.

    The length includes question and special tokens and never exceeds the model's context. Neighbours overlap by
    ``doc_stride`` tokens, at most half of a window's text: no answer of up to that length is lost between windows.
    A text without tokens has no windows. The question comes first, or second if the tokenizer pads on the left, as
    such models (XLNet) were trained: run_qa.py.

    Raises:
        ContextOverflowError: the question leaves no room for the text.
        UsageError: the tokenizer provides no offsets.
    """
    tokenizer: Any = loaded.tokenizer
    question, context = prompt.question.lstrip(), prompt.context
    refuse_halves(question + context)
    question_first = tokenizer.padding_side == "right"
    pair = (question, context) if question_first else (context, question)
    if not tokenizer.is_fast:
        raise _no_offsets(loaded)
    # The tokenizer could cut it too, but that changes its state (other threads use it), obeys its truncation side
    # and fails where the overlap exceeds the room. The windows are the same; length is checked below.
    encoding = tokenizer(*pair, return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
    if "offset_mapping" not in encoding:
        raise _no_offsets(loaded)
    types = takes_token_types(loaded.model, tokenizer)
    refuse_unknown_ids(loaded, encoding["input_ids"])
    sides = encoding.sequence_ids(0)
    places = [place for place, side in enumerate(sides) if side == (1 if question_first else 0)]
    if not places:
        return Document(input_ids=(), prompt=prompt)
    first, after, count = places[0], places[-1] + 1, len(places)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"][first:after]
    room = _room(loaded, len(ids) - count, count, prompt.settings.max_seq_len, sides.count(0 if question_first else 1))
    # More than half would multiply the windows where a long question leaves little room.
    overlap = max(0, min(prompt.settings.doc_stride, room // 2))

    def part(values: Sequence[int], begin: int, end: int) -> tuple[int, ...]:
        return (*values[:first], *values[first + begin : first + end], *values[after:])

    null_at = _null_position(tokenizer, ids, sides)
    windows = []
    for begin in range(0, max(1, count - overlap), room - overlap):
        end = min(begin + room, count)
        windows.append(
            Window(
                input_ids=part(ids, begin, end),
                token_type_ids=part(encoding["token_type_ids"], begin, end) if types else (),
                null_at=null_at if null_at <= first else null_at - count + end - begin,
                text_at=first,
                begin=begin,
                end=end,
            )
        )
    chars = _whole_characters(context, offsets)
    return Document(
        input_ids=tuple(chain.from_iterable(window.input_ids for window in windows)),
        prompt=prompt,
        windows=tuple(windows),
        chars=tuple(chars),
        extents=tuple(_extents(chars)),
    )


def _no_offsets(loaded: Loaded) -> UsageError:
    return UsageError(
        f"{loaded.source.name} has a tokenizer without character offsets, so answers cannot be located in the text",
        "use a BERT-like checkpoint",
        "use a generative model such as `model=starter`",
        code="not_supported",
    )


def _room(loaded: Loaded, fixed: int, count: int, max_seq_len: int, question: int) -> int:
    """Number of text tokens in a window. ``fixed`` counts the question and special tokens, ``count`` the text."""
    limit = loaded.context.tokens
    length = max_seq_len if limit is None else min(max_seq_len, limit)
    room = length - fixed
    if room < min(count, MIN_ROOM):
        raise ContextOverflowError(
            f"the question has {question} tokens, and {max(0, length - (fixed - question) - MIN_ROOM)} fit beside the"
            f" text in the {length} that {loaded.source.name} takes at once",
            "shorten the question" + (", or raise max_seq_len" if limit is None or max_seq_len < limit else ""),
        )
    return min(room, count)


def _null_position(tokenizer: Any, ids: Sequence[int], sides: Sequence[int | None]) -> int:
    """The position that run_qa.py labels unanswerable questions with: CLS, else BOS, else the first."""
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        for place, (token, side) in enumerate(zip(ids, sides, strict=True)):
            # A text may spell out "[CLS]"; only the tokenizer's own belongs to neither side.
            if token == special and side is None:
                return place
    return 0


def takes_token_types(model: Any, tokenizer: Any) -> bool:
    """Whether the model was trained with token types of this tokenizer: as the checkpoint declares, or else as
    Transformers 4 did by default.
    """
    if not takes(model, "token_type_ids"):
        return False
    types = tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]
    rows: int | None = getattr(model.config, "type_vocab_size", None)
    # Fewer than two types carry no information: RoBERTa has one, DeBERTa none.
    if rows is not None and (rows < 2 or max(types) >= rows):
        return False
    declared = tokenizer.init_kwargs.get("model_input_names")
    if declared is not None:
        return "token_type_ids" in declared
    declaring = [vars(cls) for cls in type(tokenizer).__mro__ if "model_input_names" in vars(cls)]
    gives = ["token_type_ids" in each["model_input_names"] for each in declaring[:-1]]
    if not gives:  # the default of all tokenizers in version 4, dropped in the latest version
        return True
    if any(gives):  # a class that removes an input of its base class (DistilBERT) did so in version 4
        return gives[0]
    # Version 5 took them from some classes (ALBERT), whose models have a table for the types that the tokenizer gives.
    # A model that can be given the length of the question (BigBird) makes types of its own.
    return rows is not None and len(set(types)) > 1 and not takes(model, "question_lengths")


def takes(model: Any, name: str) -> bool:
    """Whether the model has an input of that name; an adapter's signature hides it."""
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    return name in inspect.signature(type(inner).forward).parameters


# The places of tokens in the text.


def _whole_characters(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets without white space around them, widened to whole characters."""
    starts, ends = ([], []) if text.isascii() else _clusters(text)
    chars = []
    for begin, end in offsets:
        while begin < end and text[begin].isspace():
            begin += 1
        while begin < end and text[end - 1].isspace():
            end -= 1
        chars.append((starts[begin], ends[end - 1]) if starts and begin < end else (begin, end))
    return chars


def _extents(chars: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    lows, highs = list(range(len(chars))), list(range(len(chars)))
    filled = [start < end for start, end in chars]
    for token in range(1, len(chars)):
        if chars[token][0] == chars[token - 1][0] and filled[token] and filled[token - 1]:
            lows[token] = lows[token - 1]
    for token in range(len(chars) - 2, -1, -1):
        if chars[token][1] == chars[token + 1][1] and filled[token] and filled[token + 1]:
            highs[token] = highs[token + 1]
    return list(zip(lows, highs, strict=True))


def _clusters(text: str) -> tuple[list[int], list[int]]:
    """For each code point, start and end of its grapheme cluster.

    White space takes no combining marks, since it is trimmed off answers.
    """
    starts: list[int] = []
    ends: list[int] = []
    for cluster in graphemes(text):
        space = cluster[: len(cluster) - len(cluster.lstrip())]
        for part in filter(None, (space, cluster[len(space) :])):
            start = len(starts)
            starts += [start] * len(part)
            ends += [start + len(part)] * len(part)
    return starts, ends
