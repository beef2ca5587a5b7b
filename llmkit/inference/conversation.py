"""A multi-turn conversation: its messages, and which of them still fit in the context.

Knows turns, undo, files, and reuse of the KV cache between turns. Does not know terminals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

from llmkit.data.text import read_text_file
from llmkit.engines.base import OnText, Request, never
from llmkit.errors import InputError, UsageError
from llmkit.files import write_whole
from llmkit.inference.context_window import ContextFitter
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.streaming import StreamedText
from llmkit.tasks import Message, ToolCall
from llmkit.tasks.messages import as_row, is_instruction, shortened, to_messages, to_tools
from llmkit.tasks.output import Output, Usage

__all__ = ["Conversation", "SavedConversation", "read_conversation"]

_SHARE_AFTER_CUT = 0.75
"""Fraction of the context to fill after dropping the oldest messages: each drop invalidates the KV cache, so room is
made for a few turns at once."""
_RETRY_TEMPERATURE = 0.8
_TURNS = re.compile("(u(at+)*at*)+")
"""The first letters of the roles in a conversation: each reply may be followed by results of the tools it calls."""


@dataclass(frozen=True)
class SavedConversation:
    """The content of a file that `Conversation.save` wrote."""

    system: str | None
    """The system message; None if the file has none."""
    messages: tuple[Message, ...]
    model: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


class Conversation:
    """Turns on a pipeline of the dialogue task: ``Conversation(llmkit.load("dialogue", MODEL))``.

    Causal models keep the keys and values of all earlier turns, so that a turn only processes its own tokens
    (`Usage.cached_tokens` counts the others). Messages that no longer fit in the model's context are dropped from the
    prompt, oldest first and never in part; the system message always stays. ``messages`` keeps all of them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        _check(pipeline)
        self.pipeline = pipeline
        self.system = pipeline.prompt_options.system
        """The system message; empty for none. Can be set at any time."""
        self._think = pipeline.prompt_options.think
        self.tools = to_tools(pipeline.prompt_options.tools)
        """The tools that the model may call."""
        self.messages: list[Message] = []
        """All turns, without the system message."""
        self.last: Output | None = None
        """The last reply; None before the first and after `undo`."""
        self._forgotten = 0
        self._interrupted = False
        self._session = pipeline.engine.session(continues=True)

    def __repr__(self) -> str:
        turns = self.turns
        number = f"{turns} turn" if turns == 1 else f"{turns} turns"
        dropped = f", oldest {self._forgotten} messages dropped" if self._forgotten else ""
        last = f", last reply {shorten(self.messages[-1].content, 60, placeholder=' …')!r}" if self.messages else ""
        return f"<Conversation with {self.pipeline.engine.facts.source.name}: {number}{dropped}{last}>"

    @property
    def think(self) -> bool | None:
        """Whether the model reasons before its answer; None leaves it to the model. Can be set at any time.

        Raises:
            UsageError: the model's chat template cannot turn reasoning on or off.
        """
        return self._think

    @think.setter
    def think(self, value: bool | None) -> None:
        _check_think(self.pipeline, value)
        self._think = value

    @property
    def turns(self) -> int:
        """The number of messages of the user."""
        return sum(message.role == "user" for message in self.messages)

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the last reply that have no result yet."""
        results = list(takewhile(lambda message: message.role == "tool", reversed(self.messages)))
        replies = self.messages[: len(self.messages) - len(results)][-1:]
        return replies[0].tool_calls[len(results) :] if replies else ()

    @property
    def forgotten(self) -> int:
        """How many of the oldest messages are no longer in the prompt."""
        return self._forgotten

    def use(self, pipeline: Pipeline) -> None:
        """Continue with another model or other settings. The KV cache is kept if the model is the same."""
        _check(pipeline)
        _check_think(pipeline, self._think)
        if pipeline.engine is not self.pipeline.engine:
            self._session.close()
            self._session = pipeline.engine.session(continues=True)
            self._forgotten = 0
        self.pipeline = pipeline

    def send(
        self,
        text: str,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Output:
        """Send a message and get the reply. A ``cancelled`` reply is kept as far as it was generated.

        Raises:
            InputError: the message is empty, or too long for the model by itself; the conversation is unchanged.
        """
        if not text.strip():
            raise InputError("the message is empty", "write something", code="empty_input")
        return self._reply([*self.messages, Message("user", text)], on_text, on_reasoning, cancelled, again=False)

    def send_result(
        self,
        result: str,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Output | None:
        """Send the result of the first of the `open_calls`; after the last one, get the reply to them.

        Raises:
            InputError: no call waits for a result; the conversation is unchanged.
        """
        if not (calls := self.open_calls):
            raise InputError("no tool call waits for a result", "send a message")
        call = calls[0]
        message = Message("tool", result, tool_call_id=str(call.get("id", "")), name=call["function"]["name"])
        if len(calls) > 1:
            self.messages.append(message)
            return None
        return self._reply([*self.messages, message], on_text, on_reasoning, cancelled, again=False)

    def retry(
        self,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Output:
        """Another reply to the last message. If decoding is greedy and would repeat the reply, it is sampled."""
        if not self.messages:
            raise InputError("no reply to repeat yet", "send a message first")
        if self.messages[-1].role != "assistant":
            raise InputError("a tool call waits for its result", "send that first")
        return self._reply(self.messages[:-1], on_text, on_reasoning, cancelled, again=True)

    def undo(self) -> Message:
        """Remove the last turn, from the user's message on; returns that message."""
        if not self.messages:
            raise InputError("nothing to undo yet", "send a message first")
        place = max(number for number, message in enumerate(self.messages) if message.role == "user")
        message = self.messages[place]
        del self.messages[place:]
        self._forgotten, self.last = min(self._forgotten, len(self.messages)), None
        self._interrupted = False
        return message

    def reset(self) -> None:
        """Remove all turns. The system message stays."""
        self.messages.clear()
        self._forgotten, self.last, self._interrupted = 0, None, False
        self._session.close()
        self._session = self.pipeline.engine.session(continues=True)

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON: ``{"model": …, "messages": [{"role": …, "content": …}, …]}``.

        The system message is the first. ``tools`` are saved too, if there are any.
        """
        system = [Message("system", self.system)] if self.system else []
        rows = [as_row(message) for message in (*system, *self.messages)]
        content = {"model": self.pipeline.engine.facts.source.name, "messages": rows}
        if self.tools:
            content["tools"] = [dict(tool) for tool in self.tools]
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        path = Path(path)
        try:
            write_whole(path, text, errors="replace")  # atomic, so that an earlier save survives a full disk
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror})", "choose another file", code="not_writable"
            ) from error

    def load(self, path: str | Path) -> None:
        """Continue a conversation from a file that `save` wrote. A bad file changes nothing.

        System message and tools are the file's, if it has any.
        """
        self.restore(read_conversation(path))

    def restore(self, saved: SavedConversation, *, keep_system: bool = False) -> None:
        """Continue a saved conversation, with its system message unless ``keep_system``."""
        self.reset()
        if saved.system is not None and not keep_system:
            self.system = saved.system
        self.tools = saved.tools or self.tools
        self.messages = list(saved.messages)

    def _reply(
        self,
        messages: list[Message],
        on_text: OnText | None,
        on_reasoning: OnText | None,
        cancelled: Callable[[], bool],
        *,
        again: bool,
    ) -> Output:
        pipeline = self.pipeline
        opening = {"messages": messages[:1]}  # examples stay the same for all turns, whose prompts share a cache
        reader = pipeline.reader(lambda text: on_text(text) if on_text else None, opening)
        reader.prompt_options = replace(reader.prompt_options, system=self.system, tools=self.tools, think=self._think)
        reader.encoder = self._session
        pipeline.task.note_languages({"messages": messages[-1:]}, reader)
        forgotten = self._cut(messages, reader)
        fitted = reader.fit({"messages": messages[forgotten:]})
        if forgotten > self._forgotten:
            gone = f"the oldest {forgotten - self._forgotten} messages"
            text = f"the context is full: {gone} are no longer in the prompt ({forgotten} in total)"
            reader.note("messages_dropped", text)
        settings = pipeline.settings
        if again and not self._interrupted:
            settings = replace(settings, seed=None)
            if not pipeline.engine.samples(settings):
                sampled = f"this is sampled at temperature {_RETRY_TEMPERATURE:g}"
                reader.note("reply_sampled", f"a greedy reply would be the same, so {sampled}")
                settings = replace(settings, temperature=_RETRY_TEMPERATURE)
        shown = StreamedText(reader.emit, strip=True).push if on_text else None
        request = Request(fitted.prompt, fitted.encoded, settings)
        request.on_text, request.on_reasoning, request.cancelled = shown, on_reasoning, cancelled
        raw = self._session.run(request)
        result = pipeline.task.finish(raw)
        usage = Usage(len(fitted.encoded.input_ids), raw.tokens, cached_tokens=raw.cached_tokens)
        output = pipeline.output(result, raw.finish_reason, usage, still_thinking=raw.thinking)
        self.last = pipeline.noted(output, reader, broken_calls=raw.broken_calls)
        if (
            raw.text.strip() or raw.tool_calls or raw.finish_reason != "interrupted"
        ):  # a turn that was stopped at once does not count
            # Exactly as generated, including white space, so that the cached ids match the text.
            content = f"{reader.prompt_options.prefill}{raw.text}"
            if raw.tool_calls:  # white space in front of a call is part of its form
                content = content.strip()
            # The model goes on from the reasoning that led to a call.
            kept = raw.reasoning if raw.tool_calls and pipeline.traits.takes_reasoning else ""
            reply = Message("assistant", content, reasoning=kept, tool_calls=raw.tool_calls)
            self.messages = [*messages, reply]
            self._interrupted = raw.finish_reason == "interrupted"
            self._forgotten = forgotten
        return self.last

    def _cut(self, messages: Sequence[Message], reader: ContextFitter) -> int:
        """How many of the oldest messages are dropped. A dropped message stays dropped."""
        kept = messages[self._forgotten :]
        while not (fits := not reader.cuts or self._fits(kept, reader, 1.0)) and reader.give_way():
            pass
        if fits:
            return self._forgotten
        return len(messages) - len(shortened(kept, lambda some: self._fits(some, reader, _SHARE_AFTER_CUT)))

    def _fits(self, messages: Sequence[Message], reader: ContextFitter, share: float) -> bool:
        return reader.holds(len(reader.encode({"messages": messages}).encoded.input_ids), share)


def _check(pipeline: Pipeline) -> None:
    """Refuse a pipeline that cannot converse."""
    if not pipeline.task.converses:
        raise UsageError(
            f"a conversation needs the task dialogue, not {pipeline.task.name}", 'use llmkit.load("dialogue", …)'
        )
    if pipeline.settings.num_return_sequences > 1:
        raise UsageError("a conversation continues with a single reply", "omit num_return_sequences")


def _check_think(pipeline: Pipeline, think: bool | None) -> None:
    """Refuse a choice without effect."""
    pipeline.task.check_options(pipeline.traits, replace(pipeline.prompt_options, think=think))


def read_conversation(path: str | Path) -> SavedConversation:
    """A saved conversation.

    Raises:
        InputError: the file is missing, or is not a conversation.
    """
    text = read_text_file(Path(path))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno} is not JSON ({error.msg})",
            "give a file that /save wrote",
            code="unreadable_file",
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # an integer with thousands of digits, or thousands of nested brackets
        raise InputError(
            f"{path} cannot be read as JSON", "give a file that /save wrote", code="unreadable_file"
        ) from error
    about = content if isinstance(content, dict) else {"messages": content}
    messages = to_messages(about.get("messages"))
    system = messages[0].content if messages and is_instruction(messages[0]) else None
    turns = messages if system is None else messages[1:]
    if not _TURNS.fullmatch("".join(message.role[0] for message in turns)):
        raise InputError(
            f"the messages in {path} are not alternating turns of user and assistant",
            "end it with the assistant's reply",
        )
    model = about.get("model")
    return SavedConversation(system, turns, model if isinstance(model, str) else None, to_tools(about.get("tools")))
