"""OpenAI's chat and text completions: their parameters as settings, and outputs in their form."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.config.settings import GenerationSettings
from llmkit.server.errors import ApiError
from llmkit.server.requests import ChatRequest, CompletionRequest, Message, Tool
from llmkit.tasks import PromptOptions, Row, TokenLogprob
from llmkit.tasks.output import Output

__all__ = [
    "chat_chunk",
    "chat_completion",
    "chat_logprobs",
    "chat_prompt",
    "chat_row",
    "chat_settings",
    "completion",
    "completion_chunk",
    "completion_logprobs",
    "completion_settings",
    "finish_reason",
    "new_id",
    "tool_calls",
    "usage_of",
]


_PARTIAL = re.compile("<[0-9A-F]{2}( [0-9A-F]{2})*>")
"""How `TokenLogprob` shows the bytes of a partial character."""


def new_id(kind: str) -> str:
    """A unique id, such as ``chatcmpl-…``."""
    return f"{kind}-{uuid.uuid4().hex}"


# Settings.


def _sampling(body: ChatRequest | CompletionRequest) -> dict[str, Any]:
    stop = [] if body.stop is None else body.stop
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options requires stream: true; set it, or leave it out", param="stream_options")
    return {
        "temperature": body.temperature,
        # 1 is OpenAI's default, which excludes nothing.
        "top_p": None if body.top_p == 1 or body.temperature == 0 else body.top_p,
        "seed": body.seed,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "num_return_sequences": body.n or 1,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "logit_bias": body.logit_bias or None,
        "on_overflow": "error",
    }


def chat_settings(body: ChatRequest) -> GenerationSettings:
    """The settings of a chat completion."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens are the same; send one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs requires logprobs: true; set it, or leave it out", param="top_logprobs")
    return GenerationSettings(
        max_new_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        json_schema=_schema(body),
        **_sampling(body),
    )


def _schema(body: ChatRequest) -> Mapping[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema is missing; send a schema", param="response_format")
    return wanted.json_schema.schema_


def chat_prompt(body: ChatRequest) -> PromptOptions:
    """The prompt options of a chat completion."""
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments["reasoning_effort"] = body.reasoning_effort
    return PromptOptions(chat_template_kwargs=arguments) if arguments else PromptOptions()


def chat_row(body: ChatRequest) -> Row:
    """The row of a chat completion."""
    if body.tool_choice is not None and not body.tools:
        raise ApiError(400, "tool_choice requires tools; send them, or leave it out", param="tool_choice")
    names = [tool.function.name for tool in body.tools or ()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"two tools have the name {twice}; rename one", param="tools")
    messages = [_message(message) for message in body.messages]
    tools = [] if body.tool_choice == "none" else [_tool(tool) for tool in body.tools or ()]
    return {"messages": messages} | ({"tools": tools} if tools else {})


def _message(message: Message) -> dict[str, Any]:
    """A message of OpenAI's API as the task takes it."""
    given = message.model_dump(exclude_none=True, exclude={"annotations"})
    content = given.get("content")
    if isinstance(content, list):
        given["content"] = "".join(part["text"] for part in content)
    return given


def _tool(tool: Tool) -> dict[str, Any]:
    if tool.function.strict:
        raise ApiError(400, "strict tools are not supported; leave strict out", param="tools")
    return tool.model_dump(exclude_none=True)


def completion_settings(body: CompletionRequest) -> GenerationSettings:
    """The settings of a text completion."""
    if body.echo and body.logprobs is not None:
        raise ApiError(400, "logprobs of an echoed prompt are not supported; leave out echo or logprobs", param="echo")
    return GenerationSettings(max_new_tokens=body.max_tokens or 16, logprobs=body.logprobs, **_sampling(body))


# Outputs.


def usage_of(outputs: Sequence[Output]) -> dict[str, int]:
    """Tokens of prompts and outputs, alternatives included."""
    prompt = sum(output.usage.prompt_tokens for output in outputs)
    every = [each for output in outputs for each in (output, *output.alternatives)]
    made = sum(each.usage.completion_tokens for each in every)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def finish_reason(output: Output) -> str:
    """OpenAI's name of the reason."""
    return "stop" if output.finish_reason == "interrupted" else output.finish_reason


def tool_calls(output: Output) -> list[dict[str, Any]]:
    """Tool calls, with their arguments as JSON text."""
    return [
        {
            "id": call.get("id") or new_id("call"),
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in output.tool_calls
    ]


def _token(each: TokenLogprob) -> dict[str, Any]:
    partial = _PARTIAL.fullmatch(each.text)
    content = bytes.fromhex(each.text[1:-1]) if partial else each.text.encode()
    return {"token": each.text, "logprob": each.logprob, "bytes": list(content)}


def chat_logprobs(output: Output) -> dict[str, Any] | None:
    """The log probabilities of a chat completion."""
    if output.logprobs is None:
        return None
    return {
        "content": [
            {**_token(each), "top_logprobs": [_token(other) for other in each.top]} for each in output.logprobs
        ],
        "refusal": None,
    }


def chat_completion(identity: str, created: int, model: str, output: Output) -> dict[str, Any]:
    """The body of an answer."""
    choices = []
    for index, each in enumerate((output, *output.alternatives)):
        content = each.text or (None if each.tool_calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if each.tool_calls:
            message["tool_calls"] = tool_calls(each)
        if each.reasoning:
            message["reasoning_content"] = each.reasoning
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": chat_logprobs(each),
                "finish_reason": finish_reason(each),
            }
        )
    head = {"id": identity, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": usage_of([output])}


def chat_chunk(
    identity: str, created: int, model: str, delta: Mapping[str, Any], index: int = 0, **more: Any
) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": None, **more}
    head = {"id": identity, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [choice]}


def completion_logprobs(output: Output) -> dict[str, Any] | None:
    """The log probabilities of a text completion, in the form of the old API."""
    if output.logprobs is None:
        return None
    offsets, at = [], 0
    for each in output.logprobs:
        offsets.append(at)
        at += len(each.text)
    return {
        "tokens": [each.text for each in output.logprobs],
        "token_logprobs": [each.logprob for each in output.logprobs],
        "top_logprobs": [{other.text: other.logprob for other in each.top} for each in output.logprobs],
        "text_offset": offsets,
    }


def completion(
    identity: str, model: str, prompts: Sequence[str], outputs: Sequence[Output], *, echo: bool
) -> dict[str, Any]:
    """The body of a text completion."""
    choices: list[dict[str, Any]] = []
    for prompt, output in zip(prompts, outputs, strict=True):
        for each in (output, *output.alternatives):
            choices.append(
                {
                    "index": len(choices),
                    "text": f"{prompt}{each.text}" if echo else each.text,
                    "logprobs": completion_logprobs(each),
                    "finish_reason": finish_reason(each),
                }
            )
    head = {"id": identity, "object": "text_completion", "created": int(time.time()), "model": model}
    return {**head, "choices": choices, "usage": usage_of(outputs)}


def completion_chunk(identity: str, created: int, model: str, text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk of a streamed text completion."""
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
    return {"id": identity, "object": "text_completion", "created": created, "model": model, "choices": [choice]}
