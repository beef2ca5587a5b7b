"""Detecting whether the first row of a table is a header, for training and inference alike.

Knows the signs of a header and of data: each column's first cell is compared with the cells below it in type, length,
script and vocabulary. Signs of one kind only decide; without any, or with both, the caller has to say it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches

from llmkit.data.column_names import is_known_name, known_names, language_named
from llmkit.errors import InputError
from llmkit.text.scripts import is_unspaced

__all__ = ["LOOKED_AT", "find_header", "names_columns"]

LOOKED_AT = 50
"""Number of rows that the first is compared with."""
_LONG = 60
"""Maximum length of a column name in characters, unless the cells below it are far longer."""
_FEW = 5
"""Below this number of cells, a difference in length has to be larger."""
_SENTENCE_ENDS = ".!?。！？…"
_NUMBERED = re.compile(r"column ?\d+", re.IGNORECASE)
"""The names of columns without a header."""


def find_header(rows: Sequence[Sequence[str]], named: Collection[str], name: str) -> list[str] | None:
    """The names in the first row of a table; None if it is data.

    Args:
        rows: the first rows.
        named: column names that the caller has set.
        name: name of the table in errors.

    Raises:
        InputError: it is ambiguous, or has none of the names that the caller has set.
    """
    first, body = [cell.strip() for cell in rows[0]], rows[1:]
    if "" in first and (
        lower := next((n for n, row in enumerate(body[:5], start=2) if names_columns(row, named)), None)
    ):
        raise InputError(f"{name}: row {lower} names the columns", "remove the rows above it", code="ambiguous_header")
    if any(cell in named for cell in first):
        return list(rows[0])
    if named and not any(map(_NUMBERED.fullmatch, named)):
        raise _names_missing(first, named, name)
    found = _is_names(first, [[cell.strip() for cell in row] for row in body if len(row) == len(first)])
    if found is None:
        raise InputError(
            f"{name}: the first row ({_shown(first)}) may be a header or data",
            "pass `header=True` if it names the columns",
            "`header=False` if it is data",
            f"name one of its columns, such as {_shown(first[:1])}, with `column`",
            code="ambiguous_header",
        )
    return list(rows[0]) if found else None


def _names_missing(first: Sequence[str], named: Collection[str], name: str) -> InputError:
    missing = sorted(named)[0]
    near = get_close_matches(missing, first, n=1)
    return InputError(
        f"{name} has no column {missing!r} in its first row ({_shown(first)})",
        f"did you mean {near[0]!r}?" if near else "correct the name of the column",
        "without a header, pass `header=False` and call the columns column1, column2, …",
        code="column_mismatch",
    )


def _shown(cells: Sequence[str]) -> str:
    """The first cells, abbreviated, for a message."""
    shown = [cell if len(cell) <= _LONG else f"{cell[:_LONG]}…" for cell in cells[:5]]
    return ", ".join(shown) + (", …" if len(cells) > len(shown) else "")


def names_columns(cells: Sequence[str], named: Collection[str]) -> bool:
    """Whether at least two cells are known column names, or names that the caller has set."""
    return sum(cell in named or cell.strip().lower() in known_names() for cell in cells) > 1


def _is_names(first: Sequence[str], body: Sequence[Sequence[str]]) -> bool | None:
    """Whether the first row names the columns of the others; None if it is ambiguous."""
    pairs = [(cell, [row[place] for row in body if row[place]]) for place, cell in enumerate(first)]
    if any(cell.lower() in known_names() for cell in first) or any(_has_another_type(*pair) for pair in pairs):
        return True
    # A row that is repeated whole may be the header of files that were joined.
    others = [row for row in body if list(row) != list(first)] if len(first) > 1 else body
    if any(cell and any(row[place] == cell for row in others) for place, cell in enumerate(first)):
        return False
    is_header = _are_known(first) or _are_numbered(first) or any(_looks_like_name(*pair) for pair in pairs)
    is_data = len(set(first)) < len(first) or any(_looks_like_data(*pair) for pair in pairs)
    return is_header if is_header != is_data else None


# Signs of a row.


def _are_known(cells: Sequence[str]) -> bool:
    """Whether cells are names of tasks' columns by their last word, or several are languages."""
    known = sum(map(is_known_name, cells)) if all(_word_count(cell) <= 3 for cell in cells) else 0
    return 2 * known >= max(1, len(cells)) or sum(language_named(cell) is not None for cell in cells) > 1


def _are_numbered(cells: Sequence[str]) -> bool:
    """Whether cells are one name with rising numbers, such as ``col1,col2``."""
    parts = [re.fullmatch(r"(\D+?)(\d+)", cell) for cell in cells]
    numbers = [int(part[2]) for part in parts if part]
    names = {part[1] for part in parts if part}
    return len(cells) > 1 and len(names) == 1 and numbers == list(range(numbers[0], numbers[0] + len(cells)))


# Signs of a cell, compared with the other cells of its column.


def _has_another_type(cell: str, values: Sequence[str]) -> bool:
    """Whether the values are numbers, and the cell is a word; or without a name, as the index of a pandas table."""
    if not _nearly_all(values, _is_number):
        return False
    if not cell:
        return all(map(str.isdigit, values)) and [int(value) for value in values[:2]] in ([0, 1], [0])
    return not _is_number(cell) and cell.lower() not in ("n/a", "nan", "null", "none", "-")


def _looks_like_name(cell: str, values: Sequence[str]) -> bool:
    """Whether the values share a property that the cell lacks."""
    if not cell or len(values) < 2 or _ends_sentence(cell):
        return False
    shortest, few = min(map(len, values)), len(values) < _FEW
    shorter = 3 * len(cell) <= shortest >= _LONG // 2 if few else 2 * len(cell) <= shortest
    if shorter or (_nearly_all(values, _ends_sentence) and not cell.endswith((":", ";"))):
        return True
    if len(cell) > _LONG:
        return False
    if len(values) > 2 and (3 * len(set(values)) <= len(values) or _differs_in_case(cell, values)):
        return True  # a few labels, or words
    kinds = (_has_unspaced, _has_spaced, _has_sign, *([_has_digit] if len(values) > 2 else []))
    return any(_nearly_all(values, has) and not has(cell) for has in kinds)


def _looks_like_data(cell: str, values: Sequence[str]) -> bool:
    """Whether the cell has properties of the values that names of columns rarely have."""
    if _ends_sentence(cell):
        return not values or 2 * sum(map(_ends_sentence, values)) >= len(values)
    if len(cell) > _LONG and not any(3 * len(cell) <= len(value) for value in values):
        return True
    return (_is_number(cell) and _nearly_all(values, _is_number)) or _shares_words(cell, values)


def _shares_words(cell: str, values: Sequence[str]) -> bool:
    """Whether most words of the cell are frequent in the values, as function words are."""
    words = _words(cell)
    counts = Counter(word for value in values for word in _words(value))
    frequent = {word for word in words if counts[word] >= max(2, 0.3 * len(values))}
    return len(words) > 1 and 2 * len(frequent) > len(words)


def _words(text: str) -> set[str]:
    """Words in lower case; of scripts without spaces, pairs of characters."""
    pairs = (text[place : place + 2] for place in range(len(text) - 1) if is_unspaced(text[place]))
    return {*re.findall(r"\w+", "".join(" " if is_unspaced(char) else char for char in text).lower()), *pairs}


def _nearly_all(values: Sequence[str], has: Callable[[str], bool]) -> bool:
    """Whether all values, of many all but a few, have a property."""
    return bool(values) and sum(map(has, values)) >= len(values) - len(values) // 20


def _is_number(text: str) -> bool:
    """Whether a text is a number, a date, a percentage or the like."""
    return any(map(str.isdigit, text)) and not any(map(str.isalpha, text))


def _ends_sentence(text: str) -> bool:
    return text.rstrip("\"'”’」』）)")[-1:] in tuple(_SENTENCE_ENDS)


def _differs_in_case(cell: str, values: Sequence[str]) -> bool:
    """Whether the values begin with capitals, and the cell has none."""
    return cell.islower() and _nearly_all(values, lambda value: value[0].isupper())


def _has_unspaced(text: str) -> bool:
    return any(map(is_unspaced, text))


def _has_spaced(text: str) -> bool:
    return any(char.isalpha() and not is_unspaced(char) for char in text)


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _has_sign(text: str) -> bool:
    """Whether a text is an address or a path."""
    return re.search(r"\S[/@\\]|\w\.\w", text) is not None


def _word_count(text: str) -> int:
    unspaced = sum(map(is_unspaced, text))
    return len(text.split()) + unspaced // 2
