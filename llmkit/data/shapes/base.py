"""The base class of shapes: layouts of rows, how they are detected, and how they become rows of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmkit.config.recipe import SourceSection
from llmkit.data.column_names import find_column, look_up
from llmkit.errors import InputError
from llmkit.tasks import Task

__all__ = [
    "MISSING",
    "Aligned",
    "Found",
    "InputPlan",
    "Rows",
    "Shape",
    "Suggested",
    "by_name",
    "look_up",
    "nothing_fits",
    "renamed",
]

Rows = Sequence[Mapping[str, Any]]
Found = Iterator[tuple[str, dict[str, Any]]]
"""A suffix for the location of a row, and the row in the task's columns."""
Aligned = tuple[SourceSection, dict[str, str]]
"""A source of files with corresponding lines, and settings of the task."""
MISSING = object()


@dataclass(frozen=True)
class Suggested:
    """How rows can be converted to rows of a task."""

    source: dict[str, Any]
    """Keys of the source to set."""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings of the task."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputPlan:
    """How rows without a target become inputs of a task."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of each field of the task whose name differs."""
    convert: Callable[[Mapping[str, Any]], Found] | None = None
    """Converts a row first; its other columns stay."""


class Shape:
    """One layout of rows. A task lists the shapes that its data can have (`Task.shapes`)."""

    written: ClassVar[str]
    """Its name in recipes."""

    def align(self, names: Sequence[str], source: SourceSection, task: Task) -> Aligned | None:
        """Two files whose names differ in their suffix as one source; None if they are separate."""
        return None

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        """How to convert the rows; None if they have another shape.

        Raises:
            InputError: they have this shape, and a column is missing or ambiguous.
        """
        raise NotImplementedError

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        """How the rows become inputs at inference; None if they have another shape.

        Args:
            rows: the first rows.
            columns: columns that the caller has set for fields of the task, or for new names.

        Raises:
            InputError: the rows have this shape, and it is ambiguous which column to use.
        """
        return None

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        """The task's rows from one row; `InputError` if it cannot be converted."""
        raise NotImplementedError

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        """The paths of the columns that `convert` uses."""
        raise NotImplementedError


def by_name(row: Mapping[str, Any], wanted: Sequence[str], named: Mapping[str, str], task: Task) -> dict[str, str]:
    """A column for each wanted field, by its name; columns that are already set are kept."""
    found = {name: named[name] for name in wanted if name in named}
    for name in wanted:
        if (
            name not in found
            and (column := find_column(map(str, row), task.aliases.get(name, (name,)), found.values())) is not None
        ):
            found[name] = column
    return found


def renamed(found: Mapping[str, str], named: Mapping[str, str]) -> dict[str, str]:
    """The columns whose name differs from the field, or that were set."""
    return {name: column for name, column in found.items() if column != name or name in named}


def nothing_fits(rows: Rows, task: Task, needed: Sequence[str], fix: str = "") -> InputError:
    """The error of rows without columns for the needed fields."""
    columns = ", ".join(map(str, rows[0]))
    named = f"name them in the recipe: data.train.columns: {{{', '.join(f'{name}: …' for name in needed)}}}"
    return InputError(
        f"no column matches {' or '.join(needed)} of {task.name} (columns: {columns})",
        *([fix] if fix else [named, f"name one with `column={needed[0]}=COLUMN`"]),
        code="column_mismatch",
    )
