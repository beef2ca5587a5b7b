"""Rows chosen by a condition, without duplicates, or as a fraction: which are used, and that the others are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.config.recipe_file import make_recipe as checked_recipe
from llmkit.config.row_condition import RowCondition
from llmkit.data.proposals import propose, task_rows
from llmkit.data.selection import Selection
from llmkit.errors import InputError, UsageError
from llmkit.tasks import find_task
from llmkit.training.dataset import divide
from llmkit.training.row_table import read_rows
from tests.training.recipes import make_recipe, write_rows

ROW: dict[str, Any] = {
    "lang": "de",
    "score": 0.5,
    "votes": "12",
    "text": "Ein  Satz. ",
    "标题": "新闻",
    "Review Text": "fine",
    "tags": ["a", "b"],
    "meta": {"source": {"name": "wiki"}, "year": 2020},
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
    "ok": True,
    "gone": None,
    "a.b": 1,
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('lang == "de"', True),
        ("lang != 'de'", False),
        ("0.2 < score <= 0.5", True),
        ("len(text) > 20 or ok", True),
        ("not ok", False),
        ("lang in ['en', 'de'] and 'Satz' in text", True),
        ("'c' not in tags", True),
        ("标题 == '新闻' and len(标题) == 2", True),
        ("row['Review Text'].startswith('fi')", True),
        ("meta.source.name == 'wiki' and meta['year'] >= 2020", True),
        ("messages[-1].role == 'assistant' and len(messages) < 3", True),
        ("messages[7].role == None", True),
        ("gone is None and gone == None and missing_here is None", True),
        ("int(votes) > 9 and float(votes) == 12", True),
        ("len(text.split()) == 2 and text.strip().lower().endswith('satz.')", True),
        ("len(text) < 2 * len(lang) + 100 / 4 - -1", True),
        ("a.b == 1", True),
        ("gone != None and len(gone) > 3", False),
    ],
)
def test_conditions(condition: str, expected: bool) -> None:
    assert RowCondition(condition)(ROW) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("votes > 9", r"compares text with a number; convert it, as in float\(votes\)"),
        ("votes == 12", "compares text with a number"),  # never equal, without an error in Python
        ("votes in [12, 13]", "looks for text among a number"),
        ("len(gone) > 3", "cannot be computed for a missing value.*check first that it is there"),
        ("'x' in gone", "looks for text in a missing value"),
        ("gone < 3", "a missing value with a number; check first"),
        ("lang", "is text, not true or false"),
        ("ok and votes", "votes is text, not true or false"),
        ("int(text) == 1", "cannot be computed for text"),
        ("score / 0 > 1", "cannot be computed"),
        ("text * 2 == 'x'", "text is text, not a number"),
        ("lang.name == 'x'", "needs an object or a list"),
        ("tags < tags", "compares a list with a list"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_instead_of_false(condition: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        RowCondition(condition)(ROW)


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('true')",
        "lang.__class__.__mro__[1].__subclasses__()",
        "(lambda: True)()",
        "[x for x in tags]",
        "f'{lang}' == 'de'",
        "open('x')",
        "eval('1')",
        "len(tags, tags)",
        "text.format(1)",
        "len(*tags)",
        "text.split(maxsplit=1)",
        "9 ** 9 ** 9 > 1",
        "lang := 'de'",
        "lang = 'de'",
        "lang == 'de'; ok",
        "lang == ",
        "",
        "not " * 20_000 + "ok",
        "(" * 300 + "ok" + ")" * 300,
        "ok\0",
        "b'x' == 1",
    ],
)
def test_nothing_else_is_a_condition(condition: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a condition on rows"):
        RowCondition(condition)


def test_a_recipe_with_a_wrong_condition_is_refused_at_its_key() -> None:
    content = {"version": 1, "task": "summarize", "model": {"name_or_path": "x"}, "train": {"output_dir": "out"}}
    with pytest.raises(UsageError, match=r"data.train.*where.*open\('x'\) is not supported.*use columns"):
        checked_recipe({**content, "data": {"train": {"path": "x.jsonl", "where": "open('x')"}}})
    with pytest.raises(UsageError, match="deduplicate"):
        checked_recipe({**content, "data": {"train": {"path": "x.jsonl", "deduplicate": "all"}}})


def source(path: Path, **keys: Any) -> SourceSection:
    return SourceSection(path=[str(path)], **keys)


def rows_of(sources: list[SourceSection], selection: Selection | None = None) -> list[Any]:
    task, selection = find_task("summarize")(), selection or Selection()
    records = [record for each in sources for record in task_rows(each, task, selection)]
    return [(record.row and record.row["document"]) or str(record.error) for record in records]


def test_rows_are_selected_before_their_maximum_and_bad_rows_stay(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"document": f"{n}", "summary": "s", "score": n, "lang": "en" if n % 2 else "de"} for n in range(9)
    ]
    path = write_rows(tmp_path / "rows.jsonl", [*rows[:3], "{", {**rows[3], "score": "3"}, *rows[4:]])
    selection = Selection()
    found = rows_of([source(path, where="score > 0 and lang == 'de'")], selection)
    assert [each for each in found if len(each) < 3] == ["2", "4", "6", "8"]
    errors = [each.removeprefix(str(path)) for each in found if len(each) > 3]
    assert [each[:2] for each in errors] == [":4", ":5"]
    assert "score > 0 compares text with a number; convert it, as in float(score)" in errors[1]
    assert selection.left_out == {"where": 4}
    assert rows_of([source(path, where="lang == 'de'", max_rows=2)]) == ["0", "2"]
    assert propose(source(path, where="lang == 'en'"), find_task("summarize")()).source.where


def test_a_column_that_no_row_has(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"document": "d", "summary": "s", "meta": {"lang": "de"}}])
    with pytest.raises(InputError, match=r"rows.jsonl:1: where: no row has 'sumary' .*did you mean summary\?"):
        rows_of([source(path, where="len(sumary) > 3")])
    with pytest.raises(InputError, match=r"no row has 'meta.lnag'"):
        rows_of([source(path, where="meta.lnag == 'de'")])
    with pytest.raises(InputError, match=r"no row fulfils where: meta.lang == 'en'; change the condition"):
        rows_of([source(path, where="meta.lang == 'en'")])


def test_of_a_table_every_value_is_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("document,summary,stars\na,b,5\nc,d,2\n")
    assert rows_of([source(tmp_path / "rows.csv", where="int(stars) > 3")]) == ["a"]


def test_duplicates_by_input_or_row_with_normalized_text(tmp_path: Path) -> None:
    pairs = [
        ("Café  au\nlait", "x"),
        ("Cafe\u0301 au lait", "x"),
        ("Café au lait", "y"),
        ("CAFÉ au lait", "x"),
        ("中文", "x"),
    ]
    rows = [
        {"id": number, "document": document, "summary": summary} for number, (document, summary) in enumerate(pairs)
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert rows_of([source(path)]) == [document for document, _ in pairs]
    assert rows_of([source(path, deduplicate="row")]) == [pairs[place][0] for place in (0, 2, 3, 4)]
    selection = Selection()
    assert rows_of([source(path, deduplicate="input")], selection) == [pairs[place][0] for place in (0, 3, 4)]
    assert selection.left_out == {"deduplicate": 2}
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": reply}] for text, reply in pairs]
    talks = source(write_rows(tmp_path / "chats.jsonl", [{"messages": turns} for turns in chats]), deduplicate="input")
    assert len(list(task_rows(talks, find_task("chat")()))) == 3
    # Across sources, unless one keeps its own.
    again = write_rows(tmp_path / "again.jsonl", [rows[4], {"document": "new", "summary": "x"}])
    assert rows_of([source(path, deduplicate="input"), source(again, deduplicate="input")])[3:] == ["new"]
    assert rows_of([source(path, deduplicate="input"), source(again)])[3:] == ["中文", "new"]


def test_a_training_fraction_keeps_groups_and_the_held_out_rows(tmp_path: Path) -> None:
    rows = [{"document": f"d{number // 2}", "summary": f"s{number}"} for number in range(200)]
    path = write_rows(tmp_path / "rows.jsonl", rows)

    def split(**data: Any) -> tuple[set[int], set[int]]:
        recipe = make_recipe("summarization", Path("x"), path, data=data)
        task = find_task("summarize")()
        trained, held = divide(recipe, read_rows(recipe.data.train, task))
        return set(trained), set(held)

    everything, held = split(validation_fraction=0.1)
    parts = [split(validation_fraction=0.1, train_fraction=share) for share in (0.1, 0.5)]
    assert [other for _, other in parts] == [held, held]
    assert [len(trained) for trained, _ in parts] == [18, 90]
    assert parts[0][0] < parts[1][0] < everything
    assert all({index ^ 1 for index in trained} == trained for trained, _ in parts)  # both rows of an input
    alone, none = split(train_fraction=0.25)
    assert (len(alone), none) == (50, set())
    assert split(train_fraction=0.25, seed=1)[0] != alone
