"""The statistics of a run while it trains, and the sentences that report them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmkit.files import in_units
from llmkit.progress import duration

if TYPE_CHECKING:
    from llmkit.config.recipe import TrainSection
    from llmkit.training.checkpoint import Progress

__all__ = ["TrainingStats", "comparison", "conclusion"]


@dataclass(frozen=True)
class TrainingStats:
    """Statistics of the updates since the last log entry."""

    step: int
    updates: int
    """Updates of the whole run."""
    epoch: float
    loss: float
    """Mean over predicted tokens."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens seen, including prompts."""
    seconds: float
    memory: int
    """Peak memory in bytes so far, on the device of this process."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Means of rewards and log-probabilities, in tuning on preferences."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def __str__(self) -> str:
        rewards = "".join(
            f"{name.removeprefix('rewards/')} {value:.4f}, "
            for name, value in self.measures.items()
            if name in ("rewards/accuracies", "rewards/margins")
        )
        return (
            f"loss {self.loss:.4f}, {rewards}epoch {self.epoch:.2f}, learning rate {self.learning_rate:.2e}, "
            f"{self.tokens_per_second:,.0f} tokens/s, {in_units(self.memory)}"
        )


def comparison(progress: Progress, before: int | None) -> str:
    """How the last evaluation compares with earlier ones; ``before``: the step of the best one until then."""
    if before is None:
        return ""
    if progress.best_step == progress.step:
        return f" (the best so far; before: update {before})"
    return f" (the best so far: {progress.best_metric:.4f} at update {progress.best_step})"


def conclusion(progress: Progress, train: TrainSection) -> str:
    """How the run ended."""
    updates = f"{progress.step} updates"
    if progress.step < progress.updates:
        patience = train.early_stopping_patience
        updates = f"{progress.step} of {progress.updates} updates ({patience} evaluations without improvement)"
    end = f"trained for {updates} in {duration(progress.seconds)}"
    if progress.best_metric is None:
        return end
    return f"{end}; best validation {train.best_metric} {progress.best_metric:.4f} at update {progress.best_step}"
