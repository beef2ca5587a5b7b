"""Proposals for data, from their first rows: file format, shape, and the mapping of columns.

A proposal is a source with all detected settings, which can be saved in a recipe. Shapes themselves are in
`llmkit.data.shapes`. Loads no more rows than necessary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.flags import refuse_preferences
from llmkit.data.preferences import method_for, with_one_answer
from llmkit.data.records import located
from llmkit.data.rows import Record, first_lines, is_rows, open_records
from llmkit.data.selection import Selection
from llmkit.data.shapes import mapped_rows, shapes_of
from llmkit.data.sources import aligned_files, files_of, layout_of, open_source
from llmkit.data.tables import table_format
from llmkit.errors import InputError
from llmkit.log import log
from llmkit.tasks import Task

__all__ = ["Proposal", "propose", "suggest_method", "task_rows"]

_SAMPLE = 200
"""Number of rows for detection."""
_SCAN = 100_000
"""Number of rows of a table by which it is decided whether its quotation marks enclose fields."""


@dataclass(frozen=True)
class Proposal:
    """How data can be converted to rows of a task."""

    source: SourceSection
    """With format, shape and columns set."""
    settings: dict[str, str]
    """Settings of the task: the languages of a translation."""
    notes: tuple[str, ...]
    """Notes on what was detected and what is not used."""


def task_rows(source: SourceSection, task: Task, selection: Selection | None = None) -> Iterator[Record]:
    """The rows of a source in the columns of a task; the shape is detected unless it is set."""
    if source.shape is None:
        proposal = propose(source, task)
        for note in proposal.notes:
            log.info("%s", note)
        source = proposal.source
    return mapped_rows(source, task, selection)


def suggest_method(source: SourceSection, task: Task) -> str | None:
    """The method of tuning on preferences that the first rows of a source are for; None if they have answers."""
    if source.aligned is not None or source.shape is not None:
        return None
    return method_for([row for _, row in _sample(_form(source, []))], source.columns, task)


def propose(source: SourceSection, task: Task) -> Proposal:
    """Detect how a source can be converted to rows of a task.

    Raises:
        InputError: no shape fits; the message lists the columns and how to map them.
    """
    notes: list[str] = []
    settings: dict[str, str] = {}
    shapes = shapes_of(task)
    names = aligned_files(source.path or ()) if source.aligned is None else []
    if pair := next((pair for shape in shapes if names and (pair := shape.align(names, source, task))), None):
        source, settings = pair
        notes.append("two files with corresponding lines")
    elif source.aligned is None:
        source = _form(source, notes)
    sample = _sample(source)
    rows = list(_with_one_answer(sample, source, task))
    named = {name: column for name, column in source.columns.items() if name in task.aliases}
    plain = source.model_copy(update={"columns": named})
    with located(sample[0][0]):  # the last shape raises an error about missing columns
        suggested = next(found for shape in shapes if (found := shape.suggest(plain, rows, task)) is not None)
    answers = {name: column for name, column in source.columns.items() if name not in named}
    columns = {**suggested.source.get("columns", named), **answers}
    proposed = source.model_copy(update={**suggested.source, "columns": columns})
    notes += suggested.notes
    if task.learns_from != "answers":
        more = "a rejected answer" if task.learns_from == "pairs" else "a label of their answer, or a rejected one"
        notes.append(f"rows have {more}")
    if unused := dict.fromkeys(
        name for record in islice(mapped_rows(proposed, task), _SAMPLE) for name in record.unused
    ):
        notes.append(f"not used: {', '.join(unused)}")
    return Proposal(proposed, settings or suggested.settings, tuple(notes))


def _with_one_answer(
    sample: Sequence[tuple[str, dict[str, Any]]], source: SourceSection, task: Task
) -> Iterator[dict[str, Any]]:
    """Rows without their worse answers, if the task learns from these; otherwise rows with such answers are refused."""
    for where, row in sample:
        with located(where):
            if task.learns_from == "answers":
                refuse_preferences(row, source.columns, task)
                yield row
            else:
                yield with_one_answer(row, source.columns, task)


def _sample(source: SourceSection) -> list[tuple[str, dict[str, Any]]]:
    """The first valid rows, with their locations."""
    records = list(islice(open_source(source), _SAMPLE))
    rows = [(record.where, record.row) for record in records if record.row is not None]
    if not records:
        raise InputError(f"no row fulfils where: {source.where}", "change the condition", code="no_rows")
    if not rows:
        raise records[0].error or InputError(f"{records[0].where} cannot be read", "fix the row")
    return rows


# The format of a file.


def _form(source: SourceSection, notes: list[str]) -> SourceSection:
    """The source with its format set, if the suffix does not show it."""
    files = files_of(source)
    if not files or source.format not in (None, "csv", "tsv"):
        return source
    path, found = files[0], {}
    suffix = path.suffix.lower() if path.suffix.lower() != ".gz" else Path(path.stem).suffix.lower()
    kind = source.format or suffix.removeprefix(".")
    if source.format is None and (suffix == ".txt" or not is_rows(path)):
        if found_kind := _table_format(path, source):
            kind = found_kind
            notes.append(f"its lines are rows of a table, so it is parsed as {kind.upper()}")
        elif not is_rows(path):
            kind = "txt"
        if kind != suffix.removeprefix("."):
            found["format"] = kind
    if kind in ("csv", "tsv") and source.column_names is None and source.header is None:
        found |= _header(path, source, kind, notes)
    source = source.model_copy(update=found)
    if kind in ("csv", "tsv") and source.quotes and _quotes_enclose_nothing(source):
        notes.append("quotation marks belong to the text and do not enclose fields")
        source = source.model_copy(update={"quotes": False})
    return source


def _table_format(path: Path, source: SourceSection) -> str | None:
    """``csv`` or ``tsv`` of plain text that is a table."""
    if source.sample_by is not None:
        return None
    if source.header is not None or source.delimiter is not None:
        return "csv"
    return table_format(first_lines(path, _SAMPLE, encoding=source.encoding), source.columns.values())


def _header(path: Path, source: SourceSection, kind: str, notes: list[str]) -> dict[str, Any]:
    """The setting of a table whose first row is data."""
    layout = replace(layout_of(source), format=kind)
    record = next((each for each in open_records(path, encoding=source.encoding, layout=layout) if each.row), None)
    if record is None or record.row is None:
        return {}
    names = list(record.row)
    invented = [f"column{number}" for number in range(1, len(names) + 1)]
    first = "".join(first_lines(path, 1, encoding=source.encoding))
    if names != invented or first.strip('"').startswith(invented[0]):
        return {}
    notes.append(f"the first row is data, not a header, so the columns are named {', '.join(names)}")
    return {"header": False}


def _quotes_enclose_nothing(source: SourceSection) -> bool:
    """Whether rows can be parsed only if quotation marks are ordinary characters."""
    source = source.model_copy(update={"where": None})  # whose errors are not about quotation marks
    if not any(record.row is None for record in islice(open_source(source), _SCAN)):
        return False
    plain = source.model_copy(update={"quotes": False})
    cells = [str(value) for record in islice(open_source(plain), _SAMPLE) for value in (record.row or {}).values()]
    quoted = [cell[1:-1] for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
    if 2 * len(quoted) > len(cells) or any('\\"' in text for text in quoted):
        return False  # they enclose fields, and inner ones are written as \\" or not at all
    bad = sum(record.row is None for record in islice(open_source(source), _SCAN))
    return sum(record.row is None for record in islice(open_source(plain), _SCAN)) < bad
