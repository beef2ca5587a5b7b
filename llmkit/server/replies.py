"""The bodies of answers, as /openapi.json documents them. Those of OpenAI's calls have its names."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

__all__ = [
    "ChatChoice",
    "ChatCompletion",
    "ChatLogprobs",
    "ChatMessage",
    "Completion",
    "CompletionChoice",
    "CompletionLogprobs",
    "ErrorBody",
    "ModelInfo",
    "ModelList",
    "NextTokens",
    "PlainText",
    "PlainToken",
    "ResponseBody",
    "Status",
    "TaskAnswer",
    "Token",
    "Tokens",
    "ToolCall",
    "Usage",
]


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """An error, in OpenAI's form."""

    error: ErrorDetail


class PromptTokens(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class PlainToken(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class Token(PlainToken):
    top_logprobs: list[PlainToken]


class ChatLogprobs(TypedDict):
    content: list[Token]
    refusal: None


class CalledFunction(TypedDict):
    name: str
    arguments: str


class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]
    reasoning_content: NotRequired[str]


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatCompletion(TypedDict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str


class Completion(TypedDict):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseBody(TypedDict):
    """OpenAI's response; further fields repeat parameters of the request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class TaskUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: NotRequired[int]


class TaskAnswer(TypedDict):
    """What the command prints with ``--json``; further fields depend on the task."""

    schema_version: int
    task: str
    model: str
    commit: str | None
    head: str
    text: str
    finish_reason: str
    usage: TaskUsage
    truncated: int


class NextToken(TypedDict):
    id: int
    token: str
    text: str
    probability: float


class NextTokens(TypedDict):
    model: str
    tokens: list[NextToken]


class Tokens(TypedDict):
    count: int
    max_model_len: int | None
    tokens: list[int]


class PlainText(TypedDict):
    prompt: str


class ModelInfo(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    head: str
    max_model_len: int | None


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelInfo]


class Status(TypedDict):
    status: str
    models: NotRequired[list[Any]]
