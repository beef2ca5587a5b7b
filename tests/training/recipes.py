"""Recipes and data files for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe, recipe_adapter


def write_rows(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    """JSON Lines; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def make_recipe(task: str, model: Path | dict[str, Any], rows: Any, **sections: Any) -> Recipe:
    """A recipe with the rest of its sections given: ``data={...}`` is added to the training data."""
    content: dict[str, Any] = {"version": 1, "task": task, "train": {"output_dir": "out"}}
    content["model"] = model if isinstance(model, dict) else {"name_or_path": str(model), "offline": True}
    content["data"] = {"train": str(rows) if isinstance(rows, Path) else rows}
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    return recipe_adapter(content).validate_python(content)
