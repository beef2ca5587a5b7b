"""The metadata of a model card: the YAML between the first two ``---`` of README.md.

Not read by huggingface_hub, whose YAML 1.1 makes ``no`` false and dates of versions, and raises whatever PyYAML does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.config.yaml12 import parse
from llmkit.errors import UsageError
from llmkit.text.languages import language_from_code

__all__ = ["card_metadata", "declared_languages"]

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
_MOST = 2**18
"""Characters of a card that are looked at."""


def card_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a model card; empty if it cannot be parsed."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            found = _FRONT_MATTER.match(file.read(_MOST))
        card = parse(found[1], str(path))[0] if found else None
    except (OSError, UsageError):
        return {}
    return card if isinstance(card, dict) else {}


def declared_languages(card: Mapping[str, Any]) -> frozenset[str]:
    """Tags of the languages that a card declares; empty if it declares none, or ``multilingual``."""
    declared = card.get("language")
    codes = declared if isinstance(declared, list) else [declared]
    found = [language_from_code(str(code)) for code in codes if code]
    return frozenset(each.alpha2 for each in found if each is not None) if None not in found else frozenset()
