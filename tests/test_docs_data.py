"""The examples of docs/data.md run, on a tiny model in place of the starter."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli import main
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


def block(name: str, model: Path) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"the page has no block {name}"
    return found[1].replace("{name_or_path: starter}", f"{{name_or_path: {model}, offline: true, device: cpu}}")


@pytest.fixture
def model(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words = "The reef is long and old, and divers love it. "
    rows = [
        {
            "document": words * 3 + str(number // 2),
            "summary": f"A reef {number}.",
            "lang": "de" if number % 3 else "en",
            "meta": {"source": "wire"},
        }
        for number in range(24)
    ]
    write_rows(Path("news.jsonl"), rows)
    write_rows(Path("pairs.jsonl"), [{"source": f"Good day {n}.", "target": f"Guten Tag {n}."} for n in range(8)])
    return checkpoint("llama", max_position_embeddings=512)


def test_rows_are_chosen(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(block("rows", model))
    assert main(["data", "check", "recipe.yaml", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)["train"]["ledger"]
    assert ledger["unused"] == []  # the condition uses them
    assert ledger["left_out"] == [["deduplicate", 4], ["where", 8], ["train_fraction", 5]]
    assert main(["finetune", "recipe.yaml", "--dry-run"]) == 0


def test_rows_of_a_data_frame(model: Path) -> None:
    code = block("python", model).replace('"summarize")', f'"summarize", model="{model}", offline=True)')
    more = f'model="{model}", overrides=["model.offline=true"], progress=False'
    code = code.replace("max_steps=2", f"max_steps=2, {more}")
    scope: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, scope)
    assert "'document': 'article'" in printed.getvalue()
    assert scope["result"].rows == 1


def test_rows_are_streamed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("news.jsonl", "held.jsonl")
    Path("recipe.yaml").write_text(block("streaming", model))
    assert main(["data", "check", "recipe.yaml"]) == 0
    assert "the first 24 rows" in capsys.readouterr().out
    assert main(["finetune", "recipe.yaml", "--dry-run"]) == 0
    assert main(["finetune", "recipe.yaml"]) == 0
    assert "train: 72 rows, 72 examples" in capsys.readouterr().err  # three times all
    entries = Path("runs/stream/log.jsonl").read_text()
    shutil.rmtree("runs/stream/checkpoint-6")
    assert main(["finetune", "recipe.yaml", "--resume"]) == 0
    assert Path("runs/stream/log.jsonl").read_text() == entries


def test_two_tasks_in_one_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(block("tasks", model))
    assert main(["finetune", "recipe.yaml"]) == 0
    metrics = json.loads(Path("runs/both/metrics.json").read_text())
    assert {"eval_loss", "eval_summarization_loss", "eval_translation_loss"} <= metrics.keys()
    quick = ["--model", "runs/both", "--max-new-tokens", "2", "--offline"]
    assert main(["translate", "Good day.", *quick]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/both", "--max-new-tokens", "2", "--json", "-o", "scores"]) == 0
    assert list(json.loads(capsys.readouterr().out)["by_task"]) == ["summarization", "translation"]
    assert main(["evaluate", "runs/both", "--task", "translate", "--max-new-tokens", "2"]) == 0
