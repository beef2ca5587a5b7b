"""The protocol of engines, on the two there are: requests join and leave while others run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import llmkit
from llmkit.config.settings import GenerationSettings
from llmkit.engines.base import Engine, Request, Session
from llmkit.engines.fake import FakeEngine
from llmkit.tasks import Chat, Generation, Message
from tests.conftest import Checkpoint

SETTINGS = GenerationSettings(max_new_tokens=12, temperature=0)
PROMPTS = ("The quick brown fox", "今天天气?", "Where?")


@pytest.fixture(params=["transformers", "fake"])
def engine(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Engine:
    if request.param == "fake":
        return FakeEngine(lambda prompt: f"{prompt} is what was said, and more than that, which is why it is long")
    folder = checkpoint("llama", chat=True, max_position_embeddings=1024)
    return llmkit.load("generate", str(folder), dtype="float32", device="cpu").engine


def ask(session: Session, text: str, **options: Any) -> Request:
    prompt = Chat((Message("user", text),))
    return Request(prompt, session.encode(prompt), SETTINGS, **options)


def answers(session: Session, while_running: Callable[[], None] = lambda: None) -> dict[Request, Generation]:
    found: dict[Request, Generation] = {}
    while session.waiting:
        for request, answer in session.step():
            assert isinstance(answer, Generation)
            found[request] = answer
        while_running()
    return found


def alone(engine: Engine, text: str) -> Generation:
    session = engine.session()
    return session.run(ask(session, text))


def test_requests_give_what_they_give_alone(engine: Engine) -> None:
    session = engine.session()
    requests = [ask(session, text) for text in PROMPTS]
    for request in requests:
        session.add(request)
    found = answers(session)
    assert [found[request] for request in requests] == [alone(engine, text) for text in PROMPTS]


def test_a_request_joins_while_another_runs(engine: Engine) -> None:
    session = engine.session(rows=1)
    late = ask(session, PROMPTS[1])

    def join(_: str) -> None:
        if late not in session.waiting:
            session.add(late)

    session.add(ask(session, PROMPTS[0], on_text=join))
    assert answers(session)[late] == alone(engine, PROMPTS[1])


def test_one_request_is_cancelled_and_the_other_goes_on(engine: Engine) -> None:
    session = engine.session()
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        session.cancel(gone)

    gone, stays, waits = ask(session, PROMPTS[0], on_text=hear), ask(session, PROMPTS[0]), ask(session, PROMPTS[1])
    for request in (gone, stays):
        session.add(request)
    session.cancel(waits)
    session.add(waits)
    found = answers(session)
    assert found[gone].finish_reason == "interrupted"
    assert found[gone].text == "".join(pieces)
    assert found[gone].tokens < found[stays].tokens
    assert found[stays] == alone(engine, PROMPTS[0])
    assert found[waits] == Generation("", "interrupted")


def test_a_closed_session_has_nothing_to_do(engine: Engine) -> None:
    session = engine.session()
    session.add(ask(session, PROMPTS[0]))
    session.close()
    assert not session.step()
