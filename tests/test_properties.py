"""Properties that hold for any input: what is read, shaped or named gives a result or an error of ours, in one line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from llmkit.config.paths import user_path
from llmkit.config.recipe import SourceSection
from llmkit.config.recipe_file import load_recipe
from llmkit.data.rows import SUFFIXES, open_records
from llmkit.data.shapes import INPUTS, mapped_rows
from llmkit.errors import LlmkitError
from llmkit.text.languages import find_language

FEW = settings(
    max_examples=50, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
NAMES = ["text", "prompt", "question", "context", "answers", "answer_start", "paragraphs", "qas", "messages", "role"]
NAMES += ["content", "instruction", "input", "output", "history", "document", "summary", "source", "target", "id"]
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
ROWS = some.dictionaries(some.sampled_from(NAMES), VALUES, min_size=1, max_size=5)


def _ends_in_one_line(call: Callable[[], Any]) -> None:
    said = "no error"
    try:
        call()
    except LlmkitError as error:
        said = str(error)
    assert said
    assert "\n" not in said


@FEW
@given(some.binary(max_size=200), some.sampled_from(SUFFIXES))
def test_any_bytes_are_rows_or_an_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        _ends_in_one_line(lambda: list(open_records(path)))


@settings(FEW, max_examples=15)
@given(some.lists(ROWS, min_size=1, max_size=3), some.sampled_from(list(INPUTS)))
def test_each_odd_row_is_a_record(rows: list[dict[str, Any]], task: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        for shape in ("columns", "squad", "messages", "alpaca"):
            records = list(mapped_rows(SourceSection(path=[str(path)], shape=shape), task))
            assert len(records) >= (0 if shape == "squad" else len(rows))
            assert all((record.row is None) == (record.error is not None) for record in records)


@FEW
@given(some.sampled_from(["train.seed", "data.train", "model", "adapter", "settings", ""]), some.text(max_size=30))
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    _ends_in_one_line(lambda: load_recipe("summarization/starter-lora", [f"{key}={value}"]))


@FEW
@given(some.text(some.characters(), max_size=30))
def test_any_name_is_a_language_or_an_error(name: str) -> None:
    _ends_in_one_line(lambda: find_language(name))


@FEW
@given(some.text() | some.builds(lambda count: "a" * count, some.integers(200, 6000)))
def test_any_text_is_a_path_or_an_error(name: str) -> None:
    _ends_in_one_line(lambda: user_path(name))
