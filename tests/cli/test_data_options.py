"""Options on data, model and device that stand for keys of a recipe, and the user's default model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmkit import check_data
from tests.cli.conftest import Run, one_line
from tests.conftest import Checkpoint

ROWS = "Titel;正文;Kurz\nA;The reef is long. It is old.;A reef.\nB;一只狐狸在跳。;狐狸。\nC;Dogs dream.;Dogs.\n"
OPTIONS = ("--encoding", "utf-16", "--delimiter", ";", "--column", "document=正文", "--column", "summary=Kurz")
COLUMNS: dict[str, str] = {"document": "正文", "summary": "Kurz"}
SOURCE: dict[str, Any] = {"encoding": "utf-16", "delimiter": ";", "shape": "columns", "columns": COLUMNS}


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("数据.csv").write_text(ROWS, encoding="utf-16")


def test_a_check_takes_columns_and_a_number_of_rows(checkpoint: Checkpoint, run: Run) -> None:
    arguments = ("数据.csv", "--task", "summarize", *OPTIONS, "--max-rows", 2, "--model", checkpoint("gpt2"), "--json")
    code, out, err = run("data", "check", *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["train"]["ledger"]["rows"] == 2
    assert found["proposal"]["data"]["train"] == {"path": "数据.csv", **SOURCE, "max_rows": 2}
    same = check_data(
        "数据.csv", "summarize", encoding="utf-16", delimiter=";", columns=COLUMNS, max_rows=2,
        model=str(checkpoint("gpt2")),
    )  # fmt: skip
    assert same.proposal == found["proposal"]


@pytest.mark.parametrize("command", [("recipes", "new"), ("finetune", "--dry-run", "--offline", "--device", "cpu")])
def test_a_recipe_for_some_data_keeps_the_format_that_was_set(
    command: tuple[str, ...], checkpoint: Checkpoint, run: Run
) -> None:
    name, *flags = command
    more = (name, *flags, "--task", "summarize", "--data", "数据.csv", "--model", checkpoint("gpt2"), *OPTIONS)
    code, out, err = run(*more)
    assert code == 0, err
    recipe = yaml.safe_load(out)
    assert recipe["data"]["train"].items() >= SOURCE.items()
    if "--offline" in command:
        assert recipe["model"].items() >= {"offline": True, "device": "cpu"}.items()


def test_options_that_stand_for_a_recipe_are_refused_beside_one(run: Run) -> None:
    for option, value in (("--column", "a=b"), ("--no-header", None), ("--max-rows", 2), ("--to", "fr")):
        code, _, err = run("finetune", "summarization/starter-lora", option, *([] if value is None else [value]))
        assert code == 2
        assert option.replace("--no-", "--") in one_line(err)


def test_a_delimiter_that_is_none_is_refused(run: Run) -> None:
    for command in (
        ("data", "check", "数据.csv"),
        ("finetune", "--data", "数据.csv"),
        ("recipes", "new", "--data", "x"),
    ):
        assert "is not one character" in one_line(run(*command, "--task", "summarize", "--delimiter", "ab")[2])


def test_the_default_model_of_the_user_is_everywhere(
    checkpoint: Checkpoint, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is checked, trained and evaluated, unless a model is named."""
    monkeypatch.setenv("LLMKIT_MODEL", str(checkpoint("gpt2")))
    task = ("--task", "summarize", *OPTIONS)
    code, out, err = run("data", "check", "数据.csv", *task, "--json")
    assert (code, json.loads(out)["tokenizer"]) == (0, str(checkpoint("gpt2"))), err
    assert "(your default, from LLMKIT_MODEL)" in err
    code, out, err = run("finetune", "--data", "数据.csv", *task, "--dry-run")
    assert (code, Path(yaml.safe_load(out)["model"]["name_or_path"]).name) == (0, checkpoint("gpt2").name), err
    few = ("--max-rows", 1, "--max-new-tokens", 2)
    code, out, err = run("evaluate", "--data", "数据.csv", *task, *few, "--json")
    assert (code, json.loads(out)["model"]) == (0, str(checkpoint("gpt2"))), err
    monkeypatch.setenv("LLMKIT_MODEL", "nowhere/model")
    assert run("data", "check", "数据.csv", *task, "--model", checkpoint("gpt2"))[0] == 0
