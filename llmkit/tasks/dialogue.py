"""Dialogue: the next reply in a conversation.

Knows messages, and how a conversation is rendered for a model without a chat template. If a conversation is too long,
its oldest messages are dropped, but never its system message. Does not keep the state of a conversation
(`llmkit.inference.conversation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.config.commands import command_line
from llmkit.errors import InputError, UsageError
from llmkit.tasks.base import COMPLETION, EXAMPLES, PROMPT, REJECTED, Task
from llmkit.tasks.messages import is_instruction, joined, replies, shortened, to_messages
from llmkit.tasks.recommended import QWEN, QWEN_SMALL, SMOL, STARTER
from llmkit.tasks.types import Chat, Example, Message, ModelView, Prompt, PromptOptions, Row, Step, Text, Traits, Work

__all__ = ["Dialogue"]

_NAMES = {"user": "User", "assistant": "Assistant"}


class Dialogue(Task):
    name = "dialogue"
    verb = "chat"
    help = """Talk to a model: a conversation in the terminal, or one reply.

    With a text (argument or standard input), print one reply. Otherwise start a conversation; /help lists its
    commands.

    Examples:
        llmkit chat
        llmkit chat "What is the capital of France?" --system "Answer in one word."
    """
    synonyms = ("talk", "conversation", "converse", "repl", "interactive", "assistant")
    sample = ""
    command_prompt_options = (
        "system",
        *EXAMPLES,
        "think",
        "chat_template_kwargs",
        "tools",
        "tool_choice",
    )
    converses = True
    takes_instruction = True
    input_column = "messages"
    columns = ("messages",)
    optional_columns = ("tools", "chat_template_kwargs")
    target_column = "reply"
    aliases = {"messages": ("messages",), "prompt": PROMPT, "completion": COMPLETION}
    learned_columns = ("messages", "completion")
    shapes = ("messages", "alpaca", "pair of turns")
    max_new_tokens = 1024
    overflow = "truncate"
    truncation_side = None
    calls_tools = allow_reasoning = True
    recommended = (
        SMOL,
        STARTER,
        QWEN_SMALL.noted("stronger, still runs on a CPU; thinks before it answers"),
        QWEN,
    )
    pipeline_tag = "text-generation"
    reports_perplexity = True

    def to_row(self, value: str | Row) -> Row:
        if isinstance(value, str):
            return {"messages": [{"role": "user", "content": value}]}
        if not isinstance(value, Mapping):
            return {"messages": value}
        self._check_keys(value)
        text = value.get("messages")
        return {**value, **self.to_row(text)} if isinstance(text, str) else value

    def is_one_row(self, value: object) -> bool:
        """A list of messages is a conversation; a list of texts, of rows or of conversations is not."""
        messages = value if isinstance(value, list | tuple) else ()
        return any(isinstance(each, Message) or (isinstance(each, Mapping) and "role" in each) for each in messages)

    def text(self, row: Row) -> str:
        return "\n".join(message.content for message in to_messages(row["messages"]))

    def input_key(self, row: Row) -> tuple[str, ...]:
        """The messages up to the last of the user, without a system message."""
        messages = [message for message in to_messages(row["messages"]) if message.role != "system"]
        while messages and messages[-1].role != "user":
            messages.pop()
        return tuple(" ".join(message.content.split()) for message in messages)

    def without_target(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The conversation up to its last reply that is a text, and that reply."""
        messages = to_messages(row["messages"])
        texts = [
            place for place in replies(messages) if messages[place].content.strip() and not messages[place].tool_calls
        ]
        if not texts:
            return None
        return {**row, "messages": list(row["messages"])[: texts[-1]], "reply": messages[texts[-1]].content}

    def with_target(self, row: dict[str, Any]) -> dict[str, Any]:
        context = [{**message, "weight": 0} for message in row["messages"]]
        others = {name: value for name, value in row.items() if name != "reply"}
        return {**others, "messages": [*context, {"role": "assistant", "content": row["reply"]}]}

    def as_pair(self, chosen: dict[str, Any], rejected: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task`. The messages in common are the prompt, and are not learned."""
        better, worse = ([{**message, "weight": 1} for message in row["messages"]] for row in (chosen, rejected))
        most = min(len(better), len(worse)) - 1
        same = next((place for place in range(most) if better[place] != worse[place]), max(0, most))
        if {"assistant"} != {better[same]["role"], worse[same]["role"]} or same == 0:
            raise InputError(
                "has different prompts for its chosen and its rejected answer",
                "write the prompt once, or with the same messages in both",
            )
        prompt = [{**message, "weight": 0} for message in better[:same]]
        return {**chosen, "messages": [*prompt, *better[same:]], REJECTED: worse[same:]}

    def as_rejected(self, row: Row) -> Row:
        prompt = [message for message in to_messages(row["messages"]) if not message.learned]
        others = {name: value for name, value in row.items() if name != REJECTED}
        return {**others, "messages": [*prompt, *to_messages(row[REJECTED])]}

    def as_labelled(self, row: dict[str, Any]) -> dict[str, Any]:
        """The conversation with only its last reply learned, unless the row sets which are."""
        messages = row["messages"]
        if any(message.get("weight") == 0 for message in messages):
            return row
        return {**row, "messages": [*({**message, "weight": 0} for message in messages[:-1]), *messages[-1:]]}

    def validate(self, row: Row) -> None:
        messages = to_messages(row.get("messages"))
        if not messages or messages[-1].role not in ("user", "tool"):
            raise InputError("the conversation does not end with the user", "put the user's message last")
        if messages[-1].role == "user" and not messages[-1].content.strip():
            raise InputError("the message is empty", "give llmkit chat some text", code="empty_input")

    def validate_learned(self, row: Row, *, all_of_it: bool) -> None:
        if all_of_it and not all(message.learned for message in to_messages(row["messages"])):
            raise InputError(
                "a reply with weight: 0 cannot be excluded with data.loss_on: all",
                "remove the row, or set loss_on: target",
            )

    def shortened(self, row: Row, fits: Callable[[Row], bool]) -> Row | None:
        """The row without the oldest messages that do not fit."""
        kept = shortened(to_messages(row["messages"]), lambda some: fits({**row, "messages": some}))
        return {**row, "messages": kept}

    def validate_example(self, row: Row, number: int) -> None:
        messages = to_messages(row.get("messages", ()))
        if len(messages) < 2 or messages[-1].role != "assistant" or messages[0].role != "user":
            raise InputError(
                f"example {number} is not a conversation from a user's message to the assistant's reply",
                "dialogue examples need the column 'messages'",
            )

    def check_compatible(self, traits: Traits, prompt_options: PromptOptions) -> None:
        if options := [name for name in ("template", "prefix") if getattr(prompt_options, name) is not None]:
            raise UsageError(
                f"{' and '.join(f'`{name}`' for name in options)} does not apply to conversations",
                "leave it out, or use the task text-generation",
                code="not_supported",
            )
        if prompt_options.raw:
            raise UsageError(
                "raw mode does not apply to conversations",
                f"use {command_line('generate', raw=True)}",
                code="not_supported",
            )

    def render(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> Prompt:
        messages = self._messages(row, traits)
        given = messages[:1] if is_instruction(messages[0]) else ()
        if prompt_options.system and given:
            raise InputError("two system messages found", "leave `system` out, or the one in the messages")
        opening = [Message("system", prompt_options.system)] if prompt_options.system else list(given)
        for example in prompt_options.examples:
            opening += to_messages(example["messages"])
        turns = (*opening, *messages[len(given) :])
        tools = self.tools(row, prompt_options)
        if traits.chat:
            thinking = prompt_options.thinking(by_default=self.allow_reasoning)
            options = {**(prompt_options.chat_template_kwargs or {}), **(row.get("chat_template_kwargs") or {})}
            return Chat(turns, prompt_options.prefill, thinking, tools, prompt_options.tool_choice, options)
        _refuse_without_template(turns, tools or row.get("chat_template_kwargs"))
        if traits.separator is not None:
            return Text(traits.separator.join(turn.content for turn in turns), prompt_options.prefill)
        lines = [f"{_NAMES[turn.role]}: {turn.content}" if turn.role in _NAMES else turn.content for turn in turns]
        return Text("\n".join((*lines, "Assistant:")), prompt_options.prefill, stop=("\nUser:",))

    def _messages(self, row: Row, traits: Traits) -> tuple[Message, ...]:
        messages = to_messages(row["messages"])
        return joined(messages) if traits.alternates else messages

    def examples(self, row: Row, traits: Traits, prompt_options: PromptOptions) -> tuple[Example, ...]:
        """One example for each reply to learn."""
        messages = self._messages(row, traits)
        found = []
        for place in replies(messages):
            prompt, reply = self.render({**row, "messages": messages[:place]}, traits, prompt_options), messages[place]
            rendered = reply if reply.tool_calls or reply.reasoning else None
            separator = ""
            if isinstance(prompt, Text):
                _refuse_without_template([reply])
                separator = self.separator(prompt.text, reply.content)
            found.append(Example(prompt, separator + reply.content, reply=rendered))
        return tuple(found)

    def training_remarks(self, row: Row) -> Iterator[str]:
        messages = to_messages(row["messages"])
        first = next((place for place, message in enumerate(messages) if not is_instruction(message)), 0)
        if messages[first].role == "assistant" and messages[first].learned:
            yield "a reply before the first message of the user is context and is not learned"

    def steps(self, row: Row, model: ModelView) -> Work:
        messages = to_messages(row["messages"])
        model.fits(row)  # drops few-shot examples before messages
        kept = shortened(messages, lambda some: model.fits({**row, "messages": some}))
        if len(kept) < len(messages):
            dropped = f"the oldest {len(messages) - len(kept)} of {len(messages)} messages"
            model.note("messages_dropped", f"{dropped} do not fit and were dropped")
        (raw,) = yield Step([{**row, "messages": kept}], final=True)
        return self.finish(raw)


def _refuse_without_template(messages: Sequence[Message], beside: object = None) -> None:
    """Raise `InputError` for what a conversation without a chat template cannot express."""
    for message in messages:
        if beside or message.tool_calls or message.role == "tool":
            what = "tools" if not isinstance(beside, Mapping) else "variables of a chat template"
        elif message.reasoning:
            what = "reasoning"
        else:
            continue
        raise InputError(
            f"the conversation has {what}, and the model has no chat template",
            "use a chat model, or set tokenizer.chat_template in a recipe",
            code="not_supported",
        )
