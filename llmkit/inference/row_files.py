"""Runs a task over a file of rows: JSON Lines in the order of the rows, which can be resumed after a crash.

Knows how to resume a run that stopped at any byte, so that its output equals an uninterrupted run's, and how processes
share the rows. Does not know how rows are loaded (`llmkit.data.inputs`), answered (`llmkit.inference.pipeline`) and
written (`llmkit.inference.row_output`), how runs are compared (`llmkit.inference.run_manifest`), how processes are
started, or how progress is shown.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.paths import user_path
from llmkit.config.settings import LoadSettings, RowSettings
from llmkit.data import inputs
from llmkit.data.inputs import is_pipe
from llmkit.data.records import Record
from llmkit.engines.base import Session
from llmkit.engines.row_faults import attempt
from llmkit.errors import LlmkitError, UsageError
from llmkit.files import locked
from llmkit.inference.row_columns import (
    Layout,
    SplitRow,
    answer_record,
    check_columns,
    error_record,
    note_codes,
    with_columns,
)
from llmkit.inference.row_output import OutputLines, join_shards, manifest_of, shard_of, shards_of, writing
from llmkit.inference.run_manifest import describe_run, read_manifest, refuse_changes, write_manifest
from llmkit.log import log
from llmkit.tasks import Task
from llmkit.tasks.output import Output

if TYPE_CHECKING:
    from llmkit.inference.pipeline import Pipeline

__all__ = ["Report", "answer_file", "check_input", "check_output"]

_SUFFIXES = (".jsonl", ".ndjson")
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What this process did in this run; ``total``, ``errors`` and ``notes`` count all lines of the file.

    With several processes, the first one counts the whole output, and every other one the lines it contributed.
    """

    rows: int
    """Rows written in this run."""
    resumed: int
    """Rows found already written."""
    total: int
    errors: int
    """Error records among ``total``, including earlier runs."""
    notes: Mapping[str, int]
    """Number of rows among ``total`` with a note, by its code."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float


def check_output(settings: RowSettings) -> None:
    """Refuse an output that cannot be written or would be overwritten. Needs no model, so call it before loading one.

    Raises:
        UsageError: says what to change.
    """
    piped = any(map(is_pipe, settings.input))
    if piped and (settings.num_processes or 1) > 1:
        raise UsageError("a pipe cannot be shared among processes", "give a file as input", code="not_writable")
    if piped and settings.resume:
        raise UsageError("a pipe cannot be read again to resume", "give a file as input", code="not_writable")
    if settings.output is None:
        return
    output = Path(settings.output)
    _check_place(output)
    if any(Path(name).exists() and output.exists() and output.samefile(name) for name in settings.input):
        raise UsageError(f"{output} is the input", "name another `output`", code="not_writable")
    if settings.overwrite:
        return
    begun = next((path for path in (output, *shards_of(output)) if path.exists() and path.stat().st_size), None)
    if begun is None:
        return
    if not settings.resume:
        raise UsageError(
            f"{begun} exists", "continue it with `resume`", "replace it with `overwrite`", code="output_exists"
        )
    if not manifest_of(output).exists():
        raise UsageError(
            f"{begun} exists, but its manifest {manifest_of(output).name} does not",
            "name another `output`",
            "replace it with `overwrite`",
            code="resume_mismatch",
        )


def check_input(task: Task, settings: RowSettings, encoding: str | None) -> frozenset[str]:
    """The fields of the task that files of rows have; a pipe's are not known before it is read.

    Refuses files that are missing or do not have the task's columns, before a model is loaded.

    Raises:
        UsageError: says what to change.
    """
    check_columns(settings.columns(), task)
    if any(map(is_pipe, settings.input)):
        return frozenset()
    found = inputs.open_inputs(settings, task, encoding=encoding)
    with_columns(found.records, Layout(task, found.columns), settings)
    return frozenset(found.columns.keys() | found.detected.keys())


def _check_place(output: Path) -> None:
    if not output.name:
        raise UsageError(f"{output} is a folder", "name a file as `output`", code="not_writable")
    user_path(str(output.with_name(f"{output.name}.shard-00-of-00.lock")))  # the longest name beside it
    if output.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"{output}: JSON Lines are written, uncompressed",
            f"name a file in {' or '.join(_SUFFIXES)}",
            code="not_writable",
        )
    if not output.parent.is_dir():
        raise UsageError(
            f"the folder {output.parent} does not exist", "create it, or name another `output`", code="not_writable"
        )
    if output.exists() and not output.is_file():
        raise UsageError(
            f"{output} is {'a folder' if output.is_dir() else 'no plain file'}",
            "name another `output`",
            code="not_writable",
        )
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UsageError(
            f"{output} may not be written", "check the permissions, or name another `output`", code="not_writable"
        )


def answer_file(
    pipeline: Pipeline,
    settings: RowSettings,
    *,
    load: LoadSettings,
    encoding: str | None = None,
    progress: Progress = lambda _rows, _tokens: None,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> Report:
    """Answer the rows of ``settings.input``, a window at a time, into ``settings.output`` or to stdout.

    A row that cannot be answered becomes an error record in its place.

    Args:
        pipeline: the task on its model.
        settings: the rows, and how they are processed.
        load: what the model was loaded with; a resumed run must use the same.
        encoding: encoding of text input; None is UTF-8.
        progress: called with rows and tokens done since the last call, including rows found already done.
        rank: number of this process among those that share the rows. If one raises, the others have to be stopped.
        world: number of processes. Each answers every ``world``-th window; the first merges their outputs.
        barrier: returns when all processes have called it.

    Raises:
        InputError: the file has not the task's columns, or, with ``fail_fast``, the first bad row.
        UsageError: the output exists, is being written by another run, or is of another run than the one to resume.
        LlmkitError: the disk is full or cannot be written.
    """
    begun = time.monotonic()
    task = pipeline.task
    check_columns(settings.columns(), task)
    if world > 1 and any(map(is_pipe, settings.input)):
        raise UsageError("a pipe cannot be shared among processes", "give a file as input", code="not_writable")
    found = inputs.open_inputs(settings, task, encoding=encoding)
    layout = Layout(task, found.columns)
    if not rank:
        inputs.input_files(settings, log_skipped=True)
        for field, column in found.detected.items():
            if field != column:
                log.info("%s is read from the column %s", field, column)
    records = with_columns(found.records, layout, settings)
    if settings.output is None:
        session = pipeline.session(settings.max_batch_tokens)
        run = _Run(pipeline, layout, settings, OutputLines(None), session, progress)
        run.work_through(records)
        return run.report(begun)

    output = Path(settings.output)
    _check_place(output)  # otherwise the lock would create the folder
    shard = shard_of(output, rank, world) if world > 1 else output
    written = output if rank == 0 else shard
    with locked(Path(f"{written}.lock"), f"writing {written}", "wait for it, or name another `output`"):
        if rank == 0:
            describe = partial(describe_run, pipeline, settings, load, encoding=encoding, num_processes=world)
            with writing(output):
                _prepare(output, settings, describe, lambda: pipeline.session().max_batch_tokens)
        barrier()
        if world > 1 and output.exists() and output.stat().st_size:
            shard.unlink(missing_ok=True)  # left by a run that was killed after merging
            run = _Run(
                pipeline,
                layout,
                settings,
                OutputLines(output if rank == 0 else None),
                pipeline.session(1),
                progress,
                rank,
                world,
            )
            progress(run.resumed, 0)
            return run.report(begun)
        session = pipeline.session(read_manifest(manifest_of(output))["max_batch_tokens"])
        run = _Run(pipeline, layout, settings, OutputLines(shard), session, progress, rank, world)
        run.work_through(records)
        barrier()
        if world > 1 and rank == 0:
            with writing(output):
                join_shards(output, world, settings.window)
            run.lines = OutputLines(output)
        return run.report(begun)


# The run.


class _Run:
    """One process's pass over the rows, window by window.

    Windows start at fixed row numbers and are always answered in full, so that batches, and with them sampling and
    rounding, do not depend on where an earlier run ended.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        layout: Layout,
        settings: RowSettings,
        lines: OutputLines,
        session: Session,
        progress: Progress,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pipeline, self.layout, self.settings = pipeline, layout, settings
        self.lines, self.session, self.progress = lines, session, progress
        self.rank, self.world = rank, world
        self.resumed = self.left = lines.total
        self.rows = self.prompt_tokens = self.completion_tokens = 0

    def work_through(self, records: Iterator[Record]) -> None:
        """Answer the rows that are not written yet."""
        window = self.settings.window
        for number in count():
            taken = (
                self._window(records, number * window) if number % self.world == self.rank else _skip(records, window)
            )
            if taken < window:
                break
        self.lines.check()
        if self.left:
            raise UsageError(
                f"{self.lines.path} has more lines than the input has rows",
                "start over with `overwrite`",
                "name another `output`",
                code="resume_mismatch",
            )

    def report(self, begun: float) -> Report:
        return Report(
            rows=self.rows,
            resumed=self.resumed,
            total=self.lines.total,
            errors=self.lines.errors,
            notes=self.lines.notes,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            seconds=time.monotonic() - begun,
        )

    def _window(self, records: Iterator[Record], number: int) -> int:
        """Answer one window; returns its number of rows."""
        window = list(islice(records, self.settings.window))
        done = min(self.left, len(window))
        self.left -= done
        if done < len(window):
            self._answer(window, number, done)
        elif done:
            self.progress(done, 0)
        return len(window)

    def _answer(self, window: list[Record], number: int, done: int) -> None:
        """Answer all rows of a window, and write all but the first ``done``."""
        divided = [self._divided(record) for record in window]
        good = [row.given for row in divided if row.error is None]
        if bad := len(window) - len(good):
            self.progress(bad, 0)
        answers: Iterator[Output | LlmkitError] = iter(
            self.pipeline.answer_all(good, self.session, number=number, progress=self.progress) if good else ()
        )
        lines: list[str] = []
        errors, notes = 0, Counter[str]()
        failure: LlmkitError | None = None
        for place, (record, row) in enumerate(zip(window, divided, strict=True)):
            answer = row.error or next(answers)
            made = self._record(row, answer)
            if place < done:
                continue
            if isinstance(made, str):
                lines.append(made)
                notes.update(note_codes(answer.to_dict()) if isinstance(answer, Output) else ())
            elif self.settings.fail_fast:
                failure = _located(made, record.where)
                break
            else:
                lines.append(error_record(row, record.where, made))
                errors += 1
        self.lines.write(lines, errors, notes)
        self.rows += len(lines)
        if failure is not None:
            raise failure

    def _divided(self, record: Record) -> SplitRow:
        divided = attempt(lambda: self.layout.divide(record))
        return SplitRow(error=divided) if isinstance(divided, LlmkitError) else divided

    def _record(self, row: SplitRow, answer: Output | LlmkitError) -> str | LlmkitError:
        """The output line of an answer, or the error."""
        if isinstance(answer, LlmkitError):
            return answer
        self.prompt_tokens += answer.usage.prompt_tokens
        self.completion_tokens += answer.usage.completion_tokens
        return attempt(lambda: answer_record(row, answer))  # a NaN score is an error


def _skip(records: Iterator[Record], number: int) -> int:
    return sum(1 for _ in islice(records, number))


def _located(error: LlmkitError, where: str) -> LlmkitError:
    return error if where in error.problem else error.reworded(f"{where}: {error.problem}")


# The files beside the output.


def _prepare(
    output: Path, settings: RowSettings, describe: Callable[..., dict[str, Any]], batch_tokens: Callable[[], int]
) -> None:
    """Check that the run may be resumed, or clear the output for a new run and write its manifest."""
    check_output(settings)  # again: another run may have started while the model was loading
    manifest = manifest_of(output)
    if settings.resume and manifest.exists():
        before = read_manifest(manifest)
        now = describe(max_batch_tokens=settings.max_batch_tokens or before["max_batch_tokens"])
        refuse_changes(before, now)
        write_manifest(manifest, now)
        return
    # The manifest is removed last: leftover shards without one must not be mistaken for parts of this run.
    for path in (*shards_of(output), output, manifest):
        path.unlink(missing_ok=True)
    write_manifest(manifest, describe(max_batch_tokens=settings.max_batch_tokens or batch_tokens()))
