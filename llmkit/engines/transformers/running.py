"""Requests of a server: new ones join those that are running, between two tokens, and are answered as they end.

Requests with the same settings are decoded in one batch; batches with other settings take turns of a few tokens, so
that a short request does not wait for a long one. Does not run what cannot be continued after a pause: beams,
encoder-decoders, and models whose cache does not hold one entry per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from llmkit.config.declaration import setting_fields
from llmkit.config.settings import TOKEN_CONTROLS, GenerationSettings
from llmkit.engines.base import Answer, Request
from llmkit.engines.row_faults import attempt
from llmkit.engines.transformers.batching import within_memory
from llmkit.engines.transformers.decoding import model_calls
from llmkit.engines.transformers.groups import batch_key, compatibility, divide
from llmkit.engines.transformers.joined_batch import JoinedBatch, supports_joining
from llmkit.engines.transformers.output_rows import OutputRow
from llmkit.engines.transformers.outputs import RequestOutput, settings_of
from llmkit.engines.transformers.prefix_cache import PrefixCache, supports_prefixes
from llmkit.errors import LlmkitError, NotEnoughMemoryError
from llmkit.log import warn
from llmkit.tasks import Generation

if TYPE_CHECKING:
    from llmkit.engines.transformers.model_calls import ModelCalls
    from llmkit.heads.writing import WritingHead
    from llmkit.models.load import Loaded

__all__ = ["RunningRequests"]

_TURN = 8
"""Tokens that a batch generates before another one has its turn."""
_PREFIX_SHARE = 4
"""Prefixes of earlier requests take no more than one token in so many."""
_OF_ONE_OUTPUT: dict[str, Any] = {
    item.name: item.default
    for item in setting_fields(GenerationSettings)
    if item.name in ("max_new_tokens", "stop", "seed", *TOKEN_CONTROLS) and item.name != "logprobs"
}
"""Settings that each output of a batch has for itself, with their defaults."""


@dataclass(eq=False)
class _Running:
    """A request that has begun."""

    output: RequestOutput
    rows: list[OutputRow]
    kind: object
    """Requests of one kind can be decoded together."""
    calls: ModelCalls
    seed: int | None
    cached: int = 0
    """Tokens of the prompt that were known."""

    @property
    def ended(self) -> bool:
        return all(row.done for row in self.rows)

    @property
    def answer(self) -> Answer:
        """What was generated, or why it failed."""
        answer = self.output.answer()
        return replace(answer, cached_tokens=self.cached) if isinstance(answer, Generation) else answer

    @property
    def size(self) -> int:
        """Tokens of the request when it is complete."""
        return len(self.rows) * (len(self.output.request.encoded.input_ids) + max(row.limit for row in self.rows))


@dataclass(eq=False)
class _Batch:
    """Requests that are decoded together."""

    kind: object
    joined: JoinedBatch
    seed: int | None
    requests: list[_Running] = field(default_factory=list)
    _random_state: Any = None

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """The random numbers of a batch with a seed, which do not depend on those of others."""
        import torch

        if self.seed is None:
            yield
            return
        devices = [self.joined.calls.loaded.device] if self.joined.calls.loaded.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            if self._random_state is None:
                torch.manual_seed(self.seed)
            else:
                torch.set_rng_state(self._random_state[0])
                if devices:
                    torch.cuda.set_rng_state(self._random_state[1], devices[0])
            yield
            self._random_state = torch.get_rng_state(), torch.cuda.get_rng_state(devices[0]) if devices else None


class RunningRequests:
    """Requests that are being generated, in batches that others join.

    Args:
        tokens: maximum number of tokens of all requests, prompts and outputs included; lowered when memory runs out.
            What running requests leave of it, up to a quarter, is used for prefixes of earlier ones.
        rows: maximum number of outputs that are generated at once.
        interrupted: checked after every token; `advance` returns when it is true.
    """

    def __init__(
        self, loaded: Loaded, head: WritingHead, tokens: int, rows: int, interrupted: Callable[[], bool]
    ) -> None:
        self._loaded, self._head = loaded, head
        self.tokens, self.rows, self._interrupted = tokens, rows, interrupted
        self._batches: list[_Batch] = []
        self._prefixes = PrefixCache(loaded, tokens // _PREFIX_SHARE) if supports_prefixes(loaded) else None
        self._set_back: list[_Running] = []
        """Requests whose caches were dropped when memory ran out."""

    @property
    def busy(self) -> bool:
        """Whether there is anything to generate."""
        return bool(self._batches or self._set_back)

    @property
    def _all(self) -> list[_Running]:
        return [each for batch in self._batches for each in batch.requests]

    def clear(self) -> None:
        """Drop all requests and their caches."""
        self._batches, self._set_back = [], []
        self._limit_prefixes(0)

    @property
    def prefix_tokens(self) -> int:
        """Maximum number of tokens of earlier requests whose keys and values are kept."""
        return self.tokens // _PREFIX_SHARE if self._prefixes is not None else 0

    def _limit_prefixes(self, tokens: int) -> None:
        if self._prefixes is not None:
            self._prefixes.limit(min(tokens, self.prefix_tokens))

    def begin(self, request: Request) -> _Running | None:
        """A request before its first token; None if it cannot be continued after a pause."""
        loaded, head = self._loaded.view(request.adapter), self._head
        encoded, settings = request.encoded, settings_of(request)
        with loaded.lock:
            shared = compatibility(loaded, head, [encoded, encoded])
        assert settings.max_new_tokens is not None
        (group,) = divide([encoded], [head.room(loaded, encoded)], settings.max_new_tokens, shared)
        calls = model_calls(loaded, head, settings, group, scored=request.scored)
        if not supports_joining(calls, head):
            return None
        output = RequestOutput.of(loaded, request)
        seed = settings.seed if calls.config.do_sample else None
        alone = shared != "any" or group.limit < settings.max_new_tokens or settings.min_new_tokens or seed is not None
        own = replace(settings, **_OF_ONE_OUTPUT)
        kind = (own, request.scored, group.forced_bos_token_id, group.ends, batch_key(loaded, head))
        rows = output.rows(calls.config, (*settings.stop, *calls.stop))
        return _Running(output, rows, request if alone else kind, calls, seed)

    def fits(self, request: _Running) -> bool:
        """Whether a request can join those that are running."""
        everything = [*self._all, request]
        rows = sum(len(each.rows) for each in everything)
        return len(everything) == 1 or (rows <= self.rows and _extent(everything) <= self.tokens)

    def add(self, request: _Running) -> list[tuple[Request, Answer]]:
        """Process the prompt of a request, and generate its first token; returns it if it has ended."""
        batch = next((each for each in self._batches if each.kind == request.kind), None)
        if batch is None:
            batch = _Batch(request.kind, JoinedBatch(request.calls, self._head, self._prefixes), request.seed)
            self._batches.append(batch)
        batch.requests.append(request)
        self._limit_prefixes(self.tokens - _extent(self._all))
        return self._run(batch, partial(self._admit, batch, request))

    def _admit(self, batch: _Batch, request: _Running) -> None:
        encoded = request.output.request.encoded
        if any(row.count for row in request.rows):
            for row in request.rows:
                if not row.done:
                    ids = (*encoded.input_ids, *row.tokens)
                    batch.joined.admit([replace(encoded, input_ids=ids)], [row])
        else:
            request.cached = batch.joined.admit([encoded], request.rows)

    def advance(self) -> list[tuple[Request, Answer]]:
        """Generate with one of the batches until a request ends, others wait for their turn, or it is interrupted."""
        while self._set_back and self.fits(self._set_back[0]):
            if ended := self.add(self._set_back.pop(0)):
                return ended
        if not self._batches:
            return []
        batch = self._batches.pop(0)
        self._batches.append(batch)
        rows = [row for each in batch.requests for row in each.rows if not row.done]
        begun = sum(row.count for row in rows)

        def pause() -> bool:
            if self._interrupted() or any(each.ended for each in batch.requests):
                return True
            return len(self._batches) > 1 and sum(row.count for row in rows) - begun >= _TURN * len(rows)

        batch.joined.calls.pause = pause
        return self._run(batch, batch.joined.advance)

    def _run(self, batch: _Batch, work: Callable[[], None]) -> list[tuple[Request, Answer]]:
        """Run the model for a batch; returns its requests that have ended, or all of them with the error."""

        def run(_: Sequence[_Batch]) -> None:
            with self._loaded.lock, batch.randomness():
                work()

        done = attempt(partial(within_memory, [batch], run), own_settings=True)
        ended: list[tuple[Request, Answer]] = [
            (each.output.request, each.answer) for each in batch.requests if each.ended
        ]
        batch.requests = [each for each in batch.requests if not each.ended]
        if not batch.requests or not isinstance(done, tuple):
            self._batches.remove(batch)
        error = self._set_back_half(batch) if done is None else done
        if isinstance(error, LlmkitError):
            ended += [(each.output.request, error) for each in batch.requests]
        return ended

    def _set_back_half(self, batch: _Batch) -> LlmkitError | None:
        """Make room after memory ran out: requests go on later from the tokens they have. The error of a single one."""
        if len(batch.requests) == 1 and not self._batches:
            return NotEnoughMemoryError(
                f"{batch.requests[0].size} tokens do not fit in memory", "shorten the input", "lower `max_new_tokens`"
            )
        self.tokens = max(1, _extent(self._all + batch.requests) // 2)
        self._limit_prefixes(0)
        warn("batches_reduced", "out of memory; limiting batches to %d tokens", self.tokens)
        self._set_back += batch.requests
        return None


def _extent(requests: Sequence[_Running]) -> int:
    """Tokens of requests that are generated together, padded to the longest."""
    return sum(len(each.rows) for each in requests) * max(each.size // len(each.rows) for each in requests)
