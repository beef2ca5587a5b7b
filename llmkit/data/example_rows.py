"""Few-shot examples of a task from a source in any layout of rows.

Knows that rows beside others usually have the same columns. Does not know how examples are chosen for a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.config.recipe import PythonRows, SourceSection
from llmkit.data.proposals import task_rows
from llmkit.data.shapes import look_up
from llmkit.data.sources import open_source
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Row, Task

__all__ = ["read_examples", "source_like"]


def read_examples(path: str, known: SourceSection, task: Task) -> tuple[Row, ...]:
    """The rows of a source in the columns of the task; ``known`` are other rows of the task.

    Raises:
        InputError: a row cannot be read, or has no answer.
    """
    rows: list[Row] = []
    for record in task_rows(source_like(path, known), task):
        if record.row is None:
            raise record.error or InputError(f"{record.where} cannot be read", "fix the row")
        if task.is_plain(record.row):
            names = " and ".join((*task.columns, task.target_column))
            raise InputError(
                f"{record.where} has no {task.target_column}, so that it is no example",
                f"name its columns {names}",
                code="column_mismatch",
            )
        rows.append(record.row)
    return tuple(rows)


def source_like(data: str | PythonRows, known: SourceSection, form: Mapping[str, Any] | None = None) -> SourceSection:
    """A source for a path or for rows, with the mapping of columns of another if it has the same columns.

    Args:
        form: settings of its format.

    Raises:
        UsageError: rows have no format.
    """
    mapping: dict[str, Any] = {name: getattr(known, name) for name in ("columns", "shape", "join", "quotes")}
    declared = {name: getattr(known, name) for name in ("column_names", "header", "delimiter")}
    if isinstance(data, PythonRows):
        if used := [f"`{name}`" for name in form or ()]:
            raise UsageError(f"{', '.join(used)} has no effect on rows", "leave it out", code="no_effect")
        plain, declared = SourceSection(rows=data), {}
        mapping.pop("quotes")
    else:
        plain = SourceSection(path=[data], encoding=known.encoding)
    for update in (mapping | declared, mapping):
        source = plain.model_copy(update=update | dict(form or {}))
        if known.columns and _has_columns(source):
            return source
    return plain.model_copy(update=dict(form or {}))


def _has_columns(source: SourceSection) -> bool:
    """Whether the first row has the mapped columns, and is not a header that was read as a row."""
    try:
        first = next((record.row for record in open_source(source) if record.row is not None), {})
    except InputError:
        return False  # no such columns or delimiter
    header = source.column_names is not None and list(first.values()) == list(first)
    return not header and all(look_up(first, column) is not None for column in source.columns.values())
