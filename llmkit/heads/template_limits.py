"""How long a chat template may take and how much memory: it is code that comes with a model.

Time is limited from a second thread, so that it holds in every thread and on every system; memory where the system can
limit it (Linux). Knows nothing of conversations.
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
"""Templates in use take a thousandth of a second."""
BYTES = 2**30
"""Memory beyond what the process has, for one text."""

_MEMORY = Path("/proc/self/statm")
_ONE_AT_A_TIME = threading.Lock()
"""The limit of memory is the process's."""


class _TooLongError(Exception):
    """Raised in the thread that renders, by the one that watches it."""


@contextmanager
def limited(template: str, fix: str) -> Iterator[None]:
    """End a rendering that takes too long or too much memory.

    Raises:
        CheckpointError: it did, or would hold every limit up.
    """
    if _has_power(template):
        # The one operation that can compute for hours in one step, which nothing can end.
        raise CheckpointError("the model's chat template raises a number to a power, which may never end", fix)
    try:
        with _ONE_AT_A_TIME, _limited_memory(), _watch.limited():
            yield
    except _TooLongError as error:
        raise CheckpointError(f"the model's chat template does not end within {SECONDS:g} seconds", fix) from error
    except MemoryError as error:
        raise CheckpointError("the model's chat template needs more memory than any text of a chat", fix) from error


@lru_cache(maxsize=64)
def _has_power(template: str) -> bool:
    """Whether ``**`` stands between two values, not in front of an argument."""
    from jinja2 import Environment, TemplateSyntaxError

    before = ""
    with suppress(TemplateSyntaxError):  # rendering says where
        for _, kind, text in Environment(autoescape=True).lex(template):
            if kind == "operator" and text == "**" and before not in ("(", ","):
                return True
            before = before if kind == "whitespace" else text
    return False


class _Watch:
    """The rendering that is going on, and the thread that looks at it every second while there is any."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._rendering: tuple[int, float] | None = None
        """In which thread, and since when."""

    @contextmanager
    def limited(self) -> Iterator[None]:
        with self._turn:
            self._rendering = threading.get_ident(), time.monotonic()
            if self._thread is None or not self._thread.is_alive():  # it does not go with a process that forks
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
