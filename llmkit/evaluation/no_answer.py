"""Finds the best no-answer threshold of an extractive model on rows with known answers.

Knows where a pipeline's outputs hold the no-answer score; `llmkit.metrics.answers` chooses the threshold.
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
    """The ``no_answer_threshold`` with the best mean F1, on rows some of which are unanswerable.

    Returns:
        None if all rows are answerable, or none is: the threshold cannot be determined from them.
    """
    task = pipeline.task
    references = [task.references(row) for row in rows]
    if all(references) or not any(references):
        return None
    # Below any score: every output then holds the no-answer probability, and its alternative the best span's.
    never = type(task)(replace(task.settings, no_answer_threshold=-math.inf, top=1))
    unthresholded = Pipeline(never, pipeline.engine, GenerationSettings(), pipeline.prompt_options)
    margins, answered = [], []
    for output, expected in zip(unthresholded.map(rows), references, strict=True):
        best = output.alternatives[0] if output.alternatives else None
        margins.append(_log(output.score or 0.0) - _log(best.score or 0.0) if best else math.inf)
        answered.append(f1(best.text if best else "", expected))
    return best_threshold(margins, answered, [float(not expected) for expected in references])


def _log(probability: float) -> float:
    """The logarithm of a probability; finite even for one that underflowed to 0."""
    return math.log(max(probability, sys.float_info.min))
