"""Training without a recipe file: the recipe that is made for a task and its data, from the command line and Python."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli.app import main
from llmkit.config.recipe_file import load_recipe
from llmkit.config.yaml12 import parse
from llmkit.errors import InputError, InvalidRecipeError, UsageError
from llmkit.training.new_recipe import new_recipe
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows
from tests.training.test_adapted import logits

HEADER = ("id", "Full Abstract", "TL;DR")
QUICK = ["model.device=cpu", "model.offline=true", "train.bf16=false"]


@pytest.fixture
def papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table in the working directory."""
    monkeypatch.chdir(tmp_path)
    with Path("papers.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [HEADER, *((str(n), f"The fox {n} jumps over a dog.", f"Fox {n}.") for n in range(8))]
        )
    return "papers.csv"


def test_a_table_is_trained_on_without_yaml(papers: str, checkpoint: Checkpoint) -> None:
    """The recipe is saved with the result, and its run can be continued from it."""
    changes = [part for change in [*QUICK, "train.max_steps=2"] for part in ("--set", change)]
    model = str(checkpoint("llama"))
    call = ["finetune", "--task", "summarize", "--model", model, "--data", papers, "-o", "runs/papers"]
    assert main([*call, *changes]) == 0
    short, resolved = Path("runs/papers/recipe.yaml"), Path("runs/papers/resolved.yaml")
    recipe = load_recipe(str(short))
    assert recipe == load_recipe(str(resolved))
    assert recipe.data.train[0].columns == {"document": "Full Abstract", "summary": "TL;DR"}
    assert (recipe.train.max_steps, recipe.adapter.peft_type) == (2, "LORA")
    assert main(["finetune", str(short), "--resume", "--set", "train.max_steps=3"]) == 0
    assert Path("runs/papers/checkpoint-3/adapter_config.json").is_file()
    assert main([*call, *changes]) == 2  # the folder is in use


def test_a_new_recipe_is_a_file_with_comments(papers: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["recipes", "new", "--task", "summarize", "--data", papers, "--method", "full", "--set", "train.seed=7"]
    assert main([*call, "-o", "recipes/papers.yaml"]) == 0
    text = Path("recipes/papers.yaml").read_text(encoding="utf-8")
    content, _ = parse(text, "papers.yaml")
    assert content["data"]["train"]["path"] == "../papers.csv"
    assert "adapter" not in content
    assert content["train"] | {"seed": 7, "learning_rate": 5e-5} == content["train"]
    assert "# the model is starter, the default" in text
    assert "  # Lower it if memory runs out.\n  per_device_train_batch_size: 8\n" in text
    loaded = load_recipe("recipes/papers.yaml")
    assert loaded.data.train[0].path == [str(Path(papers).resolve())]
    capsys.readouterr()
    assert main([*call, "-o", "recipes/papers.yaml"]) == 2
    assert "or replace it with --overwrite" in capsys.readouterr().err
    assert main(call) == 0
    assert parse(capsys.readouterr().out, "stdout")[0]["data"]["train"]["path"] == "papers.csv"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune"], "name a recipe, or pass --task and --data"),
        (["finetune", "summarization/starter-lora", "--method", "lora"], "--method replace a recipe"),
        (["recipes", "new", "--task", "summarize", "--data", "none.csv"], "none.csv does not exist"),
        (["recipes", "new", "--task", "sumarize", "--data", "papers.csv"], "did you mean 'summarization'?"),
        (["recipes", "new", "--task", "chat", "--data", "papers.csv", "--to", "de"], "dialogue has no setting target"),
        (
            ["recipes", "new", "--task", "summarize", "--data", "papers.csv", "--method", "loar"],
            "--method loar is not a method; did you mean lora?",
        ),
    ],
)
def test_wrong_calls(arguments: list[str], said: str, papers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_defaults_follow_the_model_and_the_data(papers: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def made(task: str, data: str, model: Path | None = None, *changes: str) -> dict[str, Any]:
        name = None if model is None else str(model)
        return new_recipe(task, {"path": [data]}, model=name, overrides=["model.offline=true", *changes]).content

    squad = write_rows(tmp_path / "q.jsonl", [{"question": "Who?", "context": "A fox.", "answer": "fox"}] * 4)
    span = made("answer", str(squad), checkpoint("bert"))
    assert "adapter" not in span
    assert span["train"]["learning_rate"] == 5e-5
    changed = made("answer", str(squad), checkpoint("llama"), "adapter.r=4")["adapter"]
    assert (changed["peft_type"], changed["r"]) == ("LORA", 4)
    assert made("answer", str(squad), checkpoint("llama"), "adapter.peft_type=IA3")["adapter"] == {"peft_type": "IA3"}
    plain = write_rows(tmp_path / "text.jsonl", [{"text": f"The fox {n}."} for n in range(4)])
    assert made("generate", str(plain), checkpoint("gpt2"))["data"]["max_length"] == 512
    constant = made("summarize", papers, None, "train.lr_scheduler_type=constant", "data.validation_fraction=null")
    assert "warmup_steps" not in constant["train"]
    assert constant["data"]["validation_fraction"] is None


def test_finetune_from_python(papers: str, checkpoint: Checkpoint) -> None:
    """By keywords, by a mapping and by a file; the result has what was measured, and is loaded."""
    model = checkpoint("llama")
    keywords: dict[str, Any] = {"max_steps": 2, "logging_steps": 1, "learning_rate": 0.01}
    tuned = llmkit.finetune(task="summarize", data=papers, model=model, output="one", overrides=QUICK, **keywords)
    assert [entry["step"] for entry in tuned.history if "loss" in entry] == [1, 2]
    assert tuned.metrics["updates"] == 2
    assert (tuned.folder, os.fspath(tuned), str(tuned), tuned.task) == (Path("one"), "one", "one", "summarization")
    assert "history" not in repr(tuned)
    pipeline = tuned.load(max_new_tokens=4, dtype="float32")
    assert pipeline("The fox.").text is not None
    sections = {
        "task": "summarize",
        "model": {"name_or_path": model, "device": "cpu", "offline": True},
        "adapter": {"peft_type": "LORA", "r": 8, "target_modules": "all-linear"},
        "data": {"train": {"path": [Path(papers)], "columns": {"document": "Full Abstract", "summary": "TL;DR"}}},
        "train": {"output_dir": "two", "bf16": False, "lr_scheduler_type": "cosine"},
    }
    changes = ["data.validation_fraction=0.1"]
    other = llmkit.finetune(sections, overrides=changes, **keywords).load(dtype="float32")
    assert logits(other.loaded.model).equal(logits(pipeline.loaded.model))
    longer = llmkit.finetune(Path("one/recipe.yaml"), output="one", resume=True, max_steps=3)
    assert longer.metrics["updates"] == 3
    with pytest.raises(UsageError, match="pass recipe, or task and train"):
        llmkit.finetune(task="summarize")
    with pytest.raises(UsageError, match="`model` replace a recipe"):
        llmkit.finetune(sections, model="starter")
    with pytest.raises(InvalidRecipeError, match=r"(?s)write train\.learning_rate: 1.*write train\.num_train_epochs"):
        llmkit.finetune({**sections, "epochs": 3}, lr=1)
    with pytest.raises(InputError, match="no column matches"):
        llmkit.finetune(task="chat", data=papers)
