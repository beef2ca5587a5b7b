"""Runs prompts through the model of one head and gives back what it wrote or marked.

Knows batches of prompts. Does not know how rows became prompts, or what becomes of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from typing import Any

from llmkit.config.settings import GenerationSettings
from llmkit.errors import LlmkitError
from llmkit.heads import head_of
from llmkit.heads.batching import Budget
from llmkit.heads.chat_template import render_chat
from llmkit.heads.decoding import Piece, generate
from llmkit.heads.prompt_cache import PromptCache
from llmkit.heads.reasoning import ReasoningFormat, ReasoningSplitter, reasoning_format
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import Document
from llmkit.heads.writing import WritingHead
from llmkit.inference.fitting import Fitted
from llmkit.models.load import Loaded
from llmkit.tasks import Chat, Raw, Reading

__all__ = ["Shown", "mark", "write"]

OnText = Callable[[str], None]


class Shown:
    """Passes an answer on as it grows; ``strip`` leaves out the white space around it."""

    def __init__(self, on_text: OnText, *, strip: bool) -> None:
        self._on_text = on_text
        self._strip = strip
        self._begun = False
        self._held = ""

    def push(self, text: str) -> None:
        """Add a piece."""
        if self._strip:
            text = self._held + text
            if not self._begun:
                text = text.lstrip()
            shown = text.rstrip()
            text, self._held = shown, text[len(shown) :]
        if text:
            self._begun = True
            self._on_text(text)


@dataclass
class _Draft:
    """An output while its pieces arrive."""

    splitter: ReasoningSplitter | None
    on_text: OnText | None = None
    on_reasoning: OnText | None = None
    text: str = ""
    finish_reason: str = "interrupted"
    tokens: int = 0
    score: float | None = None
    _told: int = field(default=0)

    def add(self, piece: Piece, *, ends_itself: bool) -> None:
        """Add a piece. ``ends_itself`` is False where a stop string may have ended the output, not the model."""
        self._add(self.splitter.push(piece.text) if self.splitter else piece.text)
        if piece.finish_reason is not None:
            self.finish_reason, self.tokens, self.score = piece.finish_reason, piece.tokens, piece.score
            finished = ends_itself and piece.finish_reason == "stop"
            self._add(self.splitter.flush(finished=finished) if self.splitter else "")

    def _add(self, text: str) -> None:
        self.text += text
        if text and self.on_text:
            self.on_text(text)
        if self.splitter and self.on_reasoning and len(self.splitter.reasoning) > self._told:
            self.on_reasoning(self.splitter.reasoning[self._told :])
            self._told = len(self.splitter.reasoning)

    def raw(self) -> Raw:
        raw = Raw(self.text, self.finish_reason, self.score, tokens=self.tokens)
        if self.splitter is None:
            return raw
        found = self.splitter
        return replace(raw, reasoning=found.reasoning.strip(), marked=found.marked, thinking=found.thinking)


def write(
    loaded: Loaded,
    batch: Sequence[Fitted],
    settings: GenerationSettings,
    *,
    max_new_tokens: int | None = None,
    scored: bool = False,
    on_text: OnText | None = None,
    on_reasoning: OnText | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    cache: PromptCache | None = None,
) -> list[Raw]:
    """Generate for a batch of prompts, one `Raw` each, further sequences in its ``alternatives``.

    ``on_text`` and ``on_reasoning`` get the first prompt's first sequence while it is generated.
    """
    if max_new_tokens is not None and max_new_tokens < (settings.max_new_tokens or max_new_tokens + 1):
        least = None if settings.min_new_tokens is None else min(settings.min_new_tokens, max_new_tokens)
        settings = replace(settings, max_new_tokens=max_new_tokens, min_new_tokens=least)
    count = settings.num_return_sequences
    reasoning = _reasoning(loaded, batch)
    drafts = [_Draft(_splitter(loaded, fitted, reasoning)) for fitted in batch for _ in range(count)]
    drafts[0].on_text, drafts[0].on_reasoning = on_text, on_reasoning

    def emit(piece: Piece) -> None:
        drafts[piece.row].add(piece, ends_itself=not settings.stop)

    encoded = [fitted.encoded for fitted in batch]
    shown = reasoning.shown if reasoning else {}
    head = head_of(loaded.head)
    assert isinstance(head, WritingHead)
    generate(loaded, head, encoded, settings, emit, cancelled, scored=scored, cache=cache, shown=shown)
    raws = [draft.raw() for draft in drafts]
    return [
        replace(raws[first], alternatives=tuple(raws[first + 1 : first + count]))
        for first in range(0, len(raws), count)
    ]


def mark(loaded: Loaded, head: SpanHead, documents: Sequence[Document], budget: Budget) -> list[Reading | LlmkitError]:
    """Mark the answers to questions in their texts; one `Reading` a document, in order.

    Args:
        budget: how many windows, of any document, the model reads at once; results do not depend on it.
    """
    if head.alone(loaded):
        budget = Budget(budget.tokens, rows=1)
    windows = [window for document in documents for window in document.windows]
    results: dict[int, Any] = {}
    # Alike lengths waste no padding; the longest first, so that memory runs out at once or never.
    order = sorted(range(len(windows)), key=lambda number: -len(windows[number].input_ids))
    batches = budget.run(
        order,
        lambda number: len(windows[number].input_ids),
        lambda numbers: head.read(loaded, [windows[number] for number in numbers]),
    )
    for numbers, read in batches:
        results.update(zip(numbers, repeat(read) if isinstance(read, LlmkitError) else read, strict=False))
    logits = iter([results[number] for number in range(len(windows))])
    readings: list[Reading | LlmkitError] = []
    for document in documents:
        own = list(islice(logits, len(document.windows)))
        failed = next((error for error in own if isinstance(error, LlmkitError)), None)
        readings.append(failed or head.answer(document, own))
    return readings


def _reasoning(loaded: Loaded, batch: Sequence[Fitted]) -> ReasoningFormat | None:
    """Only a model that is talked to thinks aloud; a text that is continued is left as it comes."""
    return reasoning_format(loaded.tokenizer) if any(isinstance(each.prompt, Chat) for each in batch) else None


def _splitter(loaded: Loaded, fitted: Fitted, reasoning: ReasoningFormat | None) -> ReasoningSplitter | None:
    if reasoning is None or not isinstance(fitted.prompt, Chat):
        return None
    # The prefill is not part of the opening: it would be taken for a mark that the template set.
    return reasoning.splitter("" if fitted.prompt.prefill else render_chat(loaded.tokenizer, fitted.prompt))
