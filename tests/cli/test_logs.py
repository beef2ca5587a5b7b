"""The log: its file with time stamps, ``--verbose``, and how often rows are counted without a terminal."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path

import pytest

from llmkit import progress
from tests.cli.conftest import Run, one_line
from tests.fakes import fake

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.api.build_pipeline", lambda *_, **__: fake("text-generation", "the answer")[0])


def rows(folder: Path, count: int) -> Path:
    path = folder / "rows.jsonl"
    path.write_text('{"prompt": "hi"}\n' * count, encoding="utf-8")
    return path


def test_the_log_file_has_time_stamps_and_what_quiet_hides(tmp_path: Path, run: Run) -> None:
    path, output = tmp_path / "a b.log", tmp_path / "out.jsonl"
    for extra in ((), ("--overwrite",)):
        command = ("generate", "--input", rows(tmp_path, 2), "--output", output, "--log-file", path, "-q", *extra)
        assert run(*command) == (0, "", "")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(f"{STAMP} (DEBUG|INFO) ", line) for line in lines)
    assert sum("--log-file" in line for line in lines) == 2, "the file is not appended to"
    assert f"the answers are in {output}" in lines[-1]


def test_the_error_that_ends_a_run_is_in_the_log_file(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("https://me:secret@hub.example is odd")

    path = tmp_path / "log"
    assert run("generate", "", "--log-file", path)[0] == 2
    monkeypatch.setattr("llmkit.api.build_pipeline", fails)
    code, _, err = run("generate", "hi", "--log-file", path)
    assert code == 1
    assert "Traceback" not in err
    text = path.read_text(encoding="utf-8")
    assert re.search(rf"^{STAMP} ERROR error\[empty_input\]: ", text, re.MULTILINE)
    assert re.search(rf"^{STAMP} ERROR Traceback", text, re.MULTILINE)
    assert "secret" not in text


def test_a_log_file_that_cannot_be_written(tmp_path: Path, run: Run) -> None:
    code, _, err = run("generate", "hi", "--log-file", tmp_path / "no" / "log")
    assert code == 2
    assert "name another --log-file" in one_line(err)


def test_verbose_lines_have_the_time(run: Run) -> None:
    code, _, err = run("generate", "hi", "-v")
    assert code == 0
    assert re.match(r"llmkit: \d\d:\d\d:\d\d \d+ tokens in ", err)
    assert "mutually exclusive" in one_line(run("generate", "hi", "-v", "-q")[2])


def test_rows_are_counted_at_intervals_without_a_terminal(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.display, "clock", lambda: float(next(seconds)))
    code, _, err = run("generate", "--input", rows(tmp_path, 4), "--output", tmp_path / "o.jsonl", "--window", "1")
    assert code == 0
    counts = re.findall(r"^llmkit: (\d) of 4 rows \(\d+ tokens/s", err, re.MULTILINE)
    assert len(counts) > 1
    assert counts == sorted(counts)


def test_a_named_pipe_is_not_read_to_count_its_rows(tmp_path: Path, run: Run) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('{"prompt": "hi"}\n' * 2, encoding="utf-8"), daemon=True)
    writer.start()
    code, out, _ = run("generate", "--input", pipe)
    writer.join(10)
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["the answer"] * 2
