"""What a terminal gets: nothing that it acts on. Files and pipes get texts as they are, byte by byte."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import pytest

from llmkit.cli import main
from llmkit.cli.finetune import _progress
from llmkit.cli.streams import guard_terminal
from llmkit.config.settings import GenerationSettings
from llmkit.tasks.output import Output, Usage
from tests.cli.conftest import Run
from tests.conftest import Checkpoint
from tests.fakes import fake

EVIL = "\x1b]0;title\x07\x1b[31mred \x9b31m a\rb c\x08\x7f \x1b]8;;http:x\x1b\\link \u202eabc\u2066"
SHOWN = r"\x1b]0;title\x07\x1b[31mred \u009b31m a\x0db c\x08\u007f \x1b]8;;http:x\x1b\link \u202eabc\u2066"
ACTS = ("\x1b]", "\x1b[31m", "\x9b", "a\rb", "\x07", "\x08", "\x7f", "\u202e", "\u2066")

Screen = Callable[..., str]


def on_terminal(use: Callable[[TextIO], object]) -> str:
    """What is written to a terminal, which is read meanwhile since it holds little."""
    master, slave = os.openpty()
    tty.setraw(slave)  # no \r before \n
    taken = bytearray()

    def read() -> None:
        with suppress(OSError):  # once its other end is closed
            while piece := os.read(master, 1 << 16):
                taken.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        use(stream)
    reader.join()
    os.close(master)
    return taken.decode()


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
    written = inert(screen(*command, "--json")).splitlines()[0]
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
    on_screen = next(line for line in inert(screen(*command)).split("\n") if line.startswith("{"))
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


def test_what_is_printed_above_the_bar_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(stream: TextIO) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", guard_terminal(stream, bars=True))
            with _progress():
                sys.stderr.write(f"{EVIL[:40]}\n")  # one line of the screen

    assert SHOWN[:40] in inert(on_terminal(train))


def test_bars_of_libraries_move_the_cursor_and_nothing_else() -> None:
    from tqdm import tqdm

    def draw(stream: TextIO) -> None:
        with tqdm(total=1, desc=EVIL, file=guard_terminal(stream, bars=True)) as bar:
            bar.update()

    assert inert(on_terminal(draw)).startswith(f"\r{SHOWN}:")
