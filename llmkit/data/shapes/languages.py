"""Columns or aligned files of two languages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.column_names import language_in, language_named
from llmkit.data.rows import first_lines
from llmkit.data.shapes.base import (
    Aligned,
    Found,
    InputPlan,
    Rows,
    Suggested,
    by_name,
    look_up,
    nothing_fits,
    renamed,
)
from llmkit.data.shapes.columns import Columns, texts_of
from llmkit.data.shapes.row_languages import LANGUAGE_FIELDS, PAIR, language_columns, languages_of, sides_of
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Task
from llmkit.text.detection import detect_language
from llmkit.text.languages import Language, find_language

__all__ = ["LanguagePair"]

_SIDES = ("source", "target")
_SAMPLE = 200
"""Number of texts by which the language of a column is detected."""


class LanguagePair(Columns):
    """Columns of a text and its translation, which may be named by their languages."""

    def align(self, names: Sequence[str], source: SourceSection, task: Task) -> Aligned | None:
        """Aligned in the order of the languages that are set; by default English first."""
        spoken: dict[str, Language] = {}
        for name in names:
            language = language_named(Path(name).suffix.removeprefix("."))
            if language := language or _detect(first_lines(Path(name), _SAMPLE, encoding=source.encoding)):
                spoken[name] = language
        if len(spoken) == 2 and len({language.tag for language in spoken.values()}) == 2:
            order = sorted(spoken, key=lambda name: spoken[name].alpha2 != "en")
            columns, settings = _pick({name: spoken[name] for name in order}, task)
        else:
            columns, settings = dict(zip(_SIDES, names, strict=True)), {}
        return source.model_copy(update={"path": None, "aligned": columns}), settings

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        own = language_columns(rows, source.columns, task)
        texts = [{name: value for name, value in row.items() if name not in own.values()} for row in rows]
        columns, settings = self._columns(source, texts, task)
        settings = {side: tag for side, tag in settings.items() if side not in sides_of(own)}
        return self._suggested(source, rows, task, {**columns, **renamed(own, source.columns)}, settings)

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        languages = languages_of(row, source.columns)
        for suffix, result in super().convert(row, source, task):
            yield suffix, result | languages

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return super().used(row, source, task) | {source.columns.get(name, name) for name in LANGUAGE_FIELDS}

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        """Also columns named by languages: the source's, or the only one that is not the target's."""
        own = language_columns(rows, columns, task)
        if (plan := self._plan_text(rows, columns, task)) is None:
            return None
        if PAIR not in own:
            return InputPlan({**plan.columns, **own})
        named = {**plan.columns, **dict.fromkeys(task.optional_columns)}
        return InputPlan(
            {name: column or name for name, column in named.items()},
            lambda row: iter([("", {**row, **dict.fromkeys(task.optional_columns), **languages_of(row, own)})]),
        )

    def _plan_text(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        """The plan for the column with the text."""
        if plan := super().plan_input(rows, columns, task):
            return plan
        spoken = _named_by_language(rows, task)
        source, target = _wanted(task, "source"), _wanted(task, "target")
        paths = [path for path, language in spoken.items() if source is None or language.alpha2 == source.alpha2]
        if source is None and target is not None:
            paths = [path for path in paths if spoken[path].alpha2 != target.alpha2]
        if len(paths) > 1:
            raise InputError(
                f"several columns are named by languages ({', '.join(paths)})",
                "name the one to translate with `column`, such as `column=source=en`",
                "name its language with `source`",
                code="column_mismatch",
            )
        return InputPlan({"source": paths[0], **columns}) if paths else None

    def _columns(self, source: SourceSection, rows: Rows, task: Task) -> tuple[dict[str, str], dict[str, str]]:
        """The two columns, and the languages."""
        row = rows[0]
        if source.columns.keys() >= set(_SIDES):
            return dict(source.columns), _languages_of(rows, source.columns, task)
        spoken = _named_by_language(rows, task)
        if len(spoken) >= 2:
            return _pick(spoken, task)
        found = by_name(row, _SIDES, source.columns, task)
        if len(found) == 2:
            return renamed(found, source.columns), _languages_of(rows, found, task)
        named = {
            path: language for name in row if (language := language_in(path := str(name))) and _is_text(rows, path)
        }
        if len(named) >= 2:
            return _pick(named, task)
        guessed = {column: language for column, values in texts_of(rows, 2).items() if (language := _detect(values))}
        if len(guessed) < 2:
            raise nothing_fits(rows, task, _SIDES)
        return _pick(guessed, task)


def _named_by_language(rows: Rows, task: Task) -> dict[str, Language]:
    """The columns of text whose names are languages, also inside ``translation``, as on the Hub."""
    inner = rows[0].get("translation")
    prefix, inner = ("translation.", inner) if isinstance(inner, Mapping) else ("", rows[0])
    fields = {name for side in _SIDES for name in task.aliases[side]}  # src is also the code of Sardinian
    spoken = {f"{prefix}{name}": language_named(str(name)) for name in inner if prefix or name not in fields}
    return {path: language for path, language in spoken.items() if language and _is_text(rows, path)}


def _is_text(rows: Rows, path: str) -> bool:
    """Whether a column holds text rather than numbers or ids: ``id`` is also the code of Indonesian."""
    values = [look_up(row, path) for row in rows]
    texts = [value for value in values if isinstance(value, str)]
    marked = [text for text in texts if len(text.split()) == 1 and any(map(str.isdigit, text))]
    return 2 * len(texts) >= len(values) and 2 * len(marked) < len(values)


def _wanted(task: Task, side: str) -> Language | None:
    """The language of a side, if the task's settings name it."""
    name = getattr(task.settings, side, None)
    return find_language(name) if name else None


def _pick(spoken: Mapping[str, Language], task: Task) -> tuple[dict[str, str], dict[str, str]]:
    order = list(spoken)
    columns: dict[str, str] = {}
    for side in _SIDES:
        if (language := _wanted(task, side)) is None:
            continue
        column = next((each for each in order if spoken[each].alpha2 == language.alpha2), None)
        if column is None:
            names = ", ".join(f"{each} ({spoken[each].name})" for each in order)
            raise InputError(f"no column is in {language.name}", f"the columns are {names}", code="column_mismatch")
        columns[side] = column
    for side in _SIDES:
        if side not in columns:
            columns[side] = next(each for each in order if each not in columns.values())
    columns = {side: columns[side] for side in _SIDES}
    return columns, {side: spoken[column].tag for side, column in columns.items()}


def _detect(values: Sequence[str]) -> Language | None:
    try:
        return detect_language("\n".join(values[:_SAMPLE])).language
    except UsageError:
        return None


def _languages_of(rows: Rows, columns: Mapping[str, str], task: Task) -> dict[str, str]:
    """The languages of two columns: as set, otherwise as detected."""
    settings = {}
    for side in _SIDES:
        values: list[Any] = [value for row in rows if isinstance(value := look_up(row, columns.get(side, side)), str)]
        if language := _wanted(task, side) or _detect(values):
            settings[side] = language.tag
    return settings
