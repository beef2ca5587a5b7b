"""--input: the commands over files of rows. What they write, say and return."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.errors import LlmkitError
from llmkit.models import processes
from llmkit.tasks import TextGeneration
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

SHORT = ("--max-new-tokens", "4", "--dtype", "float32", "--device", "cpu")
PROMPTS = ["The quick", "今天天气", "What is the meaning of life?", "a", "emoji 😀", "fox " * 30]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [{"prompt": prompt, "id": n} for n, prompt in enumerate(PROMPTS)])


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_answers_stand_in_the_order_of_the_rows_beside_their_other_columns(
    run: Run, checkpoint: Checkpoint, source: Path, tmp_path: Path
) -> None:
    model, output = checkpoint("gpt2"), tmp_path / "out.jsonl"
    code, out, err = run("generate", "--model", model, "--input", source, "--output", output, *SHORT)
    assert (code, out) == (0, "")
    assert "6 rows in " in err
    assert " tokens/s)" in err
    assert "\r" not in err, "a bar is for terminals"
    pipeline = llmkit.load("generate", str(model), max_new_tokens=4, dtype="float32", device="cpu")
    expected = [{"id": n} | output.to_dict() for n, output in enumerate(pipeline.map(PROMPTS))]
    assert read(output.read_text(encoding="utf-8")) == expected
    code, out, _ = run("generate", "--model", model, "--input", source, *SHORT)
    assert read(out) == expected
    code, out, _ = run("generate", "--model", model, "--input", "-", *SHORT, stdin=source.read_bytes())
    assert read(out) == expected


@pytest.mark.parametrize(
    ("command", "family", "row", "options"),
    [
        ("summarize", "t5", {"document": "The quick brown fox. " * 200}, ()),
        ("answer", "bert", {"question": "Who jumps?", "context": "The quick brown fox jumps. " * 200}, ()),
        ("answer", "llama", {"question": "Who jumps?", "context": "The quick brown fox jumps."}, ()),
        ("chat", "llama", {"messages": [{"role": "user", "content": "Hi"}]}, ()),
        ("chat", "llama", {"messages": "Hi"}, ()),
        ("translate", "marian", {"source": "The quick brown fox.\n\nIt jumps."}, ("--to", "fr")),
    ],
)
def test_every_task(
    command: str, family: str, row: dict[str, Any], options: tuple[str, ...], run: Run, checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = checkpoint(family, chat=family == "llama")
    source = write(tmp_path / "rows.jsonl", [{**row, "id": "x"}] * 3)
    short = SHORT[2:] if family == "bert" else SHORT
    code, out, err = run(command, "--model", model, "--input", source, *options, *short)
    assert code == 0, err
    rows = read(out)
    assert len(rows) == 3
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["id"] == "x"
    assert not rows[0].keys() & row.keys()
    assert len([line for line in err.splitlines() if "reached their limit" in line]) <= 1


def test_columns_are_renamed_and_plain_lines_are_rows(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("gpt2")
    source = tmp_path / "rows.csv"
    source.write_text("text,id\nThe quick,1\n今天,2\n", encoding="utf-8-sig")
    code, out, _ = run("generate", "--model", model, "--input", source, "--column", "prompt=text", *SHORT)
    table = read(out)
    assert code == 0
    assert [row.pop("id") for row in table] == ["1", "2"]
    plain = tmp_path / "rows.txt"
    plain.write_text("The quick\r\n\r\n今天\r\n", encoding="utf-8")
    assert read(run("generate", "--model", model, "--input", plain, *SHORT)[1]) == table
    wrong = run("generate", "--model", model, "--input", source, *SHORT)
    assert wrong[0] == 2
    assert "'prompt'" in one_line(wrong[2])
    assert "--column prompt=" in one_line(wrong[2])


def test_a_bad_row_leaves_a_record_and_exit_code_3(
    run: Run, checkpoint: Checkpoint, source: Path, tmp_path: Path
) -> None:
    lines = source.read_text(encoding="utf-8").splitlines()
    lines[1:3] = ['{"prompt": ', '{"prompt": 5, "id": 9}']
    source.write_text("\n".join(lines), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    base = ("generate", "--model", checkpoint("gpt2"), "--input", source, "--output", output, *SHORT)
    code, _, err = run(*base)
    rows = read(output.read_text(encoding="utf-8"))
    assert code == 3
    assert "2 of 6 rows could not be answered" in err
    assert ["error" in row for row in rows] == [False, True, True, False, False, False]
    assert rows[1]["error"]["where"] == f"{source}:2"
    assert "not JSON" in rows[1]["error"]["message"]
    assert (rows[2]["id"], rows[2]["error"]["where"]) == (9, f"{source}:3")
    assert run(*base, "--resume")[0] == 3
    code, _, err = run(*base, "--overwrite", "--fail-fast")
    assert code == 2
    assert f"{source}:2" in one_line(err)
    assert read(output.read_text(encoding="utf-8")) == rows[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("hello", "--input", "ROWS"), "TEXT has no effect on a file of rows"),
        (("--json", "--input", "ROWS"), "--json has no effect"),
        (("hello", "--resume"), "resume requires a file of rows"),
        (("--input", "ROWS", "--resume"), "resume requires an output file"),
        (("--input", "-", "--output", "OUT", "--resume"), "cannot read standard input again"),
        (("--input", "ROWS", "--output", "OUT", "--resume", "--overwrite"), "give one of them"),
        (("--input", "ROWS", "--column", "prompt"), "FIELD=COLUMN"),
        (("--input", "ROWS", "--window", "0"), "window=0 is out of range"),
        (("--input", "ROWS", "--output", "out.csv"), "JSON Lines"),
        (("--input", "missing.jsonl"), "missing.jsonl does not exist"),
        (("--input", "EMPTY"), "holds no rows"),
    ],
)
def test_wrong_calls(
    options: tuple[str, ...], message: str, run: Run, source: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"ROWS": str(source), "OUT": str(tmp_path / "out.jsonl"), "EMPTY": str(tmp_path / "empty")}
    code, out, err = run("generate", "--model", checkpoint("gpt2"), *(names.get(word, word) for word in options))
    assert code == 2
    assert (out == "") == ("--json" not in options)  # which prints the error as an object
    assert message in one_line(err)


def test_an_output_is_not_lost(run: Run, checkpoint: Checkpoint, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    base = ("generate", "--model", checkpoint("gpt2"), "--input", source, "--output", output)
    assert run(*base, *SHORT)[0] == 0
    written = output.read_bytes()
    assert "continue it with --resume, or replace it with --overwrite" in one_line(run(*base, *SHORT)[2])
    changed = run(*base, "--max-new-tokens", 5, *SHORT[2:], "--resume")
    assert changed[0] == 2
    assert "max_new_tokens was 4 and is 5" in one_line(changed[2])
    output.write_bytes(written[: len(written) // 2])
    code, _, err = run(*base, *SHORT, "--resume")
    assert code == 0
    assert "were there already" in err
    assert output.read_bytes() == written


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llmkit", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_processes_write_what_one_writes_and_leave_nothing(run: Run, checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [{"prompt": prompt} for prompt in PROMPTS * 5] + [{"prompt": ""}])
    base = ("generate", "--model", checkpoint("gpt2"), "--input", source, "--window", 4, *SHORT)
    assert run(*base, "--output", tmp_path / "one.jsonl")[0] == 3
    two = (*base, "--output", tmp_path / "two.jsonl", "--num-processes", 2)
    killed = start(*two)
    shards = tmp_path / "two.jsonl.shard-0-of-2"
    while killed.poll() is None and not (shards.exists() and shards.stat().st_size):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 60
    while (code := start(*two, "--resume").wait()) == 2 and time.monotonic() < deadline:
        pass  # the killed run's children end when they notice
    assert code == 3
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    left = {path.name for path in tmp_path.glob("two*")}
    assert left == {"two.jsonl", "two.jsonl.run.json"}


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        num_processes, process_index = 1, 0

        def __init__(self, **_: Any) -> None: ...

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.is_distributed()
    monkeypatch.setattr("accelerate.PartialState", Alone)
    with pytest.raises(LlmkitError, match="2 processes were expected, and 1 joined"):
        processes.join_process_group(2, "cpu")


def test_a_row_that_nobody_foresaw_leaves_a_record_and_its_traceback_under_debug(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TextGeneration.render

    def render(self: TextGeneration, row: Any, *others: Any) -> Any:
        return real(self, {"prompt": row["prompt"] + {"good": "!"}[row["prompt"]]}, *others)

    monkeypatch.setattr(TextGeneration, "render", render)
    model = checkpoint("gpt2")
    source = write(tmp_path / "rows.jsonl", [{"prompt": "good"}, {"prompt": "bad"}, {"prompt": "bad too"}])
    for extra in ((), ("--debug",)):
        code, out, err = run("generate", "--model", model, "--input", source, *SHORT, *extra)
        assert code == 3
        assert ["error" in row for row in read(out)] == [False, True, True]
        assert err.count("Traceback") == 2 * bool(extra)
        assert "2 of 3 rows could not be answered" in err


def test_an_argument_in_another_encoding_is_one_line(run: Run, checkpoint: Checkpoint) -> None:
    model = checkpoint("llama", chat=True)
    for arguments in (("generate", "caf\udce9"), ("generate", "a", "--system", "caf\udce9"), ("chat", "caf\udce9")):
        code, _, err = run(*arguments, "--model", model, *SHORT)
        assert code == 2
        assert "is not UTF-8 (byte 0xe9 at character" in one_line(err)
