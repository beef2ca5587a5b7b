"""Renders conversations with the model's own chat template, in training and at inference alike.

Templates differ in what they accept: message content as text or as a list of parts, with or without a system message.
The form that loses nothing is found by rendering markers in place of the messages, once per sequence of roles. A
template that drops a message in every form is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmkit.config.settings import command_line
from llmkit.data.text import read_text_file
from llmkit.errors import CheckpointError, InputError, LlmkitError, UsageError
from llmkit.files import read_json
from llmkit.heads.base import encode_text
from llmkit.heads.template_limits import limited
from llmkit.heads.thinking import Switch, find_switch
from llmkit.log import warn
from llmkit.tasks import Chat, Message

__all__ = [
    "check_template",
    "choose_template",
    "encode_chat",
    "render_chat",
    "reply_frame",
    "template_of",
    "thinking_switch",
]

_MARKER = "Qx{}zQ"
"""Placeholder of a message: letters and digits, which trimming, escaping and JSON do not change."""
_LONG = "\n\nIt goes on." * 100
"""Text between the two markers of a message, so that a template which keeps only the first line or the first N
characters is noticed."""
_PLAIN = f"continue plain text: {command_line('generate', raw=True)}"
_CORRECT = f"correct the template in the model's folder, or {_PLAIN}"


@dataclass(frozen=True)
class _Form:
    """The form in which messages are passed to a template."""

    parts: bool = False
    """The content is a list of parts, as templates of vision-language models expect."""
    merged: bool = False
    """The system message is prepended to the first user message, as the cards of Gemma 1 and others advise."""

    def turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        if self.merged:
            system, first, *rest = messages
            messages = (Message(first.role, f"{system.content}\n\n{first.content}"), *rest)
        return [
            {"role": each.role, "content": [{"type": "text", "text": each.content}] if self.parts else each.content}
            for each in messages
        ]


def check_template(tokenizer: Any) -> None:
    """Refuse a template that cannot render any conversation, before there is one.

    Raises:
        InputError: the template fails or drops a message.
        CheckpointError: there are several templates and no default.
    """
    question = Message("user", "?")
    try:
        render_chat(tokenizer, Chat((question,)))
    except InputError as error:
        try:
            render_chat(tokenizer, Chat((Message("system", "?"), question)))
        except InputError:
            raise error from None


def choose_template(tokenizer: Any, value: str) -> str:
    """The template that a recipe names: Jinja text, a file, or another template of the model.

    Raises:
        UsageError: the value is none of these.
    """
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if value in named:
        return str(named[value])
    text = value
    if not _is_jinja(value) and os.path.isfile(os.path.expanduser(value)):  # noqa: PTH111, PTH113 - text may be too long
        text = read_text_file(Path(value).expanduser())
        if value.endswith(".json"):
            text = str(read_json(Path(value).expanduser()).get("chat_template"))
    if not _is_jinja(text):
        choices = f"; the model's are {', '.join(named)}" if named else ""
        raise UsageError(
            f"tokenizer.chat_template: {value[:80]!r} is neither a Jinja template nor a file with one,"
            " and the model has none of that name",
            f"give a file such as chat_template.jinja, or the text itself{choices}",
        )
    return text


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def render_chat(tokenizer: Any, chat: Chat) -> str:
    """A conversation as text, up to the assistant's turn, or including the beginning of its reply."""
    template, messages = template_of(tokenizer), chat.messages
    if not chat.prefill:
        text = _render(tokenizer, template, messages, thinking=chat.thinking, prompt=True)
        return text + _reply_header(tokenizer, template, chat.thinking)
    # The template may trim or close a reply: so a marker is rendered for its beginning, which is then appended.
    marker = _MARKER.format(len(messages))
    try:
        text = _render(
            tokenizer, template, (*messages, Message("assistant", marker)), thinking=chat.thinking, prompt=False
        )
    except InputError:  # it refuses conversations that end with the assistant
        return render_chat(tokenizer, replace(chat, prefill="")) + chat.prefill
    return text[: text.rindex(marker)] + chat.prefill


def encode_chat(tokenizer: Any, chat: Chat) -> list[int]:
    """Token ids of a conversation. The template adds the special tokens; the tokenizer would add a second BOS."""
    return encode_text(tokenizer, render_chat(tokenizer, chat), special=False)


def reply_frame(tokenizer: Any, *, thinking: bool | None = None) -> tuple[str, str]:
    """What the template puts between a prompt and a reply, and after the reply; empty if that is unknown."""
    return _reply_frame(tokenizer, template_of(tokenizer), thinking)


@lru_cache(maxsize=64)
def _reply_frame(tokenizer: Any, template: str, thinking: bool | None) -> tuple[str, str]:
    question, marker = Message("user", "?"), _MARKER.format(1)
    prompt = _render(tokenizer, template, (question,), thinking=thinking, prompt=True)
    prompt += _reply_header(tokenizer, template, thinking)
    try:
        whole = _render(tokenizer, template, (question, Message("assistant", marker)), thinking=thinking, prompt=False)
    except InputError:
        return "", ""
    before, _, after = whole.rpartition(marker)
    return before[len(prompt) :] if before.startswith(prompt) else "", after


@lru_cache(maxsize=64)
def _reply_header(tokenizer: Any, template: str, thinking: bool | None) -> str:
    """What a template puts before a reply but not after a prompt, for lack of ``add_generation_prompt``."""
    if "add_generation_prompt" in template:
        return ""
    question, marker = Message("user", "?"), _MARKER.format(1)
    try:
        prompt, whole = (
            _render(tokenizer, template, turns, thinking=thinking, prompt=False)
            for turns in ((question,), (question, Message("assistant", marker)))
        )
    except InputError:
        return ""
    header = whole.rpartition(marker)[0].removeprefix(prompt).rstrip(" ")
    return header if whole.startswith(prompt) and header.strip() else ""


def _render(tokenizer: Any, template: str, messages: Sequence[Message], *, thinking: bool | None, prompt: bool) -> str:
    if thinking is not None and (switch := _switch(tokenizer, template)) is not None:
        messages = switch.messages(messages, thinking)
    roles = tuple(message.role for message in messages)
    form = _form(tokenizer, template, roles, thinking, prompt)
    try:
        return _apply(tokenizer, template, form.turns(messages), thinking=thinking, prompt=prompt)
    except LlmkitError:
        raise
    except Exception as error:  # a template is code, and its output may depend on the texts
        raise _refusal(error) from error


def _apply(
    tokenizer: Any,
    template: str,
    turns: list[dict[str, Any]],
    *,
    thinking: bool | None,
    prompt: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    if thinking is not None and (switch := _switch(tokenizer, template)) is not None:
        arguments = switch.arguments(thinking)
    with limited(template, _CORRECT):
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=template,
            add_generation_prompt=prompt,
            tokenize=False,
            **arguments or {},
        )
    return str(text)


def thinking_switch(tokenizer: Any) -> Switch | None:
    """How the template turns reasoning on and off; None if it cannot."""
    return _switch(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=64)
def _switch(tokenizer: Any, template: str) -> Switch | None:
    def render(messages: Sequence[Message], arguments: Mapping[str, Any]) -> str | None:
        try:
            return _apply(tokenizer, template, _Form().turns(messages), thinking=None, prompt=True, arguments=arguments)
        except Exception:  # noqa: BLE001 - a template is code
            return None

    return find_switch(template, render)


@lru_cache(maxsize=1024)
def _form(tokenizer: Any, template: str, roles: tuple[Any, ...], thinking: bool | None, prompt: bool) -> _Form:
    """The first form that keeps all messages."""
    ends = [(_MARKER.format(number), _MARKER.format(f"{number}e")) for number in range(len(roles))]
    messages = [Message(role, _LONG.join(pair)) for role, pair in zip(roles, ends, strict=True)]
    problem, fewest = None, len(messages) + 1
    for form in _forms(roles):
        try:
            text = _apply(tokenizer, template, form.turns(messages), thinking=thinking, prompt=prompt).lower()
        except LlmkitError:  # the same in every form
            raise
        except Exception as error:  # noqa: BLE001
            problem = problem or _refusal(error)
            continue
        lost = [role for role, pair in zip(roles, ends, strict=True) if not all(_holds(text, end) for end in pair)]
        if not lost:
            return form
        if len(lost) < fewest:
            part, fewest = "system message" if lost == ["system"] else f"text of the {lost[-1]}", len(lost)
            problem = InputError(f"the model's chat template drops the {part}", _CORRECT, code="chat_template_failed")
    assert problem is not None
    raise problem


def _holds(text: str, marker: str) -> bool:
    """Whether a lower-cased text contains a marker, other than in the repr of a list of parts."""
    return re.search(rf"(?<!['\"]text['\"]: ['\"]){marker.lower()}", text) is not None


def _forms(roles: Sequence[str]) -> Iterator[_Form]:
    yield from (_Form(), _Form(parts=True))
    if roles[0] == "system" and len(roles) > 1:
        yield from (_Form(merged=True), _Form(parts=True, merged=True))


def _refusal(error: Exception) -> InputError:
    """A template's error as a message to the user."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if type(error) is TemplateError:  # raised by the template itself
        return InputError(
            f"the model's chat template refuses these messages ({error})",
            "let user and assistant take turns",
            code="chat_template_failed",
        )
    if isinstance(error, TemplateSyntaxError):
        return InputError(
            f"line {error.lineno} of the model's chat template is wrong ({error.message})",
            _CORRECT,
            code="chat_template_failed",
        )
    return InputError(
        f"the model's chat template fails ({type(error).__name__}: {error})", _CORRECT, code="chat_template_failed"
    )


def template_of(tokenizer: Any) -> str:
    """The template for conversations: the only one, the default, or the only one of several that renders them."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return str(templates or "")
    return _of_several(tokenizer, tuple(templates.items()))


@lru_cache(maxsize=16)
def _of_several(tokenizer: Any, templates: tuple[tuple[str, str], ...]) -> str:
    """See `template_of`. Templates that need tools or documents drop messages without them, or fail."""
    found = {name: text for name, text in templates if name == "default" or _renders(tokenizer, text)}
    names = ", ".join(name for name, _ in templates)
    if not found:
        raise CheckpointError(
            f"the model has the chat templates {names}; none is named default, and none renders a conversation",
            f"add one named default to tokenizer_config.json, or {_PLAIN}",
            code="chat_template_failed",
        )
    chosen = "default" if "default" in found else next(iter(found))
    if chosen != "default" and len(found) > 1:
        warn(
            "chat_template_chosen",
            "the model has the chat templates %s and no default, so %s is used; to use another, name it default in"
            " tokenizer_config.json",
            names,
            chosen,
        )
    return found[chosen]


def _renders(tokenizer: Any, template: str) -> bool:
    try:
        _form(tokenizer, template, ("user", "assistant", "user"), True, True)
    except InputError:
        return False
    return True
