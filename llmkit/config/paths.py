"""Paths as users write them, and values without them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmkit.errors import InputError

__all__ = ["user_path", "without_folders"]

_WIDTH = 80


def user_path(name: str) -> Path:
    """The path that a name means, with ``~`` expanded.

    Raises:
        InputError: no file system takes it: it is too long, has a NUL in it, or names an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
        if b"\0" in os.fsencode(path):  # of which `exists` only says that there is none
            raise ValueError("it has a NUL in it")
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = name if len(name) <= _WIDTH else f"{name[:_WIDTH]}…"
        raise InputError(f"{shown!r} cannot be a path ({reason})", "check the name") from error
    return path


def without_folders(value: Any) -> Any:
    """The same without the folders of this machine, which say nothing elsewhere and are nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")) and _is_place(value):
        return Path(value).name
    return value


def _is_place(text: str) -> bool:
    """Whether there is such a file or folder, or a folder for it, as of a pattern; ``/think`` is no place."""
    try:
        path = user_path(text)
    except InputError:
        return False
    return path.parent != Path(path.anchor) and (path.exists() or path.parent.is_dir())
