"""llmkit's own cache folder, for files it prepared itself. Downloads of the Hub's client are elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

__all__ = ["cache_dir", "make_cache_dir"]


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
