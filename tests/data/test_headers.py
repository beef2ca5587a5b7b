"""Whether the first row of a table is a header: found out from the row, and alike in training and inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.headers import find_header
from llmkit.data.proposals import propose, task_rows
from llmkit.data.rows import Layout, open_records
from llmkit.errors import InputError
from llmkit.tasks import get_task


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(*lines: str) -> SourceSection:
    name = "a.tsv" if "\t" in lines[0] else "a.csv"
    Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return SourceSection(path=[name])


def read(section: SourceSection, task: str) -> list[dict[str, Any]]:
    """The rows; those of inference, and of the frozen proposal, have the same columns."""
    assert section.path is not None
    found = [record.row for record in task_rows(section, get_task(task))]
    proposal = propose(section, get_task(task)).source
    assert [record.row for record in task_rows(proposal, get_task(task))] == found
    named = frozenset(proposal.columns.values())
    raw = [record.row for record in open_records(section.path[0], layout=Layout(named=named))]
    assert len(raw) == len(found)
    return [row or {} for row in found]


QUESTIONS = ("what is it,fox", "who is it,dog", "where is it,house")
PAIRS = ("Hello.,你好。", "The house is big.,房子很大。", "Bye.,再见。")


@pytest.mark.parametrize(
    ("task", "header", "rows", "first"),
    [
        ("summarization", "Full Text,Short Summary", ("the quick fox jumps,fox", "the lazy dog is at home,dog"), "fox"),
        ("text-generation", "User Question,Bot Answer", QUESTIONS, "fox"),
        ("text-generation", "userQuestion,bot_answer", QUESTIONS, "fox"),
        ("text-generation", "用户问题,机器人回答", QUESTIONS, "fox"),
        ("text-generation", "Question (EN),Answer (EN)", QUESTIONS, "fox"),
        ("text-generation", "Date,Your question?", ("2026-01-01,what is it", "2026-01-02,who is it"), "what is it"),
        ("text-generation", "input_text,target_text", QUESTIONS, "fox"),
        ("translation", "英文,中文", PAIRS, "你好。"),
        ("translation", "English,Chinese", PAIRS, "你好。"),
        ("translation", "en,zh", PAIRS, "你好。"),
        ("translation", "English\tChinese\tNo.", tuple(f"{pair}\t1".replace(",", "\t") for pair in PAIRS), "你好。"),
    ],
)
def test_a_header_of_other_names(task: str, header: str, rows: tuple[str, ...], first: str) -> None:
    found = read(table(header, *rows), task)
    assert len(found) == len(rows)
    assert first in found[0].values()


@pytest.mark.parametrize("header", ["sentence", "My Poems", "诗句", "text"])
def test_a_header_of_one_column(header: str) -> None:
    rows = read(
        table(header, "The fox jumps over the lazy dog", "The dog sleeps all day and all night"), "text-generation"
    )
    assert [row["text"][:7] for row in rows] == ["The fox", "The dog"]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text-generation", QUESTIONS),
        ("text-generation", ("The fox jumps.", "The dog sleeps.")),
        ("translation", PAIRS),
        ("summarization", tuple(f"这篇文章讨论了第{n}个问题并且给出了结论,第{n}个问题" for n in range(3))),
        ("translation", ("en\tThe fox\tLe renard", "en\tThe dog\tLe chien", "en\tThe house\tLa maison")),
    ],
)
def test_a_table_without_header(task: str, rows: tuple[str, ...]) -> None:
    assert len(read(table(*rows), task)) == len(rows)


@pytest.mark.parametrize("rows", [("cat,Katze", "dog,Hund"), ("Alpha One,Beta Two", "Gamma One,Delta Two"), ("fox",)])
def test_in_doubt_the_user_is_asked(rows: tuple[str, ...]) -> None:
    section = table(*rows)
    with pytest.raises(InputError, match=r"a\.csv: the first row \(.*\) may name the columns or be data; .*above it"):
        read(section, "translation")
    with pytest.raises(InputError, match="may name the columns or be data"):
        list(open_records("a.csv", layout=Layout(named=frozenset())))


def test_a_name_that_the_caller_gives_makes_the_header() -> None:
    rows = ("Alpha One,Beta Two", "Gamma One,Delta Two")
    section = table(*rows).model_copy(update={"columns": {"prompt": "Alpha One", "completion": "Beta Two"}})
    assert [record.row for record in task_rows(section, get_task("text-generation"))] == [
        {"prompt": "Gamma One", "completion": "Delta Two"}
    ]
    layout = Layout(named=frozenset({"Alpha One"}))
    assert [record.row for record in open_records("a.csv", layout=layout)] == [
        {"Alpha One": "Gamma One", "Beta Two": "Delta Two"}
    ]
    section = table(*rows).model_copy(update={"column_names": ["prompt", "completion"]})
    assert len(list(task_rows(section, get_task("text-generation")))) == 2


def test_column_names_that_stand_in_the_file_are_no_row() -> None:
    section = table("prompt,completion", *QUESTIONS).model_copy(update={"column_names": ["prompt", "completion"]})
    with pytest.raises(InputError, match=r"a\.csv has the column_names in its first row; leave column_names out"):
        list(task_rows(section, get_task("text-generation")))


def test_the_advice_of_a_doubtful_table_works() -> None:
    assert len(read(table("source,target", "cat,Katze", "dog,Hund"), "translation")) == 2


def test_a_title_above_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="row 3 names the columns; remove the rows above it"):
        find_header([["Report", ""], ["of May", ""], ["text", "summary"], ["A", "B"]], (), "a.csv")
