"""A loaded task: call it with one row, map it over many, or stream one answer.

Drives the work of the task on each row (`llmkit.tasks.Task.work`) and pools what several rows want read into
batches. There is one path: whole answers, streamed ones and batches differ in who listens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest

from llmkit.config.settings import AnswerSettings, GenerationSettings, given
from llmkit.errors import UsageError
from llmkit.heads import head_ops
from llmkit.heads.span import answer_all
from llmkit.inference.engine import OnText, Shown, write
from llmkit.inference.fitting import Fitted, ModelReader
from llmkit.inference.output import Output, Usage
from llmkit.inference.traits import traits_of, usual_max_new_tokens
from llmkit.log import log
from llmkit.models.load import Loaded
from llmkit.tasks import Head, QuestionContext, Raw, Result, Row, Step, Task, Wording, Work

__all__ = ["Pipeline", "StreamedOutput"]

BATCH_SIZE = 8


class _Cancelled(Exception):  # noqa: N818 - nothing has gone wrong
    """Who listened has left, in the middle of work that has no partial answer."""


@dataclass
class _Job:
    """The work on one row: where it stands, and what it has used."""

    reader: ModelReader
    work: Work
    streams: bool
    step: Step = field(default_factory=lambda: Step(()))
    raws: list[Raw | None] = field(default_factory=list)
    result: Result | None = None
    shown: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0
    cut: int = 0
    """Prompts whose output ended at max_new_tokens or in a full context."""
    finish_reason: str = "stop"

    def advance(self, *, first: bool = False) -> None:
        """Send the answers to the last step; take the next steps that need a model."""
        try:
            raws = [raw for raw in self.raws if raw is not None]
            self.step = next(self.work) if first else self.work.send(raws)
            while not self.step.rows:
                self.step = self.work.send(())
            self.raws = [None] * len(self.step.rows)
        except StopIteration as stop:
            self.result = stop.value

    def put(self, index: int, raw: Raw) -> None:
        """One prompt's answer."""
        self.raws[index] = raw
        self.completion_tokens += raw.tokens
        self.cut += raw.finish_reason == "length"
        if raw.finish_reason != "stop":
            self.finish_reason = raw.finish_reason
        if self.step.each is not None:
            self.step.each(index, raw)


class Pipeline:
    """One task on one loaded model. Made by `llmkit.load`."""

    def __init__(self, task: Task, loaded: Loaded, settings: GenerationSettings, wording: Wording) -> None:
        self.task = task
        self.loaded = loaded
        self.wording = wording
        self.traits = traits_of(loaded, task)
        task.check(self.traits, wording)
        for number, example in enumerate(wording.examples, start=1):
            task.validate_example(example, number)
        if loaded.head is Head.SPAN and (options := given(settings)):
            raise UsageError(f"{', '.join(options)}: a model that marks answers generates no text", "leave it out")
        self.settings = self._complete(settings)
        self._ops = None if loaded.head is Head.SPAN else head_ops(loaded.head)

    def _complete(self, settings: GenerationSettings) -> GenerationSettings:
        """The caller's settings, then what the task's own ask for, then the model's usual length."""
        usual = usual_max_new_tokens(self.loaded, self.task)
        wanted = {"max_new_tokens": usual} | self.task.generation_defaults(self.traits, usual)
        longest = settings.max_new_tokens or wanted["max_new_tokens"]
        if "min_new_tokens" in wanted:
            wanted["min_new_tokens"] = min(wanted["min_new_tokens"], longest)
        return replace(settings, **{name: value for name, value in wanted.items() if getattr(settings, name) is None})

    @property
    def max_new_tokens(self) -> int:
        """The caller's limit, else the one that the task's settings mean, the model's own, or the task's default."""
        return self.settings.max_new_tokens or self.task.max_new_tokens

    def __call__(
        self,
        row: str | Row,
        /,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Output:
        """Answer one row: a text, or a mapping with the task's columns.

        ``on_text`` gets the (first) answer piece by piece as it becomes certain, ``on_reasoning`` what the model
        thinks before it. ``cancelled`` is asked after every token; the answer then ends as ``interrupted``.
        """
        try:
            return self._run([row], BATCH_SIZE, on_text, on_reasoning, cancelled)[0]
        except _Cancelled:
            raise KeyboardInterrupt from None

    def map(self, rows: Iterable[str | Row], /, *, batch_size: int = BATCH_SIZE) -> Iterator[Output]:
        """Answer rows lazily and in order, ``batch_size`` at a time; parts of long rows share the batches.

        Greedy answers are those of single calls; in half precision, batches can differ in rounding.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} is out of range", "give a number of 1 or more")
        iterator = iter(rows)
        while batch := list(islice(iterator, batch_size)):
            yield from self._run(batch, batch_size)

    def stream(self, row: str | Row, /) -> StreamedOutput:
        """Answer one row piece by piece: iterate for the text; ``.output`` is set when the text has ended.

        The model runs in a thread of its own, which costs speed on a CPU with few cores; ``on_text`` does not.
        """
        if self.settings.num_return_sequences > 1:
            raise UsageError("several sequences cannot be streamed as one text", "call the pipeline instead")
        self._start(row)  # a bad row is refused here and not in the loop
        return StreamedOutput(self, row)

    def _start(self, row: str | Row, on_text: OnText | None = None) -> _Job:
        row = self.task.to_row(row)
        self.task.validate(row)

        def emit(text: str) -> None:
            job.shown += text
            if on_text is not None and text:
                on_text(text)

        reader = self.reader(emit)
        job = _Job(reader, self.task.work(row, reader), streams=on_text is not None)
        return job

    def reader(self, emit: OnText) -> ModelReader:
        """The model as the work on one row sees it; ``emit`` gets the pieces of the answer."""
        return ModelReader(self.task, self.traits, self.wording, self.loaded, self._ops, self.settings, emit)

    def _run(
        self,
        rows: Sequence[str | Row],
        batch_size: int,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Output]:
        jobs = [self._start(row, on_text) for row in rows]
        for job in jobs:
            job.advance(first=True)
        while active := [job for job in jobs if job.result is None]:
            if self._ops is None:
                self._mark(active, batch_size)
            else:
                self._write(active, batch_size, on_reasoning, cancelled)
            for job in active:
                job.advance()
        return [self._output(job) for job in jobs]

    def _mark(self, jobs: Sequence[_Job], batch_size: int) -> None:
        """The span head: one question and context a job; it makes batches of their windows."""
        assert isinstance(self.task.settings, AnswerSettings)
        prompts = [self.task.render(row, self.traits, self.wording) for job in jobs for row in job.step.rows]
        readings = answer_all(
            self.loaded,
            [prompt for prompt in prompts if isinstance(prompt, QuestionContext)],
            top=self.task.settings.top,
            max_seq_len=self.task.settings.max_seq_len,
            doc_stride=self.task.settings.doc_stride,
            max_answer_len=self.task.settings.max_answer_len,
            batch_size=batch_size,
        )
        for job, reading in zip(jobs, readings, strict=True):
            job.prompt_tokens += reading.tokens
            job.put(0, Raw("", reading=reading))

    def _write(
        self, jobs: Sequence[_Job], batch_size: int, on_reasoning: OnText | None, cancelled: Callable[[], bool]
    ) -> None:
        """One step of each job, in batches of prompts of about the same length."""
        wanted: list[tuple[_Job, int, Fitted]] = []
        for job in jobs:
            for index, row in enumerate(job.step.rows):
                fitted = job.reader.fit(row)
                job.prompt_tokens += len(fitted.encoded.input_ids)
                job.truncated += fitted.truncated
                wanted.append((job, index, fitted))
            if not (job.step.final or job.step.several) and self.settings.num_return_sequences > 1:
                raise UsageError("num_return_sequences is for texts that are read in one piece", "leave it out")
        for batch in _batches(wanted, batch_size):
            if cancelled():
                raise _Cancelled
            job = batch[0][0]
            shown = Shown(job.reader.emit, strip=self.task.strips) if job.step.final and job.streams else None
            raws = write(
                self.loaded,
                [fitted for _, _, fitted in batch],
                self.settings,
                max_new_tokens=job.step.max_new_tokens,
                scored=job.step.scored,
                on_text=shown.push if shown else None,
                on_reasoning=on_reasoning,
                cancelled=cancelled,
            )
            for (job, index, _), raw in zip(batch, raws, strict=True):
                if raw.finish_reason == "interrupted" and not job.step.final:
                    raise _Cancelled
                job.put(index, raw)

    def _output(self, job: _Job) -> Output:
        result = job.result
        assert result is not None
        if len(job.shown) < len(result.text):
            job.reader.emit(result.text[len(job.shown) :])
        if result.chunks and job.cut:
            log.warning("%d of the outputs were cut at their longest; more with --max-new-tokens", job.cut)
        last = next((raw for raw in job.raws if raw is not None), Raw(""))
        others = [
            self.output(other, raw.finish_reason, Usage(job.prompt_tokens, raw.tokens))
            for other, raw in zip_longest(result.alternatives, last.alternatives, fillvalue=Raw(""))
            if isinstance(other, Result)
        ]
        usage = Usage(job.prompt_tokens, job.completion_tokens)
        return self.output(result, job.finish_reason, usage, truncated=job.truncated, alternatives=tuple(others))

    def output(
        self,
        result: Result,
        finish_reason: str,
        usage: Usage,
        *,
        truncated: int = 0,
        alternatives: tuple[Output, ...] = (),
    ) -> Output:
        """A task's result, with where it comes from and what it took."""
        source = self.loaded.source
        return Output(
            text=result.text,
            task=self.task.name,
            model=source.name,
            commit=source.named_commit,
            base_commit=source.commit if source.adapter else None,
            head=str(self.loaded.head),
            finish_reason=finish_reason,
            usage=usage,
            truncated=truncated,
            answered=result.answered,
            score=result.score,
            start=result.start,
            end=result.end,
            reasoning=result.reasoning,
            source_language=result.source_language,
            target_language=result.target_language,
            chunks=result.chunks,
            alternatives=alternatives,
        )


def _batches(
    wanted: Sequence[tuple[_Job, int, Fitted]], batch_size: int
) -> Iterator[Sequence[tuple[_Job, int, Fitted]]]:
    """Prompts that can be run together, those of one length near each other.

    A text that is shown while it is generated goes first and alone.
    """
    kinds: dict[tuple[int | None, bool], list[tuple[_Job, int, Fitted]]] = {}
    for item in wanted:
        kinds.setdefault((item[0].step.max_new_tokens, item[0].step.scored), []).append(item)
    for items in kinds.values():
        if not any(job.step.each for job, _, _ in items):  # else their order is the order in which they are shown
            items.sort(key=lambda item: len(item[2].encoded.input_ids), reverse=True)
        for first in range(0, len(items), batch_size):
            yield items[first : first + batch_size]


class StreamedOutput:
    """Iterate over the pieces of one answer; afterwards ``output`` holds the whole."""

    def __init__(self, pipeline: Pipeline, row: str | Row) -> None:
        self._pipeline = pipeline
        self._row = row
        self._begun = False
        self.output: Output | None = None

    def __iter__(self) -> Iterator[str]:
        if self._begun:  # a second pass finds no pieces
            return
        self._begun = True
        pieces: queue.SimpleQueue[str | Output | BaseException] = queue.SimpleQueue()
        left = threading.Event()

        def work() -> None:
            try:
                pieces.put(self._pipeline(self._row, on_text=pieces.put, cancelled=left.is_set))
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
                pieces.put(error)

        worker = threading.Thread(target=work, name="llmkit-generate", daemon=True)
        worker.start()
        interrupted = False
        try:
            while isinstance(item := pieces.get(), str):
                yield item
            if isinstance(item, BaseException):
                raise item
            self.output = item
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            left.set()  # who leaves the loop early stops the model
            if not interrupted:  # a model that reads a long prompt would hold the user up
                worker.join()
