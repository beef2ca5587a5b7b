"""A conversation in the terminal: commands, what goes to which stream, Ctrl+C, and a real terminal."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

import llmkit
from llmkit.cli.app import _on_sigterm
from llmkit.cli.chat import Session
from llmkit.cli.line_editor import line_editor
from llmkit.cli.options import Stopped, flags
from llmkit.config.settings import GenerationSettings
from llmkit.inference.conversation import Conversation
from llmkit.log import log
from llmkit.tasks.output import Note, Output, Usage
from tests.cli.conftest import Run
from tests.conftest import Checkpoint

SHORT = ("--max-new-tokens", "5", "--dtype", "float32")
HELLO = "The quick brown fox"
READY, LEFT = "\x1b[?2004h", "\x1b[?2004l"
"""What the line editor tells the terminal (to mark what is pasted) when it begins to read, and when it has read."""


@pytest.fixture
def folder(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", chat=True, max_position_embeddings=5000)


@pytest.fixture
def conversation(folder: Path) -> Conversation:
    return Conversation(llmkit.load("chat", str(folder), dtype="float32", max_new_tokens=5))


class Typist:
    """Types the lines; remembers what stood in each line before."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.defaults: list[str] = []

    def __call__(self, default: str) -> str:
        self.defaults.append(default)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def type_lines(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversation: Conversation
) -> Callable[..., tuple[str, str, list[str]]]:
    """``type_lines("hi", "/help")`` → stdout, stderr with the log lines, what stood in each line before."""
    caplog.set_level("INFO", log.name)

    def call(*lines: str | BaseException, talk: Any = conversation, **given: Any) -> tuple[str, str, list[str]]:
        caplog.clear()
        typist = Typist(*lines)
        Session(talk, typist, GenerationSettings(**given)).run()
        out, err = capsys.readouterr()
        return out, err + "".join(f"{message}\n" for message in caplog.messages), typist.defaults

    return call


TypeLines = Callable[..., tuple[str, str, list[str]]]


class Fake:
    """Answers as it was told to: each reply is what is done on the way, and the text."""

    def __init__(
        self, *pieces: str | Callable[[], None], reasoning: tuple[str, ...] = (), notes: tuple[Note, ...] = ()
    ) -> None:
        self.pieces, self.reasoning, self.notes = pieces, reasoning, notes
        self.asked: list[str] = []

    def send(
        self,
        text: str,
        *,
        on_text: Callable[[str], None],
        on_reasoning: Callable[[str], None],
        cancelled: Callable[[], bool],
    ) -> Output:
        self.asked.append(text)
        said = ""
        for thought in self.reasoning:
            on_reasoning(thought)
        for piece in self.pieces:
            if cancelled():
                break
            if callable(piece):
                piece()
            else:
                said += piece
                on_text(piece)
        return Output(
            text=said,
            task="dialogue",
            model="fake",
            commit=None,
            head="causal",
            finish_reason="interrupted" if cancelled() else "stop",
            usage=Usage(10, 5, cached_tokens=4),
            reasoning="".join(self.reasoning),
            notes=self.notes,
        )


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


# One reply.


def test_one_reply_by_argument_pipe_file_and_text(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("chat", "--model", folder, *SHORT)
    code, expected, err = run(*base, HELLO)
    assert code == 0
    assert expected.endswith("\n")
    assert expected.strip()
    assert "5 tokens in " in err
    assert run(*base, stdin=HELLO.encode())[1] == expected
    assert run(*base, "-", stdin=HELLO.encode())[1] == expected
    assert run(*base, "--text", HELLO)[1] == expected
    (tmp_path / "message.txt").write_text(HELLO, encoding="utf-8")
    assert run(*base, tmp_path / "message.txt")[1] == expected
    assert run(*base, HELLO, "--system", "今天天气很好")[1] != expected


def test_one_reply_as_json(run: Run, folder: Path) -> None:
    code, out, _ = run("chat", HELLO, "--model", folder, *SHORT, "--json")
    assert code == 0
    assert out.count("\n") == 1
    assert json.loads(out)["text"] == run("chat", HELLO, "--model", folder, *SHORT)[1].rstrip("\n")


def test_several_replies(run: Run, folder: Path) -> None:
    several = ("--num-beams", "2", "--num-return-sequences", "2")
    assert "\n---\n" in run("chat", HELLO, "--model", folder, *SHORT, *several)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json"], "--json is for one reply, and no message was passed; give a text, a file, or pipe one in"),
        (["--encoding", "latin-1"], "--encoding is for one reply"),
        (["--num-return-sequences", "2"], "a conversation continues with a single reply"),
        ([" "], "the message is empty; give llmkit chat some text"),
        (["hi", "--text", "ho"], "both 'hi' and --text are set"),
    ],
)
def test_bad_usage(arguments: list[str], message: str, run: Run) -> None:
    code, out, err = run("chat", *arguments)
    assert (code, bool(out)) == (2, "--json" in arguments)
    assert message in err.splitlines()[-1]


def test_an_empty_pipe(run: Run) -> None:
    code, out, err = run("chat", stdin=b"")
    assert (code, out) == (2, "")
    assert "the message is empty" in err


# Turns.


def test_replies_on_stdout_and_the_rest_on_stderr(type_lines: TypeLines, conversation: Conversation) -> None:
    out, err, _ = type_lines(HELLO, "", "  \n", "What is the meaning of life?")
    first, second = (message.content.strip() for message in conversation.messages[1::2])
    assert out == f"{first}\n\n{second}\n\n"
    lines = [line for line in err.splitlines() if "tokens/s" in line]
    assert "; 0 of " in lines[0]
    assert "the message is empty" not in err
    assert conversation.last is not None
    known, prompt = conversation.last.usage.cached_tokens, conversation.last.usage.prompt_tokens
    assert known > 0
    assert f"; {known} of {prompt} prompt tokens reused" in lines[1]
    assert 'stopped at 5 new tokens; raise it with /set max_new_tokens N for more, or write "continue"' in err


def test_a_full_context_is_said(type_lines: TypeLines, checkpoint: Checkpoint) -> None:
    small = checkpoint("llama", chat=True, max_position_embeddings=32)
    talk = Conversation(llmkit.load("chat", str(small), dtype="float32", max_new_tokens=500))
    _, err, _ = type_lines("The", talk=talk)
    assert "stopped because the model's context of 32 tokens is full; /reset starts over" in err


def test_a_message_that_begins_with_a_slash() -> None:
    fake = Fake("yes")
    Session(cast(Conversation, fake), Typist("//usr/bin is what?", "  // two", "a /b", "\n  indented\n")).run()
    assert fake.asked == ["/usr/bin is what?", "/ two", "a /b", "  indented"]


def test_errors_are_one_line_and_the_session_goes_on(
    type_lines: TypeLines, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err, _ = type_lines("/retry", "/undo", "word " * 5000, HELLO)
    assert "no reply to repeat yet; send a message first" in err
    assert "nothing to undo yet; send a message first" in err
    assert f"and the context of {conversation.pipeline.loaded.source.name} is " in err
    assert len(conversation.messages) == 2
    assert out.count("\n\n") == 1

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(conversation, "send", fail)
    _, err, defaults = type_lines(HELLO, "/help")
    assert "RuntimeError: out of memory; start with --debug to see the whole error\n" in err
    assert len(defaults) == 3
    monkeypatch.setattr(flags, "debug", True)
    with pytest.raises(RuntimeError):
        type_lines(HELLO)


def test_a_closed_pipe_ends_the_session(type_lines: TypeLines) -> None:
    def close() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        type_lines("hi", "never read", talk=Fake(close))


def test_no_reply_is_said(type_lines: TypeLines) -> None:
    out, err, _ = type_lines("hi", talk=Fake())
    assert out == ""
    assert "(the reply is empty)" in err


# Thinking aloud.


def test_reasoning_stays_off_stdout(type_lines: TypeLines, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err, _ = type_lines("hi", talk=Fake("The ", "reply.", reasoning=("\n", "\nHm", "m.")))
    assert out == "The reply.\n\n"
    assert err.startswith("Hmm.\n")
    assert "\x1b" not in err
    out, err, _ = type_lines("hi", talk=Fake("Yes.\n", reasoning=("Hmm.\n",)))
    assert out == "Yes.\n\n"
    assert err.startswith("Hmm.\n5 tokens")
    with monkeypatch.context() as patch:
        patch.setattr(flags, "quiet", True)
        out, err, _ = type_lines("hi", talk=Fake("The reply.", reasoning=("Hmm.",)))
        assert "Hmm" not in out + err
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # as where both are shown
    _, err, _ = type_lines("hi", talk=Fake("The reply.", reasoning=("Hmm.",)))
    assert err.startswith("Hmm.\nThe reply.\n\n5 tokens")


def test_reasoning_is_dim_on_a_terminal(type_lines: TypeLines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, err, _ = type_lines("hi", talk=Fake("Yes.", reasoning=("Hmm.",)))
    assert err.startswith("\x1b[2mHmm.\x1b[0m\n")


def test_what_is_noted_is_said(type_lines: TypeLines) -> None:
    notes = Note("output_cut", "stopped at 5 new tokens"), Note("still_thinking", "the model was still thinking")
    out, err, _ = type_lines("hi", talk=Fake(reasoning=("Hmm.",), notes=notes))
    assert out == ""
    assert "(the reply is empty)" in err
    assert err.endswith("stopped at 5 new tokens\nthe model was still thinking\n")


def test_reasoning_before_one_reply(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipeline:
        settings, max_new_tokens = GenerationSettings(), 5

        def __call__(self, message: str, **listeners: Any) -> Output:
            return Fake("The reply.", reasoning=("Hmm.",)).send(message, cancelled=lambda: False, **listeners)

    monkeypatch.setattr("llmkit.api.build_pipeline", lambda *_, **__: Pipeline())
    code, out, err = run("chat", "hi")
    assert (code, out) == (0, "The reply.\n")
    assert err.startswith("Hmm.\n")
    assert run("chat", "hi", "--quiet") == (0, "The reply.\n", "")


# Ctrl+C.


def test_an_interrupted_reply_is_kept(type_lines: TypeLines, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(llmkit.load("chat", str(folder), dtype="float32", max_new_tokens=500))
    before, said = signal.getsignal(signal.SIGINT), list[str]()

    def piece(text: str = "", **_: object) -> None:
        said.append(text)
        if len(said) == 3:
            interrupt()

    monkeypatch.setattr("llmkit.cli.output.echo", piece)
    _, err, _ = type_lines(HELLO, talk=talk)
    assert talk.last is not None
    assert talk.last.finish_reason == "interrupted"
    assert talk.last.usage.completion_tokens < 100
    assert talk.messages[1].content.strip() == "".join(said).strip() == talk.last.text
    assert "(stopped; the reply so far is kept)" in err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr("llmkit.cli.output.echo", lambda text="", **_: said.append(text))
    type_lines("/retry", talk=talk)  # the session goes on
    assert talk.last.finish_reason != "interrupted"
    assert len(talk.messages) == 2


def test_an_interrupt_before_the_first_word(type_lines: TypeLines) -> None:
    out, err, _ = type_lines("hi", talk=Fake(interrupt, "never said"))
    assert out == ""
    assert "(stopped; there was no reply yet)" in err
    assert "not kept" not in err


def test_a_second_interrupt_does_not_wait(type_lines: TypeLines, folder: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    before = signal.getsignal(signal.SIGINT)
    out, err, defaults = type_lines("hi", "/help", talk=Fake("some", twice))
    assert out == "some\n"
    assert "(stopped; nothing of this reply is kept)" in err
    assert "/quit, /exit" in err
    assert len(defaults) == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_reply_that_was_ended_leaves_the_conversation_as_it_was(
    type_lines: TypeLines, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_lines(HELLO)
    messages = list(conversation.messages)

    def end(text: str = "", **_: object) -> None:
        if text.strip():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmkit.cli.output.echo", end)
        _, err, _ = type_lines("What is the meaning of life?", talk=conversation)
    assert "(stopped; nothing of this reply is kept)" in err
    assert conversation.messages == messages
    out, _, _ = type_lines("What is the meaning of life?")
    fresh = Conversation(conversation.pipeline)
    fresh.messages = messages
    assert out == fresh.send("What is the meaning of life?").text + "\n\n"


def test_ctrl_c_at_the_prompt(type_lines: TypeLines) -> None:
    _, err, defaults = type_lines(KeyboardInterrupt(), "/status")
    assert err.startswith("Ctrl+C again leaves, as /quit and Ctrl+D do\n")
    assert len(defaults) == 3


# Commands.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sav", "unknown command '/sav'; did you mean /save?"),
        ("/re", "unknown command '/re'; did you mean /reset or /retry?"),
        ("/st", "unknown command '/st'; did you mean /status?"),
        (
            "/usr/bin is what?",
            "unknown command '/usr/bin'; /help lists them; write //usr/bin … to send it as a message",
        ),
        ("/", "unknown command '/'; /help lists them"),
        ("/save", "/save needs a file; write /save FILE"),
        ("/load  ", "/load needs a file; write /load FILE"),
        ("/reset now", "/reset takes no argument; write /reset, or //reset … to send it as a message"),
        ("/set temprature 1", "unknown setting 'temprature'; did you mean temperature?"),
        ("/set temperature hot", "temperature: 'hot' is not a number"),
        ("/set temperature 300", "temperature=300.0 is out of range; give a number from 0 to 100"),
        ("/set num_return_sequences 2", "unknown setting 'num_return_sequences'"),
        ("/set on_overflow chop", "on_overflow='chop' is not a choice"),
        ("/model other", "this conversation has a fixed model"),
        ("/save x.json", "the conversation has no messages yet; send a message first"),
        ("/load nowhere.json", "nowhere.json cannot be read (No such file or directory)"),
    ],
)
def test_commands_that_cannot_be_run(
    line: str, message: str, type_lines: TypeLines, conversation: Conversation
) -> None:
    out, err, defaults = type_lines(line)
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(message)
    assert not conversation.messages
    assert len(defaults) == 2


@pytest.mark.parametrize("line", ["/quit", "/exit", "/QUIT", " /quit ", "/bye", "exit", "Quit"])
def test_quit(line: str, type_lines: TypeLines) -> None:
    assert type_lines(line, HELLO) == ("", "", [""])


def test_help_names_every_command(type_lines: TypeLines) -> None:
    out, err, _ = type_lines("/help")
    assert out == ""
    for name in (
        "system [TEXT]",
        "reset, /clear",
        "undo",
        "retry",
        "set [NAME VALUE]",
        "model [MODEL]",
        "save FILE",
        "load FILE",
        "status",
        "help",
        "quit, /exit, /bye",
    ):
        assert f"/{name} " in err
    assert max(map(len, err.splitlines())) < 80


def test_system(type_lines: TypeLines, conversation: Conversation) -> None:
    assert type_lines("/system")[1] == "system message: none\n"
    assert type_lines("/system Speak like  a fox.")[1] == "system message: Speak like  a fox.\n"
    assert conversation.system == "Speak like  a fox."
    assert type_lines("/system")[1] == "system message: Speak like  a fox.\n"
    assert type_lines("/system -")[1] == "system message: none\n"
    assert conversation.system == ""


def test_reset(type_lines: TypeLines, conversation: Conversation) -> None:
    first = type_lines(HELLO)[0]
    assert type_lines("What?", "/reset", HELLO)[0].endswith(f"\n\n{first}")
    assert len(conversation.messages) == 2


def test_undo_puts_the_message_back_into_the_line(type_lines: TypeLines, conversation: Conversation) -> None:
    _, err, defaults = type_lines(HELLO, "two\nlines", "/undo", "/undo", "//bin is what?", "/undo")
    assert defaults == ["", "", "", "two\nlines", HELLO, "", "//bin is what?"]
    assert err.count("(the last turn is removed; its message can be edited)") == 3
    assert not conversation.messages


def test_retry(type_lines: TypeLines, conversation: Conversation) -> None:
    out, err, _ = type_lines(HELLO, "/retry")
    assert len(conversation.messages) == 2
    assert out.endswith(conversation.messages[1].content.strip() + "\n\n")
    assert err.count("tokens/s") == 2


def test_a_saved_conversation_goes_on_as_the_first(
    type_lines: TypeLines, conversation: Conversation, tmp_path: Path
) -> None:
    path = tmp_path / "a talk.json"
    _, err, _ = type_lines("/system Be brief.", HELLO, f"/save {path}")
    assert f"(saved 1 turn to {path})" in err
    expected, _, _ = type_lines("Le café est fermé.")
    other = Conversation(conversation.pipeline)
    out, err, _ = type_lines(f"/load '{path}'", "Le café est fermé.", talk=other)
    assert f"(loaded 1 turn and a system message from {path})" in err
    assert out == expected
    assert other.messages == conversation.messages
    assert other.system == "Be brief."


def test_save_overwrites_its_own_files_only(type_lines: TypeLines, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.json", tmp_path / "theirs.json"
    theirs.write_text("kept", encoding="utf-8")
    _, err, _ = type_lines(HELLO, f"/save {mine}", "What?", f"/save {mine}", f"/save {theirs}", f"/save {tmp_path}")
    assert f"(saved 2 turns to {mine})" in err
    assert f"{theirs} exists; give another name" in err
    assert f"{tmp_path} exists; give another name" in err
    assert theirs.read_text(encoding="utf-8") == "kept"
    _, err, _ = type_lines(f"/save {mine}")  # another session
    assert f"{mine} exists; give another name" in err
    _, err, _ = type_lines(f"/load {mine}", f"/save {mine}")
    assert f"(saved 2 turns to {mine})" in err
    _, err, _ = type_lines("/load " + str(theirs), f"/save {theirs}")  # what could not be loaded is not its own
    assert f"{theirs} exists; give another name" in err


def test_save_into_the_home_folder(type_lines: TypeLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    type_lines(HELLO, "/save ~/talk.json")
    assert (tmp_path / "talk.json").is_file()


def test_status(type_lines: TypeLines, conversation: Conversation, folder: Path) -> None:
    _, err, _ = type_lines("/status")
    assert err.splitlines() == [
        f"model     {folder} (causal, float32 on cpu)",
        "system    none",
        "messages  0",
        "context   5000 tokens",
        "settings  the model's own",
    ]
    _, err, _ = type_lines(HELLO, "What?", "/status", temperature=0.5, top_k=3)
    assert conversation.last is not None
    usage = conversation.last.usage
    assert "messages  4\n" in err
    assert (
        f"context   5000 tokens; the last prompt had {usage.prompt_tokens}, {usage.cached_tokens} of them reused\n"
        in err
    )
    assert "settings  temperature=0.5, top_k=3\n" in err


def test_status_counts_what_is_forgotten(type_lines: TypeLines, checkpoint: Checkpoint) -> None:
    small = checkpoint("llama", chat=True, max_position_embeddings=64)
    talk = Conversation(llmkit.load("chat", str(small), dtype="float32", max_new_tokens=5))
    _, err, _ = type_lines(*[HELLO] * 6, "/status", talk=talk)
    assert talk.forgotten
    assert f"messages  12, the oldest {talk.forgotten} dropped\n" in err


def test_set_changes_the_settings_of_the_next_reply(type_lines: TypeLines, conversation: Conversation) -> None:
    _, err, _ = type_lines("/set max-new-tokens=2", HELLO, "/set seed 7", "/set", "/status")
    assert conversation.last is not None
    assert conversation.last.usage.completion_tokens == 2
    assert "max_new_tokens: 2\n" in err
    assert re.search(r"^temperature +default$", err, re.MULTILINE)
    assert re.search(r"^seed +7$", err, re.MULTILINE)
    assert "settings  max_new_tokens=2, seed=7\n" in err
    _, err, _ = type_lines("/set max_new_tokens 3", "/set max_new_tokens -", '/set stop END "The fox"', "What?")
    assert "max_new_tokens: 2 (default)\n" in err  # what it was before the first change
    assert conversation.pipeline.settings.stop == ("END", "The fox")
    assert conversation.last.usage.cached_tokens > 0, "the cache outlives a change of settings"


def test_another_model_continues_the_conversation(
    type_lines: TypeLines, conversation: Conversation, checkpoint: Checkpoint
) -> None:
    other = checkpoint("llama", chat=True, max_position_embeddings=4000)
    wanted: list[Any] = []

    def load_model(name: str, settings: GenerationSettings) -> Any:
        wanted.append((name, settings.temperature))
        return llmkit.load("chat", name, dtype="float32", max_new_tokens=5)

    typist = Typist(HELLO, "/set temperature 0.5", f"/model {other}", "What?", "/model nowhere/at-all", "/model")
    Session(conversation, typist, load_model=load_model).run()
    assert wanted == [(str(other), 0.5), ("nowhere/at-all", 0.5)]
    assert len(conversation.messages) == 4
    assert conversation.pipeline.loaded.source.name == str(other), "a model that cannot be loaded changes nothing"
    fresh = Conversation(conversation.pipeline)
    fresh.messages = conversation.messages[:2]
    assert fresh.send("What?").text == conversation.messages[3].content.strip()


def test_a_second_ctrl_c_at_the_prompt_leaves(type_lines: TypeLines) -> None:
    stop = KeyboardInterrupt
    assert type_lines(stop(), stop(), "never read")[2] == ["", ""]
    assert len(type_lines(stop(), "/status", stop())[2]) == 4, "not if another line was between"


def test_an_interrupt_while_the_prompt_is_processed_is_confirmed(type_lines: TypeLines) -> None:
    notice = "(stopping once the prompt is processed; Ctrl+C again stops at once)\n"
    _, err, _ = type_lines("hi", talk=Fake(interrupt, "never shown"))
    assert err.startswith(notice)
    _, err, _ = type_lines("hi", talk=Fake("some", interrupt, "never shown"))
    assert notice not in err


def test_the_last_conversation_is_continued(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    lines = [HELLO]

    def editor(*_: object) -> Callable[[str], str]:
        return Typist(*lines)

    monkeypatch.setattr("llmkit.cli.line_editor.line_editor", editor)
    assert "no earlier conversation to continue; leave --continue out" in run("chat", "--continue")[2]
    assert run("chat", "--model", folder, *SHORT, "--system", "Be brief.")[0] == 0
    kept = tmp_path / "llmkit-cache" / "last_chat.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    saved = json.loads(kept.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    lines[:] = ["What?", f"/save {tmp_path}/talk.json"]
    _, _, err = run("chat", "--continue", *SHORT)
    assert f"{folder} (causal" in err, "with the model of that conversation"
    assert "continuing after 2 messages; the last: " in err
    assert len(json.loads(kept.read_text(encoding="utf-8"))["messages"]) == 5
    other = checkpoint("llama", chat=True, max_position_embeddings=4000)
    lines[:] = ["/status", "/system"]
    _, _, err = run("chat", "--load", tmp_path / "talk.json", "--model", other, *SHORT, "--system", "Be long.")
    assert f"model     {other} " in err
    assert "messages  4\n" in err
    assert "system message: Be long." in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--load", "none.json"], "none.json cannot be read"),
        (["--load", "none.json", "--continue"], "--load and --continue are mutually exclusive"),
        (["--continue", "hi"], "--continue is for a conversation in the terminal; leave it out, or the text"),
        (["--no-markdown", "--input", "rows.jsonl"], "--no-markdown is for a conversation in the terminal"),
    ],
)
def test_options_of_a_conversation_are_checked_before_a_model_is_loaded(
    arguments: list[str], message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.api.build_pipeline", lambda *_, **__: pytest.fail("loaded"))
    code, _, err = run("chat", *arguments)
    assert code == 2
    assert message in err


def test_the_repr_of_a_conversation_names_model_and_turns(conversation: Conversation, folder: Path) -> None:
    assert repr(conversation) == f"<Conversation with {folder}: 0 turns>"
    conversation.send(HELLO)
    assert repr(conversation).startswith(f"<Conversation with {folder}: 1 turn, last reply ")


# The line editor.


@pytest.fixture
def keyboard(capsys: pytest.CaptureFixture[str]) -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe
    assert "Unhandled exception" not in capsys.readouterr().out  # the only sign of an error in a key's handler


def editor(keyboard: PipeInput, history: Path) -> Callable[[str], str]:
    return line_editor(
        {"/save": ("FILE",), "/status": (), "/set": ("temperature", "top_p"), "/system": ()},
        history,
        input=keyboard,
        output=DummyOutput(),
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),  # Alt+Enter
        ("\x1b[200~one\r\ntwo\nthree\x1b[201~ four\r", "one\ntwo\nthree four"),  # a paste
        ("hello\x01>\r", ">hello"),  # Ctrl+A
        ("hello\x03again\r", "again"),  # Ctrl+C in a line
        ("/stat\t\r", "/status"),
        ("/sa\t\r", "/save"),
        ("/set temp\t 1\r", "/set temperature 1"),
        ("stat\t\r", "stat"),
    ],
)
def test_keys(keys: str, line: str, keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_text(keys)
    assert editor(keyboard, tmp_path / "history")("") == line


def test_the_default_can_be_edited(keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_text("!\r")
    assert editor(keyboard, tmp_path / "history")("one\ntwo") == "one\ntwo!"


def test_file_names_are_completed(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "conversation.json").touch()
    keyboard.send_text(f"/save {tmp_path}/conv\t\r")
    assert editor(keyboard, tmp_path / "history")("") == f"/save {tmp_path}/conversation.json"


@pytest.mark.parametrize(("keys", "error"), [("\x04", EOFError), ("\x03", KeyboardInterrupt)])
def test_keys_in_an_empty_line(keys: str, error: type[BaseException], keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_text(keys)
    with pytest.raises(error):
        editor(keyboard, tmp_path / "history")("")


def test_history_is_kept_and_private(keyboard: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "new folder" / "history"
    keyboard.send_text("first\x1b\rline\r")
    editor(keyboard, history)("")
    assert (history.stat().st_mode & 0o777, history.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    history.chmod(0o644)  # as an earlier version left it
    keyboard.send_text("\x1b[A\r")
    assert editor(keyboard, history)("") == "first\nline"
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_written_is_no_error(keyboard: PipeInput, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    keyboard.send_text("hello\r")
    assert editor(keyboard, tmp_path / "file" / "history")("") == "hello"
    keyboard.send_text("hello\r")
    assert editor(keyboard, tmp_path)("") == "hello"


def test_bytes_that_are_not_utf8(keyboard: PipeInput, tmp_path: Path) -> None:
    keyboard.send_bytes(b"caf\xe9\r")
    assert editor(keyboard, tmp_path / "history")("") == "caf?"
    assert "caf?" in (tmp_path / "history").read_text(encoding="utf-8")


def test_sigterm_in_a_callback_of_asyncio_ends_the_program() -> None:
    async def edit() -> None:
        asyncio.get_running_loop().call_soon(_on_sigterm)
        for _ in range(3):
            await asyncio.sleep(0)

    with pytest.raises(Stopped):
        asyncio.run(edit())


# A real terminal.


_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl+C is a signal of the controlling terminal only
os.execv(sys.executable, [sys.executable, "-m", "llmkit", "chat", *sys.argv[1:]])
"""


class Terminal:
    """``llmkit chat`` on a pseudo-terminal; ``stdout`` may be a file instead."""

    def __init__(self, *arguments: object, stdout: Any = None) -> None:
        import pty
        import termios

        self.descriptor, other = pty.openpty()
        termios.tcsetwinsize(other, (24, 80))
        self.state: Callable[[], list[Any]] = lambda: termios.tcgetattr(other)
        self.before = self.state()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *map(str, arguments)],
            stdin=other,
            stdout=stdout or other,
            stderr=other,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        self._other = other
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def read(self, seconds: float = 60) -> None:
        """Take what has appeared, or what will."""
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, seconds))
        assert ready, f"nothing came after {self.shown[-2000:]!r}"
        self.shown += self._decode(os.read(self.descriptor, 65536))

    def expect(self, text: str, seconds: float = 60) -> str:
        """Read until the text has appeared; returns what came with it, and goes on after it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            self.read(deadline - time.monotonic())
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.descriptor, keys.encode())

    def leave(self) -> int:
        """Wait for the end; the terminal must be as it was."""
        code = self.process.wait(timeout=60)
        assert self.state() == self.before
        return code

    def close(self) -> None:
        """End it, whatever happened."""
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        os.close(self._other)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    pytest.importorskip("pty")
    opened: list[Terminal] = []

    def get(*arguments: object, **options: Any) -> Terminal:
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield get
    for each in opened:
        each.close()


def test_a_conversation_on_a_terminal(terminal: Callable[..., Terminal], folder: Path) -> None:
    screen = terminal("--model", folder, *SHORT)
    said = screen.expect("llmkit: /help lists the commands; Ctrl+D leaves")
    assert f"llmkit: {folder} (causal, float32 on cpu) answers" in said
    screen.expect(READY)
    screen.type("/sav\r")
    screen.expect("llmkit: error[invalid_usage]: unknown command '/sav'; did you mean /save?")
    screen.expect(READY)
    screen.type(f"{HELLO}\r")
    assert "llmkit: 5 tokens in" in screen.expect("prompt tokens reused")
    screen.expect(READY)
    screen.type("\x03")
    screen.expect("Ctrl+C again leaves")
    screen.expect(READY)
    screen.type("\x04")
    assert screen.leave() == 0


def test_stdout_in_a_file_holds_the_replies_only(
    terminal: Callable[..., Terminal], folder: Path, tmp_path: Path, run: Run
) -> None:
    with (tmp_path / "log.txt").open("wb") as log_file:
        screen = terminal("--model", folder, *SHORT, stdout=log_file)
    screen.expect(READY)
    screen.type(f"{HELLO}\r")
    screen.expect("prompt tokens reused")
    screen.expect(READY)
    screen.type("/quit\r")
    assert screen.leave() == 0
    expected = run("chat", HELLO, "--model", folder, *SHORT)[1]
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == f"{expected}\n"


def test_ctrl_c_on_a_terminal_stops_the_reply(terminal: Callable[..., Terminal], folder: Path, tmp_path: Path) -> None:
    screen = terminal("--model", folder, "--max-new-tokens", "4000", "--min-new-tokens", "4000")
    screen.expect(READY)
    screen.type(f"{HELLO}\r")
    screen.expect(LEFT)
    while not re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", screen.shown).strip():  # the reply has begun
        screen.read()
    screen.type("\x03")
    screen.expect("(stopped; the reply so far is kept)")
    screen.expect(READY)
    screen.type(f"/save {tmp_path}/talk.json\r")
    screen.expect("(saved 1 turn to ")
    screen.expect(READY)
    screen.type("\x04")
    assert screen.leave() == 0


def test_sigterm_at_the_prompt_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal], folder: Path) -> None:
    screen = terminal("--model", folder, *SHORT)
    screen.expect(READY)
    screen.process.send_signal(signal.SIGTERM)
    assert screen.leave() == 143
