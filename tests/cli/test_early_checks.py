"""What can be checked without a model is checked before one is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cli.conftest import Run, one_line


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> NoReturn:
        pytest.fail("a model was loaded")

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmkit.models.load.load_model", load)


ROWS = ("--input", "rows.jsonl", "--output", "out.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translate", "hello", "--to", "klingonx"], "unknown language 'klingonx'"),
        (["translate", "hello", "--from", "en", "--to", "English"], "source and target are both English"),
        (["translate", *ROWS, "--to", "klingonx"], "unknown language 'klingonx'"),
        (["answer", "Who?", " "], "the context is empty"),
        (["generate", "hi", "--examples", "rows.jsonl"], "rows.jsonl:1 has no completion, so that it is no example"),
        (["generate", "hi", "--min-new-tokens", "9", "--max-new-tokens", "5"], "is more than max_new_tokens"),
        (["generate", "hi", "--top-p", "0.5", "--temperature", "0"], "temperature=0 is greedy"),
        (["generate", "--input", "missing.jsonl"], "missing.jsonl"),
        (["generate", "--input", "empty.jsonl"], "empty.jsonl"),
        (["generate", *ROWS, "--column", "promt=id"], "did you mean --column prompt=id?"),
        (["generate", *ROWS, "--column", "prompt=text"], "no column 'text' found (the columns: 'prompt')"),
        (["generate", *ROWS, "--encoding", "utf-99"], "unknown encoding 'utf-99'"),
        (["generate", *ROWS, "--examples", "rows.jsonl"], "rows.jsonl:1 has no completion, so that it is no example"),
        (["summarize", *ROWS], "no column 'document' found (the columns: 'prompt')"),
        (["generate", "--input", "rows.jsonl", "--output", "no/out.jsonl"], "the folder no does not exist"),
        (["generate", "--input", "rows.jsonl", "--output", "rows.jsonl"], "rows.jsonl is the input"),
    ],
)
def test_before_a_model_is_loaded(arguments: list[str], message: str, run: Run) -> None:
    code, out, err = run(*arguments, "--model", "starter")
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_a_pipe_of_rows_is_left_for_the_run(run: Run) -> None:
    row = json.dumps({"prompt": "a"}).encode()
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        run("generate", "--input", "-", "--model", "starter", stdin=row)
