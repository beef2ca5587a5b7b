"""Which exceptions are caused by one row, so that the other rows can continue.

A row can fail in unforeseen ways: a template that rejects its text, a value of the wrong type, an id out of range. An
error that would affect all rows (memory, disk, a device, a missing package, a setting) is not attributed to a row.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmkit.errors import InputError, LlmkitError, NotEnoughMemoryError
from llmkit.log import log

__all__ = ["attempt", "raise_common", "unforeseen"]

Made = TypeVar("Made")


def attempt(work: Callable[[], Made], *, own_settings: bool = False) -> Made | LlmkitError:
    """The result of a call, or the row's error. Errors that are not caused by the row are raised.

    Args:
        own_settings: the row has settings of its own, so that their errors are not those of all rows.
    """
    try:
        return work()
    except BaseException as error:
        if not (_is_of_row(error) or (own_settings and isinstance(error, LlmkitError))):
            raise
        return error if isinstance(error, LlmkitError) else _described(error)


def _is_of_row(error: BaseException) -> bool:
    if isinstance(error, LlmkitError):
        return isinstance(error, InputError | NotEnoughMemoryError) or type(error) is LlmkitError
    if type(error).__name__ == "PanicException":  # of the tokenizers package; pyo3 derives it from BaseException
        return True
    lost = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(
        error
    )  # the device is unusable from here on
    return isinstance(error, Exception) and not isinstance(error, MemoryError | OSError | ImportError) and not lost


def _described(error: BaseException) -> LlmkitError:
    text = " ".join(str(error).split())[:300]
    described = LlmkitError(
        f"the row cannot be used ({type(error).__name__}{f': {text}' if text else ''})",
        "check its text",
        "see where it fails (`__cause__`)",
        code="row_failed",
    )
    described.__cause__ = error
    log.debug("a row cannot be used", exc_info=error)
    return described


def unforeseen(error: LlmkitError) -> BaseException | None:
    """The exception that `attempt` wrapped, if the error is such a wrapper."""
    return error.__cause__ if type(error) is LlmkitError else None


def raise_common(errors: Sequence[LlmkitError]) -> None:
    """Raise the error if several rows failed alike and none was answered: then the rows are not the cause."""
    failed = [error for error in errors if type(error) is LlmkitError]
    if len(failed) > 1 and len({_kind(error) for error in failed}) == 1:
        raise unforeseen(failed[0]) or failed[0]


def _kind(error: LlmkitError) -> object:
    """An exception's type and the place in the code that raised it."""
    cause = unforeseen(error)
    if cause is None:
        return str(error)
    last = traceback.extract_tb(cause.__traceback__)[-1:]
    return type(cause), tuple((frame.filename, frame.lineno) for frame in last)
