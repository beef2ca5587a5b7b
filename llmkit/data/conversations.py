"""Conversations in rows: speakers, texts, and which replies are learned.

Knows the common formats of turns: OpenAI's messages, ShareGPT, pairs of a user's text and its reply, and conversations
split into ``prompt`` and ``completion`` as in TRL; with tool calls, their results, tools and reasoning. A turn that is
flagged as not learned (``weight: 0``, ``train: false``) gets ``"weight": 0``. Unsupported turns, such as images, are
errors. Does not know which column holds the conversation (`llmkit.data.shapes`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmkit.errors import InputError
from llmkit.tasks import Message
from llmkit.tasks.messages import (
    REASONING_KEYS,
    as_row,
    is_instruction,
    joined,
    part_type,
    plain_text,
    reasoning_in,
    to_tool_calls,
)

__all__ = ["as_flag", "is_empty", "read_turns", "turn_columns", "turn_tools", "unused_in_turns"]

_CALLS = "calls"
"""The role of ShareGPT's turns that are the tool calls of the assistant."""

_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "client", "prompter", "usr", "用户", "客户", "问"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "chatbot", "model", "ai"), "assistant"),
    **dict.fromkeys(("agent", "助手", "客服", "答"), "assistant"),
    **dict.fromkeys(("system", "sys", "系统"), "system"),
    "developer": "developer",
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "tool_result", "ipython", "工具"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALLS),
}  # fmt: skip
_ROLE_KEYS = ("role", "from", "speaker", "author", "name", "sender")
_TEXT_KEYS = ("content", "value", "utterance", "text", "message", "body")

_LEARN_WORDS = frozenset(("weight", "train", "trained", "trainable", "training", "learn", "loss"))
"""Words in the names of flags for learned turns: OpenAI's ``weight``, ``train_on_turn``, ``loss_mask``."""
_UNCLEAR_WORDS = frozenset(("mask", "masked"))
"""Ambiguous flags: programs differ in whether true means that a turn is learned."""
_CALL_KEYS = ("tool_calls", "function_call")


@dataclass(frozen=True)
class _Turn:
    speaker: str
    text: str
    number: int = 0
    fields: Mapping[str, Any] | None = None
    """The turn itself, unless it is one of a pair."""


def is_empty(value: Any) -> bool:
    """Whether a value is empty, as in columns of Parquet that only other rows use."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def as_flag(name: str, value: Any) -> bool:
    """Whether a flag is set; `InputError` if its value is not a boolean."""
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise InputError(f"has {name}: {value!r}, which is neither 0 nor 1", f"set {name} to 0 or 1, or remove it")


def turn_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that are lists of turns."""
    return [str(name) for name, value in row.items() if isinstance(value, list) and any(map(_is_turn, value))]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and (_keys(value) is not None or _is_pair(value))


def _keys(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of a turn's speaker and text."""
    role = next((key for key in _ROLE_KEYS if isinstance(turn.get(key), str)), None)
    text = next((key for key in _TEXT_KEYS if plain_text(turn.get(key)) is not None), None)
    others = (*_CALL_KEYS, *REASONING_KEYS) if _role(turn, role) in ("assistant", None) else ("tools",)
    if text is None and any(not is_empty(turn.get(key)) for key in others):
        text = next((key for key in _TEXT_KEYS if key in turn), "content")
    if text is None and _role(turn, role) == "tool":  # a result that is an object
        text = next((key for key in _TEXT_KEYS if isinstance(turn.get(key), Mapping | list)), None)
    return None if role is None or text is None else (role, text)


def _role(turn: Mapping[str, Any], key: str | None) -> str | None:
    """The role of a turn whose speaker is in ``key``; None if it follows from the other turns."""
    return None if key is None else _ROLES.get(str(turn[key]).strip().lower())


def _is_pair(turn: Mapping[str, Any]) -> bool:
    """Whether a turn holds a user's text and the reply under the names of their roles (Firefly)."""
    return {_ROLES.get(str(key).lower()) for key in turn} >= {"user", "assistant"}


def read_turns(turns: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages with ``role`` and ``content`` (`llmkit.tasks.messages.to_messages`), and ``weight: 0`` if not learned.

    Raises:
        InputError: a turn is not supported; the message has its number.
    """
    parts = [part for number, turn in enumerate(turns, start=1) for part in _divided(turn, number)]
    messages: list[Message] = []
    for role, turn in zip(_roles([turn.speaker for turn in parts]), parts, strict=True):
        message = _message(role, turn)
        same = messages and messages[-1].role == message.role
        # ShareGPT has the calls of a reply in a turn of their own; several system messages are one.
        if same and (role == _CALLS or is_instruction(message)):
            messages[-1] = joined([messages[-1], message])[0]
        elif message.content or not is_instruction(message):
            messages.append(message)
    return [as_row(message) for message in _named(messages)]


def _message(role: str, turn: _Turn) -> Message:
    fields = turn.fields or {}
    where = f"has in turn {turn.number}"
    if role == _CALLS:
        calls = to_tool_calls(turn.text, where)
        return Message("assistant", "", _is_learned(fields) is not False, tool_calls=calls)
    message = Message(role, turn.text)  # type: ignore[arg-type]
    if role == "assistant":
        calls = tuple(call for key in _CALL_KEYS if fields.get(key) for call in to_tool_calls(fields[key], where))
        learned = _is_learned(fields) is not False
        return replace(message, learned=learned, reasoning=_reasoning(fields), tool_calls=calls)
    _is_learned(fields)  # refuses flags that are unclear
    if role == "tool":
        speaker = next((key for key in _ROLE_KEYS if isinstance(fields.get(key), str)), "")
        name = "" if speaker == "name" else str(fields.get("name") or "")
        return replace(message, tool_call_id=str(fields.get("tool_call_id") or ""), name=name)
    return message


def _reasoning(turn: Mapping[str, Any]) -> str:
    """The reasoning of a reply, in a field or in parts of its content."""
    found = [turn[key] for key in REASONING_KEYS if isinstance(turn.get(key), str) and turn[key]][:1]
    return "\n".join((*found, *filter(None, (reasoning_in(turn.get(key)) for key in _TEXT_KEYS))))


def _named(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, with the names of their tools in results without one."""
    waiting: list[tuple[str, str]] = []
    for message in messages:
        waiting += [(str(call.get("id", "")), call["function"]["name"]) for call in message.tool_calls]
        if message.role == "tool" and waiting:
            place = next((n for n, (number, _) in enumerate(waiting) if number == message.tool_call_id), 0)
            message = replace(message, name=message.name or waiting[place][1])
            del waiting[place]
        yield message


def turn_tools(turns: Sequence[Any]) -> Any:
    """The tools in a system message (ChatGLM 4); None if there are none."""
    found = [
        turn["tools"]
        for turn in turns
        if isinstance(turn, Mapping)
        and not is_empty(turn.get("tools"))
        and (keys := _keys(turn))
        and _role(turn, keys[0]) in ("system", "developer")
    ]
    if len(found) > 1:
        raise InputError("has tools in several turns", "write them as a column")
    return found[0] if found else None


def _divided(turn: Any, number: int) -> Iterator[_Turn]:
    if isinstance(turn, Mapping) and _keys(turn) is None and _is_pair(turn):
        for key, text in turn.items():
            if str(key).lower() in _ROLES and isinstance(text, str) and text:
                yield _Turn(str(key), text)
        return
    keys = _keys(turn) if isinstance(turn, Mapping) else None
    if keys is None:
        if isinstance(turn, Mapping) and (other := _other_part(turn)):
            raise InputError(f"has a part in turn {number} that is not text ({other})", "remove the row")
        raise InputError(
            f"has a turn without speaker and text (number {number})", 'write {"role": "user", "content": "…"}'
        )
    value = turn.get(keys[1])
    text = plain_text(value)
    if text is None:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) and value else ""
    yield _Turn(str(turn[keys[0]]).strip(), text, number, turn)


def _other_part(turn: Mapping[str, Any]) -> str | None:
    """The type of the first part of a turn that is not text."""
    parts = next((value for key in _TEXT_KEYS if isinstance(value := turn.get(key), list)), [])
    return next((kind for part in parts if (kind := part_type(part)) != "text"), None)


def _is_learned(turn: Mapping[str, Any]) -> bool | None:
    learn = _learn_keys(turn)
    unclear = [key for key in _keys_of_words(turn, _UNCLEAR_WORDS) if key not in learn]
    if unclear:
        raise InputError(f"has {unclear[0]} in a turn, whose meaning is ambiguous", "replace it with weight: 0 or 1")
    flags = [as_flag(key, turn[key]) for key in learn]
    return all(flags) if flags else None


def _learn_keys(turn: Mapping[str, Any]) -> list[str]:
    return _keys_of_words(turn, _LEARN_WORDS)


def _keys_of_words(turn: Mapping[str, Any], words: Collection[str]) -> list[str]:
    """The keys of a turn that have a value, and one of the words in their names."""
    return [key for key, value in turn.items() if not is_empty(value) and set(str(key).lower().split("_")) & set(words)]


def _roles(speakers: Sequence[str]) -> list[str]:
    """The role of each turn. Two unknown speakers are the user and the assistant, in the order in which they speak.

    If a "system" speaks several times and no assistant does, it is the assistant. The role of an unknown speaker in
    addition to a user or an assistant is ambiguous: it may be a tool.
    """
    found = [_ROLES.get(speaker.lower()) for speaker in speakers]
    if "assistant" not in found and found.count("system") > 1:
        found = ["assistant" if role == "system" else role for role in found]
    strangers = list(dict.fromkeys(speaker for speaker, role in zip(speakers, found, strict=True) if role is None))
    if len(strangers) > 2 or (strangers and not {"user", "assistant", _CALLS}.isdisjoint(found)):
        raise InputError(
            f"has speakers with unknown roles ({', '.join(strangers[:5])})",
            "name them user, assistant, system and tool",
        )
    named = dict(zip(strangers, ("user", "assistant"), strict=False))
    return [role or named[speaker] for speaker, role in zip(speakers, found, strict=True)]


def unused_in_turns(turns: Sequence[Any]) -> Iterator[str]:
    """The fields of turns, and of their tool calls, that are not used, once each."""
    seen: dict[str, None] = {}
    for turn in turns:
        if isinstance(turn, Mapping) and (keys := _keys(turn)) is not None:
            used = {*keys, *_used_fields(turn, keys)}
            seen |= {str(key): None for key, value in turn.items() if key not in used and not is_empty(value)}
            seen |= dict.fromkeys(_unused_in_calls(turn.get("tool_calls") if "tool_calls" in used else None))
    yield from seen


def _used_fields(turn: Mapping[str, Any], keys: tuple[str, str]) -> Iterator[str]:
    """The fields of a turn besides its speaker and its text that are used."""
    role = _role(turn, keys[0]) or ""
    yield from (key for key in _learn_keys(turn) if role in ("assistant", _CALLS) or not as_flag(key, turn[key]))
    if role == "assistant":
        yield from _CALL_KEYS
        yield from [key for key in REASONING_KEYS if isinstance(turn.get(key), str) and turn[key]][:1]
    elif role == "tool":
        yield from ("tool_call_id", "name")
    elif role in ("system", "developer"):
        yield "tools"


def _unused_in_calls(calls: Any) -> Iterator[str]:
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            function = call.get("function")
            known = ("id", "type", "function", *(() if isinstance(function, Mapping) else ("name", "arguments")))
            yield from (f"tool_calls.{key}" for key, value in call.items() if key not in known and not is_empty(value))
            for key, value in function.items() if isinstance(function, Mapping) else ():
                if key not in ("name", "arguments") and not is_empty(value):
                    yield f"tool_calls.function.{key}"
