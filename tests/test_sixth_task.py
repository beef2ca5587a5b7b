"""A sixth task, from this one class: its command, default model, rows, data, recipe, evaluation and inspection."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

import llmkit
from llmkit.cli.app import main
from llmkit.config.declaration import setting
from llmkit.config.settings import TaskSettings
from llmkit.data.shapes import shapes_of
from llmkit.errors import UsageError
from llmkit.metrics.score import measure_names
from llmkit.tasks import TASKS, Recommended, Row, Task, Traits, find_task, register
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows


@dataclass(frozen=True, kw_only=True)
class SimplificationSettings(TaskSettings):
    grade: int = setting(6, "School grade that the text is written for.", minimum=1, maximum=12)


class Simplification(Task):
    name = "simplification"
    verb = "simplify"
    help = "Write a text in plain words."
    input_column = "text"
    columns = ("text",)
    target_column = "simple"
    aliases: ClassVar = {"text": ("text", "complex"), "simple": ("simple", "plain")}
    max_new_tokens = 32
    settings_class = SimplificationSettings
    settings: SimplificationSettings
    metrics = ("sacrebleu",)

    def instruct(self, row: Row) -> str:
        return f"Rewrite for grade {self.settings.grade}: {row['text']}"

    def plain_prompt(self, row: Row, traits: Traits) -> str:
        return f"{self.instruct(row)}\nSimple:"

    def trivial_answers(self, row: Row) -> dict[str, str]:
        return {"copy": str(row["text"])}


ROWS = [{"complex": f"The quick fox jumps over {n} lazy dogs.", "plain": "The fox jumps."} for n in range(4)]
CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def model(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = checkpoint("llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Simplification, "recommended", (Recommended(str(folder), "1M", 1, "MIT", "English", "the default"),)
    )
    register(Simplification)
    yield folder
    del TASKS[Simplification.name]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_the_verb_answers_with_the_default_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "The quick fox jumps."
    said = json.loads(run(capsys, "simplify", text, "--grade", 2, "--json", *CPU))
    assert (said["task"], said["model"]) == ("simplification", str(model))
    assert said["text"] == llmkit.load("simplify", grade=2, device="cpu")(text).text  # type: ignore[call-arg]
    assert "--grade" in run(capsys, "simplify", "--help")


def test_rows_are_read_by_the_names_that_data_have(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(Path("rows.jsonl"), ROWS)
    run(capsys, "simplify", "--input", rows, "--column", "text=complex", "--output", "out.jsonl", *CPU)
    answers = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer["task"] for answer in answers] == ["simplification"] * 4
    page = run(capsys, "data", "check", rows, "--task", "simplify", "--model", model)
    assert yaml.safe_load(page.split("\n\n")[0].split("\ntrain:")[0])["data"]["train"]["columns"] == {
        "text": "complex",
        "simple": "plain",
    }


def test_a_recipe_trains_it_and_its_result_is_evaluated(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {
        "version": 1,
        "task": "simplification",
        "settings": {"grade": 3},
        "model": {"name_or_path": str(model), "device": "cpu"},
        "data": {"train": str(write_rows(Path("rows.jsonl"), ROWS)), "validation_fraction": 0.5},
        "train": {"output_dir": "out", "max_steps": 2, "metric_for_best_model": "bleu"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run(capsys, "finetune", "recipe.yaml")
    assert json.loads(Path("out/llmkit.json").read_text(encoding="utf-8"))["settings"] == {"grade": 3}
    said = json.loads(run(capsys, "evaluate", "recipe.yaml", "--json"))
    assert {"bleu", "chrf++", "ter"} <= said["figures"].keys()
    assert said["trivial"]["copy"].keys() == {"bleu", "chrf++", "ter"}


def test_it_is_listed_while_it_is_registered(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f'llmkit simplify "TEXT" --model {model}' in run(capsys, "inspect", model)
    assert "simplification" in run(capsys, "models")
    assert "simplify" in run(capsys, "--help")
    assert '"simplification"' in run(capsys, "recipes", "schema")
    del TASKS["simplification"]
    assert "simplif" not in run(capsys, "--help") + run(capsys, "recipes", "schema") + run(capsys, "inspect", model)
    with pytest.raises(UsageError, match="unknown task 'simplify'"):
        find_task("simplify")
    register(Simplification)


def test_a_task_that_is_not_whole_is_refused_with_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the name simplification and simplify is already used by simplification"):
        register(Simplification)
    with pytest.raises(UsageError, match=r"^Task lacks name, verb, help, .*max_new_tokens; set them"):
        register(Task)
    monkeypatch.setattr(Simplification, "metrics", ("blue",))
    with pytest.raises(
        UsageError, match="unknown metric 'blue'; choose from rouge, rouge-stemmed, meteor, bertscore, squad, sacrebleu"
    ):
        measure_names(Simplification.metrics)
    monkeypatch.setattr(Simplification, "shapes", ("rows",))
    with pytest.raises(UsageError, match="simplification lists the shape 'rows'; choose from columns, "):
        shapes_of(Simplification())
    monkeypatch.setattr(Simplification, "recommended", ())
    with pytest.raises(UsageError, match="simplification has no default model; name one with `model`"):
        llmkit.load("simplify")


def test_languages_are_for_tasks_that_have_some(capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(Path("rows.jsonl"), ROWS)
    assert main(["data", "check", str(rows), "--task", "simplify", "--from", "en"]) == 2
    assert "simplification has no languages; leave out --from and --to" in capsys.readouterr().err


def test_nothing_outside_asks_which_task_it_is() -> None:
    names, classes = "|".join(TASKS), "|".join(task.__name__ for task in TASKS.values())
    question = re.compile(rf'(==|!=|\bin|case) \(?"({names})"|isinstance\([^()]*, ({classes})\)')
    root = Path(llmkit.__file__).parent
    # Transformers 4 has tasks of the same names.
    paths = [path for path in root.rglob("*.py") if path.parent.name != "tasks" and not path.name.startswith("v4_")]
    for path in (path for path in paths if "compat" not in path.parts):
        assert not question.search(path.read_text(encoding="utf-8")), path
