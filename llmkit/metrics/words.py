"""What a word is, in any script: runs of letters, marks and digits; where no space stands between words, characters."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

from llmkit.text.scripts import is_unspaced

__all__ = ["WORDS", "has_unspaced", "words"]

WORDS = "words:unicode+characters"
"""What signatures call it."""

_RUN = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, accents kept. Of ASCII text those of rouge-score's default tokenizer."""
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFC", text).lower()):
        found += _divided(run) if has_unspaced(run) else [run]
    return found


def has_unspaced(text: str) -> bool:
    """Whether any character is of a script that writes no space between words."""
    return any(map(is_unspaced, text))


def _divided(run: str) -> list[str]:
    """Each character of an unspaced script with its marks alone, what stands between them as one word."""
    starts: list[int] = []
    joins = False
    for place, character in enumerate(run):
        alone = is_unspaced(character)
        if not starts or not (unicodedata.category(character).startswith("M") or (joins and not alone)):
            starts.append(place)
            joins = not alone
    return [run[start:end] for start, end in pairwise([*starts, len(run)])]
