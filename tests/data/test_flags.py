"""What rows say of themselves is obeyed or refused, and what nothing is made of is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import propose, task_rows
from llmkit.data.records import Record
from llmkit.errors import InputError
from llmkit.tasks import get_task
from tests.training.recipes import write_rows


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def records(task: str, *rows: dict[str, Any], **columns: str) -> list[Record]:
    section = SourceSection(path=[str(write_rows(Path("a.jsonl"), rows))], columns=columns)
    found = list(task_rows(section, get_task(task)))
    frozen = list(task_rows(propose(section, get_task(task)).source, get_task(task)))
    assert [(each.row, str(each.error), each.unused) for each in frozen] == [
        (each.row, str(each.error), each.unused) for each in found
    ]
    return found


def refusal(task: str, row: dict[str, Any], **columns: str) -> str:
    (record,) = records(task, row, **columns)
    assert record.row is None
    return str(record.error)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def weights(record: Record) -> list[int]:
    assert record.row is not None, record.error
    return [message.get("weight", 1) for message in record.row["messages"] if message["role"] == "assistant"]


@pytest.mark.parametrize(
    ("flag", "no", "yes"),
    [
        ("weight", 0, 1),
        ("weight", 0.0, 1.0),
        ("weight", "0", "1"),
        ("train", False, True),
        ("trainable", False, None),
        ("loss", False, True),
        ("loss_mask", 0, 1),
        ("train_on_turn", False, True),
    ],
)
def test_a_reply_that_is_flagged_is_not_learned(flag: str, no: Any, yes: Any) -> None:
    turns = [turn("user", "a", **{flag: no}), turn("assistant", "bad", **{flag: no})]
    turns += [turn("user", "b", **{flag: no}), turn("assistant", "good", **{flag: yes})]
    (record,) = records("dialogue", {"messages": turns})
    assert weights(record) == [0, 1]
    assert record.unused == ()


def test_flags_of_sharegpt_and_empty_columns_of_parquet() -> None:
    turns = [
        {"from": "human", "value": "a", "weight": None, "tool_calls": None},
        {"from": "gpt", "value": "b", "weight": None, "tool_calls": []},
        {"from": "human", "value": "c", "train": False},
        {"from": "gpt", "value": "d", "train": False},
    ]
    (record,) = records("dialogue", {"conversations": turns, "tools": [], "rejected": None})
    assert (weights(record), record.unused) == ([1, 0], ())


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([turn("user", "a"), turn("assistant", "b", weight=0.5)], "weight: 0.5, which is neither 0 nor 1"),
        ([turn("user", "a"), turn("assistant", "b", train_detail=[{"train": False}])], "which is neither 0 nor 1"),
        ([turn("user", "a"), turn("assistant", "b", mask=True)], "mask in a turn, whose meaning is ambiguous"),
        ([turn("user", "a"), turn("judge", "b")], "unknown roles (judge)"),
        ([turn("user", "a"), turn("assistant", "", tool_calls=[{"id": "x"}])], "in turn 2 a tool call without a name"),
        ([turn("human", "a"), turn("function_call", "no JSON")], "in turn 2 a tool call without a name"),
        (
            [turn("user", "a"), turn("gpt", "b", weight=0), turn("function_call", '{"name": "x"}')],
            "only some are learned",
        ),
        (
            [turn("user", [{"type": "image", "url": "x"}]), turn("assistant", "b")],
            "a part in turn 1 that is not text (image)",
        ),
    ],
)
def test_turns_that_cannot_be_taught_are_a_bad_row(turns: list[Any], said: str) -> None:
    good = {"messages": [turn("user", "a"), turn("assistant", "b")]}
    first, second = records("dialogue", good, {"messages": turns})
    assert first.row is not None
    assert str(second.error).startswith("a.jsonl:2 has ")
    assert said in str(second.error)


def test_a_mask_beside_the_turns_is_refused() -> None:
    row = {"messages": [turn("user", "a"), turn("assistant", "b")], "loss_mask": [0, 1]}
    assert "flags for turns (loss_mask), which is ambiguous; put weight: 0 or 1 in each turn" in refusal(
        "dialogue", row
    )


def test_a_conversation_may_be_said_to_be_in_a_column() -> None:
    row = {"messages": [turn("user", "a"), turn("assistant", "b")], "source": "web"}
    section = SourceSection(path=[str(write_rows(Path("a.jsonl"), [row]))], shape="columns")
    (record,) = task_rows(section, get_task("dialogue"))
    assert (record.row, record.unused) == ({"messages": row["messages"]}, ("source",))


def test_a_prompt_and_its_completion_are_a_dialogue_of_two_turns() -> None:
    (record,) = records("dialogue", {"instruction": "a", "response": "b", "context": "c"})
    assert record.row == {"messages": [turn("user", "a"), turn("assistant", "b")]}
    assert record.unused == ("context",)
    (record,) = records("dialogue", {"instruction": "a", "input": "x", "output": "b"})
    assert record.row == {"messages": [turn("user", "a\n\nx"), turn("assistant", "b")]}


def test_text_in_parts_is_text() -> None:
    parts = [{"type": "text", "text": "The "}, {"type": "text", "text": "fox"}]
    (record,) = records("dialogue", {"messages": [turn("user", parts), turn("assistant", parts)]})
    assert record.row == {"messages": [turn("user", "The fox"), turn("assistant", "The fox")]}


def test_pairs_of_a_conversation() -> None:
    pairs = [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]
    (record,) = records("dialogue", {"conversation": pairs})
    assert record.row == {
        "messages": [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]
    }


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": [turn("user", "a"), turn("assistant", "old"), turn("user", "b")],
            "completion": [turn("assistant", "c")],
        },
        {"prompt": [turn("user", "a"), turn("assistant", "old"), turn("user", "b")], "completion": "c"},
        {
            "query": [turn("user", "a"), turn("assistant", "old"), turn("user", "b")],
            "response": [turn("assistant", "c")],
        },
    ],
)
def test_of_a_prompt_and_a_completion_the_completion_is_learned(row: dict[str, Any]) -> None:
    (record,) = records("dialogue", row)
    assert record.row is not None
    assert [(m["content"], m.get("weight", 1)) for m in record.row["messages"]] == [
        ("a", 1),
        ("old", 0),
        ("b", 1),
        ("c", 1),
    ]
    with pytest.raises(InputError, match="use the task dialogue"):
        records("text-generation", row)


def test_of_several_conversations_one_must_be_named() -> None:
    row = {"first": [turn("user", "a"), turn("assistant", "b")], "second": [turn("user", "c"), turn("assistant", "d")]}
    with pytest.raises(InputError, match=r"several conversations \(first, second\)"):
        records("dialogue", row)
    (record,) = records("dialogue", row, messages="second")
    assert (record.row, record.unused) == ({"messages": row["second"]}, ("first",))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b", "text": "web"},
        {"question": "a", "answer": "b", "text": "web"},
    ],
)
def test_text_beside_a_prompt_and_its_completion_must_be_settled(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match="only one of them can be learned"):
        records("text-generation", row)
    prompt, completion, _ = row
    (record,) = records("text-generation", row, prompt=prompt, completion=completion)
    assert (record.row, record.unused) == ({"prompt": "a", "completion": "b"}, ("text",))
    (record,) = records("text-generation", row, text="text")
    assert (record.row, record.unused) == ({"text": "web"}, (prompt, completion))


@pytest.mark.parametrize(
    ("task", "row", "column"),
    [
        ("text-generation", {"prompt": "a", "chosen": "b", "rejected": "c"}, "completion"),
        ("text-generation", {"chosen": "Human: a", "rejected": "Human: b"}, "text"),
        (
            "dialogue",
            {"chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "a")]},
            "messages",
        ),
    ],
)
def test_a_rejected_answer_is_refused_until_the_one_to_learn_is_named(
    task: str, row: dict[str, Any], column: str
) -> None:
    with pytest.raises(InputError, match=r"rejected answer \(rejected\).*columns: {.*chosen}$") as caught:
        records(task, row)
    assert f"{column}: chosen" in str(caught.value)
    (record,) = records(task, row, **{column: "chosen"})
    assert record.row is not None
    assert record.unused == ("rejected",)


ASKED, GOOD, BAD = turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"conversations": [ASKED], "chosen": GOOD, "rejected": BAD},
        {"messages": [ASKED, GOOD], "rejected_response": "c"},
        {"question": "a", "response_0": "b", "response_1": "c", "better_response_id": 0},
        {"question": "a", "response_j": "b", "response_k": "c"},
    ],
    ids=["OpenAI", "LLaMA-Factory", "ms-swift", "numbers", "letters"],
)
def test_the_advice_on_pairs_of_answers_teaches_the_good_one(row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"name the one to learn in a recipe: data.train.columns: ") as caught:
        records("dialogue", row)
    columns = str(caught.value).rpartition("{")[2].rstrip("}")
    (record,) = records("dialogue", row, **dict(pair.split(": ") for pair in columns.split(", ")))
    assert record.row == {"messages": [ASKED, GOOD]}


def test_a_prompt_without_an_answer_is_not_taken_for_plain_text() -> None:
    row = {"question": "a", "answers": [{"text": "b", "score": 1}]}
    with pytest.raises(InputError, match="no column matches text or completion"):
        records("text-generation", row)


def test_a_system_message_in_parts_is_not_lost() -> None:
    parts = {"system": [{"text": "Be kind."}], "messages": [turn("user", [{"text": "a"}]), turn("assistant", "b")]}
    (record,) = records("dialogue", parts)
    assert record.row == {"messages": [turn("system", "Be kind."), ASKED, GOOD]}


@pytest.mark.parametrize(
    ("task", "row", "flag"),
    [
        ("text-generation", {"prompt": "a", "completion": "b"}, {"label": False}),
        ("text-generation", {"prompt": "a", "completion": "b"}, {"label": 0}),
        ("text-generation", {"prompt": "a", "completion": "b"}, {"label": "False"}),
        ("text-generation", {"instruction": "a", "output": "b"}, {"kto_tag": False}),
        ("dialogue", {"messages": [turn("user", "a"), turn("assistant", "b")]}, {"label": False}),
        ("text-generation", {"text": "a"}, {"weight": 0}),
        ("translation", {"source": "a", "target": "b"}, {"train": False}),
    ],
)
def test_rows_that_are_flagged_as_bad_are_not_taught(task: str, row: dict[str, Any], flag: dict[str, Any]) -> None:
    (name,) = flag
    good, bad = records(task, {**row, name: True}, {**row, **flag})
    assert good.row is not None
    assert good.unused == ()
    assert f"a.jsonl:2 is flagged as not to be learned ({name}: " in str(bad.error)


def test_the_class_of_a_text_is_no_flag() -> None:
    (record,) = records("text-generation", {"text": "a", "label": 0})
    assert (record.row, record.unused) == ({"text": "a"}, ("label",))


def test_what_nothing_is_made_of_is_named() -> None:
    reply = turn("assistant", "b", refusal="no", name="x")
    (record,) = records("dialogue", {"id": 1, "messages": [turn("user", "a"), reply], "score": 3})
    assert record.unused == ("messages.refusal", "messages.name", "score")
    (record,) = records("translation", {"translation": {"en": "Yes", "fr": "Oui", "de": "Ja"}, "score": 0.5})
    assert record.unused == ("translation.de", "score")
