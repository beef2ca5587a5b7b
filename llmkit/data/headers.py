"""Detecting whether the first row of a table is a header, for training and inference alike."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llmkit.data.column_names import is_known_name, known_names, language_named
from llmkit.errors import InputError
from llmkit.text.scripts import is_unspaced

__all__ = ["LOOKED_AT", "find_header"]

LOOKED_AT = 50
"""Number of rows that the first is compared with."""
_LONG = 40
"""Maximum length of a column name in characters."""
_SENTENCE_ENDS = ".!?。！？…"


def find_header(rows: Sequence[Sequence[str]], named: Collection[str], name: str) -> list[str] | None:
    """The names in the first row of a table; None if it is data.

    Args:
        rows: the first rows.
        named: column names expected by the caller.
        name: name of the table in errors.

    Raises:
        InputError: it is ambiguous.
    """
    first, body = [cell.strip() for cell in rows[0]], rows[1:]
    if "" in first and (lower := next((n for n, row in enumerate(body[:5], start=2) if _is_header(row, named)), None)):
        raise InputError(f"{name}: row {lower} names the columns", "remove the rows above it", code="ambiguous_header")
    if any(cell in named or cell.lower() in known_names() for cell in first):
        return list(rows[0])
    columns = [[row[place].strip() for row in body if len(row) == len(first)] for place in range(len(first))]
    if any(_is_number(values) and not _is_number([cell]) for cell, values in zip(first, columns, strict=True)):
        return list(rows[0])
    if _cannot_be_names(first) or any(cell in values for cell, values in zip(first, columns, strict=True)):
        return None
    known = sum(map(is_known_name, first)) if all(_word_count(cell) <= 3 for cell in first) else 0
    if (known and 2 * known >= len(first)) or sum(language_named(cell) is not None for cell in first) > 1:
        return list(rows[0])
    if any(_differs(cell, values) for cell, values in zip(first, columns, strict=True)):
        return list(rows[0])
    if any(_word_count(cell) > 2 for cell in first):
        return None
    raise InputError(
        f"{name}: the first row ({', '.join(first)}) may name the columns or be data",
        "if it names them, call one as tasks do, such as text or question; if it is data, write such names above it",
        code="ambiguous_header",
    )


def _is_header(cells: Sequence[str], named: Collection[str]) -> bool:
    """Whether at least two cells are known column names."""
    return sum(cell in named or cell.strip().lower() in known_names() for cell in cells) > 1


def _is_number(values: Sequence[str]) -> bool:
    """Whether all are numbers, dates, percentages and the like."""
    return bool(values) and all(any(map(str.isdigit, value)) and not any(map(str.isalpha, value)) for value in values)


def _cannot_be_names(cells: Sequence[str]) -> bool:
    if len(set(cells)) < len(cells) or any(not cell or len(cell) > _LONG for cell in cells):
        return True
    return any(cell[-1] in _SENTENCE_ENDS or set(cell) & set(',;，；"') or _is_number([cell]) for cell in cells)


def _differs(cell: str, values: Sequence[str]) -> bool:
    """Whether a cell differs from all others in its column: much shorter, another script, or the only fragment."""
    if len(values) < 2 or not all(values):
        return False
    if 2 * len(cell) <= min(map(len, values)):
        return True
    if all(is_unspaced(value[0]) != is_unspaced(cell[0]) for value in values):
        return True
    return all(value[-1] in _SENTENCE_ENDS for value in values)


def _word_count(text: str) -> int:
    unspaced = sum(map(is_unspaced, text))
    return len(text.split()) + unspaced // 2
