"""Bars, log lines at intervals, and lines for work of unknown length."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, cast

import pytest

from llmkit import progress
from llmkit.log import log
from llmkit.progress import ProgressMeter, activity, duration, hidden
from tests.fakes import fake
from tests.terminal import on_terminal, rendered


class Clock:
    """Seconds that pass only when a test lets them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress.display, "clock", found)
    monkeypatch.setattr(progress.display, "interval", 30.0)
    return found


def test_without_a_terminal_a_line_appears_at_intervals(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llmkit"), ProgressMeter(1000, "rows", what="m") as meter:
        for _ in range(70):
            clock.seconds += 1
            meter.advance(10, "98 tokens/s")
    assert caplog.messages == [
        "m: 300 of 1000 rows (98 tokens/s, 1:10 left)",
        "m: 600 of 1000 rows (98 tokens/s, 0:40 left)",
    ]


def test_rows_of_an_earlier_run_do_not_count_for_the_speed(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llmkit"), ProgressMeter(1000, "rows", done=900) as meter:
        clock.seconds += 30
        meter.advance(50)
    assert caplog.messages == ["950 of 1000 rows (0:30 left)"]


def test_the_first_and_last_figures_are_shown_and_the_others_are_details(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "llmkit"), ProgressMeter(5, "updates") as meter:
        for number in range(5):
            clock.seconds += 1
            meter.advance()
            meter.report(f"loss {number}")
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG", "DEBUG", "DEBUG", "INFO"]
    assert caplog.messages[-1] == "5 of 5 updates (loss 4)"


def test_a_caller_in_python_gets_nothing_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "llmkit"), ProgressMeter(2, "rows") as meter, activity("loading"):
        meter.advance(2)
        meter.report("done")
    assert not caplog.messages
    assert not any(capsys.readouterr())


@pytest.fixture
def handler() -> Iterator[logging.StreamHandler[Any]]:
    """A handler of a program that knows nothing of bars."""
    found = logging.StreamHandler(io.StringIO())
    log.addHandler(found)
    yield found
    log.removeHandler(found)


def test_a_program_logs_above_the_bar(monkeypatch: pytest.MonkeyPatch, handler: logging.StreamHandler[Any]) -> None:
    def use(stream: TextIO) -> None:
        monkeypatch.setattr(sys, "stderr", stream)
        handler.setStream(stream)
        with ProgressMeter(2, "rows") as meter:
            meter.advance()
            log.warning("look")
            meter.advance()
        monkeypatch.undo()

    lines = rendered(on_terminal(use))
    assert lines[0] == "look"
    assert "2/2" in lines[1]
    assert len(lines) == 2


class Screen(io.StringIO):
    """A terminal in memory that says when something was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if text.strip():
            self.drawn.set()
        return super().write(text)


def test_an_activity_is_shown_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "_GRACE_SECONDS", 0)
    with activity("loading m"):
        assert screen.drawn.wait(10)
        assert "loading m" in rendered(screen.getvalue())[0]
    assert rendered(screen.getvalue()) == []


def test_a_short_activity_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with activity("loading m"):
        pass
    assert screen.getvalue() == ""


def test_a_bar_in_python_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = fake("text-generation", "fine")
    for shown in (True, False):
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        assert len(list(pipeline.map(["a", "b", "c"], progress=shown))) == 3
        with hidden():
            list(pipeline.map(["a"]))
        assert ("3/3" in screen.getvalue()) is shown
        assert "1/1" not in screen.getvalue()


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", cast(Any, SimpleNamespace(get_ipython=lambda: shell)))
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    with ProgressMeter(3, "rows") as meter:
        meter.advance(3)
    assert "3/3" in output.getvalue()


def test_one_module_draws_bars() -> None:
    sources = (Path(__file__).parents[1] / "llmkit").rglob("*.py")
    drawing = [path.name for path in sources if re.search(r"import tqdm|rich\.progress", path.read_text("utf-8"))]
    assert drawing == ["progress.py"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 3725)] == ["0:00", "1:01", "1:02:05"]
