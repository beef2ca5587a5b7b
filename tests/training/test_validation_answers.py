"""Samples of answers while training: they are logged, and the training is the same with and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llmkit.errors import LlmkitError
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

TRAIN = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "bf16": False}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("summarization", {"document": "The fox.\nIt jumps.", "summary": ["Fox.", "A fox."]}),
    "bert": ("question-answering", {"question": "Who?", "context": "The fox jumps.", "answers": "fox"}),
}


def run(checkpoint: Checkpoint, folder: Path, family: str = "llama", resume: bool = False, **train: Any) -> Path:
    task, row = ROWS.get(family, ROWS["llama"])
    rows = write_rows(folder / "rows.jsonl", [row] * 4)
    settings = {"chat": True, "max_position_embeddings": 512} if family == "llama" else {}
    recipe = make_recipe(
        task,
        checkpoint(family, **settings),
        rows,
        data={"validation": str(rows)},
        train={"output_dir": str(folder / "out"), **TRAIN, **train},
        adapter={"peft_type": "LORA", "lora_dropout": 0.3},
    )
    finetune(recipe, resume=resume)
    return folder / "out"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_samples_do_not_change_the_training(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "sampled").mkdir()
    plain = load_file(run(checkpoint, tmp_path / "plain") / "adapter_model.safetensors")
    caplog.set_level("INFO")
    folder = run(checkpoint, tmp_path / "sampled", num_completions_to_print=2)
    sampled = load_file(folder / "adapter_model.safetensors")
    assert all((sampled[name] == each).all() for name, each in plain.items())
    assert not (tmp_path / "plain" / "out" / "completions.jsonl").exists()
    found = records(folder)
    assert [(each["update"], each["row"]) for each in found] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert found[0]["columns"] == {"document": "The fox.\nIt jumps."}
    assert found[0]["references"] == ["Fox.", "A fox."]
    lines = [each.message for each in caplog.records if "row 1: " in each.message]
    assert [line.split(":")[0] for line in lines] == ["update 2, row 1", "update 4, row 1"]
    assert all(line.endswith("(reference: Fox. | A fox.)") and len(line) < 200 and "\n" not in line for line in lines)


def test_a_resumed_run_has_each_sample_once(checkpoint: Checkpoint, tmp_path: Path) -> None:
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    path = run(checkpoint, tmp_path, num_completions_to_print=1, **saved) / "completions.jsonl"
    lost = '{"update": 6, "row": 1}\n'  # of a run that ended before the next checkpoint
    path.write_text(path.read_text(encoding="utf-8") + lost, encoding="utf-8")
    folder = run(checkpoint, tmp_path, resume=True, num_completions_to_print=2, max_steps=6, **saved)
    assert [each["update"] for each in records(folder)] == [2, 4, 6, 6]
    assert "columns" in records(folder)[-1]


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_samples_are_answers_that_the_metric_was_computed_from(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    metric = "f1" if family == "bert" else "rougeL"
    folder = run(checkpoint, tmp_path, family, num_completions_to_print=3, metric_for_best_model=metric, max_steps=2)
    assert [each["row"] for each in records(folder)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "train", "said"),
    [
        ([{"text": "The quick fox."}] * 4, {}, "needs answers to generate, but .* plain text"),
        (
            [{"prompt": "a", "completion": "b"}] * 4,
            {"eval_strategy": "no"},
            "_to_print requires evaluation",
        ),
    ],
)
def test_samples_that_cannot_be_had_are_refused(
    rows: Any, train: dict[str, Any], said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    train = {"output_dir": str(tmp_path / "out"), "max_steps": 1, "num_completions_to_print": 1, **train}
    with pytest.raises((LlmkitError, ValueError), match=said):
        finetune(make_recipe("text-generation", checkpoint("llama"), path, data={"validation": str(path)}, train=train))
