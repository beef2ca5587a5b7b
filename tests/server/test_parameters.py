"""Every parameter of OpenAI's calls has its effect, or is refused by name."""

from __future__ import annotations

import inspect
import json
import math
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

import llmkit
from llmkit.server.requests import ChatRequest, CompletionRequest
from tests.conftest import Checkpoint
from tests.server.conftest import Serve

CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
ASK = {"messages": [{"role": "user", "content": "The quick brown fox"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture
def client(checkpoint: Checkpoint, serve: Serve) -> TestClient:
    """Of a byte-level model, so that it can be constrained."""
    return serve(checkpoint("gpt2", chat=True, n_positions=512))


def ask(client: TestClient, **parameters: Any) -> Any:
    (name,) = client.models  # type: ignore[attr-defined]
    found = client.post("/v1/chat/completions", json={"model": name, **ASK, **parameters})
    assert found.status_code == 200, found.text
    return found.json()


def text_of(body: Any, index: int = 0) -> str:
    return str(body["choices"][index]["message"]["content"])


@pytest.mark.parametrize(
    ("call", "body"), [(ChatCompletions.create, ChatRequest), (Completions.create, CompletionRequest)]
)
def test_every_parameter_of_the_client_is_known_or_refused_by_name(call: Any, body: Any, client: TestClient) -> None:
    path = "/v1/chat/completions" if body is ChatRequest else "/v1/completions"
    least = {"model": "x", "messages": [{"role": "user", "content": "Hi"}]}
    least = least if body is ChatRequest else {"model": "x", "prompt": "Hi"}
    for name in inspect.signature(call).parameters.keys() - CLIENT_ONLY - body.model_fields.keys():
        refused = client.post(path, json={**least, name: {}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_sampling_parameters_have_effects(client: TestClient) -> None:
    plain = ask(client)
    assert ask(client)["choices"] == plain["choices"]
    sampled = {"temperature": 1.5, "seed": 1, "max_tokens": 12}
    assert text_of(ask(client, **sampled)) == text_of(ask(client, **sampled))
    assert len({text_of(ask(client, **sampled | {"seed": seed})) for seed in range(5)}) > 1
    several = ask(client, **sampled, n=3)
    assert [each["index"] for each in several["choices"]] == [0, 1, 2]
    assert len({text_of(several, index) for index in range(3)}) > 1
    assert text_of(ask(client, **sampled | {"top_p": 1e-9})) == text_of(ask(client, max_tokens=12))
    assert ask(client, max_completion_tokens=2, max_tokens=None)["usage"]["completion_tokens"] <= 2


def test_log_probabilities_are_those_of_next(client: TestClient) -> None:
    (name,) = client.models  # type: ignore[attr-defined]
    body = {"model": name, "prompt": "The quick", "temperature": 0, "max_tokens": 1, "logprobs": 3}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    expected = client.post("/v1/next", json={"prompt": "The quick", "top": 3}).json()["tokens"]
    found = choice["logprobs"]["top_logprobs"][0]
    assert list(found) == [each["text"] for each in expected]

    assert [math.exp(value) for value in found.values()] == pytest.approx(
        [each["probability"] for each in expected], abs=1e-4
    )
    chat = ask(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert all(len(each["top_logprobs"]) == 2 for each in chat)
    content = b"".join(bytes(each["bytes"]) for each in chat)
    assert content.decode(errors="replace").strip() == text_of(ask(client))


def test_biases_and_penalties_have_effects(client: TestClient) -> None:
    least = {"prompt": "The quick", "temperature": 0, "max_new_tokens": 1, "logprobs": 0}
    (token,) = client.post("/v1/generate", json=least).json()["logprobs"]
    biased = client.post("/v1/generate", json=least | {"logit_bias": {str(token["id"]): -100}}).json()["logprobs"]
    assert biased[0]["id"] != token["id"]
    plain, *others = (
        text_of(ask(client, max_tokens=40, **penalty))
        for penalty in ({}, {"frequency_penalty": 2}, {"presence_penalty": 2})
    )
    assert any(other != plain for other in others)
    outside = {"model": next(iter(client.models)), **ASK, "logit_bias": {"99999": 1}}  # type: ignore[attr-defined]
    assert client.post("/v1/chat/completions", json=outside).status_code == 400
    assert text_of(ask(client, max_tokens=40)) == plain


def test_outputs_conform_to_response_formats(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = ask(client, response_format=wanted, max_tokens=200)
    assert json.loads(text_of(body))["a"] in ("x", "yy")
    refused = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"uniqueItems": True}}}
    (name,) = client.models  # type: ignore[attr-defined]
    found = client.post("/v1/chat/completions", json={"model": name, **ASK, "response_format": refused})
    assert found.status_code == 400
    assert "uniqueItems" in found.json()["error"]["message"]


def test_prompts_may_be_several_and_echoed(client: TestClient) -> None:
    (name,) = client.models  # type: ignore[attr-defined]
    prompts = ["The quick", "今天"]
    body = {"model": name, "prompt": prompts, "temperature": 0, "max_tokens": 4, "echo": True}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        alone = llmkit.load("generate", name, raw=True, temperature=0, max_new_tokens=4, device="cpu", dtype="float32")
        assert choice["text"] == f"{prompt}{alone(prompt).text}"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 2}, None),  # greedy: the same text twice
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{}]}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "Hi", "audio": {}}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, None),
        ({"messages": []}, "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, None),  # the template has none
        ({"prompt_cache_key": "x"}, "prompt_cache_key"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], param: str | None, client: TestClient) -> None:
    (name,) = client.models  # type: ignore[attr-defined]
    found = client.post("/v1/chat/completions", json={"model": name, **ASK, **changes})
    assert found.status_code == 400, found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert param is None or found.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"",
        b"[]",
        b'{"model": "x", "messages": 5}',
        b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "x", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b"[" * 300_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
    ],
)
def test_malformed_bodies_are_refused(content: bytes, client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    found = client.post("/v1/chat/completions", content=content, headers=headers)
    assert (found.status_code, found.json()["error"]["type"]) == (400, "invalid_request_error")


def test_limits_of_prompts_and_bodies(checkpoint: Checkpoint, serve: Serve) -> None:
    client = serve(checkpoint("gpt2", chat=True, n_positions=512), max_body=20_000)
    (name,) = client.models  # type: ignore[attr-defined]
    long = {"model": name, "messages": [{"role": "user", "content": "fox " * 2000}]}
    found = client.post("/v1/chat/completions", json=long)
    assert found.status_code == 400
    assert re.search(r"\d{4} tokens .* 511", found.json()["error"]["message"])
    assert client.post("/v1/chat/completions", json={**long, "x": "y" * 20_000}).status_code == 413
    assert client.post("/v1/chat/completions", json=long | {"model": "/etc"}).status_code == 404
    assert client.get("/docs").status_code == 404
