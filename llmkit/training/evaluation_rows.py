"""The rows of an evaluation: a recipe's validation rows, or others, with the options of the caller about them.

Knows how sources, columns and formats are chosen, and which rows are skipped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from llmkit.config.paths import user_path
from llmkit.config.recipe import PythonRows, Recipe, SourceSection
from llmkit.data.example_rows import read_examples, source_like
from llmkit.data.proposals import task_rows
from llmkit.data.records import Record
from llmkit.data.selection import Selection
from llmkit.errors import InputError, UsageError
from llmkit.evaluation.results import ORIGIN
from llmkit.log import log, warn
from llmkit.tasks import Row, Task
from llmkit.tasks.base import LABEL
from llmkit.training.dataset import divide
from llmkit.training.recipe_model import open_task
from llmkit.training.row_table import Rows, read_rows
from llmkit.training.source_tasks import recipe_of

__all__ = ["RowChoice", "evaluation_records", "example_rows", "separated_rows"]


@dataclass(frozen=True)
class RowChoice:
    """The caller's options about the rows."""

    data: str | PythonRows | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    header: bool | None = None
    delimiter: str | None = None

    def form(self) -> dict[str, Any]:
        """The options about files that were set."""
        given = {"encoding": self.encoding, "header": self.header, "delimiter": self.delimiter}
        return {name: value for name, value in given.items() if value is not None}


def _check_columns(columns: Mapping[str, str], task: Task) -> None:
    fields = dict.fromkeys((*task.aliases, *task.columns, task.target_column))
    if unknown := next((name for name in columns if name not in fields), None):
        raise UsageError(
            f"`column={unknown}={columns[unknown]}`: {task.name} has no field {unknown}",
            f"write FIELD=COLUMN; its fields: {', '.join(fields)}",
            code="column_mismatch",
        )


def evaluation_records(
    recipe: Recipe, task: Task, choice: RowChoice, mine: Sequence[SourceSection]
) -> tuple[Iterator[Record], str]:
    """The rows to evaluate on, and their name; ``mine`` are the recipe's sources of such rows.

    Raises:
        UsageError: the recipe has no validation rows, or an option has no effect on them.
        InputError: rows cannot be read, when the iterator gets there.
    """
    _check_columns(choice.columns, task)
    if choice.data is not None:
        sources = [_source_for(choice.data, mine[0] if mine else SourceSection(path=["x"]), choice)]
    elif not mine:
        raise UsageError(
            f"no source of the recipe has rows of {task.name} with these settings",
            "name rows with `data`",
            "use the settings of a source",
        )
    elif recipe.data.validation is not None:
        sources = [_changed(source, choice) for source in mine]
    elif recipe.data.validation_fraction is None:
        raise UsageError(
            "the recipe has no validation data", "name rows with `data`", "set data.validation in the recipe"
        )
    elif choice.columns or choice.form():
        raise UsageError(
            "the validation rows are part of the training data, so they have its columns and format",
            "set data.train.columns or data.train.encoding in the recipe",
            "name other rows with `data`",
        )
    else:
        return _held_back(recipe, mine), f"{_source_stem(mine[0])}-held-back"
    return _with_advice(sources, task), _source_stem(sources[0])


def _with_advice(sources: Sequence[SourceSection], task: Task) -> Iterator[Record]:
    """The rows; errors about columns also name the option for them, since there may be no recipe."""
    selection = Selection()
    with _advising(task):
        for record in chain.from_iterable(task_rows(source, task, selection) for source in sources):
            yield record if record.error is None else replace(record, error=_advised(record.error, task))
        for key, count in selection.left_out.items():
            log.info("%d rows are left out by %s", count, key)


@contextmanager
def _advising(task: Task) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise _advised(error, task) from error


def _advised(error: InputError, task: Task) -> InputError:
    fields = ", ".join(dict.fromkeys((*task.columns, task.target_column)))
    if error.code != "column_mismatch":
        return error
    return error.reworded(error.problem, f"name the column of a field ({fields}) with `column=FIELD=COLUMN`")


def _changed(source: SourceSection, choice: RowChoice) -> SourceSection:
    update: dict[str, Any] = {"columns": {**source.columns, **choice.columns}}
    return source.model_copy(update=update | choice.form())


def _source_for(data: str | PythonRows, known: SourceSection, choice: RowChoice) -> SourceSection:
    """A source for other rows than the recipe's, with the recipe's mapping of columns if their columns are the same."""
    return _changed(source_like(data, known, choice.form()), choice)


def example_rows(path: str, recipe: Recipe, task: Task, choice: RowChoice) -> tuple[Row, ...]:
    """Few-shot examples, with the mapping of columns of the evaluated rows if they have the same columns.

    Raises:
        InputError: a row cannot be read.
    """
    with _advising(task):
        return read_examples(path, _changed(recipe_of(recipe, task.name).data.train[0], choice), task)


def _source_stem(source: SourceSection) -> str:
    """The name of a source without folders and suffixes."""
    if source.rows is not None:
        return f"{source.rows.kind}-{source.rows.sha256[:8]}"
    first = (source.path or list((source.aligned or {}).values()))[0]
    local = user_path(first).exists()
    return Path(first).name.split(".")[0] or first if local else first


def _held_back(recipe: Recipe, sources: Sequence[SourceSection]) -> Iterator[Record]:
    """The rows of sources that training does not use."""
    rows = read_rows(recipe.data.train, open_task(recipe))
    _, held = divide(recipe, rows)
    mine = {number for number, source in enumerate(recipe.data.train) if any(source is each for each in sources)}
    lines = {index: line for index in held if (line := rows.table[index])["source"] in mine and line["row"]}
    others = _other_columns(recipe, rows, lines) if any(line["unused"] for line in lines.values()) else {}
    return (
        Record(line["where"], json.loads(line["row"]), None, tuple(line["unused"]), others.get(index, {}))
        for index, line in lines.items()
    )


def _other_columns(recipe: Recipe, rows: Rows, held: Collection[int]) -> dict[int, Mapping[str, Any]]:
    """The columns that the task does not use, by the number of the row; the table of rows has their names only."""
    selection = Selection()
    sources = zip(recipe.data.train, rows.tasks, strict=True)
    records = chain.from_iterable(task_rows(source, task, selection) for source, task in sources)
    return {number: record.others for number, record in enumerate(records) if number in held}


def separated_rows(records: Iterable[Record], recipe: Recipe, task: Task) -> Iterator[dict[str, Any]]:
    """Rows with the target separate from the input; bad ones are skipped only if the recipe says so."""
    skipped, unused, undesirable = Counter[str](), Counter[str](), 0
    for record in records:
        if record.row is not None and record.row.get(LABEL) is False and task.learns_from == "labels":
            undesirable += 1
            continue
        row, error, key = None, record.error, "on_bad_row: skip"
        policy: str = recipe.data.on_bad_row
        try:
            if record.row is not None and (row := task.without_target(record.row)) is None:
                key, policy = "on_no_label: drop", recipe.data.on_no_label
                error = InputError(f"{record.where} has no reference reply", f"leave it out with data.{key}")
        except InputError as failure:
            error = failure.reworded(f"{record.where}: {failure.problem}")
        if row is not None:
            assert record.row is not None
            unused.update(name for name in record.unused if name not in record.others)  # the others are in the results
            known = {"where": record.where, "id": record.row.get("id"), "others": record.others}
            yield {**row, ORIGIN: {name: value for name, value in known.items() if value not in (None, {})}}
        elif policy == "error":
            error = error or InputError(f"{record.where} cannot be read", "fix it")
            more = "" if key in error.fix else f"skip such rows with data.{key}"
            raise error.reworded(error.problem, more)
        else:
            skipped[key] += 1
    for key, count in skipped.items():
        warn("rows_skipped", "%d rows skipped (data.%s)", count, key)
    if undesirable:
        log.info("%d rows are left out: their answers are undesirable, and so no references", undesirable)
    if unused:
        log.info("unused: %s", ", ".join(f"{name} ({count} rows)" for name, count in unused.items()))
