"""Runs of Transformers' Trainer that are continued: equal to Trainer's own, or refused in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llmkit.errors import CheckpointError, LlmkitError, UsageError
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows
from tests.training.test_adapted import LORA, loaded, logits

TRAIN: dict[str, Any] = {
    "max_steps": 6,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 2,
    "weight_decay": 0.1,
    "train_sampling_strategy": "sequential",
    "warmup_steps": 2,
    "adam_beta2": 0.99,
}


def recipe_of(model: Path, folder: Path, out: str, adapter: dict[str, Any] | None = None, **train: Any) -> Any:
    rows = write_rows(folder / "rows.jsonl", [{"text": "The fox jumps " + "again " * number} for number in range(8)])
    sections = {} if adapter is None else {"adapter": adapter}
    usual = {"output_dir": str(folder / out), "bf16": False}
    return make_recipe("text-generation", model, rows, train=usual | TRAIN | train, **sections)


def run_of_trainer(model: Path, folder: Path, adapter: dict[str, Any] | None = None, **train: Any) -> Path:
    """A checkpoint after update 3 of 6; the weights after the last are in ``checkpoint-6``."""
    import peft
    from transformers import Trainer, TrainingArguments

    start: dict[str, Any] = {"max_steps": 1, "warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no"}
    examples = finetune(recipe_of(model, folder, "examples", adapter, **start)).examples
    trained: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        options = {name: each for name, each in adapter.items() if name != "peft_type"}
        torch.manual_seed(0)
        trained = peft.get_peft_model(
            trained, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=16, **options)
        )

    def collate(lines: Any) -> dict[str, torch.Tensor]:
        longest = max(len(line["input_ids"]) for line in lines)
        ids, labels, mask = (
            torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
            for rows, fill in (
                ([line["input_ids"] for line in lines], 0),
                ([line["labels"] for line in lines], -100),
                ([[1] * len(line["input_ids"]) for line in lines], 0),
            )
        )
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    arguments: Any = {"use_cpu": True, "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    arguments |= {"save_steps": 3, "logging_steps": 1} | TRAIN | train
    lines = [examples[index] for index in range(len(examples))]
    Trainer(
        trained, TrainingArguments(str(folder / "theirs"), **arguments), train_dataset=lines, data_collator=collate
    ).train()
    return folder / "theirs" / "checkpoint-3"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


@pytest.mark.parametrize(
    ("adapter", "train"),
    [
        (None, {}),
        (LORA, {}),
        (LORA, {"optim": "adafactor", "adam_beta2": 0.999, "lr_scheduler_type": "cosine"}),
        (None, {"optim": "schedule_free_adamw", "lr_scheduler_type": "constant", "adam_beta1": 0.95}),
    ],
)
def test_a_run_of_trainer_continues_as_it_would_itself(
    adapter: dict[str, Any] | None,
    train: dict[str, Any],
    checkpoint: Checkpoint,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "schedule_free" in train.get("optim", ""):
        pytest.importorskip("schedulefree")
    model = checkpoint("llama")
    third = run_of_trainer(model, tmp_path, adapter, **train)
    more: dict[str, Any] = {"resume_from_checkpoint": str(third.parent), "save_strategy": "no", "logging_steps": 1}
    (tmp_path / "theirs" / "checkpoint-6").rename(tmp_path / "ended")
    if not adapter and not train:  # as large models are saved
        whole = AutoModelForCausalLM.from_pretrained(third)
        (third / "model.safetensors").unlink()
        whole.save_pretrained(third, max_shard_size="5KB")
    with caplog.at_level("INFO"):
        trainer = finetune(recipe_of(model, tmp_path, "ours", adapter, **train, **more))
    assert not [each for each in caplog.records if each.levelname == "WARNING"]
    assert [each["step"] for each in trainer.progress.log if "loss" in each] == [1, 2, 3, 4, 5, 6]
    found, expected = weights(tmp_path / "ours"), weights(tmp_path / "ended")
    if "schedule_free" in train.get("optim", ""):  # Trainer saves the weights of training, not the averaged ones
        with torch.no_grad():
            trainer.optimizer.train()  # type: ignore[attr-defined]
        found = {name: each.detach() for name, each in trainer.plain_model.state_dict().items() if name in expected}
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    theirs = json.loads((tmp_path / "ended" / "trainer_state.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in theirs if "learning_rate" in entry}
    assert f"continuing {third} after update 3: learning rate {rates[4]:.2e}; rows come in their order" in caplog.text


def test_what_differs_from_the_run_of_trainer_is_refused_or_reported(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = checkpoint("llama")
    third = run_of_trainer(model, tmp_path, LORA)

    def attempt(adapter: dict[str, Any] | None = LORA, **train: Any) -> LlmkitError:
        with pytest.raises(LlmkitError) as caught:
            finetune(recipe_of(model, tmp_path, "ours", adapter, **{"resume_from_checkpoint": str(third), **train}))
        assert not list((tmp_path / "ours").glob("checkpoint-*"))
        return caught.value

    assert "is of an adapter; add the adapter section it was trained with" in str(attempt(None))
    assert "its adapter has lora_alpha 16 instead of 8" in str(attempt({**LORA, "lora_alpha": 8}))
    assert "its adapter has r 4 instead of 2" in str(attempt({**LORA, "r": 2}))
    assert "its optimizer keeps exp_avg, exp_avg_sq, step" in str(attempt(optim="adagrad", adam_beta2=0.999))
    assert "its optimizer has betas (0.9, 0.99) instead of (0.9, 0.999)" in str(attempt(adam_beta2=0.999))
    assert "its optimizer has weight_decay 0.1 instead of 0.0" in str(attempt(weight_decay=0.0))
    assert "its optimizer has groups of" in str(attempt(freeze=["layers.0"]))
    assert "is after update 3, and the recipe ends at 3; set train.max_steps to more" in str(attempt(max_steps=3))
    finetune(recipe_of(model, tmp_path, "longer", LORA, resume_from_checkpoint=str(third), max_steps=12))
    assert "the learning rate continues at 9.00e-03, by the recipe's schedule of 12 updates" in caplog.text
    fewer = {"per_device_train_batch_size": 1, "max_steps": 8}
    finetune(recipe_of(model, tmp_path, "smaller", LORA, resume_from_checkpoint=str(third), **fewer))
    assert "an epoch has 8 updates, and had 4 in" in caplog.text
    assert (
        finetune(recipe_of(third, tmp_path, "new", max_steps=1, warmup_steps=0)).progress.step == 1
    )  # its weights alone


def test_only_tensors_are_loaded_and_only_complete_checkpoints(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    model = checkpoint("llama")
    third = run_of_trainer(model, tmp_path)
    recipe = recipe_of(model, tmp_path, "ours", resume_from_checkpoint=str(third))

    def attempt(kind: type[LlmkitError] = UsageError) -> str:
        with pytest.raises(kind) as caught:
            finetune(recipe)
        return str(caught.value)

    optimizer = (third / "optimizer.pt").read_bytes()
    torch.save({"state": Harmful(), "param_groups": []}, third / "optimizer.pt")
    assert "contains more than tensors, and loading it could run code" in attempt(CheckpointError)
    (third / "optimizer.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    assert "contains more than tensors" in attempt(CheckpointError)
    assert not (tmp_path / "ran").exists()
    (third / "optimizer.pt").write_bytes(optimizer[: len(optimizer) // 2])
    assert "is damaged" in attempt(CheckpointError)
    (third / "optimizer.pt").unlink()
    assert "has no optimizer.pt, only weights; train its weights as a new run" in attempt()
    (third / "global_step3").mkdir()
    assert "is divided among processes; run zero_to_fp32.py" in attempt()
    (third / "global_step3").rmdir()
    (third / "pytorch_model_fsdp_0").mkdir()
    assert "is divided among processes; run `accelerate merge-weights`" in attempt()
    shutil.rmtree(third)
    assert "has no trainer_state.json" in attempt()


def test_a_checkpoint_of_trainer_is_a_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for adapter in (None, LORA):
        folder = tmp_path / str(adapter is None)
        folder.mkdir()
        third = run_of_trainer(checkpoint("llama"), folder, adapter)
        if adapter is None:
            shutil.copy(checkpoint("llama") / "tokenizer.json", third)
            shutil.copy(checkpoint("llama") / "tokenizer_config.json", third)
        assert not torch.equal(logits(loaded(third)), logits(loaded(checkpoint("llama"))))
