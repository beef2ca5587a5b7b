"""Standard input of a command whose text is complete without it: a pipe, a redirected file, or nothing.

A program without a terminal need not have a pipe: cron, services, containers and notebooks pass /dev/null, a closed
pipe, or a pipe that nobody writes to and nobody closes. A shell loop passes the list it goes through.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from pathlib import Path
from typing import Any

from llmkit.log import log, warn

__all__ = ["piped", "something_is_piped"]

_PATIENCE = 5.0
"""Seconds to wait for the first byte from a program that started this one and may never write."""


def piped() -> bytes:
    """What is piped or redirected into the command; empty if that is nothing."""
    return sys.stdin.buffer.read() if _is_readable(wait=True) else b""


def something_is_piped() -> bool:
    """Whether standard input contains text. Waits for the first of it only if another program of a pipeline writes."""
    buffer: Any = sys.stdin.buffer
    return _is_readable(wait=False) and bool(buffer.read1(io.DEFAULT_BUFFER_SIZE).strip())


def _is_readable(*, wait: bool) -> bool:
    """Whether a read returns text or the end of the input without blocking for long.

    ``wait`` for a program that started this one, too, and log why standard input is not used.
    """
    if sys.stdin.isatty():
        return False
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):
        return isinstance(
            getattr(sys.stdin, "buffer", None), io.BytesIO
        )  # other replacements have no input, as in notebooks
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return _is_ours(descriptor, wait=wait)
    return (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and _arrives(descriptor, wait=wait)


def _is_ours(descriptor: int, *, wait: bool) -> bool:
    """Whether nobody has read from a redirected file; a shell loop that has would lose its other lines."""
    shared = os.lseek(descriptor, 0, os.SEEK_CUR) > 0
    if shared and wait:
        log.info("standard input is not used, since another program has begun to read it")
    return not shared


def _arrives(descriptor: int, *, wait: bool) -> bool:
    """Whether the first byte or the end of a pipe arrives."""
    if os.name != "posix":  # select() knows sockets only
        return True
    if select.select([descriptor], [], [], 0)[0]:
        return True
    patience = None if _comes_from_a_pipeline(descriptor) else _PATIENCE
    if patience and not wait:
        return False
    log.info("waiting for standard input")
    if select.select([descriptor], [], [], patience)[0]:
        return True
    warn(
        "input_ignored",
        "nothing arrived on standard input in %g s, so it is not used; to wait for it, pass `text` and the argument -",
        _PATIENCE,
    )
    return False


def _comes_from_a_pipeline(descriptor: int) -> bool:
    """Whether another program of a shell pipeline writes to the pipe, and so closes it at its end.

    The programs that started this one may keep a pipe open forever. Found on Linux only.
    """
    import psutil

    target, above = f"pipe:[{os.fstat(descriptor).st_ino}]", {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) in above:
            continue
        try:
            if any(each.lstat().st_mode & 0o200 and os.readlink(each) == target for each in (process / "fd").iterdir()):  # noqa: PTH115
                return True
        except OSError:  # ended meanwhile, or another user's
            continue
    return False
