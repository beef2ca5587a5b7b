"""Grapheme clusters: what a reader perceives as one character, such as a letter with its accent or a flag."""

from __future__ import annotations

__all__ = ["graphemes"]

# `\X` does not join a pair of lone surrogates, and takes quadratic time in a sequence of flags.
_GRAPHEME = r"[\ud800-\udbff][\udc00-\udfff]|[\U0001f1e6-\U0001f1ff]{2}[\p{GCB=EX}\p{GCB=ZWJ}\p{GCB=SM}]*+|\X"


def graphemes(text: str) -> list[str]:
    """The grapheme clusters of a text (UAX 29); joined, they are the text again."""
    import regex

    found: list[str] = regex.findall(_GRAPHEME, text)
    return found
