"""Memory of a run, counted by its tensors: what the dry run estimates, and no more at the end than in training."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.models.load import load_source
from llmkit.training import loop, memory_estimate, reload_check, sampler
from llmkit.training.loop import Trainer
from llmkit.training.memory_estimate import make_plan
from llmkit.training.prepare import prepare
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}


def recipe_for(model: Path, folder: Path, *, adapter: bool = True, **train: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", [{"text": "The quick brown fox jumps. " * (3 + n % 6)} for n in range(16)])
    usual = {"output_dir": str(folder / "out"), "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    usual |= {"bf16": False, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    sections = {"adapter": LORA} if adapter else {}
    return make_recipe("text-generation", model, rows, train=usual | train, **sections)


@pytest.mark.parametrize(("adapter", "checkpointing"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_run_takes_what_the_dry_run_estimates(
    adapter: bool, checkpointing: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its tensors, so without what glibc leaves between them."""
    import torch

    model = checkpoint("llama", max_position_embeddings=512, hidden_size=64, intermediate_size=128)
    recipe = recipe_for(model, tmp_path, adapter=adapter, activation_checkpointing=checkpointing)
    for module in (loop, memory_estimate):
        monkeypatch.setattr(module, "CPU_TOKENS", 256)
    monkeypatch.setattr(memory_estimate, "_CPU_FRAGMENTATION", 1)
    measured: list[int] = []
    run = Trainer.run

    def profiled(trainer: Trainer) -> None:
        weights = sum(each.nbytes for each in trainer.model.parameters())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run(trainer)
        sizes = [each.nbytes() for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
        measured.append(weights + max(accumulate(sizes)))

    monkeypatch.setattr(Trainer, "run", profiled)
    finetune(recipe)
    share = measured[0] / make_plan(prepare(recipe, 1)).memory
    # The gradients of all weights are counted, and are not there yet when activations take most.
    assert (0.85 if adapter else 0.7) < share < 1.15


def test_parts_of_a_micro_batch_train_the_same_model(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = checkpoint("llama", max_position_embeddings=512)
    sizes: list[tuple[int, ...]] = []
    batch = Trainer._batch

    def counted(trainer: Trainer, indices: Any) -> Any:
        made = batch(trainer, indices)
        sizes.append(tuple(made.inputs["input_ids"].shape))
        return made

    monkeypatch.setattr(Trainer, "_batch", counted)
    whole = finetune(recipe_for(model, tmp_path, optim="sgd"))
    assert [rows for rows, _ in sizes] == [8, 8]
    sizes.clear()
    monkeypatch.setattr(loop, "CPU_TOKENS", 100)
    divided = finetune(recipe_for(model, tmp_path, optim="sgd", output_dir=str(tmp_path / "divided")))
    assert len(sizes) > 4
    assert all(rows == 1 or rows * length <= 100 for rows, length in sizes)
    assert divided.progress.log[0]["loss"] == pytest.approx(whole.progress.log[0]["loss"], rel=1e-5)
    for name, each in divided.trained.items():
        torch.testing.assert_close(each, whole.trained[name], rtol=0, atol=1e-6)


def test_losses_of_routers_are_of_whole_micro_batches(checkpoint: Checkpoint, tmp_path: Path) -> None:
    trainer = finetune(recipe_for(checkpoint("llama", max_position_embeddings=512), tmp_path))
    trainer.pool = replace(trainer.pool, sampler=replace(trainer.sampler, lengths=[900] * 16))
    assert [len(part) for part in trainer._micro_batches(range(8))] == [1] * 8
    trainer.objective = replace(trainer.objective, balances=True)
    assert [len(part) for part in trainer._micro_batches(range(8))] == [8]


def test_examples_are_divided_by_their_tokens() -> None:
    lengths = [5, 30, 7, 6, 11, 3]
    parts = sampler.divide(range(6), lengths, 20)
    assert parts == [[1], [4], [2, 3], [0, 5]]


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trained_model_is_freed_before_its_files_are_checked(
    adapter: bool, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def live() -> int:
        """Bytes of all tensors."""
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())

    model = checkpoint("llama", max_position_embeddings=512)
    recipe = recipe_for(model, tmp_path, adapter=adapter)
    load, counted = load_source, list[int]()

    def load_counted(*given: Any, **options: Any) -> Any:
        counted.append(live())
        return load(*given, **options)

    monkeypatch.setattr(reload_check, "load_source", load_counted)
    monkeypatch.setattr(reload_check, "_TOKENS", 4)
    before = live()
    kept = finetune(recipe)
    del kept
    again = recipe.train.model_copy(update={"output_dir": str(tmp_path / "again")})
    finetune(recipe.model_copy(update={"train": again}), keep_model=False)
    weights = (model / "model.safetensors").stat().st_size
    assert counted[0] - before > weights
    assert counted[1] - before < weights / 2
