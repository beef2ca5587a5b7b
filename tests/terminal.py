"""A terminal for tests: what a program writes to it, and what it then shows."""

from __future__ import annotations

import os
import re
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO


def on_terminal(use: Callable[[TextIO], object]) -> str:
    """What is written to a terminal, which is read meanwhile since it holds little."""
    master, slave = os.openpty()
    tty.setraw(slave)  # no \r before \n
    taken = bytearray()

    def read() -> None:
        with suppress(OSError):  # once its other end is closed
            while piece := os.read(master, 1 << 16):
                taken.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        use(stream)
    reader.join()
    os.close(master)
    return taken.decode()


def rendered(text: str) -> list[str]:
    """The lines that a terminal shows of a text, without styles: \\r and \\x1b[A move the cursor, \\n begins a line."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|\x1b\[\d*m|.", text, re.DOTALL):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\x1b[A":
            row = max(0, row - 1)
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + 1 :]
            column += 1
    shown = [line.rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown
