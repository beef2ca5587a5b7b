"""Rows that name their own languages, in columns or as the keys of their texts.

Knows where a row has its languages. Which languages a model knows, and what a row without any means, is up to the task.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.column_names import language_named
from llmkit.data.shapes.base import Found, InputPlan, Rows, Shape, Suggested, by_name, look_up
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.text.languages import Language, find_language, known_language

__all__ = ["LANGUAGE_FIELDS", "PAIR", "Translations", "language_columns", "languages_of", "sides_of"]

PAIR = "language_pair"
_FIELDS = ("source_lang", "target_lang")
LANGUAGE_FIELDS = (*_FIELDS, PAIR)
_BETWEEN = re.compile(r"\s*(?:-+>|=>|→|[-_/|,:]|2| to )\s*")
"""What stands between the two languages of a pair."""


# Columns of languages.


def language_columns(rows: Rows, named: Mapping[str, str], task: Task) -> dict[str, str]:
    """The columns with the languages of each row: as set, otherwise by their names and content."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = by_name(names, LANGUAGE_FIELDS, named, task)
    return {name: path for name, path in found.items() if name in named or _is_language(name, path, rows)}


def _is_language(field: str, path: str, rows: Rows) -> bool:
    """Whether a column has a language, or a pair of them, in at least half of the rows that have a value there."""
    values = [value for row in rows if str(value := look_up(row, path, "") or "").strip()]
    known = [
        isinstance(value, str) and bool((_pair_in if field == PAIR else known_language)(value)) for value in values
    ]
    return any(known) and 2 * sum(known) >= len(known)


def sides_of(fields: Collection[str]) -> set[str]:
    """The sides, source and target, whose language is in some of the fields."""
    return {"source", "target"} if PAIR in fields else {name.removesuffix("_lang") for name in fields}


def languages_of(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The languages that a row names; `InputError` for a cell that is not text or not a pair."""
    cells = {name: _cell(row, columns.get(name, name)) for name in LANGUAGE_FIELDS}
    found = {name: cell for name in _FIELDS if (cell := cells[name])}
    if (pair := cells[PAIR]) is None:
        return found
    if (parts := _pair_in(pair)) is None:
        raise InputError(f"{pair!r} is not a pair of languages", "write it as in en-zh", code="unknown_language")
    return dict(zip(_FIELDS, parts, strict=True)) | found


def _cell(row: Mapping[str, Any], path: str) -> str | None:
    """The text of a cell; None if it is empty."""
    value = look_up(row, path)
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"has a {type(value).__name__} in {path}, not a language", "give a name or a code", code="unknown_language"
        )
    return (value or "").strip() or None


@functools.lru_cache(4096)
def _pair_in(text: str) -> tuple[str, str] | None:
    """The two languages in a text such as ``en-zh``, if there is one way only to divide it into known ones."""
    parts = [(text[: sign.start()], text[sign.end() :]) for sign in _BETWEEN.finditer(text)]
    found = [pair for pair in parts if all(part.strip() and known_language(part) for part in pair)]
    if len(found) > 1:  # en-pt-BR: two languages, not English in Portugal and Breton
        found = [(one, other) for one, other in found if one[0].isupper() == other[0].isupper()]
    return found[0] if len(found) == 1 else None


# Texts under the names of their languages, which differ from row to row.


class Translations(Shape):
    """Two texts under the names of their languages, each row with languages of its own."""

    written = "translation"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        return None if source.columns or not _vary(rows) else Suggested({"shape": self.written})

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        if columns or not _vary(rows):
            return None

        def convert(row: Mapping[str, Any]) -> Found:
            texts = _texts_of(row)
            source, target = _source_of(texts, task)
            yield "", {**row, "source": texts[source], "source_lang": source, "target_lang": target}

        fields = ("source", *task.optional_columns)
        return InputPlan(dict(zip(fields, fields, strict=True)), convert)

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        texts = _texts_of(row)
        one, other = _sides(texts, task)
        if len(texts) != 2 and None in (one, other):
            raise InputError(
                f"has texts in {len(texts)} languages ({', '.join(texts) or 'none'}), not in two",
                "fix the row",
                "name the languages with `source` and `target`",
                code="column_mismatch",
            )
        one = one or next(name for name in texts if name != other)
        other = other or next(name for name in texts if name != one)
        result = {"source": texts[one], "target": texts[other], "source_lang": one, "target_lang": other}
        yield "", result | ({"id": row["id"]} if row.get("id") is not None else {})

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        inner = row.get(_INNER)
        if isinstance(inner, Mapping):
            return {_INNER, "id"}
        return {*_texts_of(row), "id"}


_SIDES = ("source", "target")
_INNER = "translation"
"""The column of the Hub's features for translations."""


def _texts_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row by the names of their languages."""
    inner = row.get(_INNER)
    if isinstance(inner, Mapping) and inner.keys() == {"language", _INNER}:  # TranslationVariableLanguages
        inner = dict(zip(inner["language"], inner[_INNER], strict=False))
    texts = inner if isinstance(inner, Mapping) else row
    return {name: text for name, text in texts.items() if language_named(name) and _is_text(name, text)}


def _is_text(name: str, value: Any) -> bool:
    """Whether a value is a text, and not an id in a column with the code of Indonesian."""
    if not isinstance(value, str) or not value.strip():
        return False
    return name != "id" or len(value.split()) > 1 or not any(map(str.isdigit, value))


def _vary(rows: Rows) -> bool:
    """Whether rows have two texts at most, in more than two languages."""
    found = [_texts_of(row).keys() for row in rows]
    return all(len(names) <= 2 for names in found) and len({name for names in found for name in names}) > 2


def _sides(texts: Mapping[str, str], task: Task) -> Iterator[str | None]:
    """The names of the texts in the languages of the task's settings; None for a side that is not set."""
    for side in _SIDES:
        wanted = getattr(task.settings, side, None)
        yield _in_language(texts, find_language(wanted)) if wanted else None


def _source_of(texts: Mapping[str, str], task: Task) -> tuple[str, str | None]:
    """The name of the text to translate, and the language to translate into if the settings leave it to the row."""
    from_, to = (find_language(name) if (name := getattr(task.settings, side, None)) else None for side in _SIDES)
    if from_ is not None:
        sources = [_in_language(texts, from_)]
    else:
        sources = [name for name in texts if to is None or not _is_in(name, to)]
    if len(sources) != 1:
        raise InputError(
            f"has texts in {len(sources)} languages ({', '.join(sources) or 'none'})",
            "name the one to translate with `source`",
            "name the one to translate into with `target`",
            code="column_mismatch",
        )
    others = [name for name in texts if name not in sources]
    return sources[0], others[0] if to is None and len(others) == 1 else None


def _is_in(name: str, wanted: Language) -> bool:
    return (language := language_named(name)) is not None and language.alpha2 == wanted.alpha2


def _in_language(texts: Mapping[str, str], wanted: Language) -> str:
    if found := next((name for name in texts if _is_in(name, wanted)), None):
        return found
    raise InputError(
        f"has no text in {wanted.name} (its languages: {', '.join(texts) or 'none'})",
        "fix the row",
        code="column_mismatch",
    )
