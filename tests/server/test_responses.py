"""OpenAI's responses: the same answers as chat completions, with the items and events that its client takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai.resources.responses import Responses
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llmkit.server.responses_request import ResponseRequest
from tests.conftest import Checkpoint
from tests.heads.tool_templates import HERMES
from tests.server.conftest import Serve
from tests.server.test_parameters import check_parameters
from tests.server.test_tools import TOOLS, folder

ASK: dict[str, Any] = {"input": "The quick brown fox", "temperature": 0, "max_output_tokens": 12}
TOOL = {"type": "function", **TOOLS[1]["function"], "strict": False}


@pytest.fixture
def client(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> TestClient:
    return serve(folder(checkpoint, tmp_path, HERMES))


def post(client: TestClient, **body: Any) -> Any:
    (name,) = client.models  # type: ignore[attr-defined]
    return client.post("/v1/responses", json={"model": name, **ASK, **body})


def answer(client: TestClient, **body: Any) -> Response:
    """A response, which OpenAI's types take without a change."""
    found = post(client, **body)
    assert found.status_code == 200, found.text
    return Response.model_validate(found.json(), strict=False)


def chat(client: TestClient, **body: Any) -> Any:
    (name,) = client.models  # type: ignore[attr-defined]
    least = {"model": name, "messages": [{"role": "user", "content": ASK["input"]}], "temperature": 0, "max_tokens": 12}
    return client.post("/v1/chat/completions", json=least | body).json()


def test_responses_are_the_answers_of_chat_completions(client: TestClient) -> None:
    found, expected = answer(client), chat(client)
    assert found.output_text == expected["choices"][0]["message"]["content"]
    assert (found.status, found.incomplete_details and found.incomplete_details.reason) == (
        ("incomplete", "max_output_tokens")
        if expected["choices"][0]["finish_reason"] == "length"
        else ("completed", None)
    )
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        expected["usage"]["prompt_tokens"],
        expected["usage"]["completion_tokens"],
    )
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        found.output[0].model_dump(exclude_none=True),
        {"type": "message", "role": "user", "content": "Go on."},
    ]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": found.output_text},
        {"role": "user", "content": "Go on."},
    ]
    whole = answer(client, input=items, instructions="Be brief.")
    assert whole.output_text == chat(client, messages=messages)["choices"][0]["message"]["content"]
    assert whole.instructions == "Be brief."


def test_settings_have_effects(client: TestClient) -> None:
    sampled = {"temperature": 1.5, "top_p": 1e-9}
    assert answer(client, **sampled).output_text == answer(client).output_text
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    found = answer(client, text={"format": form}, max_output_tokens=400)
    assert '"x"' in found.output_text
    assert found.text is not None
    (message,) = answer(client, include=["message.output_text.logprobs"], top_logprobs=2).output
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert [len(each.top_logprobs) for each in message.content[0].logprobs or ()] == [2] * 12


def test_calls_and_their_results(client: TestClient) -> None:
    for choice in ("required", {"type": "function", "name": "now"}):
        found = answer(client, tools=[TOOL], tool_choice=choice, max_output_tokens=200)
        call: Any = found.output[0]
        assert len(found.output) == 1
        assert call.type == "function_call"
        assert (call.name, call.arguments, found.status) == ("now", "{}", "completed")
    history = [
        {"role": "user", "content": "Hi"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
    ]
    assert answer(client, tools=[TOOL], input=history).output_text


@pytest.mark.parametrize("body", [{}, {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200}])
def test_streams_have_the_events_of_openai_in_order(body: dict[str, Any], client: TestClient) -> None:
    whole = answer(client, **body)
    text = post(client, **body, stream=True).text
    blocks = [block.split("\n", 1) for block in text.strip().split("\n\n")]
    taken: Any = TypeAdapter(ResponseStreamEvent)
    events = [taken.validate_json(data.removeprefix("data: ")) for _, data in blocks]
    assert [event.type for event in events] == [name.removeprefix("event: ") for name, _ in blocks]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type.removeprefix("response.") for event in events]
    delta = "function_call_arguments" if body else "output_text"
    part = [] if body else ["content_part.added"], [] if body else ["content_part.done"]
    assert types[:2] == ["created", "in_progress"]
    middle = [kind for kind in types[2:-1] if kind != f"{delta}.delta"]
    assert middle == ["output_item.added", *part[0], f"{delta}.done", *part[1], "output_item.done"]
    assert types[-1] == whole.status
    assert "".join(event.delta for event in events if event.type == f"response.{delta}.delta") == (
        "{}" if body else whole.output_text
    )
    last: Any = events[-1].response
    assert [each.type for each in last.output] == [each.type for each in whole.output]
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens  # a shared beginning may be cached by now


def test_the_client_of_openai(client: TestClient) -> None:
    api = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="x", http_client=client)
    (name,) = client.models  # type: ignore[attr-defined]
    form = {"type": "json_schema", "name": "n", "schema": {"enum": ["a fox"]}, "strict": True}
    ask: Any = {"model": name, **ASK, "max_output_tokens": 100, "text": {"format": form}}
    whole = api.responses.create(**ask)
    with api.responses.stream(**ask) as stream:
        assert "".join(each.delta for each in stream if each.type == "response.output_text.delta") == whole.output_text
        assert stream.get_final_response().output_text == whole.output_text


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"tools": [{"type": "web_search", "name": "x"}]}, "tools.0.type"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "id": "1", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "1"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, Any], param: str, client: TestClient) -> None:
    found = post(client, **changes)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text


def test_every_parameter_of_the_client_is_documented(client: TestClient) -> None:
    check_parameters(client, "/v1/responses", Responses.create, ResponseRequest, {"input": "Hi"})
