"""The perplexity of expected answers, or of plain text, of any length: each token counts once.

A text longer than the context is read in windows that overlap by half, and a token counts in the first window that
holds it, so that it has half a context before it at least (as in the perplexity guide of Transformers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.errors import InputError
from llmkit.heads import head_ops
from llmkit.heads.base import IGNORED, Features, refuse_unknown_ids
from llmkit.inference.pipeline import Pipeline
from llmkit.metrics.judge import Measure
from llmkit.tasks import Head

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["perplexity", "row_loss", "windows"]


def perplexity(pipeline: Pipeline, losses: Sequence[tuple[float, int]]) -> Measure:
    """The measure of the rows whose `row_loss` is given."""
    import numpy as np

    limit = pipeline.loaded.context.tokens
    signature = f"perplexity|by:token of {pipeline.loaded.source.name}|context:{limit or 'any'}|stride:half"
    return Measure("perplexity", np.asarray(losses, dtype=np.float64), _exp_mean, signature)


def _exp_mean(sums: NDArray[np.float64]) -> float:
    """Of statistics ``[loss, tokens]``."""
    try:
        return math.exp(sums[0] / sums[1]) if sums[1] else math.nan
    except OverflowError:
        return math.inf


def row_loss(pipeline: Pipeline, row: dict[str, Any]) -> tuple[float, int]:
    """The summed loss in nats of what is expected of a row, given the rest of it, and how many tokens that is.

    Args:
        row: with its target: ``completion``, the last reply of ``messages``, or ``text`` alone.

    Raises:
        InputError: the encoder does not read so much.
    """
    examples = pipeline.task.examples(row, pipeline.traits, pipeline.wording)
    found = head_ops(pipeline.loaded.head).features(pipeline.loaded, examples, loss_on_all=False)
    for each in found:
        refuse_unknown_ids(pipeline.loaded, (*each.input_ids, *each.decoder_input_ids))
    losses = [_loss(pipeline, each) for each in found]
    return sum(loss for loss, _ in losses), sum(count for _, count in losses)


def windows(length: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """Where each window begins and ends, and its first token that counts. The very first has nothing before it."""
    size = min(length, context or length)
    end = size
    yield 0, end, 1
    while end < length:
        fresh = end
        end = min(length, end + max(1, size // 2))
        yield end - size, end, fresh


def _loss(pipeline: Pipeline, features: Features) -> tuple[float, int]:
    import torch

    loaded = pipeline.loaded
    if loaded.head is Head.SEQ2SEQ:
        limit = loaded.context.tokens
        if limit is not None and loaded.context.hard and len(features.input_ids) > limit:
            raise InputError(f"it has {len(features.input_ids)} tokens, and the model reads {limit}", "shorten it")
        ids, written = (
            torch.tensor([part], device=loaded.device) for part in (features.input_ids, features.decoder_input_ids)
        )
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, decoder_input_ids=written, use_cache=False).logits[0]
        return _sum(logits, list(features.labels))
    total, count = 0.0, 0
    for begin, end, fresh in windows(len(features.input_ids), loaded.context.tokens):
        wanted = [place for place in range(fresh, end) if features.labels[place] != IGNORED]
        if not wanted:
            continue
        ids = torch.tensor([features.input_ids[begin:end]], device=loaded.device)
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, use_cache=False).logits[0]
        logits = logits[logits.shape[0] - ids.shape[1] :]  # prompt tuning puts virtual tokens in front
        before = torch.tensor([place - 1 - begin for place in wanted], device=logits.device)
        loss, tokens = _sum(logits[before], [features.labels[place] for place in wanted])
        total, count = total + loss, count + tokens
    return total, count


def _sum(logits: Any, labels: list[int]) -> tuple[float, int]:
    import torch

    wanted = torch.tensor(labels, device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
    return float(loss), int((wanted != IGNORED).sum())
