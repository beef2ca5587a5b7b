"""The span head: an encoder extracts the answer's span from a text.

Knows how the logits of all windows of a text (`llmkit.heads.windows`) become one distribution over answers, and how
windows are labelled for training. Knows nothing of prompt wording, thresholds and files.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError
from llmkit.heads.base import IGNORED, BaseHead, Features, LossOn, pad, refuse_not_finite
from llmkit.heads.batch import Batch, Line, fill, padded
from llmkit.heads.objective import Objective
from llmkit.heads.windows import Document, Window, split, takes
from llmkit.models.families import family
from llmkit.tasks import Example, Head, Prompt, QuestionContext, Span, SpanPrediction

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["SpanHead"]

Logits = tuple[Any, Any]
"""Start and end logits of a window, ``[length]`` float64 on the CPU."""


class SpanHead(BaseHead):
    name = Head.SPAN
    unit = "window"

    def encode(self, loaded: Loaded, prompt: Prompt) -> Document:
        if not isinstance(prompt, QuestionContext):
            raise UsageError(
                f"the {self.name} head generates no text", "use a causal or seq2seq model", code="not_supported"
            )
        return split(loaded, prompt)

    def pad_id(self, loaded: Loaded) -> int:
        own = (loaded.tokenizer.pad_token_id, getattr(loaded.model.config, "pad_token_id", None), 0)
        return next(candidate for candidate in own if candidate is not None)

    def features(self, loaded: Loaded, examples: Sequence[Example], *, loss_on: LossOn) -> list[Features]:
        """See `BaseHead`. One example per window, with the windows of inference.

        Labels follow run_qa.py of Transformers: a window without a complete answer is labelled with the null answer.
        If a row has several answers, run_qa.py learns the first; this head learns all of them.
        """
        found = []
        for example in examples:
            if not isinstance(example.prompt, QuestionContext):
                raise UsageError(
                    "an extractive model learns answers that occur in a text",
                    "provide question, context and answers",
                    code="not_supported",
                )
            document = split(loaded, example.prompt)
            answers = [tokens for span in example.spans if (tokens := _tokens(document, *span))]
            found += [_labelled(window, answers) for window in document.windows]
        return found

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        """See `BaseHead`. An encoder is bidirectional, so there is always a mask."""
        inputs = padded(lines, pad_id)
        if lines[0]["token_type_ids"]:
            inputs["token_type_ids"] = fill([line["token_type_ids"] for line in lines], 0)
        ends = ("start_positions", "end_positions")
        labels = fill([sorted(set(line[end])) for line in lines for end in ends], IGNORED)
        return Batch(inputs, labels.unflatten(0, (len(lines), len(ends))))

    def predictions(self, batch: Batch) -> int:
        return int((batch.labels[:, 0, 0] != IGNORED).sum())

    def loss(self, model: Any, batch: Batch, objective: Objective) -> torch.Tensor:
        """See `BaseHead`. The mean of start and end loss, as in ``ForQuestionAnswering`` of Transformers.

        Unlike there, padding gets no probability, so that the loss does not depend on the batch, and each of several
        answers counts as correct.
        """
        import torch

        output = model(**batch.inputs)
        padding = batch.inputs["attention_mask"] == 0
        pairs = zip((output.start_logits, output.end_logits), batch.labels.unbind(dim=1), strict=True)
        return torch.stack([_place_loss(*pair, padding, objective.token_loss.smoothing) for pair in pairs]).mean()

    def logits(self, output: Any) -> torch.Tensor:
        import torch

        return torch.stack([output.start_logits, output.end_logits]).float()

    # From windows to answers.

    def alone(self, loaded: Loaded) -> bool:
        """Whether the model must process one window at a time."""
        return family(loaded.model.config.model_type).reads_padding

    def read(self, loaded: Loaded, windows: Sequence[Window]) -> list[Logits]:
        """The logits of one batch."""
        import torch

        with loaded.lock, loaded.active(), torch.inference_mode():
            outputs: Any = loaded.model(**self.collate(loaded, windows))
        if getattr(outputs, "start_logits", None) is None or getattr(outputs, "end_logits", None) is None:
            raise UsageError(
                f"{type(loaded.model).__name__} returns beams of answers instead of start and end logits",
                "use a model whose class has start and end logits, such as XLNetForQuestionAnsweringSimple",
                code="not_supported",
            )
        starts, ends = outputs.start_logits.cpu().double(), outputs.end_logits.cpu().double()
        # The virtual tokens of a tuned prompt precede the input and have logits too.
        extra = starts.shape[1] - max(len(window.input_ids) for window in windows)
        pairs = []
        for row, window in enumerate(windows):
            real = slice(extra, extra + len(window.input_ids))
            pairs.append((starts[row, real], ends[row, real]))
            for values in pairs[-1]:
                refuse_not_finite(loaded, values.abs())
        return pairs

    def collate(self, loaded: Loaded, windows: Sequence[Window]) -> dict[str, torch.Tensor]:
        """``[batch, longest]`` tensors, always padded on the right, so that positions count from the left."""
        tokenizer: Any = loaded.tokenizer
        ids, mask = pad([window.input_ids for window in windows], self.pad_id(loaded), loaded.device, left=False)
        inputs = {"input_ids": ids}
        if takes(loaded.model, "attention_mask"):
            inputs["attention_mask"] = mask
        if windows[0].token_type_ids:
            types = pad(
                [window.token_type_ids for window in windows], tokenizer.pad_token_type_id, ids.device, left=False
            )
            inputs["token_type_ids"] = types[0]
        return inputs

    def answer(self, document: Document, logits: Sequence[Logits]) -> SpanPrediction:
        """The answers to a question in its text, from the logits of each window.

        A span's logit is start + end, as in run_squad.py of BERT and run_qa.py of Transformers; there is one softmax
        over the spans of all windows and "no answer", whose logit is its minimum over the windows (it must be absent
        everywhere). A span in the overlap of two windows counts in the one with the most context on both sides. Token
        spans of the same characters are one answer, and their probabilities are added. All scores and ``no_answer`` add
        up to 1, and ``null_margin`` is log(no_answer / spans[0].score); a text without words has no spans and infinity.

        An answer neither begins nor ends in white space or inside a character, and each span of the text is listed
        once.
        """
        settings = document.prompt.settings
        found = [
            _spans(document, number, *pair, max_answer_len=settings.max_answer_len, top=settings.top)
            for number, pair in enumerate(logits)
        ]
        return _combined(document, found, settings.top)


# What is learned.


def _tokens(document: Document, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of the characters ``[start, end)``; None if no token covers them."""
    text = document.prompt.context[start:end]
    start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
    first = bisect_right(document.chars, start, key=lambda chars: chars[1])
    last = bisect_left(document.chars, end, key=lambda chars: chars[0]) - 1
    return (first, last) if first <= last else None


def _labelled(window: Window, answers: Sequence[tuple[int, int]]) -> Features:
    shift = window.text_at - window.begin
    inside = [(first + shift, last + shift) for first, last in answers if window.begin <= first and last < window.end]
    starts, ends = zip(*inside or [(window.null_at, window.null_at)], strict=True)
    return Features(window.input_ids, token_type_ids=window.token_type_ids, start_positions=starts, end_positions=ends)


def _place_loss(logits: torch.Tensor, places: torch.Tensor, padding: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross entropy, per row, of any of its correct positions against all positions but padding.

    The summed objective of Clark and Gardner (2018, arXiv:1710.10723); with one correct position, plain cross entropy.

    Args:
        logits: ``[batch, length]``, as ``padding``.
        places: ``[batch, answers]``, distinct, padded with `IGNORED`; all `IGNORED` for a row without loss.
    """
    log_p = logits.float().masked_fill(padding, -1e9).log_softmax(dim=1)
    right = log_p.gather(1, places.clamp(min=0)).masked_fill(places == IGNORED, -1e9).logsumexp(dim=1)
    if smoothing:
        # Label smoothing is spread evenly over all positions but padding.
        even = log_p.masked_fill(padding, 0).sum(dim=1) / (~padding).sum(dim=1)
        right = (1 - smoothing) * right + smoothing * even
    return -right.masked_fill(places[:, 0] == IGNORED, 0).sum()


# From logits to answers.


@dataclass(frozen=True)
class _Found:
    """One window's contribution to the prediction for a document, in logits."""

    null: float
    total: float
    """logsumexp over the spans that count in this window."""
    best: tuple[tuple[float, int, int], ...]
    """Logit and character offsets ``[start, end)``."""


def _spans(
    document: Document, number: int, starts: torch.Tensor, ends: torch.Tensor, *, max_answer_len: int, top: int
) -> _Found:
    """The spans that count in one window, from a band of ``[text tokens, max_answer_len]`` logits."""
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
    width = len(document.prompt.context) + 1
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
    """Whether the spans of tokens ``low`` to ``high`` have more context here than in any other window.

    Context is the smaller of the two sides, as in BERT's ``_check_is_max_context``, which checks single tokens. From
    window to window it first grows and then falls, so comparing with the neighbours suffices; of equals the first wins.
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


def _combined(document: Document, found: Sequence[_Found], top: int) -> SpanPrediction:
    """Combine the windows of a document."""
    tokens = len(document.input_ids)
    best = sorted((span for part in found for span in part.best), key=lambda span: (-span[0], *span[1:]))[:top]
    if not best:
        return SpanPrediction((), 1.0, math.inf, len(found), tokens)
    null = min(part.null for part in found)
    logits = [null, *(part.total for part in found)]
    # Subtracted before exp(), which overflows above 709.
    highest = max(logits)
    total = highest + math.log(math.fsum(math.exp(logit - highest) for logit in logits))
    spans = tuple(
        Span(document.prompt.context[start:end], start, end, math.exp(logit - total)) for logit, start, end in best
    )
    return SpanPrediction(spans, math.exp(null - total), null - best[0][0], len(found), tokens)
