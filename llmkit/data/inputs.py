"""The rows of input files for inference, by the readers and shapes of training but without targets.

Knows which files an input means, and how their rows become the task's. Columns that no field of the task uses stay in
the rows. Does not know what an output record has (`llmkit.inference.row_columns`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.settings import RowSettings
from llmkit.data import rows as data_rows
from llmkit.data.documents import DOCUMENTS, document_text
from llmkit.data.records import Layout, Record, located
from llmkit.data.shapes import InputPlan, look_up, shapes_of
from llmkit.data.sources import expand
from llmkit.data.text import read_bytes
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Task

__all__ = ["Inputs", "input_files", "is_pipe", "lines_offered", "open_inputs"]

_LOOKED_AT = 20
"""The first rows, by which the shape is detected."""


def is_pipe(name: str) -> bool:
    """Whether an input is standard input or a named pipe, which can be read only once."""
    return name == "-" or Path(name).is_fifo()


def input_files(settings: RowSettings, *, log_skipped: bool = False) -> list[str]:
    """The files of an input: named, in folders, or matched by patterns; without outputs of earlier runs."""
    if "-" in settings.input and len(settings.input) > 1:
        raise UsageError("standard input cannot be read among files", "name files only", "name `input=-` alone")
    output = None if settings.output is None else Path(settings.output).absolute()
    found: list[str] = []
    for name in settings.input:
        if _is_several(name):
            found += [
                str(path) for path in expand(name, log_skipped=log_skipped, also=DOCUMENTS) if path.absolute() != output
            ]
        else:
            found.append(name)
    if not found:
        raise InputError(f"{settings.input[0]} holds no rows", "name other files", code="no_rows")
    return list(dict.fromkeys(found))


def _is_several(name: str) -> bool:
    """Whether a name is a folder or a pattern."""
    return (name != "-" and not Path(name).exists() and any(sign in name for sign in "*?[")) or user_path(name).is_dir()


@dataclass(frozen=True)
class Inputs:
    """The rows of an input."""

    records: Iterator[Record]
    columns: Mapping[str, str]
    """The columns that the caller has set, as far as they are still to be renamed."""
    detected: Mapping[str, str]
    """The columns of fields that were detected; the rows have them under the fields' names."""


def open_inputs(settings: RowSettings, task: Task, *, encoding: str | None) -> Inputs:
    """The rows in order, with the fields of the task.

    The shape and the columns are detected in the first rows; of a pipe, in at most one window, since a user may be
    waiting for the first answer.

    Raises:
        InputError: a file cannot be read, or it is ambiguous which column to use.
    """
    records, columns = _records(settings, task, encoding), settings.columns()
    with lines_offered(settings):
        ahead = deque(islice(records, min(_LOOKED_AT, settings.window) if is_pipe(settings.input[0]) else _LOOKED_AT))
        plan = _plan(ahead, columns, task)
    detected = {name: column for name, column in plan.columns.items() if name not in columns}
    records = _converted(_consumed(ahead, records), plan, detected, task.optional_columns)
    left = {name: column for name, column in plan.columns.items() if name in columns}
    return Inputs(islice(records, settings.max_rows), left, detected)


@contextmanager
def lines_offered(settings: RowSettings) -> Iterator[None]:
    """Add a remedy to errors about the columns of a table, if it may be plain text that was taken for one."""
    try:
        yield
    except InputError as error:
        about_columns = error.code in ("column_mismatch", "ambiguous_header")
        if not about_columns or settings.sample_by is not None or not _is_text(settings.input[0]):
            raise
        raise error.reworded(error.problem, "pass `sample_by=line` if its lines are texts") from error


def _is_text(name: str) -> bool:
    """Whether an input is plain text unless its lines are rows."""
    return name == "-" or Path(name.removesuffix(".gz")).suffix.lower() == ".txt"


def _plan(ahead: deque[Record], columns: dict[str, str], task: Task) -> InputPlan:
    rows = [record.row for record in ahead if record.row is not None]
    for shape in shapes_of(task) if rows else ():
        with located(next(record.where for record in ahead if record.row is not None)):
            if (plan := shape.plan_input(rows, columns, task)) is not None:
                return plan
    return InputPlan(columns)


def _consumed(ahead: deque[Record], records: Iterator[Record]) -> Iterator[Record]:
    while ahead:
        yield ahead.popleft()
    yield from records


def _converted(
    records: Iterator[Record], plan: InputPlan, detected: Mapping[str, str], optional: Collection[str]
) -> Iterator[Record]:
    for record in records:
        if record.row is None:
            yield record
            continue
        try:
            for suffix, row in plan.convert(record.row) if plan.convert else [("", record.row)]:
                yield replace(record, where=record.where + suffix, row=_renamed(row, detected, optional))
        except InputError as error:
            yield replace(record, error=error.reworded(f"{record.where} {error.problem}"))


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str], optional: Collection[str]) -> dict[str, Any]:
    """The row with columns under the names of fields that it lacks; of an object's field, a copy.

    ``optional`` fields may be empty.
    """
    found = {name: look_up(row, column) for name, column in columns.items() if name not in row}
    found = {name: value for name, value in found.items() if value is not None or name in optional}
    return {name: value for name, value in row.items() if name not in {columns[field] for field in found}} | found


def _records(settings: RowSettings, task: Task, encoding: str | None) -> Iterator[Record]:
    columns = settings.columns()
    files = input_files(settings)
    text_column = columns.get(task.input_column, task.input_column)
    several = len(files) > 1 or _is_several(settings.input[0])
    texts = set(filter(_is_text, files))
    if settings.sample_by is not None and not texts:
        raise UsageError("no input file is plain text, so `sample_by` has no effect", "leave it out", code="no_effect")
    for name in files:
        if Path(name).suffix.lower() in DOCUMENTS:
            yield _document(name, text_column, encoding, keep_html=not task.takes_document)
            continue
        sample_by = settings.sample_by or ("document" if several else "line")
        layout = Layout(
            format=_format(settings) if name in texts else None,
            header=settings.header,
            delimiter=settings.delimiter,
            named=frozenset(columns.values()),
            sample_by=sample_by if name in texts else "line",
            finds_tables=settings.sample_by is None,
        )
        found = data_rows.open_records(name, encoding=encoding, text_column=text_column, layout=layout)
        if several and name in texts:
            found = (replace(record, row=record.row and {**record.row, "file": name}) for record in found)
        yield from _with_empty(found, name) if several else found


def _format(settings: RowSettings) -> str | None:
    """The format of plain text and of standard input that the settings imply."""
    if settings.sample_by is not None:
        return "txt"
    return None if settings.header is None and settings.delimiter is None else "csv"


def _document(name: str, column: str, encoding: str | None, *, keep_html: bool) -> Record:
    """The row of a file that is one document."""
    try:
        text = document_text(read_bytes(Path(name)), name, encoding, keep_html=keep_html)
    except InputError as error:
        return Record(name, None, error)
    return Record(name, {column: text, "file": name})


def _with_empty(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The records of one of several files; an error record in place of a file without rows."""
    try:
        yield from records
    except InputError as error:
        if error.code != "no_rows":
            raise
        yield Record(name, None, error)
