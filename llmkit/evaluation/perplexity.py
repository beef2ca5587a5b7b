"""The perplexity of expected answers, or of plain text, of any length: each token counts once.

How a text that is longer than the context is read, the head knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmkit.heads import head_of
from llmkit.heads.base import refuse_unknown_ids
from llmkit.heads.writing import WritingHead
from llmkit.inference.pipeline import Pipeline
from llmkit.metrics.score import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["perplexity", "row_loss"]


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
    head = head_of(pipeline.loaded.head)
    assert isinstance(head, WritingHead)
    found = head.features(pipeline.loaded, examples, loss_on_all=False)
    for each in found:
        refuse_unknown_ids(pipeline.loaded, (*each.input_ids, *each.decoder_input_ids))
    losses = [head.target_loss(pipeline.loaded, each) for each in found]
    return sum(loss for loss, _ in losses), sum(count for _, count in losses)
