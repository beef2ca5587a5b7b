"""What a metric beside those of the task is computed from, and what it results in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmkit.evaluation.groups import Scored
from llmkit.tasks import Task

__all__ = ["AdditionalMetric", "Answered", "Computed"]


@dataclass(frozen=True)
class Answered:
    """Rows with their references and a model's predictions."""

    task: Task
    rows: Sequence[Mapping[str, Any]]
    predictions: Sequence[str | None]
    references: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Computed:
    """The results of a metric: what has confidence intervals, and anything else."""

    scored: Scored
    others: dict[str, Any] = field(default_factory=dict)


class AdditionalMetric(Protocol):
    """A metric that was requested beside those of the task."""

    def check(self, answered: Answered) -> None:
        """Refuse what would fail later, given a row and one of its references as the prediction.

        Raises:
            UsageError: it cannot be computed for these rows, or with these options.
        """

    def compute(self, answered: Answered) -> Computed:
        """The results for all rows."""
