"""What is piped in beside a text: below an instruction, refused elsewhere, and never waited for in vain."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmkit.cli import main, piped
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

SHORT = ("--max-new-tokens", "4", "--dtype", "float32")


@pytest.fixture
def base(checkpoint: Checkpoint) -> tuple[str | Path, ...]:
    return ("generate", "--model", checkpoint("gpt2"), "--json", *SHORT)


@contextmanager
def standard_input(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with io.TextIOWrapper(os.fdopen(descriptor, "rb")) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield


def test_a_pipe_belongs_below_an_instruction(
    base: tuple[str | Path, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("The lazy dog.", encoding="utf-8")
    Path("prompt.txt").write_text("Summarize this:\n", encoding="utf-8")
    expected = run(*base, "--text", "Summarize this:\n\nThe lazy dog.")[1]
    code, out, err = run(*base, "Summarize this:", stdin=b"The lazy dog.")
    assert (code, out) == (0, expected)
    assert "below it 13 characters from standard input" in err
    assert run(*base, "prompt.txt", stdin=b"The lazy dog.")[1] == expected
    assert run(*base, "--text", "Summarize this:", "-", stdin=b"The lazy dog.")[1] == expected
    assert run(*base, "--text", "Summarize this:", "notes.txt")[1] == expected
    wide = "The lazy dog.".encode("utf-16")
    assert run(*base, "Summarize this:", "--encoding", "utf-16", stdin=wide)[1] == expected


def test_an_empty_pipe_is_nothing(base: tuple[str | Path, ...], run: Run) -> None:
    expected = run(*base, "The quick")[1]
    for nothing in (b"", b" \n"):
        code, out, err = run(*base, "The quick", stdin=nothing)
        assert (code, out) == (0, expected)
        assert "standard input" not in err


@pytest.mark.parametrize(
    "arguments", [["summarize", "One. Two."], ["answer", "Who?", "Ann."], ["translate", "--text", "a"]]
)
def test_a_complete_text_and_a_pipe_are_one_too_many(arguments: list[str], run: Run) -> None:
    code, _, err = run(*arguments, stdin=b"Another text.")
    assert code == 2
    assert "standard input contains a text beside the one of the command; leave one of them out" in one_line(err)


def test_a_file_is_taken_whatever_a_loop_has_on_its_standard_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    _, _, err = run("summarize", tmp_path / "empty.txt", stdin=b"the next file.txt\n")
    assert "the document is empty" in one_line(err)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(
    base: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(piped, "_PATIENCE", 0.01)
    receiver, sender = os.pipe()
    with standard_input(receiver, monkeypatch):
        assert main([*map(str, base), "The quick"]) == 0
        assert "nothing arrived on standard input in 0.01 s" in capsys.readouterr().err
        assert main(["summarize", "--text", " "]) == 2
    os.close(sender)


def test_a_loop_keeps_the_lines_of_its_list(
    base: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"first\nsecond\n")
    whole, begun = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    os.lseek(begun, 6, os.SEEK_SET)  # as `read` of a shell leaves it
    with standard_input(begun, monkeypatch):
        assert main([*map(str, base), "The quick"]) == 0
        assert os.lseek(begun, 0, os.SEEK_CUR) == 6
        assert "standard input is not used" in capsys.readouterr().err
        assert main(["summarize", "--text", " "]) == 2
        assert "the document is empty" in capsys.readouterr().err
    with standard_input(whole, monkeypatch):
        assert main([*map(str, base), "The quick"]) == 0
        assert "below it 13 characters" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes are found in /proc")
def test_a_slow_pipe_beside_a_complete_text_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first byte comes after the command has begun to wait for it."""
    for late, expected in ((b"Another text.", "standard input contains a text"), (b"", "document is empty")):
        receiver, sender = os.pipe()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sender) as other:
            os.close(sender)
            assert other.stdin is not None
            write_late = threading.Timer(0.2, lambda pipe, text: (pipe.write(text), pipe.close()), (other.stdin, late))
            with standard_input(receiver, monkeypatch):
                write_late.start()
                assert main(["summarize", "--text", " "]) == 2
            assert expected in one_line(capsys.readouterr().err)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="processes are found in /proc")
def test_the_other_program_of_a_pipeline_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, sender = os.pipe()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=sender) as other:
        assert piped._comes_from_a_pipeline(receiver)
        assert other.stdin is not None
        other.stdin.write(b"late")
        other.stdin.close()
        os.close(sender)
        with standard_input(receiver, monkeypatch):
            assert piped.piped() == b"late"
    receiver, sender = os.pipe()
    assert not piped._comes_from_a_pipeline(receiver)
    os.close(receiver)
    os.close(sender)
