"""The metadata of a model card: the YAML between the first two ``---`` of README.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["card_metadata"]

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
_MOST = 2**18
"""Characters of a card that are looked at."""


def card_metadata(path: Path) -> dict[str, Any]:
    """Keys and values, each a text as it is in the file: ``no`` is Norwegian. Empty where nothing can be read."""
    import yaml

    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            found = _FRONT_MATTER.match(file.read(_MOST))
        card = yaml.load(found[1], yaml.BaseLoader) if found else None  # noqa: S506 - it makes strings only
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}
