"""Conversion of rows from their original layout to the columns of a task.

A shape detects and converts one layout of rows; a task lists the shapes that its data can have. Does not know files
(`llmkit.data.sources`) or their formats (`llmkit.data.proposals`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.config.row_condition import RowCondition
from llmkit.data.conversations import is_empty, unused_in_turns
from llmkit.data.flags import obeyed_flags, refuse_flagged, refuse_preferences
from llmkit.data.preferences import answers_of
from llmkit.data.rows import Record
from llmkit.data.selection import Selection
from llmkit.data.shapes.base import InputPlan, Shape, Suggested, look_up
from llmkit.data.shapes.columns import Columns, LongAndShort, TextOrPair
from llmkit.data.shapes.languages import LanguagePair
from llmkit.data.shapes.questions import Questions, Squad
from llmkit.data.shapes.row_languages import Translations
from llmkit.data.shapes.turns import Alpaca, Messages, PairOfTurns
from llmkit.data.sources import open_source
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Task
from llmkit.tasks.base import LABEL
from llmkit.tasks.wording import PREFIX

__all__ = ["SHAPES", "InputPlan", "Shape", "Suggested", "converter", "look_up", "mapped_rows", "shapes_of"]

SHAPES: dict[str, Shape] = {
    "columns": Columns(),
    "long and short": LongAndShort(),
    "text or pair": TextOrPair(),
    "questions": Questions(),
    "squad": Squad(),
    "messages": Messages(),
    "pair of turns": PairOfTurns(),
    "alpaca": Alpaca(),
    "languages": LanguagePair(),
    "translations": Translations(),
}
"""The shapes by their names in `Task.shapes`."""


def shapes_of(task: Task) -> list[Shape]:
    """The shapes that a task's data can have."""
    if unknown := next((name for name in task.shapes if name not in SHAPES), None):
        raise UsageError(f"{task.name} lists the shape {unknown!r}", f"choose from {', '.join(SHAPES)}")
    return [SHAPES[name] for name in task.shapes]


def mapped_rows(source: SourceSection, task: Task, selection: Selection | None = None) -> Iterator[Record]:
    """The rows of a source of known shape, in the columns of the task. A bad row becomes a record with an error.

    Args:
        selection: shared by several sources; counts the rows left out.
    """
    selection = selection or Selection()
    convert = converter(source, task)
    records = (each for record in open_source(source, selection) for each in convert(record))
    return selection.without_duplicates(records, source.deduplicate, task)


def converter(source: SourceSection, task: Task) -> Callable[[Record], Iterator[Record]]:
    """The function that turns a record of a source of known shape into records in the columns of the task."""
    shape = _shape_of(source, task)
    prefix = {} if source.prefix is None else {PREFIX: source.prefix}
    selecting = [] if source.where is None else RowCondition(source.where).columns

    def converted(record: Record) -> Iterator[Record]:
        if record.row is None:
            yield record
            return
        try:
            for suffix, original, row in _rows(record.row, shape, source, task):
                further = _further(original, row, task)
                row = {**row, **further, **prefix}
                used = {*shape.used(original, source, task), *further}
                others = {name: value for name, value in original.items() if name not in used}
                refuse_flagged(others, row, task)
                unused = _unused(original, {*used, *selecting, *obeyed_flags(others, row, task)})
                yield Record(record.where + suffix, row, unused=tuple(unused), others=others)
        except InputError as error:
            yield Record(record.where, None, error.reworded(f"{record.where} {error.problem}"))

    return converted


def _rows(
    record: dict[str, Any], shape: Shape, source: SourceSection, task: Task
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The task's rows of a record: a suffix for the location, the columns that the row is made from, and the row."""
    if task.learns_from == "answers":
        refuse_preferences(record, source.columns, task)
        yield from ((suffix, record, row) for suffix, row in shape.convert(record, source, task))
        return
    columns = {name: column for name, column in source.columns.items() if name in task.aliases}
    plain = source.model_copy(update={"columns": columns})
    for chosen, other in answers_of(record, source.columns, task):
        for suffix, row in shape.convert(chosen, plain, task):
            if isinstance(other, bool):
                yield suffix, chosen, {**task.as_labelled(row), LABEL: other}
                continue
            ((_, rejected),) = shape.convert(other, plain, task)
            yield suffix, chosen, task.as_pair(row, rejected)


def _further(record: Mapping[str, Any], row: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """The columns that the prompt's template uses in addition to the task's."""
    return {name: record[name] for name in task.further_columns if name not in row and record.get(name) is not None}


def _shape_of(source: SourceSection, task: Task) -> Shape:
    """The shape that the source sets; by default, and for "columns", the first of the task with columns."""
    shapes = shapes_of(task)
    written = source.shape or "columns"
    found = next((shape for shape in shapes if shape.written == written), None)
    if found is None and written != "columns":
        known = ", ".join(dict.fromkeys(shape.written for shape in shapes))
        raise UsageError(f"shape: {written} is not for {task.name}", f"leave it out, or choose from {known}")
    return found or shapes[0]


def _unused(row: Mapping[str, Any], used: Collection[str]) -> Iterator[str]:
    """The columns with content that are not used; of a list of turns or questions, the fields that are not used."""
    for name, value in row.items():
        inner = {path.partition(".")[2] for path in used if path.startswith(f"{name}.")}
        if is_empty(value):
            continue
        if name in used:
            yield from (f"{name}.{field}" for field in unused_in_turns(value if isinstance(value, list) else ()))
        elif inner and isinstance(value, Mapping):
            yield from (f"{name}.{field}" for field in _unused(value, inner))
        else:
            yield str(name)
