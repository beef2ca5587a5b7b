"""Rows of CSV and TSV, from lines of text. A row that cannot be parsed does not affect the others."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from llmkit.data.headers import LOOKED_AT, find_header, names_columns
from llmkit.data.records import MAX_ROW_BYTES, Layout, Line, Record, bad_row, check_columns
from llmkit.errors import InputError
from llmkit.log import log

__all__ = ["DELIMITERS", "may_be_table", "table_format", "table_records"]

_Item = TypeVar("_Item")

_Row = tuple[str, list[str] | InputError]
"""The location of a row, and its cells or the error."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""The usual delimiter of a suffix."""
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_MOST = 0.9
"""Share of the lines of a table without a suffix of its own that have as many tabs."""
_EXCEL = re.compile(r"\"?sep=(.)\"?[,;\t]*\s*\Z", re.IGNORECASE)
"""A first line that names the separator, for Excel."""


class _TableLines:
    """The lines for `csv.reader`, which can be rewound after a row that could not be parsed."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._again: deque[Line] = deque()
        self._size = 0
        self.row: list[Line] = []
        """Lines of the current row."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines, None)
        if line is None:
            if self.row:
                raise csv.Error("it opens a quote that is never closed")
            raise StopIteration
        self.row.append(line)
        self._size += line.size
        if self._size > MAX_ROW_BYTES:
            raise csv.Error(f"it opens a quote that is not closed within {MAX_ROW_BYTES:,} bytes")
        return line.text

    def begin_row(self) -> None:
        self.row, self._size = [], 0

    def go_back(self) -> None:
        """Rewind to the second line of the row, so that a stray quote does not lose the following rows."""
        self._again.extendleft(reversed(self.row[1:]))


def table_records(lines: Iterator[Line], name: str, suffix: str, layout: Layout) -> Iterator[Record]:
    delimiter, lines = _find_delimiter(lines, name, DELIMITERS[suffix], layout.delimiter)
    header, rows = _find_header(_table_rows(lines, name, delimiter, layout.quotes), layout, name)
    if header is None:
        return
    check_columns(header, name)
    for where, cells in rows:
        if isinstance(cells, InputError):
            yield Record(where, None, cells)
            continue
        if not any(cells[len(header) :]):
            del cells[len(header) :]  # empty columns of a spreadsheet
        if len(cells) != len(header):
            problem = f"does not have the {len(header)} columns of the {_header_is(layout)} (it has {len(cells)})"
            yield bad_row(where, problem, "quote fields that contain the separator")
        else:
            yield Record(where, dict(zip(header, cells, strict=True)))


def _find_header(rows: Iterator[_Row], layout: Layout, name: str) -> tuple[list[str] | None, Iterator[_Row]]:
    """The names of the columns, and the rows below them; None without rows. Without a header: column1, column2, …"""
    ahead = _ahead(rows, lambda row: 0 if isinstance(row[1], InputError) else sum(map(len, row[1])))
    if not ahead:
        return None, rows
    first = ahead[0][1]
    if layout.column_names:
        if first == list(layout.column_names):
            raise InputError(
                f"{name} has the column_names in its first row",
                "leave column_names out: it has a header",
                code="ambiguous_header",
            )
        return list(layout.column_names), chain(ahead, rows)
    if isinstance(first, InputError):
        raise first
    header: list[str] | None = first if layout.header else None
    if layout.header is None:
        header = find_header([cells for _, cells in ahead if not isinstance(cells, InputError)], layout.named, name)
    # Names are also missing in CSV files of pandas with an index, and of spreadsheets with emptied columns.
    names = [column if column.strip() else f"column{number}" for number, column in enumerate(header or first, start=1)]
    if header is None:
        return [f"column{number}" for number in range(1, len(first) + 1)], chain(ahead, rows)
    return names, chain(ahead[1:], rows)


def _header_is(layout: Layout) -> str:
    return "column_names" if layout.column_names else "header"


def _table_rows(lines: Iterator[Line], name: str, delimiter: str, quotes: bool) -> Iterator[_Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # global to the process; 128 KiB by default
    asked = _TableLines(lines)
    quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(asked, delimiter=delimiter, strict=True, quoting=quoting)
    while True:
        asked.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            asked.go_back()
            where = f"{name}:{asked.row[0].number}"
            yield where, asked.row[0].error or _table_error(error, where)
            continue
        bad = next((line.error for line in asked.row if line.error is not None), None)
        # Spreadsheets write separators for rows without content too.
        if bad or (any(map(str.strip, cells)) if len(cells) > 1 else asked.row[0].text.strip(" \r\n")):
            yield f"{name}:{asked.row[0].number}", bad or cells


def _table_error(error: csv.Error, where: str) -> InputError:
    if str(error).startswith("new-line character"):
        fix = "quote the field; if no line of the file ends in LF, save it with line ends of Unix or Windows"
        return InputError(f"{where} has a carriage return in a field without quotes", fix, code="unreadable_file")
    return InputError(
        f"{where} cannot be read ({error})",
        'fix the row; a quote in a quoted field is written ""',
        code="unreadable_file",
    )


def _find_delimiter(lines: Iterator[Line], name: str, usual: str, explicit: str | None) -> tuple[str, Iterator[Line]]:
    """The delimiter that is set, or the detected one; with the lines, without a ``sep=`` line.

    It differs from the usual one of the suffix if it divides more rows into as many columns as the first: spreadsheets
    use semicolons in locales with decimal commas.
    """
    ahead = _ahead(lines, lambda line: line.size)
    if ahead and (named := _EXCEL.match(ahead[0].text)):
        return explicit or named[1], chain(ahead[1:], lines)
    texts = [line.text for line in ahead if line.text.strip()]
    if not texts:
        return explicit or usual, chain(ahead, lines)
    if explicit is not None:
        if explicit not in texts[0] and explicit != usual:
            raise InputError(
                f"`delimiter={_spelled(explicit)}` is not in the first line of {name}",
                "correct it",
                "leave it out",
                code="invalid_value",
            )
        return explicit, chain(ahead, lines)
    found, share = usual, _agreement(texts, usual)
    for other in _NAMES if share < 1 else ():
        if (better := _agreement(texts, other)) > share:
            found, share = other, better
    if found != usual:
        log.debug("%s is separated by %s", name, _NAMES[found])
    elif usual not in texts[0] and (other := next((each for each in ";\t" if each in texts[0]), "")):
        raise InputError(
            f"{name} seems to be separated by {_NAMES[other]}, but its rows differ in their number of columns",
            "give all rows as many columns as the first",
            f"pass `delimiter={_spelled(usual)}` if it is not",
            code="unsupported_format",
        )
    return found, chain(ahead, lines)


def _spelled(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else delimiter


def _agreement(texts: Sequence[str], delimiter: str) -> float:
    """The share of rows with as many columns as the first; 0 if that is one column, or below a half."""
    try:
        counts = [len(row) for row in csv.reader(texts, delimiter=delimiter)]
    except csv.Error:
        return 0
    share = counts.count(counts[0]) / len(counts)
    return share if counts[0] > 1 and (len(counts) == 1 or 2 * share > 1) else 0


def _ahead(items: Iterator[_Item], size: Callable[[_Item], int]) -> list[_Item]:
    """The first items, up to the size limit of a row."""
    ahead: list[_Item] = []
    held = 0
    while len(ahead) < LOOKED_AT and held <= MAX_ROW_BYTES and (item := next(items, None)) is not None:
        ahead.append(item)
        held += size(item)
    return ahead


# Tables in plain text.


def may_be_table(line: str, named: Collection[str] = ()) -> bool:
    """Whether a line of plain text may be the first one of a table: it has a tab, or names known columns."""
    return "\t" in line or any(_is_header_line(line, delimiter, named) for delimiter in _NAMES)


def table_format(lines: Sequence[str], named: Collection[str] = ()) -> str | None:
    """``tsv`` or ``csv`` if the first lines of a plain text are rows of a table.

    They are if nearly all have as many tabs, or if the first names known columns (or one that the caller has
    ``named``), and the others have as many cells.
    """
    texts = [line for line in lines if line.strip()]
    tabs, times = Counter(text.count("\t") for text in texts).most_common(1)[0] if texts else (0, 0)
    if tabs and times >= _MOST * len(texts) and len(texts) > 1:
        return "tsv"
    for delimiter in _NAMES if texts else ():
        if _is_header_line(texts[0], delimiter, named) and _agreement(texts, delimiter):
            return "tsv" if delimiter == "\t" else "csv"
    return None


def _is_header_line(line: str, delimiter: str, named: Collection[str]) -> bool:
    cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    return len(cells) > 1 and (names_columns(cells, named) or any(cell in named for cell in cells))
