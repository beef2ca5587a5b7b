"""Standard output and error. Files and pipes get texts as they are; a terminal gets nothing that it would act on.

The only module that writes to either; the line editor draws on `terminal`. Knows where a streamed text has not ended
its line yet, also if both streams go to the same terminal or file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from itertools import count
from typing import Any, TextIO, cast

import typer

from llmkit.log import printable
from llmkit.progress import above_bars

__all__ = ["draw", "echo", "fresh_line", "guard_terminal", "line", "printed", "reset", "terminal"]

_unfinished: set[object] = set()
"""Terminals, files and pipes whose last text did not end in a line break."""

_MOVE = re.compile("\r|(?:\x1b\\[A)+$")
"""How a write of tqdm begins, which libraries draw bars with."""


class _Guarded:
    """A terminal that shows control characters as their codes.

    Args:
        terminal: the stream itself.
        bars: whether a write may begin with a move of the cursor.
    """

    def __init__(self, terminal: TextIO, *, bars: bool) -> None:
        self.terminal = terminal
        self._bars = bars

    def write(self, text: str) -> int:
        move = _MOVE.match(text) if self._bars else None
        end = move.end() if move else 0
        # Bars are drawn on standard error, so standard output may be in their way.
        with nullcontext() if self._bars else above_bars():
            self.terminal.write(text[:end] + printable(text[end:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def guard_terminal(stream: TextIO, *, bars: bool = False) -> TextIO:
    """The stream to print to in place of this one, which is another only for a terminal."""
    return cast(TextIO, _Guarded(stream, bars=bars)) if stream.isatty() else stream


def terminal(stream: TextIO) -> TextIO:
    """The stream itself, for colours and progress bars, whose texts are already printable."""
    return stream.terminal if isinstance(stream, _Guarded) else stream


_lines = count()
"""Numbers of the calls of `echo`."""


def printed() -> int:
    """A number that tells whether anything but `draw` was printed since the last call: it grows by one otherwise."""
    return next(_lines)


def echo(text: str = "", *, end: str = "\n", err: bool = False, **style: Any) -> None:
    """Print at once, on a terminal in a style of `typer.style`. Errors of standard error are ignored."""
    stream = sys.stderr if err else sys.stdout
    next(_lines)
    with suppress(OSError, ValueError) if err else nullcontext():
        if style and stream.isatty():
            terminal(stream).write(typer.style(printable(text), **style) + end)
        else:
            stream.write(text + end)
        stream.flush()
        if text + end:
            (_unfinished.discard if (text + end).endswith("\n") else _unfinished.add)(_place(stream))


def draw(text: str) -> None:
    """Print on standard output with the control sequences in it; texts of others in it are printable already."""
    if text:
        terminal(sys.stdout).write(text)
        sys.stdout.flush()
        (_unfinished.discard if text.endswith("\n") else _unfinished.add)(_place(sys.stdout))


def line(text: str) -> None:
    """Print a line of its own on standard error: after the end of a streamed text, and above bars."""
    with suppress(OSError, ValueError), above_bars():
        fresh_line(err=True)
        echo(text, err=True)


def fresh_line(*, err: bool = False) -> None:
    """End the line of a text that was streamed to where this stream goes, if it has not ended."""
    if _place(sys.stderr if err else sys.stdout) in _unfinished:
        echo(err=err)


def reset() -> None:
    """Forget the texts of an earlier run in this process."""
    _unfinished.clear()


def _place(stream: TextIO) -> object:
    """What a stream writes to, which may be the same for both."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream in memory
        return id(stream)
    return found.st_dev, found.st_ino
