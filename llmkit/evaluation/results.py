"""The results of an evaluation row by row: its columns, references, predictions and scores in one JSON Lines file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.files import whole_file
from llmkit.log import log, warn

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Evaluation

__all__ = ["ORIGIN", "json_lines", "log_problems", "write_results"]

ORIGIN = "origin"
"""Key of an evaluated row for its place in the data, its id, and the columns that the task does not use."""


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file whose lines end in a line feed only: texts may contain U+2028, U+2029 and U+0085."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def write_results(path: Path, rows: Path, result: Evaluation) -> Path:
    """Write one record a row, atomically: ``row``, ``where``, ``id``, ``columns``, ``references``, and for the model
    (and under ``baseline`` for the other, and in the list ``by_shots`` for each number of shots) ``prediction``,
    ``scores``, and ``notes`` or ``error`` if there are any.
    """
    with whole_file(path) as file:
        for number, row in enumerate(json_lines(rows)):
            file.write((json.dumps(_record(number, row, result), ensure_ascii=False) + "\n").encode(errors="replace"))
    return path


def _record(number: int, row: Mapping[str, Any], result: Evaluation) -> dict[str, Any]:
    origin: Mapping[str, Any] = row.get(ORIGIN, {})
    columns = {**origin.get("others", {}), **{name: value for name, value in row.items() if name != ORIGIN}}
    record = {"row": number + 1, **{name: origin[name] for name in ("where", "id") if name in origin}}
    record["columns"] = columns
    if result.references:
        record["references"] = result.references[number]
    record |= _of_model(result, number)
    if result.baseline is not None:
        record["baseline"] = dict(_of_model(result.baseline, number))
    if result.by_shots:
        record["by_shots"] = [{"shots": each.shots, **dict(_of_model(each, number))} for each in result.by_shots]
    return record


def _of_model(result: Evaluation, number: int) -> Iterator[tuple[str, Any]]:
    if result.answers:
        answer = result.answers[number]
        yield "prediction", answer.get("text")
        for name in ("error", "notes"):
            if name in answer:
                yield name, answer[name]
    yield "scores", {each.name: each.of_row(number) for each in result.measures}


def log_problems(result: Evaluation, path: Path) -> None:
    """Log each kind of problem once, with its count and the text of the first row that has it."""
    if result.failed:
        error = next(answer["error"]["message"] for answer in result.answers if "error" in answer)
        warn(
            "rows_failed",
            "%d of %d rows could not be answered; see 'error' in %s; the first: %s",
            result.failed,
            result.rows,
            path,
            error,
        )
    if result.unfinished:
        warn(
            "replies_unfinished",
            "%d of %d replies ended before an answer and count as wrong; see %s, and raise `max_new_tokens`",
            result.unfinished,
            result.rows,
            path,
        )
    texts: dict[str, str] = {}
    for answer in result.answers:
        for note in answer.get("notes", ()):
            texts.setdefault(note["code"], note["text"])
    for code, text in sorted(texts.items()):
        log.info("%s (%d of %d answers), such as: %s", code, result.notes[code], result.rows, text)
