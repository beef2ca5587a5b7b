"""The loss on validation examples, over all processes.

Does not know when a run is evaluated, or what follows from it (`llmkit.training.loop`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit.heads.preference import means
from llmkit.progress import ProgressMeter
from llmkit.training.checkpoint import add_measures
from llmkit.training.local_sgd import sum_measures, sum_over_processes

if TYPE_CHECKING:
    import datasets

__all__ = ["ValidationLosses"]


@dataclass
class ValidationLosses:
    """The loss of a model, in evaluation mode, on validation examples."""

    accelerator: Any
    model: Any
    objective: Any
    """In the form for evaluations."""
    examples: datasets.Dataset
    batch_size: int
    """Per process."""
    collation: Mapping[str, Any]
    """Arguments of the objective's ``batch``."""
    measures: dict[str, list[float]] = field(default_factory=dict)
    """The measures of the objective, beside its loss."""

    def by_task(self, tasks: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """The mean loss per predicted token, and, of several tasks, that of each.

        Args:
            tasks: the examples of each task.
        """
        groups = tasks if len(tasks) > 1 else {"": range(len(self.examples))}
        sums = {name: self._sum(indices) for name, indices in groups.items()}
        loss, count = (sum(each[place] for each in sums.values()) for place in (0, 1))
        of_tasks = {f"{name}_loss": total / max(1.0, number) for name, (total, number) in sums.items() if name}
        return {"loss": loss / max(1.0, count), **of_tasks, **means(self.measures)}

    def _sum(self, indices: Sequence[int]) -> tuple[float, float]:
        """The sum of losses on some examples, and the number of predicted tokens."""
        import torch

        count, total = 0.0, 0.0
        size, mine, device = self.batch_size, self.accelerator.process_index, self.accelerator.device
        order = sorted(indices, key=self.examples["length"][:].__getitem__)
        every = size * self.accelerator.num_processes
        meter = ProgressMeter(len(order), "validation examples", shown=self.accelerator.is_main_process)
        measures: dict[str, list[float]] = {}
        with torch.no_grad(), self.accelerator.autocast(), meter:
            for start in range(0, len(order), every):
                part = order[start + mine * size : start + (mine + 1) * size]
                # A sharded model runs in all processes or in none, so none may skip the last batch.
                lines = [self.examples[index] for index in part or order[:1]]
                batch = self.objective.batch(lines, **self.collation)
                objective, predicted = self.objective.for_update(self.model, [batch], device, lambda *each: list(each))
                loss = objective.loss_sum(self.model, batch, device)
                if part:
                    total += float(loss)
                    count += predicted
                    add_measures(measures, objective.measures)
                meter.advance(min(every, len(order) - start))
        total, count = sum_over_processes(self.accelerator, total, count)
        sum_measures(self.accelerator, measures)
        add_measures(self.measures, measures)
        return total, count
