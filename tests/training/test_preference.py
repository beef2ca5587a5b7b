"""Tuning on preferences: losses are TRL's, any division of an update is the same, the reference is the model before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.errors import InputError, UsageError
from llmkit.training.loop import Trainer
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows


def row(number: int) -> dict[str, str]:
    fox = "The quick brown fox " + "jumps " * (number % 4)
    return {"prompt": fox, "chosen": "over the dog. " * (number % 3 + 1), "rejected": f"asks {number} dogs"}


ROWS = [row(number) for number in range(12)]


def recipe_for(model: Path, rows: Path, folder: Path, method: Any, **train: Any) -> Recipe:
    usual = {"output_dir": str(folder), "learning_rate": 1e-2, "max_steps": 3, "save_strategy": "no", "bf16": False}
    usual |= {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "logging_steps": 1}
    method = {"name": method} if isinstance(method, str) else method
    return make_recipe("dialogue", model, rows, method=method, data={"validation": str(rows)}, train=usual | train)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Path:
    return checkpoint("llama", chat=True)


def losses(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.progress.log if name in entry]


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_any_division_of_an_update_is_the_same(method: str, model: Path, rows: Path, tmp_path: Path) -> None:
    parts = ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4})
    one, other = (
        finetune(recipe_for(model, rows, tmp_path / str(number), method, **part)) for number, part in enumerate(parts)
    )
    for name in ("loss", "rewards/chosen", "rewards/margins", "logps/rejected"):
        assert losses(one, name) == pytest.approx(losses(other, name), abs=2e-5), name
    assert losses(one)[0] != pytest.approx(losses(one)[-1], abs=1e-3)


def test_the_losses_are_trls() -> None:
    """TRL has them in its training step only, so the formulas of 1.16 are written down here from its source."""
    import torch
    from torch.nn.functional import logsigmoid

    from llmkit.config.recipe_method import DpoSection
    from llmkit.heads.preference import LOSSES, Pair

    torch.manual_seed(0)
    chosen, rejected, one, other = torch.randn(5), torch.randn(5), torch.tensor([3] * 5), torch.tensor([2] * 5)
    beta, delta, norm = 0.3, chosen - rejected, chosen / 3 - rejected / 2
    pair = Pair(chosen, rejected, one, other, torch.ones(5))
    expected = {
        "sigmoid": -logsigmoid(beta * delta),
        "sigmoid_norm": -logsigmoid(beta * norm),
        "hinge": torch.relu(1 - beta * delta),
        "ipo": (norm - 1 / (2 * beta)) ** 2,
        "apo_zero": 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected),
        "apo_down": torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(beta * delta),
        "robust": (-0.9 * logsigmoid(beta * delta) + 0.1 * logsigmoid(-beta * delta)) / 0.8,
    }
    for kind, values in expected.items():
        smoothing = 0.1 if kind == "robust" else 0.0
        settings = DpoSection(name="dpo", beta=beta, loss_type=[kind], label_smoothing=smoothing)  # type: ignore[list-item]
        torch.testing.assert_close(LOSSES[kind](pair, settings), values, msg=kind)


def test_log_probabilities_in_chunks_and_of_all_logits(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from llmkit.heads import objective, projection

    whole = finetune(recipe_for(model, rows, tmp_path / "whole", "dpo"))
    for module in (objective, projection):
        monkeypatch.setattr(module, "CHUNK", 2000)
    chunked = finetune(recipe_for(model, rows, tmp_path / "chunked", "dpo"))
    assert (whole.objective.projection, chunked.objective.projection is None) == (None, False)
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert losses(whole, name) == pytest.approx(losses(chunked, name), abs=1e-5)


def test_checkpointed_activations_and_bfloat16(model: Path, rows: Path, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "again": {"activation_checkpointing": True},
        "half": {"bf16": True},
    }
    plain, again, half = (
        finetune(recipe_for(model, rows, tmp_path / name, "dpo", learning_rate=1e-3, max_steps=2, **each))
        for name, each in options.items()
    )
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert losses(plain, name) == pytest.approx(losses(again, name), abs=1e-6), name
    assert losses(plain) == pytest.approx(losses(half), rel=0.1)
    assert losses(plain) != losses(half)


def test_a_resumed_run_is_the_uninterrupted_one(model: Path, rows: Path, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "per_device_train_batch_size": 2}
    whole = finetune(recipe_for(model, rows, tmp_path / "whole", "dpo", **options))
    again = recipe_for(model, rows, tmp_path / "again", "dpo", **options)
    finetune(again, should_stop=lambda: True)
    resumed = finetune(again, resume=True)
    assert resumed.progress.log == whole.progress.log


ADAPTER = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "lora_alpha": 8}


def test_the_reference_is_the_model_before_training(model: Path, rows: Path, tmp_path: Path) -> None:
    """The first update has no reward yet: of all weights, a new adapter, and an adapter that is trained further."""
    import torch

    recipe = recipe_for(model, rows, tmp_path / "first", "dpo")
    adapted = make_recipe("dialogue", model, rows, **{**dumped(recipe), "adapter": ADAPTER})
    trainer = finetune(adapted)
    further = finetune(recipe_for(tmp_path / "first", rows, tmp_path / "further", "dpo"))
    for run in (trainer, further):
        assert losses(run)[0] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
        assert losses(run)[-1] < losses(run)[0] - 1e-3
    assert losses(further, "logps/chosen")[0] != pytest.approx(losses(trainer, "logps/chosen")[0], abs=1e-3)
    metrics = json.loads((tmp_path / "further" / "metrics.json").read_text())
    assert {"rewards/accuracies", "eval_rewards/accuracies", "eval_rewards/margins"} <= metrics.keys()
    assert "| eval_rewards/accuracies |" in (tmp_path / "further" / "README.md").read_text()


def dumped(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    return {name: content[name] for name in ("method", "data", "train")}


def test_dropout_is_off_unless_it_is_wanted(checkpoint: Checkpoint, rows: Path, tmp_path: Path) -> None:
    model = checkpoint("gpt2", chat=True, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    off = finetune(recipe_for(model, rows, tmp_path / "off", "dpo", max_steps=1))
    on = finetune(recipe_for(model, rows, tmp_path / "on", {"name": "dpo", "disable_dropout": False}, max_steps=1))
    assert losses(off, "rewards/margins") == pytest.approx([0.0], abs=1e-5)
    assert abs(losses(on, "rewards/margins")[0]) > 1e-4


@pytest.mark.parametrize(
    ("row", "method", "message"),
    [
        ({"prompt": "fox", "completion": "dog"}, "dpo", "no rejected answer.*chosen: …, rejected: …"),
        ({"prompt": "fox", "completion": "dog"}, "kto", "no label of its answer"),
        ({"prompt": "fox", "chosen": "dog", "rejected": "dog"}, "dpo", "chosen and its rejected answer are the same"),
        ({"prompt": "fox", "chosen": "", "rejected": "dog"}, "dpo", "no chosen one"),
        ({"prompt": "", "chosen": "fox", "rejected": "dog"}, "dpo", "no list of messages"),
        ({"prompt": "fox " * 200, "chosen": "fox", "rejected": "dog"}, "dpo", "too many"),
    ],
)
def test_rows_are_refused(row: dict[str, str], method: str, message: str, model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match=message):
        finetune(recipe_for(model, rows, tmp_path / "out", method))


def test_preferences_are_not_learned_as_answers(model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method: dpo"):
        finetune(make_recipe("dialogue", model, rows, train={"output_dir": str(tmp_path / "out")}))


def test_other_heads_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"document": "fox", "chosen": "a", "rejected": "b"}])
    recipe = make_recipe("summarization", checkpoint("t5"), rows, method={"name": "dpo"})
    with pytest.raises(UsageError, match="seq2seq"):
        finetune(recipe)


def test_both_sequences_of_a_row(model: Path, rows: Path, tmp_path: Path) -> None:
    """As in supervised tuning; the longest decides where both prompts are cut, and both answers stay."""
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    recipe = recipe_for(model, rows, tmp_path / "out", "dpo")
    turns = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}] * 3
    long = [{"prompt": [*turns, turns[0]], "chosen": "brown dog", "rejected": "the fox jumps over the dog"}]
    data = {"max_length": 50, "on_overflow": "truncate"}
    cut = make_recipe("dialogue", model, write_rows(tmp_path / "long.jsonl", long), method={"name": "dpo"}, data=data)
    plain = make_recipe("dialogue", model, write_rows(tmp_path / "plain.jsonl", [
        {"prompt": each["prompt"], "completion": each[name]} for each in ROWS for name in ("chosen", "rejected")
    ]))  # fmt: skip
    found = []
    for each in (recipe, cut, plain):
        task = open_task(each)
        loaded = open_model(each, task, weights=False)
        found.append(make_examples(each, make_encoder(each, task, loaded)).train)
    pairs, short, single = found
    for place, line in enumerate(pairs.examples):
        for offset, prefix in enumerate(("", "rejected_")):
            alone = single.examples[2 * place + offset]
            assert line[f"{prefix}input_ids"] == alone["input_ids"]
            assert line[f"{prefix}labels"] == alone["labels"]
        assert line["labels"][-1] == loaded.tokenizer.eos_token_id
    assert short.ledger.truncated == 1
    (line,) = short.examples
    starts = [[label == -100 for label in line[name]].index(False) for name in ("labels", "rejected_labels")]
    assert line["input_ids"][: starts[0]] == line["rejected_input_ids"][: starts[1]]
    assert len(line["rejected_input_ids"]) <= 50
    assert starts[0] > 0
