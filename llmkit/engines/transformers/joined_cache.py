"""A KV cache of several rows: rows with separate prefill are decoded as one batch, and can be removed from it.

Knows the cache layers of Transformers that hold one entry per token. Knows nothing of prompts and texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmkit.engines.transformers.prompt_cache import has_ordinary_cache, new_cache

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["can_join", "join", "pad_left"]


def can_join(loaded: Loaded) -> bool:
    """Whether every layer's cache can be concatenated from the caches of single rows."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not has_ordinary_cache(loaded):
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in new_cache(loaded).layers)


def join(loaded: Loaded, caches: Sequence[Any]) -> Any:
    """One cache ``[all rows, heads, longest, size]``, left-padded with zeros, which the mask has to hide.

    The input caches are emptied layer by layer, so that only one layer is in memory twice.
    """
    if len(caches) == 1:
        return caches[0]
    joined = new_cache(loaded)
    for number, layer in enumerate(joined.layers):
        parts = [cache.layers[number] for cache in caches]
        if not parts[0].is_initialized:  # it shares the keys and values of another layer
            continue
        layer.lazy_initialization(parts[0].keys, parts[0].values)
        layer.keys, layer.values = _stack([part.keys for part in parts]), _stack([part.values for part in parts])
        if layer.is_sliding:
            # As long as if the shorter rows had been padded from the start.
            layer.cumulative_length = max(part.cumulative_length for part in parts)
        for part in parts:
            part.reset()
    return joined


def _stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    longest = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, longest - part.shape[2], 0)) for part in parts])


def pad_left(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """Concatenate ``[rows, length]`` tensors, padded on the left."""
    import torch

    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (longest - part.shape[1], 0), value=fill) for part in parts])
