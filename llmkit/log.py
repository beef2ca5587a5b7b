"""The one logger, the codes of warnings, and escaping of foreign text before it is printed.

Results never go through the logger: the command line sends it to stderr, a library user decides. The ``code`` of a
warning is an attribute of its log record; README.zh.md explains every code.
"""

from __future__ import annotations

import logging
import re
import traceback
from typing import Literal

__all__ = ["WarningCode", "hide_exception_texts", "log", "printable", "warn"]

WarningCode = Literal[
    # Models and their files.
    "fallback_model",  # the default model cannot be downloaded, and the embedded one is used
    "cached_copy_used",  # the Hub cannot be reached or refuses, and the cached copy is used
    "cache_rebuilt",  # a file in llmkit's cache was damaged
    "pickle_loaded",
    "loaded_twice",  # two models have the same base, which is loaded for each
    "slow_loading",  # converted or joined each time it is loaded
    "weights_random",
    "code_not_run",  # decoding code of the model was left out
    "setting_ignored",  # a setting in the files of the model has no effect
    "setting_adjusted",
    "chat_template_chosen",
    "tool_calls_unknown",  # the form of the model's tool calls is unknown
    "tokenizer_uncertain",
    "adapter_incomplete",
    "peft_warning",
    "tuned_differently",  # the model was tuned with another setting
    "cpus_busy",  # fewer threads are used, since other programs use the CPUs
    # Input and answers.
    "input_ignored",  # nothing arrived on standard input
    "not_a_file",  # the argument is taken as the text itself
    "pages_without_text",
    "no_effect",  # a setting has no effect
    "length_unusual",
    "languages_assumed",
    "batches_reduced",  # memory ran out
    "answers_with_notes",
    "rows_failed",
    "rows_not_rated",
    "rows_skipped",
    "font_missing",  # a picture has characters that no font on this machine has
    # Evaluation and training.
    "replies_unfinished",
    "perplexity_incomplete",
    "references_ignored",
    "validation_overlap",
    "tensors_not_trained",
    "long_warmup",
    "fresh_start",  # resumed without a checkpoint
    "earlier_checkpoint_used",
    "threshold_not_fitted",
    "not_verified",  # memory ran out while the saved model was compared
    "local_base",  # a pushed adapter names a local folder as its base
    "untested",
]
"""All codes of warnings; they are stable across versions."""

log = logging.getLogger("llmkit")

_CONTROL = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def warn(code: WarningCode, message: str, *arguments: object) -> None:
    """Log a warning with its code."""
    log.warning(message, *arguments, extra={"code": code}, stacklevel=2)


def hide_exception_texts(*loggers: str) -> None:
    """From now on, log exceptions by their type and place only: their texts may quote what a user wrote."""
    for name in loggers:
        logging.getLogger(name).addFilter(_without_exception_text)


def _without_exception_text(record: logging.LogRecord) -> bool:
    if record.exc_info and (error := record.exc_info[1]) is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        record.msg, record.args = f"{record.getMessage()}\n{frames}{type(error).__name__}", ()
        record.exc_info = record.exc_text = None
    return True


def printable(text: str) -> str:
    """A text with control characters and bidirectional marks replaced by their escape codes."""
    return _CONTROL.sub(_code, text)


def _code(found: re.Match[str]) -> str:
    # JSON escapes those below a space itself; the others stay valid in its strings like this.
    return f"\\x{ord(found[0]):02x}" if found[0] < " " else f"\\u{ord(found[0]):04x}"
