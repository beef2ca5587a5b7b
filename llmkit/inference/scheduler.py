"""Schedules the work on rows: which prompts each row has requested, their results and usage.

Knows the generators of the tasks. Does not know which prompts run together, or how they are generated. Rows may be of
different tasks, and may be added while others run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from llmkit.engines.base import Answer, OnText, Request, Session, never
from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError, UsageError
from llmkit.inference.context_window import ContextFitter
from llmkit.inference.streaming import StreamedText
from llmkit.tasks import Generation, Result, Step, Work

__all__ = ["Cancelled", "Job", "Progress", "Scheduler"]

Progress = Callable[[int, int], None]


@dataclass
class Job:
    """The state and usage of the work on one row."""

    reader: ContextFitter
    work: Work
    streams: bool
    number: int = 0
    """Index of the row in the whole run."""
    on_reasoning: OnText | None = None
    cancelled: Callable[[], bool] = never
    step: Step = field(default_factory=lambda: Step(()))
    raws: list[Generation | None] = field(default_factory=list)
    result: Result | None = None
    error: LlmkitError | None = None
    """Why the row failed."""
    abandoned: bool = False
    """The job was cancelled in the middle of work that has no partial answer."""
    shown: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    truncated: int = 0
    cut: int = 0
    """Prompts whose output ended at max_new_tokens or in a full context."""
    runaways: int = 0
    """Outputs that were stopped as runaways."""
    thinking: int = 0
    """Prompts whose output ended during reasoning."""
    broken_calls: int = 0
    """Tool calls that could not be parsed."""
    finish_reason: str = "stop"

    def advance(self, *, first: bool = False, own_settings: bool = False) -> None:
        """Send the outputs of the last step; get the next step that needs a model."""
        failed = attempt(lambda: self._advance(first=first), own_settings=own_settings)
        if failed is not None:
            self.error = failed

    def _advance(self, *, first: bool) -> None:
        try:
            raws = [raw for raw in self.raws if raw is not None]
            self.step = next(self.work) if first else self.work.send(raws)
            while not self.step.rows:
                self.step = self.work.send(())
            self.raws = [None] * len(self.step.rows)
        except StopIteration as stop:
            self.result = stop.value

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.result is not None or self.error is not None or self.abandoned

    @property
    def answered(self) -> bool:
        """Whether all prompts of the step have outputs."""
        return not self.ended and None not in self.raws

    def put(self, index: int, raw: Generation) -> None:
        """Record one prompt's output."""
        failed = attempt(lambda: self._put(index, raw))
        if failed is not None:
            self.error = failed

    def _put(self, index: int, raw: Generation) -> None:
        self.raws[index] = raw
        self.completion_tokens += raw.tokens
        self.cached_tokens += raw.cached_tokens
        self.runaways += sum(each.runaway for each in (raw, *raw.alternatives))
        self.cut += raw.finish_reason == "length" and not raw.runaway
        self.thinking += raw.thinking
        self.broken_calls += sum(each.broken_calls for each in (raw, *raw.alternatives))
        if raw.finish_reason != "stop":
            self.finish_reason = raw.finish_reason
        if self.step.each is not None:
            self.step.each(index, raw)


class Cancelled(BaseException):
    """A job was abandoned."""


@dataclass
class Scheduler:
    """Runs the work on many rows through one session: each row's next prompts join the queue of the others."""

    session: Session
    own_settings: bool = False
    """The settings of jobs differ, so that their errors are not those of all jobs."""
    progress: Progress = lambda _rows, _tokens: None
    """Called with the rows that ended and the tokens generated since the last call."""
    _pending: dict[Request, tuple[Job, int]] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run until every job has ended.

        Raises:
            Cancelled: a job was cancelled in the middle of work that has no partial answer.
        """
        for job in jobs:
            self.add(job)
        self.progress(sum(job.ended for job in jobs), 0)
        while self.busy:
            for job in self.step():
                if job.abandoned:
                    raise Cancelled

    @property
    def busy(self) -> bool:
        """Whether a job has not ended."""
        return bool(self._pending)

    def add(self, job: Job) -> None:
        """Begin a job, which may end at once."""
        job.advance(first=True, own_settings=self.own_settings)
        self._submit(job)

    def step(self) -> list[Job]:
        """Run some prompts; returns the jobs that have ended."""
        return self._take(self.session.step())

    def _submit(self, job: Job) -> None:
        """Submit the prompts of a job's step to the engine."""
        if job.ended:
            return
        requests = attempt(partial(self._requests, job), own_settings=self.own_settings)
        if isinstance(requests, LlmkitError):
            job.error = requests
            return
        for index, request in enumerate(requests):
            self._pending[request] = job, index
            self.session.add(request)

    def _requests(self, job: Job) -> list[Request]:
        step, reader = job.step, job.reader
        if not (step.final or step.multi_sequence) and reader.settings.num_return_sequences > 1:
            raise UsageError(
                "num_return_sequences requires a text that fits in one prompt", "leave it out", code="no_effect"
            )
        fitted = [reader.fit(row) for row in step.rows]
        job.prompt_tokens += sum(len(each.encoded.input_ids) for each in fitted)
        job.truncated += sum(each.truncated for each in fitted)
        shown = StreamedText(reader.emit, strip=reader.task.strip_output).push if step.final and job.streams else None
        return [
            Request(
                each.prompt,
                each.encoded,
                reader.settings,
                step.max_new_tokens,
                stop_loops=reader.task.stop_loops,
                plausible_tokens=step.plausible_tokens[index] if step.plausible_tokens else None,
                adapter=reader.engine.facts.adapter,
                scored=step.scored,
                number=job.number,
                in_order=job.streams and step.each is not None,
                on_text=shown,
                on_reasoning=None if index else job.on_reasoning,
                cancelled=job.cancelled,
            )
            for index, each in enumerate(fitted)
        ]

    def _take(self, answers: Sequence[tuple[Request, Answer]]) -> list[Job]:
        """Deliver outputs to their jobs, and advance the jobs whose step is complete; returns those that have ended."""
        tokens, touched = 0, {}
        for request, answer in answers:
            job, index = self._pending.pop(request)
            tokens += answer.tokens if isinstance(answer, Generation) else 0
            if job.ended:
                continue
            touched[id(job)] = job
            if isinstance(answer, Generation) and (answer.finish_reason != "interrupted" or job.step.final):
                job.put(index, answer)
                continue
            job.error = answer if isinstance(answer, LlmkitError) else None
            job.abandoned = job.error is None
            for other in [each for each, (owner, _) in self._pending.items() if owner is job]:
                self.session.cancel(other)
        for job in touched.values():
            if job.answered:
                job.advance(own_settings=self.own_settings)
                self._submit(job)
        ended = [job for job in touched.values() if job.ended]
        self.progress(len(ended), tokens)
        return ended
