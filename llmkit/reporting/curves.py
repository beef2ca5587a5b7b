"""Curves over the updates of a run as inline SVG, which takes the colours of its page."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

__all__ = ["Series", "curve", "series_of"]

_INK = "#010203"
"""Replaced by the colour of the page's text."""
_COLOURS = ("#3b82f6", "#d97706", "#16a34a", "#db2777", "#7c3aed", "#0891b2")


@dataclass(frozen=True)
class Series:
    label: str
    steps: Sequence[float]
    values: Sequence[float]
    marked: bool = False
    """Whether points are few and marked."""


def series_of(log: Sequence[Mapping[str, Any]], key: str, label: str) -> Series | None:
    """A figure over the updates of a log; None if no entry has it."""
    points = [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    return Series(label, steps, values, marked=key.startswith("eval_") or len(points) == 1)


def curve(name: str, series: Sequence[Series], xlabel: str, ylabel: str) -> str:
    """The SVG element of a plot. ``name`` must be unique in the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
    settings |= dict.fromkeys(inks, _INK)
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser draws the text
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for colour, each in zip(_COLOURS * len(series), series, strict=False):
            marker = "o" if each.marked else ""
            axes.plot(each.steps, each.values, label=each.label, color=colour, marker=marker, markersize=4)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25, color=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(frameon=False)
        file = StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    text = file.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
