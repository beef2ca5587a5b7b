"""Runs that are trained further, and checkpoints that are used as models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.training.run import finetune
from llmkit.training.schedule import make_scheduler, set_learning_rates
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows
from tests.training.test_adapted import LORA, loaded, logits


def recipe_of(model: Path, folder: Path, out: str, adapter: dict[str, Any] | None = None, **train: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", [{"text": f"The fox {number}."} for number in range(6)])
    usual = {"output_dir": str(folder / out), "learning_rate": 0.01, "bf16": False, "per_device_train_batch_size": 2}
    sections = {} if adapter is None else {"adapter": adapter}
    return make_recipe("text-generation", model, rows, train=usual | train, **sections)


def test_a_finished_run_trains_further(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a schedule that does not depend on the number of updates, it is the longer run."""
    model = checkpoint("llama")
    constant: dict[str, Any] = {"lr_scheduler_type": "constant"}
    finetune(recipe_of(model, tmp_path, "whole", max_steps=4, **constant))
    finetune(recipe_of(model, tmp_path, "parts", max_steps=2, **constant))
    longer = recipe_of(model, tmp_path, "parts", max_steps=4, **constant)
    with caplog.at_level("INFO"):
        assert finetune(longer, resume=True).progress.step == 4
    assert "the run has 4 updates instead of 2; the learning rate continues at 1.00e-02" in caplog.text
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(one[name].equal(other[name]) for name in one)
    with pytest.raises(UsageError, match=r"is after update 4, and the recipe ends at 3; set train.max_steps to more"):
        finetune(recipe_of(model, tmp_path, "parts", max_steps=3, **constant), resume=True)
    threads = longer.model_copy(update={"model": longer.model.model_copy(update={"threads": 3})})
    with pytest.raises(UsageError, match=r"the recipe changed since .*model.threads"):
        finetune(threads, resume=True)
    with pytest.raises(UsageError, match=r"the recipe changed since .*learning_rate"):
        finetune(recipe_of(model, tmp_path, "parts", max_steps=6, learning_rate=0.1, **constant), resume=True)


def test_the_short_recipe_of_an_extended_run_has_its_number_of_updates(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """However it was extended: with the options that made it, or with the recipe itself."""
    short, text = tmp_path / "out" / "recipe.yaml", "# A comment.\ntrain:\n  # Epochs.\n  num_train_epochs: 1\n"
    finetune(recipe_of(checkpoint("llama"), tmp_path, "out", num_train_epochs=1.0), text=text)
    assert short.read_text() == text
    finetune(recipe_of(checkpoint("llama"), tmp_path, "out", num_train_epochs=2.0, max_steps=5), resume=True)
    assert short.read_text() == "# A comment.\ntrain:\n  max_steps: 5\n  # Epochs.\n  num_train_epochs: 2.0\n"


def test_the_learning_rate_continues_as_in_the_longer_run(tmp_path: Path) -> None:
    train = recipe_of(Path("model"), tmp_path, "out", lr_scheduler_type="cosine", warmup_steps=1).train

    def schedule(updates: int, steps: int) -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=train.learning_rate)
        scheduler = make_scheduler(optimizer, train, updates)
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
        return optimizer, scheduler

    ended, longer, expected = schedule(4, 4), schedule(8, 0), schedule(8, 4)
    assert ended[0].param_groups[0]["lr"] == 0
    longer[0].load_state_dict(ended[0].state_dict())
    longer[1].load_state_dict(ended[1].state_dict())
    set_learning_rates(*longer)
    assert longer[0].param_groups[0]["lr"] == expected[0].param_groups[0]["lr"] > 0
    assert longer[1].get_last_lr() == expected[1].get_last_lr()


@pytest.mark.parametrize("adapter", [LORA, None])
def test_a_checkpoint_is_a_model(adapter: dict[str, Any] | None, checkpoint: Checkpoint, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = finetune(recipe_of(checkpoint("llama"), tmp_path, "out", adapter, **steps))
    last = tmp_path / "out" / "checkpoint-2"
    torch.testing.assert_close(logits(loaded(last)), logits(trainer.model))
    assert not torch.allclose(logits(loaded(tmp_path / "out" / "checkpoint-1")), logits(trainer.model))
    assert (last / "llmkit.json").read_text() == (tmp_path / "out" / "llmkit.json").read_text()
    assert not (last / "README.md").exists()  # PEFT's template names the folder of the base
    if adapter is None:  # its weights are not saved twice
        assert not load_file(last / "trained.safetensors")
    more = finetune(recipe_of(last, tmp_path, "more", **steps))
    assert more.progress.step == 2
