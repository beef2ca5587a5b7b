"""What tasks, heads and engines hand each other: rows, prompts, what a model made of them, and results. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

from llmkit.config.settings import TaskSettings, setting
from llmkit.tasks.output import Chunk, NoteCode
from llmkit.text.languages import LanguageMap, Route

__all__ = [
    "Chat",
    "Example",
    "Generation",
    "Head",
    "Message",
    "ModelView",
    "Prompt",
    "QuestionContext",
    "Result",
    "Row",
    "Span",
    "SpanPrediction",
    "SpanSettings",
    "Step",
    "Text",
    "Traits",
    "Wording",
    "Work",
]

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
    learned: bool = True
    """False: an assistant's reply that is context in training, and carries no loss."""


@dataclass(frozen=True)
class Text:
    """Plain text: a causal model continues it, a seq2seq model reads it. ``prefill`` begins the output."""

    text: str
    prefill: str = ""
    route: Route | None = None
    """How a translation model is told the two languages."""
    stop: tuple[str, ...] = ()
    """Where the answer ends on a model that would go on, since it was never taught to stop."""


@dataclass(frozen=True)
class Chat:
    """Messages for a model with a chat template; ``prefill`` begins the assistant's reply."""

    messages: tuple[Message, ...]
    prefill: str = ""
    thinking: bool = True
    """False asks a model that thinks aloud not to, where its template has a way to say so (``enable_thinking``)."""


@dataclass(frozen=True, kw_only=True)
class SpanSettings(TaskSettings):
    """How an answer is marked in a text of any length. All but the first are named as in ``transformers``' v4."""

    top: int = setting(1, "How many answers to give.", minimum=1, maximum=1000)
    max_seq_len: int = setting(384, "Longest window in tokens, question included.", minimum=1)
    doc_stride: int = setting(128, "Tokens that a window shares with the one before.", minimum=0)
    max_answer_len: int = setting(30, "Longest answer in tokens.", minimum=1)


@dataclass(frozen=True)
class QuestionContext:
    """A question and the text that an extractive model marks the answer in."""

    question: str
    context: str
    settings: SpanSettings = field(default_factory=SpanSettings)


Prompt = Text | Chat | QuestionContext


@dataclass(frozen=True)
class Example:
    """What is learned from a row: after this prompt, this answer."""

    prompt: Prompt | None
    """As it is at inference; None for plain text, which is learned whole."""
    target: str
    """What the model is to write, white space in front of it included."""
    spans: tuple[tuple[int, int], ...] = ()
    """Characters ``[start, end)`` of the context, each a right answer to a span model; none: there is no answer."""


@dataclass(frozen=True)
class Wording:
    """What the caller adds to the wording of every row."""

    system: str = setting("", "System message; text in front on models without chat.")
    prefill: str = setting("", "Begin the output with this; it is not repeated.")
    examples: Sequence[Row] = field(default=())
    raw: bool = setting(False, "Continue the text itself, without the chat template.")


@dataclass(frozen=True)
class Traits:
    """What a task may know of the model that reads its prompts."""

    marks_spans: bool = False
    """It marks answers in a text and writes none."""
    continues: bool = False
    """It writes on where its prompt ends (decoder-only); others read a text and write another."""
    chat: bool = False
    """The tokenizer has a chat template."""
    prefix: str = ""
    """What the model was trained to see in front of this task's text, such as T5's ``summarize: ``."""
    separator: str | None = None
    """What stood between the turns of a conversation in training, where there is no template (BlenderBot)."""
    languages: LanguageMap | None = None
    """The languages of a translation model, and how it is told them; None for a model that follows prompts."""

    @property
    def is_instructed(self) -> bool:
        """What is wanted is said in words; others do the one thing they were trained for."""
        return self.chat or self.continues


@dataclass(frozen=True)
class Span:
    """One marked answer: ``context[start:end] == text``, in characters."""

    text: str
    start: int
    end: int
    score: float
    """Probability over the spans of all windows and the null answer."""


@dataclass(frozen=True)
class SpanPrediction:
    """What an extractive model made of one question and context."""

    spans: tuple[Span, ...]
    """Best first."""
    no_answer: float
    """Probability that the text holds no answer."""
    null_margin: float
    """Logit of the null answer less that of the best span; what a no-answer threshold is compared with."""
    windows: int
    tokens: int
    """Tokens read in all windows, special tokens and overlap included."""


@dataclass(frozen=True)
class Generation:
    """What a model made of one prompt."""

    text: str
    finish_reason: str = "stop"
    score: float | None = None
    """Geometric mean of the tokens' probabilities, where it was asked for."""
    reasoning: str = ""
    """What a model that thinks aloud wrote before its answer."""
    marked: bool = False
    """Marks of reasoning were taken out of the output, so that its ids are not those of the text."""
    thinking: bool = False
    """The output ended in its reasoning, so there is no answer."""
    alternatives: tuple[Generation, ...] = ()
    tokens: int = 0
    """How many were written."""
    cached_tokens: int = 0
    """Of the prompt, those that were known from the last one and not read again."""
    reading: SpanPrediction | None = None
    """Set by the span head, whose ``text`` is empty."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A task's answer for one row."""

    text: str
    chunks: tuple[Chunk, ...] = ()
    """The parts the input was read in, if it was more than one. Together they cover all of it."""
    answered: bool | None = True
    """False: the text holds no answer. None: the model came to no verdict."""
    score: float | None = None
    start: int | None = None
    end: int | None = None
    reasoning: str = ""
    source_language: str | None = None
    target_language: str | None = None
    alternatives: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Step:
    """Rows to answer next; they do not depend on each other."""

    rows: Sequence[Row]
    final: bool = False
    """The output of the one row is the answer, and may be shown while it is generated."""
    scored: bool = False
    """`Generation.score` is wanted."""
    several: bool = False
    """Further sequences (``num_return_sequences``) of the one row are made use of; those of a final one always are."""
    max_new_tokens: int | None = None
    """Of this step, if less than usual."""
    each: Callable[[int, Generation], None] | None = None
    """Called with the index of a row and its answer as soon as there is one."""


Work = Generator[Step, Sequence[Generation], Result]


class ModelView(Protocol):
    """What the work on a row can ask of the model that reads it."""

    @property
    def traits(self) -> Traits:
        """What kind of model it is."""

    @property
    def max_new_tokens(self) -> int:
        """How long an output may be."""

    def count(self, text: str) -> int:
        """Tokens in a text, without special ones."""

    def room(self, row: Row) -> int | None:
        """How many tokens the row's input text may have beside the rest of the prompt; None: any number."""

    def fits(self, row: Row) -> bool:
        """Whether the row's prompt leaves the output its room; True where nothing may be cut."""

    def emit(self, text: str) -> None:
        """Show a piece of the answer that is certain; the pieces join to `Result.text`."""

    def note(self, code: NoteCode, text: str) -> None:
        """Add to `Output.notes` what the user must know about this answer."""
