"""What a task returns. Plain data with stable JSON keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["SCHEMA_VERSION", "Chunk", "Note", "NoteCode", "Output", "TokenLogprob", "Usage"]

SCHEMA_VERSION = 1


NoteCode = Literal[
    # Omitted from the input.
    "input_truncated",  # a side of the input was cut to fit the context
    "examples_dropped",  # few-shot examples were left out to fit the context
    "messages_dropped",  # the oldest messages of a conversation were left out to fit the context
    "context_exceeded",  # the input is longer than in the model's training, and was processed nevertheless
    # Assumptions.
    "language_detected",  # translation: the detected language of the text
    "language_guessed",  # translation: the detected language of the text, with low confidence
    "language_not_declared",  # the model is not declared for the language of the text, or of the translation
    "languages_unknown",  # translation: no languages were passed, since the model's are unknown
    "reply_sampled",  # retry: sampled, since greedy decoding would repeat the reply
    # Missing from the answer, or wrong with it.
    "output_cut",  # the answer, or that of a part of the input, was cut at max_new_tokens
    "output_runaway",  # the output, or a part of it, repeated itself or became far too long, and was stopped
    "context_full",  # the answer was cut at the end of the context window
    "still_thinking",  # the answer, or that of a part of the input, ended within the reasoning
    "tool_calls_broken",  # a tool call, or several, stays in the text, because it cannot be parsed, or in the reasoning
    "no_answer",  # question answering: the context has no answer
    "no_verdict",  # question answering: the model was stopped before it answered
    "not_in_text",  # question answering: the answer does not occur verbatim in the context
    "sentences_empty",  # translation: the output was empty for some sentences
    "summaries_empty",  # summarization: the output was empty for all parts
    "summaries_long",  # summarization: the partial summaries barely shorten the text, and are returned
]
"""All codes of `Note`s; they are stable across versions."""


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token and its log probability, before temperature, top_k and top_p.

    ``text`` is what it adds to the output; bytes of a partial character are shown as ``<E5 A4>``. ``top`` are the most
    probable tokens at its place, and ``entropy`` is that of all tokens there, in bits.
    """

    id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    entropy: float | None = None


@dataclass(frozen=True)
class Note:
    """Information that the user needs about one answer."""

    code: NoteCode
    text: str


@dataclass(frozen=True)
class Chunk:
    """The output for one part of the input: ``text`` for the characters from ``start`` to ``end``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Usage:
    """Number of prompt and generated tokens, including the end token."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens reused from the cache of an earlier turn or request."""

    def to_dict(self) -> dict[str, int]:
        """The JSON object; ``cached_tokens`` only if there are any."""
        known = {"cached_tokens": self.cached_tokens} if self.cached_tokens else {}
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens} | known


@dataclass(frozen=True, kw_only=True)
class Output:
    """One answer.

    ``finish_reason`` is ``stop`` (end token or stop string), ``tool_calls`` (ended with calls), ``length`` (cut, also
    in part, at max_new_tokens, at the end of the context window or as runaway) or ``interrupted``. ``truncated`` is the
    number of input tokens cut under ``on_overflow="truncate"``. ``start`` and ``end`` are the position of an answer in
    its context, in characters, and None if a generated answer does not occur there. ``score`` is a probability: with an
    extractive model, of the span among all spans of all windows and the null answer; with a generative one and several
    windows, the geometric mean over the answer's tokens.
    """

    text: str
    task: str
    model: str
    commit: str | None
    """Commit hash of the model (or adapter) on the Hub; None for local files."""
    head: str
    finish_reason: str
    usage: Usage
    truncated: int = 0
    answered: bool | None = True
    """False if the context has no answer to the question, None if the model was stopped before a verdict; ``text`` is
    empty then."""
    score: float | None = None
    start: int | None = None
    end: int | None = None
    reasoning: str = ""
    """Reasoning that the model generated before its answer."""
    still_thinking: bool = False
    """The output, or that for a part of a long text, ended within the reasoning, before an answer."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls of tools in OpenAI's format, with the arguments as a mapping: ``{"type": "function", "id": …, "function":
    {"name": …, "arguments": {…}}}``. Text around them is in ``text``."""
    source_language: str | None = None
    """Translation: BCP 47 tag of the text's language, as specified or detected."""
    target_language: str | None = None
    chunks: tuple[Chunk, ...] = ()
    """The parts of a long text, with the output for each."""
    base_commit: str | None = None
    """Commit hash of an adapter's base model."""
    alternatives: tuple[Output, ...] = ()
    """The other sequences, with ``num_return_sequences`` above 1; the next best spans, with ``top`` above 1."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """The generated tokens with their log probabilities, if requested; of a text in parts, those of its last output."""
    notes: tuple[Note, ...] = ()
    """Information needed to use the answer: what was cut, dropped or guessed, in chronological order."""

    fields: tuple[str, ...] = field(default=(), repr=False)
    """Additional attributes in the JSON of the task, beside the common ones."""

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """The answer and its notes, for notebooks."""
        from html import escape

        notes = "".join(f"<li><code>{note.code}</code>: {escape(note.text)}</li>" for note in self.notes)
        about = f"{self.task}, {self.model}: {self.usage.completion_tokens} tokens, {self.finish_reason}"
        score = "" if self.score is None else f", score {self.score:.3f}"
        return f'<div style="white-space: pre-wrap">{escape(self.text)}</div><small>{escape(about + score)}</small>' + (
            f"<ul>{notes}</ul>" if notes else ""
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, as printed by ``--json``."""
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
        if self.tool_calls:
            result["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.logprobs is not None:
            result["logprobs"] = [_logprob(each) for each in self.logprobs]
        if self.chunks:
            result["chunks"] = [asdict(chunk) for chunk in self.chunks]
        if self.alternatives:
            result["alternatives"] = [_alternative(other) for other in self.alternatives]
        if self.notes:
            result["notes"] = [asdict(note) for note in self.notes]
        return result


def _logprob(each: TokenLogprob) -> dict[str, Any]:
    own: dict[str, Any] = {"id": each.id, "text": each.text, "logprob": each.logprob}
    if each.entropy is not None:
        own["entropy"] = each.entropy
    return {**own, "top": [_logprob(other) for other in each.top]} if each.top else own


def _alternative(output: Output) -> dict[str, Any]:
    if output.head == "span":
        return {"text": output.text, "score": output.score, "start": output.start, "end": output.end}
    tokens = output.usage.completion_tokens
    further: dict[str, Any] = {"still_thinking": True} if output.still_thinking else {}
    if output.tool_calls:
        further["tool_calls"] = [dict(call) for call in output.tool_calls]
    if output.logprobs is not None:
        further["logprobs"] = [_logprob(each) for each in output.logprobs]
    return {"text": output.text, "finish_reason": output.finish_reason, "completion_tokens": tokens} | further
