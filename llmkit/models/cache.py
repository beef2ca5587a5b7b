"""Where llmkit keeps what it prepared itself. What the Hub's client downloads lies elsewhere, and is not known here."""

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
    """The same, which is there now: where it is new, only the user can look into it."""
    folder = cache_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
