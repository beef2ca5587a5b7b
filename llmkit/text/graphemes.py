"""Grapheme clusters: what a reader takes for one character, such as a letter with its accent or a flag."""

from __future__ import annotations

__all__ = ["graphemes"]

# `\X` does not know that two lone surrogates can be one character, and at each flag looks back over all before it.
_GRAPHEME = r"[\ud800-\udbff][\udc00-\udfff]|[\U0001f1e6-\U0001f1ff]{2}[\p{GCB=EX}\p{GCB=ZWJ}\p{GCB=SM}]*+|\X"


def graphemes(text: str) -> list[str]:
    """The clusters of a text (UAX 29); they join to it."""
    import regex

    found: list[str] = regex.findall(_GRAPHEME, text)
    return found
