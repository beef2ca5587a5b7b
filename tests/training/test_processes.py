"""Several processes train what one trains, and others than were asked for are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit.cli.app import main
from llmkit.errors import LlmkitError
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def write_recipe(folder: Path, model: Path, *, rows: list[dict[str, Any]] | None = None, **train: Any) -> Path:
    held = None if rows else 0.2
    rows = rows or [
        {"prompt": "The quick " + "fox " * (number % 5), "completion": "jumps " * (number % 3 + 1)}
        for number in range(26)
    ]
    content = {
        "version": 1,
        "task": "text-generation",
        "model": {"name_or_path": str(model), "offline": True, "device": "cpu"},
        "data": {"train": str(write_rows(folder / "rows.jsonl", rows)), "validation_fraction": held},
        "train": {"output_dir": str(folder / "out"), "learning_rate": 1e-2, "logging_steps": 1, "bf16": False} | train,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    usual = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=usual)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes_train_what_one_does(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of 21 examples the last update has 5, which two processes with two micro-batches cannot share evenly.

    They are of two tasks.
    """
    recipe = str(write_recipe(tmp_path, checkpoint("llama"), per_device_train_batch_size=8, num_train_epochs=2))
    content = json.loads(Path(recipe).read_text(encoding="utf-8"))
    rows = [{"document": "The dog " + "sleeps " * (number % 5), "summary": "dog"} for number in range(13)]
    summaries = str(write_rows(tmp_path / "summaries.jsonl", rows))
    content["data"]["train"] = [
        {"path": content["data"]["train"], "max_rows": 13}, {"path": summaries, "task": "summarization"},
    ]  # fmt: skip
    Path(recipe).write_text(json.dumps(content), encoding="utf-8")
    assert main(["finetune", recipe]) == 0
    other = tmp_path / "two"
    sizes = ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"]
    changes = [part for change in [*sizes, f"train.output_dir={other}"] for part in ("--set", change)]
    done = start([sys.executable, "-m", "llmkit", "finetune", recipe, *changes, "--num-processes", "2"])
    out, said = done.communicate()
    assert done.returncode == 0, said
    assert out == f"{other}\n"
    assert said.count("1 of 6 updates") == 1
    one, two = log_of(tmp_path / "out"), log_of(other)
    assert len(one) == len(two) == 8
    assert any("eval_summarization_loss" in entry for entry in one)
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_two_processes_learn_the_same_preferences(method: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = [
        {"prompt": "The fox " * (number % 3 + 1), "chosen": "jumps " * (number % 4 + 1), "rejected": f"asks {number}"}
        for number in range(11)
    ]
    sizes = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no"}
    recipe = write_recipe(tmp_path, checkpoint("llama", chat=True), rows=rows, **sizes)
    content = json.loads(recipe.read_text(encoding="utf-8")) | {"task": "dialogue", "method": method}
    recipe.write_text(json.dumps(content), encoding="utf-8")
    assert main(["finetune", str(recipe)]) == 0
    changes = ["--set", "train.per_device_train_batch_size=2", "--set", f"train.output_dir={tmp_path / 'two'}"]
    done = start([sys.executable, "-m", "llmkit", "finetune", str(recipe), *changes, "--num-processes", "2"])
    _, said = done.communicate()
    assert done.returncode == 0, said
    one, two = log_of(tmp_path / "out"), log_of(tmp_path / "two")
    for log in (one, two):
        assert "rewards/margins" in log[0]
        log[0].pop("rewards/accuracies", None)  # of rewards that are 0 but for rounding
    for mine, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(mine, abs=2e-5, rel=1e-4)


APART = ("--num-processes", "2", "--set", "accelerate.local_sgd_steps=4")


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_processes_that_train_apart_end_with_the_mean_of_what_each_would_learn_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Of each four rows the first process has two, and the second the others."""
    import torch

    model, train = checkpoint("llama"), {"train_sampling_strategy": "sequential", "save_strategy": "no"}
    rows = [{"text": "The quick " + "fox " * (number % 5)} for number in range(16)]
    whole = write_recipe(tmp_path, model, rows=rows, per_device_train_batch_size=2, num_train_epochs=1, **train)
    done = start([sys.executable, "-m", "llmkit", "finetune", str(whole), *APART])
    _, said = done.communicate()
    assert done.returncode == 0, said
    alone = []
    for process in range(2):
        (folder := tmp_path / f"alone{process}").mkdir()
        share = [row for number, row in enumerate(rows) if number // 2 % 2 == process]
        recipe = write_recipe(folder, model, rows=share, per_device_train_batch_size=2, num_train_epochs=1, **train)
        assert main(["finetune", str(recipe)]) == 0
        alone.append(folder / "out")
    together, one, two = map(weights_of, (tmp_path / "out", *alone))
    for name, found in together.items():
        torch.testing.assert_close(found, (one[name] + two[name]) / 2, msg=name)
        assert not torch.equal(one[name], two[name])


def test_processes_that_train_apart_go_on_exactly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A checkpoint is written between two times that they meet."""
    import torch

    train: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9}
    train |= {"max_steps": 8, "eval_strategy": "no"}
    recipe = str(write_recipe(tmp_path, checkpoint("llama"), per_device_train_batch_size=2, **train))
    command = [sys.executable, "-m", "llmkit", "finetune", recipe, *APART]
    _, said = (first := start(command)).communicate()
    assert first.returncode == 0, said
    expected = weights_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    (tmp_path / "out" / "model.safetensors").unlink()
    _, said = (again := start([*command, "--resume"])).communicate()
    assert again.returncode == 0, said
    for name, found in weights_of(tmp_path / "out").items():
        assert torch.equal(found, expected[name]), name


def test_training_apart_needs_several_processes_and_whole_models(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, checkpoint("llama")))
    one = ["finetune", recipe, "--set", "accelerate.local_sgd_steps=4"]
    assert main(one) == 2
    assert "requires more than one process; leave it out" in capsys.readouterr().err
    for other in ("accelerate.deepspeed_config={}", "train.optim=paged_adamw_8bit", "train.fp16=true"):
        assert main([*one, "--set", other]) == 2
        assert "local_sgd_steps averages" in capsys.readouterr().err


def test_processes_that_are_stopped_save_and_only_as_many_go_on(checkpoint: Checkpoint, tmp_path: Path) -> None:
    long: dict[str, Any] = {"num_train_epochs": 500, "per_device_train_batch_size": 4}
    long |= {"save_total_limit": 1, "eval_strategy": "no"}
    recipe = str(write_recipe(tmp_path, checkpoint("llama"), **long))
    command = [sys.executable, "-m", "llmkit", "finetune", recipe, "--num-processes", "2"]
    running = start(command)
    while running.poll() is None and not any((tmp_path / "out").glob("checkpoint-*")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    assert "continue with --resume" in said
    (left,) = (tmp_path / "out").glob("checkpoint-*")
    assert f"stopped after update {left.name.partition('-')[2]}, with a checkpoint" in said
    alone = start([sys.executable, "-m", "llmkit", "finetune", recipe, "--resume"])
    _, said = alone.communicate()
    assert alone.returncode == 2
    assert "accelerate.num_processes: 2 → None" in said


def test_a_launcher_that_starts_fewer_is_found_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """``accelerate launch --num_processes 2`` without a GPU runs one process."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "The fox."}])
    train = {"output_dir": str(tmp_path / "out")}
    recipe = make_recipe("text-generation", checkpoint("llama"), rows, train=train, accelerate={"num_processes": 2})
    with pytest.raises(LlmkitError, match="2 processes were expected, and 1 joined"):
        finetune(recipe)


def test_two_processes_stream_what_one_loads_and_go_on_exactly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The last update of an epoch has one example, so that a process has none."""
    import torch

    rows = [{"text": "The quick " + "fox " * (number % 5)} for number in range(9)]
    train: dict[str, Any] = {"max_steps": 8, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 4}
    train |= {"per_device_train_batch_size": 4}
    path = write_recipe(tmp_path, checkpoint("llama"), rows=rows, **train)
    assert main(["finetune", str(path), "--set", f"train.output_dir={tmp_path / 'one'}"]) == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    content["data"] = {"train": {"path": content["data"]["train"], "streaming": True}}
    path.write_text(json.dumps(content), encoding="utf-8")
    sizes = ["--set", "train.per_device_train_batch_size=2", "--num-processes", "2"]
    command = [sys.executable, "-m", "llmkit", "finetune", str(path), *sizes]
    _, said = (first := start(command)).communicate()
    assert first.returncode == 0, said
    for mine, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "out"), strict=True):
        assert theirs == pytest.approx(mine, abs=1e-5, rel=1e-5)
    expected = weights_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-8")
    (tmp_path / "out" / "model.safetensors").unlink()
    _, said = (again := start([*command, "--resume"])).communicate()
    assert again.returncode == 0, said
    for name, found in weights_of(tmp_path / "out").items():
        assert torch.equal(found, expected[name]), name
