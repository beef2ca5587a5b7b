"""What cannot be done is refused by name, with OpenAI's error object; nothing is ignored, cut or guessed."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Checkpoint
from tests.server.conftest import Serve

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture
def client(checkpoint: Checkpoint, serve: Serve) -> TestClient:
    return serve(checkpoint("gpt2", chat=True, n_positions=512))


def post(client: TestClient, path: str, body: Any = None, **arguments: Any) -> Any:
    """The answer to a body that names the model."""
    (name,) = client.models  # type: ignore[attr-defined]
    return client.post(path, json=None if body is None else {"model": name, **body}, **arguments)


def refused(found: Any, status: int = 400) -> dict[str, Any]:
    """The error of an answer."""
    assert found.status_code == status, found.text
    (error,) = found.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    return dict(error)


def user(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi", **more}]}


TOOL = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"n": 2}, None),  # greedy: the same text twice
        ({"n": 10**9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 5}, "max_tokens"),
        ({"stop": ""}, None),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"fox": 1}}, None),
        ({"logit_bias": {"99999": 1}}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL]}, None),  # the template has none
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "high"}, None),  # the template has none
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        (user(content=None), "messages.0.content"),
        (user(content=[]), "messages.0.content"),
        (user(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages.0.content.0.type"),
        (user(content=[{"type": "input_audio", "input_audio": {}}]), "messages.0.content.0.type"),
        (user(content=[{"type": "text", "text": "Hi", "cache_control": {}}]), "messages.0.content.0.cache_control"),
        (user(name="Anna"), "messages.0.name"),
        (user(role="robot"), "messages.0"),
        (user(role="function", name="x"), "messages.0"),
        (user(role="tool"), "messages.0.tool_call_id"),
        ({"messages": [{"content": "Hi"}]}, "messages.0"),
        (user(role="assistant", refusal="No."), "messages.0.refusal"),
        (user(role="assistant", function_call={"name": "x", "arguments": ""}), "messages.0.function_call"),
        (user(role="assistant", tool_calls=[{"id": "1", "type": "custom"}]), "messages.0.tool_calls.0.type"),
    ],
)
def test_parameters_that_have_no_effect_are_refused_by_name(
    changes: dict[str, Any], param: str | None, client: TestClient
) -> None:
    assert refused(post(client, CHAT, {**ASK, **changes}))["param"] == param


@pytest.mark.parametrize(
    "changes",
    [
        {"stop": None, "stream_options": None, "max_completion_tokens": None, "functions": None, "tools": None},
        {"stop": [], "logit_bias": {}, "service_tier": "auto", "store": False, "modalities": ["text"]},
        {"response_format": {"type": "text"}, "top_p": 1, "n": 1, "presence_penalty": 0},
        {"max_tokens": 2**31 - 1, "stop": "fox"},
        # A dumped answer of OpenAI's client; open-webui, LangChain and others send such histories.
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "Hello."}],
                    "refusal": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                    "annotations": [],
                },
                {"role": "system", "content": "Now be long."},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": "Go on."},
            ]
        },
    ],
)
def test_what_clients_send_without_a_meaning_is_accepted(changes: dict[str, Any], client: TestClient) -> None:
    found = post(client, CHAT, {**ASK, **changes})
    assert found.status_code == 200, found.text


def test_task_settings_are_refused_by_name(client: TestClient) -> None:
    for changes in ({"max_new_tokens": 10**30}, {"num_return_sequences": 10**9}, {"temperature": -1}, {"top_k": 0.5}):
        found = post(client, "/v1/generate", {"prompt": "Hi", **changes})
        assert refused(found)["param"] == next(iter(changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be parsed"),
        (b"", "the body"),
        (b"[]", "the body"),
        (b"null", "the body"),
        (b'{"model": "x", "messages": 5}', "messages"),
        (
            b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "messages.0.content: a lone surrogate",
        ),
        (b'{"model": "\\ud800", "messages": []}', "lone surrogate"),
        (b'{"model": "x", "temperature": NaN}', "NaN is not a number"),
        (b'{"model": "x", "temperature": -Infinity}', "-Infinity is not a number"),
        (b'{"model": "x", "temperature": 1e999}', "too large"),
        (b'{"model": "x", "seed": ' + b"9" * 5000 + b"}", "cannot be parsed"),
        (b'{"model": "x", "model": "y"}', "the key 'model' occurs twice"),
        (b"[" * 1_000_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"model": "x"}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_malformed_bodies_are_refused(content: bytes, message: str, client: TestClient) -> None:
    error = refused(client.post(CHAT, content=content, headers={"content-type": "application/json"}))
    assert message in error["message"]


def test_empty_prompts_are_refused(client: TestClient) -> None:
    assert refused(post(client, "/v1/next", {"prompt": ""}))["code"] == "empty_input"
    for more in ({}, {"echo": True, "logprobs": 1, "max_tokens": 0}):
        assert refused(post(client, TEXT, {"prompt": "", **more}))["code"] == "empty_input"


def test_bodies_that_are_not_plain_json_are_refused(client: TestClient) -> None:
    body = json.dumps({"model": "x", **ASK}).encode()
    for kind in (
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data",
        "",
        "application/json;",
        "x",
    ):
        found = client.post(CHAT, content=body, headers={"content-type": kind})
        if kind.startswith("application/json"):
            assert refused(found, 404)["param"] == "model"
        else:
            assert "Content-Type: application/json" in refused(found, 415)["message"]
    packed = {"content-type": "application/json", "content-encoding": "gzip"}
    assert "gzip" in refused(client.post(CHAT, content=gzip.compress(body), headers=packed), 415)["message"]


def test_other_methods_and_paths(client: TestClient) -> None:
    found = client.get(CHAT)
    assert (refused(found, 405)["param"], found.headers["Allow"]) == (None, "POST")
    assert client.head("/v1/models").status_code == 405
    assert client.options(CHAT).status_code == 405
    for path in (
        "/docs",
        "/v1/embeddings",
        "/v1/load_model",
        "/v1/models/%2Fetc%2Fpasswd",
        "/v1/chat/completions/x",
    ):
        assert client.post(path, json={}).status_code in (404, 405)
        refused(client.get(path), 404)


def test_limits_of_prompts_and_bodies(checkpoint: Checkpoint, serve: Serve) -> None:
    client = serve(checkpoint("gpt2", chat=True, n_positions=512), max_body=20_000)
    long = {"messages": [{"role": "user", "content": "fox " * 2000}]}
    assert re.search(r"\d{4} tokens .* 511", refused(post(client, CHAT, long))["message"])
    whole = json.dumps({**long, "x": "y" * 20_000}).encode()
    for body in (whole, iter([whole[:9000], whole[9000:]])):  # the length announced, and not
        found = client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert "20000 bytes" in refused(found, 413)["message"]
    for name in ("/etc", "starter", "https://example.org/model", "../x", ""):
        assert refused(post(client, CHAT, {**ASK, "model": name}), 404)["code"] == "model_not_found"


def test_the_schema_documents_answers_and_errors(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            found = operation["responses"]
            assert {"200", "401", "403"} <= found.keys(), path
            assert "422" not in found
            if method == "post":
                assert {"400", "404", "413", "415", "429", "500", "503", "504"} <= found.keys(), path
                assert found["200"]["content"]["application/json"]["schema"], path
