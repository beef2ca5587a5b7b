"""The span head: an encoder marks where in a text the answer stands.

Knows how a long text is cut into windows, and how the logits of all of them become one distribution over answers
in the text. Knows nothing of wording, thresholds and files.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from llmkit.errors import ContextOverflowError, LlmkitError, UsageError
from llmkit.heads.base import pad, refuse_halves, refuse_not_finite, refuse_unknown_ids
from llmkit.heads.batching import Budget
from llmkit.tasks import QuestionContext, Reading, Span
from llmkit.text.graphemes import graphemes

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["Document", "Reading", "Span", "Window", "answer_all", "split", "takes", "takes_token_types"]

MIN_ROOM = 16
"""Tokens of the text that a window must hold at least: with fewer, the model sees no sentence whole."""


@dataclass(frozen=True)
class Window:
    """One input of the model: the question and a stretch of the text."""

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    """Empty where the model takes none."""
    null_at: int
    """The position whose logits stand for "no answer"."""
    text_at: int
    """The position of the first token of the text."""
    begin: int
    end: int
    """The stretch ``[begin, end)`` in tokens of the whole text."""


@dataclass(frozen=True)
class Document:
    """A question and a text as windows, and where in the text each of its tokens stands."""

    context: str
    windows: tuple[Window, ...]
    chars: tuple[tuple[int, int], ...]
    """For each token of the text the characters ``[start, end)`` it belongs to: whole ones as a reader counts them,
    without white space around them. Both ends are equal for a token of nothing but white space."""
    extents: tuple[tuple[int, int], ...]
    """For each token of the text the first that starts at its character, and the last that ends at its character.
    All token spans of the same characters have the same extent, so that they count in the same window."""


def answer_all(
    loaded: Loaded,
    documents: Sequence[Document],
    *,
    top: int,
    max_answer_len: int,
    budget: Budget,
) -> list[Reading | LlmkitError]:
    """Mark the answers to questions in their texts; one `Reading` a document, in order.

    A span's logit is start + end, as in run_squad.py of BERT and run_qa.py of Transformers; there is one softmax over
    the spans of all windows and "no answer", whose logit is its minimum over the windows (it must be absent
    everywhere). A span in the overlap of two windows counts where it has the most text on both sides. Token spans
    of the same characters are one answer, and their probabilities are added. All scores and ``no_answer`` add up to 1,
    and ``null_margin`` is log(no_answer / spans[0].score); a text without words gives no spans and infinity.

    An answer neither begins nor ends in white space or inside a character, and each place in the text is listed once.

    Args:
        documents: what `split` makes of a question and a text.
        top: how many spans to return at most.
        max_answer_len: in tokens.
        budget: how many windows, of any document, the model reads at once; results do not depend on it.

    Raises:
        UsageError: the model has another kind of head.
    """
    for name, value in (("top", top), ("max_answer_len", max_answer_len)):
        if value < 1:
            raise UsageError(f"{name} is {value}", f"set {name} to 1 or more")
    logits = iter(_logits(loaded, [window for document in documents for window in document.windows], budget))
    readings: list[Reading | LlmkitError] = []
    for document in documents:
        read = list(islice(logits, len(document.windows)))
        failed = next((error for error in read if isinstance(error, LlmkitError)), None)
        found = [
            _spans(document, number, *pair, max_answer_len=max_answer_len, top=top)
            for number, pair in enumerate(read)
            if not isinstance(pair, LlmkitError)
        ]
        readings.append(failed or _reading(document, found, top))
    return readings


# From text to windows.


def split(loaded: Loaded, prompt: QuestionContext, *, max_seq_len: int, doc_stride: int) -> Document:
    """Cut the text, and never the question, into windows of at most ``max_seq_len`` tokens.

    A text without tokens gives no windows. The question comes first, or second where the tokenizer pads on the left,
    since such models (XLNet) were trained so: run_qa.py.

    Args:
        max_seq_len: tokens in a window, question and special tokens included; never more than the model takes.
        doc_stride: tokens that two windows share, at most half of a window's text. No answer of up to that many
            tokens is lost between windows.

    Raises:
        ContextOverflowError: the question leaves no room for the text.
        UsageError: the tokenizer gives no offsets.
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
        return Document(context, (), (), ())
    first, after, count = places[0], places[-1] + 1, len(places)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"][first:after]
    room = _room(loaded, len(ids) - count, count, max_seq_len, sides.count(0 if question_first else 1))
    # More than half would multiply the windows where a long question leaves little room.
    overlap = max(0, min(doc_stride, room // 2))

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
    return Document(context, tuple(windows), tuple(chars), tuple(_extents(chars)))


def _no_offsets(loaded: Loaded) -> UsageError:
    return UsageError(
        f"{loaded.source.name} has a tokenizer that does not tell where its tokens stand in the text, so answers cannot"
        " be located",
        "use a generative model (--model starter) or a BERT-like checkpoint",
    )


def _room(loaded: Loaded, fixed: int, count: int, max_seq_len: int, question: int) -> int:
    """Tokens of the text in a window. ``fixed`` counts the question and special tokens, ``count`` the text."""
    limit = loaded.context.tokens
    length = max_seq_len if limit is None else min(max_seq_len, limit)
    room = length - fixed
    if room < min(count, MIN_ROOM):
        raise ContextOverflowError(
            f"the question has {question} tokens, and {max(0, length - (fixed - question) - MIN_ROOM)} fit beside the"
            f" text in the {length} that {loaded.source.name} reads at once",
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
    """Whether the model was trained with token types of this tokenizer: what the checkpoint declares, else what
    Transformers 4 gave by default.
    """
    if not takes(model, "token_type_ids"):
        return False
    types = tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"]
    rows: int | None = getattr(model.config, "type_vocab_size", None)
    # Fewer than two rows carry nothing: RoBERTa has one, DeBERTa none.
    if rows is not None and (rows < 2 or max(types) >= rows):
        return False
    declared = tokenizer.init_kwargs.get("model_input_names")
    if declared is not None:
        return "token_type_ids" in declared
    declaring = [vars(cls) for cls in type(tokenizer).__mro__ if "model_input_names" in vars(cls)]
    gives = ["token_type_ids" in each["model_input_names"] for each in declaring[:-1]]
    if not gives:  # the default of all tokenizers in version 4, which the last of them no longer has
        return True
    if any(gives):  # a class that takes back what the class above it gives (DistilBERT) did so in version 4
        return gives[0]
    # Version 5 took them from some classes (ALBERT), whose models have a table for the types that the tokenizer gives.
    # A model that can be given the length of the question (BigBird) makes types of its own.
    return rows is not None and len(set(types)) > 1 and not takes(model, "question_lengths")


def takes(model: Any, name: str) -> bool:
    """Whether the model has an input of that name; an adapter's own signature says nothing of it."""
    inner = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    return name in inspect.signature(type(inner).forward).parameters


# Where tokens stand in the text.


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
    """For each code point, where the character that a reader sees begins and ends.

    White space takes no marks, since answers are trimmed of it.
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


# From windows to logits.

_READS_PADDING = frozenset({"big_bird", "bigbird_pegasus", "convbert", "fnet", "funnel", "nystromformer", "yoso"})
"""These mix positions by means that no mask reaches, so that a row's answers would depend on its batch."""


def _logits(
    loaded: Loaded, windows: Sequence[Window], budget: Budget
) -> list[tuple[torch.Tensor, torch.Tensor] | LlmkitError]:
    """Start and end logits of each window, ``[length]`` float64 on the CPU."""
    results: dict[int, tuple[torch.Tensor, torch.Tensor] | LlmkitError] = {}
    if getattr(loaded.model.config, "model_type", "") in _READS_PADDING:
        budget = Budget(budget.tokens, rows=1)
    # Alike lengths waste no padding; the longest first, so that memory runs out at once or never.
    order = sorted(range(len(windows)), key=lambda number: -len(windows[number].input_ids))
    batches = budget.run(
        order,
        lambda number: len(windows[number].input_ids),
        lambda numbers: _read(loaded, [windows[number] for number in numbers]),
    )
    for numbers, read in batches:
        pairs = [read] * len(numbers) if isinstance(read, LlmkitError) else read
        results.update(zip(numbers, pairs, strict=True))
    return [results[number] for number in range(len(windows))]


def _read(loaded: Loaded, windows: Sequence[Window]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits of one batch."""
    import torch

    with loaded.lock, torch.inference_mode():
        outputs: Any = loaded.model(**_collate(loaded, windows))
    if getattr(outputs, "start_logits", None) is None or getattr(outputs, "end_logits", None) is None:
        raise UsageError(
            f"{type(loaded.model).__name__} gives beams of answers and no start and end logits",
            "use a model whose class has start and end logits, such as XLNetForQuestionAnsweringSimple",
        )
    starts, ends = outputs.start_logits.cpu().double(), outputs.end_logits.cpu().double()
    # A tuned prompt stands before the input and has logits too.
    extra = starts.shape[1] - max(len(window.input_ids) for window in windows)
    pairs = []
    for row, window in enumerate(windows):
        real = slice(extra, extra + len(window.input_ids))
        pairs.append((starts[row, real], ends[row, real]))
        for values in pairs[-1]:
            refuse_not_finite(loaded, values.abs())
    return pairs


def _collate(loaded: Loaded, windows: Sequence[Window]) -> dict[str, torch.Tensor]:
    """``[batch, longest]`` tensors, padded on the right whatever the tokenizer does: left padding moves positions."""
    tokenizer: Any = loaded.tokenizer
    candidates = (tokenizer.pad_token_id, getattr(loaded.model.config, "pad_token_id", None), 0)
    fill = next(candidate for candidate in candidates if candidate is not None)
    ids, mask = pad([window.input_ids for window in windows], fill, loaded.device, left=False)
    inputs = {"input_ids": ids}
    if takes(loaded.model, "attention_mask"):
        inputs["attention_mask"] = mask
    if windows[0].token_type_ids:
        types = pad([window.token_type_ids for window in windows], tokenizer.pad_token_type_id, ids.device, left=False)
        inputs["token_type_ids"] = types[0]
    return inputs


# From logits to answers.


@dataclass(frozen=True)
class _Found:
    """What one window adds to the reading of a document, in logits."""

    null: float
    total: float
    """logsumexp over the spans that count in this window."""
    best: tuple[tuple[float, int, int], ...]
    """Logit, and characters ``[start, end)``."""


def _spans(
    document: Document, number: int, starts: torch.Tensor, ends: torch.Tensor, *, max_answer_len: int, top: int
) -> _Found:
    """The spans that count in one window, out of a band of ``[text tokens, max_answer_len]`` logits."""
    import torch

    window = document.windows[number]
    null = float(starts[window.null_at] + ends[window.null_at])
    count = window.end - window.begin
    text = slice(window.text_at, window.text_at + count)
    first = torch.arange(count)[:, None].expand(-1, min(max_answer_len, count))
    last = first + torch.arange(first.shape[1])
    inside = last < count
    first, last = first[inside], last[inside]
    chars = torch.tensor(document.chars[window.begin : window.end])
    char_start, char_end = chars[first, 0], chars[last, 1]
    empty = chars[:, 0] == chars[:, 1]
    keep = ~empty[first] & ~empty[last] & (char_start < char_end)
    extents = torch.tensor(document.extents[window.begin : window.end])
    keep &= _counts_here(document.windows, number, extents[first, 0], extents[last, 1])
    logits = starts[text][first[keep]] + ends[text][last[keep]]
    if not len(logits):
        return _Found(null, -math.inf, ())

    # Several tokens can share a character (bytes of an emoji), and then several token spans are one answer.
    width = len(document.context) + 1
    keys, group = torch.unique(char_start[keep] * width + char_end[keep], return_inverse=True)
    highest = torch.full(keys.shape, -math.inf, dtype=logits.dtype).scatter_reduce(0, group, logits, "amax")
    sums = torch.zeros_like(highest).index_add(0, group, (logits - highest[group]).exp())
    merged = highest + sums.log()
    best, at = merged.topk(min(top, len(merged)))
    places = [divmod(int(key), width) for key in keys[at]]
    return _Found(
        null=null,
        total=float(merged.logsumexp(0)),
        best=tuple((float(logit), *place) for logit, place in zip(best, places, strict=True)),
    )


def _counts_here(windows: Sequence[Window], number: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Whether the spans of tokens ``low`` to ``high`` have more text on both sides here than in any other window.

    The lesser of the two sides, as in BERT's ``_check_is_max_context``, there asked of single tokens. From window to
    window it first grows and then falls, so that the neighbours tell; of two that are equal, the earlier counts.
    """
    import torch

    def sides(window: Window) -> torch.Tensor:
        return torch.minimum(low - window.begin, window.end - 1 - high)

    here = sides(windows[number])
    counts = here >= 0
    if number:
        counts &= here > sides(windows[number - 1])
    if number + 1 < len(windows):
        counts &= here >= sides(windows[number + 1])
    return counts


def _reading(document: Document, found: Sequence[_Found], top: int) -> Reading:
    """Put the windows of a document together."""
    tokens = sum(len(window.input_ids) for window in document.windows)
    best = sorted((span for part in found for span in part.best), key=lambda span: (-span[0], *span[1:]))[:top]
    if not best:
        return Reading((), 1.0, math.inf, len(found), tokens)
    null = min(part.null for part in found)
    logits = [null, *(part.total for part in found)]
    # Taken off before exp(), which overflows from 710 on.
    highest = max(logits)
    total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    spans = tuple(Span(document.context[start:end], start, end, math.exp(logit - total)) for logit, start, end in best)
    return Reading(spans, math.exp(null - total), null - best[0][0], len(found), tokens)
