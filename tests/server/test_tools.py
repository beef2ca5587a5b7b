"""Tools over OpenAI's API: calls that must be made, and their forms in answers and streams."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from tests.conftest import Checkpoint
from tests.heads.tool_templates import HERMES, QWEN_CODER
from tests.server.conftest import Serve
from tests.server.test_parity import events_of

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"enum": ["北京", "Paris"]}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "?", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "additionalProperties": False}}},
]
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 600}


def folder(checkpoint: Checkpoint, tmp_path: Path, template: str) -> Path:
    """A byte-level model with a template."""
    copy = shutil.copytree(checkpoint("gpt2", chat=True, n_positions=2048), tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(copy)
    return copy


@pytest.fixture
def client(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> TestClient:
    return serve(folder(checkpoint, tmp_path, HERMES))


def post(client: TestClient, **body: Any) -> Any:
    (name,) = client.models  # type: ignore[attr-defined]
    return client.post("/v1/chat/completions", json={"model": name, "tools": TOOLS, **ASK, **body})


def call_of(choice: Any) -> tuple[str, Any]:
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    return call["function"]["name"], json.loads(call["function"]["arguments"])


def test_a_call_is_made_where_it_must(client: TestClient) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = post(client, tool_choice=choice)
        assert found.status_code == 200, found.text
        name, arguments = call_of(found.json()["choices"][0])
        assert name in ("weather", "now")
        if name == "weather":
            assert (arguments["city"] in ("北京", "Paris"), arguments["days"] in (1, 2)) == (True, True)
    assert name == "weather"
    several = post(client, tool_choice="required", temperature=1.5, seed=1, n=8).json()["choices"]
    assert {call_of(each)[0] for each in several} == {"weather", "now"}
    named = {"type": "function", "function": {"name": "now"}}
    assert call_of(post(client, tool_choice=named, parallel_tool_calls=False).json()["choices"][0]) == ("now", {})
    *_, last = events_of(post(client, tool_choice=named, stream=True).text)
    (call,) = last["choices"][0]["delta"]["tool_calls"]
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "now")
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_without_a_choice_the_model_may_write_text(client: TestClient) -> None:
    tools = [{**TOOLS[1]}]
    texts = [post(client, tools=tools, max_tokens=8, tool_choice=choice).json() for choice in ("none", "auto")]
    assert all(text["choices"][0]["message"]["content"] for text in texts)
    assert texts[0]["usage"]["prompt_tokens"] < texts[1]["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "strict tools require"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "no tool x"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "each determine the whole output"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "x", "parameters": {"uniqueItems": True}}}],
            },
            "uniqueItems",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(changes: dict[str, Any], message: str, client: TestClient) -> None:
    found = post(client, **changes)
    assert (found.status_code, message in found.json()["error"]["message"]) == (400, True), found.text


def test_an_unknown_form_of_calls_is_refused(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> None:
    found = post(serve(folder(checkpoint, tmp_path, QWEN_CODER)), tool_choice="required")
    assert (found.status_code, found.json()["error"]["code"]) == (400, "not_supported")


def test_results_of_calls_are_sent_back(client: TestClient) -> None:
    """With null content, as clients do; the calls and results are in the prompt."""
    function = {"name": "now", "arguments": "{}"}
    history = [
        *ASK["messages"],
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call00001", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": [{"type": "text", "text": "noon"}], "name": "now"},
    ]
    found = post(client, messages=history, tools=TOOLS[1:], max_tokens=8)
    assert found.status_code == 200, found.text
    short = post(client, tools=TOOLS[1:], max_tokens=8).json()
    assert found.json()["usage"]["prompt_tokens"] > short["usage"]["prompt_tokens"]
    function["arguments"] = "{"
    assert post(client, messages=history, tools=TOOLS[1:]).status_code == 400
