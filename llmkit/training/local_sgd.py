"""What the processes of a run exchange: all gradients, or periodically their weights (local SGD).

Knows Accelerate's reductions; does not know what an update consists of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkit.training.checkpoint import Unlogged

__all__ = ["LocalSgd", "Synchronous", "sum_measures", "sum_over_processes"]


def sum_over_processes(accelerator: Any, *values: float) -> list[float]:
    """The sum of each value over the processes."""
    import torch

    if accelerator.num_processes == 1:
        return list(values)
    tensor = torch.tensor(values, device=accelerator.device, dtype=torch.float64)
    summed: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return summed


def sum_measures(accelerator: Any, measures: dict[str, list[float]]) -> None:
    """Replace sums and counts by those over the processes, which have the same measures."""
    values = sum_over_processes(accelerator, *(value for each in measures.values() for value in each))
    for place, name in enumerate(measures):
        measures[name] = values[2 * place : 2 * place + 2]


@dataclass
class Synchronous:
    """All processes make each update together: they exchange the gradients of its last micro-batch."""

    accelerator: Any
    share_gradients = True

    def sum_over_update(self, *values: float) -> list[float]:
        """The sum of each value over the processes that make the update together."""
        return sum_over_processes(self.accelerator, *values)

    def after_update(self, step: int, stop: bool, *, last: bool) -> bool:
        """Whether to stop after this update; ``stop`` is the same in all processes that make it."""
        del step, last
        return stop

    def synchronize(self, step: int) -> None:
        """Give all processes the same weights, before they are evaluated or saved."""

    def sum_up(self, since: Unlogged) -> None:
        """Collect the losses of all processes in the first one."""


@dataclass
class LocalSgd(Synchronous):
    """Each process makes updates on its own examples; weights are averaged every ``steps`` updates (Stich 2019).

    Optimizer states are averaged too: Accelerate's LocalSGD leaves them different, but a checkpoint contains only one.
    """

    steps: int
    trained: Sequence[Any]
    optimizer: Any
    share_gradients = False
    _last_sync_step: int = field(default=0, init=False)

    def sum_over_update(self, *values: float) -> list[float]:
        """The values themselves."""
        return list(values)

    def after_update(self, step: int, stop: bool, *, last: bool) -> bool:
        """Synchronize when due; only then does a process learn that another is to stop."""
        if step % self.steps and not last:
            return False
        self.synchronize(step)
        return sum_over_processes(self.accelerator, stop)[0] > 0

    def synchronize(self, step: int) -> None:
        """Average weights and optimizer states, unless already done after this update."""
        if self._last_sync_step == step:
            return
        states = (each for state in self.optimizer.state.values() for each in state.values())
        for tensor in (*self.trained, *(each for each in states if getattr(each, "ndim", 0))):
            tensor.data.copy_(self.accelerator.reduce(tensor.data, reduction="mean"))
        self._last_sync_step = step

    def sum_up(self, since: Unlogged) -> None:
        """Move the losses of the other processes to the first one."""
        losses = sum_over_processes(self.accelerator, since.loss, since.predicted)
        since.loss, since.predicted = losses if self.accelerator.is_main_process else (0.0, 0.0)
        sum_measures(self.accelerator, since.measures)
        if not self.accelerator.is_main_process:
            since.measures = {}
