"""Calls of clients on the event loop: submitted to the worker of a model, streamed, and abandoned with the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from llmkit.errors import LlmkitError
from llmkit.inference.pipeline import Pipeline
from llmkit.server.errors import ApiError
from llmkit.server.models import ServedModel
from llmkit.server.worker import Call
from llmkit.tasks import Row
from llmkit.tasks.output import Output

__all__ = ["Answer", "Piece", "complete", "on_worker"]


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    text: str = ""
    reasoning: str = ""


@dataclass
class Answer:
    """One call, whose pieces arrive on the event loop. Begins at once."""

    model: ServedModel
    pipeline: Callable[[], Pipeline]
    row: Row
    streams: bool
    timeout: float
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Seconds to the first piece."""
    output: Output | None = None
    on_end: Callable[[Answer], None] = lambda _: None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Piece | Output | LlmkitError]()

        def put(event: Piece | Output | LlmkitError) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._call = Call(
            self.pipeline,
            self.row,
            put,
            on_text=(lambda text: put(Piece(text))) if self.streams else None,
            on_reasoning=(lambda text: put(Piece(reasoning=text))) if self.streams else None,
            deadline=self.begun + self.timeout,
        )
        self.model.worker.submit(self._call)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces; afterwards `output` is set. The call is abandoned if the consumer leaves.

        Raises:
            LlmkitError: the call failed.
            ApiError: it took too long.
        """
        try:
            while True:
                left = self.begun + self.timeout - time.monotonic()
                try:
                    event = await asyncio.wait_for(self._events.get(), max(0.0, left))
                except TimeoutError as error:
                    raise self._too_long() from error
                self.first = time.monotonic() - self.begun if self.first is None else self.first
                if isinstance(event, LlmkitError):
                    raise event
                if isinstance(event, Output):
                    if event.finish_reason == "interrupted":  # and the client is still there
                        raise self._too_long()
                    self.output = event
                    return
                yield event
        finally:
            self.leave()
            self.on_end(self)

    def _too_long(self) -> ApiError:
        return ApiError(504, f"stopped after {self.timeout:g} seconds; ask for less", code="timeout")

    def leave(self) -> None:
        """Abandon the call."""
        self._call.left.set()


async def complete(request: Request, answers: list[Answer]) -> list[Output]:
    """The outputs of calls that are not streamed; they are abandoned if the client goes away."""

    async def finished(answer: Answer) -> Output:
        async for _ in answer.pieces():
            pass
        assert answer.output is not None
        return answer.output

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        for answer in answers:
            answer.leave()

    watcher = asyncio.create_task(gone())
    tasks = [asyncio.create_task(finished(answer)) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        watcher.cancel()
        for each in tasks:
            each.cancel()
        for answer in answers:
            answer.leave()


async def on_worker(model: ServedModel, work: Callable[[], Any]) -> Any:
    """The result of work in the thread of a model."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def done(value: Any) -> None:
        if not result.done():
            result.set_result(value)

    def deliver(value: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(done, value)

    model.worker.run(work, deliver)
    value = await result
    if isinstance(value, LlmkitError):
        raise value
    return value
