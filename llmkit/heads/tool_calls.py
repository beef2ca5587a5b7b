"""Splits calls of tools from a reply, while the text arrives in pieces.

Knows how calls are found for a tokenizer: by its response template, if that has a field for them; otherwise in the form
in which its chat template renders calls (`llmkit.heads.call_format`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from llmkit.errors import UsageError
from llmkit.heads.call_format import Call, CallFormat, learn_format
from llmkit.heads.chat_template import template_of
from llmkit.log import warn
from llmkit.tasks import Chat, ToolCall
from llmkit.text.template_limits import limited

__all__ = ["CallSplitter", "ToolCallForm", "call_splitter", "forced_calls"]


class _Format(Protocol):
    """The form of a model's calls, as `llmkit.heads.call_format.CallFormat`."""

    @property
    def begins(self) -> Any:
        """Pattern of the text from which on a reply has calls."""

    @property
    def typed(self) -> bool:
        """Whether values have types."""

    @property
    def texts(self) -> tuple[str, ...]:
        """What the form consists of."""

    def parse(self, text: str, names: Sequence[str]) -> tuple[str, list[Call], int]:
        """The text without its calls, the calls, and the number of broken ones."""


class CallSplitter:
    """Splits one reply into text and calls. Text before the first call is emitted at once, the rest at the end."""

    def __init__(self, form: _Format, tools: Sequence[Mapping[str, Any]], number: int = 0) -> None:
        """``number``: how many calls the conversation has already."""
        self._form, self._number = form, number
        self._parameters = dict(map(_declared, tools))
        self._text, self._shown = "", 0
        self.calls: tuple[ToolCall, ...] = ()
        self.broken = 0
        """Calls that cannot be parsed, and stay in the text."""

    def push(self, text: str) -> str:
        """Add text; returns what can be emitted."""
        self._text += text
        found = self._form.begins.search(self._text, self._shown, partial=True)
        end = len(self._text) if found is None else found.start()
        shown, self._shown = self._text[self._shown : end], end
        return shown

    def flush(self) -> str:
        """The rest of the text, without calls, after the reply has ended."""
        before, rest = self._text[: self._shown], self._text[self._shown :]
        # A call that nothing marks is one only at the beginning of the reply.
        text, calls, self.broken = self._form.parse(rest, list(self._parameters)) if rest else ("", [], 0)
        self.calls = tuple(self._call(call, self._number + place) for place, call in enumerate(calls, start=1))
        return text.lstrip() if calls and not before.strip() else text

    def count_in(self, text: str) -> int:
        """The number of calls in a text that is not the reply, such as its reasoning."""
        return len(self._form.parse(text, list(self._parameters))[1])

    def _call(self, call: Call, number: int) -> ToolCall:
        arguments = call.arguments
        if not self._form.typed:
            types = self._parameters.get(call.name, {})
            arguments = {key: _typed(value, types.get(key)) for key, value in arguments.items()}
        # Nine letters and digits, as Mistral's templates require.
        function = {"name": call.name, "arguments": arguments}
        return {"type": "function", "id": call.id or f"call{number:05d}", "function": function}


def _declared(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and parameters of a tool."""
    function = tool.get("function", tool)
    schema = function.get("parameters") or {}
    return str(function.get("name")), schema.get("properties") or {}


def _typed(value: Any, schema: Any) -> Any:
    """A value in the type of its parameter: text, unless the schema asks for something else and it is that."""
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    if not isinstance(value, str) or kinds is None or "string" in kinds:
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def call_splitter(tokenizer: Any, chat: Chat) -> tuple[CallSplitter, Mapping[int, str]] | None:
    """Creates a splitter for the reply to a prompt, with the special tokens in the form of calls and their texts.

    None without tools, and where the form is unknown.
    """
    form = _form(tokenizer, template_of(tokenizer, tools=True)) if chat.tools else None
    if form is None:
        return None
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown = {number: token for number, token in special.items() if any(token in text for text in form.texts)}
    number = sum(len(message.tool_calls) for message in chat.messages)
    return CallSplitter(form, chat.tools, number), shown


@dataclass(frozen=True)
class ToolCallForm:
    """A call as a model writes it: a text, arguments as JSON of a schema, and a text."""

    before: str
    schema: Mapping[str, Any]
    after: str


def forced_calls(tokenizer: Any, chat: Chat) -> list[ToolCallForm]:
    """The forms of the calls that ``chat.tool_choice`` allows, one for each tool.

    Raises:
        UsageError: the form of the model's calls is unknown, or its arguments are not JSON; or no tool has the name.
    """
    named = [tool.get("function", tool) for tool in chat.tools]
    tools = [each for each in named if chat.tool_choice in ("required", each.get("name"))]
    if not tools:
        names = ", ".join(str(each.get("name")) for each in named) or "none"
        raise UsageError(
            f"tool_choice={chat.tool_choice!r} names no tool (there are: {names})",
            "name one of them, or 'required' for any",
            code="invalid_value",
        )
    form = _of_chat_template(tokenizer, template_of(tokenizer, tools=True))
    if form is None or form.one is None:
        raise UsageError(
            "calls of tools cannot be enforced: the model's chat template does not render their arguments as JSON",
            "leave tool_choice out, or use another model",
            code="not_supported",
        )
    number = sum(len(message.tool_calls) for message in chat.messages)
    found = []
    for each in tools:
        before, after = form.one.around(str(each["name"]), number)
        found.append(ToolCallForm(before, each.get("parameters") or {"type": "object"}, after))
    return found


@lru_cache(maxsize=16)
def _form(tokenizer: Any, template: str) -> _Format | None:
    form = _of_response_template(tokenizer) or _of_chat_template(tokenizer, template)
    if form is None:
        warn(
            "tool_calls_unknown",
            "the form of this model's tool calls is unknown, so that they stay in the text: its tokenizer has no"
            " response_template for them, and its chat template renders none",
        )
    return form


_TOOL = {
    "type": "function",
    "function": {"name": "qxname", "description": "?", "parameters": {"type": "object", "properties": {}}},
}


@lru_cache(maxsize=16)
def _of_chat_template(tokenizer: Any, template: str) -> CallFormat | None:
    for as_text in (False, True):  # some templates add the arguments to a text

        def render(content: str, calls: Sequence[ToolCall], as_text: bool = as_text) -> str | None:
            reply: dict[str, Any] = {"role": "assistant", "content": content}
            if calls:
                reply["tool_calls"] = [_with_text(call) if as_text else call for call in calls]
            try:
                with limited(template, ""):
                    return str(
                        tokenizer.apply_chat_template(
                            [{"role": "user", "content": "?"}, reply],
                            tools=[_TOOL],
                            chat_template=template,
                            tokenize=False,
                        )
                    )
            except Exception:  # noqa: BLE001 - a template is code
                return None

        if (form := learn_format(render)) is not None:
            return form
    return None


def _with_text(call: ToolCall) -> ToolCall:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}


# Response templates.


@dataclass(frozen=True)
class _ResponseTemplate:
    """The field of a tokenizer's response template that describes calls."""

    spec: Mapping[str, Any]
    """A response template with this field only."""
    begins: Any
    closes: Any
    texts: tuple[str, ...]
    typed: bool = False

    def parse(self, text: str, _names: Sequence[str]) -> tuple[str, list[Call], int]:
        """See `CallFormat.parse`: each region is parsed by itself, so that a broken one leaves the others."""
        from transformers.utils.chat_parsing import parse_response

        kept, calls, broken, last, place = [], [], 0, 0, 0
        while found := self.begins.search(text, place):
            close = self.closes.search(text, found.end()) if self.closes is not None else None
            end = len(text) if close is None else close.end()
            try:
                calls += _calls(parse_response(text[found.start() : end], dict(self.spec), prefix=""))
                kept.append(text[last : found.start()])
                last = end
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                broken += 1
            place = max(end, place + 1)
        return "".join((*kept, text[last:])), calls, broken


def _of_response_template(tokenizer: Any) -> _Format | None:
    from transformers.utils.chat_parsing.response_templates import load_response_template

    spec: Any = getattr(tokenizer, "response_template", None)
    field = spec.get("fields", {}).get("tool_calls") if isinstance(spec, dict) else None
    if field is None:
        return None
    anchors = {key: spec[key] for key in ("start_anchor", "start_anchor_pattern") if key in spec}
    alone = {**anchors, "fields": {"tool_calls": field}}
    try:
        loaded = load_response_template(alone).fields["tool_calls"]
    except ValueError:  # is warned about where reasoning is split
        return None
    if loaded.open_re is None:
        return None
    texts = json.dumps(field, ensure_ascii=False).replace("\\", "")
    return _ResponseTemplate(alone, loaded.open_re, loaded.close_re, (texts,))


def _calls(message: Mapping[str, Any]) -> list[Call]:
    """The calls of a parsed message."""
    found = message.get("tool_calls") or []
    items = [each for part in (found if isinstance(found, list) else [found]) for each in _flat(part)]
    if not items:
        raise ValueError("not a call")
    return [_parsed(each) for each in items]


def _flat(part: Any) -> list[Any]:
    return part if isinstance(part, list) else [part]


def _parsed(item: Mapping[str, Any]) -> Call:
    function = item.get("function", item)
    name, arguments = function["name"], function.get("arguments", function.get("parameters")) or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("not a call")
    return Call(name, arguments, str(item.get("id") or ""))
