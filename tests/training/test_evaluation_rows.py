"""The rows of an evaluation."""

from __future__ import annotations

from pathlib import Path

from llmkit.evaluation.results import ORIGIN
from llmkit.tasks import get_task
from llmkit.training.evaluation_rows import RowChoice, evaluation_records, separated_rows
from llmkit.training.recipe_model import open_task
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def test_held_back_rows_keep_the_columns_that_the_task_does_not_use(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [{"document": f"The fox {n}.", "编号": n, "summary": f"Fox {n}."} for n in range(10)]
    recipe = make_recipe(
        "summarization",
        checkpoint("gpt2"),
        write_rows(tmp_path / "rows.jsonl", rows),
        data={"validation_fraction": 0.3},
    )
    task = get_task("summarization")
    records, _ = evaluation_records(recipe, task, RowChoice(), recipe.data.train)
    found = list(separated_rows(records, recipe, task))
    assert len(found) == 3
    for row in found:
        number = row[ORIGIN]["others"]["编号"]
        assert row["document"] == f"The fox {number}."
        assert row[ORIGIN]["where"].endswith(f":{number + 1}")


def test_undesirable_answers_are_no_references(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [{"prompt": f"The fox {n}", "completion": f"jumps {n}", "label": n % 2 == 0} for n in range(4)]
    rows.append({"prompt": "The dog", "chosen": "sleeps", "rejected": "barks"})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    recipe = make_recipe("dialogue", checkpoint("llama", chat=True), path, method={"name": "kto"})
    task = open_task(recipe)
    records, _ = evaluation_records(recipe, task, RowChoice(str(path)), recipe.data.train)
    found = [task.references(row) for row in separated_rows(records, recipe, task)]
    assert found == [["jumps 0"], ["jumps 2"], ["sleeps"]]
