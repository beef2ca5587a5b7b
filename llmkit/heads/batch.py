"""The tensors of a micro-batch, and helpers to build them: padded rows, and labels aligned with kept logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Batch", "Line", "fill", "padded", "shifted"]

IGNORED = -100
"""The label of a token without loss: ``ignore_index`` of PyTorch's ``cross_entropy``."""

Line = Mapping[str, Any]
"""A row of a table of examples: the fields of `Features`."""


@dataclass
class Batch:
    """A micro-batch. All tensors are int64."""

    inputs: dict[str, torch.Tensor]
    """Arguments of the model."""
    labels: torch.Tensor
    """Targets of the logits: ``[batch, kept]``; for span ``[batch, 2, answers]``, distinct starts and ends padded with
    `IGNORED`."""
    keep: torch.Tensor | None = None
    """Causal: positions ``[kept]`` of the sequence whose logits predict a label of any row."""

    def to(self, device: Any) -> Batch:
        """The batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, self.labels.to(device), None if self.keep is None else self.keep.to(device))


def fill(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows padded on the right with a value, ``[batch, longest]``."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def padded(lines: Sequence[Line], pad_id: int, *, masked: bool = True) -> dict[str, torch.Tensor]:
    """The ids of examples, with an attention mask unless ``masked`` is False."""
    rows = [line["input_ids"] for line in lines]
    mask = {"attention_mask": fill([[1] * len(row) for row in rows], 0)} if masked else {}
    return {"input_ids": fill(rows, pad_id), **mask}


def shifted(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels shifted to the logits that predict them, at the positions that have any."""
    ahead = labels[:, 1:]
    keep = (ahead != IGNORED).any(dim=0).nonzero().squeeze(1)
    return ahead[:, keep], keep
