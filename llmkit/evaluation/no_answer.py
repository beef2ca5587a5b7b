"""When a model that marks answers should give none: the threshold that is best on rows whose answers are known.

Knows how a pipeline tells the score of no answer; which threshold is best is `llmkit.metrics.answers`' business.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmkit.config.settings import GenerationSettings
from llmkit.inference.pipeline import Pipeline
from llmkit.metrics.answers import Threshold, best_threshold, f1

__all__ = ["fit_no_answer_threshold"]


def fit_no_answer_threshold(pipeline: Pipeline, rows: Sequence[dict[str, Any]]) -> Threshold | None:
    """The ``no_answer_threshold`` with the best mean F1, on rows some of which have no answer in their text.

    Returns:
        None where all rows have an answer, or none has: nothing could be learned from them.
    """
    task = pipeline.task
    references = [task.references(row) for row in rows]
    if all(references) or not any(references):
        return None
    # Below any score: every output tells the probability of no answer, and its alternative the best answer's.
    never = type(task)(replace(task.settings, no_answer_threshold=-math.inf, top=1))
    asked = Pipeline(never, pipeline.engine, GenerationSettings(), pipeline.wording)
    margins, answered = [], []
    for output, wanted in zip(asked.map(rows), references, strict=True):
        best = output.alternatives[0] if output.alternatives else None
        margins.append(_log(output.score or 0.0) - _log(best.score or 0.0) if best else math.inf)
        answered.append(f1(best.text if best else "", wanted))
    return best_threshold(margins, answered, [float(not wanted) for wanted in references])


def _log(probability: float) -> float:
    """Finite also of one that was too small for a number."""
    return math.log(max(probability, sys.float_info.min))
