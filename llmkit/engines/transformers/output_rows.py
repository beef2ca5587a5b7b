"""The outputs of a batch while they are generated: tokens in, final pieces of text out.

Each row stops on its own: at an end token, a stop string, its limit, or in a loop. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmkit.heads.text_stream import Stops, StopScanner, TextStream
from llmkit.text.loops import RunawayDetector

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from llmkit.engines.base import Request
    from llmkit.models.load import Loaded

__all__ = ["FinishReason", "OutputRow", "Piece", "new_row"]

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Piece:
    """Text added to one row. The last piece of a row carries the other three fields."""

    row: int
    text: str
    finish_reason: FinishReason | None = None
    tokens: int = 0
    score: float | None = None
    """Geometric mean of the tokens' probabilities, if scores were requested."""
    runaway: bool = False


@dataclass
class OutputRow:
    """The state of one output."""

    number: int
    text: TextStream
    stops: Stops
    stop: StopScanner
    limit: int
    eos: frozenset[int]
    cancelled: Callable[[], bool]
    runaway: RunawayDetector
    forced_bos_token_id: int | None = None
    count: int = 0
    done: bool = False
    log_probability: float | None = None

    def push(self, token: int, log_probability: float | None = None) -> Piece | None:
        """Add a token; returns a piece if text has become final or the row has ended."""
        self.count += 1
        if log_probability is not None:
            self.log_probability = (self.log_probability or 0.0) + log_probability
        if token in self.eos:
            return self._finish("", "stop")
        # A forced language token is not part of the text, even if the tokenizer does not mark it as special.
        forced = self.count == 1 and token == self.forced_bos_token_id
        text = "" if forced else self._add(token)
        if self.stop.found or self.count >= self.limit:
            return self._finish(text, "length")
        if self.runaway.push(token):
            return self._finish(text, "length", runaway=True)
        return Piece(self.number, text) if text else None

    def _add(self, token: int) -> str:
        mark = self.stops.marks.get(token)
        text = self.text.flush() + mark if mark else ""
        return self.stops.shown(self.stop.push(text + self.text.push(token)))

    def push_all(self, tokens: Sequence[int]) -> Piece:
        """A whole output as one piece, as beam search returns it."""
        text = ""
        for token in tokens:
            piece = self.push(token)
            text += piece.text if piece else ""
            if piece and self.done:
                return replace(piece, text=text)
        return self._finish(text, "length")

    def interrupt(self) -> Piece:
        """End the row with its text so far."""
        return self._finish("", "interrupted")

    def run_out(self) -> Piece:
        """End the row at the model's own max_time."""
        return self._finish("", "length")

    def _finish(self, text: str, reason: FinishReason, *, runaway: bool = False) -> Piece:
        self.done = True
        if not self.stop.found:
            text += self.stops.shown(self.stop.push(self.text.flush()))
        if not self.stop.found:
            text += self.stops.shown(self.stop.flush())
        score = None if self.log_probability is None else math.exp(self.log_probability / self.count)
        return Piece(self.number, text, "stop" if self.stop.found else reason, self.count, score, runaway)


def new_row(
    loaded: Loaded,
    config: GenerationConfig,
    request: Request,
    texts: tuple[str, ...],
    shown: Mapping[int, str] | None,
    number: int,
) -> OutputRow:
    """The row with the index ``number``, before its first token. ``texts`` are stop strings of all rows."""
    encoded = request.encoded
    stops = Stops.of(loaded.tokenizer, (*texts, *encoded.stop), shown or {})
    return OutputRow(
        number,
        TextStream(loaded.tokenizer, encoded.continues, shown=shown),
        stops,
        StopScanner(stops.texts),
        int(config.max_new_tokens or 0),
        frozenset(config.eos_token_id or ()),
        lambda: request.cancelled(),  # callers may replace it later
        RunawayDetector(encoded.input_ids, stop_loops=request.stop_loops, plausible_tokens=request.plausible_tokens),
        config.forced_bos_token_id,
    )
