"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import InputError

__all__ = ["user_path"]

_WIDTH = 80


def user_path(name: str) -> Path:
    """The path that a name means, with ``~`` expanded.

    Raises:
        InputError: no file system takes it: it is too long, has a NUL in it, or names an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = name if len(name) <= _WIDTH else f"{name[:_WIDTH]}…"
        raise InputError(f"{shown!r} cannot be a path ({reason})", "check the name") from error
    return path
