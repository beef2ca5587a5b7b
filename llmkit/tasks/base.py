"""What a task is: wording, and nothing else.

A task turns a row into a prompt and the model's raw text back into an answer. It does not know tensors,
tokenizers or model classes, and never imports torch or transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

from llmkit.errors import InputError

__all__ = ["Chat", "Head", "Message", "Prompt", "QuestionContext", "Row", "Task", "Text", "Wording"]

Row = Mapping[str, Any]
Role = Literal["system", "user", "assistant"]


class Head(StrEnum):
    """How a model produces its output; each value has one Auto class (`llmkit.models.tables`)."""

    CAUSAL = "causal"
    SEQ2SEQ = "seq2seq"
    SPAN = "span"


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Text:
    """Plain text: a causal model continues it, a seq2seq model reads it. ``prefill`` begins the output."""

    text: str
    prefill: str = ""


@dataclass(frozen=True)
class Chat:
    """Messages for a model with a chat template; ``prefill`` begins the assistant's reply."""

    messages: tuple[Message, ...]
    prefill: str = ""


@dataclass(frozen=True)
class QuestionContext:
    """A question and the text that an extractive model marks the answer in."""

    question: str
    context: str


Prompt = Text | Chat | QuestionContext


@dataclass(frozen=True)
class Wording:
    """What the caller adds to the wording of every row."""

    system: str = ""
    prefill: str = ""
    examples: Sequence[Row] = field(default=())
    raw: bool = False
    """Continue the text itself, also on a model that has a chat template."""


class Task:
    """Base of the five tasks. Subclasses set the class attributes and override the wording methods."""

    name: ClassVar[str]
    verb: ClassVar[str]
    """The verb on the command line, as in ``llmkit generate``."""
    input_column: ClassVar[str]
    """The column that carries the text which may be too long; `render` reads it."""
    target_column: ClassVar[str]
    """The column with the expected output, in examples and in training data."""
    max_new_tokens: ClassVar[int]

    def instruct(self, row: Row) -> str:
        """The user's message for one row."""
        return str(row[self.input_column])

    def plain(self, row: Row) -> str:
        """The text that a model without a chat template continues (causal) or reads (seq2seq)."""
        return str(row[self.input_column])

    def reference(self, row: Row) -> str:
        """The expected output of one row."""
        return str(row[self.target_column])

    def validate(self, row: Row) -> None:
        """Raise `InputError` for a row that has nothing to work on."""
        value = row.get(self.input_column, "")
        if not isinstance(value, str):
            raise InputError(f"the {self.input_column} is a {type(value).__name__}, not text", "give a string")
        if not value.strip():
            raise InputError(f"the {self.input_column} is empty", f"give llmkit {self.verb} some text")

    def validate_example(self, row: Row, number: int) -> None:
        """Raise `InputError` for an example that lacks one of the task's columns."""
        for column in (self.input_column, self.target_column):
            if not str(row.get(column, "")).strip():
                raise InputError(
                    f"example {number} has no {column!r} (its columns: {', '.join(map(str, row)) or 'none'})",
                    f"{self.name} examples need the columns {self.input_column!r} and {self.target_column!r}",
                )

    def render(self, row: Row, head: Head, *, chat: bool, wording: Wording) -> Prompt:
        """The prompt for one row. ``chat`` says whether the model has a chat template."""
        if chat and not wording.raw:
            turns = [Message("system", wording.system)] if wording.system else []
            for example in wording.examples:
                turns.append(Message("user", self.instruct(example)))
                turns.append(Message("assistant", self.reference(example)))
            turns.append(Message("user", self.instruct(row)))
            return Chat(tuple(turns), wording.prefill)
        shots = "".join(f"{self.shot(example)}\n\n" for example in wording.examples)
        system = f"{wording.system}\n\n" if wording.system else ""
        return Text(f"{system}{shots}{self.plain(row)}", wording.prefill)

    def shot(self, example: Row) -> str:
        """One example as text, for models without a chat template."""
        text, answer = self.plain(example), self.reference(example)
        return text + answer if text[-1:].isspace() or answer[:1].isspace() else f"{text} {answer}"

    def parse(self, raw: str, row: Row) -> str:
        """The answer in the model's raw text."""
        return raw
