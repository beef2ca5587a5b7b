"""What some data are, found from their first rows: the form of the file, the shape, and which column is which.

A proposal is a source with everything set that was found, so that it can be frozen in a recipe. Knows names that
columns have in the wild, and falls back on their content. Does not read more rows than it needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.column_names import find_column, language_in, language_named
from llmkit.data.conversations import is_empty, turn_columns
from llmkit.data.flags import refuse_preferences
from llmkit.data.records import located
from llmkit.data.rows import Layout, Record, is_rows, open_records
from llmkit.data.shapes import INPUTS, TARGETS, look_up, mapped_rows, two_ways
from llmkit.data.sources import aligned_files, files_of, layout_of, open_source
from llmkit.errors import InputError, UsageError
from llmkit.log import log
from llmkit.text.detection import detect_language
from llmkit.text.languages import Language, find_language
from llmkit.text.scripts import is_unspaced

__all__ = ["Proposal", "propose", "task_rows"]

_SAMPLE = 200
"""Rows that are looked at."""
_SCAN = 100_000
"""Rows of a table that are read to see whether its quotation marks enclose anything."""
_BEGINNING = 12
"""Characters; texts that begin alike for fewer are just short."""

Languages = tuple[str | None, str | None]


@dataclass(frozen=True)
class Proposal:
    """How some data can be read for a task."""

    source: SourceSection
    """With its form, shape and columns set."""
    settings: dict[str, str]
    """Of the task: the languages of a translation."""
    notes: tuple[str, ...]
    """What was found, and what is left out, in sentences."""


def task_rows(source: SourceSection, task: str, *, languages: Languages = (None, None)) -> Iterator[Record]:
    """The rows of a source in the columns of a task; what the source does not say of its shape is found first."""
    if source.shape is None:
        proposal = propose(source, task, languages=languages)
        for note in proposal.notes:
            log.info("%s", note)
        source = proposal.source
    return mapped_rows(source, task)


def propose(source: SourceSection, task: str, *, languages: Languages = (None, None)) -> Proposal:
    """Find out how a source can be read for a task.

    Args:
        languages: source and target of a translation, as far as they are known.

    Raises:
        InputError: nothing fits; the message lists the columns and says how to name them.
    """
    notes: list[str] = []
    settings: dict[str, str] = {}
    if task == "translation" and source.aligned is None and (names := aligned_files(source.path or ())):
        source, settings = _align(source, names, languages)
        notes.append("two files whose lines belong together")
    elif source.aligned is None:
        source = _form(source, notes)
    sample = _sample(source)
    for where, row in sample:
        with located(where):
            refuse_preferences(row, source.columns, task)
    rows = [row for _, row in sample]
    found: dict[str, Any]
    if source.aligned is not None:
        found = {"shape": "columns"}
        if task == "translation" and not settings:
            settings = _languages_of(rows, {name: name for name in ("source", "target")}, languages)
    else:
        with located(sample[0][0]):
            if task == "translation":
                columns, settings = _translation(source, rows, languages)
                found = {"shape": "columns", "columns": columns}
            else:
                found = _shape(source, rows, task)
    columns = found.get("columns") or {}
    found |= _join(rows, task, columns, source)
    if "sample_by" not in found and task == "text-generation" and _is_prose(source, found):
        found |= {"sample_by": "document"}
        notes.append("plain text is taken as one document a file, and cut into blocks of max_length")
    notes += _left_out(rows, found, columns, task)
    proposed = source.model_copy(update=found)
    if unused := dict.fromkeys(
        name for record in islice(mapped_rows(proposed, task), _SAMPLE) for name in record.unused
    ):
        notes.append(f"not used: {', '.join(unused)}")
    return Proposal(proposed, settings, tuple(notes))


def _sample(source: SourceSection) -> list[tuple[str, dict[str, Any]]]:
    """The first rows that can be read, with their places."""
    records = list(islice(open_source(source), _SAMPLE))
    rows = [(record.where, record.row) for record in records if record.row is not None]
    if not rows:
        raise records[0].error or InputError(f"{records[0].where} cannot be read", "fix the row")
    return rows


# The form of a file.


def _form(source: SourceSection, notes: list[str]) -> SourceSection:
    """What the file is, where its name does not say or says wrongly."""
    files = files_of(source)
    if not files or source.format not in (None, "csv", "tsv"):
        return source
    path, found = files[0], {}
    suffix = path.suffix.lower() if path.suffix.lower() != ".gz" else Path(path.stem).suffix.lower()
    kind = source.format or suffix.removeprefix(".")
    if source.format is None and (suffix == ".txt" or not is_rows(path)):
        if _is_tabular(path, source):
            kind = "tsv"
            notes.append("every line has the same number of tabs, so it is read as TSV")
        elif not is_rows(path):
            kind = "txt"
        if kind != suffix.removeprefix("."):
            found["format"] = kind
    if kind in ("csv", "tsv") and source.column_names is None:
        found |= _header(path, source, kind, notes)
    source = source.model_copy(update=found)
    if kind in ("csv", "tsv") and source.quotes and _quotes_enclose_nothing(source):
        notes.append("quotation marks are characters of the text, and enclose no field")
        source = source.model_copy(update={"quotes": False})
    return source


def _first_lines(path: Path, source: SourceSection) -> list[str]:
    records = open_records(path, encoding=source.encoding, layout=Layout(format="txt"))
    return [record.row["text"] for record in islice(records, _SAMPLE) if record.row is not None]


def _is_tabular(path: Path, source: SourceSection) -> bool:
    counts = Counter(line.count("\t") for line in _first_lines(path, source))
    tabs, times = counts.most_common(1)[0] if counts else (0, 0)
    return tabs > 0 and times >= 0.9 * counts.total()


def _header(path: Path, source: SourceSection, kind: str, notes: list[str]) -> dict[str, Any]:
    """Names for the columns of a table whose first row is data."""
    layout = replace(layout_of(source), format=kind)
    record = next((each for each in open_records(path, encoding=source.encoding, layout=layout) if each.row), None)
    if record is None or record.row is None:
        return {}
    names = list(record.row)
    invented = [f"column{number}" for number in range(1, len(names) + 1)]
    if names != invented or next(iter(_first_lines(path, source)), "").strip('"').startswith(invented[0]):
        return {}
    notes.append(f"the first row is data and not a header, so the columns are called {', '.join(names)}")
    return {"column_names": names}


def _quotes_enclose_nothing(source: SourceSection) -> bool:
    """Whether there are rows that cannot be read because of their quotation marks, and could be without."""
    if not any(record.row is None for record in islice(open_source(source), _SCAN)):
        return False
    plain = source.model_copy(update={"quotes": False})
    cells = [str(value) for record in islice(open_source(plain), _SAMPLE) for value in (record.row or {}).values()]
    quoted = [cell[1:-1] for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"']
    if 2 * len(quoted) > len(cells) or any('\\"' in text for text in quoted):
        return False  # they do, and those within are written as \\" or not at all
    bad = sum(record.row is None for record in islice(open_source(source), _SCAN))
    return sum(record.row is None for record in islice(open_source(plain), _SCAN)) < bad


def _is_prose(source: SourceSection, found: Mapping[str, Any]) -> bool:
    """Whether files of plain text were given whose lines are no rows of their own."""
    named = source.sample_by is None and list((found.get("columns") or {"text": "text"}).items()) == [("text", "text")]
    files = files_of(source) if named else []
    return bool(files) and all((source.format or path.suffix.removeprefix(".")) == "txt" for path in files)


# Shapes and columns.


def _shape(source: SourceSection, rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    row = next((row for row in rows if turn_columns(row)), rows[0])
    if task == "question-answering" and ("paragraphs" in row or "qas" in row):
        return {"shape": "squad"}
    if task == "dialogue" and (conversation := _conversation(row, source.columns)) is not None:
        return {"shape": "messages", "columns": conversation}
    chosen = source.columns.keys() & {"text", "prompt", "completion"}
    if task in ("dialogue", "text-generation") and {"instruction", "output"} <= row.keys() and not chosen:
        return {"shape": "alpaca"}
    if task == "dialogue":
        pair = _by_name(row, ("prompt", "completion"), {})
        if len(pair) < 2:
            raise _nothing_fits(rows, task)
        return {"shape": "messages", "columns": _renamed(pair, {})}
    return {"shape": "columns", "columns": _columns(source, rows, task)}


def _conversation(row: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str] | None:
    """The columns of a conversation where their names are not the usual ones; None if there is none."""
    if given.keys() & {"messages", "prompt", "completion"}:
        return dict(given)
    found = turn_columns(row)
    if "messages" in found or (not found and isinstance(row.get("messages"), list)):
        return {}
    if (pair := _by_name(row, ("prompt", "completion"), {})).keys() >= {"prompt", "completion"} and set(
        pair.values()
    ) & set(found):
        return _renamed(pair, given)
    if len(found) > 1:
        raise InputError(
            f"there are several conversations in a row ({', '.join(found)})",
            f"name the one to learn: data.train.columns: {{messages: {found[0]}}}",
        )
    return {"messages": found[0]} if found else None


def _nothing_fits(rows: Sequence[Mapping[str, Any]], task: str, found: Collection[str] = ()) -> InputError:
    needed = [name for name in (*INPUTS[task][-2:], *([TARGETS[task]] if task in TARGETS else [])) if name not in found]
    columns = ", ".join(map(str, rows[0]))
    if task == "dialogue":
        if any(isinstance(value, str) and value.lstrip().startswith("[{") for value in rows[0].values()):
            return InputError("the turns are in a text", "write them as a list, such as in JSON Lines")
        fix = (
            "name them: data.train.columns: {messages: …}, a list with role and content, or {prompt: …, completion: …}"
        )
    else:
        fix = f"name them in the recipe: data.train.columns: {{{', '.join(f'{name}: …' for name in needed)}}}"
    return InputError(f"no column looks like {' or '.join(needed)} of {task} (columns: {columns})", fix)


def _columns(source: SourceSection, rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, str]:
    """From the task's columns to those of the rows, only where the names differ; those that are given stay."""
    row, given = rows[0], dict(source.columns)
    if task == "text-generation":
        pair = _by_name(row, ("prompt", "completion"), given)
        if set(turn_columns(row)) & set(pair.values()):
            raise _conversations()
        if len(pair) == 2 and "text" not in given:
            if not given.keys() & pair.keys() and not is_empty(row.get("text")):
                raise two_ways(*pair.values())
            return _renamed(pair, given)
        plain = _by_name(row, ("text",), given).get("text")
        if plain is None and turn_columns(row):
            raise _conversations()
        if plain is None and pair and sum(_is_content(value) for value in row.values()) > 1:
            raise _nothing_fits(rows, task, pair)
        plain = plain or _longest(rows)
        if plain is None:
            raise _nothing_fits(rows, task)
        return _renamed({"text": plain}, given)
    wanted = (*INPUTS[task], TARGETS[task])
    found = _by_name(row, wanted, given)
    if task == "summarization" and len(found) < 2:
        found = _by_length(rows) or found
    if len(found) < len(wanted):
        raise _nothing_fits(rows, task, found)
    return _renamed(found, given)


def _is_content(value: Any) -> bool:
    return isinstance(value, str | list | Mapping) and not is_empty(value)


def _conversations() -> InputError:
    return InputError("the rows are conversations", "use the task dialogue")


def _renamed(found: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    return {name: column for name, column in found.items() if (column != name or name in given)}


def _by_name(row: Mapping[str, Any], wanted: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """Columns by their names, each for one purpose."""
    found = {name: given[name] for name in wanted if name in given}
    for name in wanted:
        if name not in found and (column := find_column(map(str, row), name, found.values())) is not None:
            found[name] = column
    return found


def _texts(rows: Sequence[Mapping[str, Any]], needed: int) -> dict[str, list[str]]:
    """The columns of text that are not the same in every row; without notes on the others, if enough are left.

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
    """Characters that all of the sorted values begin with."""
    pairs = zip(values[0], values[-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _lengths(rows: Sequence[Mapping[str, Any]], needed: int) -> list[tuple[float, str]]:
    texts = _texts(rows, needed)
    return sorted(((sum(map(len, values)) / len(values), column) for column, values in texts.items()), reverse=True)


def _longest(rows: Sequence[Mapping[str, Any]]) -> str | None:
    lengths = _lengths(rows, 1)
    return lengths[0][1] if lengths else None


def _by_length(rows: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    """The longest texts are the documents, those next to them the summaries, if they are clearly shorter."""
    lengths = _lengths(rows, 2)
    if len(lengths) < 2 or lengths[0][0] < 2 * lengths[1][0]:
        return None
    return {"document": lengths[0][1], "summary": lengths[1][1]}


# Languages.


def _translation(
    source: SourceSection, rows: Sequence[Mapping[str, Any]], languages: Languages
) -> tuple[dict[str, str], dict[str, str]]:
    """The two columns of a translation, and the languages."""
    row = rows[0]
    if {"source", "target"} <= source.columns.keys():
        columns = dict(source.columns)
        return columns, _languages_of(rows, columns, languages)
    prefix, inner = ("translation.", row["translation"]) if isinstance(row.get("translation"), Mapping) else ("", row)
    spoken = {f"{prefix}{name}": language for name in inner if (language := language_named(str(name)))}
    spoken = {path: language for path, language in spoken.items() if _is_text(rows, path)}
    if len(spoken) >= 2:
        return _pick(spoken, languages)
    found = _by_name(row, ("source", "target"), source.columns)
    if len(found) == 2:
        return _renamed(found, source.columns), _languages_of(rows, found, languages)
    named = {path: language for name in row if (language := language_in(path := str(name))) and _is_text(rows, path)}
    if len(named) >= 2:
        return _pick(named, languages)
    guessed = {column: language for column, values in _texts(rows, 2).items() if (language := _detect(values))}
    if len(guessed) < 2:
        raise _nothing_fits(rows, "translation")
    return _pick(guessed, languages)


def _is_text(rows: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether a column holds text, and not numbers or what identifies rows: ``id`` is Indonesian too."""
    values = [look_up(row, path) for row in rows]
    texts = [value for value in values if isinstance(value, str)]
    marked = [text for text in texts if len(text.split()) == 1 and any(map(str.isdigit, text))]
    return 2 * len(texts) >= len(values) and 2 * len(marked) < len(values)


def _pick(spoken: Mapping[str, Language], languages: Languages) -> tuple[dict[str, str], dict[str, str]]:
    wanted = [find_language(name) if name else None for name in languages]
    order = list(spoken)
    columns: dict[str, str] = {}
    for name, language in zip(("source", "target"), wanted, strict=True):
        if language is None:
            continue
        column = next((each for each in order if spoken[each].alpha2 == language.alpha2), None)
        if column is None:
            names = ", ".join(f"{each} ({spoken[each].name})" for each in order)
            raise InputError(f"no column is in {language.name}", f"the columns are {names}")
        columns[name] = column
    for name in ("source", "target"):
        if name not in columns:
            columns[name] = next(each for each in order if each not in columns.values())
    columns = {name: columns[name] for name in ("source", "target")}
    return columns, {name: spoken[column].tag for name, column in columns.items()}


def _detect(values: Sequence[str]) -> Language | None:
    try:
        return detect_language("\n".join(values[:_SAMPLE])).language
    except UsageError:
        return None


def _languages_of(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], languages: Languages
) -> dict[str, str]:
    """The languages of two columns: as given, else as their texts show."""
    settings = {}
    for name, given in zip(("source", "target"), languages, strict=True):
        values = [value for row in rows if isinstance(value := look_up(row, columns.get(name, name)), str)]
        language = find_language(given) if given else _detect(values)
        if language is not None:
            settings[name] = language.tag
    return settings


def _align(source: SourceSection, names: Sequence[str], languages: Languages) -> tuple[SourceSection, dict[str, str]]:
    """Two files of lines as source and target, in the order of the languages; English first if none are given."""
    spoken: dict[str, Language] = {}
    for name in names:
        language = language_named(Path(name).suffix.removeprefix(".")) or _detect(_first_lines(Path(name), source))
        if language is not None:
            spoken[name] = language
    if len(spoken) == 2 and len({language.tag for language in spoken.values()}) == 2:
        order = sorted(spoken, key=lambda name: spoken[name].alpha2 != "en")
        columns, settings = _pick({name: spoken[name] for name in order}, languages)
    else:
        columns, settings = dict(zip(("source", "target"), names, strict=True)), {}
    return source.model_copy(update={"path": None, "aligned": columns}), settings


# What else there is to say.


def _join(
    rows: Sequence[Mapping[str, Any]], task: str, columns: Mapping[str, str], source: SourceSection
) -> dict[str, str]:
    """What stands between the texts of a list: lines stay lines, sentences get the space that their script has."""
    if source.join is not None:
        return {}
    for name in INPUTS[task]:
        for row in rows:
            value = look_up(row, columns.get(name, name))
            if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
                if task == "text-generation":
                    return {"join": "\n"}
                return {"join": "" if is_unspaced(value[0].strip()[-1:] or " ") else " "}
    return {}


def _left_out(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any], columns: Mapping[str, str], task: str
) -> Iterator[str]:
    """That only the first of several targets is learned."""
    if found.get("shape") == "columns":
        target = columns.get(TARGETS[task], TARGETS[task])
        if any(isinstance(value := look_up(row, target), list) and len(value) > 1 for row in rows):
            yield f"{target} has several texts: the first is learned, all are references"
