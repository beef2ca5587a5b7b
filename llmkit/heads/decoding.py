"""Generating with the causal and the seq2seq head: one path, as a stream of text pieces for each row.

`stream` runs ``model.generate`` in a worker thread and yields pieces as they become certain; whoever wants
the whole text joins them. Everything is done in a stopping criterion, which sees each step's tokens of the
whole batch: decoding, stop strings and per-row limits, so that a batch gives what single rows give.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config.settings import GenerationSettings
from llmkit.log import log

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.heads.base import Encoded, HeadOps
    from llmkit.models.load import Loaded

__all__ = ["FinishReason", "Piece", "StopScanner", "TextStream", "generation_config", "pad_id", "stream"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """Text that was added to one row. The last piece of a row carries its finish reason and token count."""

    row: int
    text: str
    finish_reason: FinishReason | None = None
    tokens: int = 0


def pad_id(loaded: Loaded) -> int:
    """An id to fill batches with; masked everywhere, so any will do where the model has none of its own."""
    for candidate in (
        loaded.model.generation_config.pad_token_id,
        loaded.tokenizer.pad_token_id,
        *sorted(_eos_ids(loaded.model.generation_config)),
    ):
        if candidate is not None:
            return int(candidate)
    return 0


def _eos_ids(config: GenerationConfig) -> set[int]:
    eos = config.eos_token_id
    return set() if eos is None else {eos} if isinstance(eos, int) else set(eos)


class TextStream:
    """Decodes one row token by token; the pieces join to what decoding all tokens at once gives.

    A piece is held back while it ends in half a character. Each step decodes only a few tokens: those of
    the last piece again, because many tokenizers drop the space in front of a text.
    """

    def __init__(self, tokenizer: Any, continues: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids = list(continues)
        self._start, self._end = 0, len(self._ids)

    def _decode(self, start: int, end: int | None) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=self._skip_special_tokens))

    def push(self, token: int) -> str:
        """Add a token; returns the text that has become certain."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """The text still held back."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._decode(self._start, self._end)
        text = self._decode(self._start, None)
        if len(text) <= len(known) or (text.endswith("\ufffd") and not final):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return text[len(known) :]


class StopScanner:
    """Finds stop strings in text that arrives in pieces, and never lets the beginning of one through."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns what may be shown. After `found` nothing more comes."""
        if not self._stop:
            return text
        self._held += text
        hits = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if hits:
            self.found = True
            shown, self._held = self._held[: min(hits)], ""
            return shown
        keep = max((n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        split = len(self._held) - keep
        shown, self._held = self._held[:split], self._held[split:]
        return shown

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


class _Row:
    """The state of one output: its tokens so far, and whether it is done."""

    def __init__(self, tokenizer: Any, encoded: Encoded, stop: Sequence[str], limit: int, eos: set[int]) -> None:
        self._text = TextStream(tokenizer, encoded.continues)
        self._stop = StopScanner(stop)
        self._limit, self._eos = limit, eos
        self._count = 0
        self.done = False

    def push(self, number: int, token: int) -> Piece | None:
        self._count += 1
        if token in self._eos:
            return self._finish(number, "", "stop")
        text = self._stop.push(self._text.push(token))
        if self._stop.found:
            self.done = True
            return Piece(number, text, "stop", self._count)
        if self._count >= self._limit:
            return self._finish(number, text, "length")
        return Piece(number, text) if text else None

    def push_all(self, number: int, tokens: Sequence[int]) -> Piece:
        """A whole output at once, as beam search gives it: one piece."""
        text = ""
        for token in tokens:
            piece = self.push(number, token)
            text += piece.text if piece else ""
            if piece and self.done:
                return Piece(number, text, piece.finish_reason, piece.tokens)
        last = self._finish(number, "", "length")
        return Piece(number, text + last.text, last.finish_reason, last.tokens)

    def _finish(self, number: int, text: str, reason: FinishReason) -> Piece:
        self.done = True
        text += self._stop.push(self._text.flush())
        text += "" if self._stop.found else self._stop.flush()
        return Piece(number, text, "stop" if self._stop.found else reason, self._count)


def generation_config(loaded: Loaded, settings: GenerationSettings, max_new_tokens: int) -> GenerationConfig:
    """The model's own generation_config with the caller's settings on top."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.max_length = None  # max_new_tokens counts the output alone, whatever the prompt's length
    config.max_new_tokens = max_new_tokens
    for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty"):
        if getattr(settings, name) is not None:
            setattr(config, name, getattr(settings, name))
    config.num_return_sequences = settings.num_return_sequences
    if settings.temperature == 0:
        config.do_sample = False
    elif settings.samples:
        config.do_sample = True
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if getattr(settings, name) is not None:
                setattr(config, name, getattr(settings, name))
        if config.top_k is None:
            config.top_k = 0  # Transformers would take 50 without a word
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = config.min_p = None
    if config.eos_token_id is None:
        config.eos_token_id = loaded.tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = pad_id(loaded)
    if (config.min_length or 0) > max_new_tokens:
        log.warning("the model's own min_length %d is lowered to %d", config.min_length, max_new_tokens)
        config.min_length = max_new_tokens
    return config


def stream(
    loaded: Loaded, ops: HeadOps, batch: Sequence[Encoded], settings: GenerationSettings, max_new_tokens: int
) -> Iterator[Piece]:
    """Generate for a batch of prompts and yield pieces as they come.

    Rows are numbered prompt by prompt: output ``r`` belongs to prompt ``r // num_return_sequences``. Each row
    stops at EOS, at a stop string, at ``max_new_tokens`` or where the context is full. Beam search gives each
    row as one piece, when the beams are done. Closing the iterator stops the model after the current token.
    """
    pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
    cancelled = threading.Event()

    def work() -> None:
        try:
            with loaded.lock:
                _generate(loaded, ops, batch, settings, max_new_tokens, pieces, cancelled)
            pieces.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            pieces.put(error)

    worker = threading.Thread(target=work, name="llmkit-generate", daemon=True)
    worker.start()
    interrupted = False
    try:
        while (item := pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        cancelled.set()
        if not interrupted:  # a model that reads a long prompt would hold the user up
            worker.join()


def _generate(
    loaded: Loaded,
    ops: HeadOps,
    batch: Sequence[Encoded],
    settings: GenerationSettings,
    max_new_tokens: int,
    pieces: queue.SimpleQueue[Piece | BaseException | None],
    cancelled: threading.Event,
) -> None:
    import torch
    from transformers import StoppingCriteriaList

    config = generation_config(loaded, settings, max_new_tokens)
    eos = _eos_ids(config)
    rooms = [ops.room(loaded, encoded) for encoded in batch]
    limits = [max_new_tokens if room is None else min(room, max_new_tokens) for room in rooms]
    config.max_new_tokens = max(limits)
    rows = [
        _Row(loaded.tokenizer, encoded, settings.stop, limit, eos)
        for encoded, limit in zip(batch, limits, strict=True)
        for _ in range(settings.num_return_sequences)
    ]
    inputs = ops.collate(loaded, batch)
    beams = (config.num_beams or 1) > 1

    def step(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if beams or cancelled.is_set():  # beams are rearranged at every step, so none of their text is certain yet
            return torch.full((len(input_ids),), cancelled.is_set(), device=input_ids.device)
        for number, (row, token) in enumerate(zip(rows, input_ids[:, -1].tolist(), strict=True)):
            if not row.done and (piece := row.push(number, token)):
                pieces.put(piece)
        return torch.tensor([row.done for row in rows], device=input_ids.device)

    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=settings.seed is not None):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        output = loaded.model.generate(  # type: ignore[operator]
            **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([step])
        )
    if beams and not cancelled.is_set():
        for number, sequence in enumerate(output[:, ops.output_start(inputs) :].tolist()):
            pieces.put(rows[number].push_all(number, sequence))
