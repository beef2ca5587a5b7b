"""The exceptions that llmkit raises for its users.

    LlmkitError                     exit 1   anything below; catch this one
    ├── UsageError                  exit 2   the call, an option or a recipe is wrong
    │   ├── InputError              exit 2   the text or file given cannot be used as it is
    │   │   └── ContextOverflowError exit 2  the input is longer than the model's context
    │   └── TaskMismatchError       exit 2   the model cannot do the task
    ├── ModelNotFoundError          exit 1   no such model, revision or file
    ├── HubUnreachableError         exit 1   the network is needed and cannot be used
    ├── CheckpointError             exit 1   files are missing, partial, corrupt or not trusted
    ├── NotEnoughMemoryError        exit 1   the model does not fit in memory or on disk
    └── MissingDependencyError      exit 1   an optional package is needed

Each message is one line that ends in what to do, and holds no password. Settings in it stand in backticks, as
`max_new_tokens` or `device=cpu`: that is how Python takes them, and a front end puts its own words in their place.
This module knows nothing of tasks, models or front ends.
"""

from __future__ import annotations

import re

__all__ = [
    "CheckpointError",
    "ContextOverflowError",
    "HubUnreachableError",
    "InputError",
    "LlmkitError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "NotEnoughMemoryError",
    "TaskMismatchError",
    "UsageError",
    "without_password",
]

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

    def __init__(self, problem: str, *fixes: str) -> None:
        self.problem = without_password(" ".join(problem.split()))
        self.fixes = tuple(without_password(" ".join(fix.split())) for fix in fixes if fix)
        self.fix = ", or ".join(self.fixes)
        super().__init__(f"{self.problem}; {self.fix}" if self.fix else self.problem)


class UsageError(LlmkitError):
    """The call, an option or a recipe is wrong."""

    exit_code = 2


class InputError(UsageError):
    """The input text or file cannot be used as it is."""


class ContextOverflowError(InputError):
    """The input is longer than the model's context and ``on_overflow`` is ``error``."""


class TaskMismatchError(UsageError):
    """The model cannot do the task."""


class ModelNotFoundError(LlmkitError):
    """No model, revision or file of that name."""


class HubUnreachableError(LlmkitError):
    """The network is needed and cannot be reached, or was forbidden."""


class CheckpointError(LlmkitError):
    """A checkpoint's files are missing, partial, corrupt or not trusted."""


class NotEnoughMemoryError(LlmkitError):
    """The model does not fit in memory, or its files on the disk."""


class MissingDependencyError(LlmkitError):
    """An optional package is required."""
