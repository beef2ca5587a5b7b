"""OpenAI's chat and text completions: their parameters as settings, and outputs in their form."""

from __future__ import annotations

import codecs
import json
import math
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmkit.config.settings import GenerationSettings
from llmkit.server.errors import ApiError
from llmkit.server.replies import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PlainToken,
    Token,
    ToolCall,
    Usage,
)
from llmkit.server.requests import ChatRequest, CompletionRequest, Message, NamedTool, Tool
from llmkit.tasks import PromptOptions, Row, Text, TokenLogprob
from llmkit.tasks.output import Output

__all__ = [
    "Echo",
    "chat_chunk",
    "chat_completion",
    "chat_logprobs",
    "chat_prompt",
    "chat_row",
    "chat_settings",
    "completion",
    "completion_chunk",
    "completion_logprobs",
    "completion_prompts",
    "completion_settings",
    "finish_reason",
    "includes_usage",
    "limited",
    "new_id",
    "tool_calls",
    "usage_of",
]


_PARTIAL = re.compile("<[0-9A-F]{2}( [0-9A-F]{2})*>")
"""How `TokenLogprob` shows the bytes of a partial character."""


def new_id(kind: str) -> str:
    """A unique id, such as ``chatcmpl-…``."""
    return f"{kind}-{uuid.uuid4().hex}"


def includes_usage(body: ChatRequest | CompletionRequest) -> bool:
    """Whether a stream ends with its usage."""
    return body.stream_options is not None and body.stream_options.include_usage


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
    return PromptOptions(chat_template_kwargs=arguments or None, tool_choice=_forced_tool(body))


def _forced_tool(body: ChatRequest) -> str:
    """The tool that must be called, or ``required``; empty leaves it to the model."""
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        if choice.function.name not in [tool.function.name for tool in body.tools or ()]:
            raise ApiError(400, f"there is no tool {choice.function.name}; name one of tools", param="tool_choice")
        return choice.function.name
    return "required" if choice == "required" else ""


def chat_row(body: ChatRequest) -> Row:
    """The row of a chat completion."""
    if body.tool_choice is not None and not body.tools:
        raise ApiError(400, "tool_choice requires tools; send them, or leave it out", param="tool_choice")
    names = [tool.function.name for tool in body.tools or ()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"two tools have the name {twice}; rename one", param="tools")
    messages = [_message(message) for message in body.messages]
    offered = [] if body.tool_choice == "none" else body.tools or []
    tools = [_tool(tool, enforced=bool(_forced_tool(body))) for tool in offered]
    return {"messages": messages} | ({"tools": tools} if tools else {})


def _message(message: Message) -> dict[str, Any]:
    """A message of OpenAI's API as the task takes it."""
    given = message.model_dump(exclude_none=True, exclude={"annotations"})
    content = given.get("content")
    if isinstance(content, list):
        given["content"] = "".join(part["text"] for part in content)
    return given


def _tool(tool: Tool, *, enforced: bool) -> dict[str, Any]:
    """A tool as templates have it; the arguments of calls are only enforced where one has to be made."""
    if tool.function.strict and not enforced:
        message = "strict tools require a tool_choice of required or of a function; set it, or leave strict out"
        raise ApiError(400, message, param="tools")
    return tool.model_dump(exclude_none=True)


def completion_prompts(body: CompletionRequest) -> list[str | Text]:
    """The prompts of text completions: texts, or token ids."""
    given = body.prompt
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [Text("", ids=tuple(given))]
    return [each if isinstance(each, str) else Text("", ids=tuple(each)) for each in given]


def completion_settings(body: CompletionRequest) -> GenerationSettings:
    """The settings of a text completion; those of ``max_tokens: 0`` are for one token, which is not generated."""
    if body.max_tokens == 0:
        for name, wrong in (("max_tokens", not body.echo), ("stream", body.stream), ("n", (body.n or 1) > 1)):
            if wrong:
                raise ApiError(400, f"{name}: max_tokens: 0 only echoes the prompt, once and whole", param=name)
    return GenerationSettings(
        max_new_tokens=16 if body.max_tokens is None else max(1, body.max_tokens),
        logprobs=body.logprobs,
        **_sampling(body),
    )


@dataclass(frozen=True)
class Echo:
    """A prompt that is repeated before its completion."""

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    """Those of its tokens, NaN for the first."""


# Outputs.


def usage_of(outputs: Sequence[Output]) -> Usage:
    """Tokens of prompts and outputs, alternatives included, and those of prompts that were reused."""
    prompt = sum(output.usage.prompt_tokens for output in outputs)
    every = [each for output in outputs for each in (output, *output.alternatives)]
    made = sum(each.usage.completion_tokens for each in every)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(output.usage.cached_tokens for output in outputs)},
    }


def finish_reason(output: Output) -> str:
    """OpenAI's name of the reason."""
    return "stop" if output.finish_reason == "interrupted" else output.finish_reason


def limited(output: Output, parallel_tool_calls: bool | None) -> Output:
    """The output with its first call only, unless calls may be parallel."""
    if parallel_tool_calls is not False:
        return output
    first, *others = (replace(each, tool_calls=each.tool_calls[:1]) for each in (output, *output.alternatives))
    return replace(first, alternatives=tuple(others))


def tool_calls(output: Output) -> list[ToolCall]:
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


def _finite(logprob: float) -> float:
    """A log probability in JSON: a token that is impossible has OpenAI's -9999."""
    return max(logprob, -9999.0)


def _bytes(text: str) -> bytes:
    """The bytes of a token's text."""
    return bytes.fromhex(text[1:-1]) if _PARTIAL.fullmatch(text) else text.encode()


def _token(each: TokenLogprob) -> PlainToken:
    return {"token": each.text, "logprob": _finite(each.logprob), "bytes": list(_bytes(each.text))}


def chat_logprobs(output: Output) -> ChatLogprobs | None:
    """The log probabilities of a chat completion."""
    if output.logprobs is None:
        return None
    content: list[Token] = [
        {**_token(each), "top_logprobs": [_token(other) for other in each.top]} for each in output.logprobs
    ]
    return {"content": content, "refusal": None}


def chat_completion(identity: str, created: int, model: str, output: Output) -> ChatCompletion:
    """The body of an answer."""
    choices: list[ChatChoice] = []
    for index, each in enumerate((output, *output.alternatives)):
        content = each.text or (None if each.tool_calls else "")
        message: ChatMessage = {"role": "assistant", "content": content, "refusal": None}
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
    return {
        "id": identity,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_of([output]),
    }


def chat_chunk(
    identity: str, created: int, model: str, delta: Mapping[str, Any], index: int = 0, **more: Any
) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    choice = {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": None, **more}
    head = {"id": identity, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [choice]}


def completion_logprobs(output: Output, echo: Echo) -> CompletionLogprobs | None:
    """The log probabilities of a text completion, in the form of the old API."""
    if output.logprobs is None:
        return None
    tokens = (*echo.logprobs, *output.logprobs)
    top: list[dict[str, float] | None] = []
    for each in tokens:
        likely: dict[str, float] = {}
        for other in each.top:
            likely.setdefault(other.text, _finite(other.logprob))
        top.append(None if math.isnan(each.logprob) else likely)
    return {
        "tokens": [each.text for each in tokens],
        "token_logprobs": [None if math.isnan(each.logprob) else _finite(each.logprob) for each in tokens],
        "top_logprobs": top,
        "text_offset": _offsets(tokens, echo.text + output.text),
    }


def _offsets(tokens: Sequence[TokenLogprob], text: str) -> list[int]:
    """Where each token begins in a text, which lacks special tokens; one inside a character, where that begins."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    found, at = [], 0
    for each in tokens:
        found.append(at)
        piece = decoder.decode(_bytes(each.text))
        at += len(piece) if text.startswith(piece, at) else 0
    return found


def completion(identity: str, model: str, echoes: Sequence[Echo], outputs: Sequence[Output]) -> Completion:
    """The body of a text completion."""
    choices: list[CompletionChoice] = []
    for echo, output in zip(echoes, outputs, strict=True):
        for each in (output, *output.alternatives):
            choices.append(
                {
                    "index": len(choices),
                    "text": echo.text + each.text,
                    "logprobs": completion_logprobs(each, echo),
                    "finish_reason": finish_reason(each),
                }
            )
    return {
        "id": identity,
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": usage_of(outputs),
    }


def completion_chunk(identity: str, created: int, model: str, text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    """A chunk of a streamed text completion."""
    choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
    return {"id": identity, "object": "text_completion", "created": created, "model": model, "choices": [choice]}
