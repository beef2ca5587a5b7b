"""The body of ``POST /v1/responses``: items in place of messages. What it does not list is refused by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.server.requests import Body, Content, Function, FunctionName, Json, Length

__all__ = [
    "FunctionCall",
    "FunctionOutput",
    "InputMessage",
    "NamedFunction",
    "Reasoning",
    "ResponseRequest",
    "TextFormat",
]

Status = Literal["in_progress", "completed", "incomplete"]


class Part(Body):
    """A part of a message; an answer of OpenAI's or ours has lists beside its text."""

    type: Literal["input_text", "output_text"]
    text: Content
    annotations: Annotated[list[Json], Field(max_length=0)] | None = None
    logprobs: list[Json] | None = None


Parts = Content | Annotated[list[Part], Field(min_length=1)]


def _plain(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    id: Content | None = None
    status: Status | None = None

    @property
    def plain(self) -> str:
        return _plain(self.content)


class FunctionCall(Body):
    type: Literal["function_call"]
    call_id: Content
    name: Content
    arguments: Content
    id: Content | None = None
    status: Status | None = None


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    call_id: Content
    output: Parts
    id: Content | None = None
    status: Status | None = None

    @property
    def plain(self) -> str:
        return _plain(self.output)


class ReasoningPart(Body):
    type: Literal["reasoning_text"]
    text: Content


class Reasoning(Body):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = None
    summary: Annotated[list[Json], Field(max_length=0)] | None = None
    id: Content | None = None
    status: Status | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: Content | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None


class ReasoningOptions(Body):
    effort: Content | None = None


class ResponseTool(Function):
    type: Literal["function"]


class NamedFunction(FunctionName):
    type: Literal["function"]


class ResponseStreamOptions(Body):
    include_obfuscation: Literal[False] | None = None


class ResponseRequest(Body):
    """``POST /v1/responses``. No state is kept, so that each request has its whole conversation as input."""

    model: Content
    input: Content | Annotated[list[InputMessage | FunctionCall | FunctionOutput | Reasoning], Field(min_length=1)]
    instructions: Content | None = None
    max_output_tokens: Length | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
