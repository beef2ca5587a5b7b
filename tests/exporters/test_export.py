"""Exports compute what their sources do, in the programs they are for; what cannot be exported is refused by name.

Reports from other projects are kept as tests here and in test_converters.py: tied embeddings that an export lacks
(llama.cpp #12567), tokens beyond the embeddings (CTranslate2 #1415, #1618), trained embeddings that stay behind
(LLaMA-Factory #7997), a start token that another program adds (unsloth #3899), one fixed shape (Transformers #19238).
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

import llmkit
from llmkit.errors import CheckpointError, MissingDependencyError, UsageError
from llmkit.exporters import run
from llmkit.exporters.run import RECORD, export
from tests.conftest import Checkpoint


def _adapter(base: Path, folder: Path) -> Path:
    """LoRA and trained embeddings."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    adapter: Any = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in adapter.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight), alpha=0.5)
    adapter.save_pretrained(folder)
    return folder


def _record(folder: Path) -> Any:
    return json.loads((folder / RECORD).read_text())


def test_safetensors_is_a_model_of_plain_transformers(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With trained embeddings, tokenizer, chat template, and a record of what it was made from."""
    import transformers

    adapter = _adapter(checkpoint("llama", max_position_embeddings=512), tmp_path / "adapter")
    done = llmkit.export(adapter, "safetensors", tmp_path / "out", offline=True)
    assert done.check.equal == done.check.compared == 20
    assert done.check.difference <= 0.01
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    pipeline = llmkit.load("generate", str(adapter), device="cpu", offline=True)
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, pipeline.loaded.model(ids).logits, rtol=1e-4, atol=1e-4)
    record = _record(tmp_path / "out")
    assert record["base"] == pipeline.loaded.source.base
    assert record["source_files"].keys() >= {"adapter adapter_model.safetensors", "model.safetensors"}
    assert record["files"].keys() >= {"model.safetensors", "tokenizer.json", "generation_config.json"}


def test_a_sharded_model_in_bfloat16_is_copied_with_its_chat_template(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama", chat=True), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="8kB")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("llama", chat=True))
    tokenizer.save_pretrained(tmp_path / "shards")
    done = export(str(tmp_path / "shards"), "safetensors")
    assert (done.folder, done.dtype) == (tmp_path / "shards-safetensors", "bfloat16")
    copied: Any = transformers.AutoModelForCausalLM.from_pretrained(done.folder)
    assert copied.dtype == torch.bfloat16
    assert all(torch.equal(one, copied.get_parameter(name)) for name, one in model.named_parameters())
    assert transformers.AutoTokenizer.from_pretrained(done.folder).chat_template == tokenizer.chat_template
    with pytest.raises(UsageError, match="shards-safetensors exists") as refused:
        export(str(tmp_path / "shards"), "safetensors")
    assert refused.value.code == "output_exists"
    assert export(str(tmp_path / "shards"), "safetensors", dtype="float32", overwrite=True).dtype == "float32"


def test_spans_are_compared(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(str(checkpoint("bert")), "safetensors", tmp_path / "out")
    assert done.check.equal == done.check.compared == 20
    assert done.check.difference <= 1e-4


def test_another_model_is_not_put_in_place(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = run._load

    def damaged(*arguments: Any) -> Any:
        loaded = load(*arguments)
        with torch.no_grad():
            weight = loaded.model.get_output_embeddings().weight
            weight.copy_(weight.roll(1, 0))
        return loaded

    monkeypatch.setattr(run, "_load", damaged)
    with pytest.raises(CheckpointError, match="another one: 0 of 20 answers are equal") as refused:
        export(str(checkpoint("gpt2")), "safetensors", tmp_path / "out")
    assert refused.value.code == "logits_differ"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "dtype", "message"),
    [
        ("mlx", "auto", "unknown format mlx; choose one of safetensors, gguf, ctranslate2, onnx"),
        (
            "safetensors",
            "q8_0",
            "safetensors has no dtype q8_0; set `dtype` to one of auto, float32, bfloat16, float16",
        ),
    ],
)
def test_what_is_no_format_or_dtype_is_refused(to: Any, dtype: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        export("no-model", to, dtype=dtype)
    assert str(refused.value) == message


@pytest.mark.parametrize("to", ["gguf", "ctranslate2", "onnx"])
def test_a_missing_converter_is_named_with_its_command(to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(run, "version", missing)
    with pytest.raises(MissingDependencyError, match=rf'not installed; pip install "llmkit\[{to}\]"'):
        export("no-model", to)
