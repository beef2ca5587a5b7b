"""KV cache of a conversation, so that a turn processes only its own tokens.

Knows which caches of Transformers can be kept and cropped, and that the ids of the kept prefix must not change.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmkit.heads.base import Encoded, encode_text
from llmkit.heads.chat_template import render_chat
from llmkit.models.generation import cache_name
from llmkit.tasks import Chat, Generation, Prompt

if TYPE_CHECKING:
    from llmkit.engines.base import Request
    from llmkit.models.load import Loaded

__all__ = ["PromptCache", "has_ordinary_cache", "new_cache", "shared_length"]


class PromptCache:
    """The last sequence of one causal model. Belongs to one conversation on one model."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids: list[int] = []
        self.reused = 0
        """Tokens of the last prompt that came from the cache."""
        self._sequence: tuple[int, ...] = ()
        """The last prompt and its output."""
        self._text = ""
        """Token ids of the last prompt and reply."""
        self._text_ids: tuple[int, ...] = ()
        self._rendered: tuple[Prompt | None, str] = None, ""
        """The last spliced prompt, and its text."""

    def take(self, loaded: Loaded, ids: Sequence[int]) -> Any:
        """The cache for a prompt, cropped to the prefix it shares with the last; None if the model keeps another kind.

        Until `put` is called the cache counts as empty: an interrupted run leaves it in an unknown state.
        """
        known, self._ids, self._sequence = self._ids, [], ()
        cache, self._cache, self.reused = self._cache, None, 0
        if not has_ordinary_cache(loaded):
            return None
        # The last token is always processed, since its logits predict the first new token.
        shared = shared_length(known, ids[:-1])
        if cache is None or not shared or not _crop(cache, len(known) - shared):
            cache, shared = new_cache(loaded), 0
        self._cache, self.reused = cache, shared
        return cache

    def put(self, ids: Sequence[int]) -> None:
        """Remember prompt and reply; the cache holds a prefix of them."""
        self._sequence = tuple(ids)
        self._ids = [] if self._cache is None else list(ids[: self._cache.get_seq_length()])

    def splice(self, loaded: Loaded, prompt: Prompt, encoded: Encoded) -> Encoded:
        """A prompt that reuses the ids of the cached sequence, so that only new text is tokenized.

        Tokenizing the text of a reply can give other ids than the model generated, and the cache would be useless.
        """
        if not isinstance(prompt, Chat):
            return encoded
        tokenizer, rendered = loaded.tokenizer, render_chat(loaded.tokenizer, prompt)
        self._rendered = prompt, rendered
        if not self._text_ids or not rendered.startswith(self._text):
            return encoded
        new = encode_text(tokenizer, rendered[len(self._text) :], special=False)
        # Only a special token at the seam keeps the two sides from merging into other tokens.
        if not new or new[0] not in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
            return encoded
        return replace(encoded, input_ids=(*self._text_ids, *new))

    def remember(self, loaded: Loaded, request: Request, raw: Generation) -> None:
        """Keep the text and ids of a turn, if the ids decode to the text."""
        if (
            raw.finish_reason == "interrupted" and not raw.text.strip()
        ):  # a turn that was stopped at once does not count
            return
        self._text, self._text_ids = "", ()
        # Tokens after a stop string are in the cache and not part of the reply.
        prompt, rendered = self._rendered
        if prompt is request.prompt and not raw.marked and not request.settings.stop:
            ids = self._sequence
            closed = bool(ids) and ids[-1] in {*(loaded.tokenizer.all_special_ids or ())}
            self._text = f"{rendered}{raw.text}"
            self._text_ids = ids[:-1] if closed else ids  # the template adds the end token


def new_cache(loaded: Loaded) -> Any:
    """An empty cache, of the kind that `generate` would create."""
    from transformers import DynamicCache

    return DynamicCache(config=loaded.model.config.get_text_config(decoder=True))


def has_ordinary_cache(loaded: Loaded) -> bool:
    """Whether the model uses a `DynamicCache`, one entry per token; states (Mamba) cannot be cropped."""
    model: Any = loaded.model
    # Prompt tuning puts virtual tokens in front, so that entries and tokens no longer match.
    peft = getattr(model, "peft_config", None)
    if peft and any(getattr(config, "is_prompt_learning", False) for config in peft.values()):
        return False
    base = model.get_base_model() if peft and hasattr(model, "get_base_model") else model
    if getattr(base, "_is_stateful", False):
        return False
    # GPT-1 and XLM use no cache, though `generate` would create one for them.
    if cache_name() not in inspect.signature(base.forward).parameters:
        return False
    return bool(base._supports_default_dynamic_cache())  # noqa: SLF001 - `generate` decides by it too


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _crop(cache: Any, count: int) -> bool:
    """Remove the last ``count`` tokens; False if that is impossible (a sliding window has moved on)."""
    if not count:  # a sliding window that has moved on can still be extended
        return True
    try:
        cache.crop(-count)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return False
    return True
