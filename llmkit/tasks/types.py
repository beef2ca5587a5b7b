"""Data types shared by tasks, heads and engines: rows, prompts, generations and results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from llmkit.config.declaration import setting, setting_fields
from llmkit.config.settings import TaskSettings
from llmkit.tasks.output import Chunk, NoteCode, TokenLogprob
from llmkit.text.languages import LanguageMap, Route

__all__ = [
    "Chat",
    "Example",
    "Generation",
    "Head",
    "Message",
    "ModelView",
    "Prompt",
    "PromptKeywords",
    "PromptOptions",
    "QuestionContext",
    "Result",
    "Row",
    "ShotsBy",
    "Span",
    "SpanPrediction",
    "SpanSettings",
    "Step",
    "Text",
    "TokenLogprob",
    "ToolCall",
    "Traits",
    "WordingKeywords",
    "Work",
]

Row = Mapping[str, Any]
ShotsBy = Literal["random", "similarity"]
Role = Literal["system", "developer", "user", "assistant", "tool"]
ToolCall = Mapping[str, Any]
"""A call in OpenAI's format: ``{"type": "function", "id": …, "function": {"name": …, "arguments": {…}}}``."""


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
    """False for an assistant's reply that is only context in training, without loss."""
    reasoning: str = ""
    """The assistant's reasoning before its reply."""
    tool_calls: tuple[ToolCall, ...] = field(default=(), hash=False)
    """The assistant's calls of tools, which messages with the role ``tool`` answer."""
    tool_call_id: str = ""
    """The call that a tool's result belongs to."""
    name: str = ""
    """The tool of a result."""


@dataclass(frozen=True)
class Text:
    """Plain text: continued by a causal model, encoded by a seq2seq model. ``prefill`` begins the output."""

    text: str
    prefill: str = ""
    route: Route | None = None
    """How the languages are passed to a translation model."""
    stop: tuple[str, ...] = ()
    """Stop strings, for models that were not trained to end after the answer."""
    ids: tuple[int, ...] = ()
    """The text as token ids, if it is given as such; ``text`` and ``prefill`` are empty then."""


@dataclass(frozen=True)
class Chat:
    """Messages for a model with a chat template; ``prefill`` begins the assistant's reply."""

    messages: tuple[Message, ...]
    prefill: str = ""
    thinking: bool | None = None
    """Whether to turn reasoning on or off, if the template has a switch for it; None: the template's default."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Tools in OpenAI's format: ``{"type": "function", "function": {"name": …, "parameters": …}}``."""
    tool_choice: str = ""
    """The tool that the reply must call, or ``required`` for any of them; empty leaves it to the model."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further variables of the template, such as ``documents``."""


@dataclass(frozen=True, kw_only=True)
class SpanSettings(TaskSettings):
    """How an answer is extracted from a text of any length. Except for ``top``, names are those of Transformers 4."""

    top: int = setting(1, "Return this many answers.", minimum=1, maximum=1000)
    max_seq_len: int = setting(384, "Maximum window length in tokens, including the question.", minimum=1)
    doc_stride: int = setting(128, "Overlap of consecutive windows in tokens.", minimum=0)
    max_answer_len: int = setting(30, "Maximum answer length in tokens.", minimum=1)


@dataclass(frozen=True)
class QuestionContext:
    """A question and the context from which an extractive model extracts the answer."""

    question: str
    context: str
    settings: SpanSettings = field(default_factory=SpanSettings)


Prompt = Text | Chat | QuestionContext


@dataclass(frozen=True)
class Example:
    """A training example: a prompt and its target."""

    prompt: Prompt | None
    """The prompt as at inference; None for plain text, which is learned in full."""
    target: str
    """The expected output, including leading white space."""
    spans: tuple[tuple[int, int], ...] = ()
    """Character spans ``[start, end)`` of correct answers in the context, for span models; empty: no answer."""
    reply: Message | None = None
    """The expected output as a message, if it has reasoning or tool calls, which the chat template renders."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions(TaskSettings):
    """Prompt options of the caller that apply to every row.

    Each field is an option of the commands that list it (`Task.command_prompt_options`), a keyword argument, and,
    unless it is for inference only, a key of a recipe's section ``prompt`` that is saved with the tuned model.
    """

    system: str = setting(
        "",
        "Add this system message; models without a chat template get it before the prompt.",
        metavar="TEXT",
        group="Prompt",
    )
    prefill: str = setting(
        "",
        "Begin the output with this text, which is not printed again.",
        metavar="TEXT",
        group="Prompt",
        inference_only=True,
    )
    examples: Sequence[Row] = setting(
        (),
        "Add few-shot rows in the task's columns (.jsonl, .json, .csv, .tsv) to the prompt.",
        metavar="FILE",
        group="Prompt",
    )
    shots: int | None = setting(
        None,
        "Use this many of the examples in each prompt, none with the row's own input; by default all of them.",
        minimum=0,
        metavar="N",
        group="Prompt",
    )
    shots_by: ShotsBy | None = setting(
        None,
        "Draw the examples at random, the same for all rows, or use those that share most words with the row.",
        group="Prompt",
        shown_default="random",
    )
    shots_seed: int | None = setting(
        None, "Seed that the examples are drawn with.", minimum=0, metavar="N", group="Prompt", shown_default="42"
    )
    template: str | None = setting(
        None,
        "Prompt with this Jinja template in place of the task's own wording; its variables are the columns of the row,"
        " such as {{ document }}.",
        metavar="TEXT|FILE",
        group="Prompt",
        may_be_file=True,
    )
    prefix: str | None = setting(
        None,
        "Put this text before the prompt, in place of the prefix with which models like T5 were trained.",
        metavar="TEXT",
        group="Prompt",
    )
    prompt_language: Literal["auto", "en", "zh"] = setting(
        "auto",
        "Language of the task's own wording; auto is Chinese for Chinese texts, otherwise English.",
        group="Prompt",
    )
    raw: bool = setting(False, "Continue the text itself, without the chat template.", group="Prompt")
    think: bool | None = setting(
        None,
        "Whether the model reasons before its answer; by default, chat and generate leave it to the model, and other"
        " tasks turn it off.",
        group="Prompt",
    )
    chat_template_kwargs: Mapping[str, Any] | None = setting(
        None,
        "Set these variables of the chat template, such as documents: a JSON object, or a file with one.",
        metavar="JSON",
        group="Prompt",
    )

    tools: Sequence[Row] = setting(
        (),
        "Offer these tools to the model: a list of OpenAI's function schemas (.json, .jsonl, .yaml).",
        metavar="FILE",
        group="Prompt",
    )
    tool_choice: str = setting(
        "",
        "Make the model call this tool, or any of them with 'required'.",
        metavar="NAME",
        group="Prompt",
        inference_only=True,
        shown_default="left to the model",
    )

    def thinking(self, *, by_default: bool) -> bool | None:
        """Whether to turn reasoning on or off; None: leave it to the model."""
        return self.think if self.think is not None else None if by_default else False

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in setting_fields(type(self)):
            if getattr(self, item.name) is None:  # not set
                object.__setattr__(self, item.name, item.default)
        object.__setattr__(self, "examples", tuple(self.examples))
        object.__setattr__(self, "tools", tuple(self.tools))


class WordingKeywords(TypedDict, total=False):
    """The fields of `PromptOptions` but ``shots`` as keyword arguments."""

    system: str
    prefill: str
    examples: Sequence[Row] | str | Path
    shots_by: ShotsBy | None
    shots_seed: int | None
    template: str | None
    prefix: str | None
    prompt_language: Literal["auto", "en", "zh"]
    raw: bool
    think: bool | None
    chat_template_kwargs: Mapping[str, Any] | str | Path | None
    tools: Sequence[Row] | str | Path
    tool_choice: str


class PromptKeywords(WordingKeywords, total=False):
    """The fields of `PromptOptions` as keyword arguments."""

    shots: int | None


@dataclass(frozen=True)
class Traits:
    """What a task may know about the model that runs its prompts."""

    extracts_spans: bool = False
    """Extracts answer spans instead of generating text."""
    continues: bool = False
    """Continues its prompt (decoder-only), as opposed to an encoder-decoder."""
    chat: bool = False
    """Has a chat template."""
    prefix: str = ""
    """Prefix of this task's input in the model's training, such as T5's ``summarize: ``."""
    takes_tools: bool = False
    """The chat template renders tools."""
    takes_reasoning: bool = False
    """The chat template renders the reasoning of a reply."""
    switches_thinking: bool = False
    """The chat template has a switch that turns reasoning on and off."""
    separator: str | None = None
    """Separator of the turns of a conversation in training, if there is no chat template (BlenderBot)."""
    alternates: bool = False
    """The chat template refuses consecutive messages of one role."""
    languages: LanguageMap | None = None
    """The languages of a translation model and how they are passed; None for a model that follows prompts."""
    declared_languages: frozenset[str] = frozenset()
    """BCP 47 tags of the languages that the model is declared for; empty: unknown, or too many to list."""

    @property
    def is_instructed(self) -> bool:
        """Follows instructions in the prompt; other models do the one task they were trained for."""
        return self.chat or self.continues


@dataclass(frozen=True)
class Span:
    """One extracted answer: ``context[start:end] == text``, in characters."""

    text: str
    start: int
    end: int
    score: float
    """Probability over the spans of all windows and the null answer."""


@dataclass(frozen=True)
class SpanPrediction:
    """The prediction of an extractive model for one question and context."""

    spans: tuple[Span, ...]
    """Spans, best first."""
    no_answer: float
    """Probability that the context has no answer."""
    null_margin: float
    """Logit of the null answer minus the best span's; compared with the no-answer threshold."""
    windows: int
    tokens: int
    """Input tokens of all windows, including special tokens and overlap."""


@dataclass(frozen=True)
class Generation:
    """The output of a model for one prompt."""

    text: str
    finish_reason: str = "stop"
    score: float | None = None
    """Geometric mean of the token probabilities, if requested."""
    reasoning: str = ""
    """Reasoning that the model generated before its answer."""
    marked: bool = False
    """Reasoning markers were removed from the output, so that its ids differ from the text's."""
    thinking: bool = False
    """The output ended within the reasoning, so there is no answer."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of tools, which are not part of the text."""
    broken_calls: int = 0
    """Calls that could not be parsed, and are part of the text; or that are part of the reasoning."""
    alternatives: tuple[Generation, ...] = ()
    runaway: bool = False
    """The output was stopped because it repeated a passage over and over, or became implausibly long for its input."""
    tokens: int = 0
    """Number of generated tokens."""
    cached_tokens: int = 0
    """Prompt tokens that were reused from the cache of an earlier prompt."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of all tokens, reasoning and end token included; None if they were not requested."""
    span_prediction: SpanPrediction | None = None
    """Set by the span head, whose ``text`` is empty."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A task's answer for one row."""

    text: str
    chunks: tuple[Chunk, ...] = ()
    """The parts of a long input, if there were several. Together they cover all of it."""
    answered: bool | None = True
    """False: the context has no answer. None: the model did not reach a verdict."""
    score: float | None = None
    start: int | None = None
    end: int | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    source_language: str | None = None
    target_language: str | None = None
    alternatives: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Step:
    """Rows to answer next, independently of each other."""

    rows: Sequence[Row]
    final: bool = False
    """The output of the single row is the answer, and may be streamed."""
    scored: bool = False
    """`Generation.score` is needed."""
    multi_sequence: bool = False
    """Further sequences (``num_return_sequences``) of the single row are used; those of a final step always are."""
    max_new_tokens: int | None = None
    """Limit for this step, in place of the caller's."""
    plausible_tokens: Sequence[int] = ()
    """For each row, the output length from which on the output cannot be right, and is stopped."""
    each: Callable[[int, Generation], None] | None = None
    """Called with the index of a row and its output as soon as it is available."""


Work = Generator[Step, Sequence[Generation], Result]


class ModelView(Protocol):
    """The model as seen by a task: what `Task.steps` can find out about it, and report."""

    @property
    def traits(self) -> Traits:
        """Properties of the model."""

    @property
    def max_new_tokens(self) -> int:
        """Maximum output length in tokens."""

    @property
    def default_max_new_tokens(self) -> int:
        """Maximum output length if the caller does not set it: the model's own, or the task's."""

    def count(self, text: str) -> int:
        """Number of tokens in a text, without special tokens."""

    def room(self, row: Row) -> int | None:
        """How many tokens are left for the row's input text beside the rest of the prompt; None: unlimited."""

    def fits(self, row: Row) -> bool:
        """Whether the row's prompt leaves enough room for the output; True if nothing may be cut."""

    def emit(self, text: str) -> None:
        """Stream a final piece of the answer; the pieces join to `Result.text`."""

    def note(self, code: NoteCode, text: str) -> None:
        """Add a note for the user to `Output.notes`."""
