"""Fonts for the texts of a figure: matplotlib's own has no Chinese, and draws boxes instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from llmkit.log import warn

__all__ = ["chosen_fonts"]

_DEFAULT = "DejaVu Sans"
"""Comes with matplotlib."""


@contextmanager
def chosen_fonts(text: str) -> Iterator[None]:
    """Let matplotlib draw a text with fonts of this machine that have its characters.

    Warns of characters that none has; they are drawn as boxes.
    """
    from matplotlib import rc_context

    missing = {ord(character) for character in text if character.isprintable()}
    names = []
    for name in (_DEFAULT, *_files()):
        if not missing:
            break
        if found := missing & _characters_of(name):
            names.append(name)
            missing -= found
    if missing:
        shown = "".join(map(chr, sorted(missing)[:10]))
        warn("font_missing", "no font on this machine has %s: write HTML, or install one, such as Noto Sans CJK", shown)
    with rc_context({"font.family": names or [_DEFAULT]}):
        yield


@cache
def _files() -> dict[str, str]:
    """The upright fonts of this machine by family, those with many scripts first, so that few are needed."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    own = get_data_path()  # has a "last resort", which claims every character and draws boxes
    found = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal"}
    names = sorted(found, key=lambda name: ("Noto" not in name and "CJK" not in name, name))
    return {name: found[name] for name in names if name == _DEFAULT or not found[name].startswith(own)}


@cache
def _characters_of(family: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(_files()[family]).get_charmap())
