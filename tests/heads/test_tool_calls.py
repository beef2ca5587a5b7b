"""Calls of tools in the forms of many models: what a template renders is parsed back, however the text arrives."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from llmkit.errors import UsageError
from llmkit.heads.tool_calls import CallSplitter, call_splitter, forced_calls
from llmkit.tasks import Chat, Message
from tests.conftest import Checkpoint
from tests.heads.tool_templates import HERMES, LLAMA, MISTRAL, NO_CALLS, QWEN_CODER, TEMPLATES

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查天气",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "hourly": {"type": "boolean"},
                "units": {"type": ["object", "null"]},
            },
        },
    },
}
NOW = {"type": "function", "function": {"name": "time.now", "parameters": {"type": "object", "properties": {}}}}
TOOLS = (WEATHER, NOW)
CALLS: list[tuple[str, dict[str, Any]]] = [
    # Text that looks like the form of calls (vllm#21544), quotes, line breaks; no arguments (vllm#28806).
    ("get_weather", {"city": '北京 "市" {test1,\n</tool>', "days": 3, "hourly": True, "units": {"风": ["m/s", None]}}),
    ("time.now", {}),
]


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint("llama"))


def splitter(tokenizer: Any, template: str, *before: Message) -> CallSplitter:
    tokenizer.chat_template = template
    found = call_splitter(tokenizer, Chat((Message("user", "?"), *before), tools=TOOLS))
    assert found is not None
    return found[0]


def split(found: CallSplitter, *pieces: str) -> tuple[str, list[tuple[str, Any]], int]:
    """Text, calls and the number of broken calls."""
    text = "".join((*map(found.push, pieces), found.flush()))
    return text, [(call["function"]["name"], call["function"]["arguments"]) for call in found.calls], found.broken


def rendered(tokenizer: Any, template: str, calls: list[tuple[str, dict[str, Any]]], content: str = "") -> str:
    """What a template renders for a reply with calls."""
    ids = [
        f"functions.{name}:{place}" if "section" in template else f"abcdef{place:03d}"
        for place, (name, _) in enumerate(calls)
    ]
    as_text = "+ call.function.arguments" in template
    reply = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "type": "function",
                "id": own,
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments, ensure_ascii=False) if as_text else arguments,
                },
            }
            for own, (name, arguments) in zip(ids, calls, strict=True)
        ],
    }
    plain = {"role": "assistant", "content": "QxQ"}
    whole, other = (
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}, each], chat_template=template, tokenize=False)
        for each in (reply, plain)
    )
    head, tail = other.replace("<|START_RESPONSE|>QxQ<|END_RESPONSE|>", "QxQ").split("QxQ")
    assert (whole.startswith(head.rstrip(" ")), whole.endswith(tail)) == (True, True)
    return str(whole[len(head.rstrip(" ")) : len(whole) - len(tail)])


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("content", ["", "我查一下 <b>。"])
def test_what_a_template_renders_is_parsed_back(tokenizer: Any, name: str, content: str) -> None:
    template = TEMPLATES[name]
    if content and name in ("Llama 3.1", "Mistral 0.3", "Command R7B"):
        pytest.skip("the template renders either text or calls")
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        if name == "Llama 3.1" and len(calls) > 1:
            continue
        text = rendered(tokenizer, template, calls, content)
        for pieces in ([text], list(text), re.findall(r"\s*\S{1,3}", text)):
            found = split(splitter(tokenizer, template), *pieces)
            assert (found[0].strip(), *found[1:]) == (content, calls, 0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_without_calls_passes_unchanged_and_at_once(tokenizer: Any, name: str) -> None:
    text = 'Use <b> & [1], {"a": 1}; <tool> [TOOL] 天气 {"name": "x"} <'
    found = splitter(tokenizer, TEMPLATES[name])
    assert "".join(map(found.push, text)).startswith(text[:-1])
    assert split(splitter(tokenizer, TEMPLATES[name]), *text) == (text, [], 0)


@pytest.mark.parametrize(
    ("template", "broken"),
    [
        (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "北京"}'),  # cut off
        (HERMES, "<tool_call>\n{'name': 'get_weather'}\n</tool_call>"),
        (HERMES, '<tool_call>\n{"arguments": {}}\n</tool_call>'),
        (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": }}]'),
        (QWEN_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\n北京"),
        (LLAMA, '{"name": "get_weather", "parameters": {"city": "北京"'),
    ],
)  # fmt: skip
def test_a_broken_call_stays_in_the_text(tokenizer: Any, template: str, broken: str) -> None:
    assert split(splitter(tokenizer, template), *broken) == (broken, [], 1)
    if template is not LLAMA:
        text = f"嗯。\n{broken}\n{rendered(tokenizer, template, CALLS[:1])}"
        found = split(splitter(tokenizer, template), *text)
        assert found[0].rstrip() == f"嗯。\n{broken}"
        assert found[1:] == (CALLS[:1], 1)


def test_json_that_is_no_call_stays_in_the_text(tokenizer: Any) -> None:
    for text in ('{"name": "王", "parameters": {}}', '{"name": "王", "age": 3}', 'See {"name": "time.now"}'):
        assert split(splitter(tokenizer, LLAMA), *text) == (text, [], 0)
    several = '{"name": "time.now", "parameters": {}}; {"name": "time.now", "parameters": {}}'
    assert split(splitter(tokenizer, LLAMA), *several) == ("", [("time.now", {})] * 2, 0)


def test_calls_have_ids_that_are_new_in_the_conversation(tokenizer: Any) -> None:
    text = rendered(tokenizer, HERMES, CALLS)
    earlier = Message("assistant", "", tool_calls=({"type": "function", "id": "call00001", "function": {}},))
    for before, ids in (((), ["call00001", "call00002"]), ((earlier,), ["call00002", "call00003"])):
        found = splitter(tokenizer, HERMES, *before)
        split(found, text)
        assert [call["id"] for call in found.calls] == ids
    found = splitter(tokenizer, MISTRAL)
    split(found, rendered(tokenizer, MISTRAL, CALLS))
    assert [call["id"] for call in found.calls] == ["abcdef000", "abcdef001"]


def test_a_model_of_unknown_form_keeps_its_calls_in_the_text(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer.chat_template = NO_CALLS
    assert call_splitter(tokenizer, Chat((Message("user", "?"),), tools=TOOLS)) is None
    assert "form of this model's tool calls is unknown" in caplog.text
    assert call_splitter(tokenizer, Chat((Message("user", "?"),))) is None


RESPONSE_TEMPLATE = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<call (?P<name>[^>\n]+)>",
            "close": "</call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<(?P<key>\w+)>(?P<value>.*?)</(?P=key)>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {},
    },
}


def test_a_response_template_comes_first(tokenizer: Any) -> None:
    from copy import deepcopy

    own = deepcopy(tokenizer)
    own.response_template = RESPONSE_TEMPLATE
    text = "好。\n<call get_weather><city>北京</city><days>3</days></call><call time.now></call>"
    found = split(splitter(own, NO_CALLS), *text)
    assert found == ("好。", [("get_weather", {"city": "北京", "days": 3}), ("time.now", {})], 0)
    message = own.parse_response(text, prefix="", tools=list(TOOLS))
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]] == found[1]


def test_a_broken_region_of_a_response_template_stays_in_the_text(tokenizer: Any) -> None:
    from copy import deepcopy

    own, spec = deepcopy(tokenizer), json.loads(json.dumps(RESPONSE_TEMPLATE))
    spec["fields"]["tool_calls"] = {
        "open": "<call>", "close": "</call>", "repeats": True, "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    }  # fmt: skip
    own.response_template = spec
    text = '<call>{"name": oops}</call><call>{"name": "time.now", "arguments": {}}</call>'
    assert split(splitter(own, NO_CALLS), *text) == ('<call>{"name": oops}</call>', [("time.now", {})], 1)


@pytest.mark.parametrize("name", TEMPLATES)
def test_forced_calls_have_the_form_that_is_parsed(tokenizer: Any, name: str) -> None:
    """Where arguments are JSON, the texts around them are known; elsewhere calls cannot be enforced."""
    tokenizer.chat_template = TEMPLATES[name]
    chat = Chat((Message("user", "?"),), tools=TOOLS, tool_choice="required")
    if name in ("Qwen 3 Coder", "GLM 4.5", "LFM 2"):
        with pytest.raises(UsageError, match="does not render their arguments as JSON"):
            forced_calls(tokenizer, chat)
        return
    for form, call in zip(forced_calls(tokenizer, chat), CALLS, strict=True):
        text = form.before + json.dumps(call[1], ensure_ascii=False) + form.after
        assert split(splitter(tokenizer, TEMPLATES[name]), text) == ("", [call], 0)
    (only,) = forced_calls(tokenizer, replace(chat, tool_choice="time.now"))
    assert only.schema == {"type": "object", "properties": {}}
    with pytest.raises(UsageError, match="names no tool"):
        forced_calls(tokenizer, replace(chat, tool_choice="other"))
