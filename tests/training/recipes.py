"""Recipes and data files for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmkit.config.recipe import Recipe, recipe_adapter
from llmkit.config.recipe_file import shipped_recipes
from tests.conftest import Checkpoint

SEVERAL_DEVICES = [name for name in shipped_recipes() if name.endswith(("-ddp", "-deepspeed", "-fsdp2", "-qlora"))]
"""Shipped recipes for several processes or a GPU."""
_FAMILIES = {"starter": "llama", "openai": "gpt2", "google-t5": "t5", "facebook": "nllb", "Qwen": "qwen3"}
_FAMILIES |= {"minilm": "bert", "google-bert": "bert", "runs": "llama"}


def tiny_model(recipe: Any, checkpoint: Checkpoint) -> list[str]:
    """Changes of a shipped recipe: a tiny model of the same family in place of one that has to be fetched."""
    if recipe.model.name_or_path is None:
        return []
    family = next(value for key, value in _FAMILIES.items() if recipe.model.name_or_path.startswith(key))
    context = "n_positions" if family in ("gpt2", "t5") else "max_position_embeddings"
    return [f"model.name_or_path={checkpoint(family, chat=family in ('llama', 'qwen3'), **{context: 4096})}"]


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
