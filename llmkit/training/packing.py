"""Whether a model keeps packed examples apart, found by trying it."""

from __future__ import annotations

from typing import Any

__all__ = ["keeps_examples_apart"]


def keeps_examples_apart(model: Any) -> bool:
    """Whether the logits of one example stay the same when the one packed in front of it changes.

    Many models take ``position_ids`` and make examples of them; others take them and leak, which no signature shows.
    """
    import inspect

    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    learned = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
    if learned or "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    device, words = next(base.parameters()).device, int(base.config.get_text_config().vocab_size)
    first, second = (torch.arange(start, start + 6, device=device) % words for start in (3, 11))
    after = torch.arange(7, 13, device=device) % words
    positions = torch.arange(6, device=device).repeat(2)[None]
    training = base.training
    base.eval()
    with torch.no_grad():
        one, other = (
            base(input_ids=torch.cat([front, after])[None], position_ids=positions, use_cache=False).logits[:, 6:]
            for front in (first, second)
        )
    base.train(training)
    return bool(torch.equal(one, other))
