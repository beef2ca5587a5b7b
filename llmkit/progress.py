"""Progress of long work: bars on a terminal or in a notebook, log lines at intervals elsewhere.

The only module that draws bars. They are tqdm's, like those of Transformers, Datasets and huggingface_hub, so that all
of them share the lines of a terminal. Does not know what is being counted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Self

from llmkit.log import log, printable

__all__ = ["ProgressMeter", "above_bars", "activity", "display", "duration", "hidden"]

_FRAMES = "|/-\\"
_FRAME_SECONDS = 0.2
_GRACE_SECONDS = 0.4
"""An activity that ends sooner is not shown."""


@dataclass
class _Display:
    """How progress is shown in this process."""

    bars: bool = True
    interval: float | None = None
    """Seconds between log lines where no bar is drawn; None, the default for callers in Python, logs none."""
    clock: Callable[[], float] = time.monotonic


display = _Display()


@contextmanager
def hidden() -> Iterator[None]:
    """Show and log no progress meanwhile."""
    before = display.bars, display.interval
    display.bars, display.interval = False, None
    try:
        yield
    finally:
        display.bars, display.interval = before


class ProgressMeter:
    """The progress of one loop, to be used as a context manager.

    Args:
        total: number of units; None if unknown.
        unit: the name of what is counted, in the plural.
        what: what the units belong to, such as a model.
        done: units of earlier runs, which take no part in the speed.
        shown: False shows and logs nothing.
    """

    def __init__(self, total: int | None, unit: str, *, what: str = "", done: int = 0, shown: bool = True) -> None:
        self.total, self.unit, self.what, self.done = total, unit, printable(what), done
        self._earlier, self._shown = done, shown
        self._bar: Any = None
        self._tokens = 0
        self._begun = self._logged = display.clock()

    def __enter__(self) -> Self:
        if self._shown and display.bars and _draws():
            # A finished bar stays where no log line follows that sums it up.
            stays = display.interval is None
            self._bar = _bar_class()(
                total=self.total,
                unit=self.unit,
                desc=self.what or None,
                initial=self.done,
                leave=stays,
                file=sys.stderr,
                **_width(),
            )
            log.addFilter(_clear_bars)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            log.removeFilter(_clear_bars)
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return display.clock() - self._begun

    def advance(self, count: int = 1, figures: str = "", *, logged: bool = True) -> None:
        """Count finished units. ``figures`` follow the count in the bar and in log lines.

        ``logged`` is False where `report` follows.
        """
        self.done += count
        if self._bar is not None:
            if figures:
                self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(count)
        elif logged and self._shown and self._is_due():
            self._log(logging.INFO, figures)

    def advance_rows(self, count: int, tokens: int) -> None:
        """Count finished rows and the tokens that were generated for them, and show their speed."""
        self._tokens += tokens
        self.advance(count, f"{self._tokens / max(1e-3, self.seconds):.0f} tokens/s")

    def report(self, figures: str) -> None:
        """Log the count with figures: at debug level between two intervals and where a bar shows them already."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(figures)
        first_or_last = self.done == self.total or self._logged == self._begun
        due = self._bar is None and (self._is_due() or (display.interval is not None and first_or_last))
        self._log(logging.INFO if due else logging.DEBUG, figures)

    def _is_due(self) -> bool:
        return display.interval is not None and display.clock() - self._logged >= display.interval

    def _log(self, level: int, figures: str) -> None:
        if level >= logging.INFO:
            self._logged = display.clock()
        count = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        left = f"{duration(self._left)} left" if self._left is not None and self.done != self.total else ""
        details = ", ".join(filter(None, (figures, left)))
        log.log(
            level, "%s%s %s%s", f"{self.what}: " if self.what else "", count, self.unit, details and f" ({details})"
        )

    @property
    def _left(self) -> float | None:
        new = self.done - self._earlier
        return None if self.total is None or new <= 0 else self.seconds / new * max(0, self.total - self.done)


def duration(seconds: float) -> str:
    """A time as minutes and seconds, with hours if there are any: ``6:21``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def above_bars() -> AbstractContextManager[None]:
    """Clears the bars while something else is written to the terminal, and draws them again below it."""
    tqdm = sys.modules.get("tqdm.std")
    if tqdm is None or not getattr(tqdm.tqdm, "_instances", None):
        return nullcontext()
    cleared: AbstractContextManager[None] = tqdm.tqdm.external_write_mode(file=sys.stderr)
    return cleared


def _clear_bars(_: logging.LogRecord) -> bool:
    """A filter of the logger, for handlers that know nothing of bars. The next update draws them again."""
    for bar in list(sys.modules["tqdm.std"].tqdm._instances):  # noqa: SLF001 - as `external_write_mode` finds them
        bar.clear()
    return True


def _draws() -> bool:
    return sys.stderr.isatty() or _in_notebook()


def _width() -> dict[str, Any]:
    """The width of bars: the terminal's, which may change; some terminals state none."""
    with suppress(OSError, ValueError):
        if not os.get_terminal_size(sys.stderr.fileno()).columns:
            return {"ncols": 80, "nrows": 24}
    return {"dynamic_ncols": True}


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def _bar_class() -> Any:
    if not _in_notebook():
        from tqdm import tqdm

        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets the bar is text
        from tqdm.auto import tqdm as notebook_tqdm

        return notebook_tqdm


# Work of unknown length.

_activities: list[str] = []
_lock = threading.Lock()


@contextmanager
def activity(text: str, *, forks: bool = False) -> Iterator[None]:
    """Show a line with the time elapsed while something takes long; on a terminal only.

    An activity within another one replaces its text meanwhile. What ``forks`` gets a line that does not move: a thread
    that draws could hold a lock of tqdm at that moment.
    """
    log.debug("%s", text)
    if not (display.bars and sys.stderr.isatty()):
        yield
        return
    from tqdm import tqdm

    if forks:
        with tqdm(desc=f"{printable(text)} …", bar_format="{desc}", file=sys.stderr, leave=False, **_width()):
            yield
        return
    with _lock:
        outermost = not _activities
        _activities.append(printable(text))
    ended = threading.Event()
    worker = threading.Thread(target=_animate, args=(tqdm, ended), name="llmkit-activity", daemon=True)
    if outermost:
        worker.start()
    try:
        yield
    finally:
        with _lock:
            _activities.pop()
        if outermost:
            ended.set()
            worker.join()


def _animate(tqdm: Any, ended: threading.Event) -> None:
    if ended.wait(_GRACE_SECONDS):
        return
    text, number = _activities[-1] if _activities else "", 0
    with tqdm(desc=text, bar_format="{desc} {elapsed}", file=sys.stderr, leave=False, **_width()) as line:
        while True:
            with _lock:
                text = _activities[-1] if _activities else text
            line.set_description_str(f"{_FRAMES[number % len(_FRAMES)]} {text}")
            number += 1
            if ended.wait(_FRAME_SECONDS):
                return
