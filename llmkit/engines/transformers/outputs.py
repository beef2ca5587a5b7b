"""The outputs of requests while they are generated: reasoning and tool calls are separated from the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from llmkit.config.settings import GenerationSettings
from llmkit.engines.base import Answer, OnText, Request
from llmkit.engines.transformers.grammars import Compiled, call_grammar, compiled
from llmkit.engines.transformers.output_rows import OutputRow, Piece, new_row
from llmkit.engines.transformers.token_controls import token_controls
from llmkit.errors import UsageError
from llmkit.heads.chat_template import render_chat
from llmkit.heads.reasoning import ReasoningSplitter, reasoning_format
from llmkit.heads.tool_calls import CallSplitter, call_splitter
from llmkit.models.load import Loaded
from llmkit.tasks import Chat, Generation, TokenLogprob

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["RequestOutput", "settings_of"]


@dataclass
class _StreamingOutput:
    """An output while its pieces arrive."""

    splitter: ReasoningSplitter | None
    calls: CallSplitter | None = None
    on_text: OnText | None = None
    on_reasoning: OnText | None = None
    text: str = ""
    finish_reason: str = "interrupted"
    tokens: int = 0
    score: float | None = None
    runaway: bool = False
    logprobs: Sequence[TokenLogprob] | None = None
    openings: Sequence[Sequence[int]] = ()
    """Tokens with which the model may open its reasoning itself."""
    row: OutputRow | None = None
    _streamed_reasoning: int = field(default=0)

    def add(self, piece: Piece, *, ends_itself: bool) -> None:
        """Add a piece. ``ends_itself`` is False where a stop string may have ended the output, not the model."""
        self._add(self.splitter.push(piece.text) if self.splitter else piece.text)
        if piece.finish_reason is not None:
            self.finish_reason, self.tokens, self.score = piece.finish_reason, piece.tokens, piece.score
            self.runaway = piece.runaway
            finished = ends_itself and piece.finish_reason == "stop"
            self._add(self.splitter.flush(finished=finished) if self.splitter else "")
            self._emit(self.calls.flush() if self.calls else "")

    def _add(self, text: str) -> None:
        self._emit(self.calls.push(text) if self.calls else text)

    def _emit(self, text: str) -> None:
        self.text += text
        if text and self.on_text:
            self.on_text(text)
        if self.splitter and self.on_reasoning and len(self.splitter.reasoning) > self._streamed_reasoning:
            self.on_reasoning(self.splitter.reasoning[self._streamed_reasoning :])
            self._streamed_reasoning = len(self.splitter.reasoning)

    def is_reasoning(self) -> bool:
        """Whether the next token belongs to the reasoning."""
        return self.splitter is not None and self.splitter.answer_is_next is False

    def raw(self) -> Generation:
        raw = Generation(self.text, self.finish_reason, self.score, tokens=self.tokens, runaway=self.runaway)
        raw = replace(raw, logprobs=None if self.logprobs is None else tuple(self.logprobs))
        if self.splitter is None:
            return raw
        found = self.splitter
        raw = replace(raw, reasoning=found.reasoning.strip(), marked=found.marked, thinking=found.thinking)
        if self.calls is None:
            return raw
        if not (self.calls.calls or self.calls.broken):
            return replace(raw, broken_calls=self.calls.count_in(raw.reasoning))
        reason = "tool_calls" if self.calls.calls and raw.finish_reason == "stop" else raw.finish_reason
        return replace(
            raw, finish_reason=reason, tool_calls=self.calls.calls, broken_calls=self.calls.broken, marked=True
        )


@dataclass(frozen=True)
class RequestOutput:
    """The output of a request, with its alternatives, while they are generated."""

    loaded: Loaded
    request: Request
    sequences: tuple[_StreamingOutput, ...]
    shown: Mapping[int, str]
    """Special tokens whose text is kept."""

    @classmethod
    def of(cls, loaded: Loaded, request: Request) -> RequestOutput:
        """The output of a request before its first token; only its first sequence is streamed."""
        prompt, shown = request.prompt, {}
        reasoning = reasoning_format(loaded.tokenizer) if isinstance(prompt, Chat) else None
        sequences = []
        for _ in range(request.settings.num_return_sequences):
            # Reasoning is only split off chat replies; continued text is left unchanged.
            output = _StreamingOutput(None)
            if reasoning is not None and isinstance(prompt, Chat):
                calls, marks = call_splitter(loaded.tokenizer, prompt) or (None, {})
                # The prefill is not part of the opening: it would be mistaken for a tag that the template set.
                opening = "" if prompt.prefill else render_chat(loaded.tokenizer, prompt)
                output = _StreamingOutput(reasoning.splitter(opening, frozenset(marks.values())), calls)
                output.openings = [] if prompt.prefill else reasoning.openings(loaded.tokenizer, opening)
                shown = {**reasoning.shown, **marks}
            sequences.append(output)
        sequences[0].on_text, sequences[0].on_reasoning = request.on_text, request.on_reasoning
        return cls(loaded, request, tuple(sequences), shown)

    def rows(self, config: GenerationConfig, texts: tuple[str, ...]) -> list[OutputRow]:
        """The rows that the model generates. ``texts`` are stop strings, beside those of the prompt itself."""
        loaded, ends_itself = self.loaded, not self.request.settings.stop
        rows = []
        unknown = any(each.splitter is not None and each.splitter.answer_is_next is None for each in self.sequences)
        grammar = _grammar(loaded, self.request)
        if unknown and grammar is not None:
            raise UsageError(
                f"the reasoning format of {loaded.source.name} supports no json_schema, regex, choice or tool_choice",
                "leave them out, or use another model",
                code="not_supported",
            )
        for sequence in self.sequences:
            controls = token_controls(loaded, self.request.settings, sequence.is_reasoning, grammar, sequence.openings)
            emit = partial(sequence.add, ends_itself=ends_itself)
            sequence.row = row = new_row(loaded, config, self.request, texts, self.shown, emit, controls)
            sequence.logprobs = row.logprobs if self.request.settings.logprobs is not None else None
            rows.append(row)
        return rows

    def answer(self) -> Answer:
        """The finished output, or what there is of it; the error of a sequence that could not be continued."""
        errors = (each.row.error for each in self.sequences if each.row is not None)
        if (error := next((each for each in errors if each is not None), None)) is not None:
            return error
        first, *others = (each.raw() for each in self.sequences)
        return replace(first, alternatives=tuple(others))


def settings_of(request: Request) -> GenerationSettings:
    """The settings of a batch that begins with a request."""
    settings, most = request.settings, request.max_new_tokens
    if most is not None and most != settings.max_new_tokens:
        least = None if settings.min_new_tokens is None else min(settings.min_new_tokens, most)
        settings = replace(settings, max_new_tokens=most, min_new_tokens=least)
    if settings.seed is not None and request.number:
        settings = replace(settings, seed=(settings.seed + request.number) % 2**63)
    return settings


def _grammar(loaded: Loaded, request: Request) -> Compiled | None:
    """The grammar of the output of a request: of its settings, or of the call that it must be."""
    own, prompt = compiled(loaded, request.settings), request.prompt
    if not (isinstance(prompt, Chat) and prompt.tool_choice):
        return own
    if own is not None:
        raise UsageError(
            "tool_choice and json_schema, regex or choice each determine the whole output",
            "give one of them",
            code="invalid_value",
        )
    return call_grammar(loaded, prompt)
