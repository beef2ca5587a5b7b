"""The outputs of a batch while they are generated: reasoning is separated, and pieces are emitted as they arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmkit.config.settings import GenerationSettings
from llmkit.engines.base import OnText, Request
from llmkit.engines.transformers.decoding import generate
from llmkit.engines.transformers.output_rows import Piece
from llmkit.engines.transformers.prompt_cache import PromptCache
from llmkit.heads.chat_template import render_chat
from llmkit.heads.reasoning import ReasoningFormat, ReasoningSplitter, reasoning_format
from llmkit.heads.tool_calls import CallSplitter, call_splitter
from llmkit.heads.writing import WritingHead
from llmkit.models.load import Loaded
from llmkit.tasks import Chat, Generation, Prompt

__all__ = ["write"]


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

    def raw(self) -> Generation:
        raw = Generation(self.text, self.finish_reason, self.score, tokens=self.tokens, runaway=self.runaway)
        if self.splitter is None:
            return raw
        found = self.splitter
        raw = replace(raw, reasoning=found.reasoning.strip(), marked=found.marked, thinking=found.thinking)
        if self.calls is None or not (self.calls.calls or self.calls.broken):
            return raw
        reason = "tool_calls" if self.calls.calls and raw.finish_reason == "stop" else raw.finish_reason
        return replace(
            raw, finish_reason=reason, tool_calls=self.calls.calls, broken_calls=self.calls.broken, marked=True
        )


def write(
    loaded: Loaded, head: WritingHead, requests: Sequence[Request], cache: PromptCache | None = None
) -> list[Generation]:
    """Generate for requests with the same settings, one `Generation` each with its ``alternatives``."""
    settings = _settings(requests[0])
    count = settings.num_return_sequences
    reasoning = _reasoning(loaded, requests)
    drafts, shown = [], dict(reasoning.shown if reasoning else {})
    for request in requests:
        for place in range(count):
            draft, kept = _draft(loaded, request.prompt, reasoning)
            if not place:
                draft.on_text, draft.on_reasoning = request.on_text, request.on_reasoning
            drafts.append(draft)
            shown |= kept

    def emit(piece: Piece) -> None:
        drafts[piece.row].add(piece, ends_itself=not settings.stop)

    generate(loaded, head, requests, settings, emit, scored=requests[0].scored, cache=cache, shown=shown)
    raws = [draft.raw() for draft in drafts]
    return [
        replace(raws[first], alternatives=tuple(raws[first + 1 : first + count]))
        for first in range(0, len(raws), count)
    ]


def _settings(request: Request) -> GenerationSettings:
    """The requests of the batch that begins with the first one."""
    settings, most = request.settings, request.max_new_tokens
    if most is not None and most != settings.max_new_tokens:
        least = None if settings.min_new_tokens is None else min(settings.min_new_tokens, most)
        settings = replace(settings, max_new_tokens=most, min_new_tokens=least)
    if settings.seed is not None and request.number:
        settings = replace(settings, seed=(settings.seed + request.number) % 2**63)
    return settings


def _reasoning(loaded: Loaded, requests: Sequence[Request]) -> ReasoningFormat | None:
    """Reasoning is only split off chat replies; continued text is left unchanged."""
    return reasoning_format(loaded.tokenizer) if any(isinstance(each.prompt, Chat) for each in requests) else None


def _draft(
    loaded: Loaded, prompt: Prompt, reasoning: ReasoningFormat | None
) -> tuple[_StreamingOutput, Mapping[int, str]]:
    """An output that has not begun, and the special tokens that it needs, with their texts."""
    if reasoning is None or not isinstance(prompt, Chat):
        return _StreamingOutput(None), {}
    calls, shown = call_splitter(loaded.tokenizer, prompt) or (None, {})
    # The prefill is not part of the opening: it would be mistaken for a tag that the template set.
    opening = "" if prompt.prefill else render_chat(loaded.tokenizer, prompt)
    return _StreamingOutput(reasoning.splitter(opening, frozenset(shown.values())), calls), shown
