"""How far apart two computations of the same logits may be, where another order or dtype rounds them differently.

One rule for whoever compares: the largest difference, by the largest logit, is at most `tolerance` of the least precise
dtype in which weights or activations are kept. Rounding alone was seen to make 1e-6 (float32), 1e-3 (float16) and 1e-2
(bfloat16); another model, or a row that sees another one, makes more than 0.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "LAST_BITS", "difference", "tolerance"]

DTYPES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
"""From the dtypes that weights are kept in to the tolerance."""
LAST_BITS = 1e-5
"""The tolerance in place of that where shape and dtype are the same and only other rows differ.

Experts are computed for the tokens of all rows at once. A leak is a hundred times as much.
"""


def tolerance(dtype: Any) -> float:
    """Of torch's dtype or its name; weights in fewer bits have that of bfloat16."""
    return DTYPES.get(str(dtype).removeprefix("torch."), DTYPES["bfloat16"])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two logits, by the largest logit."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-9))
