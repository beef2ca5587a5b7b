"""A loaded task: call it with one row, map it over many, or stream one answer.

Drives the work of the task on each row (`llmkit.tasks.Task.work`) and pools what several rows want read into
batches. There is one path: whole answers, streamed ones and batches differ in who listens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from typing import Literal, overload

from llmkit.config.settings import GenerationSettings, RowSettings, changed
from llmkit.errors import LlmkitError, UsageError
from llmkit.heads import head_of
from llmkit.heads.batching import Budget, budget_from_memory
from llmkit.heads.chat_template import check_template
from llmkit.heads.row_faults import attempt, raise_common, unforeseen
from llmkit.heads.span import SpanHead
from llmkit.heads.windows import Document
from llmkit.inference.engine import OnText, Shown, mark, write
from llmkit.inference.fitting import ModelReader
from llmkit.inference.jobs import Job, Prompt, kinds
from llmkit.inference.traits import traits_of, usual_max_new_tokens
from llmkit.log import log
from llmkit.models.load import Loaded
from llmkit.tasks import Raw, Result, Row, Task, Wording
from llmkit.tasks.output import Output, Usage

__all__ = ["Pipeline", "StreamedOutput"]

_ROWS_SHOWN = 8
"""Parts of one text that are written together while somebody waits to see the first."""

Progress = Callable[[int, int], None]


class _Cancelled(BaseException):
    """Who listened has left, in the middle of work that has no partial answer."""


class Pipeline:
    """One task on one loaded model. Made by `llmkit.load`."""

    def __init__(self, task: Task, loaded: Loaded, settings: GenerationSettings, wording: Wording) -> None:
        self.task = task
        self.loaded = loaded
        self.wording = wording
        self.traits = traits_of(loaded, task)
        task.check(self.traits, wording)
        if self.traits.chat and not wording.raw:
            check_template(loaded.tokenizer)
        for number, example in enumerate(wording.examples, start=1):
            task.validate_example(example, number)
        self._head = head_of(loaded.head)
        if not self._head.writes and (options := changed(settings)):
            raise UsageError(f"{', '.join(options)}: a model that marks answers generates no text", "leave it out")
        self.settings = self._complete(settings)

    def _complete(self, settings: GenerationSettings) -> GenerationSettings:
        """The caller's settings, then what the task's own ask for, then the model's usual length."""
        usual = usual_max_new_tokens(self.loaded, self.task)
        wanted = {"max_new_tokens": usual} | self.task.generation_defaults(self.traits, usual)
        if settings.truncation_side is not None and self.task.truncation_side is None:
            raise UsageError(
                f"truncation_side has no effect on {self.task.name}, which leaves out its oldest messages",
                "leave it out",
            )
        if settings.on_overflow == "truncate":  # said, so that a run which is resumed cuts the same side
            wanted["truncation_side"] = self.task.truncation_side
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
            (answer,) = self._drive([self._start(row, on_text)], self.budget(), on_reasoning, cancelled)
        except _Cancelled:
            raise KeyboardInterrupt from None
        if isinstance(answer, LlmkitError):
            raise unforeseen(answer) or answer  # there is no other row to go on with
        return answer

    @overload
    def map(
        self, rows: Iterable[str | Row], /, *, window: int = ..., max_batch_tokens: int | None = ...
    ) -> Iterator[Output]: ...

    @overload
    def map(
        self,
        rows: Iterable[str | Row],
        /,
        *,
        window: int = ...,
        max_batch_tokens: int | None = ...,
        errors: Literal["raise", "yield"],
    ) -> Iterator[Output | LlmkitError]: ...

    def map(
        self,
        rows: Iterable[str | Row],
        /,
        *,
        window: int = 256,
        max_batch_tokens: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
    ) -> Iterator[Output | LlmkitError]:
        """Answer rows lazily and in order.

        ``window`` rows at a time are taken, sorted by length and written in batches; parts of long rows share the
        batches of other rows. Greedy answers are those of single calls; in half precision, batches can differ in
        rounding.

        Args:
            rows: texts, or mappings with the task's columns; any iterable, also an endless one.
            window: rows that are held in memory. More make better batches and later first answers.
            max_batch_tokens: rows of a batch times the longest, new tokens included; None finds it from free memory.
                A batch that memory is too small for is halved.
            errors: what becomes of a row that cannot be answered: ``raise``, after the rows before it were given, or
                ``yield`` the exception in the answer's place.
        """
        RowSettings(input="-", window=window, max_batch_tokens=max_batch_tokens)  # checks both
        if errors not in ("raise", "yield"):
            raise UsageError(f"errors={errors!r} is not a choice", "choose raise or yield")
        return self._map(rows, window, self.budget(max_batch_tokens), errors)

    def _map(
        self, rows: Iterable[str | Row], window: int, budget: Budget, errors: str
    ) -> Iterator[Output | LlmkitError]:
        iterator, number = iter(rows), 0
        while taken := list(islice(iterator, window)):
            for answer in self.answer_all(taken, budget, number=number):
                if errors == "raise" and isinstance(answer, LlmkitError):
                    raise answer
                yield answer
            number += len(taken)

    def answer_all(
        self,
        rows: Sequence[str | Row],
        budget: Budget,
        *,
        number: int = 0,
        progress: Progress = lambda _rows, _tokens: None,
    ) -> list[Output | LlmkitError]:
        """Answer rows that are held in memory; the exception takes the place of a row that cannot be answered.

        Where nothing was answered yet and all rows fail in the same way that nobody foresaw, that is raised.

        Args:
            budget: how large a batch may be; see `budget`.
            number: of the first row in the whole run. It goes into the seed, so that no two batches draw alike.
            progress: called after each batch with the rows and the tokens that were written since the last time.
        """
        jobs = [attempt(partial(self._start, row, number=place)) for place, row in enumerate(rows, start=number)]
        answers = self._drive(jobs, budget, progress=progress)
        budget.answered = budget.answered or any(isinstance(answer, Output) for answer in answers)
        if not budget.answered:
            raise_common([answer for answer in answers if isinstance(answer, LlmkitError)])
        return answers

    def budget(self, max_batch_tokens: int | None = None) -> Budget:
        """How large a batch may be: so many tokens, or as many as the memory that is free now seems to hold."""
        budget = budget_from_memory(self.loaded)
        return budget if max_batch_tokens is None else replace(budget, tokens=max_batch_tokens)

    def stream(self, row: str | Row, /) -> StreamedOutput:
        """Answer one row piece by piece: iterate for the text; ``.output`` is set when the text has ended.

        The model runs in a thread of its own, which costs speed on a CPU with few cores; ``on_text`` does not.
        """
        if self.settings.num_return_sequences > 1:
            raise UsageError("several sequences cannot be streamed as one text", "call the pipeline instead")
        self._start(row)  # a bad row is refused here and not in the loop
        return StreamedOutput(self, row)

    def _start(self, row: str | Row, on_text: OnText | None = None, number: int = 0) -> Job:
        row = self.task.to_row(row)
        self.task.validate(row)

        def emit(text: str) -> None:
            job.shown += text
            if on_text is not None and text:
                on_text(text)

        reader = self.reader(emit)
        job = Job(reader, self.task.work(row, reader), streams=on_text is not None, number=number)
        return job

    def reader(self, emit: OnText) -> ModelReader:
        """The model as the work on one row sees it; ``emit`` gets the pieces of the answer."""
        return ModelReader(self.task, self.traits, self.wording, self.loaded, self.settings, emit)

    def _drive(
        self,
        jobs: Sequence[Job | LlmkitError],
        budget: Budget,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Progress = lambda _rows, _tokens: None,
    ) -> list[Output | LlmkitError]:
        good = [job for job in jobs if isinstance(job, Job)]
        progress(len(jobs) - len(good), 0)
        self._advance(good, progress, first=True)
        while active := [job for job in good if not job.ended]:
            if isinstance(self._head, SpanHead):
                self._mark(self._head, active, budget, progress)
            else:
                self._write(active, budget, on_reasoning, cancelled, progress)
        return [self._output(job) if isinstance(job, Job) else job for job in jobs]

    def _advance(self, jobs: Iterable[Job], progress: Progress, tokens: int = 0, *, first: bool = False) -> None:
        """Take the next step of the jobs whose last one is answered."""
        ended = 0
        for job in jobs:
            if first or job.answered:
                job.advance(first=first)
                ended += job.ended
        progress(ended, tokens)

    def _mark(self, head: SpanHead, jobs: Sequence[Job], budget: Budget, progress: Progress) -> None:
        """The span head: one question and context a job; their windows are read together."""
        documents: list[tuple[Job, Document]] = []
        for job in jobs:
            fitted = attempt(partial(job.reader.encode, job.step.rows[0]))
            if isinstance(fitted, LlmkitError):
                job.error = fitted
            else:
                assert isinstance(fitted.encoded, Document)
                documents.append((job, fitted.encoded))
        readings = mark(self.loaded, head, [document for _, document in documents], budget)
        for (job, _), reading in zip(documents, readings, strict=True):
            if isinstance(reading, LlmkitError):
                job.error = reading
            else:
                job.prompt_tokens += reading.tokens
                job.put(0, Raw("", reading=reading))
        progress(sum(job.error is not None for job in jobs), 0)
        self._advance(jobs, progress)

    def _write(
        self,
        jobs: Sequence[Job],
        budget: Budget,
        on_reasoning: OnText | None,
        cancelled: Callable[[], bool],
        progress: Progress,
    ) -> None:
        """One step of each job, in batches of prompts of about the same length."""
        wanted = []
        for job in jobs:
            prompts = attempt(partial(self._fit, job))
            if isinstance(prompts, LlmkitError):
                job.error = prompts
                progress(1, 0)
            else:
                wanted += prompts

        def answer(batch: Sequence[Prompt]) -> list[Raw]:
            if cancelled():
                raise _Cancelled
            job = batch[0].job
            shown = Shown(job.reader.emit, strip=self.task.strips) if job.step.final and job.streams else None
            return write(
                self.loaded,
                [prompt.fitted for prompt in batch],
                self._seeded(job),
                max_new_tokens=job.step.max_new_tokens,
                scored=job.step.scored,
                on_text=shown.push if shown else None,
                on_reasoning=on_reasoning,
                cancelled=cancelled,
            )

        for kind in kinds(wanted):
            job = kind[0].job
            room = Budget(budget.tokens, min(budget.rows, _ROWS_SHOWN)) if job.streams else budget
            copies = max(self.settings.num_beams or 1, self.settings.num_return_sequences)
            new = min(job.step.max_new_tokens or self.max_new_tokens, self.max_new_tokens)
            for batch, raws in room.run(kind, lambda prompt: copies * (prompt.length + new), answer):  # noqa: B023
                self._take(batch, raws, progress)

    def _fit(self, job: Job) -> list[Prompt]:
        """The prompts of a job's step."""
        if not (job.step.final or job.step.several) and self.settings.num_return_sequences > 1:
            raise UsageError("num_return_sequences is for texts that are read in one piece", "leave it out")
        prompts = [Prompt(job, index, job.reader.fit(row)) for index, row in enumerate(job.step.rows)]
        job.prompt_tokens += sum(prompt.length for prompt in prompts)
        job.truncated += sum(prompt.fitted.truncated for prompt in prompts)
        return prompts

    def _seeded(self, job: Job) -> GenerationSettings:
        if self.settings.seed is None or not job.number:
            return self.settings
        return replace(self.settings, seed=(self.settings.seed + job.number) % 2**63)

    def _take(self, batch: Sequence[Prompt], raws: Sequence[Raw] | LlmkitError, progress: Progress) -> None:
        """Give a batch's answers to the jobs they are for."""
        if isinstance(raws, LlmkitError):
            progress(not batch[0].job.ended, 0)
            batch[0].job.error = raws
            return
        for prompt, raw in zip(batch, raws, strict=True):
            if raw.finish_reason == "interrupted" and not prompt.job.step.final:
                raise _Cancelled
            if not prompt.job.ended:
                prompt.job.put(prompt.index, raw)
        touched = {id(prompt.job): prompt.job for prompt in batch}
        self._advance(touched.values(), progress, sum(raw.tokens for raw in raws))

    def _output(self, job: Job) -> Output | LlmkitError:
        if job.error is not None:
            return job.error
        result = job.result
        assert result is not None
        if len(job.shown) < len(result.text):
            job.reader.emit(result.text[len(job.shown) :])
        if result.chunks and job.cut:
            log.warning("%d of the outputs were cut at their longest; more with --max-new-tokens", job.cut)
        last = next((raw for raw in job.raws if raw is not None), Raw(""))
        others = [
            self.output(other, raw.finish_reason, Usage(job.prompt_tokens, raw.tokens), still_thinking=raw.thinking)
            for other, raw in zip_longest(result.alternatives, last.alternatives, fillvalue=Raw(""))
            if isinstance(other, Result)
        ]
        usage = Usage(job.prompt_tokens, job.completion_tokens)
        return self.output(
            result,
            job.finish_reason,
            usage,
            truncated=job.truncated,
            still_thinking=job.thinking > 0,
            alternatives=tuple(others),
        )

    def output(
        self,
        result: Result,
        finish_reason: str,
        usage: Usage,
        *,
        truncated: int = 0,
        still_thinking: bool = False,
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
            still_thinking=still_thinking,
            source_language=result.source_language,
            target_language=result.target_language,
            chunks=result.chunks,
            alternatives=alternatives,
            fields=self.task.output_fields,
        )


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
