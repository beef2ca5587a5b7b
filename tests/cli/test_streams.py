"""Standard streams that are full, closed or in another encoding, and names of files that are not UTF-8."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.recipe_file import shipped_recipes
from tests.cli.conftest import Run, one_line
from tests.fakes import fake


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.api.build_pipeline", lambda *_, **__: fake("text-generation", "the answer")[0])


def test_a_full_standard_error_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115, PTH123 - it cannot be closed without an error
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["generate", "hi"]) == 0
    assert capsys.readouterr().out == "the answer\n"
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize("command", [("generate", "hi"), ("generate", "hi", "--json"), ("models",)])
def test_a_full_standard_output_is_one_line(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115, PTH123
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(list(command)) == 1
    assert "the output cannot be written (No space left on device)" in one_line(capsys.readouterr().err)
    with suppress(OSError):
        stream.close()


def test_a_locale_that_knows_ascii_only(tmp_path: Path) -> None:
    recipe = next(iter(shipped_recipes().values()))
    (tmp_path / "菜谱.yaml").write_bytes(recipe.read_bytes())
    environment = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "llmkit", "recipes", "validate", "菜谱.yaml", "没有.yaml"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert result.stdout == "菜谱.yaml: ok\n"
    assert "没有.yaml" in result.stderr
    assert result.returncode == 2


def test_names_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    rows, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name} out.jsonl"
    rows.write_text('{"prompt": "hi"}\n{"prompt": "\\ud83d"}\n', encoding="utf-8")
    code, _, err = run("generate", "--input", rows, "--output", output)
    assert code == 3, err
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert answers[0]["text"] == "the answer"
    assert r"caf\udce9.jsonl:2" in answers[1]["error"]["message"]
    assert run("generate", "--input", rows, "--output", output, "--resume")[0] == 3
    with io.TextIOWrapper(io.BytesIO(), encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["recipes", "copy", next(iter(shipped_recipes())), str(tmp_path / name)]) == 0
        printed = out.buffer.getvalue().splitlines()
    assert all(Path(os.fsdecode(line)).is_file() for line in printed)
