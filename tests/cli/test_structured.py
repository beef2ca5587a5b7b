"""Structured output on the command line: of a text and of rows, from files and pipes, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import llmkit
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"天气": {"enum": ["晴", "雨"]}}, "required": ["天气"]}
SCHEMA["additionalProperties"] = False
BASE = ("--dtype", "float32", "--max-new-tokens", "40", "--temperature", "0")


@pytest.fixture
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("gpt2", chat=True, n_positions=512)


def test_texts_rows_and_python_agree(run: Run, model: Path, tmp_path: Path) -> None:
    schema, rows, answers = tmp_path / "schema.json", tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    rows.write_text('{"prompt": "今天"}\n{"prompt": "Where?"}\n', encoding="utf-8")
    base = ("generate", "--model", model, *BASE)
    code, out, _ = run(*base, "--json-schema", schema, stdin="今天".encode())
    assert (code, json.loads(out)["天气"] in "晴雨") == (0, True)
    assert run(*base, "今天", "--json-schema", json.dumps(SCHEMA))[1] == out
    assert run(*base, "--json-schema", schema, "--input", rows, "-o", answers)[0] == 0
    texts = [json.loads(line)["text"] for line in answers.read_text(encoding="utf-8").splitlines()]
    assert texts[0] == out.strip()

    class Weather(BaseModel):
        sunny: bool

    options = {"device": "cpu", "dtype": "float32", "temperature": 0, "max_new_tokens": 40}
    answer = llmkit.generate("今天", model=str(model), json_schema=Weather, **options)  # type: ignore[arg-type]
    assert Weather.model_validate_json(answer.text)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("missing.json", "missing.json"),
        ('{"type": ', "not valid JSON"),
        ('{"type": "strin"}', "strin"),
        ('{"uniqueItems": true}', "uniqueItems"),
    ],
)
def test_schemas_that_cannot_be_used(value: str, reason: str, run: Run, model: Path) -> None:
    code, _, err = run("generate", "Hi", "--model", model, "--json-schema", value)
    assert (code, reason in one_line(err)) == (2, True)


def test_what_excludes_a_grammar_is_refused(run: Run, model: Path) -> None:
    base = ("generate", "Hi", "--model", model)
    assert "json_schema" in one_line(run(*base, "--schema", "x")[2]).replace("-", "_")
    for other in (("--choice", "b"), ("--num-beams", "2")):
        assert run(*base, "--regex", "a", *other)[0] == 2
