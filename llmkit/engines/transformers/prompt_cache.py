"""Keys and values of a conversation that goes on, so that a turn reads its own tokens only.

Knows which caches of Transformers can be kept and cut back, and that the ids of what is kept must stay as they are.
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

__all__ = ["PromptCache", "has_ordinary_cache", "new_cache"]


class PromptCache:
    """What one causal model has read last. Belongs to one conversation on one model."""

    def __init__(self) -> None:
        self._cache: Any = None
        self._ids: list[int] = []
        self.reused = 0
        """Tokens of the last prompt that were not read again."""
        self._sequence: tuple[int, ...] = ()
        """The last prompt and what was written after it."""
        self._text = ""
        """Of the last prompt and reply."""
        self._text_ids: tuple[int, ...] = ()
        self._rendered: tuple[Prompt | None, str] = None, ""
        """The last prompt that was spliced, and its text."""

    def take(self, loaded: Loaded, ids: Sequence[int]) -> Any:
        """The cache for a prompt, cut back to what it shares with the last; None where the model keeps another kind.

        Until `put` is called the cache counts as empty: a run that was cut short leaves it in an unknown state.
        """
        known, self._ids, self._sequence = self._ids, [], ()
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
        self._sequence = tuple(ids)
        self._ids = [] if self._cache is None else list(ids[: self._cache.get_seq_length()])

    def splice(self, loaded: Loaded, prompt: Prompt, encoded: Encoded) -> Encoded:
        """A prompt with the ids of what the model has read and written, so that only what is new is tokenized.

        The text of a reply can have other ids than those the model wrote it with; then it would be read again.
        """
        if not isinstance(prompt, Chat):
            return encoded
        tokenizer, rendered = loaded.tokenizer, render_chat(loaded.tokenizer, prompt)
        self._rendered = prompt, rendered
        if not self._text_ids or not rendered.startswith(self._text):
            return encoded
        new = encode_text(tokenizer, rendered[len(self._text) :], special=False)
        # Only a special token at the seam keeps the two sides from forming other tokens together.
        if not new or new[0] not in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}:
            return encoded
        return replace(encoded, input_ids=(*self._text_ids, *new))

    def remember(self, loaded: Loaded, request: Request, raw: Generation) -> None:
        """Keep the text and ids of a turn, where the ids are those of the text."""
        if raw.finish_reason == "interrupted" and not raw.text.strip():  # a turn that was stopped at once is none
            return
        self._text, self._text_ids = "", ()
        # What came after a stop string is known to the model and not part of its reply.
        prompt, rendered = self._rendered
        if prompt is request.prompt and not raw.marked and not request.settings.stop:
            ids = self._sequence
            closed = bool(ids) and ids[-1] in {*(loaded.tokenizer.all_special_ids or ())}
            self._text = f"{rendered}{raw.text}"
            self._text_ids = ids[:-1] if closed else ids  # the template writes the end


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
