"""Scores of groups of rows beside those of all rows: of a translation, its language pairs.

Knows which rows are scored together; the task names the group and the language of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.metrics.score import Measure, Metric, joined, score
from llmkit.tasks import Task

__all__ = ["Scored", "score_rows"]


@dataclass(frozen=True)
class Scored:
    """The measures of all rows, and those of each group if there are several."""

    measures: list[Measure]
    groups: dict[str, list[Measure]]


def score_rows(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    predictions: Sequence[str | None],
    references: Sequence[Sequence[str]],
    metrics: Sequence[Metric] | None = None,
) -> Scored:
    """Compute metrics, by default the task's, with the tokenization of each row's target language."""
    together: dict[tuple[str | None, str | None], list[int]] = {}
    for index, row in enumerate(rows):
        together.setdefault((task.group(row), task.target_language(row)), []).append(index)
    parts = {
        key: score(
            task.metrics if metrics is None else metrics,
            [predictions[index] for index in indices],
            [references[index] for index in indices],
            language=key[1],
        )
        for key, indices in together.items()
    }
    groups = {group: measures for (group, _), measures in sorted(parts.items(), key=str) if group is not None}
    total = joined([(together[key], measures) for key, measures in parts.items()])
    return Scored(total, groups if len(groups) > 1 else {})
