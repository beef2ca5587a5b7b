"""Which tokens a model lets attend to which, probed by running it, since no signature shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit.models.logits import LAST_BITS, difference

if TYPE_CHECKING:
    import torch

__all__ = ["is_causal", "supports_packing"]

_LENGTH = 24
"""Tokens of a probed example."""


def supports_packing(model: Any) -> bool:
    """Whether the logits of an example stay the same when the example packed before it changes.

    Many models separate examples by ``position_ids``; others accept them and let examples attend to each other.
    """
    import inspect

    import torch

    base = _base(model)
    if base is None or "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    first, second, after = _tokens(base)
    positions = torch.arange(_LENGTH, device=first.device).repeat(2)[None]
    one, other = (
        _logits(base, torch.cat([front, after]), position_ids=positions)[_LENGTH:] for front in (first, second)
    )
    return difference(one, other) <= LAST_BITS


def is_causal(model: Any) -> bool:
    """Whether the logits of tokens stay the same when later tokens change, so that these can be padding."""
    import torch

    base = _base(model)
    if base is None:
        return False
    first, second, front = _tokens(base)
    one, other = (_logits(base, torch.cat([front, behind]))[:_LENGTH] for behind in (first, second))
    return difference(one, other) <= LAST_BITS


def _base(model: Any) -> Any:
    """The model below an adapter; None if the adapter puts virtual tokens in front."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return None
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _tokens(model: Any) -> list[torch.Tensor]:
    import torch

    device, words = next(model.parameters()).device, int(model.config.get_text_config().vocab_size)
    return [torch.arange(start, start + _LENGTH, device=device) % words for start in (3, 11, 7)]


def _logits(model: Any, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """The logits of one row without dropout: ``[tokens, vocabulary]``."""
    import torch

    training, kinds = model.training, {each.dtype for each in model.parameters() if each.is_floating_point()}
    mixed = torch.float32 in kinds and torch.bfloat16 in kinds  # embeddings that are trained, above frozen layers
    model.eval()
    with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=mixed):
        logits: torch.Tensor = model(input_ids=ids[None], use_cache=False, **inputs).logits[0]
    model.train(training)
    return logits
