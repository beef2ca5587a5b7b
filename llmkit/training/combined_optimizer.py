"""Several optimizers as one, whose parameter groups and states a scheduler and a checkpoint see as those of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["CombinedOptimizer", "muon_with_adamw"]


class CombinedOptimizer(torch.optim.Optimizer):
    """Each part updates its own parameters."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__(groups, {"lr": groups[0]["lr"]})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "parts" in self.__dict__:
            self._share()

    def _share(self) -> None:
        """Give the parts these groups and this state."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters."""
        assert closure is None
        for part in self.parts:
            part.step()


def muon_with_adamw(
    groups: Sequence[Mapping[str, Any]], lr: float, betas: tuple[float, float], eps: float, muon: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Muon for the groups that are marked ``muon``, AdamW for the others; a Muon without momentum buffers is AdamW."""
    marked = [dict(group) for group in groups if group["muon"]]
    others = [dict(group) for group in groups if not group["muon"]]
    parts: list[torch.optim.Optimizer] = [torch.optim.Muon(marked, lr=lr, **muon)] if marked else []
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps))
    return CombinedOptimizer(parts)
