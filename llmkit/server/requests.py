"""The bodies of requests. Parameters that are not listed here are refused by name.

OpenAI's are those of its chat and completion calls; those of tasks follow from their columns and settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from llmkit.config.declaration import bounds, setting_fields
from llmkit.config.settings import GenerationSettings
from llmkit.tasks import Task

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "NextRequest",
    "TokenizeRequest",
    "task_request",
]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a lone surrogate at character {error.start} is not text; send complete characters"
        ) from error
    return text


Content = Annotated[str, AfterValidator(_encodable)]
Stop = Content | Annotated[list[Content], Field(max_length=64)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
LONGEST = 2**31 - 1
Length = Annotated[int, Field(ge=1, le=LONGEST)]


def _all_encodable(value: Any) -> Any:
    """Checks every text in a JSON value."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            _encodable(part)
        elif isinstance(part, Mapping):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
    return value


Json = Annotated[dict[str, Any], AfterValidator(_all_encodable)]


class Body(BaseModel):
    """A body: unknown parameters and values that are not finite are refused. Null is a parameter that is left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Body):
    name: Content
    """Without effect, as at OpenAI, which requires it."""
    schema_: Json = Field(alias="schema")
    strict: bool | None = None
    """Outputs conform in any case."""


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TextPart(Body):
    type: Literal["text"]
    text: Content


Text = Content | Annotated[list[TextPart], Field(min_length=1)]


class CalledFunction(Body):
    name: Content
    arguments: Content
    """JSON text, as OpenAI has it."""


class ToolCall(Body):
    id: Content
    type: Literal["function"] = "function"
    function: CalledFunction


class Instruction(Body):
    """A message of the system or the developer."""

    role: Literal["system", "developer"]
    content: Text


class UserMessage(Body):
    role: Literal["user"]
    content: Text


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Text | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: Content | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    """OpenAI's own answers have an empty list."""


class ToolMessage(Body):
    role: Literal["tool"]
    content: Text
    tool_call_id: Content
    name: Content | None = None


Message = Annotated[Instruction | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    name: Annotated[Content, Field(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
    description: Content | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: Content


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionName


class _Sampling(Body):
    """Parameters of both OpenAI calls. Those that only have their default are listed for clients that send it."""

    model: Content
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class ChatRequest(_Sampling):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Length | None = None
    max_completion_tokens: Length | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Content | None = None
    chat_template_kwargs: Json | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(_Sampling):
    """``POST /v1/completions``."""

    prompt: (
        Content
        | Annotated[list[Content], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=LONGEST)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None


class TokenizeRequest(Body):
    """``POST /tokenize``."""

    model: Content | None = None
    prompt: Content
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    """``POST /detokenize``."""

    model: Content | None = None
    tokens: list[Token]


class NextRequest(Body):
    """``POST /v1/next``."""

    model: Content | None = None
    prompt: Content
    top: Annotated[int, Field(ge=1, le=1000)] = 10


def task_request(task: type[Task]) -> type[Body]:
    """The body of a task's endpoint: its columns, its settings, and those of generation."""
    members: dict[str, Any] = dict.fromkeys(task.columns, (Content, ...))
    members |= dict.fromkeys(task.optional_columns, (Annotated[Any, AfterValidator(_all_encodable)], None))
    members |= {"model": (Content | None, None), "stream": (bool, False)}
    for settings in (GenerationSettings, task.settings_class):
        hints = get_type_hints(settings)
        for item in setting_fields(settings):
            if item.name not in members:
                members[item.name] = _member(item, hints[item.name])
    return create_model(f"{task.verb.title()}Request", __base__=Body, **members)


def _member(item: Any, hint: Any) -> tuple[Any, Any]:
    """Type and default of a setting."""
    if hint == tuple[str, ...]:
        return Stop | None, Field(None, description=item.metadata["help"])
    kinds = set(get_args(hint)) or {hint}
    if str in kinds and not kinds & {int, float}:
        hint = Content | None
    limits: dict[str, Any] = {}
    if kinds & {int, float}:
        limits = {
            key: value for key, value in zip(("ge", "le"), bounds(item, hint), strict=True) if math.isfinite(value)
        }
    default = None if item.default == () else item.default
    return hint | None, Field(default, description=item.metadata["help"], **limits)
