"""``--input``: the commands of the tasks over a file of rows. Progress on standard error, and the exit code."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import typer

from llmkit.cli import processes
from llmkit.cli.options import Stopped, flags
from llmkit.errors import UsageError
from llmkit.log import log, warn
from llmkit.models.processes import Worker, is_distributed, join_process_group, on_cpu
from llmkit.progress import ProgressMeter

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmkit.config.settings import GenerationSettings, LoadSettings, RowSettings
    from llmkit.inference.row_files import Report
    from llmkit.tasks import PromptOptions, Task

__all__ = ["answer_rows"]

SOME_FAILED = 3


def answer_rows(
    task: Task,
    rows: RowSettings,
    load: LoadSettings,
    generation: GenerationSettings,
    prompt_options: PromptOptions,
    *,
    encoding: str | None,
    instead: dict[str, Any],
) -> None:
    """Answer every row of a file. Exits with code 3 if some rows failed.

    ``instead`` holds the options and arguments that have no effect on a file of rows.
    """
    from llmkit.inference.row_files import check_input, check_output

    if useless := [name for name, value in instead.items() if value not in (None, False)]:
        raise UsageError(
            f"{', '.join(useless)} has no effect on a file of rows",
            "leave it out, or leave --input out",
            code="no_effect",
        )
    check_output(rows)
    fields = check_input(task, rows, encoding)
    if (rows.num_processes or 1) > 1 and not is_distributed():
        raise typer.Exit(processes.start(rows.num_processes or 1, flags.arguments, on_cpu=on_cpu(load.device)))
    member = join_process_group(rows.num_processes, load.device) if is_distributed() else Worker()
    report = _run(task, rows, load, generation, prompt_options, encoding, member, fields)
    if member.rank:
        return
    _tell(report, rows, member.world)
    if report.errors:
        raise typer.Exit(SOME_FAILED)


def _run(
    task: Task,
    rows: RowSettings,
    load: LoadSettings,
    generation: GenerationSettings,
    prompt_options: PromptOptions,
    encoding: str | None,
    member: Worker,
    fields: Collection[str],
) -> Report:
    from llmkit.api import build_pipeline
    from llmkit.inference.row_files import answer_file

    pipeline = build_pipeline(task, load, generation, prompt_options, fields=fields, fallback=False)
    shown = not member.rank and log.isEnabledFor(logging.INFO)
    total = _count(rows, task, encoding, member) if shown else None
    try:
        with ProgressMeter(total, "rows", shown=shown) as meter:
            return answer_file(
                pipeline,
                rows,
                load=load,
                encoding=encoding,
                progress=meter.advance_rows,
                rank=member.rank,
                world=member.world,
                barrier=member.barrier,
            )
    except (KeyboardInterrupt, Stopped):
        if rows.output is not None and "-" not in rows.input and not member.rank:
            log.warning("stopped; continue with the same command and --resume")
        raise


def _count(rows: RowSettings, task: Task, encoding: str | None, member: Worker) -> int | None:
    """Number of rows for this process; None for a pipe, which can be read only once."""
    from llmkit.data.inputs import is_pipe, open_inputs

    if any(map(is_pipe, rows.input)):
        return None
    total = sum(1 for _ in open_inputs(rows, task, encoding=encoding).records)
    return -(-total // member.world)


def _tell(report: Report, rows: RowSettings, world: int) -> None:
    seconds = max(report.seconds, 1e-3)
    before = f", {report.resumed} were there already" if report.resumed else ""
    if world > 1:
        log.info("%d rows in %.1f s by %d processes", report.total, seconds, world)
    else:
        log.info(
            "%d rows in %.1f s (%.1f rows/s, %.0f tokens/s)%s",
            report.rows,
            seconds,
            report.rows / seconds,
            report.completion_tokens / seconds,
            before,
        )
    where = rows.output or "the output"
    if report.notes:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(report.notes.items()))
        warn("answers_with_notes", "of %d answers %s; see 'notes' in %s", report.total, counts, where)
    if report.errors:
        warn(
            "rows_failed", "%d of %d rows could not be answered; see 'error' in %s", report.errors, report.total, where
        )
    if rows.output is not None:
        log.info("the answers are in %s", rows.output)
