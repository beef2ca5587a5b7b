"""The outputs of a batch while they are generated: tokens in, final pieces of text out.

Each row stops on its own: at an end token, a stop string, its limit, or in a loop. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from llmkit.errors import InputError
from llmkit.heads.text_stream import Stops, StopScanner, TextStream
from llmkit.text.loops import RunawayDetector

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.engines.base import Request
    from llmkit.engines.transformers.token_controls import TokenControl
    from llmkit.models.load import Loaded
    from llmkit.tasks import TokenLogprob

__all__ = ["FinishReason", "OutputRow", "Piece", "new_row"]

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Piece:
    """Text added to one output. Its last piece carries the other fields."""

    text: str
    finish_reason: FinishReason | None = None
    tokens: int = 0
    score: float | None = None
    """Geometric mean of the tokens' probabilities, if scores were requested."""
    runaway: bool = False


@dataclass
class OutputRow:
    """The state of one output, which emits each piece of text as soon as it is final."""

    emit: Callable[[Piece], None]
    text: TextStream
    stops: Stops
    stop: StopScanner
    limit: int
    eos: frozenset[int]
    cancelled: Callable[[], bool]
    runaway: RunawayDetector
    controls: Sequence[TokenControl] = ()
    forced_bos_token_id: int | None = None
    prompt: Sequence[int] = ()
    adapter: str = ""
    tokens: list[int] = field(default_factory=list)
    done: bool = False
    error: InputError | None = None
    """Why a control could not continue the output."""
    log_probability: float | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of tokens, including an end token."""
        return len(self.tokens)

    def control(self, logits: torch.Tensor) -> None:
        """Let the controls change the logits of the next token, in place."""
        for each in self.controls:
            self._attempt(lambda each=each: each.apply(logits))  # type: ignore[misc]

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except InputError as error:  # of this output; the others continue
            self.error, self.done = error, True

    def push(self, token: int, log_probability: float | None = None) -> None:
        """Add a token."""
        self.tokens.append(token)
        for control in self.controls:
            self._attempt(lambda control=control: control.push(token))  # type: ignore[misc]
        if self.done:
            return
        if log_probability is not None:
            self.log_probability = (self.log_probability or 0.0) + log_probability
        if token in self.eos:
            self._finish("", "stop")
            return
        # A forced language token is not part of the text, even if the tokenizer does not mark it as special.
        forced = self.count == 1 and token == self.forced_bos_token_id
        text = "" if forced else self._add(token)
        if self.stop.found or self.count >= self.limit:
            self._finish(text, "length")
        elif self.runaway.push(token):
            self._finish(text, "length", runaway=True)
        elif text:
            self.emit(Piece(text))

    def _add(self, token: int) -> str:
        mark = self.stops.marks.get(token)
        text = self.text.flush() + mark if mark else ""
        return self.stops.shown(self.stop.push(text + self.text.push(token)))

    def push_all(self, tokens: Sequence[int]) -> None:
        """Add a whole output, as beam search returns it, and end it."""
        for token in tokens:
            self.push(token)
            if self.done:
                return
        self.run_out()

    def interrupt(self) -> None:
        """End the output with its text so far."""
        self._finish("", "interrupted")

    def run_out(self) -> None:
        """End the output at a limit of the model's own: its max_time, or that of its beams."""
        self._finish("", "length")

    def _finish(self, text: str, reason: FinishReason, *, runaway: bool = False) -> None:
        self.done = True
        if not self.stop.found:
            text += self.stops.shown(self.stop.push(self.text.flush()))
        if not self.stop.found:
            text += self.stops.shown(self.stop.flush())
        score = None if self.log_probability is None else math.exp(self.log_probability / self.count)
        self.emit(Piece(text, "stop" if self.stop.found else reason, self.count, score, runaway))


def new_row(
    loaded: Loaded,
    config: GenerationConfig,
    request: Request,
    texts: tuple[str, ...],
    shown: Mapping[int, str],
    emit: Callable[[Piece], None],
    controls: Sequence[TokenControl],
) -> OutputRow:
    """An output of a request before its first token.

    Args:
        texts: stop strings, beside those of the prompt itself.
        shown: special tokens whose text is kept, between two `llmkit.heads.text_stream.EDGE`.
    """
    encoded = request.encoded
    stops = Stops.of(loaded.tokenizer, (*texts, *encoded.stop), shown)
    return OutputRow(
        emit,
        TextStream(loaded.tokenizer, encoded.continues, shown=shown),
        stops,
        StopScanner(stops.texts),
        int(config.max_new_tokens or 0),
        frozenset(config.eos_token_id or ()),
        lambda: request.cancelled(),  # callers may replace it later
        RunawayDetector(encoded.input_ids, stop_loops=request.stop_loops, plausible_tokens=request.plausible_tokens),
        controls,
        config.forced_bos_token_id,
        encoded.input_ids,
        request.adapter,
    )
