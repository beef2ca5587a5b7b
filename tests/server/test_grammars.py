"""Requests whose answers a grammar restricts: compiled beside the model's thread, and refused by name."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.conftest import Checkpoint
from tests.server.conftest import Serve


@pytest.fixture
def client(checkpoint: Checkpoint, serve: Serve) -> TestClient:
    return serve(checkpoint("gpt2", chat=True, n_positions=512))


def test_others_are_answered_while_a_grammar_is_compiled(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, model),) = client.models.items()  # type: ignore[attr-defined]
    check, begun, may_end = model.engine.check, threading.Event(), threading.Event()

    def slow(settings: Any) -> None:
        if settings.regex is not None and not may_end.is_set():
            begun.set()
            assert may_end.wait(30)
        check(settings)

    monkeypatch.setattr(model.engine, "check", slow)
    body = {"prompt": "Where", "temperature": 0, "max_new_tokens": 8}
    with ThreadPoolExecutor(1) as pool:
        restricted = pool.submit(client.post, "/v1/generate", json=body | {"regex": "[0-9]{4}"})
        assert begun.wait(30)
        assert client.post("/v1/generate", json=body).json()["usage"]["completion_tokens"] > 0
        assert not restricted.done()
        may_end.set()
        assert restricted.result().json()["text"].isdigit()


def test_grammars_of_one_batch_do_not_mix(client: TestClient) -> None:
    asked: list[dict[str, Any]] = [{"regex": f"{letter}{{{3 + number}}}"} for number, letter in enumerate("abcd")]
    asked += [{"choice": ["yes", "yes, please"]}, {"json_schema": {"type": "null"}}]

    def ask(own: dict[str, Any]) -> tuple[str, str]:
        body = {"prompt": "Where", "temperature": 0, "max_new_tokens": 40}
        found = client.post("/v1/generate", json=body | own).json()
        return found["text"], found["finish_reason"]

    alone = [ask(own) for own in asked]
    assert [text for text, _ in alone[:4]] == ["aaa", "bbbb", "ccccc", "dddddd"]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, asked)) == alone


@pytest.mark.parametrize(
    ("own", "param", "reason"),
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema", "uniqueItems"),
        ({"regex": "(?=a)b"}, "regex", "look-around"),
        ({"regex": "("}, "regex", "unclosed group"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(
    own: dict[str, Any], param: str, reason: str, client: TestClient
) -> None:
    found = client.post("/v1/generate", json={"prompt": "Where"} | own)
    error = found.json()["error"]
    assert (found.status_code, error["param"], error["code"]) == (400, param, "not_supported")
    assert reason in error["message"]


def test_a_schema_of_a_conversation_is_refused_as_its_response_format(client: TestClient) -> None:
    (name,) = client.models  # type: ignore[attr-defined]
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"minProperties": 2, "type": "object"}}}
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "response_format": wanted}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["param"], "minProperties" in error["message"]) == ("response_format", True)


def test_an_output_that_cannot_go_on_does_not_end_the_others(client: TestClient) -> None:
    """A name that ``properties`` and ``patternProperties`` both allow is a dead end of llguidance."""
    schema = {
        "type": "object",
        "properties": {"score": {"const": 5}},
        "patternProperties": {"^score$": {"const": 5}},
        "required": ["score"],
        "additionalProperties": False,
    }
    body = {"prompt": "Where", "temperature": 0, "max_new_tokens": 60}
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(client.post, "/v1/generate", json=body)
        answer = client.post("/v1/generate", json=body | {"json_schema": schema})
    assert good.result().status_code == 200
    if answer.status_code == 200:  # the model did not go into it
        assert json.loads(answer.json()["text"]) == {"score": 5}
    else:
        assert "cannot be enforced here" in answer.json()["error"]["message"]
