"""Data passed in Python: the same rows as from a file, named by their hash, and needed again to resume."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest

import llmkit
from llmkit.config.paths import cache_dir
from llmkit.config.recipe import SourceSection
from llmkit.config.recipe_file import load_recipe
from llmkit.data.proposals import task_rows
from llmkit.errors import InputError, UsageError
from llmkit.tasks import find_task
from llmkit.training.python_data import data_source
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

ROWS = [{"document": f"The fox {number} jumps over 狐狸.", "summary": f"Fox {number}."} for number in range(24)]


@pytest.fixture
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", max_position_embeddings=512)


def generator() -> Iterator[dict[str, Any]]:
    lock = threading.Lock()  # which makes it impossible to pickle
    with lock:
        yield from ROWS


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "generator": generator,
    "datasets.Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "datasets.IterableDataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "pandas.DataFrame": lambda: pd.DataFrame([*ROWS, ROWS[0]]).iloc[:24][::1],
    "pyarrow.Table": lambda: pa.Table.from_pylist(ROWS),
}


def source_of(data: Any, **keys: Any) -> SourceSection:
    return SourceSection.model_validate({**data_source(data), **keys})


def read(source: SourceSection, task: str = "summarize") -> list[Any]:
    return [record.row or str(record.error) for record in task_rows(source, find_task(task)())]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_rows(kind: str, tmp_path: Path) -> None:
    source = source_of(KINDS[kind]())
    assert source.rows is not None
    assert (source.rows.kind, source.rows.count) == (kind, 24)
    assert source.rows.sha256 == data_source(ROWS)["rows"]["sha256"]
    assert read(source) == read(SourceSection(path=[str(write_rows(tmp_path / "rows.jsonl", ROWS))]))


def test_settings_of_a_source_apply_to_rows() -> None:
    frame = pd.DataFrame({"body": ["a b", "c", "c "], "gist": ["x", "y", "y"], "year": [1, 2, 3]})
    found = read(source_of(frame, columns={"document": "body", "summary": "gist"}, where="year > 1", deduplicate="row"))
    assert found == [{"document": "c", "summary": "y"}]
    with pytest.raises(ValueError, match="encoding has no effect on rows passed in Python"):
        source_of(frame, encoding="gb18030")
    assert read(source_of([{"messages": [{"role": "user", "content": "hi"}]}] * 2), "chat")  # the shape is detected


def test_values_without_a_form_in_json() -> None:
    frame = pd.DataFrame(
        {
            "document": ["a", "b", "c", "d"],
            "summary": ["x", np.nan, pd.NA, None],  # a text column with gaps has floats
            "when": pd.to_datetime(["2026-01-02", None, None, None]),
        },
        index=[5, 6, 7, 9],
    )  # left from a filter, and not a column
    assert [row["summary"] if isinstance(row, dict) else "null" in row for row in read(source_of(frame))] == [
        "x", True, True, True,
    ]  # fmt: skip
    odd = {"document": "d", "summary": "s", "score": np.float32(0.5), "ids": np.arange(2), "path": Path("x"),
           "price": Decimal("1.50"), "image": object(), "raw": b"x", "day": dt.date(2026, 1, 2)}  # fmt: skip
    (record,) = task_rows(source_of([odd]), find_task("summarize")())
    assert record.others == {"score": 0.5, "ids": [0, 1], "path": "x", "price": "1.50", "day": "2026-01-02",
                             "image": {"python": "object"}, "raw": {"python": "bytes"}}  # fmt: skip
    found = read(source_of([{"document": b"bytes", "summary": "s"}, {"document": "\ud800", "summary": "s"}, "text"]))
    assert ["give text" in found[0], "surrogate" in found[1], "list, row 3 is not an object" in found[2]] == [True] * 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), "DatasetDict with the keys train is not rows"),
        ({"document": ["a"], "summary": ["b"]}, "keys document, summary is not rows"),
        (3, "int is not rows"),
        ([], "list has no rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than one column a"),
    ],
)
def test_what_is_not_rows(data: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        data_source(data)


def test_several_processes_would_need_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="save them to a file"):
        data_source(ROWS)


def test_rows_that_left_the_cache() -> None:
    source = source_of(ROWS)
    assert source.rows is not None
    (folder,) = (cache_dir() / "training").glob(f"rows-{source.rows.sha256[:32]}")
    (folder / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"24 rows of the list .* not in the cache any more; pass the same rows"):
        read(source)
    assert len(read(source_of(ROWS))) == 24


def test_a_run_on_rows_is_the_run_on_a_file_and_resumes_with_the_same_rows(model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    recipe: dict[str, Any] = {
        "task": "summarize",
        "model": {"name_or_path": model, "offline": True, "device": "cpu"},
        "data": {"train": {"path": path, "where": "'1' in document"}, "validation_fraction": 0.2},
        "train": {"output_dir": tmp_path / "file", "max_steps": 2, "logging_steps": 1},
    }
    of_file = llmkit.finetune(recipe, progress=False)
    frame = pd.DataFrame(ROWS)
    of_rows = llmkit.finetune(recipe, train=frame, output=tmp_path / "rows", progress=False)
    assert of_rows.history == of_file.history  # the key where stayed

    resolved = (of_rows.folder / "resolved.yaml").read_text()
    assert "pandas.DataFrame, 24 rows" in resolved
    kept = load_recipe(str(of_rows.folder / "resolved.yaml")).data.train[0]
    assert kept.path is None
    assert kept.rows is not None
    assert kept.rows.sha256 in resolved.split("version:")[0]
    card = (of_rows.folder / "README.md").read_text()
    assert "pandas.DataFrame, 24 rows" in card
    assert str(cache_dir()) not in resolved + card
    assert "pandas.DataFrame (24 rows)" in str(llmkit.inspect(of_rows.folder))

    with pytest.raises(UsageError, match=r"rows.sha256: \w+ → \w+"):
        llmkit.finetune(recipe, train=frame[1:], output=tmp_path / "rows", resume=True, max_steps=3)
    longer = llmkit.finetune(
        recipe, train=iter(ROWS), output=tmp_path / "rows", resume=True, max_steps=3, progress=False
    )
    assert longer.history[:2] == of_rows.history[:2]
    assert longer.metrics["updates"] == 3

    short: dict[str, Any] = {"max_new_tokens": 2, "progress": False}
    once = llmkit.evaluate(of_rows.folder, data=iter(ROWS[:3]), output=tmp_path / "one", **short)
    again = llmkit.evaluate(of_rows.folder, data=frame[:3], output=tmp_path / "two", **short)
    assert (once.rows, once.figures) == (3, again.figures)
    held = llmkit.evaluate(of_rows.folder, output=tmp_path / "held", **short)
    assert held.rows == 2  # a fifth of those with a 1
    origin = json.loads((tmp_path / "two" / "results.jsonl").read_text().splitlines()[1])
    assert "pandas.DataFrame, row 2" in json.dumps(origin)


def test_without_a_recipe_and_in_a_source_of_one(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys: dict[str, Any] = {"max_steps": 1, "progress": False, "overrides": ["model.offline=true", "model.device=cpu"]}
    rows = datasets.Dataset.from_list(ROWS)
    keys |= {"eval_strategy": "epoch", "model": model}
    tuned = llmkit.finetune(task="summarize", train=rows, validation=ROWS[:2], output=tmp_path / "a", **keys)
    assert tuned.metrics["eval_loss"] > 0
    assert "is also trained on" not in caplog.text
    assert "rows:\n" in (tuned.folder / "recipe.yaml").read_text()
    del keys["eval_strategy"], keys["model"]
    sections: dict[str, Any] = {
        "task": "summarize",
        "model": {"name_or_path": model},
        "data": {"train": [{"rows": generator(), "max_rows": 4}, {"rows": rows}]},
        "train": {"output_dir": str(tmp_path / "b")},
    }
    several = llmkit.finetune(sections, **keys)
    bare = {name: sections[name] for name in ("task", "model")} | {"train": {"output_dir": str(tmp_path / "c")}}
    same = {"train": rows, "validation": ROWS, **keys}
    assert llmkit.finetune(bare, **same).recipe.data.train[0].rows is not None
    assert "list is also trained on" in caplog.text
    caplog.clear()
    halves = ["data.train.where=len(summary) < 7", "data.validation.where=len(summary) >= 7"]
    llmkit.finetune(bare, **{**same, "overrides": [*keys["overrides"], *halves]}, output=tmp_path / "d")
    assert "is also trained on" not in caplog.text
    assert [source.rows.kind for source in several.recipe.data.train if source.rows] == [
        "generator",
        "datasets.Dataset",
    ]
    with pytest.raises(UsageError, match=r"data.train has 2 sources"):
        llmkit.finetune({**sections, "data": {"train": ["a.jsonl", "b.jsonl"]}}, train=rows, **keys)
    with pytest.raises(UsageError, match="train and data both"):
        llmkit.finetune(task="summarize", train=rows, data=rows, **keys)
    with pytest.raises(UsageError, match="save the rows to a file, and run"):
        llmkit.finetune(sections | {"accelerate": {"num_processes": 2}, "data": {"train": {"rows": ROWS}}}, **keys)


def test_data_check_takes_rows(model: Path) -> None:
    frame = pd.DataFrame(ROWS).rename(columns={"document": "article"})
    found = llmkit.check_data(frame, "summarize", model=str(model), validation=ROWS[:4], offline=True)
    assert found.proposal["data"]["train"]["columns"] == {"document": "article"}
    assert found.report.train.ledger["rows"] == 24
    assert found.report.overlap == 4
    with pytest.raises(UsageError, match="`encoding` has no effect on rows"):
        llmkit.check_data(frame, "summarize", model=str(model), encoding="gb18030", offline=True)


def test_rows_of_a_function_are_streamed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch calls it again; nothing but the first rows is kept, and other rows are refused when resuming."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmkit.training.dataset.FIRST_ROWS", 8)
    monkeypatch.setattr("llmkit.training.python_data._FIRST_ROWS", 8)

    def rows(changed: int | None = None) -> Iterator[dict[str, Any]]:
        for number in range(30):
            yield {"text": "fox " * (number % 5 + 1) if number != changed else "dog"}

    def run(folder: str, **more: Any) -> llmkit.TunedModel:
        recipe: dict[str, Any] = {"version": 1, "task": "text-generation", "data": {"train": {"streaming": True}}}
        recipe |= {"model": {"name_or_path": str(model), "offline": True}, "train": {"output_dir": folder}}
        recipe["data"]["buffer_size"] = 8
        train: dict[str, Any] = {"max_steps": 10, "logging_steps": 1, "bf16": False, "per_device_train_batch_size": 4}
        train |= {"save_strategy": "steps", "save_steps": 5, "save_total_limit": 9}
        return llmkit.finetune(recipe, progress=False, **{"train": rows, **more}, **train)

    whole = run("a")
    table = datasets.IterableDataset.from_generator(rows)
    assert run("b", train=table).history == whole.history
    shutil.rmtree("a/checkpoint-10")
    assert run("a", resume=True).history == whole.history
    shutil.rmtree("a/checkpoint-10")
    for changed, message in ((3, "the recipe changed"), (17, "rows in memory")):
        with pytest.raises(UsageError, match=message):
            run("a", resume=True, train=lambda number=changed: rows(number))
    with pytest.raises(UsageError, match="pass the function that makes it"):
        run("c", train=rows())
