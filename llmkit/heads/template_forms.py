"""The form in which a chat template takes messages, found by rendering markers in their place.

Templates differ in what they accept: message content as text or as a list of parts, a system message or none, the
arguments of tool calls as an object or as text, reasoning under one of several names. A form is found once for each
sequence of kinds of messages; a template that drops a message, a tool call, a tool or the reasoning of a reply in every
form is refused. Does not know what a conversation is rendered for (`llmkit.heads.chat_template`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, NamedTuple

from llmkit.config.commands import command_line
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.tasks import Chat, Message, ToolCall
from llmkit.text.template_limits import limited

__all__ = ["CORRECT", "MARKER", "PLAIN", "Form", "find_form", "render_form"]

MARKER = "Qx{}zQ"
"""Placeholder of a text: letters and digits, which trimming, escaping and JSON do not change."""
_LONG = "\n\nIt goes on." * 100
"""Text between the two markers of a message, so that a template which keeps only the first line or the first N
characters is noticed."""
PLAIN = f"continue plain text: {command_line('generate', raw=True)}"
CORRECT = f"correct the template in the model's folder, or {PLAIN}"
_ANOTHER = "set tokenizer.chat_template to a template that takes"
_PART = "part"
_REASONING = ("reasoning_content", "thinking", "reasoning", _PART)
"""The names under which templates read reasoning; `_PART`: in a part of the content, as Magistral's does."""
_INSTRUCTIONS = ("system", "developer")


class _Kind(NamedTuple):
    """What a message has."""

    role: Any
    content: bool
    reasoning: bool
    calls: int


class _Part(NamedTuple):
    """A part of a message, and the markers in its place."""

    name: str
    message: int
    markers: Sequence[str]
    """In lower case."""


@dataclass(frozen=True)
class Form:
    """The form in which messages are passed to a template."""

    parts: bool = False
    """The content is a list of parts, as templates of vision-language models expect."""
    merged: bool = False
    """System messages are prepended to the next user message, as the cards of Gemma 1 and others advise."""
    text_arguments: bool = False
    """The arguments of tool calls are JSON text, as templates of DeepSeek expect."""
    null_content: bool = False
    """Messages without text have the content None."""
    developer: bool = False
    """The template knows the role developer, which is otherwise called system."""
    reasoning: str = ""
    """The key of reasoning."""
    omitted: int = 0
    """How many messages lose their reasoning, by the template's own rule for earlier turns."""

    def turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [self._turn(each) for each in (_merged(messages) if self.merged else messages)]

    def _turn(self, message: Message) -> dict[str, Any]:
        role = "system" if message.role == "developer" and not self.developer else message.role
        turn: dict[str, Any] = {"role": role, "content": self._content(message)}
        if message.reasoning and self.reasoning != _PART:
            turn[self.reasoning] = message.reasoning
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return turn | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}

    def _content(self, message: Message) -> Any:
        if message.reasoning and self.reasoning == _PART:
            text = [{"type": "text", "text": message.content}] if message.content else []
            return [{"type": "thinking", "thinking": message.reasoning}, *text]
        if self.null_content and not message.content:
            return None
        return [{"type": "text", "text": message.content}] if self.parts else message.content

    def _call(self, call: ToolCall) -> dict[str, Any]:
        if not self.text_arguments:
            return dict(call)
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _merged(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, with system messages in front of the next message of the user."""
    before: list[str] = []
    for message, following in zip(messages, [*messages[1:], None], strict=True):
        if message.role in _INSTRUCTIONS and following is not None and following.role in (*_INSTRUCTIONS, "user"):
            before.append(message.content)
        else:
            yield replace(message, content="\n\n".join([*before, message.content])) if before else message
            before = []


def render_form(tokenizer: Any, template: str, chat: Chat, form: Form, *, prompt: bool) -> str:
    """The text of a conversation in a form; with ``prompt``, up to the assistant's turn."""
    from jinja2.exceptions import TemplateError

    try:
        return _apply(tokenizer, template, chat, form, prompt)
    except LlmkitError:
        raise
    except Exception as error:  # a template is code, and its output may depend on the texts
        if not isinstance(error, TemplateError) or not any(message.tool_calls for message in chat.messages):
            raise _refusal(error, chat.messages) from error
    try:
        return _apply(tokenizer, template, replace(chat, messages=_numbered(chat.messages)), form, prompt)
    except TemplateError as error:
        raise _refusal(error, chat.messages) from error


def _apply(tokenizer: Any, template: str, chat: Chat, form: Form, prompt: bool) -> str:
    with limited(template, CORRECT):
        text = tokenizer.apply_chat_template(
            form.turns(chat.messages),
            tools=list(chat.tools) or None,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
            **chat.template_kwargs,
        )
    return str(text)


def _numbered(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with ids of nine digits for their tool calls, which templates of Mistral require."""
    found, new, waiting = [], dict[str, str](), dict[str, str]()
    for message in messages:
        calls = []
        for call in message.tool_calls:
            number = f"{len(new) + len(waiting) + 1:09d}"
            new[call.get("id") or number] = number
            waiting[number] = call["function"]["name"]
            calls.append({**call, "id": number})
        message = replace(message, tool_calls=tuple(calls))
        if message.role == "tool" and (number := new.get(message.tool_call_id) or next(iter(waiting), "")):
            name = waiting.pop(number, "")
            message = replace(message, tool_call_id=number, name=message.name or name)
        found.append(message)
    return tuple(found)


def find_form(tokenizer: Any, template: str, chat: Chat, *, prompt: bool) -> Form:
    """The first form that keeps all of a conversation.

    Raises:
        InputError: the template drops or refuses something in every form.
    """
    options = _as_json(chat.template_kwargs, template)
    kinds = tuple(map(_kind, chat.messages))
    found = _search(tokenizer, template, kinds, bool(chat.tools), options, prompt)
    if isinstance(found, InputError):
        raise found.reworded(found.problem)
    return found


def _as_json(options: Mapping[str, Any], template: str) -> str:
    for name in options:
        if name in ("messages", "tools", "add_generation_prompt"):
            raise UsageError(f"`chat_template_kwargs` cannot set {name}", "leave it out", code="invalid_value")
        if re.search(rf"\b{re.escape(name)}\b", template) is None:
            raise UsageError(
                f"`chat_template_kwargs` has {name}, which the model's chat template does not use",
                "leave it out",
                code="no_effect",
            )
    try:
        return json.dumps(dict(options), sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise UsageError(
            f"`chat_template_kwargs` are not JSON ({error})", "use texts, numbers, lists and objects"
        ) from error


def _kind(message: Message) -> _Kind:
    other = bool(message.tool_calls or message.reasoning)
    return _Kind(message.role, bool(message.content) or not other, bool(message.reasoning), len(message.tool_calls))


@lru_cache(maxsize=1024)
def _search(
    tokenizer: Any, template: str, kinds: tuple[_Kind, ...], tools: bool, options: str, prompt: bool
) -> Form | InputError:
    """The form, or why there is none."""
    if tools and not _takes_tools(tokenizer, template, options):
        return _dropped("tools")
    key = ""
    if any(kind.reasoning for kind in kinds) and not (key := _reasoning_key(tokenizer, template, options)):
        return _dropped("reasoning")
    probe, wanted = _probe(kinds, json.loads(options), tools)
    problem, fewest = None, len(wanted) + 1
    for form in _forms(kinds, replace(Form(), reasoning=key, developer="developer" in template)):
        try:
            found = _markers(_apply(tokenizer, template, probe, form, prompt))
        except LlmkitError:  # the same in every form
            raise
        except Exception as error:  # noqa: BLE001
            problem = problem or _refusal(error, probe.messages)
            continue
        lost = [(part, place) for part, place, markers in wanted if not found.issuperset(markers)]
        # The reasoning of a reply that is rendered is kept; templates drop that of earlier turns by design.
        reply = None if prompt else len(kinds) - 1
        missing = [part for part, place in lost if part != "reasoning" or place == reply]
        if not missing:
            return replace(form, omitted=len(lost))
        if len(missing) < fewest:
            part, fewest = "system message" if set(missing) == {"system message"} else missing[-1], len(missing)
            problem = _dropped(part)
    assert problem is not None
    return problem


def _forms(kinds: Sequence[_Kind], form: Form) -> Iterator[Form]:
    merges = any(first.role in _INSTRUCTIONS and second.role == "user" for first, second in pairwise(kinds))
    calls, empty = any(kind.calls for kind in kinds), not all(kind.content for kind in kinds)
    for merged, null, text, parts in product(*(range(1 + more) for more in (merges, empty, calls, True))):
        yield replace(form, merged=bool(merged), null_content=bool(null), text_arguments=bool(text), parts=bool(parts))


def _probe(kinds: Sequence[_Kind], options: Mapping[str, Any], tools: bool) -> tuple[Chat, list[_Part]]:
    """A conversation of markers, and its parts in their order."""
    messages, wanted = [], []
    for number, kind in enumerate(kinds):
        ends = [MARKER.format(number), MARKER.format(f"{number}e")]
        if kind.content:
            wanted.append(_Part(_LABELS.get(kind.role, f"text of the {kind.role}"), number, _lower(ends)))
        calls = [[MARKER.format(f"{number}{part}{call}") for part in "fkv"] for call in range(kind.calls)]
        wanted += [_Part("tool calls", number, _lower(call)) for call in calls]
        if kind.reasoning:
            wanted.append(_Part("reasoning", number, _lower([MARKER.format(f"{number}r")])))
        message = Message(
            kind.role,
            _LONG.join(ends) if kind.content else "",
            reasoning=MARKER.format(f"{number}r") if kind.reasoning else "",
            tool_calls=tuple({"type": "function", "function": {"name": f, "arguments": {k: v}}} for f, k, v in calls),
        )
        messages.append(message)
    return Chat(_numbered(messages), tools=(_TOOL,) if tools else (), template_kwargs=options), wanted


_LABELS = {"system": "system message", "developer": "system message", "tool": "results of tools"}
_FIXES = {
    "tools": f"{_ANOTHER} tools, or remove them",
    "tool calls": f"{_ANOTHER} them, or remove the row",
    "results of tools": f"{_ANOTHER} them, or remove the row",
    "reasoning": f"{_ANOTHER} it, or remove it, or make it a part of the content as the model generates it",
}
_NAMES = [MARKER.format(name) for name in ("tool", "what", "key")]
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAMES[0],
        "description": _NAMES[1],
        "parameters": {
            "type": "object",
            "properties": {_NAMES[2]: {"type": "string", "description": "?"}},
            "required": [_NAMES[2]],
        },
    },
}


@lru_cache(maxsize=64)
def _takes_tools(tokenizer: Any, template: str, options: str) -> bool:
    """Whether a template renders a tool: its name, its description and its parameters."""
    chat, _ = _probe([_Kind("user", True, False, 0)], json.loads(options), True)
    rendered = _rendered_markers(tokenizer, template, chat, [Form(), Form(parts=True)], True)
    return any(found.issuperset(_lower(_NAMES)) for found in rendered)


@lru_cache(maxsize=64)
def _reasoning_key(tokenizer: Any, template: str, options: str) -> str:
    """The name under which a template reads the reasoning of a reply; empty if it reads none."""
    user = _Kind("user", True, False, 0)
    for reply, key in product((_Kind("assistant", True, True, 0), _Kind("assistant", False, True, 1)), _REASONING):
        chat, _ = _probe((user, reply), json.loads(options), False)
        forms = _forms((user, reply), Form(reasoning=key))
        marker = chat.messages[1].reasoning.lower()
        if any(marker in found for found in _rendered_markers(tokenizer, template, chat, forms, False)):
            return str(key)
    return ""


def _rendered_markers(
    tokenizer: Any, template: str, chat: Chat, forms: Sequence[Form] | Iterator[Form], prompt: bool
) -> Iterator[set[str]]:
    """The markers in the texts of a conversation, in those forms that the template takes."""
    for form in forms:
        try:
            yield _markers(_apply(tokenizer, template, chat, form, prompt))
        except LlmkitError:
            raise
        except Exception:  # noqa: BLE001, S112 - the next form
            continue


def _lower(texts: Sequence[str]) -> list[str]:
    return [text.lower() for text in texts]


def _markers(text: str) -> set[str]:
    """The lower-cased markers in a text, other than in the repr of a list of parts."""
    return set(re.findall(r"(?<!['\"]text['\"]: ['\"])(?<!['\"]thinking['\"]: ['\"])qx\w+?zq", text.lower()))


def _dropped(part: str) -> InputError:
    return InputError(
        f"the model's chat template drops the {part}", _FIXES.get(part, CORRECT), code="chat_template_failed"
    )


def _refusal(error: Exception, messages: Sequence[Message]) -> InputError:
    """A template's error as a message to the user."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if type(error) is TemplateError:  # raised by the template itself
        tools = any(message.tool_calls or message.role == "tool" for message in messages)
        return InputError(
            f"the model's chat template refuses these messages ({error})",
            f"{_ANOTHER} tool calls, or remove the row" if tools else "let user and assistant take turns",
            code="chat_template_failed",
        )
    if isinstance(error, TemplateSyntaxError):
        return InputError(
            f"line {error.lineno} of the model's chat template is wrong ({error.message})",
            CORRECT,
            code="chat_template_failed",
        )
    return InputError(
        f"the model's chat template fails ({type(error).__name__}: {error})", CORRECT, code="chat_template_failed"
    )
