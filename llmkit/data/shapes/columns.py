"""Rows with a column for each field of the task, found by their names or by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.conversations import is_empty, turn_columns
from llmkit.data.shapes.base import (
    MISSING,
    Found,
    InputPlan,
    Rows,
    Shape,
    Suggested,
    by_name,
    look_up,
    nothing_fits,
    renamed,
)
from llmkit.data.sources import files_of
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.text.scripts import is_unspaced

__all__ = ["Columns", "LongAndShort", "TextOrPair", "texts_of"]

_BEGINNING = 12
"""Shared characters at the beginning, above which texts are notes."""


class Columns(Shape):
    """Each field of the task is a column of the rows."""

    written = "columns"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        wanted = (*task.columns, task.target_column)
        found = self._find(rows, wanted, source.columns, task)
        if needed := [name for name in wanted if name not in found]:
            raise nothing_fits(rows, task, needed)
        return self._suggested(source, rows, task, renamed(found, source.columns))

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        found = by_name(rows[0], task.columns, columns, task)
        return InputPlan({**renamed(found, columns), **columns}) if len(found) == len(task.columns) else None

    def _find(self, rows: Rows, wanted: Sequence[str], named: Mapping[str, str], task: Task) -> dict[str, str]:
        return by_name(rows[0], wanted, named, task)

    def _suggested(
        self,
        source: SourceSection,
        rows: Rows,
        task: Task,
        columns: Mapping[str, str],
        settings: Mapping[str, str] | None = None,
    ) -> Suggested:
        """The suggestion, with a separator for lists of texts and notes on lists of targets."""
        update: dict[str, Any] = {"shape": self.written, "columns": dict(columns)}
        inputs = [columns.get(name, name) for name in task.aliases if name != task.target_column]
        lists = [value for column in inputs for row in rows if _is_texts(value := look_up(row, column)) and value]
        if source.join is None and lists:
            update["join"] = self._joining(lists[0][0])
        target = columns.get(task.target_column, task.target_column)
        several = any(isinstance(value := look_up(row, target), list) and len(value) > 1 for row in rows)
        notes = (f"{target} has several texts: the first is learned, all of them are references",) if several else ()
        return Suggested(update, dict(settings or {}), notes)

    def _joining(self, text: str) -> str:
        """The separator for a list of texts that begins with this one: a space, if the script has spaces."""
        return "" if is_unspaced(text.strip()[-1:] or " ") else " "

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        result: dict[str, Any] = {}
        for name, path in self._named(row, source, task).items():
            value = look_up(row, path, MISSING)
            if value is MISSING:
                raise InputError(
                    f"has no column {path!r} (its columns: {', '.join(map(str, row))})",
                    f"map it: data.train.columns: {{{name}: …}}",
                    code="column_mismatch",
                )
            result |= self._value(name, value, row, source, task)
        if row.get("id") is not None:
            result["id"] = row["id"]
        yield "", result

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return {*self._named(row, source, task).values(), "id"}

    def _named(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> dict[str, str]:
        """The paths of the task's fields in a row."""
        return {name: source.columns.get(name, name) for name in (*task.columns, task.target_column)}

    def _value(
        self, name: str, value: Any, row: Mapping[str, Any], source: SourceSection, task: Task
    ) -> dict[str, Any]:
        """A field of the task, and other fields that follow from its value."""
        if value is None:
            raise InputError(f"has null as its {name}", "give text")
        if name == task.target_column and _is_texts(value):
            several = {"references": list(value)} if len(value) > 1 else {}
            return {name: value[0] if value else "", **several}
        return {name: _text(name, value, None if name == task.target_column else source.join)}


class LongAndShort(Columns):
    """Columns of a long text and a short one, detected by their lengths if not by their names."""

    def _find(self, rows: Rows, wanted: Sequence[str], named: Mapping[str, str], task: Task) -> dict[str, str]:
        found = super()._find(rows, wanted, named, task)
        if len(found) == len(wanted) or named:
            return found
        lengths = _lengths(rows, 2)
        if len(lengths) < 2 or lengths[0][0] < 2 * lengths[1][0]:
            return found
        return dict(zip(wanted, (lengths[0][1], lengths[1][1]), strict=True))


class TextOrPair(Columns):
    """A text that is learned in full, or a prompt and its completion."""

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        row, named = rows[0], source.columns
        pair = by_name(row, ("prompt", "completion"), named, task)
        if set(turn_columns(row)) & set(pair.values()):
            raise _conversations()
        if len(pair) == 2 and "text" not in named:
            if not named.keys() & pair.keys() and not is_empty(row.get("text")):
                raise _two_ways(*pair.values())
            return self._suggested(source, rows, task, renamed(pair, named))
        plain = by_name(row, ("text",), named, task).get("text")
        if plain is None and turn_columns(row):
            raise _conversations()
        if plain is None and pair and sum(_is_content(value) for value in row.values()) > 1:
            raise nothing_fits(rows, task, [name for name in task.aliases if name not in pair])
        plain = plain or next((column for _, column in _lengths(rows, 1)), None)
        if plain is None:
            raise nothing_fits(rows, task, list(task.aliases))
        found = self._suggested(source, rows, task, renamed({"text": plain}, named))
        if source.sample_by is not None or plain != "text" or not _is_prose(source):
            return found
        note = "each plain-text file is one document, split into blocks of max_length"
        return Suggested(found.source | {"sample_by": "document"}, {}, (*found.notes, note))

    def _joining(self, text: str) -> str:
        return "\n"  # lines stay lines

    def _named(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> dict[str, str]:
        names = ("text",) if self._is_plain(row, source.columns) else ("prompt", "completion")
        return {name: source.columns.get(name, name) for name in names}

    def _is_plain(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
        """Whether a row is text that is learned in full, rather than a prompt with its completion."""
        if named := columns.keys() & {"text", "prompt", "completion"}:
            if "text" in named and len(named) > 1:
                raise InputError("maps both text and a prompt with its completion", "name one of them in columns")
            return "text" in named
        present = {name for name in ("text", "prompt", "completion") if look_up(row, name) is not None}
        if present >= {"prompt", "completion"}:
            if not is_empty(look_up(row, "text")):
                raise _two_ways("prompt", "completion")
            return False
        return "text" in present


def _two_ways(prompt: str, completion: str) -> InputError:
    """The error of a row that is both plain text and a prompt with its completion."""
    return InputError(
        f"has a text in addition to {prompt} and {completion}, and only one of them can be learned",
        f"choose in a recipe: data.train.columns: {{text: text}} or {{prompt: {prompt}, completion: {completion}}}",
    )


def _conversations() -> InputError:
    return InputError("the rows are conversations", "use the task dialogue")


def _is_content(value: Any) -> bool:
    return isinstance(value, str | list | Mapping) and not is_empty(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


def _is_prose(source: SourceSection) -> bool:
    """Whether all files are plain text."""
    files = files_of(source)
    return bool(files) and all((source.format or path.suffix.removeprefix(".")) == "txt" for path in files)


def _text(name: str, value: Any, join: str | None) -> str:
    if _is_texts(value):
        if join is None and len(value) != 1:
            raise InputError(f"has a list of texts as its {name}", "set their separator, such as data.train.join: ' '")
        return (join or "").join(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"has a {type(value).__name__} as its {name}", "give text")
    return str(value)


# Columns by their content.


def texts_of(rows: Rows, needed: int) -> dict[str, list[str]]:
    """The columns of text that differ between rows; without notes about other columns, if enough columns are left.

    Notes, such as where a sentence is from, have half of their text in common.
    """
    found: dict[str, list[str]] = {}
    for column in rows[0]:
        values = [value for row in rows if isinstance(value := row.get(column), str) and any(map(str.isalpha, value))]
        if len(values) >= len(rows) / 2 and (len(rows) == 1 or len(set(values)) > 1):
            found[str(column)] = values
    telling = {column: values for column, values in found.items() if not _are_notes(values)}
    return telling if len(telling) >= needed else found


def _are_notes(values: Sequence[str]) -> bool:
    # One odd row at either end must not hide what the others share.
    beginning = _shared_beginning(sorted(values)[1:-1]) if len(values) > 4 else 0
    return beginning > max(_BEGINNING, sum(map(len, values)) / len(values) / 2)


def _shared_beginning(values: Sequence[str]) -> int:
    """Number of characters that all of the sorted values begin with."""
    pairs = zip(values[0], values[-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _lengths(rows: Rows, needed: int) -> list[tuple[float, str]]:
    """The mean length of each column of text, the longest first."""
    texts = texts_of(rows, needed)
    return sorted(((sum(map(len, values)) / len(values), column) for column, values in texts.items()), reverse=True)
