"""Generating with the causal and the seq2seq head: one path, as pieces of text for each row.

`generate` hands pieces over as they become certain; whoever wants the whole text joins them. Everything is
done in a stopping criterion, which sees each step's tokens of the whole batch: decoding, stop strings and
per-row limits, so that a batch gives what single rows give.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.heads.text_stream import StopScanner, TextStream
from llmkit.log import log

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.heads.base import Encoded, HeadOps
    from llmkit.models.load import Loaded

__all__ = ["FinishReason", "Piece", "generate", "generation_config", "pad_id", "stream"]

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


@dataclass
class _Row:
    """The state of one output."""

    number: int
    text: TextStream
    stop: StopScanner
    limit: int
    eos: set[int]
    count: int = 0
    done: bool = False

    def push(self, token: int) -> Piece | None:
        """Add a token; returns a piece where text has become certain or the row has ended."""
        self.count += 1
        if token in self.eos:
            return self._finish("", "stop")
        text = self.stop.push(self.text.push(token))
        if self.stop.found or self.count >= self.limit:
            return self._finish(text, "length")
        return Piece(self.number, text) if text else None

    def push_all(self, tokens: Sequence[int]) -> Piece:
        """A whole output at once, as beam search gives it: one piece."""
        text = ""
        for token in tokens:
            piece = self.push(token)
            text += piece.text if piece else ""
            if piece and self.done:
                return Piece(self.number, text, piece.finish_reason, piece.tokens)
        return self._finish(text, "length")

    def _finish(self, text: str, reason: FinishReason) -> Piece:
        self.done = True
        if not self.stop.found:
            text += self.stop.push(self.text.flush())
        if not self.stop.found:
            text += self.stop.flush()
        return Piece(self.number, text, "stop" if self.stop.found else reason, self.count)


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
    _refuse_without_effect(config, settings)
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


def _refuse_without_effect(config: GenerationConfig, settings: GenerationSettings) -> None:
    """Settings that mean something only with beams or sampling, which the model's own settings may bring."""
    beams = config.num_beams or 1
    if settings.num_return_sequences > beams and (beams > 1 or not config.do_sample):
        raise UsageError(
            f"num_return_sequences={settings.num_return_sequences} would give the same text each time",
            "sample (temperature above 0) or use at least as many beams (num_beams)",
        )
    if settings.length_penalty is not None and beams == 1:
        raise UsageError("length_penalty has an effect in beam search only", "set num_beams above 1")


def stream(
    loaded: Loaded, ops: HeadOps, batch: Sequence[Encoded], settings: GenerationSettings, max_new_tokens: int
) -> Generator[Piece, None, None]:
    """`generate` in a worker thread, as an iterator. Closing it stops the model after the current token."""
    pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
    cancelled = threading.Event()

    def work() -> None:
        try:
            generate(loaded, ops, batch, settings, max_new_tokens, pieces.put, cancelled.is_set)
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


def _groups(rooms: Sequence[int | None], max_new_tokens: int) -> list[tuple[list[int], int]]:
    """Which prompts can be generated together, and how many tokens each group may write.

    A prompt whose context fills up before ``max_new_tokens`` goes alone: in a batch it would be carried on with
    the others, past its last position.
    """
    roomy = [index for index, room in enumerate(rooms) if room is None or room >= max_new_tokens]
    tight = [([index], room) for index, room in enumerate(rooms) if room is not None and room < max_new_tokens]
    return [(roomy, max_new_tokens), *tight] if roomy else tight


def generate(
    loaded: Loaded,
    ops: HeadOps,
    batch: Sequence[Encoded],
    settings: GenerationSettings,
    max_new_tokens: int,
    emit: Callable[[Piece], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Generate for a batch of prompts; ``emit`` gets each piece as soon as it is certain.

    Rows are numbered prompt by prompt: output ``r`` belongs to prompt ``r // num_return_sequences``. Each row
    stops at EOS, at a stop string, at ``max_new_tokens`` or where the context is full. Beam search gives each
    row as one piece, when the beams are done. ``cancelled`` is asked after every token.
    """
    rooms = [ops.room(loaded, encoded) for encoded in batch]
    for indices, limit in _groups(rooms, max_new_tokens):
        config = generation_config(loaded, settings, limit)
        rows = [
            _Row(
                index * settings.num_return_sequences + sequence,
                TextStream(loaded.tokenizer, batch[index].continues),
                StopScanner(settings.stop),
                limit,
                _eos_ids(config),
            )
            for index in indices
            for sequence in range(settings.num_return_sequences)
        ]
        inputs = ops.collate(loaded, [batch[index] for index in indices])
        with loaded.lock:
            _generate_group(loaded, ops, inputs, config, rows, settings.seed, emit, cancelled)


def _generate_group(
    loaded: Loaded,
    ops: HeadOps,
    inputs: dict[str, torch.Tensor],
    config: GenerationConfig,
    rows: Sequence[_Row],
    seed: int | None,
    emit: Callable[[Piece], None],
    cancelled: Callable[[], bool],
) -> None:
    import torch
    from transformers import StoppingCriteriaList

    beams = (config.num_beams or 1) > 1

    def step(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if beams or cancelled():  # beams are rearranged at every step, so none of their text is certain yet
            return torch.full((len(input_ids),), cancelled(), device=input_ids.device)
        for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
            if not row.done and (piece := row.push(token)):
                emit(piece)
        return torch.tensor([row.done for row in rows], device=input_ids.device)

    devices = [loaded.device] if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        output = loaded.model.generate(  # type: ignore[operator]
            **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([step])
        )
    if beams and not cancelled():
        for row, sequence in zip(rows, output[:, ops.output_start(inputs) :].tolist(), strict=True):
            emit(row.push_all(sequence))
