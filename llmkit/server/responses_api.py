"""OpenAI's responses: requests as chat completions, outputs as items, and the events of a stream.

No state is kept: an answer cannot be fetched or continued by its id.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import ValidationError

from llmkit.server import openai_api as openai
from llmkit.server.answers import Answer
from llmkit.server.errors import ApiError
from llmkit.server.requests import ChatRequest
from llmkit.server.responses_request import InputMessage, NamedFunction, Reasoning, ResponseRequest, TextFormat
from llmkit.tasks.output import Output

__all__ = ["as_chat", "response", "response_events"]

_LOGPROBS = "message.output_text.logprobs"


# Requests.


def as_chat(body: ResponseRequest) -> ChatRequest:
    """The chat completion that a request asks for."""
    if body.top_logprobs is not None and _LOGPROBS not in (body.include or ()):
        message = f"top_logprobs requires {_LOGPROBS} in include; add it, or leave top_logprobs out"
        raise ApiError(400, message, param="top_logprobs")
    choice: Any = body.tool_choice
    if isinstance(choice, NamedFunction):
        choice = {"type": "function", "function": {"name": choice.name}}
    wants_logprobs = _LOGPROBS in (body.include or ())
    try:
        return ChatRequest.model_validate(
            {
                "model": body.model,
                "messages": _messages(body),
                "max_completion_tokens": body.max_output_tokens,
                "temperature": body.temperature,
                "top_p": body.top_p,
                "logprobs": wants_logprobs or None,
                "top_logprobs": body.top_logprobs,
                "reasoning_effort": body.reasoning.effort if body.reasoning else None,
                "response_format": _format(body.text.format if body.text else None),
                "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or ()] or None,
                "tool_choice": choice,
                "stream": body.stream,
                "parallel_tool_calls": body.parallel_tool_calls,
            }
        )
    except ValidationError as error:
        raise ApiError(400, f"input: {error.errors()[0]['msg']}", param="input") from error


def _tool(given: dict[str, Any]) -> dict[str, Any]:
    return {"type": given.pop("type"), "function": given}


def _format(wanted: TextFormat | None) -> dict[str, Any] | None:
    if wanted is None:
        return None
    given = wanted.model_dump(exclude_none=True, by_alias=True)
    kind = given.pop("type")
    return {"type": kind, "json_schema": given} if kind == "json_schema" else {"type": kind}


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    """Messages from items: reasoning and calls belong to the reply that they precede, or follow."""
    found: list[dict[str, Any]] = []
    if body.instructions is not None:
        found.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*found, {"role": "user", "content": body.input}]
    reasoning = ""
    for item in body.input:
        if isinstance(item, Reasoning):
            reasoning += item.text
        elif isinstance(item, InputMessage):
            own = {"reasoning_content": reasoning} if reasoning and item.role == "assistant" else {}
            found.append({"role": item.role, "content": item.plain, **own})
            reasoning = ""
        elif item.type == "function_call_output":
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": item.plain})
        else:
            call = {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
            if not (found and found[-1]["role"] == "assistant"):
                found.append({"role": "assistant"} | ({"reasoning_content": reasoning} if reasoning else {}))
                reasoning = ""
            found[-1].setdefault("tool_calls", []).append(call)
    return found


# Answers.


def _head(body: ResponseRequest, identity: str, created: int, model: str) -> dict[str, Any]:
    """The body of an answer that has begun: the request's parameters are repeated, as OpenAI does."""
    given = body.model_dump(exclude_none=True, by_alias=True)
    repeated = ("instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "reasoning")
    return {
        "id": identity,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "text": given.get("text") or {"format": {"type": "text"}},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": [{"strict": False, "parameters": None, **tool} for tool in given.get("tools", ())],
        "truncation": "disabled",
        "usage": None,
        "metadata": {},
        **{name: given.get(name) for name in repeated},
    }


def _usage(answer: Answer, output: Output) -> dict[str, Any]:
    """Tokens; those of reasoning are counted in its text."""
    usage = openai.usage_of([output])
    reasoning = answer.model.engine.count(output.reasoning) if output.reasoning else 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": output.usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": min(reasoning, usage["completion_tokens"])},
        "total_tokens": usage["total_tokens"],
    }


def _item(kind: str, identity: str, parts: Sequence[dict[str, Any]], status: str) -> dict[str, Any]:
    own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
    return {"id": identity, "type": kind, "status": status, "content": list(parts), **own}


def _part(kind: str, text: str, output: Output | None = None) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    logprobs = None if output is None else openai.chat_logprobs(output)
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs["content"] if logprobs else []}


def _calls(output: Output) -> list[dict[str, Any]]:
    return [
        {
            "id": openai.new_id("fc"),
            "type": "function_call",
            "status": "completed",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in openai.tool_calls(output)
    ]


def _status(output: Output) -> str:
    return "incomplete" if output.finish_reason == "length" else "completed"


def _ended(head: dict[str, Any], answer: Answer, output: Output, items: list[dict[str, Any]]) -> dict[str, Any]:
    status = _status(output)
    return {
        **head,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": items,
        "usage": _usage(answer, output),
    }


def response(body: ResponseRequest, answer: Answer) -> dict[str, Any]:
    """The body of an answer that has ended."""
    assert answer.output is not None
    output = openai.limited(answer.output, body.parallel_tool_calls)
    items = []
    if output.reasoning:
        items.append(_item("reasoning", openai.new_id("rs"), [_part("reasoning", output.reasoning)], "completed"))
    if output.text or not output.tool_calls:
        items.append(_item("message", openai.new_id("msg"), [_part("message", output.text, output)], _status(output)))
    head = _head(body, openai.new_id("resp"), answer.created, answer.model.name)
    return _ended(head, answer, output, [*items, *_calls(output)])


class _Stream:
    """The events of an answer whose items follow each other."""

    def __init__(self, body: ResponseRequest, answer: Answer) -> None:
        self.head = _head(body, openai.new_id("resp"), answer.created, answer.model.name)
        self.items: list[dict[str, Any]] = []
        self.kind = ""
        """The type of the item that has begun."""
        self._number, self._id, self._text = 0, "", ""

    def event(self, kind: str, **content: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **content}

    def begun(self) -> list[dict[str, Any]]:
        return [self.event(f"response.{name}", response=self.head) for name in ("created", "in_progress")]

    def delta(self, kind: str, text: str) -> list[dict[str, Any]]:
        """A piece of an item, which may be its first and the end of the item before it."""
        found = []
        if self.kind != kind:
            found += self.end(None) if self.kind else []
            found += self.begin(kind)
        self._text += text
        if kind == "message":
            return [*found, self.event("response.output_text.delta", **self._where, delta=text, logprobs=[])]
        return [*found, self.event("response.reasoning_text.delta", **self._where, delta=text)]

    @property
    def _where(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self.items), "content_index": 0}

    def begin(self, kind: str) -> list[dict[str, Any]]:
        self.kind, self._text = kind, ""
        self._id = openai.new_id("msg" if kind == "message" else "rs")
        item = _item(kind, self._id, [], "in_progress")
        return [
            self.event("response.output_item.added", output_index=len(self.items), item=item),
            self.event("response.content_part.added", **self._where, part=_part(kind, "")),
        ]

    def end(self, output: Output | None) -> list[dict[str, Any]]:
        """The end of the item that has begun, of which the output is known if it is the last message."""
        part = _part(self.kind, self._text, output)
        status = "completed" if output is None else _status(output)
        item = _item(self.kind, self._id, [part], status)
        if self.kind == "message":
            done = self.event("response.output_text.done", **self._where, text=self._text, logprobs=part["logprobs"])
        else:
            done = self.event("response.reasoning_text.done", **self._where, text=self._text)
        found = [
            done,
            self.event("response.content_part.done", **self._where, part=part),
            self.event("response.output_item.done", output_index=len(self.items), item=item),
        ]
        self.items.append(item)
        self.kind = ""
        return found

    def call(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """A call, at once."""
        index, arguments = len(self.items), item["arguments"]
        where = {"item_id": item["id"], "output_index": index}
        self.items.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        return [
            self.event("response.output_item.added", output_index=index, item=begun),
            self.event("response.function_call_arguments.delta", **where, delta=arguments),
            self.event("response.function_call_arguments.done", **where, arguments=arguments, name=item["name"]),
            self.event("response.output_item.done", output_index=index, item=item),
        ]


async def response_events(body: ResponseRequest, answer: Answer) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed answer, in OpenAI's order; each item is complete before the next one begins."""
    stream = _Stream(body, answer)
    for event in stream.begun():
        yield event
    async for piece in answer.pieces():
        for event in stream.delta("message" if piece.text else "reasoning", piece.text or piece.reasoning):
            yield event
    assert answer.output is not None
    output = openai.limited(answer.output, body.parallel_tool_calls)
    rest = []
    if stream.kind == "reasoning":
        rest += stream.end(None)
    if not stream.kind and not output.tool_calls:
        rest += stream.begin("message")
    if stream.kind:
        rest += stream.end(output)
    for call in _calls(output):
        rest += stream.call(call)
    ended = _ended(stream.head, answer, output, stream.items)
    for event in (*rest, stream.event(f"response.{ended['status']}", response=ended)):
        yield event
