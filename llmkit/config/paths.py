"""Paths passed by users, values with local paths removed, and the places of llmkit's cache and built-in recipes.

The cache holds files that llmkit prepared itself; the downloads of the Hub's client are elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import platformdirs

from llmkit.errors import InputError

__all__ = ["cache_dir", "make_cache_dir", "shipped_recipes", "user_path", "without_folders"]

_WIDTH = 80


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with llmkit, by name: ``summarization/starter-lora``."""
    folder = Path(__file__).parents[1] / "recipes"
    if not folder.is_dir():  # an editable installation
        folder = folder.parents[1] / "recipes"
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.yaml"))}


def user_path(name: str) -> Path:
    """The path for a name, with ``~`` expanded.

    Raises:
        InputError: it cannot be a path: too long, contains NUL, or names an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
        if b"\0" in os.fsencode(path):  # for which `exists` just returns False
            raise ValueError("it contains a NUL character")
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = name if len(name) <= _WIDTH else f"{name[:_WIDTH]}…"
        raise InputError(f"{shown!r} cannot be a path ({reason})", "check the name", code="file_not_found") from error
    return path


def without_folders(value: Any) -> Any:
    """The value with local paths reduced to their names: folders are meaningless elsewhere, and private."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")) and _is_local_path(value):
        return Path(value).name
    return value


def _is_local_path(text: str) -> bool:
    """Whether a file or folder exists, or the parent folder (as for patterns); False for ``/think``."""
    try:
        path = user_path(text)
    except InputError:
        return False
    return path.parent != Path(path.anchor) and (path.exists() or path.parent.is_dir())


def cache_dir() -> Path:
    """``LLMKIT_CACHE`` if set, otherwise this platform's cache folder of the user. It need not exist yet."""
    chosen = os.environ.get("LLMKIT_CACHE") or platformdirs.user_cache_dir("llmkit", appauthor=False)
    return Path(chosen).expanduser().absolute()


def make_cache_dir() -> Path:
    """The cache folder, created if needed with access for the user only."""
    folder = cache_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
