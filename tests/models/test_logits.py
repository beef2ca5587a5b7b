"""How far apart the logits of one model may be."""

from __future__ import annotations

import pytest
import torch

from llmkit.models.logits import DTYPES, difference, tolerance


@pytest.mark.parametrize("name", DTYPES)
def test_rounding_is_within_the_tolerance_and_another_model_is_not(name: str) -> None:
    torch.manual_seed(0)
    weight, features, other = (torch.randn(64, 64) for _ in range(3))
    dtype = getattr(torch, name)
    logits = weight @ features
    assert difference(logits, weight.to(dtype).float() @ features) <= tolerance(dtype) == tolerance(name)
    assert difference(logits, other @ features) > tolerance(dtype)


def test_weights_in_fewer_bits_have_the_widest_tolerance() -> None:
    assert tolerance(torch.uint8) == max(DTYPES.values())
