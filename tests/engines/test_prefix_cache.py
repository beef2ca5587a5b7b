"""Prefixes of earlier requests: processed once, with the same answers, within a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import llmkit
from llmkit.engines.transformers import TransformersEngine
from llmkit.engines.transformers.prefix_cache import PrefixCache, supports_prefixes
from llmkit.engines.transformers.prompt_cache import new_cache
from llmkit.tasks import Generation
from tests.conftest import Checkpoint
from tests.engines.test_running import GREEDY, PROMPTS, alone, always, ask, run

SYSTEM = "Answer in one short sentence, and name the animals in the order in which they come. "


def engine_of(folder: Any) -> TransformersEngine:
    engine = llmkit.load("generate", str(folder), dtype="float32", device="cpu").engine
    assert isinstance(engine, TransformersEngine)
    return engine


@pytest.fixture
def engine(checkpoint: Checkpoint) -> TransformersEngine:
    return engine_of(checkpoint("llama", chat=True, max_position_embeddings=1024))


def prompt_lengths(engine: TransformersEngine) -> list[int]:
    """Tokens of the prompts that a model processes from now on."""
    found: list[int] = []

    def note(_module: Any, _args: Any, inputs: Any) -> None:
        if inputs["input_ids"].shape[1] > 1:
            found.append(inputs["input_ids"].shape[1])

    engine.loaded.model.register_forward_pre_hook(note, with_kwargs=True)
    return found


def test_a_shared_prefix_is_processed_once(engine: TransformersEngine) -> None:
    session = engine.session(interrupted=always)
    requests = [ask(session, f"{SYSTEM}{text}") for text in PROMPTS]
    several = ask(session, f"{SYSTEM}{PROMPTS[0]}", replace(GREEDY, num_return_sequences=2, temperature=0.9, seed=3))
    run(engine.session(interrupted=always), {0: requests[:2]})  # probes of the model
    lengths = prompt_lengths(engine)
    found = run(session, {0: requests[:1], 3: requests[1:3], 40: [requests[3], several]})
    answers = [found[request] for request in [*requests, several]]
    assert sum(lengths) < len(requests[0].encoded.input_ids) + 5 * 30
    for request, answer in zip([*requests, several], answers, strict=True):
        assert isinstance(answer, Generation)
        assert (answer.cached_tokens > 50) == (request is not requests[0])
        assert replace(answer, cached_tokens=0) == alone(engine, request)


def test_the_next_turn_of_a_conversation_continues_the_last(engine: TransformersEngine) -> None:
    session = engine.session(interrupted=always)
    first = ask(session, PROMPTS[2])
    answer = run(session, {0: [first]})[first]
    assert isinstance(answer, Generation)
    ids = first.encoded.input_ids
    turn = replace(first, encoded=replace(first.encoded, input_ids=(*ids, *range(5, 5 + len(ids)))))
    known = run(session, {0: [turn]})[turn]
    assert isinstance(known, Generation)
    assert known.cached_tokens >= len(ids)


def logits(engine: TransformersEngine, ids: Any, cache: Any) -> torch.Tensor:
    with torch.inference_mode():
        new = ids[cache.get_seq_length() :]
        model: Any = engine.loaded.model
        found = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True).logits[0, -1]
        assert isinstance(found, torch.Tensor)
        return found


def test_known_prefixes_leave_logits_as_they_are(engine: TransformersEngine) -> None:
    prefixes = PrefixCache(engine.loaded, 150)
    common = list(range(10, 50))
    sequences = [common + [60 + number] * 12 + list(range(100, 110)) for number in range(4)]
    for number, ids in enumerate(sequences * 2):
        cache = prefixes.take("", ids)
        assert cache.get_seq_length() == ((0 if number == 0 else 40) if number < 4 else len(ids) - 1)
        expected = logits(engine, ids, new_cache(engine.loaded))
        torch.testing.assert_close(logits(engine, ids, cache), expected, atol=1e-5, rtol=0)
        prefixes.put("", ids, cache)
        assert prefixes.size <= 40 + 4 * 22
    assert prefixes.take("another", sequences[0]).get_seq_length() == 0


def test_a_budget_drops_the_least_recently_used(engine: TransformersEngine) -> None:
    prefixes = PrefixCache(engine.loaded, 70)
    sequences = [[10 * number + 20 + place % 7 for place in range(30)] for number in range(3)]

    def known(ids: list[int]) -> int:
        return int(prefixes.take("", ids).get_seq_length())

    for ids in sequences[:2]:
        cache = new_cache(engine.loaded)
        logits(engine, ids, cache)
        prefixes.put("", ids, cache)
    assert [known(sequences[1]), known(sequences[0])] == [29, 29]
    cache = new_cache(engine.loaded)
    logits(engine, sequences[2], cache)
    prefixes.put("", sequences[2], cache)
    assert [known(ids) for ids in sequences] == [29, 0, 29]
    prefixes.limit(0)
    assert prefixes.size == known(sequences[0]) == 0


def test_running_requests_leave_less_room_for_prefixes(engine: TransformersEngine) -> None:
    session = engine.session(200, interrupted=always)
    for text in PROMPTS * 2:
        run(session, {0: [ask(session, f"{text} {SYSTEM}")]})
        assert session._running._prefixes.size <= session.prefix_tokens == 50  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "options"),
    [("mistral", {"sliding_window": 16}), ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}})],
)
def test_other_caches_share_nothing(family: str, options: dict[str, Any], checkpoint: Checkpoint) -> None:
    engine = engine_of(checkpoint(family, chat=True, max_position_embeddings=1024, **options))
    assert not supports_prefixes(engine.loaded)
    session = engine.session(interrupted=always)
    requests = [ask(session, f"{SYSTEM}{text}", replace(GREEDY, max_new_tokens=6)) for text in PROMPTS[:2]]
    found = run(session, {0: requests})
    assert [found[request] for request in requests] == [alone(engine, request) for request in requests]
