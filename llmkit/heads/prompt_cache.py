"""Keys and values of a conversation that goes on, so that a turn reads its own tokens only.

Knows which caches of Transformers can be kept and cut back. Knows nothing of messages.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llmkit.models.generation import cache_name

if TYPE_CHECKING:
    from llmkit.models.load import Loaded

__all__ = ["PromptCache", "has_ordinary_cache", "new_cache"]


class PromptCache:
    """What one causal model has read last. Belongs to one conversation on one model."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids: list[int] = []
        self.reused = 0
        """Tokens of the last prompt that were not read again."""
        self.sequence: tuple[int, ...] = ()
        """The last prompt and what was written after it."""

    def take(self, loaded: Loaded, ids: Sequence[int]) -> Any:
        """The cache for a prompt, cut back to what it shares with the last; None where the model keeps another kind.

        Until `put` is called the cache counts as empty: a run that was cut short leaves it in an unknown state.
        """
        known, self._ids, self.sequence = self._ids, [], ()
        cache, self._cache, self.reused = self._cache, None, 0
        if not has_ordinary_cache(loaded):
            return None
        # The last token is always read, since its logits are what the answer begins with.
        shared = _shared(known, ids[:-1])
        if cache is None or not shared or not _crop(cache, len(known) - shared):
            cache, shared = new_cache(loaded), 0
        self._cache, self.reused = cache, shared
        return cache

    def put(self, ids: Sequence[int]) -> None:
        """Remember prompt and answer, whose beginning is what the cache holds now."""
        self.sequence = tuple(ids)
        self._ids = [] if self._cache is None else list(ids[: self._cache.get_seq_length()])

    def forget(self) -> None:
        """Free the memory."""
        self._cache, self._ids, self.sequence = None, [], ()


def new_cache(loaded: Loaded) -> Any:
    """An empty cache, of the kind that `generate` would make."""
    from transformers import DynamicCache

    return DynamicCache(config=loaded.model.config.get_text_config(decoder=True))


def has_ordinary_cache(loaded: Loaded) -> bool:
    """Whether keys and values are kept in a `DynamicCache`, one entry a token; states (Mamba) cannot be cut back."""
    model: Any = loaded.model
    # Prompt tuning puts virtual tokens in front, so that entries and tokens no longer match.
    peft = getattr(model, "peft_config", None)
    if peft and any(getattr(config, "is_prompt_learning", False) for config in peft.values()):
        return False
    base = model.get_base_model() if peft and hasattr(model, "get_base_model") else model
    if getattr(base, "_is_stateful", False):
        return False
    # GPT-1 and XLM keep none, though `generate` would make one for them.
    if cache_name() not in inspect.signature(base.forward).parameters:
        return False
    return bool(base._supports_default_dynamic_cache())  # noqa: SLF001 - `generate` decides by it too


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _crop(cache: Any, count: int) -> bool:
    """Remove the last ``count`` tokens; False where that cannot be done (a sliding window has moved on)."""
    if not count:  # a sliding window that has moved on can be continued all the same
        return True
    try:
        cache.crop(-count)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return False
    return True
