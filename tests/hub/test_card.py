"""Metadata of model cards, as people and other programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.hub.card import card_metadata


@pytest.mark.parametrize(
    ("matter", "found"),
    [
        ("license: mit\nlanguage: [en, no]", {"license": "mit", "language": ["en", "no"]}),
        ("license: 2001-13-45", {"license": "2001-13-45"}),
        ("license: !!int x", {}),
        ("license: !!python/object:os.system x", {}),
        ("language: " + "[" * 5000, {}),
        ("- a", {}),
        ("a: b: c", {}),
    ],
)
def test_metadata_are_texts_whatever_they_look_like(matter: str, found: dict[str, Any], tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\n{matter}\n---\n# Model\n", encoding="utf-8")
    assert card_metadata(card) == found


def test_no_card_and_no_metadata(tmp_path: Path) -> None:
    assert card_metadata(tmp_path / "README.md") == {}
    (tmp_path / "README.md").write_text("# Model\n", encoding="utf-8")
    assert card_metadata(tmp_path / "README.md") == {}
