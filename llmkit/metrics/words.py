"""Words in any script: runs of letters, marks and digits; single characters in scripts without spaces."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import regex

from llmkit.text.scripts import is_unspaced

__all__ = ["WORDS", "has_unspaced", "words"]

WORDS = "words:unicode+characters"
"""Its name in signatures."""

_RUN = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, with accents; on ASCII text the same as rouge-score's default tokenizer."""
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFC", text).lower()):
        found += _divided(run) if has_unspaced(run) else [run]
    return found


def has_unspaced(text: str) -> bool:
    """Whether any character belongs to a script without spaces between words."""
    return any(map(is_unspaced, text))


def _divided(run: str) -> list[str]:
    """Split a run into single characters (with their marks) of unspaced scripts, and the words between them."""
    starts: list[int] = []
    joins = False
    for place, character in enumerate(run):
        alone = is_unspaced(character)
        if not starts or not (unicodedata.category(character).startswith("M") or (joins and not alone)):
            starts.append(place)
            joins = not alone
    return [run[start:end] for start, end in pairwise([*starts, len(run)])]
