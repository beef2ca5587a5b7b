"""What a task returns. Plain data with stable JSON keys."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["SCHEMA_VERSION", "Chunk", "Note", "NoteCode", "Output", "Usage"]

SCHEMA_VERSION = 1


NoteCode = Literal[
    # What the model was not given.
    "input_truncated",  # a side of the input was cut to fit the context
    "examples_dropped",  # few-shot examples were left out to fit the context
    "messages_dropped",  # the oldest messages of a conversation were left out to fit the context
    "context_exceeded",  # the input is longer than what the model was trained on, and was read all the same
    # What had to be assumed.
    "language_detected",  # translation: the text's language, found out
    "language_guessed",  # translation: the text's language, unsure
    "languages_unknown",  # translation: the model was told no languages, since it does not say which it knows
    "reply_sampled",  # retry: another greedy reply would have been the same
    # What is missing from the answer, or wrong with it.
    "output_cut",  # the answer, or one to a part of the input, ended at max_new_tokens
    "context_full",  # the answer ended where the context did
    "still_thinking",  # the answer, or one to a part of the input, ended in its reasoning
    "no_answer",  # question answering: the text does not hold the answer
    "no_verdict",  # question answering: the model was stopped before it answered
    "not_in_text",  # question answering: the words of the answer do not occur in the text
    "sentences_empty",  # translation: the model wrote nothing for some sentences
    "summaries_empty",  # summarization: the model wrote nothing for any part
    "summaries_long",  # summarization: those of the parts hardly shorten the text, and are given as they are
]
"""Every code of a `Note`; they stay as they are from version to version."""


@dataclass(frozen=True)
class Note:
    """Something that the user must know about one answer."""

    code: NoteCode
    text: str


@dataclass(frozen=True)
class Chunk:
    """What was made of one part of the input: ``text`` for the characters from ``start`` to ``end``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; the end token counts as written."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Those of the prompt that were known from the turn before and not read again."""

    def to_dict(self) -> dict[str, int]:
        """``cached_tokens`` only where a conversation can have some."""
        known = {"cached_tokens": self.cached_tokens} if self.cached_tokens else {}
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens} | known


@dataclass(frozen=True, kw_only=True)
class Output:
    """One answer.

    ``finish_reason`` is ``stop`` (the model ended, or a stop string came), ``length`` (max_new_tokens or a full
    context cut it, or a part of it) or ``interrupted``. ``truncated`` counts the input tokens that were cut under
    ``on_overflow="truncate"``. ``start`` and ``end`` are the place of an answer in its text, in characters, and None
    where a generated answer does not stand there. ``score`` is a probability: with an extractive model, of the span
    among all spans of all windows and the null answer; with a generative one that read several windows, the geometric
    mean over the answer's tokens.
    """

    text: str
    task: str
    model: str
    commit: str | None
    """Commit hash of the Hub snapshot that answered (of the adapter, if it is one); None for local files."""
    head: str
    finish_reason: str
    usage: Usage
    truncated: int = 0
    answered: bool | None = True
    """False where the text holds no answer to the question, None where the model was stopped before it said whether;
    ``text`` is empty then."""
    score: float | None = None
    start: int | None = None
    end: int | None = None
    reasoning: str = ""
    """What a model that thinks aloud wrote before its answer."""
    still_thinking: bool = False
    """The reply, or that to a part of a long text, ended in its reasoning, before an answer."""
    source_language: str | None = None
    """Translation: BCP 47 tag of the text's language, as given or detected."""
    target_language: str | None = None
    chunks: tuple[Chunk, ...] = ()
    """The parts that a long text was read in, with what was made of each."""
    base_commit: str | None = None
    """Commit hash of an adapter's base model."""
    alternatives: tuple[Output, ...] = ()
    """The other sequences, with ``num_return_sequences`` above 1; the next best spans, with ``top`` above 1."""
    notes: tuple[Note, ...] = ()
    """What must be known to use the answer: what was cut, left out or guessed, in the order in which it came about."""

    fields: tuple[str, ...] = field(default=(), repr=False)
    """Which of the attributes the JSON of its task has, beside those of every task."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        result: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "task": self.task,
            "model": self.model,
            "commit": self.commit,
            "head": self.head,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "truncated": self.truncated,
        }
        if self.base_commit is not None:
            result["base_commit"] = self.base_commit
        result |= {name: getattr(self, name) for name in self.fields}
        if self.reasoning:
            result["reasoning"] = self.reasoning
        if self.still_thinking:
            result["still_thinking"] = True
        if self.chunks:
            result["chunks"] = [asdict(chunk) for chunk in self.chunks]
        if self.alternatives:
            result["alternatives"] = [_alternative(other) for other in self.alternatives]
        if self.notes:
            result["notes"] = [asdict(note) for note in self.notes]
        return result


def _alternative(output: Output) -> dict[str, Any]:
    if output.head == "span":
        return {"text": output.text, "score": output.score, "start": output.start, "end": output.end}
    tokens = output.usage.completion_tokens
    thinking = {"still_thinking": True} if output.still_thinking else {}
    return {"text": output.text, "finish_reason": output.finish_reason, "completion_tokens": tokens} | thinking
