"""The engine protocol implemented with Transformers.

Requests run in batches of similar length, within a token budget. A batch runs to its end: a request that is added
meanwhile joins the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from typing import Any

from llmkit.config.settings import GenerationSettings, TruncationSide
from llmkit.engines.base import Answer, ModelFacts, Request, Session
from llmkit.engines.row_faults import attempt
from llmkit.engines.transformers.batching import Budget, budget_from_memory
from llmkit.engines.transformers.decoding import generate
from llmkit.engines.transformers.generation_settings import generation_config
from llmkit.engines.transformers.grammars import compiled
from llmkit.engines.transformers.groups import batch_key
from llmkit.engines.transformers.prompt_cache import PromptCache
from llmkit.engines.transformers.running import RunningRequests
from llmkit.engines.transformers.traits import own_max_new_tokens, traits_of
from llmkit.errors import LlmkitError
from llmkit.heads import head_of
from llmkit.heads.base import Encoded, cut_to_fit, encode_text, refuse_unknown_ids
from llmkit.heads.chat_template import check_template
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import Document
from llmkit.heads.writing import WritingHead
from llmkit.models.load import Loaded
from llmkit.tasks import Generation, Prompt, SpanPrediction, Task, Traits

__all__ = ["TransformersEngine", "extract_spans"]


class TransformersEngine:
    """A loaded model as an engine."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.head = head_of(loaded.head)
        self.facts = ModelFacts(
            loaded.source,
            loaded.head,
            loaded.context,
            max_new_tokens=own_max_new_tokens(loaded),
            dtype=str(loaded.model.dtype).removeprefix("torch."),
            device=str(loaded.device),
            adapter=loaded.adapter,
        )

    def traits(self, task: Task, *, raw: bool) -> Traits:
        traits = traits_of(self.loaded, task)
        if traits.chat and not raw:
            check_template(self.loaded.tokenizer)
        return traits

    def encode(self, prompt: Prompt) -> Encoded:
        encoded = self.head.encode(self.loaded, prompt)
        refuse_unknown_ids(self.loaded, encoded.input_ids)
        return encoded

    def count(self, text: str) -> int:
        return len(encode_text(self.loaded.tokenizer, text, special=False))

    def cut(self, text: str, side: TruncationSide, excess: Callable[[str], int]) -> str | None:
        return cut_to_fit(self.loaded.tokenizer, text, side, excess)

    def check(self, settings: GenerationSettings) -> None:
        compiled(self.loaded, settings)

    def samples(self, settings: GenerationSettings) -> bool:
        return bool(generation_config(self.loaded, settings, 1).do_sample)

    def session(
        self,
        max_batch_tokens: int | None = None,
        *,
        rows: int | None = None,
        continues: bool = False,
        interrupted: Callable[[], bool] | None = None,
    ) -> Session:
        budget = budget_from_memory(self.loaded)
        budget = replace(budget, tokens=max_batch_tokens or budget.tokens, rows=min(budget.rows, rows or budget.rows))
        if interrupted is not None and isinstance(self.head, WritingHead):
            running = RunningRequests(self.loaded, self.head, budget.tokens, budget.rows, interrupted)
            return _SharedSession(self, budget, running)
        return _Session(self, budget, PromptCache() if continues and self.head.one_sequence else None)


class _Session(Session):
    def __init__(self, engine: TransformersEngine, budget: Budget, cache: PromptCache | None) -> None:
        super().__init__(engine, budget.tokens)
        self._loaded, self._head = engine.loaded, engine.head
        self._budget, self._cache = budget, cache

    def encode(self, prompt: Prompt) -> Encoded:
        encoded = self.engine.encode(prompt)
        return encoded if self._cache is None else self._cache.splice(self._loaded, prompt, encoded)

    def _run(self) -> Sequence[tuple[Request, Answer]]:
        requests = self._alike()
        if isinstance(self._head, SpanHead):
            return list(zip(requests, self._extract(self._head, requests), strict=True))
        batch, answers = self._budget.take(requests, _size, self._generate)
        return list(zip(batch, repeat(answers) if isinstance(answers, LlmkitError) else answers, strict=False))

    def _alike(self) -> list[Request]:
        """Requests that can run with the first one, longest first: memory runs out at once or never."""

        def kind(request: Request) -> tuple[object, ...]:
            settings, head = request.settings, self._head
            if settings.seed is not None or not isinstance(head, WritingHead):
                return id(settings), request.max_new_tokens, request.scored
            key = batch_key(self._loaded.view(request.adapter), head)
            return settings, request.max_new_tokens, request.scored, key

        first = kind(self.waiting[0])
        alike = [each for each in self.waiting if kind(each) == first]
        if not any(each.in_order for each in alike):
            alike.sort(key=lambda each: len(each.encoded.input_ids), reverse=True)
        return alike

    def _generate(self, requests: Sequence[Request]) -> list[Answer]:
        assert isinstance(self._head, WritingHead)
        cache = self._cache if len(requests) == 1 else None
        answers = generate(self._loaded.view(requests[0].adapter), self._head, requests, cache)
        if cache is not None and isinstance(answers[0], Generation):
            cache.remember(self._loaded, requests[0], answers[0])
            answers = [replace(answers[0], cached_tokens=cache.reused)]
        return answers

    def _extract(self, head: SpanHead, requests: Sequence[Request]) -> list[Answer]:
        documents = [each.encoded for each in requests if isinstance(each.encoded, Document)]
        loaded = self._loaded.view(requests[0].adapter)
        predictions = extract_spans(loaded, head, documents, self._budget)
        return [each if isinstance(each, LlmkitError) else Generation("", span_prediction=each) for each in predictions]

    def close(self) -> None:
        super().close()
        self._cache = None


class _SharedSession(_Session):
    """Requests join those that are running, unless their batch must run to its end."""

    def __init__(self, engine: TransformersEngine, budget: Budget, running: RunningRequests) -> None:
        super().__init__(engine, budget, None)
        self._running, self.prefix_tokens = running, running.prefix_tokens

    @property
    def busy(self) -> bool:
        return super().busy or self._running.busy

    def _run(self) -> Sequence[tuple[Request, Answer]]:
        while self.waiting:
            request = attempt(partial(self._running.begin, self.waiting[0]), own_settings=True)
            if isinstance(request, LlmkitError):
                return [(self.waiting[0], request)]
            if request is None:
                answers = attempt(super()._run, own_settings=True)
                return [(self.waiting[0], answers)] if isinstance(answers, LlmkitError) else answers
            if not self._running.fits(request):
                break
            del self.waiting[0]
            if ended := self._running.add(request):
                return ended
        return self._running.advance()

    def close(self) -> None:
        super().close()
        self._running.clear()


def _size(request: Request) -> int:
    """Tokens of a request, prompt and output."""
    settings = request.settings
    copies = max(settings.num_beams or 1, settings.num_return_sequences)
    return copies * (len(request.encoded.input_ids) + (request.max_new_tokens or settings.max_new_tokens or 0))


def extract_spans(
    loaded: Loaded, head: SpanHead, documents: Sequence[Document], budget: Budget
) -> list[SpanPrediction | LlmkitError]:
    """Extract the answers to questions from their texts; one `SpanPrediction` per document, in order.

    Args:
        budget: how many windows, of any document, form a batch; results do not depend on it.
    """
    if head.alone(loaded):
        budget = Budget(budget.tokens, rows=1)
    windows = [window for document in documents for window in document.windows]
    results: dict[int, Any] = {}
    # Similar lengths waste no padding; longest first, so that memory runs out at once or never.
    order = sorted(range(len(windows)), key=lambda number: -len(windows[number].input_ids))
    batches = budget.run(
        order,
        lambda number: len(windows[number].input_ids),
        lambda numbers: head.read(loaded, [windows[number] for number in numbers]),
    )
    for numbers, found in batches:
        results.update(zip(numbers, repeat(found) if isinstance(found, LlmkitError) else found, strict=False))
    logits = iter([results[number] for number in range(len(windows))])
    predictions: list[SpanPrediction | LlmkitError] = []
    for document in documents:
        own = list(islice(logits, len(document.windows)))
        failed = next((error for error in own if isinstance(error, LlmkitError)), None)
        predictions.append(failed or head.answer(document, own))
    return predictions
