"""The exceptions that llmkit raises for its users.

    LlmkitError                     exit 1   anything below; catch this one
    ├── UsageError                  exit 2   the call, an option or a recipe is wrong
    │   ├── InputError              exit 2   the text or file cannot be used as it is
    │   │   └── ContextOverflowError exit 2  the input is longer than the model's context
    │   ├── InvalidRecipeError      exit 2   a recipe has several mistakes
    │   └── TaskMismatchError       exit 2   the model cannot do the task
    ├── ModelNotFoundError          exit 1   no such model, revision or file
    ├── HubUnreachableError         exit 1   the network is needed and cannot be used
    ├── CheckpointError             exit 1   files are missing, partial, corrupt or not trusted
    ├── NotEnoughMemoryError        exit 1   the model does not fit in memory or on disk
    └── MissingDependencyError      exit 1   an optional package is needed

Each message is one line that ends in what to do, and contains no password. Settings are in backticks, such as
`max_new_tokens` or `device=cpu`, under their Python names; a front end replaces them by its own.
The ``code`` of an error is stable across versions, its wording is not. README.zh.md explains every code.
This module does not depend on tasks, models or front ends.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, Self

__all__ = [
    "CheckpointError",
    "ContextOverflowError",
    "ErrorCode",
    "HubUnreachableError",
    "InputError",
    "InvalidRecipeError",
    "LlmkitError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "TaskMismatchError",
    "UsageError",
    "without_password",
]

ErrorCode = Literal[
    # The call, an option or a recipe.
    "invalid_usage",  # the call is wrong in another way than below
    "unknown_setting",  # no setting of that name
    "invalid_value",  # the value of a setting is out of range or not a choice
    "no_effect",  # a setting has no effect here, or excludes another
    "not_supported",  # the model, method or library does not support it
    "device_unavailable",  # no such device, or too few of them
    "unknown_task",
    "unknown_language",
    "language_missing",  # the language cannot be detected, and must be named
    "language_not_supported",  # the model does not translate from or into it
    "unknown_metric",
    "recipe_not_found",
    "invalid_recipe",  # not YAML, not a recipe, or of another version
    "invalid_recipe_key",  # an unknown key, or a value that does not suit it
    "output_exists",
    "not_writable",
    "nothing_to_resume",
    "resume_mismatch",  # the run to resume had other settings, data or code
    "locked",  # another process is using the file or folder
    # Texts, files and rows.
    "invalid_input",  # the row or text is wrong in another way than below
    "empty_input",
    "file_not_found",
    "unsupported_format",
    "wrong_encoding",
    "unreadable_file",  # damaged, or not what its suffix says
    "ambiguous_header",
    "column_mismatch",  # a field of the task has no column, or the wrong one
    "no_rows",
    "preferences",  # a row has a rejected answer, which supervised tuning does not learn from
    "not_a_preference",  # a row lacks the rejected answer or the label that tuning on preferences needs
    "no_labels",  # nothing to learn in a whole batch
    "answer_not_in_context",
    "context_overflow",
    "row_failed",  # an unforeseen error in one row
    # Models.
    "model_not_found",
    "access_denied",  # gated or private
    "hub_unreachable",
    "offline",  # the network is needed, and disabled
    "download_interrupted",
    "damaged_checkpoint",
    "incomplete_checkpoint",
    "adapter_mismatch",
    "head_mismatch",  # the architecture cannot do the task
    "untrained_head",
    "chat_template_failed",
    "code_not_trusted",
    "pickle_not_trusted",
    # The machine and the run.
    "missing_dependency",
    "out_of_memory",
    "disk_full",
    "not_finite",  # NaN or infinity in logits or in the loss
    "logits_differ",  # a merged or saved model does not compute what the original does
    "metric_failed",
    "process_failed",
    "upload_failed",
    "internal_error",  # none of the above
]
"""All codes of errors; they are stable across versions."""

_PASSWORD = re.compile(
    r"(?<=//)[^/\s'\"()<>]*@|(?<![\w/.@-])[\w.+%-]+:[^\s'\"()<>@]{1,256}@(?=[\w.-]+:\d)|\bhf_(?=[A-Za-z0-9]{30})\w+"
)
"""User and password in front of a URL's host, also without ``https://``, and access tokens of the Hub."""


def without_password(text: str) -> str:
    """A text with user names, passwords and tokens in URLs removed."""
    return _PASSWORD.sub("", text)


class LlmkitError(Exception):
    """Base of every error that llmkit raises on purpose; ``exit_code`` is what the command line returns.

    Each of ``fixes`` helps by itself, so that a front end can omit one whose setting it does not have.
    """

    exit_code: int = 1
    code: ErrorCode = "internal_error"
    """What kind of error it is; each class has a default."""

    def __init__(self, problem: str, *fixes: str, code: ErrorCode | None = None) -> None:
        self.code = code or type(self).code
        self.problem = without_password(" ".join(problem.split()))
        self.fixes = tuple(without_password(" ".join(fix.split())) for fix in fixes if fix)
        self.fix = ", or ".join(self.fixes)
        super().__init__(f"{self.problem}; {self.fix}" if self.fix else self.problem)

    def reworded(self, problem: str, *fixes: str) -> Self:
        """The same error with another problem, such as one that says where, and further fixes."""
        return type(self)(problem, *self.fixes, *fixes, code=self.code)

    def to_dict(self) -> dict[str, str]:
        """The JSON object, as in the records of rows."""
        return {"code": self.code, "type": type(self).__name__, "message": str(self)}


class UsageError(LlmkitError):
    """The call, an option or a recipe is wrong."""

    exit_code = 2
    code: ErrorCode = "invalid_usage"


class InputError(UsageError):
    """The input text or file cannot be used as it is."""

    code: ErrorCode = "invalid_input"


class ContextOverflowError(InputError):
    """The input is longer than the model's context and ``on_overflow`` is ``error``."""

    code: ErrorCode = "context_overflow"


class InvalidRecipeError(UsageError):
    """A recipe has several mistakes. The message has one line for each."""

    code: ErrorCode = "invalid_recipe_key"
    mistakes: tuple[UsageError, ...] = ()

    @classmethod
    def of(cls, mistakes: Sequence[UsageError]) -> Self:
        """The error for some mistakes, of which there is at least one."""
        made = cls(mistakes[0].problem, *mistakes[0].fixes)
        made.mistakes = tuple(mistakes)
        return made

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes)) or super().__str__()


class TaskMismatchError(UsageError):
    """The model cannot do the task."""

    code: ErrorCode = "head_mismatch"


class ModelNotFoundError(LlmkitError):
    """A model, revision or file does not exist, or access is denied."""

    code: ErrorCode = "model_not_found"


class HubUnreachableError(LlmkitError):
    """The network is needed and cannot be reached, or was forbidden."""

    code: ErrorCode = "hub_unreachable"


class CheckpointError(LlmkitError):
    """A checkpoint's files are missing, partial, corrupt or not trusted."""

    code: ErrorCode = "damaged_checkpoint"


class NotEnoughMemoryError(LlmkitError):
    """The model does not fit in memory, or its files on the disk."""

    code: ErrorCode = "out_of_memory"


class MissingDependencyError(LlmkitError):
    """An optional package is required."""

    code: ErrorCode = "missing_dependency"
