"""The perplexity of reference answers or plain text of any length: each token counts once.

The head knows how a text longer than the context is split into windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmkit.heads import head_of
from llmkit.heads.base import refuse_unknown_ids
from llmkit.heads.objective import Objective
from llmkit.heads.writing import WritingHead
from llmkit.inference.pipeline import Pipeline
from llmkit.metrics.score import Measure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["perplexity", "row_loss", "scoring_objective"]


def perplexity(pipeline: Pipeline, losses: Sequence[tuple[float, int]]) -> Measure:
    """Perplexity from the results of `row_loss`."""
    import numpy as np

    limit = pipeline.loaded.context.tokens
    signature = f"perplexity|by:token of {pipeline.loaded.source.name}|context:{limit or 'any'}|stride:half"
    return Measure("perplexity", np.asarray(losses, dtype=np.float64), _exp_mean, signature)


def _exp_mean(sums: NDArray[np.float64]) -> float:
    """Perplexity from statistics ``[loss, tokens]``."""
    try:
        return math.exp(sums[0] / sums[1]) if sums[1] else math.nan
    except OverflowError:
        return math.inf


def scoring_objective(pipeline: Pipeline) -> Objective:
    """What the losses of all rows are computed with."""
    return _head(pipeline).scoring_objective(pipeline.loaded)


def _head(pipeline: Pipeline) -> WritingHead:
    head = head_of(pipeline.loaded.head)
    assert isinstance(head, WritingHead)
    return head


def row_loss(pipeline: Pipeline, row: dict[str, Any], objective: Objective) -> tuple[float, int]:
    """The summed loss of a row's target in nats, given the rest of the row, and the target's number of tokens.

    Args:
        row: with its target: ``completion``, the last reply of ``messages``, or ``text`` alone.
        objective: from `scoring_objective`.

    Raises:
        InputError: the text exceeds the encoder's context.
    """
    examples = pipeline.task.examples(row, pipeline.traits, pipeline.few_shot.options_for(row))
    head = _head(pipeline)
    found = head.features(pipeline.loaded, examples, loss_on="target")
    for each in found:
        refuse_unknown_ids(pipeline.loaded, (*each.input_ids, *each.decoder_input_ids))
    losses = [head.target_loss(pipeline.loaded, each, objective) for each in found]
    return sum(loss for loss, _ in losses), sum(count for _, count in losses)
