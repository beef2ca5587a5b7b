"""The thread that runs a model: calls of clients are queued, run together, and answered as they end.

Knows pipelines and jobs. Does not know HTTP; results are delivered by callbacks, in this thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmkit.engines.base import Engine
from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError
from llmkit.inference.pipeline import Pipeline
from llmkit.inference.scheduler import Job, Scheduler
from llmkit.log import log
from llmkit.tasks import Row
from llmkit.tasks.output import Output

__all__ = ["Call", "ModelWorker", "QueueFullError", "WorkerStoppedError"]


class QueueFullError(LlmkitError):
    """Too many calls are waiting."""


class WorkerStoppedError(LlmkitError):
    """The worker has ended, or ends."""


@dataclass(eq=False)
class Call:
    """A row to be answered for a client."""

    pipeline: Callable[[], Pipeline]
    """Makes the pipeline, in the thread of the worker."""
    row: Row
    on_end: Callable[[Output | LlmkitError], None]
    on_text: Callable[[str], None] | None = None
    on_reasoning: Callable[[str], None] | None = None
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the client has gone; the answer ends after the next token."""
    deadline: float = math.inf
    """The time of `time.monotonic` at which the answer ends, even if the client does not read it."""
    _made: Pipeline | None = None

    def start(self) -> Job:
        """The work on the row."""
        self._made = self.pipeline()
        return self._made.start(self.row, self.on_text, on_reasoning=self.on_reasoning, cancelled=self.ended)

    def ended(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.left.is_set() or time.monotonic() > self.deadline

    def finish(self, job: Job) -> None:
        """Deliver the result of the work."""
        assert self._made is not None
        if job.abandoned:
            self.on_end(WorkerStoppedError("the client has gone", "send the request again"))
        else:
            self.on_end(self._made.result(job))


class ModelWorker:
    """Runs one engine in a thread of its own.

    Args:
        rows: maximum number of outputs that are generated at once; None is the engine's own limit.
        max_batch_tokens: None estimates it from free memory.
        max_queue: maximum number of calls that wait.
    """

    def __init__(
        self, engine: Engine, *, rows: int | None = None, max_batch_tokens: int | None = None, max_queue: int = 128
    ) -> None:
        self.engine = engine
        self.max_queue = max_queue
        self.error: BaseException | None = None
        """Why the thread has ended, if it was not closed."""
        self._inbox: deque[Callable[[], None]] = deque()
        self._wakes = threading.Condition()
        self._closing = False
        self._running: dict[int, tuple[Call, Job]] = {}
        session = engine.session(max_batch_tokens, rows=rows, interrupted=lambda: bool(self._inbox))
        self.max_batch_tokens, self.prefix_tokens = session.max_batch_tokens, session.prefix_tokens
        self._scheduler = Scheduler(session, own_settings=True)
        self._calls: set[Call] = set()
        self._thread = threading.Thread(target=self._run, name="llmkit-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether calls are answered."""
        return self._thread.is_alive() and not self._closing

    @property
    def unfinished(self) -> int:
        """Number of calls that wait or run."""
        return len(self._calls)

    def submit(self, call: Call) -> None:
        """Queue a call, from any thread.

        Raises:
            QueueFullError: too many calls are waiting.
            WorkerStoppedError: the worker has ended.
        """
        with self._wakes:
            self._check()
            if len(self._calls) - len(self._running) >= self.max_queue:
                raise QueueFullError(f"{self.max_queue} requests are waiting", "try again later")
            self._calls.add(call)
            self._inbox.append(partial(self._begin, call))
            self._wakes.notify()

    def run(self, work: Callable[[], Any], on_end: Callable[[Any], None]) -> None:
        """Queue other work on the model, from any thread; ``on_end`` gets its result or its `LlmkitError`."""
        with self._wakes:
            self._check()
            self._inbox.append(lambda: on_end(attempt(work, own_settings=True)))
            self._wakes.notify()

    def close(self, timeout: float | None = None) -> None:
        """Refuse further calls, and wait until the others are answered."""
        with self._wakes:
            self._closing = True
            self._wakes.notify()
        self._thread.join(timeout)

    def _check(self) -> None:
        if not self.alive:
            raise WorkerStoppedError("the model has stopped", "restart the server")

    def _run(self) -> None:
        try:
            while self._wait():
                while self._inbox:
                    self._inbox.popleft()()
                if self._scheduler.busy:
                    self._end(self._scheduler.step())
        except BaseException as error:  # noqa: BLE001 - whatever it was, clients must not wait for ever
            self.error = error
            log.error("the model has stopped", exc_info=error, extra={"code": "internal_error"})
            for call in list(self._calls):
                call.on_end(WorkerStoppedError(f"the model has stopped ({type(error).__name__})", "restart the server"))
            self._calls.clear()

    def _wait(self) -> bool:
        """Wait for work; False when there is none and none will come."""
        with self._wakes:
            while not (self._inbox or self._scheduler.busy or self._closing):
                self._wakes.wait()
        return bool(self._inbox or self._scheduler.busy)

    def _begin(self, call: Call) -> None:
        job = attempt(call.start, own_settings=True)
        if isinstance(job, LlmkitError):
            self._calls.discard(call)
            call.on_end(job)
            return
        self._running[id(job)] = call, job
        self._scheduler.add(job)
        if job.ended:
            self._end([job])

    def _end(self, jobs: list[Job]) -> None:
        for job in jobs:
            call, _ = self._running.pop(id(job))
            self._calls.discard(call)
            failed = attempt(partial(call.finish, job), own_settings=True)
            if isinstance(failed, LlmkitError):
                call.on_end(failed)
