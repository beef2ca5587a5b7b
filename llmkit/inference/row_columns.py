"""The output record of a row: its other columns, then the answer or the error.

Knows columns, their names, and JSON. Does not know files, windows or models.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from difflib import get_close_matches
from itertools import islice
from typing import Any

from llmkit.config.settings import RowSettings
from llmkit.data.inputs import is_pipe, lines_offered
from llmkit.data.records import Record
from llmkit.data.shapes import look_up
from llmkit.errors import InputError, LlmkitError, UsageError
from llmkit.log import log
from llmkit.tasks import Chunk, Task
from llmkit.tasks.output import SCHEMA_VERSION, Note, Output, Usage
from llmkit.tasks.wording import PREFIX

__all__ = ["Layout", "SplitRow", "answer_record", "check_columns", "error_record", "note_codes", "with_columns"]

_LOOKED_AT = 20
"""One of the first this many rows must have the task's columns."""


def _to_json(name: str, value: Any) -> str:
    """A value as JSON; `InputError` names the column of a value that JSON cannot represent."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the column {name!r} cannot be written as JSON ({error})",
            "change or drop it in the file",
            code="column_mismatch",
        ) from error
    # A lone surrogate, which JSON can escape and UTF-8 cannot encode.
    return text if text.isascii() or _is_unicode(text) else json.dumps(value, allow_nan=False, default=_plain)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object) -> str:
    if isinstance(value, datetime | date | time_of_day):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} values")


def _line(parts: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_to_json(name, name)}: {text}" for name, text in parts.items()) + "}\n"


@dataclass
class SplitRow:
    """A row split into the task's fields and the other columns, which are written as JSON."""

    given: dict[str, Any] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    error: LlmkitError | None = None


def check_columns(columns: Mapping[str, str], task: Task) -> None:
    """Raise a `UsageError` for a mapping to a name that is neither a field of the task nor needed.

    Other columns are renamed only where their own name is taken.
    """
    known = (*task.columns, *task.optional_columns, task.target_column, *task.further_columns)
    taken = _output_names(task)
    for name, column in columns.items():
        if name not in known and column not in taken and column not in task.columns:
            near = get_close_matches(name, task.columns, n=1)
            raise UsageError(
                f"{name!r} is not a field of {task.name}",
                f"did you mean `column={near[0]}={column}`?" if near else f"choose from {', '.join(known)}",
                code="column_mismatch",
            )


class Layout:
    """The names under which columns are read and written."""

    def __init__(self, task: Task, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.needs = task.columns
        self.reads = (*task.columns, *task.optional_columns, PREFIX)
        self.further = task.further_columns
        self.taken = _output_names(task)
        self._names: dict[str, list[str]] = {}
        for name, column in columns.items():
            self._names.setdefault(column, []).append(name)

    def divide(self, record: Record) -> SplitRow:
        """Split a record's row; if it has an error, ``others`` holds only the columns that can be written."""
        if record.row is None:
            return SplitRow(error=record.error or InputError(f"{record.where} cannot be read", "fix it"))
        divided = SplitRow(error=record.error or self.misfit(record.row))
        for column, value in record.row.items():
            for name in self._names.get(column, (column,)):
                if name in self.reads or name in self.further:
                    divided.given[name] = value
                if name in self.reads:
                    continue
                if name not in self.taken and name not in divided.others:
                    try:
                        divided.others[name] = _to_json(name, value)
                    except InputError as error:
                        divided.error = divided.error or error
        for name, column in self.columns.items():
            if name in (*self.reads, *self.further) and name not in divided.given:
                divided.given[name] = look_up(record.row, column)
        return divided

    def misfit(self, row: Mapping[str, Any]) -> InputError | None:
        """The error in a row's column names, if any."""
        names = dict.fromkeys((*self.needs, *self.columns))
        if missing := [name for name in names if not _has(row, self.columns.get(name, name))]:
            lacking = ", ".join(repr(self.columns.get(name, name)) for name in missing)
            here = ", ".join(map(repr, row)) or "none"
            asked = self.columns.get(missing[0])
            near = get_close_matches(asked, map(str, row), n=1) if asked else ()
            place = _place(row, missing[0]) or (near[0] if near else "COLUMN")
            fix = f"did you mean `column={missing[0]}={place}`?" if near else f"name it: `column={missing[0]}={place}`"
            return InputError(f"no column {lacking} found (the columns: {here})", fix, code="column_mismatch")
        for name, column in self.columns.items():
            if name != column and name in row and name not in self._names:
                return InputError(
                    f"the column {column!r} is mapped to {name!r}, which exists already",
                    f"rename the other one too: `column=other_{name}={name}`",
                    code="column_mismatch",
                )
        for column in row:
            for name in self._names.get(column, (column,)):
                if name in self.taken and name not in self.reads:
                    return InputError(
                        f"the column {name!r} conflicts with an output field",
                        f"rename it: `column=input_{name}={column}`",
                        code="column_mismatch",
                    )
        return None


def _has(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row has a column; ``a.b`` looks into an object."""
    return column in row or look_up(row, column) is not None


def _place(row: Mapping[str, Any], name: str) -> str | None:
    """The path of a nested key with this name in a row."""
    for column, value in row.items():
        if isinstance(value, Mapping):
            inner = name if name in value else _place(value, name)
            if inner is not None:
                return f"{column}.{inner}"
    return None


def _output_names(task: Task) -> frozenset[str]:
    """The possible keys of an output record of the task."""
    filled = Output(
        text="",
        task=task.name,
        fields=task.output_fields,
        model="",
        commit=None,
        head="",
        finish_reason="",
        usage=Usage(0, 0),
        reasoning="…",
        tool_calls=({},),
        still_thinking=True,
        chunks=(Chunk(0, 0, ""),),
        base_commit="…",
        notes=(Note("output_cut", ""),),
    )
    return frozenset({*filled.to_dict(), "alternatives", "error"})


def answer_record(divided: SplitRow, answer: Output) -> str:
    """The output line of a row; `InputError` if it cannot be written as JSON."""
    return _line(divided.others | {name: _to_json(name, part) for name, part in answer.to_dict().items()})


def error_record(divided: SplitRow, where: str, error: LlmkitError) -> str:
    """The output line of a failed row."""
    about = _to_json("error", error.to_dict() | {"where": where})
    return _line({**divided.others, "schema_version": str(SCHEMA_VERSION), "error": about})


def note_codes(record: Mapping[str, Any]) -> set[str]:
    """The codes of a record's notes."""
    return {str(note["code"]) for note in record.get("notes", ())}


def with_columns(records: Iterator[Record], layout: Layout, settings: RowSettings) -> Iterator[Record]:
    """The records, after checking that one of the first rows has usable columns; otherwise one error for the file.

    At most one window of a pipe is inspected, since a user may be waiting for the first answer.
    """
    ahead = deque(islice(records, min(_LOOKED_AT, settings.window) if is_pipe(settings.input[0]) else _LOOKED_AT))
    misfits = [layout.misfit(record.row) for record in ahead if record.row is not None]
    if misfits and (first := misfits[0]) is not None and None not in misfits:
        name = "standard input" if settings.input == ("-",) else ", ".join(settings.input)
        with lines_offered(settings):
            raise first.reworded(f"{name}: {first.problem}")
    rows = [layout.divide(record).given for record in ahead if record.row is not None]
    if missing := [name for name in layout.further if rows and not any(name in row for row in rows)]:
        log.info("no row has the columns %s, which the template of the prompt uses", ", ".join(missing))
    return _chained(ahead, records)


def _chained(ahead: deque[Record], records: Iterator[Record]) -> Iterator[Record]:
    while ahead:
        yield ahead.popleft()
    yield from records
