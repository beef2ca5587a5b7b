"""Common parts of row readers: records with their location, layouts, and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from llmkit.errors import InputError

__all__ = [
    "MAX_ROW_BYTES",
    "Layout",
    "Line",
    "Place",
    "Record",
    "bad_row",
    "check_columns",
    "located",
    "too_long",
    "without_null_fields",
]

MAX_ROW_BYTES = 16 * 2**20
"""Maximum size of a row. UTF-16 and UTF-32 count as UTF-8, binary columns as decoded. In a format without lines, a row
may be as large as its file."""


class Place(NamedTuple):
    """A place between two rows of a source, from which it can be read."""

    file: int = 0
    rows: int = 0
    """Rows before it in the file."""
    line: int = 0
    byte: int = 0
    """Of lines of JSON or text; 0 if it can only be found by counting rows."""
    state: tuple[int, Any] | None = None
    """Of the Hub: a number of rows, and the state of the data set behind them."""


@dataclass(frozen=True)
class Record:
    """One row of a file, and its location."""

    where: str
    """``rows.jsonl:12`` (the first line of a row with several), ``rows.json, item 3``, ``rows.parquet, row 7``."""
    row: dict[str, Any] | None
    """None if the row cannot be read."""
    error: InputError | None = None
    """Why it cannot; the message includes ``where``."""
    unused: tuple[str, ...] = ()
    """Unused columns of the original row, and unused fields of its turns."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the original row that the task does not use, with their values."""
    end: tuple[int, int] = (0, 0)
    """Lines and bytes of the file up to its end, if reading can begin there (`Place`)."""


@dataclass(frozen=True)
class Layout:
    """Properties of a file that do not follow from its name."""

    format: str | None = None
    """The suffix it should have had, without the dot."""
    column_names: tuple[str, ...] = ()
    """Column names of a CSV or TSV file without a header."""
    header: bool | None = None
    """CSV and TSV: whether the first row names the columns. None: it is detected (`llmkit.data.headers`)."""
    named: frozenset[str] = frozenset()
    """CSV and TSV: column names that the caller has set; one of them in the first row makes it the header."""
    delimiter: str | None = None
    """CSV and TSV: what separates the fields. None: it is detected."""
    quotes: bool = True
    """CSV and TSV: whether quotation marks enclose fields; if False, they are ordinary characters."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """Plain text: what one row is. Paragraphs are separated by empty lines."""
    blank_lines: bool = False
    """Plain text by line: whether a blank line is a row."""
    finds_tables: bool = False
    """Plain text by line: whether lines that are rows of a table are parsed as such."""

    def table_settings(self) -> list[str]:
        """The settings with an effect on CSV and TSV only that were set."""
        usual = Layout()
        names = ("delimiter", "header", "column_names", "quotes")
        return [name for name in names if getattr(self, name) != getattr(usual, name)]


class Line(NamedTuple):
    """A line with its line end. With an error, the text is the part that could be decoded."""

    number: int
    text: str
    size: int
    """In bytes."""
    error: InputError | None = None
    end: int = 0
    """Bytes up to its end."""


def bad_row(where: str, problem: str, fix: str, end: tuple[int, int] = (0, 0)) -> Record:
    return Record(where, None, InputError(f"{where} {problem}", fix), end=end)


def without_null_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table, whose structs have all fields of their column: those that are null are absent."""
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value[:1]):
        return [_without_nulls(item) for item in value]
    return value


def too_long(where: str, size: int) -> InputError:
    """The error of a row above the limit."""
    return InputError(f"{where} has {size:,} bytes, more than the {MAX_ROW_BYTES:,} of a row", "divide it")


@contextmanager
def located(where: str) -> Iterator[None]:
    """Add the location of a row or file to an `InputError` without one."""
    try:
        yield
    except InputError as error:
        if error.problem.startswith(where):
            raise
        between = " " if error.problem.startswith(("has ", "is ")) else ": "
        raise error.reworded(f"{where}{between}{error.problem}") from error


def check_columns(names: Sequence[str], name: str) -> None:
    if unnamed := [str(number) for number, column in enumerate(names, start=1) if not column.strip()]:
        raise InputError(
            f"{name} has no name for column {', '.join(unnamed)}",
            "name each column in the header",
            code="ambiguous_header",
        )
    if twice := [repr(column) for column, number in Counter(names).items() if number > 1]:
        raise InputError(
            f"{name} has more than one column {', '.join(twice)}",
            "give each column a name of its own",
            code="ambiguous_header",
        )
