"""Tools on the command line: offered, called, and answered in a conversation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import llmkit
from llmkit.cli.chat import Session
from llmkit.config.settings import GenerationSettings
from llmkit.engines.fake import CHAT
from llmkit.errors import UsageError
from llmkit.inference.conversation import Conversation
from tests.cli.conftest import Run
from tests.conftest import Checkpoint
from tests.fakes import fake
from tests.forced import CALL, QUESTION, REPLIES, TOOL, save_tool_model

LINE = 'get_weather({"city": "北京"})'
OPTIONS = ("--device", "cpu", "--max-new-tokens", "200")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tool_model(tmp_path_factory.mktemp("model"), *REPLIES["mistral"])


def test_one_reply_and_rows(folder: Path, run: Run, tmp_path: Path) -> None:
    tools, rows = tmp_path / "tools.json", tmp_path / "rows.jsonl"
    tools.write_text(json.dumps([TOOL]), encoding="utf-8")
    code, out, _ = run("chat", "天气？", "--model", folder, "--tools", tools, *OPTIONS)
    assert (code, out) == (0, f"嗯。\n{LINE}\n")
    code, out, _ = run("generate", "天气？", "--model", folder, "--tools", tools, "--json", *OPTIONS)
    record = json.loads(out)
    assert (record["tool_calls"], record["finish_reason"], record["text"].strip()) == ([CALL], "tool_calls", "嗯。")
    lines = ({"messages": [QUESTION], "id": 7, "tools": [TOOL]}, {"messages": [QUESTION], "tools": None})
    rows.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    code, out, _ = run("chat", "--input", rows, "--model", folder, "--tools", tools, *OPTIONS)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [(each.get("id"), each["tool_calls"]) for each in answers] == [(7, [CALL]), (None, [CALL])]
    code, _, err = run("translate", "x", "--to", "fr", "--tools", tools)
    assert code == 2
    assert "--tools" in err


def test_a_conversation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk, lines = Conversation(llmkit.load("chat", str(folder), tools=[TOOL], device="cpu", max_new_tokens=200)), iter(
        ("/tool 晴", "天气？", "/tool", "/tool 晴", "/undo", "/quit")
    )  # fmt: skip
    Session(talk, lambda _default: next(lines), GenerationSettings()).run()
    out, err = capsys.readouterr()
    assert out == f"嗯。\n\n{LINE}\n晴天。\n\n"
    assert f"(/tool RESULT sends the result of {LINE})" in err
    assert talk.messages == []


def test_reasoning_is_turned_on_and_off_in_a_conversation(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, engine = fake("chat", "Hm.", traits=replace(CHAT, switches_thinking=True))
    plain, _ = fake("chat", "Hm.")
    talk, lines = Conversation(pipeline), iter(
        ("/set think", "hi", "/set think off", "hi", "/set think maybe", "/set think -", "hi", "/set", "/quit")
    )  # fmt: skip
    Session(talk, lambda _default: next(lines), GenerationSettings()).run()
    assert engine.thinking == [None, False, None]
    _, err = capsys.readouterr()
    assert err.count("think: default") == 2
    assert "think: off" in err
    assert "'maybe' is not on or off" in caplog.text
    talk.think = True
    with pytest.raises(UsageError, match="`think=True` has no effect"):
        talk.use(plain)


def test_variables_of_the_template(checkpoint: Checkpoint, run: Run, tmp_path: Path) -> None:
    template = (
        "{% for each in documents or [] %}<doc>{{ each.text }}{% endfor %}"
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
    )
    model = checkpoint("llama", chat=template)
    file = tmp_path / "kwargs.json"
    file.write_text('{"documents": [{"title": "A", "text": "The fox jumps over the dog."}]}', encoding="utf-8")
    lengths = []
    for given in ([], [file], [file.read_text(encoding="utf-8")]):
        options = [part for value in given for part in ("--chat-template-kwargs", value)]
        code, out, err = run("chat", "Hi", "--model", model, "--json", "--max-new-tokens", "2", *options)
        assert code == 0, err
        lengths.append(json.loads(out)["usage"]["prompt_tokens"])
    assert lengths[0] < lengths[1] == lengths[2]
    code, _, err = run("summarize", "Hi", "--model", model, "--chat-template-kwargs", '{"dokuments": []}')
    assert code == 2
    assert "--chat-template-kwargs has dokuments, which the model's chat template does not use; leave it out" in err
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Hi", "completion": "Ho"}) + "\n", encoding="utf-8")
    lines = ("evaluate", "--task", "generate", "--data", rows, "--model", model, "--max-new-tokens", "2")
    code, _, err = run(*lines, "-o", tmp_path / "out", "--chat-template-kwargs", file, "--template", "Q: {{ prompt }}")
    assert code == 0, err
    code, _, err = run(*lines, "-o", tmp_path / "other", "--template", "Q: {{ promt }}")
    assert code == 2
    assert "--template does not use prompt" in err
