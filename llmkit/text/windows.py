"""Overlapping windows of a text that is too long for a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Window", "windows"]

_OVERLAP = 8
"""Consecutive windows share 1/8 of their tokens, so that an answer at the edge of one is complete in another."""


@dataclass(frozen=True)
class Window:
    """A part of the context, beginning at character ``start``."""

    start: int
    text: str


def windows(context: str, room: int, count: Callable[[str], int]) -> list[Window]:
    """Overlapping windows of at most ``room`` tokens that cover the context, split between sentences."""
    from llmkit.text.sentences import pack, script_language, sentences

    if count(context) <= room:
        return [Window(0, context)]
    overlap = room // _OVERLAP
    # A piece longer than the overlap could not be shared, so long sentences are split.
    pieces = [
        part for piece in sentences(context, script_language(context)) for part in pack([piece], room - overlap, count)
    ]
    sizes = [count(piece) for piece in pieces]
    found: list[Window] = []
    first, offset = 0, 0
    while True:
        last, size = first, 0
        while last < len(pieces) and (last == first or size + sizes[last] <= room):
            size += sizes[last]
            last += 1
        while last - first > 1 and count("".join(pieces[first:last])) > room:  # joined, pieces can have more tokens
            last -= 1
        found.append(Window(offset, "".join(pieces[first:last])))
        if last == len(pieces):
            return found
        shared, following = 0, last
        while following - 1 > first and shared + sizes[following - 1] <= overlap:
            following -= 1
            shared += sizes[following]
        offset += sum(len(piece) for piece in pieces[first:following])
        first = following
