"""Functions and commands that manage models and data: inspect a run, check data, push without pushing, merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import llmkit
from llmkit.cli import main
from llmkit.errors import UsageError
from llmkit.training import push
from tests.conftest import Checkpoint


@pytest.fixture
def run(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The result of a training run, as far as `inspect` and `push` look at it."""
    folder = tmp_path / "runs" / "论文 摘要"
    shutil.copytree(checkpoint("gpt2"), folder)
    contract = {"task": "summarization", "settings": {"length": "short"}, "system": "Be brief.", "version": 1}
    (folder / "llmkit.json").write_text(json.dumps(contract))
    (folder / "metrics.json").write_text(json.dumps({"updates": 8, "rougeL": 41.237, "eval_loss": 1.5, "tokens": 9}))
    data = tmp_path / "papers.jsonl"
    data.write_text("{}\n")
    (folder / "resolved.yaml").write_text(
        f"version: 1\ntask: summarization\nmodel:\n  name_or_path: starter\nadapter:\n  peft_type: LORA\n"
        f"data:\n  train:\n  - path: [{data}]\n  validation: null\n"
    )
    checkpoint_folder = folder / "checkpoint-4"
    checkpoint_folder.mkdir()
    (checkpoint_folder / "progress.json").write_text("{}")
    (checkpoint_folder / "trained.safetensors").write_bytes(b"x" * 100)
    return folder


def test_inspect_says_what_a_run_was_tuned_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = llmkit.inspect(run)
    assert report.tuned is not None
    assert (report.tuned.task, report.tuned.settings, report.tuned.base) == (
        "summarization",
        {"length": "short"},
        "starter",
    )
    assert report.tuned.data["train"][0].endswith("papers.jsonl")
    assert report.to_dict()["tuned"]["metrics"]["rougeL"] == 41.237
    page = str(report)
    assert "tuned for       summarization (length=short)" in page
    assert "tuned from      starter (LORA)" in page
    assert "metrics         rougeL 41.24, eval_loss 1.5, updates 8" in page
    assert report.commands[0].startswith("llmkit summarize ")
    assert main(["inspect", str(run / "checkpoint-4")]) == 0
    assert "checkpoint      after update 4" in capsys.readouterr().out


def test_a_model_of_others_was_not_tuned(checkpoint: Checkpoint) -> None:
    report = llmkit.inspect(checkpoint("gpt2"))
    assert report.tuned is None
    assert report.to_dict()["tuned"] is None


def test_a_dry_run_of_push_writes_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(push, "_ask", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    plan = llmkit.push(run, "me/papers", dry_run=True)
    assert plan.url is None
    assert {"config.json", "model.safetensors", "llmkit.json", "resolved.yaml"} <= plan.files.keys()
    assert plan.files["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert set(plan.left_out) == {"checkpoint-4/progress.json", "checkpoint-4/trained.safetensors"}
    assert plan.problems == ("not logged in; run: hf auth login",)
    assert main(["push", str(run), "me/papers/again", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 files left out" in printed
    assert "would be refused: Repo id must be" in printed
    with pytest.raises(UsageError, match="contains no model"):
        llmkit.push(run / "checkpoint-4", "me/papers", dry_run=True)


def test_check_data_is_a_function(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"article": "The fox jumps.", "highlights": "Fox."}\n' * 2)
    found = llmkit.check_data(rows, "summarize", model=str(checkpoint("gpt2")))
    assert found.proposal["data"]["train"]["columns"] == {"document": "article", "summary": "highlights"}
    assert found.report.train.duplicate_rows == 1
    assert found.to_dict()["task"] == "summarization"
    assert repr(found).startswith("DataCheck(task='summarization', examples=2,")
    with pytest.raises(UsageError, match=r"the task of the data is missing; name it, such as `task=summarization`"):
        llmkit.check_data(rows)
    with pytest.raises(UsageError, match="unknown setting 'modle'"):
        llmkit.check_data(rows, "summarize", modle="x")  # type: ignore[call-arg]


def test_merge_is_a_function(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a PEFT adapter"):
        llmkit.merge(checkpoint("gpt2"), tmp_path / "merged")
