"""Keys and values of earlier prompts and their outputs, so that a prompt processes only what follows a known prefix.

A tree: each node holds the tokens between two places where sequences part, so that a prefix which many share is in
memory once. Knows ids and caches; does not know requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmkit.engines.transformers.prompt_cache import has_ordinary_cache, new_cache, shared_length

if TYPE_CHECKING:
    import torch

    from llmkit.models.load import Loaded

__all__ = ["PrefixCache", "supports_prefixes"]

_SHORTEST = 16
"""Shorter prefixes are processed again."""
_Layers = Sequence["tuple[torch.Tensor, torch.Tensor] | None"]
"""Keys and values of some tokens, ``[1, heads, tokens, size]``; None for a layer that uses those of another."""


def supports_prefixes(loaded: Loaded) -> bool:
    """Whether a token's keys and values depend on nothing but the tokens before it, and are kept as they are."""
    from transformers.cache_utils import DynamicLayer

    if not has_ordinary_cache(loaded) or any(type(layer) is not DynamicLayer for layer in new_cache(loaded).layers):
        return False
    # RoPE of these kinds changes with the length of the whole sequence: see `dynamic_rope_update` in Transformers.
    kinds = {str(getattr(module, "rope_type", "")) for module in loaded.model.modules()}
    return not any("dynamic" in kind or "longrope" in kind for kind in kinds)


@dataclass(eq=False)
class _Node:
    ids: tuple[int, ...] = ()
    layers: _Layers = ()
    parent: _Node | None = None
    children: dict[int, _Node] = field(default_factory=dict)
    """By their first token."""
    used: int = 0

    def part(self, start: int, end: int) -> _Layers:
        """Copies of keys and values, so that the rest can be freed."""
        return _sliced(self.layers, 0, start, end)

    def split(self, at: int) -> None:
        """Move the tokens from ``at`` on to a child."""
        rest = _Node(self.ids[at:], self.part(at, len(self.ids)), self, self.children, self.used)
        for child in rest.children.values():
            child.parent = rest
        self.ids, self.layers, self.children = self.ids[:at], self.part(0, at), {rest.ids[0]: rest}


@dataclass
class PrefixCache:
    """Prefixes of sequences of one model, the least recently used dropped first."""

    loaded: Loaded
    tokens: int
    """Maximum number of tokens."""
    size: int = field(default=0, init=False)
    """Number of tokens."""
    _roots: dict[str, _Node] = field(default_factory=dict, init=False)
    """By adapter, on which keys and values depend."""
    _clock: int = field(default=0, init=False)

    def take(self, adapter: str, ids: Sequence[int], copies: int = 1) -> Any:
        """A cache with the longest known prefix of a prompt, which may be empty, in ``copies`` rows."""
        cache = new_cache(self.loaded)
        # The last token is always processed, since its logits predict the first new token.
        found = list(self._walk(adapter, ids[:-1]))
        if sum(count for _, count in found) < _SHORTEST:
            return cache
        self._touch(found)
        for number, layer in enumerate(cache.layers):
            parts = [_cut(node.layers[number], count) for node, count in found]
            if parts[0] is not None:
                keys, values = (_joined([part[place] for part in parts if part]) for place in (0, 1))
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values  # never changed in place: layers grow by concatenation
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        return cache

    def put(self, adapter: str, ids: Sequence[int], cache: Any, row: int = 0, start: int = 0) -> None:
        """Keep a copy of the entries of tokens, which begin at ``start`` in a row of a cache."""
        ids = tuple(ids[: self.tokens])
        node, known = self._roots.setdefault(adapter, _Node()), 0
        found = list(self._walk(adapter, ids))
        for node, count in found:
            known += count
            if count < len(node.ids):
                node.split(count)
        if known < len(ids):
            layers = [(layer.keys, layer.values) if layer.is_initialized else None for layer in cache.layers]
            new = _Node(ids[known:], _sliced(layers, row, start + known, start + len(ids)), node)
            node.children[new.ids[0]] = new
            self.size += len(new.ids)
            found.append((new, len(new.ids)))
        self._touch(found)
        self._shrink()

    def limit(self, tokens: int) -> None:
        """Keep no more than ``tokens`` from now on."""
        self.tokens = max(0, tokens)
        self._shrink()

    def _shrink(self) -> None:
        while self.size > self.tokens:
            leaf = min(self._leaves(), key=lambda node: node.used)
            assert leaf.parent is not None
            del leaf.parent.children[leaf.ids[0]]
            self.size -= len(leaf.ids)

    def _walk(self, adapter: str, ids: Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """The nodes along known tokens, and how many of each match."""
        node, at = self._roots.get(adapter, _Node()), 0
        while at < len(ids) and (child := node.children.get(ids[at])) is not None:
            count = shared_length(child.ids, ids[at:])
            yield child, count
            if count < len(child.ids):
                return
            node, at = child, at + count

    def _touch(self, found: Sequence[tuple[_Node, int]]) -> None:
        self._clock += 1
        for node, _ in found:
            node.used = self._clock

    def _leaves(self) -> Iterator[_Node]:
        waiting = [child for root in self._roots.values() for child in root.children.values()]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if not node.children:
                yield node


def _sliced(layers: _Layers, row: int, start: int, end: int) -> _Layers:
    return [
        None if layer is None else (_copy(layer[0], row, start, end), _copy(layer[1], row, start, end))
        for layer in layers
    ]


def _copy(values: torch.Tensor, row: int, start: int, end: int) -> torch.Tensor:
    return values[row : row + 1, :, start:end].clone()


def _cut(layer: tuple[torch.Tensor, torch.Tensor] | None, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if layer is None else (layer[0][:, :, :count], layer[1][:, :, :count])


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)
