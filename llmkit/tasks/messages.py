"""Messages, tool calls and tools in OpenAI's format, and which messages are learned.

Knows the roles and what a message can have. Does not know how a model takes messages (`llmkit.heads.chat_template`),
nor the many layouts of conversations in data sets (`llmkit.data.conversations`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from llmkit.errors import InputError
from llmkit.tasks.types import Message, ToolCall

__all__ = [
    "REASONING_KEYS",
    "REASONING_PARTS",
    "as_row",
    "call_text",
    "is_instruction",
    "joined",
    "part_type",
    "plain_text",
    "reasoning_in",
    "replies",
    "shortened",
    "to_messages",
    "to_tool_calls",
    "to_tools",
]

_ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The usual names of reasoning in a message."""
REASONING_PARTS = ("thinking", "reasoning")
"""The types of parts with reasoning in a message's content, as those of Magistral."""


def to_messages(value: object) -> tuple[Message, ...]:
    """Messages from a list of ``{"role": …, "content": …}``; `InputError` names the one that is wrong.

    Further keys: ``weight``, ``reasoning_content``, ``tool_calls``, ``tool_call_id`` and ``name``. The content may be
    a list of parts with text and reasoning.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InputError("messages are not a list", 'give [{"role": "user", "content": "…"}]')
    return tuple(_message(item, number) for number, item in enumerate(value, start=1))


def _message(item: Any, number: int) -> Message:
    row = as_row(item) if isinstance(item, Message) else item if isinstance(item, Mapping) else {}
    calls = row.get("tool_calls")
    content = "" if row.get("content") is None and calls else plain_text(row.get("content"))
    if content is None and isinstance(parts := row.get("content"), list | tuple) and parts:
        other = next(kind for part in parts if (kind := part_type(part)) not in ("text", *REASONING_PARTS))
        raise InputError(
            f"message {number} has a part that is not text ({other})", 'write {"type": "text", "text": "…"}'
        )
    if row.get("role") not in _ROLES or content is None:
        raise InputError(
            f"message {number} is not a role and a content",
            f'write {{"role": "user", "content": "…"}}; roles: {", ".join(_ROLES)}',
        )
    message = Message(
        row["role"],
        content,
        learned=row.get("weight") != 0,
        reasoning=next((text for key in REASONING_KEYS if isinstance(text := row.get(key), str)), "")
        or reasoning_in(row.get("content")),
        tool_calls=to_tool_calls(calls, f"message {number} has") if calls else (),
        tool_call_id=str(row.get("tool_call_id") or ""),
        name=str(row.get("name") or ""),
    )
    if message.role != "assistant" and (message.tool_calls or message.reasoning):
        what = "tool calls" if message.tool_calls else "reasoning"
        raise InputError(f"message {number} of the {message.role} has {what}", "give it the role assistant")
    return message


def plain_text(value: Any) -> str | None:
    """A text, also from a list of text parts as in OpenAI's format; None for anything else, such as an image.

    Parts with reasoning are left out (`reasoning_in`).
    """
    if isinstance(value, list | tuple) and value:
        parts = [
            part.get("text") if part_type(part) == "text" else None
            for part in value
            if part_type(part) not in REASONING_PARTS
        ]
        return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return value if isinstance(value, str) else None


def reasoning_in(content: Any) -> str:
    """The reasoning in the parts of a content: a text, or as in Mistral's format a list of text parts."""
    parts = content if isinstance(content, list | tuple) else ()
    found = [
        plain_text(part.get(kind)) or plain_text(part.get("text"))
        for part in parts
        if (kind := part_type(part)) in REASONING_PARTS
    ]
    return "\n".join(filter(None, found))


def part_type(part: Any) -> str:
    """The type of a part of a message: ``text``, an image, a tool call, reasoning."""
    if not isinstance(part, Mapping):
        return type(part).__name__
    kind = str(part.get("type") or next((name for name, value in part.items() if value), "text"))
    return "text" if kind in ("text", "input_text", "output_text") else kind


def as_row(message: Message) -> dict[str, Any]:
    """A message as ``{"role": …, "content": …}``, the inverse of `to_messages`."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    row |= {} if message.learned else {"weight": 0}
    row |= {"reasoning_content": message.reasoning} if message.reasoning else {}
    row |= {"tool_calls": [dict(call) for call in message.tool_calls]} if message.tool_calls else {}
    return row | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}


def to_tool_calls(value: Any, subject: str) -> tuple[ToolCall, ...]:
    """Tool calls from a list or JSON text of ``{"function": {"name": …, "arguments": …}}``, or without ``function``.

    Args:
        subject: the beginning of an error message.
    """
    found = _parsed(value)
    return tuple(_call(call, subject) for call in (found if isinstance(found, list | tuple) else [found]))


def _call(value: Any, subject: str) -> ToolCall:
    call = value if isinstance(value, Mapping) else {}
    inner = call.get("function")
    function = inner if isinstance(inner, Mapping) else call
    name, arguments = function.get("name"), _parsed(function.get("arguments"))
    arguments = {} if arguments in (None, "") else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise InputError(
            f"{subject} a tool call without a name and an object of arguments",
            'write {"function": {"name": "…", "arguments": {…}}}',
        )
    number = {"id": str(call["id"])} if call.get("id") else {}
    return {"type": "function", **number, "function": {"name": name, "arguments": dict(arguments)}}


def to_tools(value: Any, subject: str = "the row has") -> tuple[Mapping[str, Any], ...]:
    """Tools from a list or JSON text of OpenAI's tools, also without ``{"type": "function", "function": …}``.

    Args:
        subject: the beginning of an error message.
    """
    found = _parsed(value) or ()
    tools = []
    for tool in found if isinstance(found, list | tuple) else [found]:
        tool = _parsed(tool)
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(
                f"{subject} tools that are not functions with names",
                'write [{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
            )
        tools.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(function)})
    return tuple(tools)


def call_text(call: ToolCall) -> str:
    """A tool call as a line: ``name({…})``."""
    function = call["function"]
    return f"{function['name']}({json.dumps(function['arguments'], ensure_ascii=False)})"


def _parsed(value: Any) -> Any:
    """The value of JSON text; other text, and other values, as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def is_instruction(message: Message) -> bool:
    """Whether a message is from the system or the developer."""
    return message.role in ("system", "developer")


def joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, with consecutive ones of the same role as one, except for results of tools.

    Raises:
        InputError: some of them are learned and others are not.
    """
    found: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        several = tuple(group)
        found += several if role == "tool" or len(several) == 1 else [_one(several)]
    return tuple(found)


def _one(messages: Sequence[Message]) -> Message:
    if len({message.learned for message in messages}) > 1:
        raise InputError(
            "has consecutive replies that have to be one message, and only some are learned",
            "put a user message between them",
        )
    return replace(
        messages[0],
        content="\n".join(message.content for message in messages if message.content),
        reasoning="\n".join(message.reasoning for message in messages if message.reasoning),
        tool_calls=tuple(call for message in messages for call in message.tool_calls),
    )


def replies(messages: Sequence[Message]) -> list[int]:
    """The indices of the replies that are learned and evaluated: those that follow a message of the user.

    Raises:
        InputError: the user message in front of a reply is empty.
    """
    return list(_replies(messages))


def _replies(messages: Sequence[Message]) -> Iterator[int]:
    answers = False
    for place, message in enumerate(messages):
        answers = answers or message.role in ("user", "tool")
        given = message.content.strip() or message.tool_calls or message.reasoning.strip()
        if not answers or message.role != "assistant" or not given or not message.learned:
            continue
        if messages[place - 1].role == "user" and not messages[place - 1].content.strip():
            raise InputError(f"message {place} is empty", "fill in the user's text", code="empty_input")
        yield place


def shortened(messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]) -> tuple[Message, ...]:
    """Drop the oldest messages until the rest fits, keeping the system message and the last message.

    The rest begins with a user message, as chat templates require.
    """
    system = tuple(messages[:1]) if is_instruction(messages[0]) else ()
    rest = list(messages[len(system) :])
    while len(rest) > 1 and not fits((*system, *rest)):
        del rest[0]
        while len(rest) > 1 and rest[0].role != "user":
            del rest[0]
    return (*system, *rest)
