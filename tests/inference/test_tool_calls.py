"""Tools from the prompt to the output: alone, streamed, in rows, and in conversations with results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.errors import InputError, UsageError
from llmkit.inference.conversation import Conversation
from llmkit.tasks import Row
from tests.forced import BROKEN, CALL, QUESTION, REPLIES, TOOL, save_tool_model


@pytest.fixture(scope="module", params=["hermes", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tool_model(tmp_path_factory.mktemp(request.param), *REPLIES[request.param]))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tool_model(tmp_path_factory.mktemp("broken"), *REPLIES["broken"]))


ASKED: dict[str, Any] = {"messages": [QUESTION]}


def load(folder: str, **options: Any) -> llmkit.Pipeline:
    return llmkit.load("dialogue", folder, device="cpu", max_new_tokens=200, **options)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_calls_are_parsed_however_a_reply_is_run(model: str, options: dict[str, Any]) -> None:
    pipeline, shown = load(model, tools=[TOOL], **options), list[str]()
    streamed = pipeline(ASKED, on_text=shown.append)
    assert (streamed.text, list(streamed.tool_calls), streamed.finish_reason) == ("嗯。", [CALL], "tool_calls")
    assert "".join(shown) == streamed.text
    rows: list[Row] = [ASKED, {**ASKED, "tools": [TOOL]}]
    for output in pipeline(rows):
        assert (output.text, output.tool_calls) == (streamed.text, streamed.tool_calls)
    record = streamed.to_dict()
    assert (record["tool_calls"], record["finish_reason"], record["text"]) == ([CALL], "tool_calls", "嗯。")
    assert "tool_calls" not in load(model)(ASKED).to_dict()  # another prompt, and another reply


def test_generate_offers_tools_too(model: str) -> None:
    output = llmkit.generate("天气？", model, tools=[TOOL["function"]], device="cpu", max_new_tokens=200)
    assert (output.text.strip(), list(output.tool_calls)) == ("嗯。", [CALL])


def test_a_broken_call_is_text_with_a_note(broken: str) -> None:
    output = load(broken, tools=[TOOL])(ASKED)
    assert (output.text, output.tool_calls, output.finish_reason) == (f"嗯。{BROKEN}", (), "stop")
    assert [note.code for note in output.notes] == ["tool_calls_broken"]


THOUGHT = "<think>\n看天气。\n</think>\n\n"


@pytest.mark.parametrize("renders", [True, False])
def test_a_conversation_keeps_the_reasoning_before_a_call_if_the_template_renders_it(
    renders: bool, tmp_path: Path
) -> None:
    template, reply = REPLIES["hermes"]
    shown = "{{ '<think>\\n' ~ m.reasoning_content ~ '\\n</think>\\n\\n' if m.reasoning_content }}"
    template = template.replace("{{ m.content or '' }}", shown * renders + "{{ m.content or '' }}")
    model = save_tool_model(tmp_path, template, THOUGHT + reply, {"reasoning_content": "看天气。"})
    conversation = Conversation(load(str(model), tools=[TOOL]))
    assert conversation.send("天气？").reasoning == "看天气。"
    assert conversation.messages[-1].reasoning == ("看天气。" if renders else "")
    answer = conversation.send_result("晴")
    assert answer is not None
    assert answer.text == "晴天。"


def test_a_call_within_the_reasoning_has_a_note(tmp_path: Path) -> None:
    template, reply = REPLIES["hermes"]
    model = save_tool_model(tmp_path, template, f"<think>\n{reply}\n</think>\n\n嗯。")
    output = load(str(model), tools=[TOOL])(ASKED)
    assert (output.text, output.tool_calls) == ("嗯。", ())
    assert [note.code for note in output.notes] == ["tool_calls_broken"]


def test_a_conversation_with_the_result_of_a_tool(model: str, tmp_path: Path) -> None:
    conversation = Conversation(load(model, tools=[TOOL]))
    assert list(conversation.send("天气？").tool_calls) == [CALL]
    assert list(conversation.open_calls) == [CALL]
    conversation.save(tmp_path / "open.json")
    reply = conversation.send_result("晴")
    assert reply is not None
    assert (reply.text, reply.tool_calls, reply.finish_reason) == ("晴天。", (), "stop")
    assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    with pytest.raises(InputError, match="no tool call waits"):
        conversation.send_result("雨")

    resumed = Conversation(load(model))  # the file has the tools
    resumed.load(tmp_path / "open.json")
    assert resumed.send_result("晴") is not None
    assert resumed.messages == conversation.messages
    resumed.save(tmp_path / "closed.json")
    assert json.loads((tmp_path / "closed.json").read_text(encoding="utf-8"))["tools"] == [TOOL]
    resumed.load(tmp_path / "closed.json")
    assert (resumed.messages, resumed.turns) == (conversation.messages, 1)
    assert (resumed.undo().content, resumed.messages) == ("天气？", [])


def test_several_calls_wait_for_their_results_in_turn(model: str, tmp_path: Path) -> None:
    other = {**CALL, "id": "call00002"}
    path = tmp_path / "two.json"
    messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, other]}]
    path.write_text(json.dumps({"messages": messages, "tools": [TOOL]}), encoding="utf-8")
    conversation = Conversation(load(model))
    conversation.load(path)
    assert conversation.send_result("晴") is None
    assert list(conversation.open_calls) == [other]
    with pytest.raises(InputError, match="a tool call waits for its result"):
        conversation.retry()
    assert conversation.send_result("雨") is not None
    results = [(m.content, m.tool_call_id, m.name) for m in conversation.messages if m.role == "tool"]
    assert results == [("晴", "call00001", "get_weather"), ("雨", "call00002", "get_weather")]


def test_tools_that_have_no_effect_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match="tools have no effect on summarization"):
        llmkit.load("summarize", model, tools=[TOOL], device="cpu")
    with pytest.raises(UsageError, match="tools cannot be offered: the prompt is not rendered by a chat template"):
        llmkit.load("generate", model, tools=[TOOL], raw=True, device="cpu")
    bad: list[list[dict[str, Any]]] = [[{"description": "?"}], [{"function": {}}]]
    for tools in bad:
        with pytest.raises(InputError, match="tools that are not functions with names"):
            load(model, tools=tools)


@pytest.mark.parametrize(
    "text", ["- name: get_weather\n  parameters: {type: object}\n", "tools: [{name: get_weather}]"]
)
def test_tools_in_yaml(model: str, tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.yaml"
    path.write_text(text, encoding="utf-8")
    (tool,) = Conversation(load(model, tools=path)).tools
    assert (tool["type"], tool["function"]["name"]) == ("function", "get_weather")
    path.write_text("get_weather", encoding="utf-8")
    with pytest.raises(UsageError, match="is not a list of objects; write the tools as a list"):
        load(model, tools=path)
