"""Keeps the output of Transformers short: progress bars, warnings, and errors about bad files."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from llmkit.errors import CheckpointError, LlmkitError, NotEnoughMemoryError
from llmkit.models.memory import is_out_of_memory
from llmkit.models.source import Source
from llmkit.progress import display

__all__ = ["as_checkpoint_error", "hide_progress_unless_tty", "quiet_transformers"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence Transformers: its progress bars print even without a terminal, and llmkit checks for its warnings."""
    from transformers.utils import logging as transformers_logging

    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def hide_progress_unless_tty() -> AbstractContextManager[Any]:
    """Hide the progress bar of the GGUF reader, which has no switch, unless standard error is a terminal."""
    shown = display.bars and sys.stderr.isatty()
    return contextlib.nullcontext() if shown else contextlib.redirect_stderr(io.StringIO())


@contextlib.contextmanager
def as_checkpoint_error(source: Source) -> Iterator[None]:
    """Convert a loader's exceptions about bad files to one-line errors, with the original as the cause."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except Exception as error:
        # Readers of files report any error of their library as a damaged file.
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        if not isinstance(cause, LlmkitError) and is_out_of_memory(cause):
            raise NotEnoughMemoryError(
                f"memory ran out while loading {source.name}",
                "choose a smaller model",
                "choose a smaller `dtype`",
                "use `quantize=4bit`",
            ) from error
        if isinstance(error, LlmkitError):
            raise
        reason = " ".join(str(error).split())
        reason = f"{reason[:300]}…" if len(reason) > 300 else reason
        fix = _upgrade(source) or "see the whole error (`__cause__`); if a file is damaged, download it again"
        if isinstance(error, StrictDataclassError):
            reason = f"a value in its config.json is of another type or not allowed: {reason}"
            fix = _upgrade(source) or f"correct {source.folder / 'config.json'}, or download it again"
        if "weights_only" in reason or "WeightsUnpickler" in reason:
            reason = "its .bin file contains more than tensors, and loading it could run code"
            fix = "choose a safetensors checkpoint, or pass `allow_pickle=True` if you trust it"
        raise CheckpointError(f"{source.name} cannot be loaded: {reason}", fix) from error


def _upgrade(source: Source) -> str:
    """Advice to upgrade, if a newer Transformers wrote the checkpoint; otherwise empty."""
    from transformers import __version__

    with contextlib.suppress(CheckpointError):
        written = str(source.config().get("transformers_version"))
        if _numbers(written) > _numbers(__version__):
            return (
                f"it was written by Transformers {written}, and {__version__} is installed: pip install -U transformers"
            )
    return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]
