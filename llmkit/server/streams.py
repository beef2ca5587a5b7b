"""Server-sent events of streamed answers, ``data: [DONE]`` at their end."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from llmkit.errors import LlmkitError
from llmkit.server import openai_api as openai
from llmkit.server import responses_api as responses
from llmkit.server.answers import Answer
from llmkit.server.errors import ApiError, body_of, status_of
from llmkit.server.requests import ChatRequest
from llmkit.server.responses_request import ResponseRequest

__all__ = ["chat_events", "completion_events", "response_events", "task_events"]


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _until_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events; an error ends them with an event of its own, since the status has been sent."""
    try:
        async for event in events:
            yield event
    except LlmkitError as error:
        yield _event(body_of(status_of(error), str(error), code=error.code))
    except ApiError as error:
        yield _event(body_of(error.status, error.message, error.param, error.code))


def chat_events(answer: Answer, body: ChatRequest) -> AsyncIterator[str]:
    """A chat completion in chunks; other sequences than the first follow it whole."""
    return _until_error(_chat_events(answer, body))


async def _chat_events(answer: Answer, body: ChatRequest) -> AsyncIterator[str]:
    identity, created, name = openai.new_id("chatcmpl"), int(time.time()), answer.model.name
    include_usage = openai.includes_usage(body)

    def chunk(delta: dict[str, Any], index: int = 0, **more: Any) -> str:
        usage = {"usage": None} if include_usage else {}
        return _event({**openai.chat_chunk(identity, created, name, delta, index, **more), **usage})

    yield chunk({"role": "assistant", "content": ""})
    async for piece in answer.pieces():
        yield chunk({"content": piece.text} if piece.text else {"reasoning_content": piece.reasoning})
    assert answer.output is not None
    output = openai.limited(answer.output, body.parallel_tool_calls)
    for index, each in enumerate((output, *output.alternatives)):
        if index:
            yield chunk({"role": "assistant", "content": each.text}, index)
        calls = [{"index": number, **call} for number, call in enumerate(openai.tool_calls(each))]
        last: dict[str, Any] = {"tool_calls": calls} if calls else {}
        reason = openai.finish_reason(each)
        yield chunk(last, index, logprobs=openai.chat_logprobs(each), finish_reason=reason)
    if include_usage:
        chunk_body = openai.chat_chunk(identity, created, name, {})
        yield _event({**chunk_body, "choices": [], "usage": openai.usage_of([output])})
    yield "data: [DONE]\n\n"


def completion_events(
    answers: Sequence[Answer], echoes: Sequence[openai.Echo], *, include_usage: bool
) -> AsyncIterator[str]:
    """Text completions in chunks, one prompt after another."""
    return _until_error(_completion_events(answers, echoes, include_usage))


async def _completion_events(
    answers: Sequence[Answer], echoes: Sequence[openai.Echo], include_usage: bool
) -> AsyncIterator[str]:
    identity, created, name = openai.new_id("cmpl"), int(time.time()), answers[0].model.name
    index, outputs = 0, []

    def chunk(text: str, **more: Any) -> str:
        usage = {"usage": None} if include_usage else {}
        return _event({**openai.completion_chunk(identity, created, name, text, index, **more), **usage})

    try:
        for answer, echo in zip(answers, echoes, strict=True):
            if echo.text:
                yield chunk(echo.text)
            async for piece in answer.pieces():
                yield chunk(piece.text)
            assert answer.output is not None
            outputs.append(answer.output)
            for place, each in enumerate((answer.output, *answer.output.alternatives)):
                if place:
                    yield chunk(echo.text + each.text)
                reason = openai.finish_reason(each)
                yield chunk("", logprobs=openai.completion_logprobs(each, echo), finish_reason=reason)
                index += 1
    finally:
        for answer in answers:
            answer.leave()
    if include_usage:
        body = openai.completion_chunk(identity, created, name, "")
        yield _event({**body, "choices": [], "usage": openai.usage_of(outputs)})
    yield "data: [DONE]\n\n"


async def response_events(body: ResponseRequest, answer: Answer) -> AsyncIterator[str]:
    """The events of a response; an error ends them with the event ``error``."""
    number = 0
    try:
        async for event in responses.response_events(body, answer):
            number += 1
            yield f"event: {event['type']}\n{_event(event)}"
    except (LlmkitError, ApiError) as error:
        found = (
            {"message": error.message, "code": error.code, "param": error.param}
            if isinstance(error, ApiError)
            else {"message": str(error), "code": error.code, "param": None}
        )
        yield f"event: error\n{_event({'type': 'error', 'sequence_number': number, **found})}"


def task_events(answer: Answer) -> AsyncIterator[str]:
    """A task's answer in pieces, ``{"text": …}`` or ``{"reasoning": …}``, and at last its whole JSON object."""
    return _until_error(_task_events(answer))


async def _task_events(answer: Answer) -> AsyncIterator[str]:
    async for piece in answer.pieces():
        yield _event({"text": piece.text} if piece.text else {"reasoning": piece.reasoning})
    assert answer.output is not None
    yield _event(answer.output.to_dict())
    yield "data: [DONE]\n\n"
