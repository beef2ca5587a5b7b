"""What a terminal gets: nothing that it acts on. Files and pipes get texts as they are, byte by byte."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from llmkit.cli import main
from llmkit.cli.streams import guard_terminal
from llmkit.config.settings import GenerationSettings
from llmkit.log import log
from llmkit.tasks.output import Output, Usage
from tests.cli.conftest import Run
from tests.conftest import Checkpoint
from tests.fakes import fake
from tests.terminal import on_terminal, rendered

EVIL = "\x1b]0;title\x07\x1b[31mred \x9b31m a\rb c\x08\x7f \x1b]8;;http:x\x1b\\link \u202eabc\u2066"
SHOWN = r"\x1b]0;title\x07\x1b[31mred \u009b31m a\x0db c\x08\u007f \x1b]8;;http:x\x1b\link \u202eabc\u2066"
ACTS = ("\x1b]", "\x1b[31m", "\x9b", "a\rb", "\x07", "\x08", "\x7f", "\u202e", "\u2066")

Screen = Callable[..., str]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """``screen("models")`` → what a terminal gets of both streams."""

    def call(*arguments: object) -> str:
        def use(stream: TextIO) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", stream)
                patch.setattr(sys, "stderr", stream)
                main([str(argument) for argument in arguments])

        return on_terminal(use)

    return call


class Model:
    """A pipeline that answers with a text, a character at a time."""

    max_new_tokens = 5

    def __init__(self, text: str, sequences: int = 1) -> None:
        self.text, self.settings = text, GenerationSettings(num_return_sequences=sequences)

    def __call__(self, row: Any, *, on_text: Any = None, on_reasoning: Any = None) -> Output:
        for listener in filter(None, (on_reasoning, on_text)):
            for piece in self.text:
                listener(piece)
        output = Output(
            text=self.text,
            task="dialogue",
            model="fake",
            commit=None,
            head="causal",
            finish_reason="stop",
            usage=Usage(10, 5),
            reasoning=self.text,
        )
        return replace(output, alternatives=(output,) * (self.settings.num_return_sequences - 1))


def answers(monkeypatch: pytest.MonkeyPatch, pipeline: Any) -> None:
    monkeypatch.setattr("llmkit.api.build_pipeline", lambda *_, **__: pipeline)


COMMANDS = (
    ("generate", "hi"),
    ("chat", "hi"),
    ("summarize", "hi"),
    ("answer", "who?", "hi"),
    ("translate", "hi", "--to", "fr"),
)


def inert(text: str) -> str:
    assert not [each for each in ACTS if each in text]
    return text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_terminal_gets_nothing_of_a_model_that_it_acts_on(
    command: tuple[str, ...], screen: Screen, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"one\n\ttwo {EVIL}"
    shown = f"one\n\ttwo {SHOWN}"
    answers(monkeypatch, Model(text))
    assert shown in inert(screen(*command))
    assert run(*command)[1] == f"{text}\n"
    written = next(line for line in inert(screen(*command, "--json")).splitlines() if line.startswith("{"))
    assert json.loads(written)["text"] == text
    answers(monkeypatch, Model(text, sequences=2))
    assert inert(screen(*command)).count(shown) == 2
    assert run(*command)[1] == f"{text}\n---\n{text}\n"


def test_reasoning_on_a_terminal(screen: Screen, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Model(EVIL))
    thought, _ = inert(screen("chat", "hi").replace("\x1b[2m", "").replace("\x1b[0m", "")).split("\n", 1)
    assert thought == SHOWN
    assert run("chat", "hi")[2].startswith(EVIL)


def test_rows_on_a_terminal(screen: Screen, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"rows {EVIL}.jsonl".replace("/", "")
    path.write_text(json.dumps({"prompt": "hi", EVIL: EVIL}) + "\n", encoding="utf-8")
    answers(monkeypatch, fake("text-generation", EVIL)[0])
    command = ("generate", "--input", path)
    on_screen = next(line for line in rendered(inert(screen(*command))) if line.startswith("{"))
    assert json.loads(on_screen) == json.loads(run(*command)[1])
    assert json.loads(on_screen)[EVIL] == EVIL


def test_names_and_data_on_a_terminal(checkpoint: Checkpoint, screen: Screen, tmp_path: Path) -> None:
    model = shutil.copytree(checkpoint("llama"), tmp_path / EVIL)
    (model / "README.md").write_text(f"---\nlicense: {json.dumps(EVIL)}\n---\n", encoding="utf-8")
    rows = tmp_path / f"{EVIL}.jsonl"
    rows.write_text(json.dumps({"prompt": EVIL, "completion": EVIL, EVIL: EVIL}) + "\n", encoding="utf-8")
    recipe = tmp_path / f"{EVIL}.yaml"
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(model), "device": "cpu"},
        "data": {"train": str(rows), "num_proc": 1},
        "train": {"output_dir": str(tmp_path / f"{EVIL}out"), "max_steps": 1},
    }
    recipe.write_text(json.dumps(content), encoding="utf-8")
    for command in (
        ("inspect", model),
        ("inspect", f"no{EVIL}/such/model"),
        ("data", "check", recipe),
        ("finetune", recipe, "--dry-run"),
        ("recipes", "validate", recipe, rows),
        ("evaluate", "--task", "generate", "--data", rows, "--model", model, "--output", tmp_path / f"{EVIL}e"),
        (EVIL,),
    ):
        text = inert(screen(*command))
        assert r"\x1b[31mred" in text, command


def test_bars_of_libraries_move_the_cursor_and_nothing_else() -> None:
    from tqdm import tqdm

    def draw(stream: TextIO) -> None:
        with tqdm(total=1, desc=EVIL, file=guard_terminal(stream, bars=True)) as bar:
            bar.update()

    assert inert(on_terminal(draw)).startswith(f"\r{SHOWN}:")


# Lines of the log beside streamed texts and bars.


class Talkative(Model):
    """A pipeline that logs in the middle of its answer and of its reasoning."""

    def __call__(self, row: Any, *, on_text: Any = None, on_reasoning: Any = None) -> Output:
        for listener in filter(None, (on_reasoning, on_text)):
            listener("begun")
            log.warning("by the way")
            listener(" and ended")
        return super().__call__(row)


LINES = ["begun", "llmkit: by the way", " and ended"]


def test_a_log_line_begins_a_line_on_a_terminal(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Talkative("x"))
    assert rendered(screen("generate", "hi"))[:3] == LINES
    assert rendered(screen("chat", "hi"))[:6] == LINES * 2


def test_a_log_line_begins_a_line_in_a_file_that_takes_both_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, Talkative("x"))
    path = tmp_path / "both"
    with (
        path.open("a", encoding="utf-8") as out,
        path.open("a", encoding="utf-8") as err,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert main(["chat", "hi"]) == 0
    assert path.read_text(encoding="utf-8").splitlines()[:6] == LINES * 2


def test_streams_that_go_to_different_places_stay_as_they_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, Talkative("x"))
    code, out, err = run("generate", "hi")
    assert (code, out) == (0, "begun and ended\n")
    assert err.startswith("llmkit: by the way\n")


def test_answers_and_log_lines_go_above_the_bar_of_rows(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, _ = fake("text-generation", "fine")
    answers(monkeypatch, pipeline)
    real = pipeline.answer_all

    def answer_all(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        log.warning("by the way")
        return found

    monkeypatch.setattr(pipeline, "answer_all", answer_all)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "hi"}\n' * 3, encoding="utf-8")
    raw = screen("generate", "--input", rows, "--window", "1")
    lines = rendered(raw)
    assert "3/3" in raw
    assert [line[:18] for line in lines[:6]] == ["llmkit: by the way", '{"schema_version":'] * 3
    assert lines[6].startswith("llmkit: 3 rows in")
    assert len(lines) == 7
