"""What a model lets tokens see: the whole zoo is asked too (``benchmarks/zoo.md``, packed)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from llmkit.config.settings import LoadSettings
from llmkit.models.load import load_model
from llmkit.models.upstream import lets_packed_examples_leak
from llmkit.tasks import Head
from llmkit.training.probes import is_causal, supports_packing
from tests.zoo.models import build


def load(model_type: str, folder: Path) -> Any:
    build(Head.CAUSAL, model_type, folder)
    settings = LoadSettings(model=str(folder), head="causal", offline=True, device="cpu", dtype="float32")
    return load_model(settings, "text-generation").model


@pytest.mark.parametrize(
    ("model_type", "apart"),
    [
        ("llama", True),
        ("mixtral", True),  # experts take the tokens of all examples at once, which moves the last bits
        ("bloom", False),  # takes no positions
        ("opt", False),  # takes positions, and its mask does not
        ("mpt", False),
        ("jamba", False),  # takes positions, and its state goes on into the next example
    ],
)
def test_examples_are_packed_where_none_sees_another(model_type: str, apart: bool, tmp_path: Path) -> None:
    model = load(model_type, tmp_path / model_type)
    assert supports_packing(model) is apart
    assert not model.training
    assert not (apart and lets_packed_examples_leak(model_type))


@pytest.mark.parametrize(("model_type", "blind"), [("llama", True), ("mamba", True), ("xlnet", False)])
def test_padding_behind_needs_no_mask_where_no_token_sees_ahead(model_type: str, blind: bool, tmp_path: Path) -> None:
    assert is_causal(load(model_type, tmp_path / model_type)) is blind


def test_virtual_tokens_in_front_leave_it_open(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(load("llama", tmp_path / "llama"), config)
    assert not supports_packing(model)
    assert not is_causal(model)
