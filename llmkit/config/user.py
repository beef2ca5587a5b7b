"""The user's default models: the variable ``LLMKIT_MODEL`` and a configuration file.

The file is TOML, ``llmkit/config.toml`` in ``XDG_CONFIG_HOME`` (by default ``~/.config``), or what ``LLMKIT_CONFIG``
names. ``model`` is the default model of all tasks, ``model`` in a table such as ``[summarize]`` of one::

    model = "HuggingFaceTB/SmolLM2-360M-Instruct"

    [summarize]
    model = "facebook/bart-large-cnn"

An option or argument takes precedence over the variable, the variable over the file, and the file over the default of
the task.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.settings import LoadSettings
from llmkit.errors import LlmkitError, UsageError
from llmkit.log import log
from llmkit.tasks import TASKS, Task

__all__ = ["MODEL_VARIABLE", "DefaultModel", "chosen_model", "config_path", "default_model", "with_default_model"]

MODEL_VARIABLE = "LLMKIT_MODEL"
_FILE_VARIABLE = "LLMKIT_CONFIG"


@dataclass(frozen=True)
class DefaultModel:
    """A default model, and where it was set."""

    model: str
    origin: str
    """The variable, or the file."""


def config_path() -> Path:
    """The configuration file, which need not exist."""
    if chosen := os.environ.get(_FILE_VARIABLE):
        return user_path(chosen)
    return user_path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "llmkit" / "config.toml"


def default_model(task: type[Task]) -> DefaultModel | None:
    """The user's default model of a task; None if there is only the task's own.

    Raises:
        UsageError: the configuration file is not valid, or the one named by ``LLMKIT_CONFIG`` does not exist.
    """
    if chosen := os.environ.get(MODEL_VARIABLE):
        return DefaultModel(chosen, MODEL_VARIABLE)
    path = config_path()
    content = _load(path)
    own = {**content.get(task.name, {}), **content.get(task.verb, {})}
    model = own.get("model") or content.get("model")
    return DefaultModel(model, str(path)) if model else None


@contextmanager
def with_default_model(settings: LoadSettings, task: type[Task]) -> Iterator[LoadSettings]:
    """The settings with the user's default model, if they name none; errors in the block say where it is set."""
    chosen = default_model(task) if settings.model is None else None
    if chosen is None:
        yield settings
        return
    try:
        yield replace(settings, model=chosen.model)
    except LlmkitError as error:
        raise error.reworded(error.problem, f"change the default model in {chosen.origin}") from error


def chosen_model(model: str | None, task: type[Task]) -> str | None:
    """The model, or else the user's default model of a task, which is logged."""
    if model is not None or (chosen := default_model(task)) is None:
        return model
    log.info("model: %s (your default, from %s)", chosen.model, chosen.origin)
    return chosen.model


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get(_FILE_VARIABLE):
            raise UsageError(
                f"the configuration file {path} does not exist", f"create it, or unset {_FILE_VARIABLE}"
            ) from None
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the configuration file {path} cannot be loaded ({error})", "fix the file") from error
    tasks = [name for task in TASKS.values() for name in (task.verb, task.name)]
    for key, value in content.items():
        _check_key(key, ["model", *tasks], path)
        if key == "model":
            _check_model(value, path)
        elif not isinstance(value, Mapping):
            raise UsageError(f"{key!r} in {path} is not a table", f'write [{key}], and below it model = "NAME"')
        else:
            for inner, model in value.items():
                _check_key(inner, ["model"], path)
                _check_model(model, path)
    return content


def _check_key(key: str, known: Collection[str], path: Path) -> None:
    if key not in known:
        near = get_close_matches(key, known, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(known)}"
        raise UsageError(f"unknown key {key!r} in {path}", fix)


def _check_model(value: Any, path: Path) -> None:
    if not isinstance(value, str) or not value:
        raise UsageError(f"model = {value!r} in {path} is not a name", 'write a name in quotes, such as "starter"')
