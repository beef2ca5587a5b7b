"""Every parameter of OpenAI's calls has its effect, or is refused by name."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from openai.types import chat as chat_types
from openai.types.shared_params import FunctionDefinition

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.inference.next_tokens import next_tokens, token_logprobs
from llmkit.models.load import load_model
from llmkit.server import requests
from llmkit.server.requests import ChatRequest, CompletionRequest
from llmkit.tasks import Text
from tests.conftest import Checkpoint
from tests.server.conftest import Serve

DOCS = Path(__file__).parents[2] / "docs" / "server.md"
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


def check_parameters(client: TestClient, path: str, call: Any, body: Any, least: dict[str, Any]) -> None:
    """Every parameter of a call of OpenAI's client stands in docs/server.md: honoured, or refused by name."""
    documented = re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8").partition("## Parameters of OpenAI")[2])
    for name in inspect.signature(call).parameters.keys() - CLIENT_ONLY:
        assert name in documented, f"{name} of {path} stands in no table of docs/server.md"
        if name not in body.model_fields:
            refused = client.post(path, json={"model": "x", **least, name: {}})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)


def test_every_parameter_of_the_client_is_documented(client: TestClient) -> None:
    messages = {"messages": [{"role": "user", "content": "Hi"}]}
    check_parameters(client, "/v1/chat/completions", ChatCompletions.create, ChatRequest, messages)
    check_parameters(client, "/v1/completions", Completions.create, CompletionRequest, {"prompt": "Hi"})


FORMS: dict[str, tuple[Any, Any]] = {
    "tool": (chat_types.ChatCompletionFunctionToolParam, requests.Tool),
    "function": (FunctionDefinition, requests.Function),
    "call": (chat_types.ChatCompletionMessageFunctionToolCallParam, requests.ToolCall),
    "system": (chat_types.ChatCompletionSystemMessageParam, requests.Instruction),
    "developer": (chat_types.ChatCompletionDeveloperMessageParam, requests.Instruction),
    "user": (chat_types.ChatCompletionUserMessageParam, requests.UserMessage),
    "assistant": (chat_types.ChatCompletionAssistantMessageParam, requests.AssistantMessage),
    "result": (chat_types.ChatCompletionToolMessageParam, requests.ToolMessage),
    "text": (chat_types.ChatCompletionContentPartTextParam, requests.TextPart),
    "stream": (chat_types.ChatCompletionStreamOptionsParam, requests.StreamOptions),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_field_of_the_client_is_known_or_refused(name: str) -> None:
    """A field of a newer client fails here, until it is honoured or added to those that are refused."""
    theirs, ours = FORMS[name]
    left = {
        "system": {"name"}, "developer": {"name"}, "user": {"name"},
        "assistant": {"name", "audio", "function_call", "refusal"}, "text": {"prompt_cache_breakpoint"},
    }  # fmt: skip
    assert theirs.__annotations__.keys() - ours.model_fields.keys() == left.get(name, set())


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


def test_token_ids_are_prompts(client: TestClient) -> None:
    """Also in a list, and exactly those ids: texts of them may be tokenized otherwise."""
    (name,) = client.models  # type: ignore[attr-defined]
    least = {"model": name, "temperature": 0, "max_tokens": 4, "echo": True}

    def complete(prompt: Any) -> Any:
        found = client.post("/v1/completions", json=least | {"prompt": prompt})
        assert found.status_code == 200, found.text
        return found.json()

    ids = [client.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in ("The quick", "今天")]
    texts = [each["text"] for each in complete(["The quick", "今天"])["choices"]]
    assert [each["text"] for each in complete(ids)["choices"]] == texts
    assert complete(ids[0])["choices"][0]["text"] == texts[0]
    letters = [number for text in "The" for number in client.post("/tokenize", json={"prompt": text}).json()["tokens"]]
    assert complete(letters)["usage"]["prompt_tokens"] == 3
    outside = client.post("/v1/completions", json=least | {"prompt": [10**6]})
    assert (outside.status_code, outside.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("tokens", [0, 1])
def test_log_probabilities_of_prompts_are_those_of_next(tokens: int, client: TestClient) -> None:
    """As evaluation harnesses ask for them: ``echo`` with ``logprobs``, and ``max_tokens`` of 0 or 1."""
    (name,) = client.models  # type: ignore[attr-defined]
    ids = client.post("/tokenize", json={"prompt": "The quick 今天 fox"}).json()["tokens"]
    least = {"model": name, "temperature": 0, "seed": 1, "max_tokens": tokens, "logprobs": 2, "echo": True}
    body = client.post("/v1/completions", json=least | {"prompt": [ids, ids[:1]]}).json()
    choice, short = body["choices"]
    assert body["usage"]["prompt_tokens"] == len(ids) + 1
    found = choice["logprobs"]
    assert (len(found["tokens"]), len(short["logprobs"]["tokens"])) == (len(ids) + tokens, 1 + tokens)
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    (served,) = client.models.values()  # type: ignore[attr-defined]
    for place in range(1, len(ids)):
        every = {each.id: each for each in next_tokens(served.engine.loaded, Text("", ids=tuple(ids[:place])), top=400)}
        assert math.exp(found["token_logprobs"][place]) == pytest.approx(every[ids[place]].probability, abs=1e-4)
        assert max(found["top_logprobs"][place].values()) == pytest.approx(
            math.log(next(iter(every.values())).probability), abs=1e-4
        )
    offsets, text = found["text_offset"], choice["text"]
    for token, start in zip(found["tokens"], offsets, strict=True):
        assert token.startswith("<") or text.startswith(token, start)


def test_log_probabilities_of_prompts_in_parts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits of a long prompt never exist at once."""
    loaded = load_model(LoadSettings(model=str(checkpoint("gpt2")), device="cpu", dtype="float32"), "text-generation")
    text = Text("The quick brown fox jumps over the lazy dog. " * 2)
    whole = token_logprobs(loaded, text, top=1)
    monkeypatch.setattr("llmkit.heads.objective.CHUNK", 1)
    monkeypatch.setattr("llmkit.heads.projection.CHUNK", 1)
    monkeypatch.setattr("llmkit.inference.next_tokens._LOGITS", 1000)
    parts = token_logprobs(loaded, text, top=1)
    assert [each.logprob for each in parts[1:]] == pytest.approx([each.logprob for each in whole[1:]], abs=1e-5)


def test_encoders_have_no_log_probabilities_of_prompts(checkpoint: Checkpoint, serve: Serve) -> None:
    client = serve(checkpoint("t5"))
    (name,) = client.models  # type: ignore[attr-defined]
    found = client.post("/v1/completions", json={"model": name, "prompt": "a", "echo": True, "logprobs": 0})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "not_supported")
