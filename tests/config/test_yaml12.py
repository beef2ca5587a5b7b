"""What is written as YAML reads as the same again, by whoever reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from llmkit.config.recipe_file import load_recipe, make_recipe, resolved_yaml
from llmkit.config.yaml12 import dump, parse
from llmkit.training.provenance import published_recipe

LOOKALIKES = [
    *("1e-4", "1E5", "12e03", ".5", "1.", "+1", "010", "0o17", "0x1F", "0b1", "1_000", "1:30", "190:20:30"),
    *("2024-01-01", "2001-13-45", "yes", "no", "on", "OFF", "y", "true", "True", "null", "~", "", ".inf", "-.INF"),
    *(".nan", "=", "<<", "-", "?", "a: b", "a #b", "#a", "'", '"', "[", "{}", "*a", "&a", "!a", "%a", "@a", "`", "|"),
    *("a\nb\n", "\n", " a", "a ", "\ta", "a\r\nb", "a\n\n  b\n", "---", "...", "中文：是", "\u2028", "\x85", "\ufeff"),
    *("\ud800", "\U0001f600", "\x00", "\x1c", "a " * 100, "词" * 100),
]
TEXTS = some.sampled_from(LOOKALIKES) | some.text(some.characters(exclude_categories=()))
VALUES = some.recursive(
    TEXTS | some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MANY = settings(max_examples=100, derandomize=True, database=None, deadline=None)


@MANY
@given(VALUES)
def test_what_is_written_reads_as_the_same(value: Any) -> None:
    text = dump(value)
    assert parse(text, "a.yaml")[0] == value
    assert yaml.safe_load(text) == value  # YAML 1.1


@pytest.mark.parametrize("name", LOOKALIKES[:20])
def test_a_text_that_looks_like_something_else_survives_a_run_and_its_publication(name: str, tmp_path: Path) -> None:
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": "starter"},
        "data": {"train": {"path": "rows.jsonl", "columns": {"text": name}}},
        "train": {},
    }
    recipe = make_recipe(content, [f"train.output_dir={json.dumps(name)}"])
    assert recipe.train.output_dir == name
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    again = load_recipe(str(tmp_path / "resolved.yaml"))
    assert again == recipe
    (tmp_path / "published.yaml").write_text(published_recipe(resolved_yaml(recipe)), encoding="utf-8")
    assert load_recipe(str(tmp_path / "published.yaml")) == recipe
