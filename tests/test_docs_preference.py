"""The example of docs/preference.md runs, on a tiny model in place of the starter."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.conftest import Checkpoint
from tests.training.recipes import write_rows

PAGE = (Path(__file__).parents[1] / "docs" / "preference.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"the page has no block {name}"
    return found[1]


def test_a_run_on_pairs(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(
        Path("pairs.jsonl"),
        [{"prompt": f"Say {number}", "chosen": f"{number}, please", "rejected": "dog"} for number in range(20)],
    )
    model = checkpoint("llama", chat=True)
    recipe = block("dpo").replace("{name_or_path: starter}", f"{{name_or_path: {model}, offline: true, device: cpu}}")
    Path("recipe.yaml").write_text(recipe.replace("method: dpo", "").rstrip() + "\n" + block("settings"))
    assert main(["data", "check", "recipe.yaml"]) == 0
    assert re.search(r"please.*\nrejected:\n.*dog", capsys.readouterr().out)
    Path("recipe.yaml").write_text(recipe)
    assert main(["finetune", "recipe.yaml", "--dry-run"]) == 0
    assert main(["finetune", "recipe.yaml"]) == 0
    capsys.readouterr()
    metrics = json.loads(Path("runs/dpo/metrics.json").read_text())
    assert {"rewards/accuracies", "eval_rewards/margins"} <= metrics.keys()
    assert main(["evaluate", "runs/dpo", "--max-new-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 4
