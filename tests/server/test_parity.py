"""The server answers as the commands do: alone, many at once, and streamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import llmkit
from llmkit.errors import LlmkitError
from tests.conftest import Checkpoint
from tests.server.conftest import Serve

TEXTS = (
    "The quick brown fox jumps over the dog.",
    "今天天气很好，我们去公园散步。",
    "Where?",
    "She said no 🙂!",
)
PROMPTS = (
    *TEXTS,
    " ",
    "\n",
    "\t\n  x",
    ".",
    "a",
    "？",
    "🙂",
    "👩‍👩‍👧 and 🇨🇳",
    "  leading and trailing  ",
    "line one\nline two\r\nline three",
    "What is the meaning of life? " * 4,
    "今天天气很好。" * 8,
    "12345 67.89e-1",
    '{"a": [1, null], "b": "c"}',
    "<b>bold</b> & &amp;",
    "Le café est fermé. Où est la bibliothèque?",
    "e\u0301 against é",
    "مرحبا بالعالم",
    "Привет, мир",
    "こんにちは世界",
    "zero\u200bwidth\ufeff",
    "https://example.com/a?b=c#d",
    "```python\nprint(1)\n```",
    "|a|b|\n|---|---|\n|1|2|",
    "UPPER lower MiXeD",
    "…—“quotes”",
    "tail\n\n\n",
    "fox " * 20,
    "\\ backslash \\n",
)
"""Empty ones are refused by command and server alike."""
OPTIONS: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}


def row(verb: str, text: str) -> dict[str, Any]:
    return {
        "generate": {"prompt": text},
        "summarize": {"document": text},
        "answer": {"question": "Who?", "context": text},
        "translate": {"source": text},
    }[verb]


@pytest.mark.parametrize(
    ("verb", "family", "own"),
    [
        ("generate", "llama", {}),
        ("summarize", "llama", {"length": "short"}),
        ("answer", "llama", {}),
        ("summarize", "t5", {}),
        ("translate", "m2m_100", {}),
        ("answer", "bert", {}),
    ],
)
def test_tasks_answer_as_commands_do(
    verb: str, family: str, own: dict[str, Any], checkpoint: Checkpoint, serve: Serve
) -> None:
    folder = str(checkpoint(family, **({"chat": True, "max_position_embeddings": 1024} if family == "llama" else {})))
    options = {} if family == "bert" else OPTIONS | own
    if verb == "translate":
        options |= {"source": "en", "target": "fr"}
    pipeline = llmkit.load(verb, folder, device="cpu", dtype="float32", **options)
    assert len(PROMPTS) >= 32
    expected = [outcome(partial(pipeline, row(verb, text))) for text in PROMPTS]
    if verb == "translate":  # a column and a setting have one name
        options = {name: value for name, value in options.items() if name != "source"} | {"source_lang": "en"}
    client = serve(folder)

    def ask(text: str) -> Any:
        found = client.post(f"/v1/{verb}", json=row(verb, text) | options).json()
        return found["error"]["code"] if "error" in found else uncached(found)

    assert [ask(text) for text in PROMPTS] == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, PROMPTS)) == expected
    for text, whole in zip(PROMPTS[:8], expected, strict=False):
        if isinstance(whole, str):
            continue
        events = events_of(client.post(f"/v1/{verb}", json=row(verb, text) | options | {"stream": True}).text)
        assert uncached(events[-1]) == whole
        assert "".join(event["text"] for event in events[:-1]) == whole["text"]


def uncached(answer: Any) -> Any:
    """An answer without the count of tokens that an earlier request had processed."""
    answer["usage"].pop("cached_tokens", None)
    return answer


def outcome(answer: Callable[[], Any]) -> Any:
    """What an answer has in JSON, or the code of its error."""
    try:
        return answer().to_dict()
    except LlmkitError as error:
        return error.code


def events_of(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_conversation_is_answered_as_in_python(checkpoint: Checkpoint, serve: Serve) -> None:
    folder = str(checkpoint("llama", chat=True, max_position_embeddings=1024))
    pipeline = llmkit.load("chat", folder, device="cpu", dtype="float32", **OPTIONS)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": TEXTS[1]},
    ]
    expected = pipeline({"messages": messages})
    client = serve(folder)
    body = {"model": folder, "messages": messages, "temperature": 0, "max_tokens": 12}
    found = client.post("/v1/chat/completions", json=body).json()
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["completion_tokens"] == expected.usage.completion_tokens
    parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    assert client.post("/v1/chat/completions", json=body | {"messages": parts}).json()["choices"] == found["choices"]
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(client.post("/v1/chat/completions", json=streamed).text)
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(deltas) == expected.text
    assert events[-2]["choices"][0]["finish_reason"] == found["choices"][0]["finish_reason"]
    assert events[-1]["usage"]["completion_tokens"] == found["usage"]["completion_tokens"]
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_no_part_of_a_stop_string_is_sent(checkpoint: Checkpoint, serve: Serve) -> None:
    folder = str(checkpoint("llama", chat=True, max_position_embeddings=1024))
    client = serve(folder)
    body: dict[str, Any] = {"model": folder, "prompt": TEXTS[0], "temperature": 0, "max_tokens": 30}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    for stop in (text[6:11], text[2:9], text[-4:]):
        events = events_of(client.post("/v1/completions", json=body | {"stop": stop, "stream": True}).text)
        assert "".join(event["choices"][0]["text"] for event in events) == text.partition(stop)[0]


def test_characters_of_several_tokens_are_streamed_whole(checkpoint: Checkpoint, serve: Serve) -> None:
    text = "天气🙂👩‍👩‍👧é"
    client = serve(checkpoint("gpt2", chat=True, n_positions=512))  # its tokens are bytes
    body = {"prompt": TEXTS[1], "choice": [text], "temperature": 0, "max_new_tokens": 80, "stream": True}
    events = events_of(client.post("/v1/generate", json=body).text)
    pieces = [event["text"] for event in events[:-1]]
    assert events[-1]["usage"]["completion_tokens"] > len(text)
    assert "".join(pieces) == events[-1]["text"] == text
    assert not any("\ufffd" in piece for piece in pieces)
