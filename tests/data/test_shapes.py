"""Data in the shapes they have in the wild: what is proposed, and the rows that come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import Proposal, propose, task_rows
from llmkit.data.shapes import SHAPES, mapped_rows
from llmkit.errors import InputError, UsageError
from llmkit.tasks import Task, get_task
from llmkit.tasks.translation import TranslationSettings


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(name: str, *rows: Any, **settings: Any) -> SourceSection:
    """A file of JSON Lines, of JSON, or of the text that is given."""
    if rows and isinstance(rows[0], str):
        Path(name).write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    elif name.endswith(".json"):
        Path(name).write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    else:
        Path(name).write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return SourceSection(path=[name], **settings)


def task_of(name: str, source: str | None = None, target: str | None = None) -> Task:
    return get_task(name, TranslationSettings(source=source, target=target) if source or target else None)


def read(section: SourceSection, task: str, *languages: str | None) -> list[dict[str, Any]]:
    rows = []
    for record in task_rows(section, task_of(task, *languages)):
        assert record.row is not None, record.error
        rows.append(record.row)
    return rows


def proposed(section: SourceSection, task: str, *languages: str | None) -> tuple[Proposal, dict[str, Any]]:
    """The proposal, and what it sets; the frozen source must read the same rows as the one that was not."""
    found = propose(section, task_of(task, *languages))
    assert read(found.source, task, *languages) == read(section, task, *languages)
    return found, found.source.model_dump(exclude_defaults=True, exclude={"path"})


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "今天天气很好。",
                    "qas": [
                        {"id": "a", "question": "天气？", "answers": [{"text": "很好", "answer_start": 4}]},
                        {"id": "b", "question": "谁？", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ],
}


def test_nested_squad() -> None:
    section = source("a.json", SQUAD)
    found, shape = proposed(section, "question-answering")
    assert shape == {"shape": "squad"}
    first, second = read(section, "question-answering")
    assert first["answers"] == {"text": ["很好"], "answer_start": [4]}
    assert second == {
        "question": "谁？",
        "context": "今天天气很好。",
        "answers": {"text": [], "answer_start": []},
        "id": "b",
    }
    assert [record.where for record in task_rows(section, task_of("question-answering"))] == [
        "a.json, item 1, question a",
        "a.json, item 1, question b",
    ]
    assert found.settings == {}


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"text": ["fox"], "answer_start": [4]}, {"text": ["fox"], "answer_start": [4]}),
        ([{"text": "fox", "answer_start": 4}], {"text": ["fox"], "answer_start": [4]}),
        ("fox", {"text": ["fox"], "answer_start": []}),
        (["fox", "a fox"], {"text": ["fox", "a fox"], "answer_start": []}),
        ({"text": "fox", "answer_start": 4}, {"text": ["fox"], "answer_start": [4]}),
        ({"text": ["", "fox"], "answer_start": [-1, 4]}, {"text": ["fox"], "answer_start": [4]}),
        ("", {"text": [], "answer_start": []}),
        (None, {"text": [], "answer_start": []}),
        ({"text": [""], "answer_start": [-1]}, {"text": [], "answer_start": []}),
        ({"text": None, "answer_start": None}, {"text": [], "answer_start": []}),
        ([{"text": " ", "answer_start": 0}], {"text": [], "answer_start": []}),
        ([None], {"text": [], "answer_start": []}),
        ([], {"text": [], "answer_start": []}),
        ("{'text': ['fox'], 'answer_start': [4]}", {"text": ["fox"], "answer_start": [4]}),
        ('{"text": ["fox"], "answer_start": [4]}', {"text": ["fox"], "answer_start": [4]}),
        ("['fox', \"the fox\"]", {"text": ["fox", "the fox"], "answer_start": []}),
        ("{'text': [], 'answer_start': []}", {"text": [], "answer_start": []}),
        ("[fox]", {"text": ["[fox]"], "answer_start": []}),
    ],
)
def test_answers_in_any_form(answers: Any, found: Any) -> None:
    section = source("a.jsonl", {"query": "Who?", "passage": "The fox.", "answers": answers})
    assert read(section, "question-answering") == [{"question": "Who?", "context": "The fox.", "answers": found}]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"answer": {"value": "fox", "aliases": ["foxes"]}},
        {"answers": "{'text': array(['fox'], dtype=object), 'answer_start': array([4])}"},
        {"answers": "['fox' 'the fox']"},
        {"answers": [{"value": "fox"}]},
        {"answers": ["fox"], "is_impossible": "perhaps"},
    ],
)
def test_answers_that_are_missing_or_unclear_are_a_bad_row(row: dict[str, Any]) -> None:
    section = source("a.jsonl", {"question": "Who?", "context": "The fox.", **row}, shape="columns")
    section = section.model_copy(update={"columns": {"answers": "answer"} if "answer" in row else {}})
    (record,) = task_rows(section, task_of("question-answering"))
    assert record.row is None
    nested = [{"context": "The fox.", "qas": [{"question": "Who?", **row}]}]
    (record,) = task_rows(source("b.json", nested), task_of("question-answering"))
    assert record.row is None


@pytest.mark.parametrize(
    ("impossible", "texts"),
    [(True, []), ("true", []), (1, []), (False, ["fox"]), ("false", ["fox"]), ("False", ["fox"]), (None, ["fox"])],
)
def test_impossible_questions_as_bool_and_as_text(impossible: Any, texts: list[str]) -> None:
    row = {"question": "Who?", "answers": {"text": ["fox"], "answer_start": [4]}, "is_impossible": impossible}
    nested = source("a.json", [{"context": "The fox.", "qas": [row]}])
    flat = source("b.jsonl", {**row, "context": "The fox."})
    for section in (nested, flat):
        assert read(section, "question-answering")[0]["answers"]["text"] == texts


def test_lists_of_sentences_and_of_references() -> None:
    section = source("a.jsonl", {"source": ["One.", "Two."], "target": ["A.", "B."], "paper": 1})
    found, shape = proposed(section, "summarization")
    assert shape == {"shape": "columns", "columns": {"document": "source", "summary": "target"}, "join": " "}
    assert read(section, "summarization") == [{"document": "One. Two.", "summary": "A.", "references": ["A.", "B."]}]
    assert "not used: paper" in found.notes
    assert any("several texts" in note for note in found.notes)


@pytest.mark.parametrize(
    ("columns", "document", "summary"),
    [
        (("article", "highlights"), "article", "highlights"),
        (("article", "abstract"), "article", "abstract"),
        (("abstract", "title"), "abstract", "title"),
        (("dialogue", "summary"), "dialogue", "summary"),
        (("正文", "标题"), "正文", "标题"),
        (("Text", "Summary"), "Text", "Summary"),
    ],
)
def test_columns_by_their_names(columns: tuple[str, str], document: str, summary: str) -> None:
    section = source("a.jsonl", dict(zip(columns, ("a long text", "short"), strict=True)))
    _, shape = proposed(section, "summarization")
    expected = {name: column for name, column in (("document", document), ("summary", summary)) if name != column}
    assert shape.get("columns", {}) == expected


def test_a_tsv_without_header_by_its_content() -> None:
    rows = [f"to title\t这篇文章讨论了第{n}个问题，并且给出了详细的分析和结论。\t第{n}个问题" for n in range(9)]
    found, shape = proposed(source("a.tsv", *rows), "summarization")
    assert shape["header"] is False
    assert shape["columns"] == {"document": "column2", "summary": "column3"}
    assert any("not a header" in note for note in found.notes)


def test_a_text_file_that_is_a_table_of_pairs() -> None:
    rows = [f"Number {n}.\t第{n}号。\tCC-BY 2.0 Attribution: #{n}" for n in range(9)]
    rows[4] = 'He said "no.\t他说"不。\tCC-BY 2.cc.convert(0'
    found, shape = proposed(source("a.txt", *rows), "translation")
    assert shape["format"] == "tsv"
    assert shape["columns"] == {"source": "column1", "target": "column2"}
    assert found.settings == {"source": "en", "target": "zh"}
    back, shape = proposed(source("a.txt", *rows), "translation", "zh", "en")
    assert shape["columns"] == {"source": "column2", "target": "column1"}
    assert back.settings == {"source": "zh", "target": "en"}
    assert read(source("a.txt", *rows), "translation")[4] == {"source": 'He said "no.', "target": '他说"不。'}


def test_marks_that_enclose_no_field() -> None:
    rows = ["source\ttarget", '"Yes" is short.\t“是”很短。', "No.\t不。"]
    _, shape = proposed(source("a.tsv", *rows), "translation", "en", "zh")
    assert shape["quotes"] is False


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"translation": {"en": "Yes", "fr": "Oui"}}, {"source": "translation.en", "target": "translation.fr"}),
        ({"eng": "Yes", "fra": "Oui"}, {"source": "eng", "target": "fra"}),
        ({"English": "Yes", "French": "Oui", "score": 1}, {"source": "English", "target": "French"}),
        (
            {"id": 7, "sentence_eng_Latn": "Yes", "sentence_fra_Latn": "Oui"},
            {"source": "sentence_eng_Latn", "target": "sentence_fra_Latn"},
        ),
    ],
)
def test_columns_called_by_languages(row: dict[str, Any], columns: dict[str, str]) -> None:
    found, shape = proposed(source("a.jsonl", row), "translation")
    assert shape["columns"] == columns
    assert found.settings == {"source": "en", "target": "fr"}
    back = propose(source("a.jsonl", row), task_of("translation", "fr", None))
    assert back.source.columns == {"source": columns["target"], "target": columns["source"]}
    with pytest.raises(InputError, match="no column is in German"):
        propose(source("a.jsonl", row), task_of("translation", "de", None))


@pytest.mark.parametrize("identity", [1, "s-1", "3f2a9c"])
@pytest.mark.parametrize("name", ["id", "no"])
def test_what_identifies_rows_is_no_language(name: str, identity: Any) -> None:
    rows = [{name: identity, "en": "The house", "fr": "La maison"}]
    found, shape = proposed(source("a.jsonl", *rows), "translation")
    assert shape["columns"] == {"source": "en", "target": "fr"}
    assert found.settings == {"source": "en", "target": "fr"}
    spoken = {"id": "Rumah itu besar", "en": "The house is big"}
    found, shape = proposed(source("b.jsonl", spoken), "translation")
    assert found.settings == {"source": "id", "target": "en"}


@pytest.mark.parametrize("paths", [["a.eng", "a.zho"], ["a.*"]])
def test_aligned_files(paths: list[str]) -> None:
    Path("a.zho").write_text("你好。\n再见。\n", encoding="utf-8")
    Path("a.eng").write_text("Hello.\nBye.\n", encoding="utf-8")
    found, shape = proposed(SourceSection(path=paths), "translation")
    assert shape == {"aligned": {"source": "a.eng", "target": "a.zho"}, "shape": "columns"}
    assert found.settings == {"source": "en", "target": "zh"}
    back, shape = proposed(SourceSection(path=paths), "translation", "zh", None)
    assert shape["aligned"] == {"source": "a.zho", "target": "a.eng"}
    assert back.settings == {"source": "zh", "target": "en"}


TALK = [("user", "Hi"), ("assistant", "你好"), ("user", "Bye"), ("assistant", "再见")]


@pytest.mark.parametrize(
    ("column", "role", "text", "names"),
    [
        ("messages", "role", "content", {"user": "user", "assistant": "assistant"}),
        ("conversations", "from", "value", {"user": "human", "assistant": "gpt"}),
        ("turns", "speaker", "utterance", {"user": "USER", "assistant": "SYSTEM"}),
        ("dialog", "author", "text", {"user": "Anna", "assistant": "Ben"}),
    ],
)
def test_conversations(column: str, role: str, text: str, names: dict[str, str]) -> None:
    section = source("a.jsonl", {"id": 1, column: [{role: names[who], text: said} for who, said in TALK]})
    _, shape = proposed(section, "dialogue")
    assert shape["shape"] == "messages"
    (row,) = read(section, "dialogue")
    assert [(message["role"], message["content"]) for message in row["messages"]] == TALK


def test_turns_of_one_speaker_stay_and_system_messages_are_one() -> None:
    turns = [{"from": who, "value": who} for who in ("system", "system", "human", "human", "gpt")]
    (row,) = read(source("a.jsonl", {"conversations": turns}), "dialogue")
    assert [message["content"] for message in row["messages"]] == ["system\nsystem", "human", "human", "gpt"]


def test_three_strangers_are_a_bad_row() -> None:
    turns = [{"speaker": who, "text": "x"} for who in ("A", "B", "C")]
    (record,) = task_rows(source("a.jsonl", {"turns": turns}), task_of("dialogue"))
    assert str(record.error).startswith("a.jsonl:1 has speakers with unknown roles (A, B, C)")


def test_alpaca() -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "input": "", "output": "Ho"}]
    section = source("a.json", rows)
    assert read(section, "text-generation") == [
        {"prompt": "Add.\n\n1 2", "completion": "3"},
        {"prompt": "Hi", "completion": "Ho"},
    ]
    assert read(section, "dialogue")[1]["messages"][0] == {"role": "user", "content": "Hi"}
    (record,) = task_rows(source("b.json", [{**rows[0], "history": [["a", "b"]]}]), task_of("text-generation"))
    assert "use the task dialogue" in str(record.error)


def test_poems_keep_their_lines() -> None:
    section = source("a.json", [{"author": "李白", "paragraphs": ["床前明月光，", "疑是地上霜。"], "title": "静夜思"}])
    _, shape = proposed(section, "text-generation")
    assert (shape["columns"], shape["join"]) == ({"text": "paragraphs"}, "\n")
    assert read(section, "text-generation") == [{"text": "床前明月光，\n疑是地上霜。"}]


def test_prose_is_a_document_and_pairs_are_pairs() -> None:
    _, shape = proposed(source("a.txt", "To be,", "or not to be."), "text-generation")
    assert shape == {"shape": "columns", "sample_by": "document"}
    assert read(source("b.jsonl", {"input": "a", "response": "b"}), "text-generation") == [
        {"prompt": "a", "completion": "b"}
    ]


def test_named_columns_win_and_missing_ones_are_named() -> None:
    section = source("a.jsonl", {"x": {"y": "text"}, "z": "short", "summary": "no"}, {"z": "short"})
    section = section.model_copy(update={"columns": {"document": "x.y", "summary": "z"}})
    good, bad = task_rows(section, task_of("summarization"))
    assert good.row == {"document": "text", "summary": "short"}
    assert str(bad.error) == (
        "a.jsonl:2 has no column 'x.y' (its columns: z); map it: data.train.columns: {document: …}"
    )


def test_only_what_is_missing_is_named() -> None:
    with pytest.raises(
        InputError,
        match=r"^a.jsonl:1: no column matches answers of .*columns: {answers: …}, or name one",
    ):
        propose(source("a.jsonl", {"question": "Who?", "context": "The fox."}), task_of("question-answering"))


_TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The fox."}]


@pytest.mark.parametrize(
    ("rows", "task", "begins"),
    [
        (
            [{"instruction": "a", "response": "b", "text": "c"}],
            "text-generation",
            "a.jsonl:1 has a text in addition to",
        ),
        (
            [{"text": "a"}, {"text": "a", "chosen": "b", "rejected": "c"}],
            "text-generation",
            "a.jsonl:2 has a rejected answer",
        ),
        ([{"one": _TURNS, "two": _TURNS}], "dialogue", "a.jsonl:1: a row has several conversations"),
        ([{"messages": _TURNS}], "text-generation", "a.jsonl:1: the rows are conversations"),
        ([{"turns": '[{"role": "user"}]'}], "dialogue", "a.jsonl:1: the turns are a string"),
    ],
)
def test_what_cannot_be_proposed_names_its_place(rows: list[dict[str, Any]], task: str, begins: str) -> None:
    with pytest.raises(InputError) as failure:
        propose(source("a.jsonl", *rows), task_of(task))
    assert str(failure.value).startswith(begins)


@pytest.mark.parametrize("task", ["summarization", "question-answering", "translation", "dialogue"])
def test_nothing_fits(task: str) -> None:
    with pytest.raises(InputError, match=r"no column matches .* \(columns: foo, bar\)"):
        propose(source("a.jsonl", {"foo": 1, "bar": 2}), task_of(task))


def test_values_of_another_kind_are_bad_rows() -> None:
    section = source("a.jsonl", {"document": {"a": 1}, "summary": "s"}, {"document": 5, "summary": "s"})
    bad, good = task_rows(section, task_of("summarization"))
    assert "has a dict as its document" in str(bad.error)
    assert good.row == {"document": "5", "summary": "s"}


QUESTION = {"question": "When?", "context": "It was 1999."}


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"text": 1999, "answer_start": 7}, {"text": ["1999"], "answer_start": [7]}),
        ({"text": ["1999"], "answer_start": 7.0}, {"text": ["1999"], "answer_start": [7]}),
        ({"text": ["1999"], "answer_start": [7.5]}, {"text": ["1999"], "answer_start": []}),
        ({"text": None}, {"text": [], "answer_start": []}),
        (1999, {"text": ["1999"], "answer_start": []}),
    ],
)
def test_answers_that_are_numbers(answers: Any, found: Any) -> None:
    section = source("a.jsonl", {**QUESTION, "answers": answers}).model_copy(update={"shape": "columns"})
    (record,) = mapped_rows(section, task_of("question-answering"))
    assert record.row == {**QUESTION, "answers": found}


@pytest.mark.parametrize(
    ("shape", "task", "row"),
    [
        ("columns", "question-answering", {**QUESTION, "answers": {"text": {"a": 1}}}),
        ("columns", "question-answering", {**QUESTION, "answers": [[1]]}),
        ("squad", "question-answering", {"paragraphs": None}),
        ("squad", "question-answering", {"paragraphs": 5}),
        ("squad", "question-answering", {"context": "a", "qas": [None]}),
        ("squad", "question-answering", {"context": "a", "qas": ["b"]}),
        ("alpaca", "dialogue", {"instruction": "a", "output": "b", "history": 5}),
        ("alpaca", "dialogue", {"instruction": "a", "output": "b", "history": {"c": "d"}}),
        ("messages", "dialogue", {"messages": [None]}),
    ],
)
def test_an_odd_row_costs_only_itself(shape: Any, task: str, row: dict[str, Any]) -> None:
    section = source("a.jsonl", row, row).model_copy(update={"shape": shape})
    records = list(mapped_rows(section, task_of(task)))
    assert [record.row for record in records] == [None, None]
    assert str(records[1].error).startswith("a.jsonl:2 ")


@pytest.mark.parametrize(("shape", "task"), [("squad", "summarization"), ("messages", "text-generation")])
def test_a_shape_that_a_task_does_not_have_is_refused(shape: Any, task: str) -> None:
    section = source("a.jsonl", {"document": "a", "summary": "b"}).model_copy(update={"shape": shape})
    with pytest.raises(UsageError, match=rf"^shape: {shape} is not for {task}; leave it out, or choose"):
        list(mapped_rows(section, task_of(task)))


def test_a_column_that_was_named_is_not_replaced_by_one_of_another_length() -> None:
    rows = [
        {"a": f"{number} {'word ' * 50}", "b": f"{number} a longer text", "c": f"{number} short"} for number in "xyz"
    ]
    section = source("a.jsonl", *rows, columns={"summary": "c"})
    with pytest.raises(InputError, match="no column matches document of summarization"):
        propose(section, task_of("summarization"))
    assert (
        read(source("a.jsonl", *rows, columns={"document": "a", "summary": "c"}), "summarization")[0]["summary"]
        == "x short"
    )


def test_recipes_can_name_every_shape() -> None:
    hint = SourceSection.model_fields["shape"].annotation
    names = {name for part in get_args(hint) for name in get_args(part)}
    assert names == {shape.written for shape in SHAPES.values()}
