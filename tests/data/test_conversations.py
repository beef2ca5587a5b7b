"""Conversations with tools and reasoning in the layouts of public data sets, and which of their fields are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import task_rows
from llmkit.data.python_rows import rows_of
from llmkit.data.records import Record
from llmkit.tasks import get_task
from tests.training.recipes import write_rows

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "default": None}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "查询天气", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
ARGUMENTS = {"city": "北京", "unit": None}
CALL: dict[str, Any] = {"type": "function", "id": "call_a1", "function": {"name": "weather", "arguments": ARGUMENTS}}
RESULT = {"role": "tool", "content": '{"t": 31}', "tool_call_id": "call_a1", "name": "weather"}
ASKED = {"role": "user", "content": "北京热吗？"}
CALLED: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [CALL]}
REPLY = {"role": "assistant", "content": "很热。"}
WHOLE: list[dict[str, Any]] = [ASKED, CALLED, RESULT, REPLY]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(row: dict[str, Any], task: str = "dialogue", **columns: str) -> Record:
    (found,) = task_rows(SourceSection(path=[str(write_rows(Path("a.jsonl"), [row]))], columns=columns), get_task(task))
    return found


def converted(row: dict[str, Any], **columns: str) -> dict[str, Any]:
    found = record(row, **columns)
    assert found.row is not None, found.error
    assert found.unused == ()
    return found.row


def without_id(value: Any) -> Any:
    """Messages of a layout that has no ids of calls."""
    if isinstance(value, dict):
        return {key: without_id(each) for key, each in value.items() if key not in ("id", "tool_call_id")}
    return [without_id(each) for each in value] if isinstance(value, list) else value


def sharegpt(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"from": who, "value": text} for who, text in turns]


OPENAI = {"messages": WHOLE, "tools": TOOLS}
AS_TEXT = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
NULL = CALLED | {"content": None}
CALL_TEXT = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)


@pytest.mark.parametrize(
    "row",
    [
        OPENAI,
        # OpenAI's API gives arguments as text and the content null.
        OPENAI | {"messages": [ASKED, NULL | {"tool_calls": [AS_TEXT | {"id": "call_a1"}]}, RESULT, REPLY]},
        OPENAI | {"messages": [ASKED, CALLED | {"tool_calls": [CALL | {"function": AS_TEXT}]}, RESULT, REPLY]},
        OPENAI | {"messages": [ASKED, {"role": "assistant", "tool_calls": json.dumps([CALL])}, *WHOLE[2:]]},
        # A result without the name of its tool, or as an object.
        OPENAI | {"messages": [ASKED, CALLED, {key: RESULT[key] for key in RESULT if key != "name"}, REPLY]},
        OPENAI | {"messages": [ASKED, CALLED, {**RESULT, "content": {"t": 31}}, REPLY]},
        OPENAI | {"tools": json.dumps(TOOLS)},
        OPENAI | {"tools": [FUNCTION]},
        {"messages": WHOLE, "tools": None, "tool_defs": TOOLS},  # columns of several data sets in one
        {"messages": [{"role": "system", "content": "", "tools": TOOLS}, *WHOLE]},  # ChatGLM 4
        {"prompt": [ASKED], "completion": WHOLE[1:], "tools": TOOLS},
    ],
)  # fmt: skip
def test_openai(row: dict[str, Any]) -> None:
    found = converted(row)
    assert found["tools"] == TOOLS
    context = [ASKED] if "prompt" in row else found["messages"][:1]
    assert [*context, *found["messages"][1:]] == WHOLE


@pytest.mark.parametrize(
    "turns",
    [
        sharegpt(
            ("human", "北京热吗？"), ("function_call", CALL_TEXT), ("observation", '{"t": 31}'), ("gpt", "很热。")
        ),
        sharegpt(
            ("human", "北京热吗？"), ("function_call", f"[{CALL_TEXT}]"), ("tool", '{"t": 31}'), ("gpt", "很热。")
        ),
        [ASKED, {"role": "assistant", "content": None, "function_call": AS_TEXT},
         {"role": "function", "name": "weather", "content": '{"t": 31}'}, REPLY],
    ],
)  # fmt: skip
def test_sharegpt_and_functions(turns: list[dict[str, Any]]) -> None:
    found = converted({"conversations": turns, "tools": json.dumps([FUNCTION])})
    assert found == {"messages": without_id(WHOLE), "tools": TOOLS}


def test_a_call_and_the_text_before_it_are_one_reply() -> None:
    # LLaMA-Factory refuses these two turns in a row, which models generate as one.
    turns = sharegpt(
        ("human", "a"), ("gpt", "Let me see."), ("function_call", CALL_TEXT), ("function_call", CALL_TEXT),
        ("observation", "1"), ("observation", "2"), ("gpt", "b"),
    )  # fmt: skip
    reply = converted({"conversations": turns})["messages"][1]
    assert reply["content"] == "Let me see."
    assert [call["function"]["name"] for call in reply["tool_calls"]] == ["weather", "weather"]
    flagged = [*turns[:1], {**turns[1], "weight": 0}, {**turns[2], "weight": 0}, *turns[4:]]
    assert converted({"conversations": flagged})["messages"][1]["weight"] == 0


@pytest.mark.parametrize(
    "reply",
    [
        {"content": "很热。", "reasoning_content": "31 度"},
        {"content": "很热。", "thinking": "31 度"},
        {"content": "很热。", "reasoning": "31 度", "reasoning_content": None},
        {"content": [{"type": "thinking", "thinking": "31 度"}, {"type": "text", "text": "很热。"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "31 度"}]}, {"text": "很热。"}]},
        {"content": [{"type": "reasoning", "text": "31 度"}, {"text": "很"}, {"type": "output_text", "text": "热。"}]},
    ],
)  # fmt: skip
def test_reasoning(reply: dict[str, Any]) -> None:
    found = converted({"messages": [ASKED, {"role": "assistant", **reply}]})
    assert found["messages"][1] == {**REPLY, "reasoning_content": "31 度"}


def test_a_system_message_anywhere_and_the_developer() -> None:
    first, later = {"role": "system", "content": "简短。"}, {"role": "system", "content": "用英语。"}
    expected = [first, ASKED, REPLY, later, ASKED, REPLY]
    assert converted({"messages": expected})["messages"] == expected
    for column in ("system", "system_prompt", "system_message"):
        assert converted({"messages": expected[1:], column: "简短。"})["messages"] == expected
    assert converted({"messages": expected[1:], "rules": "简短。"}, system="rules")["messages"] == expected
    developer = [{"role": "developer", "content": "简短。"}, ASKED, REPLY]
    assert converted({"messages": developer})["messages"] == developer
    assert converted({"prompt": [first, ASKED], "completion": "很热。"})["messages"] == [
        first, {**ASKED}, REPLY
    ]  # fmt: skip


def test_replies_in_a_row_keep_their_flags() -> None:
    replies = [{**REPLY, "weight": 0}, REPLY]
    assert converted({"messages": [ASKED, *replies]})["messages"][1:] == replies


def test_variables_of_the_template_of_one_row() -> None:
    options = {"documents": [{"title": "a", "text": "b"}]}
    for given in (options, json.dumps(options)):
        assert converted({"messages": [ASKED, REPLY], "chat_template_kwargs": given})["chat_template_kwargs"] == options


def test_structs_of_parquet_have_no_fields_of_other_rows() -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    plain = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
    rows = [{"messages": [ASKED, {**CALLED, "tool_calls": [call]}]} for call in (plain, other)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, "a.parquet")
    files = [each.row for each in task_rows(SourceSection(path=["a.parquet"]), get_task("dialogue"))]
    for found in (files, list(rows_of(table)), list(rows_of(datasets.Dataset(table)))):
        arguments = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in found if row]
        assert arguments == [{"city": "北京"}, {"x": 1}]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": WHOLE, "tools": "a tool"}, "has tools that are not functions with names"),
        ({"messages": WHOLE, "tools": [{}]}, "has tools that are not functions with names"),
        ({"messages": [ASKED, {**CALLED, "tool_calls": [{"function": {"name": "x", "arguments": "no JSON"}}]}]},
         "has in turn 2 a tool call without a name and an object of arguments"),
        ({"messages": [{"role": "system", "content": "a", "tools": TOOLS}, *WHOLE], "tools": TOOLS},
         "has tools in a turn and in a column"),
        ({"messages": WHOLE, "chat_template_kwargs": "no JSON"}, "has chat_template_kwargs that are not an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_row(row: dict[str, Any], problem: str) -> None:
    assert str(record(row).error).startswith(f"a.jsonl:1 {problem}")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ((0, {"name": "Li"}), "messages.name"),
        ((0, {"tool_calls": [CALL]}), "messages.tool_calls"),
        ((0, {"reasoning_content": "hm"}), "messages.reasoning_content"),
        ((0, {"tools": TOOLS}), "messages.tools"),
        ((1, {"refusal": "no"}), "messages.refusal"),
        ((1, {"tool_calls": [CALL | {"index": 1}]}), "messages.tool_calls.index"),
        ((1, {"tool_calls": [CALL | {"function": CALL["function"] | {"strict": True}}]}),
         "messages.tool_calls.function.strict"),
        ((1, {"reasoning": "a", "reasoning_content": "b"}), "messages.reasoning"),
        ((1, {"tool_call_id": "x"}), "messages.tool_call_id"),
        ((1, {"audio": {"id": "x"}}), "messages.audio"),
        ((2, {"weight": 1}), "messages.weight"),
        ((2, {"reasoning": "hm"}), "messages.reasoning"),
        ((2, {"is_error": True}), "messages.is_error"),
        ((3, {"annotations": ["x"]}), "messages.annotations"),
        (None, "parallel_tool_calls"),
        (None, "documents"),
        (None, "source"),
    ],
)  # fmt: skip
def test_a_field_that_is_not_used_is_named(change: tuple[int, dict[str, Any]] | None, field: str) -> None:
    messages: list[dict[str, Any]] = [{**message} for message in WHOLE]
    row: dict[str, Any] = {**OPENAI, "messages": messages}
    if change is None:
        row[field] = "x"
    else:
        messages[change[0]] |= change[1]
    found = record(row)
    assert found.row is not None, found.error
    assert found.unused == (field,)


def test_the_tools_of_alpaca() -> None:
    row = {"instruction": "a", "output": "b", "system": "s", "tools": json.dumps([FUNCTION])}
    found = converted(row)
    assert (found["tools"], found["messages"][0]["content"]) == (TOOLS, "s")
