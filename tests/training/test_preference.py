"""Tuning on preferences: losses are TRL's, any division of an update is the same, the reference is the model before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.training.loop import Trainer
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def row(number: int) -> dict[str, str]:
    fox = "The quick brown fox " + "jumps " * (number % 4)
    return {"prompt": fox, "chosen": "over the dog. " * (number % 3 + 1), "rejected": f"asks {number} dogs"}


ROWS = [row(number) for number in range(12)]


def recipe_for(model: Path, rows: Path, folder: Path, method: Any, **train: Any) -> Recipe:
    usual = {"output_dir": str(folder), "learning_rate": 1e-2, "max_steps": 3, "save_strategy": "no", "bf16": False}
    usual |= {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "logging_steps": 1}
    method = {"name": method} if isinstance(method, str) else method
    return make_recipe("dialogue", model, rows, method=method, data={"validation": str(rows)}, train=usual | train)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", chat=True)


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.progress.log if name in entry]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_any_division_of_an_update_is_the_same(method: str, model: Path, rows: Path, tmp_path: Path) -> None:
    parts = ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    one, other = (
        finetune(recipe_for(model, rows, tmp_path / str(number), method, **part)) for number, part in enumerate(parts)
    )
    for name in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
        assert losses(one, name) == pytest.approx(losses(other, name), abs=2e-5), name
    assert losses(one)[0] != pytest.approx(losses(one)[-1], abs=1e-3)
