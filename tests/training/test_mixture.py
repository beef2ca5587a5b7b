"""Mixtures of tasks: each row is encoded by its own task, each loss is reported, and the result does each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import llmkit
from llmkit.cli import main
from llmkit.config.recipe_file import make_recipe as checked_recipe
from llmkit.errors import InvalidRecipeError, UsageError
from llmkit.training.dataset import Part, make_examples
from llmkit.training.encoding import make_encoder
from llmkit.training.recipe_model import open_model, open_task
from llmkit.training.run import finetune
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

    with pytest.raises(UsageError, match="does not train dialogue"):
        llmkit.evaluate(tuned.folder, task="chat")


def recipe_of(checkpoint: Checkpoint, sources: Any, folder: Path, **train: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "task": "summarization",
        "model": {"name_or_path": str(checkpoint("t5")), "offline": True, "device": "cpu"},
        "data": {"train": sources, "validation_fraction": 0.4},
        "train": {"output_dir": str(folder), "max_steps": 1, "bf16": False, **train},
    }


def test_all_tasks_are_evaluated_together_as_each_alone(
    checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path
) -> None:
    folder = llmkit.finetune(recipe_of(checkpoint, mixed(files), tmp_path / "run"), progress=False).folder
    quick: dict[str, Any] = {"max_new_tokens": 2, "progress": False}
    found = llmkit.evaluate(folder, output=tmp_path / "all", **quick)
    names = ["summarization", "translation-de", "translation-fr"]
    assert list(found.by_task) == names
    assert found.rows == sum(each.rows for each in found.by_task.values()) == 7  # 40 % of 17
    alone = llmkit.evaluate(folder, task="summarize", output=tmp_path / "one", **quick)
    french = llmkit.evaluate(folder, task="translate", target="fr", output=tmp_path / "fr", **quick)
    for name, each in (("summarization", alone), ("translation-fr", french)):
        assert not each.by_task
        assert found.by_task[name].to_dict() == each.to_dict()
        assert {f"{name}_{figure.name}" for figure in each.figures} < {figure.name for figure in found.figures}
    both = llmkit.evaluate(folder, task="translate", output=tmp_path / "both", **quick)
    assert list(both.by_task) == names[1:]
    saved = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert saved == found.to_dict()
    assert list(saved["by_task"]) == names
    for name in names:
        assert (tmp_path / "all" / name / "results.jsonl").is_file()
    assert "translation-fr" in found._repr_html_()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_interruption_changes_nothing(checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path) -> None:
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    steps |= {"logging_steps": 1, "per_device_train_batch_size": 4, "warmup_steps": 0}
    sources = [{**each, "weight": weight} for each, weight in zip(mixed(files), (1, 2, 2), strict=True)]
    recipe = recipe_of(checkpoint, sources, tmp_path / "one", **steps)
    whole = finetune(checked_recipe(recipe))
    assert any("eval_translation_loss" in entry for entry in log_of(whole.folder))

    recipe["train"]["output_dir"] = str(tmp_path / "stopped")
    calls = iter(range(9))
    assert finetune(checked_recipe(recipe), should_stop=lambda: next(calls) == 0).progress.step == 1
    resumed = finetune(checked_recipe(recipe), resume=True)
    assert [entry["loss"] for entry in log_of(resumed.folder) if "loss" in entry] == [
        entry["loss"] for entry in log_of(whole.folder) if "loss" in entry
    ]
    one, other = (load_file(each.folder / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_command_after_training_evaluates_the_mixture(
    checkpoint: Checkpoint, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(checkpoint, mixed(files)[:2], tmp_path / "run")), encoding="utf-8")
    assert main(["finetune", str(recipe)]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "evaluate it: " in line]
    hint = line.partition("evaluate it: llmkit ")[2].split()
    more = ["--max-new-tokens", "2", "-o", str(tmp_path / "results")]
    assert main([*hint, *more]) == 0
    table = capsys.readouterr().out
    assert "summarization: " in table
    assert "\ntranslation: " in table
    assert main([*hint, *more]) == 2
    assert main([*hint, *more, "--resume", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["by_task"]) == ["summarization", "translation"]
    for options in (["--to", "fr"], ["--template", "{{ document }}"]):
        assert main([*hint, *options]) == 2
        assert "is of one task, and the recipe is a mixture of tasks; name one: --task summarization" in (
            capsys.readouterr().err
        )


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
