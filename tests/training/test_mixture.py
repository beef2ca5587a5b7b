"""Mixtures of tasks: each row is encoded by its own task, each loss is reported, and the result does each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli import main
from llmkit.config.recipe_file import make_recipe as checked_recipe
from llmkit.errors import InvalidRecipeError, UsageError
from llmkit.training.dataset import Part, make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

SUMMARIES = [{"document": f"The fox {number} jumps over the dog.", "summary": f"Fox {number}."} for number in range(9)]
PAIRS = [{"source": f"Good morning {number}.", "target": f"Guten Morgen {number}."} for number in range(6)]
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Ho {n}"}]} for n in range(3)
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows: dict[str, list[Any]] = {"summaries": SUMMARIES, "pairs": PAIRS, "chats": CHATS}
    return {name: str(write_rows(tmp_path / f"{name}.jsonl", each)) for name, each in rows.items()}


def mixed(files: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"path": files["summaries"]},
        {"path": files["pairs"], "task": "translate", "settings": {"source": "en", "target": "de"}},
        {"path": files["pairs"], "task": "translation", "settings": {"source": "en", "target": "fr"}, "max_rows": 2},
    ]


def examples(task: str, model: Path, rows: Any, **sections: Any) -> Part:
    recipe = make_recipe(task, model, rows, **sections)
    opened = open_task(recipe)
    return make_examples(recipe, make_encoder(recipe, opened, open_model(recipe, opened, weights=False))).train


def ids(part: Part) -> list[Any]:
    return [(line["input_ids"], line["labels"], line["decoder_input_ids"]) for line in part.examples]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_each_row_is_encoded_as_in_a_run_of_its_task(
    family: str, checkpoint: Checkpoint, files: dict[str, str]
) -> None:
    model = checkpoint(family, chat=family == "llama")
    sources = [*mixed(files), *([{"path": files["chats"], "task": "chat"}] if family == "llama" else [])]
    part = examples("summarization", model, sources)
    alone = ids(examples("summarization", model, Path(files["summaries"])))
    for target, count in (("de", None), ("fr", 2)):
        rows = [{"path": files["pairs"], "max_rows": count}]
        alone += ids(examples("translation", model, rows, settings={"source": "en", "target": target}))
    if family == "llama":
        alone += ids(examples("dialogue", model, Path(files["chats"])))
    assert ids(part) == alone
    assert {name: len(mine) for name, mine in part.by_task().items()} == {
        "summarization": 9, "translation": 8, **({"dialogue": 3} if family == "llama" else {}),
    }  # fmt: skip
    assert [task.name for task in map(part.rows.task, (0, 9, 16))] == ["summarization", "translation", "translation"]


def test_a_model_of_two_tasks(checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path) -> None:
    recipe = {
        "task": "summarization",
        "settings": {"length": "short"},
        "model": {"name_or_path": checkpoint("t5"), "offline": True, "device": "cpu"},
        "data": {"train": [{**mixed(files)[0], "prefix": "tl;dr: "}, mixed(files)[1]], "validation_fraction": 0.4},
        "train": {"output_dir": tmp_path / "run", "max_steps": 2, "eval_strategy": "epoch", "bf16": False},
    }
    tuned = llmkit.finetune(recipe, progress=False)
    losses = {key for key in tuned.metrics if key.endswith("_loss")} - {"train_loss", "best_eval_loss"}
    assert losses == {"eval_loss", "eval_summarization_loss", "eval_translation_loss"}
    low, high = sorted(tuned.metrics[key] for key in losses - {"eval_loss"})
    assert low <= tuned.metrics["eval_loss"] <= high

    contract = json.loads((tuned.folder / "llmkit.json").read_text())
    assert (contract["task"], contract["settings"]["length"]) == ("summarization", "short")
    assert contract["more_tasks"]["translation"]["settings"]["target"] == "de"
    assert contract["more_tasks"]["translation"]["longest_target"] > 0
    assert (contract["prompt"]["prefix"], contract["more_tasks"]["translation"]["prompt"].get("prefix")) == (
        "tl;dr: ",
        None,
    )
    card = (tuned.folder / "README.md").read_text()
    assert "Trained for summarization and translation from" in card
    assert "translation (source=en, target=de)" in str(llmkit.inspect(tuned.folder))

    model = str(tuned)
    assert llmkit.load("translate", model).task.settings.target == "de"
    assert llmkit.load("summarize", model).task.settings.length == "short"
    assert main(["translate", "Good morning.", "--model", model, "--max-new-tokens", "2", "--offline"]) == 0
    assert main(["summarize", "The fox jumps.", "--model", model, "--max-new-tokens", "2", "--offline"]) == 0

    with pytest.raises(UsageError, match=r"a mixture of tasks.*name one: `task=summarization`, `task=translation`"):
        llmkit.evaluate(tuned.folder)
    with pytest.raises(UsageError, match="does not train dialogue"):
        llmkit.evaluate(tuned.folder, task="chat")
    quick: dict[str, Any] = {"max_new_tokens": 2, "progress": False}
    tasks = ("summarize", "translate")
    found = [llmkit.evaluate(tuned.folder, task=task, output=tmp_path / task, **quick) for task in tasks]
    assert [each.task for each in found] == ["summarization", "translation"]
    assert sum(each.rows for each in found) == 6  # 40 % of 15
    assert {"bleu", "rougeL"} <= {figure.name for each in found for figure in each.figures}


def test_tasks_that_do_not_go_together(checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path) -> None:
    questions = [{"question": "Who?", "context": "A fox jumps.", "answer": "fox"}] * 4
    path = write_rows(tmp_path / "questions.jsonl", questions)
    sources = [{"path": str(path)}, {"path": files["summaries"], "task": "summarize"}]
    with pytest.raises(UsageError, match="summarization needs a model that generates text"):
        examples("question-answering", checkpoint("bert"), sources)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"task": "sumarize"}, "did you mean 'summarization'"),
        ({"task": "translate", "settings": {"tagret": "de"}}, r"data.train.settings.tagret .* did you mean target\?"),
        ({"settings": {"length": True}}, r"data.train.settings.length"),
        ({"task": "translate", "columns": {"document": "x"}}, "columns.document is not a field of translation"),
        ({"task": "translate"}, "no source of data.train is of the recipe's task, summarization"),
    ],
)
def test_mistakes_are_found_in_the_recipe(source: dict[str, Any], expected: str) -> None:
    content = {"version": 1, "task": "summarize", "model": {"name_or_path": "x"}, "train": {"output_dir": "out"}}
    with pytest.raises((UsageError, InvalidRecipeError), match=expected):
        checked_recipe({**content, "data": {"train": [{"path": "a.jsonl", **source}]}})


def test_the_wording_of_one_task_is_not_that_of_all(files: dict[str, str]) -> None:
    for prompt in ({"template": "{{ document }}"}, {"prefix": "summarize: "}):
        with pytest.raises(ValueError, match=f"prompt.{next(iter(prompt))} is of one task"):
            make_recipe("summarization", Path("x"), mixed(files), prompt=prompt)


def test_one_task_decides_no_best_model(checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path) -> None:
    best = {"metric_for_best_model": "rougeL", "load_best_model_at_end": True, "eval_strategy": "epoch"}
    recipe = make_recipe("summarization", checkpoint("t5"), mixed(files), data={"validation_fraction": 0.2}, train=best)
    with pytest.raises(UsageError, match=r"metric_for_best_model: rougeL is of one task, and the recipe is a mixture"):
        llmkit.finetune(recipe.model_dump(exclude_unset=True), output=tmp_path / "out")
