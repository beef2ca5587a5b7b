"""Rows that are streamed train what loaded rows train, and a run goes on where it was."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.training.loop import Trainer
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def row(number: int) -> dict[str, Any]:
    return {"prompt": "The quick " + "fox " * (number % 5), "completion": f"jumps {number % 7} " * (number % 3 + 1)}


def stream_recipe(model: Path, source: Any, folder: Path, *, data: Any = None, **train: Any) -> Recipe:
    source = {"path": str(source)} if isinstance(source, Path) else source
    usual = {"output_dir": str(folder), "learning_rate": 1e-2, "logging_steps": 1, "bf16": False, "max_steps": 9}
    usual |= {"per_device_train_batch_size": 4, "save_strategy": "no", "eval_strategy": "no"}
    data = {"train": {"streaming": True, **source} if isinstance(source, dict) else source} | (data or {})
    return make_recipe("text-generation", model, {}, data=data, train=usual | train)


def loaded(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe without streaming, and in another folder."""
    content = recipe.model_dump(exclude_defaults=True)
    for source in content["data"]["train"]:
        del source["streaming"]
    content["data"].pop("buffer_size", None)
    content["train"]["output_dir"] = str(folder)
    return type(recipe).model_validate(content)


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: each.detach().clone() for name, each in trainer.model.named_parameters()}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, each in one.items():
        assert each.equal(other[name]), name


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.progress.log if "loss" in entry]


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_a_stream_trains_what_loaded_rows_train(strategy: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """To the bit, over several epochs, the last update of which is not full."""
    path = write_rows(tmp_path / "rows.jsonl", map(row, range(14)))
    recipe = stream_recipe(checkpoint("llama"), path, tmp_path / "a", train_sampling_strategy=strategy)
    one = finetune(recipe)
    other = finetune(loaded(recipe, tmp_path / "b"))
    assert losses(one) == losses(other)
    assert_same(weights(one), weights(other))


def ledger(folder: Path) -> list[str]:
    """The counts of rows in the model card."""
    return [line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("- ")]


def interrupted(recipe: Recipe, *stops: int) -> Trainer:
    """A run that is stopped after these updates, and resumed each time."""
    for number, stop in enumerate(stops):
        calls = iter([*[False] * (stop - 1), True])
        assert finetune(recipe, resume=bool(number), should_stop=calls.__next__).stopped
    return finetune(recipe, resume=True)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("prompt,completion\n" + "".join('"{prompt}","{completion}"\n'.format(**each) for each in rows))


def write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in rows)


FORMATS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    ".jsonl": write_rows,
    ".jsonl.gz": write_gz,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_that_is_resumed_twice_is_the_uninterrupted_one(
    suffix: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Two files, whose rows are read three times in pools of 12 examples, which end within both files."""
    (data := tmp_path / "data").mkdir()
    FORMATS[suffix](data / f"a{suffix}", list(map(row, range(19))))
    FORMATS[suffix](data / f"b{suffix}", list(map(row, range(19, 35))))
    model, buffer = checkpoint("llama"), {"buffer_size": 13}
    whole = finetune(stream_recipe(model, data, tmp_path / "a", data=buffer, max_steps=26))
    other = interrupted(stream_recipe(model, data, tmp_path / "b", data=buffer, max_steps=26), 5, 12, 7)
    assert losses(other) == losses(whole)
    assert_same(weights(other), weights(whole))
    assert other.progress.stream == whole.progress.stream
    assert other.progress.epoch == 2
    assert ledger(tmp_path / "b") == ledger(tmp_path / "a")
