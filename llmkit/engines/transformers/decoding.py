"""Generation with causal and seq2seq heads, as pieces of text for each row.

`generate` emits pieces as they become final; callers join them for the whole text. A stopping criterion, which sees
the tokens of the whole batch at each step, does everything: decoding, stop strings and per-row limits, so that a batch
gives the same outputs as single rows. Finished rows are removed from the batch. The model runs in the calling thread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers.batch_invariance import BatchCompatibility, probe_batch_invariance
from llmkit.engines.transformers.batching import take_batch
from llmkit.engines.transformers.joined_cache import can_join, join, pad_left
from llmkit.engines.transformers.prompt_cache import new_cache
from llmkit.errors import CheckpointError, UsageError
from llmkit.heads.base import refuse_not_finite
from llmkit.heads.end_tokens import text_ends
from llmkit.heads.text_stream import Stops, StopScanner, TextStream
from llmkit.log import warn
from llmkit.models.generation import cache_name, without_own_settings
from llmkit.text.loops import RunawayDetector

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.engines.base import Request
    from llmkit.engines.transformers.prompt_cache import PromptCache
    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["FinishReason", "Piece", "generate", "generation_config"]

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
class _Row:
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


def generation_config(
    loaded: Loaded,
    settings: GenerationSettings,
    max_new_tokens: int,
    forced_bos_token_id: int | None = None,
    ends: Iterable[int] = (),
) -> GenerationConfig:
    """The model's own generation_config, overridden by the caller's settings; ``ends`` are additional end tokens."""
    config = copy.deepcopy(loaded.model.generation_config)
    config.max_length = None  # max_new_tokens counts the output alone, whatever the prompt's length
    config.max_new_tokens = max_new_tokens
    if settings.min_new_tokens is not None:
        config.min_length = None
        config.min_new_tokens = min(settings.min_new_tokens, max_new_tokens)
    if forced_bos_token_id is not None:
        config.forced_bos_token_id = forced_bos_token_id
    for name in ("repetition_penalty", "no_repeat_ngram_size", "num_beams", "length_penalty"):
        if getattr(settings, name) is not None:
            setattr(config, name, getattr(settings, name))
    config.num_return_sequences = settings.num_return_sequences
    _set_sampling(config, settings)
    _refuse_without_effect(config, settings)
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = config.min_p = None
    config.eos_token_id = sorted(text_ends(loaded) | set(ends)) or None
    if (config.min_length or 0) > max_new_tokens:
        _tell_lowered(config.min_length or 0, max_new_tokens)
        config.min_length = max_new_tokens
    return config


@cache
def _tell_lowered(own: int, longest: int) -> None:
    warn("setting_adjusted", "the model's own min_length %d is lowered to %d", own, longest)


def _set_sampling(config: GenerationConfig, settings: GenerationSettings) -> None:
    """Greedy or sampling, by the caller's settings or else the model's own."""
    if settings.temperature == 0:
        config.do_sample = False
    elif settings.samples:
        config.do_sample = True
        for name in ("temperature", "top_p", "top_k", "min_p"):
            if getattr(settings, name) is not None:
                setattr(config, name, getattr(settings, name))
        if config.top_k is None:
            config.top_k = 0  # Transformers would silently use 50


def _refuse_without_effect(config: GenerationConfig, settings: GenerationSettings) -> None:
    """Remove the model's own settings that only apply to beam search or sampling when it is not used."""
    beams = config.num_beams or 1
    if settings.num_return_sequences > beams and (beams > 1 or not config.do_sample):
        raise UsageError(
            f"num_return_sequences={settings.num_return_sequences} would give the same text each time",
            "sample (temperature above 0) or use at least as many beams (num_beams)",
        )
    if settings.length_penalty is not None and beams == 1:
        raise UsageError("length_penalty only applies to beam search", "set num_beams above 1", code="no_effect")


_COUNTS_FROM_THE_CALL = (
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "max_time",
    "min_length",
    "watermarking_config",
)
"""Settings whose effect would change if a row is generated in several calls."""
_COUNTS_FROM_THE_PADDING = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "min_length")
"""Settings whose effect on a causal model would change with the padding in front of a prompt."""


@dataclass(frozen=True)
class _Group:
    """Prompts that can be generated together, by their index in the batch."""

    indices: list[int]
    limit: int
    forced_bos_token_id: int | None
    ends: frozenset[int]


def _mates(loaded: Loaded, head: WritingHead, batch: Sequence[Encoded]) -> BatchCompatibility:
    """Which prompts may share a batch."""
    own = loaded.model.generation_config
    if head.one_sequence and any(getattr(own, name, None) for name in _COUNTS_FROM_THE_PADDING):
        return "none"
    return probe_batch_invariance(loaded, head, batch) if len(batch) > 1 else "any"


def _groups(
    batch: Sequence[Encoded], rooms: Sequence[int | None], max_new_tokens: int, mates: BatchCompatibility
) -> list[_Group]:
    """Which prompts can be generated together, and the output limit of each group.

    A prompt whose context fills up before ``max_new_tokens`` runs alone: in a batch it would continue with the others,
    past its last position. All prompts of a group have the same forced language and the same end tokens.
    """
    together: dict[tuple[int | None, frozenset[int], int], list[int]] = {}
    alone = []
    for index, (encoded, room) in enumerate(zip(batch, rooms, strict=True)):
        if room is None or room >= max_new_tokens:
            kind = {"any": 0, "equally long": len(encoded.input_ids), "none": index}[mates]
            together.setdefault((encoded.forced_bos_token_id, encoded.ends, kind), []).append(index)
        else:
            alone.append(_Group([index], room, encoded.forced_bos_token_id, encoded.ends))
    return [_Group(indices, max_new_tokens, forced, ends) for (forced, ends, _), indices in together.items()] + alone


def generate(
    loaded: Loaded,
    head: WritingHead,
    requests: Sequence[Request],
    settings: GenerationSettings,
    emit: Callable[[Piece], None],
    *,
    scored: bool = False,
    cache: PromptCache | None = None,
    shown: Mapping[int, str] | None = None,
) -> None:
    """Generate for a batch of requests; ``emit`` is called with each piece as soon as it is final.

    Rows are numbered prompt by prompt: output ``r`` belongs to prompt ``r // num_return_sequences``. Each row
    stops at EOS, at a stop string, at ``settings.max_new_tokens`` (which must be set) or when the context is full.
    Beam search returns each row as one piece, when the beams are done. Rows of a cancelled request end after the next
    token, ``interrupted``.

    Args:
        scored: compute `Piece.score`; not with beams.
        cache: KV cache of an earlier prompt, for a batch of one; the shared prefix is not processed again.
        shown: special tokens whose text is kept, between two `llmkit.heads.text_stream.EDGE`.
    """
    assert settings.max_new_tokens is not None
    batch = [request.encoded for request in requests]
    rooms = [head.room(loaded, encoded) for encoded in batch]
    with loaded.lock:
        mates = _mates(loaded, head, batch)
    for group in _groups(batch, rooms, settings.max_new_tokens, mates):
        if all(requests[index].cancelled() for index in group.indices):
            continue
        config = generation_config(loaded, settings, group.limit, group.forced_bos_token_id, group.ends)
        config.pad_token_id = head.pad_id(loaded)
        texts, config.stop_strings = (*settings.stop, *(config.stop_strings or ())), None
        rows = [
            _row(loaded, config, requests[index], texts, shown, index * settings.num_return_sequences + sequence)
            for index in group.indices
            for sequence in range(settings.num_return_sequences)
        ]
        with loaded.lock:
            run = _Run(loaded, head, config, emit, scored=scored)
            run.generate([batch[index] for index in group.indices], rows, settings.seed, cache)


def _row(
    loaded: Loaded,
    config: GenerationConfig,
    request: Request,
    texts: tuple[str, ...],
    shown: Mapping[int, str] | None,
    number: int,
) -> _Row:
    encoded = request.encoded
    stops = Stops.of(loaded.tokenizer, (*texts, *encoded.stop), shown or {})
    return _Row(
        number,
        TextStream(loaded.tokenizer, encoded.continues, shown=shown),
        stops,
        StopScanner(stops.texts),
        int(config.max_new_tokens or 0),
        frozenset(config.eos_token_id or ()),
        lambda: request.cancelled(),  # as it is by then
        RunawayDetector(encoded.input_ids, stop_loops=request.stop_loops, plausible_tokens=request.plausible_tokens),
        config.forced_bos_token_id,
    )


_MIN_ACTIVE = 0.75
"""Finished rows are removed from a batch when no more than this fraction is active. Each removal costs about as much as
one step."""
_READ_TOGETHER = {"cpu": 512, "mps": 2048}
"""Prompts of this many tokens in total, padding included, fill the device. Longer prompts are prefilled alone, where
attention needs no mask, which is twice as fast on a CPU."""
_READ_TOGETHER_ELSEWHERE = 8192


@dataclass
class _Part:
    """Rows that the model decodes together."""

    rows: list[_Row]
    inputs: dict[str, torch.Tensor]
    cache: Any = None
    """KV cache of all but the last token; None: nothing is cached, and the model chooses the kind of cache."""

    def going(self) -> _Part:
        """The rows that have not ended."""
        import torch

        places = [place for place, row in enumerate(self.rows) if not row.done]
        if len(places) == len(self.rows) or not places:
            return replace(self, rows=[self.rows[place] for place in places])
        chosen = torch.tensor(places, device=self.inputs["input_ids"].device)
        self.cache.batch_select_indices(chosen)
        inputs = {name: values[chosen] for name, values in self.inputs.items()}
        return _Part([self.rows[place] for place in places], inputs, self.cache)


@dataclass
class _Run:
    """One batch."""

    loaded: Loaded
    head: WritingHead
    config: GenerationConfig
    emit: Callable[[Piece], None]
    scored: bool = False
    _rows: list[_Row] = field(default_factory=list)
    """The rows that the model is generating now."""
    _min_active: float = 0.0
    """Stop the model when no more than this fraction of them is active."""

    def __post_init__(self) -> None:
        # Qwen-VL and related models store the position shifts (rope deltas) of the last call's rows in the model.
        self._modules_with_rope_deltas: list[Any] = [
            each for each in self.loaded.model.modules() if hasattr(each, "rope_deltas")
        ]
        self.config.return_dict_in_generate = True
        self.config.output_scores = self.scored and not self._beams

    @property
    def _beams(self) -> bool:
        return (self.config.num_beams or 1) > 1

    def generate(
        self, batch: Sequence[Encoded], rows: Sequence[_Row], seed: int | None, cache: PromptCache | None
    ) -> None:
        """Generate all rows to their ends."""
        import torch

        devices = [self.loaded.device] if self.loaded.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if cache is None and len(rows) > 1 and self._can_join():
                self._write_apart(batch, rows)
            else:
                self._write_at_once(batch, rows, cache)
        for row in rows:
            if not row.done:
                self.emit(row.interrupt() if row.cancelled() else row.run_out())

    def _write_at_once(self, batch: Sequence[Encoded], rows: Sequence[_Row], cache: PromptCache | None) -> None:
        """One call of ``model.generate``."""
        part = _Part(list(rows), self.head.collate(self.loaded, batch))
        if cache is not None and not self._beams:
            part.cache = cache.take(self.loaded, part.inputs["input_ids"][0].tolist())
        output = self._call(part, self.config)
        if self._beams:
            sequences = output.sequences[:, self.head.output_start(part.inputs) :].tolist()
            for row, sequence in zip(rows, sequences, strict=True):
                if not row.cancelled():
                    self.emit(row.push_all(sequence))
        if cache is not None and not self._beams:
            cache.put(output.sequences[0].tolist())

    def _can_join(self) -> bool:
        """Whether rows can join and leave a batch without changing the others."""
        if self._beams or not self.head.one_sequence:
            return False
        if self.config.use_cache is False:
            return False
        if any(getattr(self.config, name, None) for name in _COUNTS_FROM_THE_CALL):
            return False
        return can_join(self.loaded)

    def _write_apart(self, batch: Sequence[Encoded], rows: Sequence[_Row]) -> None:
        """Prefill prompts of similar length together, decode all rows together, and drop rows as they end."""
        per_prompt = len(rows) // len(batch)
        together = _READ_TOGETHER.get(self.loaded.device.type, _READ_TOGETHER_ELSEWHERE)
        parts, at = [], 0
        while at < len(batch):
            some = take_batch(batch, at, lambda encoded: len(encoded.input_ids), together)
            own = list(rows[at * per_prompt : (at + len(some)) * per_prompt])
            at += len(some)
            if not all(row.cancelled() for row in own):
                part = _Part(own, self.head.collate(self.loaded, some), new_cache(self.loaded))
                parts.append(self._write(part, self.config, min_active=math.inf).going())
        parts = [part for part in parts if part.rows]
        while parts:
            part = self._join(parts)
            part = self._write(part, self._rest(part.rows[0]), min_active=_MIN_ACTIVE).going()
            parts = [part] if part.rows else []

    def _join(self, parts: Sequence[_Part]) -> _Part:
        inputs = {
            "input_ids": pad_left([part.inputs["input_ids"] for part in parts], self.head.pad_id(self.loaded)),
            "attention_mask": pad_left([part.inputs["attention_mask"] for part in parts], 0),
        }
        rows = [row for part in parts for row in part.rows]
        return _Part(rows, inputs, join(self.loaded, [part.cache for part in parts]))

    def _rest(self, row: _Row) -> GenerationConfig:
        """The settings for the rest of the output, which is the same for all rows."""
        config = copy.deepcopy(self.config)
        config.num_return_sequences = 1  # the rows have been expanded already
        config.max_new_tokens = row.limit - row.count
        if config.min_new_tokens is not None:
            config.min_new_tokens = max(0, config.min_new_tokens - row.count)
        return config

    def _write(self, part: _Part, config: GenerationConfig, *, min_active: float) -> _Part:
        """Generate until no more than a fraction ``min_active`` of the rows is active."""
        import torch

        output = self._call(part, config, min_active)
        ids, mask = output.sequences, part.inputs["attention_mask"]
        mask = mask.repeat_interleave(len(ids) // len(mask), dim=0)
        new = torch.ones(len(mask), ids.shape[1] - mask.shape[1], dtype=mask.dtype, device=mask.device)
        inputs = {"input_ids": ids, "attention_mask": torch.cat([mask, new], dim=1)}
        return _Part(part.rows, inputs, getattr(output, cache_name()))

    def _call(self, part: _Part, config: GenerationConfig, min_active: float = 0.0) -> Any:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        self._rows, self._min_active = part.rows, min_active
        for module in self._modules_with_rope_deltas:
            module.rope_deltas = None
        with without_own_settings(self.loaded.model), _explained(self.loaded):
            return self.loaded.model.generate(  # type: ignore[operator]
                **part.inputs,
                **({} if part.cache is None else {cache_name(): part.cache}),
                generation_config=config,
                logits_processor=LogitsProcessorList([self._checked]),
                stopping_criteria=StoppingCriteriaList([self._wait if self._beams else self._step]),
            )

    def _checked(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        refuse_not_finite(self.loaded, scores)
        return scores

    def _wait(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Beams are reordered at every step, so none of their text is final before the end."""
        import torch

        return torch.full((len(input_ids),), all(row.cancelled() for row in self._rows), device=input_ids.device)

    def _step(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        import torch

        tokens = input_ids[:, -1].tolist()
        logs: list[float | None] = [None] * len(tokens)
        if self.scored:
            logs = scores[-1].float().log_softmax(-1).gather(1, input_ids[:, -1:])[:, 0].tolist()
        for row, token, log_probability in zip(self._rows, tokens, logs, strict=True):
            if not row.done and (piece := row.push(token, log_probability)):
                self.emit(piece)
        for row in self._rows:
            if not row.done and row.cancelled():
                self.emit(row.interrupt())
        done = [row.done for row in self._rows]
        if done.count(False) <= self._min_active * len(done):
            return torch.ones(len(tokens), dtype=torch.bool, device=input_ids.device)
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def _explained(loaded: Loaded) -> Iterator[None]:
    """Turn a ValueError of Transformers about generation settings into one line; the caller's are already validated."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"{loaded.source.name} cannot generate with its generation settings ({error})",
            f"correct generation_config.json in {loaded.source.folder}, or remove it",
        ) from error
