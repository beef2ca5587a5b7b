"""Widths of texts in the columns of a terminal, in which Chinese characters and emoji take two."""

from __future__ import annotations

__all__ = ["display_width", "padded"]


def display_width(text: str) -> int:
    """Number of columns that a text takes."""
    if text.isascii():
        return len(text)
    from wcwidth import width

    return int(width(text))


def padded(text: str, width: int) -> str:
    """A text with spaces added up to this number of columns."""
    return text + " " * (width - display_width(text))
