"""Renders conversations with the model's own chat template, in training and at inference alike.

Knows prompts, replies and what a template puts around them. In which form a template takes messages is found in
`llmkit.heads.template_forms`, so that nothing is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from llmkit.data.text import read_text_file
from llmkit.errors import CheckpointError, InputError, LlmkitError, UsageError
from llmkit.files import read_json
from llmkit.heads.base import encode_text
from llmkit.heads.template_forms import MARKER, PLAIN, Form, find_form, render_form
from llmkit.heads.thinking import Switch, find_switch
from llmkit.log import warn
from llmkit.tasks import Chat, Message

__all__ = [
    "alternates",
    "check_template",
    "choose_template",
    "encode_chat",
    "omitted_reasoning",
    "render_chat",
    "render_reply",
    "reply_frame",
    "takes_reasoning",
    "takes_tools",
    "template_of",
    "thinking_switch",
]


def check_template(tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
    """Refuse a template that cannot render any conversation, before there is one.

    Args:
        options: variables of the template.

    Raises:
        InputError: the template fails or drops a message.
        UsageError: it does not use one of the variables.
        CheckpointError: there are several templates and no default.
    """
    question = Message("user", "?")
    try:
        render_chat(tokenizer, Chat((question,), template_kwargs=options or {}))
    except InputError as error:
        try:
            render_chat(tokenizer, Chat((Message("system", "?"), question), template_kwargs=options or {}))
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
    template = template_of(tokenizer, tools=bool(chat.tools))
    if not chat.prefill:
        return _render(tokenizer, template, chat, prompt=True) + _reply_header(tokenizer, template, _bare(chat))
    # The template may trim or close a reply: so a marker is rendered for its beginning, which is then appended.
    marker = MARKER.format(len(chat.messages))
    try:
        text = _render(tokenizer, template, _with(chat, Message("assistant", marker)), prompt=False)
    except InputError:  # it refuses conversations that end with the assistant
        return render_chat(tokenizer, replace(chat, prefill="")) + chat.prefill
    return text[: text.rindex(marker)] + chat.prefill


def encode_chat(tokenizer: Any, chat: Chat) -> list[int]:
    """Token ids of a conversation. The template adds the special tokens; the tokenizer would add a second BOS."""
    return encode_text(tokenizer, render_chat(tokenizer, chat), special=False)


def render_reply(tokenizer: Any, chat: Chat, reply: Message) -> str:
    """What the template puts after a prompt for a reply with reasoning or tool calls, including the end of its turn.

    Raises:
        InputError: the template does not continue the prompt.
    """
    prompt = render_chat(tokenizer, chat)
    template = template_of(tokenizer, tools=bool(chat.tools))
    whole = _render(tokenizer, template, _with(replace(chat, prefill=""), reply), prompt=False)
    if not whole.startswith(prompt):
        raise InputError(
            "the model's chat template renders this reply in another way than a reply to its prompt",
            "turn reasoning on or off with prompt.think or a variable in prompt.chat_template_kwargs",
            "remove the reasoning",
            code="chat_template_failed",
        )
    return whole[len(prompt) :]


def omitted_reasoning(tokenizer: Any, chat: Chat) -> int:
    """How many earlier replies of a prompt are rendered without their reasoning, as most templates do."""
    if not any(message.reasoning for message in chat.messages):
        return 0
    template = template_of(tokenizer, tools=bool(chat.tools))
    return find_form(tokenizer, template, _switched(tokenizer, template, chat), prompt=True).omitted


def alternates(tokenizer: Any) -> bool:
    """Whether the template refuses consecutive messages of one role."""
    turns = tuple(Message(role, "?") for role in ("user", "user", "assistant", "assistant"))
    try:
        find_form(tokenizer, template_of(tokenizer), Chat(turns), prompt=False)
    except LlmkitError:  # rendering the conversation reports other errors
        return True
    return False


def reply_frame(tokenizer: Any, chat: Chat | None = None) -> tuple[str, str]:
    """What the template puts between a prompt and a reply, and after the reply; empty if that is unknown.

    Args:
        chat: a conversation with the variables of the template; None for the defaults.
    """
    return _reply_frame(tokenizer, template_of(tokenizer), _bare(chat or Chat(())))


class _Bare(NamedTuple):
    """The variables of a template, without a conversation."""

    thinking: bool | None
    options: str
    """JSON."""

    def chat(self, *messages: Message) -> Chat:
        return Chat(messages, thinking=self.thinking, template_kwargs=json.loads(self.options))


def _bare(chat: Chat) -> _Bare:
    return _Bare(chat.thinking, json.dumps(dict(chat.template_kwargs), sort_keys=True))


@lru_cache(maxsize=64)
def _reply_frame(tokenizer: Any, template: str, bare: _Bare) -> tuple[str, str]:
    question, marker = Message("user", "?"), MARKER.format(1)
    prompt = _render(tokenizer, template, bare.chat(question), prompt=True)
    prompt += _reply_header(tokenizer, template, bare)
    try:
        whole = _render(tokenizer, template, bare.chat(question, Message("assistant", marker)), prompt=False)
    except InputError:
        return "", ""
    before, _, after = whole.rpartition(marker)
    return before[len(prompt) :] if before.startswith(prompt) else "", after


@lru_cache(maxsize=64)
def _reply_header(tokenizer: Any, template: str, bare: _Bare) -> str:
    """What a template puts before a reply but not after a prompt, for lack of ``add_generation_prompt``."""
    if "add_generation_prompt" in template:
        return ""
    question, marker = Message("user", "?"), MARKER.format(1)
    try:
        prompt, whole = (
            _render(tokenizer, template, bare.chat(*turns), prompt=False)
            for turns in ((question,), (question, Message("assistant", marker)))
        )
    except InputError:
        return ""
    header = whole.rpartition(marker)[0].removeprefix(prompt).rstrip(" ")
    return header if whole.startswith(prompt) and header.strip() else ""


def takes_tools(tokenizer: Any) -> bool:
    """Whether the template renders tools."""
    chat = Chat((Message("user", "?"),), tools=({"type": "function", "function": {"name": "?"}},))
    try:
        find_form(tokenizer, template_of(tokenizer, tools=True), chat, prompt=True)
    except LlmkitError:  # rendering the conversation reports other errors
        return False
    return True


def takes_reasoning(tokenizer: Any) -> bool:
    """Whether the template renders the reasoning of a reply apart from its text."""
    chat = Chat((Message("user", "?"), Message("assistant", "?", reasoning="?")))
    try:
        find_form(tokenizer, template_of(tokenizer), chat, prompt=False)
    except LlmkitError:  # rendering the conversation reports other errors
        return False
    return True


def _with(chat: Chat, message: Message) -> Chat:
    return replace(chat, messages=(*chat.messages, message))


def _render(tokenizer: Any, template: str, chat: Chat, *, prompt: bool) -> str:
    chat = _switched(tokenizer, template, chat)
    return render_form(tokenizer, template, chat, find_form(tokenizer, template, chat, prompt=prompt), prompt=prompt)


def _switched(tokenizer: Any, template: str, chat: Chat) -> Chat:
    """The conversation with reasoning turned on or off, if it sets that and the template can."""
    if chat.thinking is None or (switch := _switch(tokenizer, template)) is None:
        return chat
    options = {**switch.arguments(chat.thinking), **chat.template_kwargs}
    return replace(chat, messages=tuple(switch.messages(chat.messages, chat.thinking)), template_kwargs=options)


def thinking_switch(tokenizer: Any) -> Switch | None:
    """How the template turns reasoning on and off; None if it cannot."""
    return _switch(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=64)
def _switch(tokenizer: Any, template: str) -> Switch | None:
    def render(messages: Sequence[Message], arguments: Mapping[str, Any]) -> str | None:
        try:
            return render_form(
                tokenizer, template, Chat(tuple(messages), template_kwargs=arguments), Form(), prompt=True
            )
        except LlmkitError:
            return None

    return find_switch(template, render)


def template_of(tokenizer: Any, *, tools: bool = False) -> str:
    """The template for conversations: the only one, the default, or the only one of several that renders them.

    Args:
        tools: the template named ``tool_use``, if there is one (as Transformers does).
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        return str(templates or "")
    if tools and "tool_use" in templates:
        return str(templates["tool_use"])
    return _of_several(tokenizer, tuple(templates.items()))


@lru_cache(maxsize=16)
def _of_several(tokenizer: Any, templates: tuple[tuple[str, str], ...]) -> str:
    """See `template_of`. Templates that need tools or documents drop messages without them, or fail."""
    found = {name: text for name, text in templates if name == "default" or _renders(tokenizer, text)}
    names = ", ".join(name for name, _ in templates)
    if not found:
        raise CheckpointError(
            f"the model has the chat templates {names}; none is named default, and none renders a conversation",
            f"add one named default to tokenizer_config.json, or {PLAIN}",
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
        turns = tuple(Message(role, "?") for role in ("user", "assistant", "user"))
        find_form(tokenizer, template, Chat(turns), prompt=True)
    except InputError:
        return False
    return True
