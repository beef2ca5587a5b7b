"""The tensors of a micro-batch, and what the heads make them with: filled rows, and labels where logits are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Batch", "Line", "fill", "padded", "shifted"]

IGNORED = -100
"""The label of a token that carries no loss, as PyTorch's ``cross_entropy`` has it."""

Line = Mapping[str, Any]
"""A line of a table of examples: the fields of `Features`."""


@dataclass
class Batch:
    """A micro-batch. All tensors are int64."""

    inputs: dict[str, torch.Tensor]
    """Arguments of the model."""
    labels: torch.Tensor
    """What the logits are compared with: ``[batch, kept]``, or span: ``[batch, 2, answers]``, starts and ends, each
    but once and `IGNORED` behind them."""
    keep: torch.Tensor | None = None
    """Causal: positions ``[kept]`` of the sequence whose logits predict a label of any row."""

    def to(self, device: Any) -> Batch:
        """The batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), None if self.keep is None else self.keep.to(device))


def fill(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of one length, ``[batch, longest]``, with the value behind them."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def padded(lines: Sequence[Line], pad_id: int, *, masked: bool = True) -> dict[str, torch.Tensor]:
    """The ids of examples, with an attention mask unless ``masked`` is False."""
    rows = [line["input_ids"] for line in lines]
    mask = {"attention_mask": fill([[1] * len(row) for row in rows], 0)} if masked else {}
    return {"input_ids": fill(rows, pad_id), **mask}


def shifted(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as the logits in front of them predict them, at the positions where there are any."""
    ahead = labels[:, 1:]
    keep = (ahead != IGNORED).any(dim=0).nonzero().squeeze(1)
    return ahead[:, keep], keep
