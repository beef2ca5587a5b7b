"""Log lines of the command line: on standard error, and with time stamps in the file of ``--log-file``.

Knows which lines ``--quiet``, ``--verbose`` and ``--debug`` show, and how often progress is logged.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit import __version__
from llmkit.cli.options import flags, worded
from llmkit.cli.streams import line, reset
from llmkit.config.commands import quoted
from llmkit.errors import ErrorCode, UsageError, without_password
from llmkit.log import log, printable
from llmkit.progress import display

__all__ = ["log_error", "logging_to_stderr", "start_logging"]

_INTERVAL = 30.0
"""Seconds between two lines on the progress of one loop."""
_STAMP = "%Y-%m-%d %H:%M:%S"


class _Console(logging.Handler):
    """Log lines to stderr, looked up for each line since tests and callers replace it."""

    stamped = False

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and flags.debug:
            for text in "".join(traceback.format_exception(error)).splitlines():
                _print(text)
        stamp = time.strftime("%H:%M:%S ", time.localtime(record.created)) if self.stamped else ""
        _print(f"llmkit: {stamp}{_message(record)}")


class _FileFormatter(logging.Formatter):
    """Date, time and level before each line of a record and of its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [_message(record)]
        if record.exc_info and record.exc_info[1] is not None:
            lines += "".join(traceback.format_exception(record.exc_info[1])).splitlines()
        head = f"{time.strftime(_STAMP, time.localtime(record.created))} {record.levelname}"
        return "\n".join(f"{head} {printable(without_password(text))}" for text in lines)


def _message(record: logging.LogRecord) -> str:
    code = getattr(record, "code", "")
    label = f"{record.levelname.lower()}[{code}]: " if code else ""
    return f"{label}{worded(record.getMessage())}"


_console = _Console()


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """The logger of a running program; its handlers and level are restored for a caller that continues."""
    level, handlers, shown = log.level, list(log.handlers), (display.bars, display.interval)
    reset()
    log.addHandler(_console)
    _set_levels(logging.INFO)
    try:
        yield
    finally:
        for handler in [each for each in log.handlers if each not in handlers]:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        display.bars, display.interval = shown


def _set_levels(level: int) -> None:
    _console.setLevel(level)
    _console.stamped = False
    log.setLevel(level)


def start_logging(*, verbose: bool, log_file: Path | None) -> None:
    """Log as the options of a command request it.

    Raises:
        UsageError: the log file cannot be written, or options contradict each other.
    """
    if flags.quiet and verbose:
        raise UsageError("--quiet and --verbose are mutually exclusive", "give one of them", code="no_effect")
    _set_levels(logging.DEBUG if flags.debug or verbose else logging.ERROR if flags.quiet else logging.INFO)
    _console.stamped = verbose
    display.bars, display.interval = not flags.quiet, _INTERVAL
    if log_file is None or os.environ.get("RANK", "0") != "0":  # the first of several processes logs for all
        return
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"{log_file} cannot be written ({error.strerror})", "name another --log-file", code="not_writable"
        ) from error
    handler.setFormatter(_FileFormatter())
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.debug("llmkit %s: %s", __version__, " ".join(map(quoted, flags.arguments)))


def log_error(code: ErrorCode, message: str, error: BaseException | None = None) -> None:
    """Log the error that ends the run; the traceback of ``error`` is in the log file, and on stderr with --debug."""
    log.error("%s", message, extra={"code": code}, exc_info=error)


def _print(text: str) -> None:
    """A line on standard error, without control characters and passwords."""
    line(printable(without_password(text)))
