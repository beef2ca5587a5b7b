"""Inputs of inference: the files, shapes and columns that training reads, without targets."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.config.settings import RowSettings
from llmkit.data.inputs import input_files, open_inputs
from llmkit.data.proposals import task_rows
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Task, get_task
from llmkit.tasks.translation import Translation, TranslationSettings
from tests.data.test_documents import pdf


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) + "\n"
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def read(task: str | Task, *names: str, **settings: Any) -> list[dict[str, Any]]:
    kind = get_task(task) if isinstance(task, str) else task
    found = open_inputs(RowSettings(input=names, **settings), kind, encoding=None)
    return [{"error": str(record.error)} if record.error else record.row or {} for record in found.records]


QUESTIONS: list[dict[str, Any]] = [
    {"question": "Who jumps?", "id": "q1", "answers": [{"text": "The fox", "answer_start": 0}]},
    {"question": "Where?", "id": "q2", "answers": []},
]
TURNS = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}, {"from": "human", "value": "Who?"}]
REPLY = {"from": "gpt", "value": "The fox."}


def test_questions_of_squad_have_the_context_of_their_paragraph() -> None:
    paragraph: dict[str, Any] = {"context": "The fox jumps.", "qas": QUESTIONS}
    name = write("squad.json", {"version": "v2.0", "data": [{"title": "Fox", "paragraphs": [paragraph]}]})
    first, second = read("question-answering", name)
    assert first == {"title": "Fox", "context": "The fox jumps.", **QUESTIONS[0]}
    assert second["id"] == "q2"
    trained = [record.row or {} for record in task_rows(SourceSection(path=[name]), get_task("question-answering"))]
    for row, same in zip(trained, (first, second), strict=True):
        assert (row["question"], row["context"], row["id"]) == (same["question"], same["context"], same["id"])
    assert len(read("question-answering", name, max_rows=1)) == 1
    del paragraph["qas"][0]["answers"]
    assert len(read("question-answering", write("test.json", {"data": [{"paragraphs": [paragraph]}]}))) == 2


def test_conversations_end_with_the_user_and_the_reply_is_kept() -> None:
    name = write("chats.json", [{"id": 1, "conversations": [*TURNS, REPLY]}, {"id": 2, "conversations": TURNS}])
    first, second = read("dialogue", name)
    assert [message["role"] for message in first["messages"]] == ["user", "assistant", "user"]
    assert first == {"id": 1, "reply": "The fox.", "messages": second["messages"]}
    assert read("dialogue", name, column=("messages=conversations",)) == [first, second]
    assert read("dialogue", write("a.jsonl", {"prompt": "Who?", "id": 3})) == [{"messages": "Who?", "id": 3}]
    pair = write("b.jsonl", {"prompt": TURNS, "completion": [REPLY]})
    assert read("dialogue", pair) == [{"messages": second["messages"], "completion": [REPLY]}]
    with pytest.raises(InputError, match=r"a row has several conversations \(one, two\)"):
        read("dialogue", write("c.jsonl", {"one": TURNS, "two": TURNS}))


def test_instructions() -> None:
    name = write("alpaca.jsonl", {"instruction": "Translate.", "input": "Hund", "output": "dog", "id": 7})
    assert read("text-generation", name) == [{"prompt": "Translate.\n\nHund", "output": "dog", "id": 7}]
    (row,) = read("dialogue", name)
    assert row["messages"] == [{"role": "user", "content": "Translate.\n\nHund"}]


@pytest.mark.parametrize(
    ("task", "row", "columns", "expected"),
    [
        ("summarization", {"article": "a", "id": 1}, (), {"document": "a", "id": 1}),
        ("summarization", {"article": "a", "body": "b"}, ("document=body",), {"article": "a", "body": "b"}),
        ("question-answering", {"q": "w", "passage": "p"}, ("question=q",), {"q": "w", "context": "p"}),
        ("translation", {"en": "Hello there.", "fr": "Salut."}, (), {"source": "Hello there.", "fr": "Salut."}),
        ("translation", {"leaf": "a"}, (), {"leaf": "a"}),
    ],
)
def test_columns_by_the_names_that_training_knows(
    task: str, row: dict[str, Any], columns: tuple[str, ...], expected: dict[str, Any]
) -> None:
    kind = Translation(TranslationSettings(target="fr")) if task == "translation" else get_task(task)
    assert read(kind, write("a.jsonl", row), column=columns) == [expected]


def test_columns_of_several_languages_are_ambiguous_without_a_source() -> None:
    name = write("a.jsonl", {"translation": {"en": "Hello there.", "de": "Hallo.", "fr": "Salut."}})
    with pytest.raises(InputError, match=r"several columns are named by languages \(translation.en, translation.de\)"):
        read(Translation(TranslationSettings(target="fr")), name)
    (row,) = read(Translation(TranslationSettings(source="de", target="fr")), name)
    assert row["source"] == "Hallo."


def test_each_text_of_several_is_a_document_with_the_name_of_its_file() -> None:
    write("docs/b.txt", "The dog.\n")
    write("docs/a 文.txt", "The fox\njumps.\n")
    write("docs/empty.txt", "")
    write("docs/README.md", "no data")
    rows = read("summarization", "docs")
    assert rows[:2] == [
        {"document": "The fox\njumps.\n", "file": "docs/a 文.txt"},
        {"document": "The dog.\n", "file": "docs/b.txt"},
    ]
    assert "docs/empty.txt holds no rows" in rows[2]["error"]
    assert read("summarization", "docs/*.txt") == rows
    assert len(read("summarization", "docs", sample_by="line")) == 4
    assert [row["document"] for row in read("summarization", "docs/a 文.txt")] == ["The fox", "jumps."]
    mixed = read("summarization", write("x.jsonl", {"article": "a"}), "docs/b.txt")
    assert [row["document"] for row in mixed] == ["a", "The dog.\n"]
    with pytest.raises(UsageError, match="no input file is plain text"):
        read("summarization", "x.jsonl", sample_by="document")


def test_outputs_in_the_folder_are_not_inputs() -> None:
    for name in ("a.jsonl", "old.jsonl", "old.jsonl.run.json", "new.jsonl", "old.jsonl.shard-0-of-2.json"):
        write(f"rows/{name}", {"document": "a"})
    for source in ("rows", "rows/*.json*"):
        assert input_files(RowSettings(input=(source,), output="rows/new.jsonl")) == ["rows/a.jsonl"]
    assert input_files(RowSettings(input=("rows/old.jsonl",))) == ["rows/old.jsonl"]


def test_documents_are_rows_of_their_own() -> None:
    write("docs/a.md", "# Reef\n\nIt is *old*.\n")
    write("docs/b.html", "<!doctype html><p>The <b>reef</b>.")
    write("docs/c.txt", "Line one.\nLine two.\n")
    Path("docs/d.pdf").write_bytes(pdf("The reef."))
    Path("docs/e.pdf").write_bytes(pdf(""))
    Path("docs/f.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows = read("summarization", "docs")
    assert [row.get("document", "").strip() for row in rows] == [
        "# Reef\n\nIt is *old*.",
        "The reef.",
        "Line one.\nLine two.",
        "The reef.",
        "",
    ]
    assert [row.get("file") for row in rows[:4]] == [f"docs/{name}" for name in ("a.md", "b.html", "c.txt", "d.pdf")]
    assert "docs/e.pdf has no text: its pages are images" in rows[4]["error"]
    translation = Translation(TranslationSettings(source="en", target="fr"))
    assert read(translation, "docs/b.html")[0]["source"] == "<!doctype html><p>The <b>reef</b>."
    assert read("summarization", "docs/*.pdf", max_rows=1) == [{"document": "The reef.\n\n", "file": "docs/d.pdf"}]


TABLE = [["question", "context", "id"], ["Who, then?", 'The "fox"\njumps.', "1"], ["Wo?", "Im Wald.", "2"]]


def table(delimiter: str) -> str:
    output = io.StringIO()
    csv.writer(output, delimiter=delimiter).writerows(TABLE)
    return output.getvalue()


def pipe_in(text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return "-"


@pytest.mark.parametrize("source", ["file", "pipe"])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_table_in_plain_text_or_from_a_pipe_is_read_as_one(
    delimiter: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = table(delimiter)
    name = write("rows.txt", text) if source == "file" else pipe_in(text, monkeypatch)
    header, *rows = TABLE
    assert read("question-answering", name) == [dict(zip(header, row, strict=True)) for row in rows]
    if source == "file":  # as training reads it
        labelled = text.replace("id", "answers", 1)
        section = SourceSection(path=[write("rows.txt", labelled)])
        trained = [record.row or {} for record in task_rows(section, get_task("question-answering"))]
        assert [row["context"] for row in trained] == [row[1] for row in rows]


def test_columns_and_settings_of_the_caller_make_lines_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Volltext,Nr\nDer Fuchs.,1\nDer Hund.,2\n"
    expected = [{"Volltext": "Der Fuchs.", "Nr": "1"}, {"Volltext": "Der Hund.", "Nr": "2"}]
    for name in (write("rows.txt", text), "-"):
        pipe_in(text, monkeypatch)
        assert read("summarization", name, column=("document=Volltext",)) == expected
        pipe_in(text, monkeypatch)
        assert [row["column1"] for row in read("summarization", name, header=False, column=("document=column1",))] == [
            "Volltext", "Der Fuchs.", "Der Hund."
        ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["Well, one, two.\nYes, no, perhaps.\n", "[1] The fox.\n[2] The dog.\n", "一，二\n三，四\n", "a\tb\nc d\n"]
)
def test_lines_of_text_are_no_table(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": line} for line in text.splitlines()]
    assert read("text-generation", write("rows.txt", text)) == rows
    assert read("text-generation", pipe_in(text, monkeypatch)) == rows


def test_lines_that_may_be_a_table_can_be_said_to_be_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The fox\tjumps\nA dog\tsleeps at night\nNo cat\tsleeps\n"
    for name in (write("rows.txt", text), "-"):
        pipe_in(text, monkeypatch)
        with pytest.raises(InputError, match="pass `sample_by=line` if its lines are texts"):
            read("text-generation", name)
        pipe_in(text, monkeypatch)
        assert read("text-generation", name, sample_by="line")[0] == {"prompt": "The fox\tjumps"}
        pipe_in(text, monkeypatch)
        assert [row["document"] for row in read("summarization", name, sample_by="document")] == [text]


def test_a_pipe_may_hold_a_list_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "The fox"}, {"prompt": "一只狐狸"}]
    for indent in (None, 2):
        assert read("text-generation", pipe_in(json.dumps(rows, indent=indent), monkeypatch)) == rows
