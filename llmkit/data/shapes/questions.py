"""Questions with their contexts and answers, in columns or in the format of SQuAD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.config.recipe import SourceSection
from llmkit.data.conversations import as_flag
from llmkit.data.shapes.base import Found, InputPlan, Rows, Shape, Suggested, look_up
from llmkit.data.shapes.columns import Columns
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.text.answers import to_answers

__all__ = ["Questions", "Squad"]

_EXTRAS = ("answer_start", "is_impossible")


class Questions(Columns):
    """Columns of question, context and answers, optionally with ``answer_start`` and ``is_impossible``."""

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return super().used(row, source, task) | {source.columns.get(name, name) for name in _EXTRAS}

    def _value(
        self, name: str, value: Any, row: Mapping[str, Any], source: SourceSection, task: Task
    ) -> dict[str, Any]:
        if name != task.target_column:
            return super()._value(name, value, row, source, task)
        return {name: _answers(value, *(look_up(row, source.columns.get(extra, extra)) for extra in _EXTRAS))}


class Squad(Shape):
    """SQuAD v1.1 and v2.0, CMRC 2018: rows are articles with paragraphs with questions, paragraphs, or questions."""

    written = "squad"

    def suggest(self, source: SourceSection, rows: Rows, task: Task) -> Suggested | None:
        return Suggested({"shape": self.written}) if {"paragraphs", "qas"} & rows[0].keys() else None

    def plan_input(self, rows: Rows, columns: Mapping[str, str], task: Task) -> InputPlan | None:
        return InputPlan(columns, _input_questions) if {"paragraphs", "qas"} & rows[0].keys() else None

    def used(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> set[str]:
        return {"paragraphs", "qas", "question", "context", "answers", *_EXTRAS, "id"}

    def convert(self, row: Mapping[str, Any], source: SourceSection, task: Task) -> Found:
        if "paragraphs" not in row and "qas" not in row:
            yield "", _question(row, row.get("context"))
            return
        for suffix, question, context in _questions(row):
            yield suffix, _question(question, context)


def _questions(row: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Each question of an article or paragraph, with its place and context."""
    paragraphs = row.get("paragraphs", [row])
    for paragraph in paragraphs if isinstance(paragraphs, list) else [paragraphs]:
        context = paragraph.get("context") if isinstance(paragraph, Mapping) else None
        if not isinstance(context, str) or not isinstance(paragraph.get("qas"), list):
            raise InputError("has a paragraph without context and qas", "follow the format of SQuAD")
        for number, question in enumerate(paragraph["qas"], start=1):
            if not isinstance(question, Mapping):
                raise InputError(
                    f"has a question that is not an object (number {number})", "follow the format of SQuAD"
                )
            yield f", question {question.get('id', number)}", question, context


def _input_questions(row: Mapping[str, Any]) -> Found:
    """Questions with their contexts, whether they have answers or not."""
    article = {name: value for name, value in row.items() if name not in ("paragraphs", "qas", "context")}
    for suffix, question, context in _questions(row):
        yield suffix, {**article, **question, "context": context}


def _answers(value: Any, start: Any, impossible: Any) -> dict[str, list[Any]]:
    if impossible is not None and as_flag("is_impossible", impossible):
        return to_answers(None)
    return to_answers(value, start)


def _question(item: Mapping[str, Any], context: Any) -> dict[str, Any]:
    question = item.get("question")
    if not isinstance(question, str) or not isinstance(context, str):
        raise InputError("has a question without its text or its context", "follow the format of SQuAD")
    impossible = item.get("is_impossible")
    if "answers" not in item and impossible is None:
        raise InputError("has a question without answers", "write answers: [] if the context has none")
    identity = {"id": item["id"]} if item.get("id") is not None else {}
    answers = _answers(item.get("answers"), item.get("answer_start"), impossible)
    return {"question": question, "context": context, "answers": answers, **identity}
