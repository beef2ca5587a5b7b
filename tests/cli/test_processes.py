"""Several processes of one command: how they end together."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.cli.processes import _wait, start
from llmkit.errors import LlmkitError, UsageError


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of this one: a shell script, written by the test."""
    program = tmp_path / "program"
    program.touch(mode=0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    return program


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("signal", "problem", "code"),
    [
        (
            "KILL",
            "was ended by SIGKILL, most likely because memory ran out; free memory, and continue with --resume",
            137,
        ),
        ("SEGV", "was ended by SIGSEGV; continue with --resume", 139),
    ],
)
def test_a_process_that_is_killed_is_named(signal: str, problem: str, code: int, rank: int, ends: Path) -> None:
    """The others may fail for want of it, or wait."""
    ends.write_text(f"#!/bin/sh\n[ $RANK = {rank} ] && kill -{signal} $$\n[ $RANK = 2 ] && exit 1\nexec sleep 60\n")
    with pytest.raises(LlmkitError) as caught:
        start(3, [], on_cpu=True)
    assert str(caught.value) == f"process {rank} {problem}"
    assert caught.value.exit_code == code


def test_the_one_that_was_killed_is_the_cause_though_the_first_fails_for_want_of_it() -> None:
    ended: Any = [SimpleNamespace(poll=lambda code=code: code) for code in (1, None, -9)]
    assert _wait(ended) == 2


@pytest.mark.parametrize(
    ("script", "code"), [("exit 3", 3), ("exit 1", 1), ("kill -TERM $$", 143), ("kill -INT $$", 130)]
)
def test_the_first_ends_for_all_where_it_says_why_or_was_asked_to(script: str, code: int, ends: Path) -> None:
    ends.write_text(f"#!/bin/sh\n[ $RANK = 0 ] && {script}\nexit 0\n")
    assert start(2, [], on_cpu=True) == code


def test_what_another_says_of_its_failure_is_shown(ends: Path) -> None:
    ends.write_text(
        "#!/bin/sh\n[ $RANK = 1 ] && echo 'llmkit: error[no_effect]: no luck; try again' >&2 && exit 2\nexec sleep 60\n"
    )
    with pytest.raises(LlmkitError, match=r"^process 1 failed: no luck; try again$"):
        start(2, [], on_cpu=True)


def test_more_than_a_machine_can_run_are_not_started(ends: Path) -> None:
    with pytest.raises(UsageError, match="are too many for a machine with"):
        start(2**31 - 1, [], on_cpu=True)
