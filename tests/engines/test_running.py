"""Requests of a server: each gets what it gets alone, whenever it comes and whatever runs beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import llmkit
from llmkit.config.settings import GenerationSettings
from llmkit.engines.base import Request, Session, never
from llmkit.engines.transformers import TransformersEngine
from llmkit.engines.transformers.joined_batch import JoinedBatch
from llmkit.errors import LlmkitError
from llmkit.tasks import Chat, Generation, Message, Text
from tests.conftest import Checkpoint

GREEDY = GenerationSettings(max_new_tokens=24, temperature=0)
PROMPTS = ("The quick brown fox", "今天天气?", "Where do we go now, and who comes with us?", "Why?")


@pytest.fixture
def engine(checkpoint: Checkpoint) -> TransformersEngine:
    folder = checkpoint("llama", chat=True, max_position_embeddings=1024)
    engine = llmkit.load("generate", str(folder), dtype="float32", device="cpu").engine
    assert isinstance(engine, TransformersEngine)
    return engine


def ask(session: Session, text: str, settings: GenerationSettings = GREEDY, **options: Any) -> Request:
    prompt = Chat((Message("user", text),))
    return Request(prompt, session.encode(prompt), settings, **options)


def alone(engine: TransformersEngine, request: Request) -> Generation:
    return engine.session().run(replace(request, on_text=None, cancelled=never))


def run(session: Session, waiting: dict[int, list[Request]]) -> dict[Request, Generation | LlmkitError]:
    """Answer requests, which are added before the steps with these numbers."""
    found: dict[Request, Generation | LlmkitError] = {}
    number = 0
    while session.busy or waiting:
        for request in waiting.pop(number, []):
            session.add(request)
        found |= dict(session.step())
        number += 1
    return found


def always() -> bool:
    return True


def test_requests_that_come_one_after_another_get_what_they_get_alone(engine: TransformersEngine) -> None:
    session = engine.session(interrupted=always)  # after each token
    requests = [ask(session, text) for text in PROMPTS]
    found = run(session, {3 * number: [request] for number, request in enumerate(requests)})
    assert [found[request] for request in requests] == [alone(engine, request) for request in requests]


def test_a_short_request_does_not_wait_for_a_long_one(engine: TransformersEngine) -> None:
    session = engine.session(interrupted=always)
    long = ask(session, PROMPTS[0], replace(GREEDY, max_new_tokens=200, repetition_penalty=1.3))
    short = ask(session, PROMPTS[1], replace(GREEDY, max_new_tokens=4))
    found = run(session, {0: [long], 5: [short]})
    assert list(found) == [short, long]
    assert found[short] == alone(engine, short)
    assert found[long] == alone(engine, long)


def test_samples_with_a_seed_do_not_depend_on_other_requests(engine: TransformersEngine) -> None:
    sampled = replace(GREEDY, temperature=1.0, seed=7)
    session = engine.session(interrupted=lambda: False)
    requests = [ask(session, PROMPTS[0], sampled), ask(session, PROMPTS[1]), ask(session, PROMPTS[2], sampled)]
    found = run(session, {0: requests})
    assert [found[request] for request in requests] == [alone(engine, request) for request in requests]


def test_a_request_that_is_cancelled_leaves_the_others(engine: TransformersEngine) -> None:
    session = engine.session(interrupted=always)
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        session.cancel(gone)

    gone, stays = ask(session, PROMPTS[0], on_text=hear), ask(session, PROMPTS[1])
    found = run(session, {0: [gone, stays]})
    ended = found[gone]
    assert isinstance(ended, Generation)
    assert (ended.finish_reason, ended.text) == ("interrupted", "".join(pieces))
    assert found[stays] == alone(engine, stays)


def test_a_budget_is_kept_and_every_request_has_its_turn(engine: TransformersEngine) -> None:
    session = engine.session(rows=2, interrupted=always)
    requests = [ask(session, text) for text in PROMPTS]
    most, found = 0, dict[Request, Any]()
    for request in requests:
        session.add(request)
    while session.busy:
        found |= dict(session.step())
        most = max(most, len(requests) - len(session.waiting) - len(found))
    assert most == 2
    assert [found[request] for request in requests] == [alone(engine, request) for request in requests]


def test_requests_go_on_after_memory_ran_out(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, failed = JoinedBatch.advance, [False]

    def fail_once(batch: JoinedBatch) -> None:
        advance(batch)
        rows = [row for part in batch._parts for row in part.rows]
        if not failed[0] and len(rows) == 4 and rows[0].count > 3:
            failed[0] = True
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(JoinedBatch, "advance", fail_once)
    session = engine.session(interrupted=always)
    requests = [ask(session, text) for text in PROMPTS]
    found = run(session, {0: requests})
    assert failed[0]
    assert [found[request] for request in requests] == [alone(engine, request) for request in requests]


def test_an_exception_ends_its_batch_and_no_other_request(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.session(interrupted=always)
    first, later = [ask(session, text) for text in PROMPTS[:2]], ask(session, PROMPTS[2])
    with monkeypatch.context() as patch:
        patch.setattr(JoinedBatch, "advance", lambda _: 1 / 0)
        found = run(session, {0: first})
    assert all(isinstance(found[request], LlmkitError) for request in first)
    assert run(session, {0: [later]})[later] == alone(engine, later)


def test_an_encoder_decoder_runs_each_batch_to_its_end(checkpoint: Checkpoint) -> None:
    engine = llmkit.load("summarize", str(checkpoint("t5")), device="cpu").engine
    session, single = engine.session(interrupted=always), engine.session()
    requests = [Request(Text(text), session.encode(Text(text)), GREEDY) for text in PROMPTS]
    found = run(session, {0: requests[:2], 1: requests[2:]})
    assert [found[request] for request in requests] == [single.run(request) for request in requests]
