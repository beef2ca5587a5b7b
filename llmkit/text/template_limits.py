"""Time and memory limits for rendering a template, which is code that comes with a model or a recipe.

Time is limited from a second thread, which works in every thread and on every system; memory only where the system can
limit it (Linux). Does not know what is rendered.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from llmkit.errors import CheckpointError

__all__ = ["limited"]

SECONDS = 10.0
"""Real templates take a millisecond."""
BYTES = 2**30
"""Additional memory for rendering one text."""

_MEMORY = Path("/proc/self/statm")
_ONE_AT_A_TIME = threading.Lock()
"""The memory limit applies to the whole process, so one rendering at a time sets it."""


class _TooLongError(Exception):
    """Raised in the rendering thread by the watching thread."""


@contextmanager
def limited(template: str, fix: str, what: str = "the model's chat template") -> Iterator[None]:
    """Stop a rendering that takes too much time or memory. Errors call the template ``what``.

    Raises:
        CheckpointError: it did, or it contains an operation that no limit can interrupt.
    """
    if _has_power(template):
        # The one operation that can compute for hours in a single step, which cannot be interrupted.
        raise CheckpointError(
            f"{what} raises a number to a power, which may never end",
            fix,
            code="chat_template_failed",
        )
    try:
        with _ONE_AT_A_TIME, _limited_memory(), _watch.limited():
            yield
    except _TooLongError as error:
        raise CheckpointError(
            f"{what} does not end within {SECONDS:g} seconds", fix, code="chat_template_failed"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{what} uses too much memory", fix, code="chat_template_failed") from error


@lru_cache(maxsize=64)
def _has_power(template: str) -> bool:
    """Whether ``**`` is the power operator, not keyword unpacking."""
    from jinja2 import Environment, TemplateSyntaxError

    before = ""
    with suppress(TemplateSyntaxError, RecursionError):  # rendering reports the syntax error
        for _, kind, text in Environment(autoescape=True).lex(template):
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    return False


class _Watch:
    """The current renderings, and the thread that checks them every second while there are any."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._rendering: tuple[int, float] | None = None
        """Thread and start time of each rendering."""

    @contextmanager
    def limited(self) -> Iterator[None]:
        with self._turn:
            self._rendering = threading.get_ident(), time.monotonic()
            if self._thread is None or not self._thread.is_alive():  # threads do not survive a fork
                self._thread = threading.Thread(target=self._look, name="llmkit-template", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._turn:
                self._rendering = None

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, SECONDS))
            with self._turn:
                if self._rendering is None:
                    self._thread = None
                    return
                thread, since = self._rendering
                if time.monotonic() - since >= SECONDS:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLongError))


_watch = _Watch()


@contextmanager
def _limited_memory() -> Iterator[None]:
    try:
        import resource

        pages = int(_MEMORY.read_bytes().split()[5])
    except (ImportError, OSError):  # another system
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = pages * resource.getpagesize() + BYTES
    if soft != resource.RLIM_INFINITY and soft < most:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
