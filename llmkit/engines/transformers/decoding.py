"""Generation with causal and seq2seq heads, as pieces of text for each row.

`generate` emits pieces as they become final; callers join them for the whole text. A stopping criterion, which sees
the tokens of the whole batch at each step, does everything: decoding, stop strings and per-row limits, so that a batch
gives the same outputs as single rows. Finished rows are removed from the batch. The model runs in the calling thread.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers.batching import take_batch
from llmkit.engines.transformers.generation_settings import generation_config
from llmkit.engines.transformers.groups import compatibility, divide
from llmkit.engines.transformers.joined_cache import can_join, join, pad_left
from llmkit.engines.transformers.output_rows import OutputRow, Piece, new_row
from llmkit.engines.transformers.prompt_cache import new_cache
from llmkit.errors import CheckpointError
from llmkit.heads.base import refuse_not_finite
from llmkit.models.generation import cache_name, without_own_settings

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.engines.base import Request
    from llmkit.engines.transformers.prompt_cache import PromptCache
    from llmkit.heads.base import Encoded
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["generate"]


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
        shared = compatibility(loaded, head, batch)
    for group in divide(batch, rooms, settings.max_new_tokens, shared):
        if all(requests[index].cancelled() for index in group.indices):
            continue
        config = generation_config(loaded, settings, group.limit, group.forced_bos_token_id, group.ends)
        config.pad_token_id = head.pad_id(loaded)
        texts, config.stop_strings = (*settings.stop, *(config.stop_strings or ())), None
        rows = [
            new_row(loaded, config, requests[index], texts, shown, index * settings.num_return_sequences + sequence)
            for index in group.indices
            for sequence in range(settings.num_return_sequences)
        ]
        with loaded.lock:
            run = _Run(loaded, head, config, emit, scored=scored)
            run.generate([batch[index] for index in group.indices], rows, settings.seed, cache)


_DEPENDS_ON_CALL_START = (
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
_MIN_ACTIVE = 0.75
"""Finished rows are removed from a batch when no more than this fraction is active. Each removal costs about as much as
one step."""
_PREFILL_TOKENS = {"cpu": 512, "mps": 2048}
"""Prompts of this many tokens in total, padding included, fill the device. Longer prompts are prefilled alone, where
attention needs no mask, which is twice as fast on a CPU."""
_PREFILL_TOKENS_ELSEWHERE = 8192


@dataclass
class _Part:
    """Rows that the model decodes together."""

    rows: list[OutputRow]
    inputs: dict[str, torch.Tensor]
    cache: Any = None
    """KV cache of all but the last token; None: nothing is cached, and the model chooses the kind of cache."""

    def active(self) -> _Part:
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
    """The generation of one batch."""

    loaded: Loaded
    head: WritingHead
    config: GenerationConfig
    emit: Callable[[Piece], None]
    scored: bool = False
    _rows: list[OutputRow] = field(default_factory=list)
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
        self, batch: Sequence[Encoded], rows: Sequence[OutputRow], seed: int | None, cache: PromptCache | None
    ) -> None:
        """Generate all rows to their ends."""
        import torch

        devices = [self.loaded.device] if self.loaded.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if cache is None and len(rows) > 1 and self._can_join():
                self._generate_joined(batch, rows)
            else:
                self._generate_at_once(batch, rows, cache)
        for row in rows:
            if not row.done:
                self.emit(row.interrupt() if row.cancelled() else row.run_out())

    def _generate_at_once(self, batch: Sequence[Encoded], rows: Sequence[OutputRow], cache: PromptCache | None) -> None:
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
        if any(getattr(self.config, name, None) for name in _DEPENDS_ON_CALL_START):
            return False
        return can_join(self.loaded)

    def _generate_joined(self, batch: Sequence[Encoded], rows: Sequence[OutputRow]) -> None:
        """Prefill prompts of similar length together, decode all rows together, and drop rows as they end."""
        per_prompt = len(rows) // len(batch)
        together = _PREFILL_TOKENS.get(self.loaded.device.type, _PREFILL_TOKENS_ELSEWHERE)
        parts, at = [], 0
        while at < len(batch):
            some = take_batch(batch, at, lambda encoded: len(encoded.input_ids), together)
            own = list(rows[at * per_prompt : (at + len(some)) * per_prompt])
            at += len(some)
            if not all(row.cancelled() for row in own):
                part = _Part(own, self.head.collate(self.loaded, some), new_cache(self.loaded))
                parts.append(self._generate_part(part, self.config, min_active=math.inf).active())
        parts = [part for part in parts if part.rows]
        while parts:
            part = self._join(parts)
            part = self._generate_part(part, self._rest(part.rows[0]), min_active=_MIN_ACTIVE).active()
            parts = [part] if part.rows else []

    def _join(self, parts: Sequence[_Part]) -> _Part:
        inputs = {
            "input_ids": pad_left([part.inputs["input_ids"] for part in parts], self.head.pad_id(self.loaded)),
            "attention_mask": pad_left([part.inputs["attention_mask"] for part in parts], 0),
        }
        rows = [row for part in parts for row in part.rows]
        return _Part(rows, inputs, join(self.loaded, [part.cache for part in parts]))

    def _rest(self, row: OutputRow) -> GenerationConfig:
        """The settings for the rest of the output, which is the same for all rows."""
        config = copy.deepcopy(self.config)
        config.num_return_sequences = 1  # the rows have been expanded already
        config.max_new_tokens = row.limit - row.count
        if config.min_new_tokens is not None:
            config.min_new_tokens = max(0, config.min_new_tokens - row.count)
        return config

    def _generate_part(self, part: _Part, config: GenerationConfig, *, min_active: float) -> _Part:
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
        with without_own_settings(self.loaded.model), _as_checkpoint_error(self.loaded):
            return self.loaded.model.generate(  # type: ignore[operator]
                **part.inputs,
                **({} if part.cache is None else {cache_name(): part.cache}),
                generation_config=config,
                logits_processor=LogitsProcessorList([self._check_scores]),
                stopping_criteria=StoppingCriteriaList([self._stop_beams if self._beams else self._push_tokens]),
            )

    def _check_scores(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        refuse_not_finite(self.loaded, scores)
        return scores

    def _stop_beams(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Beams are reordered at every step, so none of their text is final before the end."""
        import torch

        return torch.full((len(input_ids),), all(row.cancelled() for row in self._rows), device=input_ids.device)

    def _push_tokens(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
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
def _as_checkpoint_error(loaded: Loaded) -> Iterator[None]:
    """Turn a ValueError of Transformers about generation settings into one line; the caller's are already validated."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"{loaded.source.name} cannot generate with its generation settings ({error})",
            f"correct generation_config.json in {loaded.source.folder}, or remove it",
        ) from error
