"""Rows with a chosen and a rejected answer, as other programs write them, in the columns of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import SourceSection
from llmkit.data.proposals import task_rows
from llmkit.errors import InputError
from llmkit.tasks import Dialogue, Summarization, Task, TextGeneration
from tests.training.recipes import write_rows


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ASKED, GOOD, BAD = turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")
PAIR = {"messages": [{**ASKED, "weight": 0}, {**GOOD, "weight": 1}], "rejected": [{**BAD, "weight": 1}]}


def converted(task: Task, row: dict[str, Any], folder: Path, **columns: str) -> list[tuple[Any, tuple[str, ...]]]:
    path = write_rows(folder / "rows.jsonl", [row])
    records = task_rows(SourceSection(path=[str(path)], columns=columns), task)
    return [(record.row or str(record.error), record.unused) for record in records]


def learning(task: Task, what: Any = "pairs") -> Task:
    task.learns_from = what
    return task


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ()),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, ()),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, ()),
        ({"prompt": "a", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": 3.0}, ("score_chosen",)),
        ({"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, ()),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"},
          "rejected": {"from": "gpt", "value": "c"}}, ()),
        ({"messages": [ASKED, GOOD], "rejected_response": "c"}, ()),
        ({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}, ()),
        ({"instruction": "a", "chosen_response": "b", "rejected_response": "c", "chosen_model": "m",
          "rejected_model": "n"}, ("chosen_model", "rejected_model")),
    ],
    ids=["texts", "turns", "implicit prompt", "UltraFeedback", "OpenAI", "ShareGPT", "ms-swift", "Alpaca", "models"],
)  # fmt: skip
def test_layouts_of_pairs(row: dict[str, Any], unused: tuple[str, ...], tmp_path: Path) -> None:
    assert converted(learning(Dialogue()), row, tmp_path) == [(PAIR, unused)]


def test_the_common_beginning_of_texts_is_their_prompt(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    ((found, _),) = converted(learning(TextGeneration()), row, tmp_path)
    assert found == {"prompt": "The sky is", "completion": " blue.", "rejected": " green."}


def test_other_tasks_and_mapped_columns(tmp_path: Path) -> None:
    row = {"document": "a b", "good": "a", "worst": "b"}
    ((found, _),) = converted(learning(Summarization()), row, tmp_path, chosen="good", rejected="worst")
    assert found == {"document": "a b", "summary": "a", "rejected": "b"}


def test_labels_and_pairs_without_them(tmp_path: Path) -> None:
    task = learning(Dialogue(), "labels")
    earlier = [{**each, "weight": 0} for each in (ASKED, GOOD, ASKED)]
    row = {"messages": [ASKED, GOOD, ASKED, BAD], "kto_tag": False}
    assert converted(task, row, tmp_path) == [({"messages": [*earlier, BAD], "label": False}, ())]
    found = [row for row, _ in converted(task, {"prompt": "a", "chosen": "b", "rejected": "c"}, tmp_path)]
    assert [(row["messages"][-1], row["label"]) for row in found] == [(GOOD, True), (BAD, False)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [ASKED, GOOD], "rejected": [turn("user", "x"), BAD]}, "different prompts"),
        ({"prompt": "x", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, "begin with another one"),
        ({"prompt": "a", "response_0": "b", "response_1": "c", "better": 0}, "chosen: response_0"),
    ],
)
def test_unclear_pairs(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    try:
        ((found, _),) = converted(learning(Dialogue()), row, tmp_path)
    except InputError as error:
        found = str(error)
    assert message in found
