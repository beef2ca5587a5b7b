"""Calls of ``model.generate`` whose tokens are passed to the outputs as they arrive.

A stopping criterion, which sees the tokens of the whole batch at each step, does everything: decoding, stop strings and
per-row limits, so that a batch gives the same outputs as single rows. The model runs in the calling thread. Does not
know which rows run together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.engines.base import never
from llmkit.engines.transformers.output_rows import OutputRow
from llmkit.errors import CheckpointError
from llmkit.heads.base import refuse_not_finite
from llmkit.heads.text_stream import readable_token
from llmkit.models.generation import cache_name, without_own_settings
from llmkit.tasks import TokenLogprob

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

    from llmkit.models.load import Loaded

__all__ = ["ModelCalls"]


@dataclass
class ModelCalls:
    """Calls of one model with one configuration, which a call may override."""

    loaded: Loaded
    config: GenerationConfig
    scored: bool = False
    """Compute `Piece.score`; not with beams."""
    logprobs: int | None = None
    """Report the log probabilities of the tokens, and of this many of the most probable ones; not with beams."""
    pause: Callable[[], bool] = never
    """Checked after every token; True ends the call, which can be continued from its ids and its cache."""
    stop: tuple[str, ...] = field(init=False)
    """The stop strings of the configuration, for the rows to find."""
    _rows: Sequence[OutputRow] = field(default=(), init=False)
    """The rows that the model is generating now."""
    _min_active: float = field(default=0.0, init=False)
    _log_probabilities: Any = field(default=None, init=False)
    """Of the next tokens: ``[rows, vocabulary]``."""

    def __post_init__(self) -> None:
        # Qwen-VL and related models store the position shifts (rope deltas) of the last call's rows in the model.
        self._modules_with_rope_deltas: list[Any] = [
            each for each in self.loaded.model.modules() if hasattr(each, "rope_deltas")
        ]
        self.stop, self.config.stop_strings = tuple(self.config.stop_strings or ()), None
        self.config.return_dict_in_generate = True
        self.config.output_scores = self.scored and not self.beams

    @property
    def beams(self) -> bool:
        """Whether the model searches with beams, whose text is only final at the end."""
        return (self.config.num_beams or 1) > 1

    def run(
        self,
        rows: Sequence[OutputRow],
        inputs: Mapping[str, torch.Tensor],
        cache: Any = None,
        *,
        config: GenerationConfig | None = None,
        min_active: float = 0.0,
    ) -> Any:
        """One call of ``model.generate``; returns what it returns.

        Args:
            rows: receive the tokens, one row of the output each.
            min_active: ends the call when no more than this fraction of the rows is active.
        """
        from transformers import LogitsProcessorList, StoppingCriteriaList

        self._rows, self._min_active = rows, min_active
        for module in self._modules_with_rope_deltas:
            module.rope_deltas = None
        used = config or self.config
        adapters = [row.adapter for row in rows[:: len(rows) // len(inputs["input_ids"])]]  # one for each prompt
        copies = (used.num_beams or 1) if self.beams else used.num_return_sequences or 1
        active = self.loaded.active(adapters, copies)
        with active, without_own_settings(self.loaded.model), _as_checkpoint_error(self.loaded):
            return self.loaded.model.generate(  # type: ignore[operator]
                **inputs,
                **({} if cache is None else {cache_name(): cache}),
                generation_config=used,
                logits_processor=LogitsProcessorList([self._process]),
                stopping_criteria=StoppingCriteriaList([self._stop_beams if self.beams else self._push_tokens]),
            )

    def _process(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        refuse_not_finite(self.loaded, scores)
        if self.logprobs is not None:
            self._log_probabilities = scores.float().log_softmax(-1)
        if not self.beams and any(row.controls for row in self._rows):
            scores = scores.clone()
            for row, logits in zip(self._rows, scores, strict=True):
                if not row.done:
                    row.control(logits)
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
        for place, (row, token, log_probability) in enumerate(zip(self._rows, tokens, logs, strict=True)):
            if not row.done:
                if self.logprobs is not None:
                    row.logprobs.append(self._logprob(place, token, row))
                row.push(token, log_probability)
        for row in self._rows:
            if not row.done and row.cancelled():
                row.interrupt()
        done = [row.done for row in self._rows]
        if done.count(False) <= self._min_active * len(done) or self.pause():
            return torch.ones(len(tokens), dtype=torch.bool, device=input_ids.device)
        return torch.tensor(done, device=input_ids.device)

    def _logprob(self, place: int, token: int, row: OutputRow) -> TokenLogprob:
        """The log probability of a row's next token, with those of the most probable ones."""
        values = self._log_probabilities[place]
        assert self.logprobs is not None
        best, ids = values.topk(min(self.logprobs, len(values)))

        def named(token: int, value: float) -> TokenLogprob:
            return TokenLogprob(token, readable_token(row.text.tokenizer, token, row.tokens[-8:]), value)

        top = tuple(named(other, value) for other, value in zip(ids.tolist(), best.tolist(), strict=True))
        entropy = float(values.exp().mul(values).nan_to_num().sum()) / -math.log(2)  # 0 · -inf is 0
        return replace(named(token, float(values[token])), top=top, entropy=max(0.0, entropy))


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
