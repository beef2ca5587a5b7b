"""The work on rows while it waits for a model: what each row has asked for, got and used.

Knows the generators of the tasks. Does not know which prompts run together, or how they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from llmkit.config.settings import GenerationSettings
from llmkit.engines.base import Answer, OnText, Request, Session, never
from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError, UsageError
from llmkit.inference.context_window import ContextFitter
from llmkit.inference.streaming import Shown
from llmkit.tasks import Generation, Result, Step, Work

__all__ = ["Cancelled", "Job", "Progress", "Scheduler"]

Progress = Callable[[int, int], None]


@dataclass
class Job:
    """The work on one row: where it stands, and what it has used."""

    reader: ContextFitter
    work: Work
    streams: bool
    number: int = 0
    """Of the row, in the whole run."""
    step: Step = field(default_factory=lambda: Step(()))
    raws: list[Generation | None] = field(default_factory=list)
    result: Result | None = None
    error: LlmkitError | None = None
    """Why there is no result, and never will be."""
    shown: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    cut: int = 0
    """Prompts whose output ended at max_new_tokens or in a full context."""
    thinking: int = 0
    """Prompts whose output ended in its reasoning."""
    finish_reason: str = "stop"

    def advance(self, *, first: bool = False) -> None:
        """Send the answers to the last step; take the next steps that need a model."""
        failed = attempt(lambda: self._advance(first=first))
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
        """Whether nothing is left to do."""
        return self.result is not None or self.error is not None

    @property
    def answered(self) -> bool:
        """Whether all prompts of the step have their answers."""
        return not self.ended and None not in self.raws

    def put(self, index: int, raw: Generation) -> None:
        """One prompt's answer."""
        failed = attempt(lambda: self._put(index, raw))
        if failed is not None:
            self.error = failed

    def _put(self, index: int, raw: Generation) -> None:
        self.raws[index] = raw
        self.completion_tokens += raw.tokens
        self.cut += raw.finish_reason == "length"
        self.thinking += raw.thinking
        if raw.finish_reason != "stop":
            self.finish_reason = raw.finish_reason
        if self.step.each is not None:
            self.step.each(index, raw)


class Cancelled(BaseException):
    """Who listened has left, in the middle of work that has no partial answer."""


@dataclass
class Scheduler:
    """Takes the work on many rows through a session: what each asks for next joins what the others still wait for."""

    session: Session
    settings: GenerationSettings
    on_reasoning: OnText | None = None
    cancelled: Callable[[], bool] = never
    progress: Progress = lambda _rows, _tokens: None
    """Gets the rows that have ended and the tokens that were written since the last time."""
    _asked: dict[Request, tuple[Job, int]] = field(default_factory=dict)

    def run(self, jobs: Sequence[Job]) -> None:
        """Work until every job has ended."""
        for job in jobs:
            job.advance(first=True)
            self._ask(job)
        self.progress(sum(job.ended for job in jobs), 0)
        while self._asked:
            if self.cancelled():
                raise Cancelled
            self._take(self.session.step())

    def _ask(self, job: Job) -> None:
        """Hand the prompts of a job's step to the engine."""
        if job.ended:
            return
        requests = attempt(partial(self._requests, job))
        if isinstance(requests, LlmkitError):
            job.error = requests
            return
        for index, request in enumerate(requests):
            self._asked[request] = job, index
            self.session.add(request)

    def _requests(self, job: Job) -> list[Request]:
        step, reader = job.step, job.reader
        if not (step.final or step.several) and self.settings.num_return_sequences > 1:
            raise UsageError("num_return_sequences is for texts that are read in one piece", "leave it out")
        fitted = [reader.fit(row) for row in step.rows]
        job.prompt_tokens += sum(len(each.encoded.input_ids) for each in fitted)
        job.truncated += sum(each.truncated for each in fitted)
        shown = Shown(reader.emit, strip=reader.task.strip_output).push if step.final and job.streams else None
        return [
            Request(
                each.prompt,
                each.encoded,
                self.settings,
                step.max_new_tokens,
                scored=step.scored,
                number=job.number,
                in_order=job.streams and step.each is not None,
                on_text=shown,
                on_reasoning=None if index else self.on_reasoning,
                cancelled=self.cancelled,
            )
            for index, each in enumerate(fitted)
        ]

    def _take(self, answers: Sequence[tuple[Request, Answer]]) -> None:
        """Give answers to the jobs they are for, and go on with those that have all they asked for."""
        tokens, touched = 0, {}
        for request, answer in answers:
            job, index = self._asked.pop(request)
            tokens += answer.tokens if isinstance(answer, Generation) else 0
            if job.ended:
                continue
            touched[id(job)] = job
            if isinstance(answer, LlmkitError):
                job.error = answer
                for other in [each for each, (owner, _) in self._asked.items() if owner is job]:
                    self.session.cancel(other)
            elif answer.finish_reason == "interrupted" and not job.step.final:
                raise Cancelled
            else:
                job.put(index, answer)
        for job in touched.values():
            if job.answered:
                job.advance()
                self._ask(job)
        self.progress(sum(job.ended for job in touched.values()), tokens)
