"""Whether the first row of a table is a header: found out from the row, and alike in training and inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.headers import find_header
from llmkit.data.proposals import propose, task_rows
from llmkit.data.rows import Layout, open_records
from llmkit.data.sources import open_source
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
    with pytest.raises(InputError, match=r"a\.csv: the first row \(.*\) may be a header or data; pass `header=True`"):
        read(section, "translation")
    with pytest.raises(InputError, match="may be a header or data"):
        list(open_records("a.csv"))
    trained = section.model_copy(update={"header": False})
    assert len(list(open_records("a.csv", layout=Layout(header=False)))) == len(list(open_source(trained))) == len(rows)
    if rows[1:]:
        trained = section.model_copy(update={"header": True})
        (said,) = open_records("a.csv", layout=Layout(header=True))
        assert list(said.row or ()) == rows[0].split(",")
        assert list(open_source(trained)) == [said]


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


def test_a_named_column_that_the_first_row_lacks_is_refused() -> None:
    section = table("Full Abstract,Short Text", "We study llamas.,Llamas.")
    named = section.model_copy(update={"columns": {"document": "Full Abstrct", "summary": "Summary"}})
    with pytest.raises(
        InputError, match=r"no column 'Full Abstrct' in its first row \(.*\); did you mean 'Full Abstract'"
    ):
        list(task_rows(named, get_task("summarization")))


PAPERS = (
    '"We study how llamas count; they do so in groups, every day of the week.","Llamas count."',
    '"Another paper is about sheep, about how they sleep, and about where.","Sheep sleep, well."',
)


@pytest.mark.parametrize("columns", [{}, {"document": "Full Abstract Text", "summary": "TL;DR (author)"}])
@pytest.mark.parametrize("shape", [None, "columns"])
def test_a_header_with_delimiters_in_its_names(columns: dict[str, str], shape: Any) -> None:
    section = table("Full Abstract Text,TL;DR (author)", *PAPERS)
    if shape is None or columns:
        found = read(section.model_copy(update={"columns": columns, "shape": shape}), "summarization")
        assert [row["summary"] for row in found] == ["Llamas count.", "Sheep sleep, well."]


@pytest.mark.parametrize(
    ("lines", "is_header"),
    [
        # Tables whose header other detectors miss: CPython 102140, 102386, pypy 5244, CleverCSV 44, DuckDB 6192.
        (("sample,fastq_1", *(f"A{n}-5,/mnt/scratch/A{n}-5/A{n}-5_R1.fastq.gz" for n in range(1, 9))), True),
        (("col1,col2,col3", "1,2,3", "a,b,c", "A,B,C", "22,22,12"), True),
        (("filename,path", "c.txt,/tmp/c.txt", "python.txt,/tmp/python.txt"), True),
        (("col1,col2,col3", "hello,hello world,1.2", "world,hello world,1.2", "test,hello world 您,1"), True),
        (("continent", "Africa", "Asia", "Europe", "America"), True),
        (("标题,正文", "你好,天气很好", "再见,我们走吧"), True),
        (("作者,摘要全文", *(f"作者{n},这篇文章讨论了第{n}个问题并且给出了结论。" for n in range(3))), True),
        (("Когда,Что сказано", "вчера,Мы видели лису в лесу.", "сегодня,Лиса ушла домой спать."), True),
        (("lang,utterance here", *(f"en,say it {n} times" for n in range(5))), True),
        # Data, of which other detectors take the first row for a header: DuckDB 10714, 12742.
        (("Pedro,~29", "Mark,>30"), False),
        (("1", "2", "3"), False),
        (("Hi,Salut", "Good morning,Bonjour à tous", "See you,À bientôt mes amis"), None),
        (("Go.,Va !", "Run!,Cours !", "Wait a moment please.,Attends un moment."), False),
        (("the fox ran to the house,a", "the dog ran to the river,b", "the cat ran to the mat,c"), False),
        (("我们今天去公园,x", "我们今天去学校,y", "我们今天去公司,z"), False),
    ],
)
def test_signs_of_a_header_and_of_data(lines: tuple[str, ...], is_header: bool | None) -> None:
    rows = [line.split(",") for line in lines]
    if is_header is None:
        with pytest.raises(InputError, match="may be a header or data"):
            find_header(rows, (), "a.csv")
    else:
        assert (find_header(rows, (), "a.csv") is not None) == is_header


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_is_detected_or_set(delimiter: str, name: str) -> None:
    lines = ("text{}summary, short", "We study llamas: they count, 1,5 a day{}Llamas, count", "Sheep, too{}Sheep")
    texts = [line.replace("{}", delimiter) if delimiter != "," else f'"{line}"'.replace("{}", '","') for line in lines]
    Path(name).write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    section = SourceSection(path=[name])
    found = list(open_source(section))
    assert [record.row["summary, short"] for record in found if record.row] == ["Llamas, count", "Sheep"]
    said = SourceSection(path=[name], delimiter="tab" if delimiter == "\t" else delimiter)
    assert list(open_source(said)) == found
    with pytest.raises(InputError, match="`delimiter=~` is not in the first line"):
        list(open_source(SourceSection(path=[name], delimiter="~")))


def test_settings_of_tables_are_refused_for_other_files() -> None:
    Path("a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="is not CSV or TSV, so `header` has no effect; leave it out"):
        list(open_source(SourceSection(path=["a.jsonl"], header=True)))


def test_a_title_above_the_header_is_refused() -> None:
    with pytest.raises(InputError, match="row 3 names the columns; remove the rows above it"):
        find_header([["Report", ""], ["of May", ""], ["text", "summary"], ["A", "B"]], (), "a.csv")
