"""A loaded task: call it with one row, map it over many, or stream one answer.

Drives the work of the task on each row (`llmkit.tasks.Task.steps`) and batches the prompts of several rows. Single
answers, streamed answers and batches share one code path and differ only in who receives the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from typing import Literal, cast, overload

from llmkit.config.declaration import non_default
from llmkit.config.settings import GenerationSettings, RowSettings
from llmkit.engines.base import Engine, OnText, Session, never
from llmkit.engines.row_faults import attempt, raise_common, unforeseen
from llmkit.engines.transformers import TransformersEngine
from llmkit.errors import LlmkitError, UsageError
from llmkit.inference.context_window import ContextFitter
from llmkit.inference.few_shot import FewShot
from llmkit.inference.scheduler import Cancelled, Job, Progress, Scheduler
from llmkit.inference.streaming import StreamedOutput
from llmkit.models.load import Loaded
from llmkit.models.tables import writes
from llmkit.progress import ProgressMeter
from llmkit.tasks import Generation, PromptOptions, Result, Row, Task, TokenLogprob
from llmkit.tasks.output import Note, Output, Usage
from llmkit.tasks.wording import columns_of_template, in_language

__all__ = ["Pipeline", "StreamedOutput"]

_ROWS_SHOWN = 8
"""Parts of one text that are generated together while a user is waiting for the first one."""


class Pipeline:
    """One task on one loaded model. Made by `llmkit.load`."""

    def __init__(self, task: Task, engine: Engine, settings: GenerationSettings, prompt_options: PromptOptions) -> None:
        self.task = task
        task.further_columns = columns_of_template(task, prompt_options.template)
        self.engine = engine
        self.prompt_options = prompt_options
        self.traits = engine.traits(task, raw=prompt_options.raw)
        task.check_options(self.traits, prompt_options)
        self.few_shot = FewShot(task, prompt_options)
        for number, example in enumerate(prompt_options.examples, start=1):
            task.validate_example(example, number)
        if not writes(engine.facts.head) and (options := non_default(settings)):
            raise UsageError(
                f"{', '.join(options)}: an extractive model does not generate text",
                "leave it out",
                code="not_supported",
            )
        self.settings = self._complete(settings)
        engine.check(self.settings)

    def _complete(self, settings: GenerationSettings) -> GenerationSettings:
        """The caller's settings, completed by the task's own and by the model's usual length."""
        usual = self.engine.facts.max_new_tokens or self.task.max_new_tokens
        wanted = {"max_new_tokens": usual} | self.task.generation_defaults(self.traits, usual)
        if settings.truncation_side is not None and self.task.truncation_side is None:
            raise UsageError(
                f"truncation_side has no effect on {self.task.name}, which drops its oldest messages",
                "leave it out",
                code="no_effect",
            )
        if settings.on_overflow == "truncate":  # set explicitly, so that a resumed run truncates the same side
            wanted["truncation_side"] = self.task.truncation_side
        longest = settings.max_new_tokens or wanted["max_new_tokens"]
        if "min_new_tokens" in wanted:
            wanted["min_new_tokens"] = min(wanted["min_new_tokens"], longest)
        return replace(settings, **{name: value for name, value in wanted.items() if getattr(settings, name) is None})

    def __repr__(self) -> str:
        facts = self.engine.facts
        where = "".join(
            f", {name}={value!r}" for name, value in (("device", facts.device), ("dtype", facts.dtype)) if value
        )
        return f"Pipeline(task={self.task.name!r}, model={facts.source.name!r}, head={str(facts.head)!r}{where})"

    @property
    def loaded(self) -> Loaded:
        """The model in this process."""
        assert isinstance(self.engine, TransformersEngine)
        return self.engine.loaded

    @property
    def max_new_tokens(self) -> int:
        """The output limit of the caller, or else of the task's settings, the model, or the task's default."""
        return self.settings.max_new_tokens or self.task.max_new_tokens

    @overload
    def __call__(
        self,
        row: str | Row,
        /,
        *,
        on_text: OnText | None = ...,
        on_reasoning: OnText | None = ...,
        cancelled: Callable[[], bool] = ...,
    ) -> Output: ...

    @overload
    def __call__(self, rows: list[str] | list[Row] | tuple[str | Row, ...], /) -> list[Output]: ...

    def __call__(
        self,
        row: str | Row | list[str] | list[Row] | tuple[str | Row, ...],
        /,
        *,
        on_text: OnText | None = None,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Output | list[Output]:
        """Answer one row, a text or a mapping with the task's columns; a list of rows is answered in batches.

        ``on_text`` receives the (first) answer piece by piece as it becomes final, ``on_reasoning`` the reasoning
        before it. ``cancelled`` is checked after every token; if true, the answer ends as ``interrupted``.
        """
        if isinstance(row, list | tuple) and not self.task.is_one_row(row):
            if on_text is not None or on_reasoning is not None or cancelled is not never:
                raise UsageError(
                    "on_text, on_reasoning and cancelled are for a single row", "leave them out", code="no_effect"
                )
            return list(self.map(row))
        one = cast(str | Row, row)
        try:
            session = self.session(rows=None if on_text is None else _ROWS_SHOWN)
            job = self.start(one, on_text, on_reasoning=on_reasoning, cancelled=cancelled)
            (answer,) = self._run([job], Scheduler(session))
        except Cancelled:
            raise KeyboardInterrupt from None
        if isinstance(answer, LlmkitError):
            raise unforeseen(answer) or answer  # the only row, so its error is raised
        return answer

    @overload
    def map(
        self,
        rows: Iterable[str | Row],
        /,
        *,
        window: int = ...,
        max_batch_tokens: int | None = ...,
        progress: bool = ...,
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
        progress: bool = ...,
    ) -> Iterator[Output | LlmkitError]: ...

    def map(
        self,
        rows: Iterable[str | Row],
        /,
        *,
        window: int = 256,
        max_batch_tokens: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
        progress: bool = True,
    ) -> Iterator[Output | LlmkitError]:
        """Answer rows lazily and in order.

        ``window`` rows at a time are buffered, sorted by length and run in batches; parts of long rows share batches
        with other rows. Greedy answers equal those of single calls; in half precision, batches can differ by rounding.

        Args:
            rows: texts, or mappings with the task's columns; any iterable, also an endless one.
            window: rows buffered in memory. A larger window makes better batches but delays the first answer.
            max_batch_tokens: rows of a batch times the longest, new tokens included; None estimates it from free
                memory. A batch that does not fit in memory is halved.
            errors: for a row that fails: ``raise`` after the rows before it were yielded, or ``yield`` the exception
                in place of the answer.
            progress: show a bar in a terminal or a notebook.
        """
        RowSettings(input=("-",), window=window, max_batch_tokens=max_batch_tokens)  # checks both
        if errors not in ("raise", "yield"):
            raise UsageError(f"errors={errors!r} is not valid", "choose raise or yield", code="invalid_value")
        return self._map(rows, window, self.session(max_batch_tokens), errors, progress=progress)

    def _map(
        self, rows: Iterable[str | Row], window: int, session: Session, errors: str, *, progress: bool
    ) -> Iterator[Output | LlmkitError]:
        iterator, number = iter(rows), 0
        with ProgressMeter(len(rows) if isinstance(rows, Sized) else None, "rows", shown=progress) as meter:
            while taken := list(islice(iterator, window)):
                for answer in self.answer_all(taken, session, number=number, progress=meter.advance_rows):
                    if errors == "raise" and isinstance(answer, LlmkitError):
                        raise answer
                    yield answer
                number += len(taken)

    def answer_all(
        self,
        rows: Sequence[str | Row],
        session: Session,
        *,
        number: int = 0,
        progress: Progress = lambda _rows, _tokens: None,
    ) -> list[Output | LlmkitError]:
        """Answer rows in memory; a row that fails yields its exception.

        If nothing was answered yet and all rows fail with the same unforeseen error, that error is raised.

        Args:
            session: runs the rows; see `session`.
            number: index of the first row in the whole run, part of the seed, so that no two batches sample alike.
            progress: called after each batch with the rows and tokens that were generated since the last call.
        """
        jobs = [attempt(partial(self.start, row, number=place)) for place, row in enumerate(rows, start=number)]
        answers = self._run(jobs, Scheduler(session, progress=progress))
        session.answered = session.answered or any(isinstance(answer, Output) for answer in answers)
        if not session.answered:
            raise_common([answer for answer in answers if isinstance(answer, LlmkitError)])
        return answers

    def session(self, max_batch_tokens: int | None = None, *, rows: int | None = None) -> Session:
        """A session that runs rows in batches of at most this many tokens; None estimates it from free memory."""
        return self.engine.session(max_batch_tokens, rows=rows)

    def stream(self, row: str | Row, /) -> StreamedOutput:
        """Answer one row piece by piece: iterate over the text; ``.output`` is set when the text has ended.

        The model runs in its own thread, which is slower on a CPU with few cores; ``on_text`` avoids that.
        """
        if self.settings.num_return_sequences > 1:
            raise UsageError(
                "several sequences cannot be streamed as one text", "call the pipeline instead", code="not_supported"
            )
        self.start(row)  # a bad row is refused here and not in the loop
        return StreamedOutput(self, row)

    def start(
        self,
        row: str | Row,
        on_text: OnText | None = None,
        *,
        number: int = 0,
        on_reasoning: OnText | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Job:
        """The work on a row, to be run by a `Scheduler`; `result` has its output.

        Raises:
            LlmkitError: the row cannot be used.
        """
        row = self.task.to_row(row)
        self.task.validate(row)
        row = in_language(self.task, row, self.prompt_options)

        def emit(text: str) -> None:
            job.shown += text
            if on_text is not None and text:
                on_text(text)

        reader = self.reader(emit, row)
        self.task.note_languages(row, reader)
        job = Job(
            reader,
            self.task.steps(row, reader),
            streams=on_text is not None,
            number=number,
            on_reasoning=on_reasoning,
            cancelled=cancelled,
        )
        return job

    def reader(self, emit: OnText, row: Row) -> ContextFitter:
        """The model as seen by the work on one row; ``emit`` receives the pieces of the answer."""
        options = self.few_shot.options_for(row)
        return ContextFitter(self.task, self.traits, options, self.engine, self.settings, emit)

    def _run(self, jobs: Sequence[Job | LlmkitError], scheduler: Scheduler) -> list[Output | LlmkitError]:
        good = [job for job in jobs if isinstance(job, Job)]
        scheduler.progress(len(jobs) - len(good), 0)
        scheduler.run(good)
        return [self.result(job) if isinstance(job, Job) else job for job in jobs]

    def result(self, job: Job) -> Output | LlmkitError:
        """The output of a job that has ended, or its error."""
        if job.error is not None:
            return job.error
        result = job.result
        assert result is not None
        if len(job.shown) < len(result.text):
            job.reader.emit(result.text[len(job.shown) :])
        last = next((raw for raw in job.raws if raw is not None), Generation(""))
        others = [
            self.output(
                other,
                raw.finish_reason,
                Usage(job.prompt_tokens, raw.tokens),
                still_thinking=raw.thinking,
                logprobs=raw.logprobs,
            )
            for other, raw in zip_longest(result.alternatives, last.alternatives, fillvalue=Generation(""))
            if isinstance(other, Result)
        ]
        usage = Usage(job.prompt_tokens, job.completion_tokens, job.cached_tokens)
        output = self.output(
            result,
            job.finish_reason,
            usage,
            truncated=job.truncated,
            still_thinking=job.thinking > 0,
            alternatives=tuple(others),
            logprobs=last.logprobs,
        )
        return self.noted(output, job.reader, job.cut, job.runaways, job.broken_calls)

    def output(
        self,
        result: Result,
        finish_reason: str,
        usage: Usage,
        *,
        truncated: int = 0,
        still_thinking: bool = False,
        alternatives: tuple[Output, ...] = (),
        logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Output:
        """A task's result with its provenance and usage."""
        source, head = self.engine.facts.source, self.engine.facts.head
        return Output(
            text=result.text,
            task=self.task.name,
            model=source.name,
            commit=source.named_commit,
            base_commit=source.commit if source.adapter else None,
            head=str(head),
            finish_reason=finish_reason,
            usage=usage,
            truncated=truncated,
            answered=result.answered,
            score=result.score,
            start=result.start,
            end=result.end,
            reasoning=result.reasoning,
            tool_calls=result.tool_calls,
            still_thinking=still_thinking,
            source_language=result.source_language,
            target_language=result.target_language,
            chunks=result.chunks,
            alternatives=alternatives,
            logprobs=logprobs,
            fields=self.task.output_fields,
        )

    def noted(
        self, output: Output, reader: ContextFitter, cut: int = 1, runaways: int = 0, broken_calls: int = 0
    ) -> Output:
        """An output with the notes collected for it, and the reason if it is incomplete."""
        notes = (*reader.notes, *self._ending(output, cut, runaways))
        if broken_calls:
            calls = "a tool call is" if broken_calls == 1 else f"{broken_calls} tool calls are"
            text = f"{calls} not parsed: broken, or part of the reasoning; try again, or another model"
            notes += (Note("tool_calls_broken", text),)
        return replace(output, notes=notes)

    def _ending(self, output: Output, cut: int, runaways: int) -> Iterator[Note]:
        """Notes on incomplete outputs.

        ``cut`` of the outputs for the parts of a long text were cut, and ``runaways`` were stopped as such.
        """
        everything = (output, *output.alternatives)
        if runaways:
            which = f"{runaways} of the partial outputs" if output.chunks else "the output"
            ends = "repeated itself over and over or became far too long, and was stopped"
            yield Note("output_runaway", f"{which} {ends}; try another model, or `repetition_penalty=1.2`")
        others = cut if output.chunks else sum(each.finish_reason == "length" for each in everything) - runaways
        if others > 0:
            if output.chunks:
                yield Note("output_cut", f"{cut} of the partial outputs reached their limit; raise `max_new_tokens`")
            elif output.usage.completion_tokens >= self.max_new_tokens or output.alternatives:
                yield Note(
                    "output_cut", f"stopped at {self.max_new_tokens} new tokens; raise `max_new_tokens` for more"
                )
            else:
                limit = self.engine.facts.context.tokens
                yield Note("context_full", f"stopped because the model's context of {limit} tokens is full")
        if any(each.still_thinking for each in everything):
            if output.finish_reason == "stop":
                text = "the model ended its reply after reasoning, without an answer; rephrase the prompt"
            else:
                text = "the model was still reasoning when it was stopped; raise `max_new_tokens`"
            yield Note("still_thinking", text)
