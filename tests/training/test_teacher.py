"""Distillation: a teacher of the same tokenizer, checked before weights are loaded, and part of what a run is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.recipe import Recipe
from llmkit.errors import UsageError
from llmkit.training import teacher
from llmkit.training.dry_run import dry_run
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

ROWS = [{"prompt": f"The quick {number}", "completion": "fox jumps"} for number in range(8)]


def recipe_for(folder: Path, student: Path, name: Path, *, train: Any = None, **section: Any) -> Recipe:
    rows = write_rows(folder / "rows.jsonl", ROWS)
    usual = {
        "output_dir": str(folder / "out"),
        "max_steps": 4,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    data = {"validation": str(rows), "max_length": 64}
    options = {"train": usual | (train or {}), "data": data, "teacher": {"name_or_path": str(name), **section}}
    return make_recipe("text-generation", student, rows, **options)


def test_a_student_comes_closer_to_its_teacher(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its own labels have no part in this loss, and validation is cross entropy; the estimate counts the teacher."""
    student, name = checkpoint("llama"), checkpoint("llama", hidden_size=32, attention_dropout=0.5)
    train = {"max_steps": 12, "learning_rate": 2e-2, "logging_steps": 1, "save_strategy": "no", "save_steps": None}
    recipe = recipe_for(tmp_path, student, name, kd_ratio=1.0, train=train)
    (memory,) = (line for line in dry_run(recipe) if "memory" in line)
    assert "teacher" in memory
    log = finetune(recipe).progress.log
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert any("eval_loss" in entry for entry in log)
    resolved = (tmp_path / "out" / "resolved.yaml").read_text(encoding="utf-8")
    assert resolved.count("model.safetensors: ") == 2


def test_a_changed_teacher_is_not_resumed_with(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = shutil.copytree(checkpoint("llama"), tmp_path / "teacher")
    recipe = recipe_for(tmp_path, checkpoint("llama"), name)
    updates: list[int] = []
    finetune(recipe, should_stop=lambda: updates.append(1) or len(updates) == 2)  # type: ignore[func-returns-value]
    config = (name / "generation_config.json").read_text(encoding="utf-8")
    (name / "generation_config.json").write_text(f"{config} ", encoding="utf-8")
    with pytest.raises(UsageError, match=r"teacher \(generation_config.json\) changed since"):
        finetune(recipe, resume=True)
    (name / "generation_config.json").write_text(config, encoding="utf-8")
    assert finetune(recipe, resume=True).progress.step == 4


@pytest.mark.parametrize(
    ("student", "family", "settings", "said"),
    [
        ("llama", "gpt2", {}, r"another tokenizer than .*: .* tokens differ, such as .* \(.* there, .* here\)"),
        ("llama", "t5", {}, "is a seq2seq model, and .* a causal model; use a causal model"),
        ("gpt2", "gpt2", {"n_positions": 32}, "has a context of 32 tokens, .*set data.max_length to 32 or less"),
    ],
)
def test_a_teacher_that_does_not_match_is_refused_without_its_weights(
    student: str, family: str, settings: dict[str, Any], said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = shutil.copytree(checkpoint(family, **settings), tmp_path / "teacher")
    (name / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=said):
        finetune(recipe_for(tmp_path, checkpoint(student), name))


def test_a_token_of_another_id_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    name = shutil.copytree(checkpoint("llama"), tmp_path / "teacher")
    tokenizer = json.loads((name / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (name / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(UsageError, match=r"2 tokens differ, such as '.+' \(id \d+ there, id \d+ here\)"):
        finetune(recipe_for(tmp_path, checkpoint("llama"), name))


def test_a_loss_without_effect_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint("llama")
    with pytest.raises(ValueError, match=r"train\.loss_type has no effect with teacher\.kd_ratio: 1"):
        recipe_for(tmp_path, model, model, train={"loss_type": "dft"}, kd_ratio=1.0)
    rows = [{"question": "Who?", "context": "The fox jumps.", "answers": "fox"}] * 4
    path = write_rows(tmp_path / "questions.jsonl", rows)
    bert = checkpoint("bert")
    for options in ({"train": {"loss_type": "dft"}}, {"teacher": {"name_or_path": str(bert)}}):
        with pytest.raises(UsageError, match="is about generated tokens, and the model extracts answers"):
            finetune(make_recipe("question-answering", bert, path, **options))


def test_a_teacher_in_eight_bits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = checkpoint("llama", hidden_size=32)
    recipe = recipe_for(tmp_path, model, model, quantize="8bit")
    opened = teacher.open_teacher(recipe, weights=True)
    assert opened is not None
    kinds = {type(each).__name__ for each in opened.model.modules()}
    assert "Linear8bitLt" in kinds
    assert not opened.model.training
    assert not any(each.requires_grad for each in opened.model.parameters())
    assert finetune(recipe).progress.step == 4
