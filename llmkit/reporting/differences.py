"""Which words two texts share, in any script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import chain

import regex

from llmkit.metrics.words import has_unspaced

__all__ = ["Part", "differences"]

Part = tuple[str, bool]
"""A part of a text, and whether the other text has it too."""

_PIECE = regex.compile(r"[\p{L}\p{M}\p{N}]+|\s+|.")
_CHARACTER = regex.compile(r"\X")


def differences(one: str, other: str) -> tuple[list[Part], list[Part]]:
    """Both texts in parts that the other one has, at this place of the order, or has not.

    Words are compared, or characters in scripts without spaces between words.
    """
    left, right = _pieces(one), _pieces(other)
    blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
    return (
        _joined(_parts(left, [(block.a, block.size) for block in blocks])),
        _joined(_parts(right, [(block.b, block.size) for block in blocks])),
    )


def _pieces(text: str) -> list[str]:
    found = _PIECE.findall(text)
    return list(chain.from_iterable(_CHARACTER.findall(each) if has_unspaced(each) else [each] for each in found))


def _parts(pieces: Sequence[str], shared: Sequence[tuple[int, int]]) -> Iterator[Part]:
    at = 0
    for start, size in shared:
        if start > at:
            yield "".join(pieces[at:start]), False
        if size:
            yield "".join(pieces[start : start + size]), True
        at = start + size


def _joined(parts: Iterator[Part]) -> list[Part]:
    """Parts in which white space between two differences belongs to them."""
    found: list[Part] = []
    for text, shared in parts:
        if not shared and len(found) > 1 and found[-1][0].isspace() and not found[-2][1]:
            text = found.pop(-2)[0] + found.pop()[0] + text
        found.append((text, shared))
    return found
