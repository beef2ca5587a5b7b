"""Adapters above quantized weights on the CPU: with bitsandbytes while loading, and above quantized checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import llmkit
from llmkit.config.recipe import recipe_adapter
from llmkit.config.settings import LoadSettings
from llmkit.errors import LlmkitError, MissingDependencyError, UsageError
from llmkit.models.quantize import stored_quantization
from llmkit.training.merge import merge
from llmkit.training.run import finetune
from tests.conftest import Checkpoint
from tests.quantized import KINDS, write_quantized
from tests.training.recipes import make_recipe, write_rows

ROWS = [{"prompt": "The quick brown", "completion": " fox jumps."}, {"prompt": "今天天气", "completion": "很好。"}] * 4


def recipe(folder: Path, model: Path, quantization: dict[str, Any], out: str = "run") -> Any:
    usual = {"max_steps": 2, "learning_rate": 0.01, "bf16": False, "logging_steps": 1}
    return make_recipe(
        "text-generation",
        {"name_or_path": str(model), "offline": True, "device": "cpu", **quantization},
        write_rows(folder / "rows.jsonl", ROWS),
        train={"output_dir": str(folder / out), **usual},
        adapter={"peft_type": "LORA", "r": 4, "target_modules": "all-linear"},
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.progress.log if "loss" in entry]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_above_a_quantized_checkpoint_is_that_above_its_dequantized_weights(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed, plain = write_quantized(kind, tmp_path)
    found = losses(finetune(recipe(tmp_path, packed, {}, "above packed")))  # ends with a comparison of what was saved
    assert found == pytest.approx(losses(finetune(recipe(tmp_path, plain, {}, "above plain"))), rel=1e-6)
    capfd.readouterr()
    assert llmkit.load("generate", str(packed), device="cpu", temperature=0, max_new_tokens=4)("The quick").text
    assert "it/s" not in capfd.readouterr().err
    if kind == "torchao":
        with pytest.raises(UsageError, match="Transformers cannot dequantize"):
            merge(str(tmp_path / "above packed"), tmp_path / "merged", settings=LoadSettings(offline=True))
        return
    merged = merge(str(tmp_path / "above packed"), tmp_path / "merged", settings=LoadSettings(offline=True))
    assert merged.drift < 1e-4
    if kind in ("nf4", "int8"):  # these stay packed, and 8 bits are those of activations too
        assert merged.quantized is not None
        assert merged.quantized < (1e-4 if kind == "nf4" else 0.3)
    again = llmkit.load("generate", str(tmp_path / "merged"), device="cpu", dtype="float32").loaded.model
    assert not getattr(again, "is_quantized", False)
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize(
    ("quantization", "error", "reason"),
    [
        ({"quant_method": "hqq"}, MissingDependencyError, "which needs a package that is missing .*HQQ.*; choose"),
        (
            {"quant_method": "gptq", "bits": 4},
            MissingDependencyError,
            "needs optimum and gptqmodel.*; run: pip",
        ),
        ({"quant_method": "higgs"}, UsageError, "does not work on cpu .*only supported on GPU"),
        ({"quant_method": "bitnet"}, UsageError, "above which Transformers does not train"),
        ({"quant_method": "exl3"}, LlmkitError, "by exl3, which the installed Transformers does not know"),
    ],
)
def test_what_transformers_cannot_load_here_is_refused(
    quantization: dict[str, Any], error: type[LlmkitError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        stored_quantization("a model", quantization, "cpu", adapted=True)


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
    pytest.importorskip("bitsandbytes")
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


def test_preferences_above_a_quantized_base(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The reference is the quantized base without the adapter: the first update has no reward."""
    pytest.importorskip("bitsandbytes")
    plain = recipe(tmp_path, checkpoint("llama", chat=True), {"quantize": "4bit"})
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "The fox", "chosen": "jumps.", "rejected": "很好。"}] * 4)
    content = plain.model_dump(mode="json", exclude_defaults=True) | {"task": "dialogue", "method": "dpo"}
    content["data"]["train"] = [{"path": [str(pairs)]}]
    found = losses(finetune(recipe_adapter(content).validate_python(content)))  # ends with what was saved
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[1] < found[0] - 0.01
