"""Which inputs run together: as many as their padded tokens fit a budget, fewer when memory runs out.

Knows lengths and bytes. Does not know what the inputs are or what is done with them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError, NotEnoughMemoryError
from llmkit.log import log
from llmkit.models.load import Loaded
from llmkit.models.memory import available_memory, is_out_of_memory
from llmkit.models.tables import writes

__all__ = ["Budget", "budget_from_memory", "fitting"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SHARE = 0.4
"""Of the free memory; the rest is for what the estimate does not see (attention scores, the allocator's gaps)."""
_MAX_TOKENS = {"cpu": 16_384, "mps": 65_536, "cuda": 1_048_576}
"""Where a larger batch is no faster any more."""
_MAX_ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
_MIN_TOKENS = 512
_ANY = 1_000_000


@dataclass
class Budget:
    """How large a batch may be. It shrinks when memory runs out, and stays so."""

    tokens: int
    """Rows times the longest, padding and new tokens included."""
    rows: int = _ANY
    _most: int = _ANY
    """Rows at most, until the one that made a batch fail is found."""

    def take(
        self,
        items: Sequence[Item],
        length: Callable[[Item], int],
        answer: Callable[[Sequence[Item]], Answer],
        at: int = 0,
    ) -> tuple[Sequence[Item], Answer | LlmkitError]:
        """Answer as many of the items from ``at`` on as fit; one over the budget goes alone.

        A batch that memory is too small for, or that one of its items makes fail, is divided in two and tried again;
        for one that cannot be divided comes the error.
        """
        while True:
            batch = fitting(items, at, length, self.tokens, min(self.rows, self._most))
            answered = attempt(partial(_within_memory, batch, answer))
            if isinstance(answered, LlmkitError):
                if len(batch) == 1:
                    self._most = _ANY
                    return batch, answered
                self._most = len(batch) // 2  # look for the item whose fault it is
            elif answered is None and len(batch) > 1:
                self.tokens = max(1, len(batch) // 2 * max(map(length, batch)))
                self.rows = len(batch) // 2
                log.warning("memory ran out, batches have at most %d tokens from here on", self.tokens)
            else:
                self._most = min(2 * self._most, _ANY)
                return batch, _too_long(batch, length) if answered is None else answered[0]

    def run(
        self, items: Sequence[Item], length: Callable[[Item], int], answer: Callable[[Sequence[Item]], Answer]
    ) -> Iterator[tuple[Sequence[Item], Answer | LlmkitError]]:
        """Answer all items in batches, in the order they come."""
        at = 0
        while at < len(items):
            batch, answered = self.take(items, length, answer, at)
            at += len(batch)
            yield batch, answered


def _too_long(batch: Sequence[Item], length: Callable[[Item], int]) -> LlmkitError:
    return NotEnoughMemoryError(
        f"{max(map(length, batch))} tokens are more than there is memory for",
        "shorten the input, or choose a smaller model, `dtype` or `max_new_tokens`",
    )


def fitting(
    items: Sequence[Item], at: int, length: Callable[[Item], int], tokens: int, rows: int = _ANY
) -> Sequence[Item]:
    """As many items from ``at`` on as fit, padded to the longest; one at least."""
    end, longest = at + 1, length(items[at])
    while end < len(items) and end - at < rows:
        longest = max(longest, length(items[end]))
        if longest * (end + 1 - at) > tokens:
            break
        end += 1
    return items[at:end]


def _within_memory(batch: Sequence[Item], answer: Callable[[Sequence[Item]], Answer]) -> tuple[Answer] | None:
    """The answer, in a tuple; None where memory ran out."""
    try:
        return (answer(batch),)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Out here the error is gone, and with it the frames that held the tensors.
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def budget_from_memory(loaded: Loaded) -> Budget:
    """A budget that should fit in the memory that is free now.

    A token takes its keys and values in every layer, and its activations in one; these are taken from the sizes in
    the config, or guessed from the number of weights where it has none.
    """
    config: Any = loaded.model.config.get_text_config()
    kind = loaded.device.type
    width = getattr(config, "hidden_size", None) or 1024
    inner = _size(config, "intermediate_size", "ffn_dim", "encoder_ffn_dim", "d_ff", "n_inner") or 4 * width
    numbers = 8 * width + 3 * inner
    if writes(loaded.head):
        heads = _size(config, "num_attention_heads", "encoder_attention_heads") or 1
        kept = _size(config, "num_key_value_heads") or heads
        size = _size(config, "head_dim", "d_kv") or width // heads
        # An encoder-decoder keeps those of the input and of the output.
        numbers += 2 * (_size(config, "num_hidden_layers", "decoder_layers") or 1) * kept * size
    each = numbers * max(2, loaded.model.dtype.itemsize)
    tokens = int(available_memory(str(loaded.device)) * _SHARE / each)
    return Budget(max(_MIN_TOKENS, min(tokens, _MAX_TOKENS.get(kind, 65_536))), _MAX_ROWS.get(kind, 64))


def _size(config: Any, *names: str) -> int | None:
    """The first of the settings that the config has; model families name them differently.

    Where layers differ (Gemma 4), the largest: their config refuses to name one for all.
    """
    layers = list(config.per_layer_config) if config.is_heterogeneous else [config]
    for name in names:
        if sizes := [value for layer in layers if isinstance(value := getattr(layer, name, None), int)]:
            return max(sizes)
    return None
