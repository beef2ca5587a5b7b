"""Rows that are decoded together: prompts join between two tokens, and rows leave when they end.

For causal models whose cache holds one entry per token. Knows ids, masks and caches. Does not know which requests may
share a batch, or why one joins when it does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.engines.transformers.joined_cache import can_join, join, pad_left
from llmkit.engines.transformers.model_calls import ModelCalls
from llmkit.engines.transformers.output_rows import OutputRow
from llmkit.engines.transformers.prefix_cache import PrefixCache
from llmkit.engines.transformers.prompt_cache import new_cache
from llmkit.models.generation import cache_name

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead

__all__ = ["JoinedBatch", "supports_joining"]

_DEPENDS_ON_CALL_START = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "max_time",
    "min_length",
    "watermarking_config",
)
"""Settings whose effect would change if a row is generated in several calls."""
_MIN_ACTIVE = 0.75
"""Finished rows are removed from a batch when no more than this fraction is active. Each removal costs about as much as
one step."""


def supports_joining(calls: ModelCalls, head: WritingHead) -> bool:
    """Whether rows can join and leave a batch without changing the others."""
    if calls.beams or not head.one_sequence:
        return False
    if calls.config.use_cache is False:
        return False
    if any(getattr(calls.config, name, None) for name in _DEPENDS_ON_CALL_START):
        return False
    return can_join(calls.loaded)


@dataclass
class _Part:
    """Rows with one cache, which holds all of their tokens but the last."""

    rows: list[OutputRow]
    inputs: dict[str, torch.Tensor]
    cache: Any

    def active(self) -> _Part:
        """The rows that have not ended."""
        import torch

        places = [place for place, row in enumerate(self.rows) if not row.done]
        if len(places) == len(self.rows) or not places:
            return replace(self, rows=[self.rows[place] for place in places])
        chosen = torch.tensor(places, device=self.inputs["input_ids"].device)
        self.cache.batch_select_indices(chosen)
        inputs = {name: values[chosen] for name, values in self.inputs.items()}
        return _Part([self.rows[place] for place in places], inputs, self.cache)


@dataclass
class JoinedBatch:
    """Rows that are decoded together; all have the same settings, but for their limits."""

    calls: ModelCalls
    head: WritingHead
    prefixes: PrefixCache | None = None
    """Known prefixes of prompts that are admitted one at a time."""
    _parts: list[_Part] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Whether a row has not ended."""
        return bool(self._parts)

    def admit(self, batch: Sequence[Encoded], rows: Sequence[OutputRow]) -> int:
        """Process prompts, and generate the first token of each of their rows, equally many for each prompt.

        A prompt may contain the tokens that its only row has generated before. Returns how many tokens of the prompt
        were known.
        """
        loaded, cache = self.calls.loaded, new_cache(self.calls.loaded)
        if self.prefixes is not None:
            (encoded,) = batch
            cache = self.prefixes.take(rows[0].adapter, encoded.input_ids, len(rows))
        known = int(cache.get_seq_length())
        part = _Part(list(rows), self.head.collate(loaded, batch), cache)
        config = self._rest(rows) if rows[0].count else self.calls.config
        part = self._generate(part, config, min_active=math.inf)
        if self.prefixes is not None:
            self.prefixes.put(rows[0].adapter, encoded.input_ids, part.cache)
        self._add(part)
        return known

    def advance(self) -> None:
        """Generate until some rows have ended, or until the calls pause."""
        part = self._joined()
        self._add(self._generate(part, self._rest(part.rows), min_active=_MIN_ACTIVE))

    def _add(self, part: _Part) -> None:
        for place, row in enumerate(part.rows):
            if row.done and self.prefixes is not None:
                start = int(part.inputs["attention_mask"][place].argmax())
                self.prefixes.put(row.adapter, (*row.prompt, *row.tokens[:-1]), part.cache, place, start)
        part = part.active()
        if part.rows:
            self._parts.append(part)

    def _joined(self) -> _Part:
        parts, self._parts = self._parts, []
        inputs = {
            "input_ids": pad_left([part.inputs["input_ids"] for part in parts], self.head.pad_id(self.calls.loaded)),
            "attention_mask": pad_left([part.inputs["attention_mask"] for part in parts], 0),
        }
        rows = [row for part in parts for row in part.rows]
        return _Part(rows, inputs, join(self.calls.loaded, [part.cache for part in parts]))

    def _rest(self, rows: Sequence[OutputRow]) -> GenerationConfig:
        """The settings for the rest of the outputs."""
        config = copy.deepcopy(self.calls.config)
        config.num_return_sequences = 1  # the rows have been expanded already
        config.max_new_tokens = max(row.limit - row.count for row in rows)
        if config.min_new_tokens is not None:  # rows that join later have none
            config.min_new_tokens = max(0, config.min_new_tokens - rows[0].count)
        return config

    def _generate(self, part: _Part, config: GenerationConfig, *, min_active: float) -> _Part:
        """Generate until no more than a fraction ``min_active`` of the rows is active."""
        import torch

        output = self.calls.run(part.rows, part.inputs, part.cache, config=config, min_active=min_active)
        ids, mask = output.sequences, part.inputs["attention_mask"]
        mask = mask.repeat_interleave(len(ids) // len(mask), dim=0)
        new = torch.ones(len(mask), ids.shape[1] - mask.shape[1], dtype=mask.dtype, device=mask.device)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([mask, new], dim=1)}
        return _Part(part.rows, inputs, getattr(output, cache_name()))
