"""From features to the tensors of a micro-batch, padded or packed, and the places where logits are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from llmkit.heads.base import IGNORED
from llmkit.tasks import Head

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "collate"]

Line = Mapping[str, Any]
"""A line of a table of examples: the fields of `Features`."""


@dataclass
class Batch:
    """A micro-batch. All tensors are int64 on the CPU."""

    inputs: dict[str, torch.Tensor]
    """Arguments of the model."""
    labels: torch.Tensor
    """What the logits are compared with: ``[batch, kept]``, or span: ``[batch, 2, answers]``, starts and ends, each
    but once and `IGNORED` behind them."""
    keep: torch.Tensor | None = None
    """Causal: positions ``[kept]`` of the sequence whose logits predict a label of any row."""


def collate(lines: Sequence[Line], head: Head, *, pad_id: int, packed: bool, masked: bool = True) -> Batch:
    """Examples to one micro-batch.

    Args:
        packed: causal; as a single row, whose ``position_ids`` begin anew at each example.
        masked: causal; with an attention mask. Padding stands on the right, where a model that sees nothing ahead needs
            none, and attention without one takes less memory and time.
    """
    if head is Head.SPAN:
        return _span(lines, pad_id)
    if head is Head.SEQ2SEQ:
        return _seq2seq(lines, pad_id)
    return _packed(lines) if packed else _causal(lines, pad_id, masked=masked)


def _rows(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _masked(lines: Sequence[Line], pad_id: int) -> dict[str, torch.Tensor]:
    rows = [line["input_ids"] for line in lines]
    return {"input_ids": _rows(rows, pad_id), "attention_mask": _rows([[1] * len(row) for row in rows], 0)}


def _shifted(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels as the logits in front of them predict them, at the positions where there are any."""
    ahead = labels[:, 1:]
    keep = (ahead != IGNORED).any(dim=0).nonzero().squeeze(1)
    return ahead[:, keep], keep


def _causal(lines: Sequence[Line], pad_id: int, *, masked: bool) -> Batch:
    labels, keep = _shifted(_rows([line["labels"] for line in lines], IGNORED))
    inputs = _masked(lines, pad_id) if masked else {"input_ids": _rows([line["input_ids"] for line in lines], pad_id)}
    return Batch(inputs, labels, keep)


def _packed(lines: Sequence[Line]) -> Batch:
    import torch

    ids = [token for line in lines for token in line["input_ids"]]
    positions = [place for line in lines for place in range(len(line["input_ids"]))]
    labels = [label for line in lines for label in line["labels"]]
    for start in accumulate(len(line["labels"]) for line in lines[:-1]):
        labels[start] = IGNORED  # would be predicted from the example in front
    kept, keep = _shifted(torch.tensor([labels]))
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
    return Batch(inputs, kept, keep)


def _seq2seq(lines: Sequence[Line], pad_id: int) -> Batch:
    begun = [line["decoder_input_ids"] for line in lines]
    inputs = _masked(lines, pad_id) | {"decoder_input_ids": _rows(begun, pad_id)}
    return Batch(inputs, _rows([line["labels"] for line in lines], IGNORED))


def _span(lines: Sequence[Line], pad_id: int) -> Batch:
    inputs = _masked(lines, pad_id)
    if lines[0]["token_type_ids"]:
        inputs["token_type_ids"] = _rows([line["token_type_ids"] for line in lines], 0)
    ends = ("start_positions", "end_positions")
    labels = _rows([sorted(set(line[end])) for line in lines for end in ends], IGNORED)
    return Batch(inputs, labels.unflatten(0, (len(lines), len(ends))))
