"""Adapters above quantized weights, with bitsandbytes on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.training.merge import merge
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe, write_rows

pytest.importorskip("bitsandbytes")

ROWS = [{"prompt": "The quick brown", "completion": " fox jumps."}, {"prompt": "今天天气", "completion": "很好。"}] * 4


def recipe(folder: Path, model: Path, quantization: dict[str, Any]) -> Any:
    return make_recipe(
        "text-generation",
        {"name_or_path": str(model), "offline": True, "device": "cpu", **quantization},
        write_rows(folder / "rows.jsonl", ROWS),
        train={"output_dir": str(folder / "run"), "max_steps": 2, "learning_rate": 0.01, "bf16": False},
        adapter={"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    )


@pytest.mark.parametrize(
    "quantization",
    [
        {"quantize": "4bit", "bnb_4bit_use_double_quant": True},
        {"quantize": "4bit", "bnb_4bit_quant_type": "fp4"},
        {"quantize": "8bit"},
    ],
)
def test_an_adapter_is_trained_saved_and_merged(
    quantization: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    finetune(recipe(tmp_path, checkpoint("llama"), quantization))  # ends with a comparison of what was saved
    tuned = llmkit.load("generate", str(tmp_path / "run"), device="cpu", temperature=0, max_new_tokens=8)
    assert tuned("The quick brown").text
    merged = merge(str(tmp_path / "run"), tmp_path / "merged", settings=LoadSettings(offline=True))
    assert merged.drift < 1e-4
    assert merged.quantized is not None
    assert merged.quantized < 0.1
    again = llmkit.load("generate", str(tmp_path / "merged"), device="cpu", dtype="float32")
    assert not getattr(again.loaded.model, "is_quantized", False)
    assert all(each.dtype == torch.float32 for each in again.loaded.model.parameters())
