"""Token budget of a batch: as many inputs as fit it when padded, fewer after memory ran out.

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
from llmkit.log import warn
from llmkit.models.load import Loaded
from llmkit.models.memory import available_memory, is_out_of_memory
from llmkit.models.tables import writes

__all__ = ["Budget", "budget_from_memory", "take_batch", "within_memory"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_SHARE = 0.4
"""Fraction of free memory to use; the rest is for what the estimate leaves out (attention scores, fragmentation)."""
_MAX_TOKENS = {"cpu": 16_384, "mps": 65_536, "cuda": 1_048_576}
"""Beyond this size a larger batch is no faster."""
_MAX_ROWS = {"cpu": 64, "mps": 64, "cuda": 256}
_MIN_TOKENS = 512
_ANY = 1_000_000


@dataclass
class Budget:
    """The maximum size of a batch. It shrinks when memory runs out, and stays small."""

    tokens: int
    """Rows times the longest, padding and new tokens included."""
    rows: int = _ANY
    _most: int = _ANY
    """Maximum number of rows, lowered while searching for the row that made a batch fail."""

    def take(
        self,
        items: Sequence[Item],
        length: Callable[[Item], int],
        answer: Callable[[Sequence[Item]], Answer],
        at: int = 0,
    ) -> tuple[Sequence[Item], Answer | LlmkitError]:
        """Run as many of the items from ``at`` on as fit; an item over the budget runs alone.

        A batch that does not fit in memory, or in which an item fails, is halved and retried; the error of a single
        item is returned as its result.
        """
        while True:
            batch = take_batch(items, at, length, self.tokens, min(self.rows, self._most))
            answered = attempt(partial(within_memory, batch, answer))
            if isinstance(answered, LlmkitError):
                if len(batch) == 1:
                    self._most = _ANY
                    return batch, answered
                self._most = len(batch) // 2  # bisect for the item that fails
            elif answered is None and len(batch) > 1:
                self.tokens = max(1, len(batch) // 2 * max(map(length, batch)))
                self.rows = len(batch) // 2
                warn("batches_reduced", "out of memory; limiting batches to %d tokens", self.tokens)
            else:
                self._most = min(2 * self._most, _ANY)
                return batch, _too_long(batch, length) if answered is None else answered[0]

    def run(
        self, items: Sequence[Item], length: Callable[[Item], int], answer: Callable[[Sequence[Item]], Answer]
    ) -> Iterator[tuple[Sequence[Item], Answer | LlmkitError]]:
        """Run all items in batches, in their order."""
        at = 0
        while at < len(items):
            batch, answered = self.take(items, length, answer, at)
            at += len(batch)
            yield batch, answered


def _too_long(batch: Sequence[Item], length: Callable[[Item], int]) -> LlmkitError:
    return NotEnoughMemoryError(
        f"{max(map(length, batch))} tokens do not fit in memory",
        "shorten the input",
        "choose a smaller model",
        "choose a smaller `dtype`",
        "lower `max_new_tokens`",
    )


def take_batch(
    items: Sequence[Item], at: int, length: Callable[[Item], int], tokens: int, rows: int = _ANY
) -> Sequence[Item]:
    """As many items from ``at`` on as fit when padded to the longest; at least one."""
    end, longest = at + 1, length(items[at])
    while end < len(items) and end - at < rows:
        longest = max(longest, length(items[end]))
        if longest * (end + 1 - at) > tokens:
            break
        end += 1
    return items[at:end]


def within_memory(batch: Sequence[Item], answer: Callable[[Sequence[Item]], Answer]) -> tuple[Answer] | None:
    """The result in a tuple; None if memory ran out."""
    try:
        return (answer(batch),)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler the error is gone, and with it the frames that held the tensors.
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def budget_from_memory(loaded: Loaded) -> Budget:
    """A budget that should fit in the memory that is free now.

    A token needs keys and values in every layer and activations in one. They are computed from the sizes in the
    config, or guessed from the number of weights if it names none.
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
        # An encoder-decoder keeps keys and values of the input and of the output.
        numbers += 2 * (_size(config, "num_hidden_layers", "decoder_layers") or 1) * kept * size
    each = numbers * max(2, loaded.model.dtype.itemsize)
    tokens = int(available_memory(str(loaded.device)) * _SHARE / each)
    return Budget(max(_MIN_TOKENS, min(tokens, _MAX_TOKENS.get(kind, 65_536))), _MAX_ROWS.get(kind, 64))


def _size(config: Any, *names: str) -> int | None:
    """The first of the settings that the config has; model families name them differently.

    The largest if layers differ (Gemma 4): their config refuses to name one for all.
    """
    layers = list(config.per_layer_config) if config.is_heterogeneous else [config]
    for name in names:
        if sizes := [value for layer in layers if isinstance(value := getattr(layer, name, None), int)]:
            return max(sizes)
    return None
