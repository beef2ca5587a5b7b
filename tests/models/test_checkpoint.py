"""Reading headers: the count is that of the model, and no broken file passes for a whole one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from llmkit.errors import CheckpointError
from llmkit.models.checkpoint import (
    WeightFiles,
    gguf_config,
    gguf_metadata,
    parameter_counts,
    tensor_counts,
    weight_bytes,
    weight_files,
)
from llmkit.models.tables import class_names
from llmkit.tasks import Head
from tests import tiny
from tests.conftest import Checkpoint


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with one small safetensors file, to be broken."""
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    return tmp_path


# Counts.


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "bert", "roberta", "distilbert"])
def test_the_count_is_that_of_the_model(checkpoint: Checkpoint, family: str) -> None:
    folder = checkpoint(family)
    model = getattr(transformers, tiny.FAMILIES[family][0]).from_pretrained(folder)
    assert parameter_counts(folder) == {"float32": sum(p.numel() for p in model.parameters())}


def test_sinusoidal_positions_of_marian_are_computed_and_so_not_counted(checkpoint: Checkpoint) -> None:
    folder = checkpoint("marian")
    model = transformers.MarianMTModel.from_pretrained(folder)
    expected = sum(p.numel() for name, p in model.named_parameters() if "embed_positions" not in name)
    assert parameter_counts(folder) == {"float32": expected}


def test_shards_are_summed(sharded: Path) -> None:
    assert len(weight_files(sharded).safetensors) > 1
    model = transformers.GPT2LMHeadModel.from_pretrained(sharded)
    assert parameter_counts(sharded) == {"float32": sum(p.numel() for p in model.parameters())}


def test_dtypes_have_the_names_of_torch(tmp_path: Path) -> None:
    kinds = (
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int8",
        "uint8",
        "bool",
    )
    tensors = {name: torch.zeros(number + 1, dtype=getattr(torch, name)) for number, name in enumerate(kinds)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert parameter_counts(tmp_path) == {name: number + 1 for number, name in enumerate(kinds)}


def test_saved_buffers_are_no_parameters(tmp_path: Path) -> None:
    # As they stand in openai-community/gpt2, google-bert/bert-base-uncased and opus-mt.
    save_file(
        {
            "h.0.attn.bias": torch.ones(1, 1, 8, 8),
            "h.0.attn.masked_bias": torch.zeros(()),
            "bert.embeddings.position_ids": torch.arange(8),
            "final_logits_bias": torch.zeros(1, 9),
            "h.0.attn.c_attn.bias": torch.zeros(6),
        },
        tmp_path / "model.safetensors",
    )
    assert parameter_counts(tmp_path) == {"float32": 6}


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_packed_weights_are_not_counted(weights: Path, method: str) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    (weights.parent / "config.json").write_text(json.dumps(config))
    assert parameter_counts(weights.parent) is None


def test_packed_weights_are_checked_all_the_same(weights: Path) -> None:
    (weights.parent / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="download it again"):
        parameter_counts(weights.parent)


def test_no_header_no_count(tmp_path: Path) -> None:
    assert parameter_counts(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert parameter_counts(tmp_path) is None


# Broken files.


def _entry(offsets: Any, shape: Any = (2,), dtype: Any = "F32") -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "half of the header": lambda data: data[:40],
    "one byte short": lambda data: data[:-1],
    "no weights after the header": lambda data: data[: 8 + int.from_bytes(data[:8], "little")],
    "bytes left over": lambda data: data + b"\0",
    "an error page": lambda data: b"<html>" + b"x" * 200,
    "a huge header": lambda data: (10**12).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"#" * (len(data) - 8),
    "no UTF-8": lambda data: data[:8] + b"\xff" * (len(data) - 8),
    "JSON of another kind": lambda data: (2).to_bytes(8, "little") + b"[]",
    "no dtype": lambda data: _entry([0, 8]).replace(b"dtype", b"dtypo"),
    "offsets of another kind": lambda data: _entry("08"),
    "three offsets": lambda data: _entry([0, 4, 8]),
    "offsets in reverse": lambda data: _entry([9, 8]),
    "a shape of another kind": lambda data: _entry([0, 8], shape=["x"]),
    "a tensor that is no object": lambda data: (8).to_bytes(8, "little") + b'{"a": 1}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_by_name(weights: Path, kind: str) -> None:
    weights.write_bytes(BROKEN[kind](weights.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        parameter_counts(weights.parent)
    assert str(weights) in str(caught.value)
    assert str(caught.value).endswith("download it again")
    assert "\n" not in str(caught.value)


def test_a_whole_file_is_not_refused(weights: Path) -> None:
    assert tensor_counts(weights) == {"float32": 15, "bfloat16": 7}
    weights.write_bytes(_entry([0, 8]))
    assert tensor_counts(weights) == {"float32": 2}


def test_a_git_lfs_pointer_is_named_as_one(weights: Path) -> None:
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        parameter_counts(weights.parent)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    victim = weight_files(sharded).safetensors[-1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=rf"{victim.name} is missing .* download it again"):
        parameter_counts(sharded)


def test_a_cut_shard_is_named(sharded: Path) -> None:
    victim = weight_files(sharded).safetensors[1]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=victim.name):
        parameter_counts(sharded)


def test_shards_without_their_index_are_no_checkpoint(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json is missing"):
        weight_files(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[]", "{"])
def test_an_index_without_names_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="download"):
        weight_files(tmp_path)


# Which files.


def test_only_what_transformers_loads_is_listed(weights: Path) -> None:
    folder = weights.parent
    for name in (
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "adapter_model.safetensors",
        "training_args.bin",
    ):
        (folder / name).write_bytes(b"something else")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 11)
    (folder / "q4.gguf").write_bytes(b"x" * 13)
    expected = WeightFiles(safetensors=(weights,), bins=(folder / "pytorch_model.bin",), gguf=(folder / "q4.gguf",))
    assert weight_files(folder) == expected


def test_a_single_file_wins_over_an_index(weights: Path) -> None:
    (weights.parent / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
    )
    assert weight_files(weights.parent).safetensors == (weights,)


def test_bins_in_parts_are_found_through_their_index(tmp_path: Path) -> None:
    parts = [tmp_path / f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for part in parts:
        part.write_bytes(b"x" * 5)
    index = {"weight_map": {"a": parts[1].name, "b": parts[0].name, "c": parts[0].name}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert weight_files(tmp_path) == WeightFiles(bins=tuple(parts))
    assert weight_bytes(tmp_path) == 10
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=parts[0].name):
        weight_files(tmp_path)


def test_bytes_are_of_the_files_that_would_be_loaded(weights: Path) -> None:
    folder = weights.parent
    size = weights.stat().st_size
    (folder / "pytorch_model.bin").write_bytes(b"x" * 11)
    (folder / "q4.gguf").write_bytes(b"x" * 13)
    assert weight_bytes(folder) == size
    weights.unlink()
    assert weight_bytes(folder) == 11
    (folder / "pytorch_model.bin").unlink()
    assert weight_bytes(folder) == 13


# GGUF.


def write_gguf(path: Path, architecture: str = "llama", vocabulary: int = 300) -> Path:
    """A tiny file with every kind of value that real ones have."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Très petit")
    writer.add_string("general.license", "apache-2.0")
    writer.add_array("general.languages", ["en", "fr"])
    writer.add_context_length(2048)
    writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_token_list([f"t{number}é" for number in range(vocabulary)])
    writer.add_token_types([1] * vocabulary)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((12, 64), dtype=np.float32))
    half = np.zeros((4, 32), dtype=np.float32)
    writer.add_tensor(
        "blk.0.weight", gguf.quantize(half, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_metadata_is_what_the_package_reads(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    metadata = gguf_metadata(path)
    reader = gguf.GGUFReader(path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and len(field.data) < 64:
            assert metadata[name] == pytest.approx(field.contents()), name
    assert metadata["parameters"] == sum(int(tensor.n_elements) for tensor in reader.tensors) == 12 * 64 + 4 * 32
    assert metadata["parameters_by_dtype"] == {"f32": 12 * 64, "q8_0": 4 * 32}


def test_the_vocabulary_is_left_out(tmp_path: Path) -> None:
    assert "tokenizer.ggml.tokens" not in gguf_metadata(write_gguf(tmp_path / "tiny.gguf"))


def test_every_cut_of_a_gguf_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", vocabulary=70)
    whole = path.read_bytes()
    padding = 160 - 4 * 34  # after the last tensor, whose bytes fill no whole block of 32
    for size in [*range(0, len(whole) - padding, 7), len(whole) - padding - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"tiny\.gguf .* download it again"):
            gguf_metadata(path)


def test_damage_in_a_gguf_file_gives_one_clear_error_or_none(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", vocabulary=70)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + b"\xff\xff\xff" + whole[place + 3 :])
        try:
            gguf_metadata(path)
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_a_gguf_file_from_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_metadata(tmp_path / "big.gguf")["llama.context_length"] == 77


@pytest.mark.parametrize(
    ("architecture", "name", "model_type"),
    [
        ("llama", "x", "llama"),
        ("qwen2moe", "x", "qwen2_moe"),
        ("gemma3", "x", "gemma3_text"),
        ("gpt-oss", "x", "gpt_oss"),
        ("qwen35moe", "x", "qwen3_5_moe_text"),
        ("command-r", "x", "command-r"),  # which Transformers has not
        ("t5", "Flan", "t5"),
        ("t5", "UMT5 base", "umt5"),
    ],
)
def test_gguf_architectures_get_their_model_type(architecture: str, name: str, model_type: str) -> None:
    metadata = {"general.architecture": architecture, "general.name": name, f"{architecture}.context_length": 512}
    config = gguf_config(metadata)
    assert config["model_type"] == model_type
    assert config["is_encoder_decoder"] is ("t5" in model_type)
    assert config["max_position_embeddings"] == 512


def test_gguf_types_are_those_that_transformers_builds() -> None:
    """Its table is of keys, by names that its code makes of the architectures."""
    known = class_names(Head.CAUSAL) | class_names(Head.SEQ2SEQ)
    for architecture in GGUF_CONFIG_MAPPING.keys() - {"general", "tokenizer", "deci"}:
        for spelled in (architecture, architecture.replace("_", "-"), architecture.replace("_", "")):
            assert gguf_config({"general.architecture": spelled})["model_type"] in known, spelled


def test_the_copy_of_a_checkpoint_through_links_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The Hub's cache is a folder of links to blobs."""
    source = checkpoint("gpt2")
    blob = tmp_path / "blob"
    shutil.copy(source / "model.safetensors", blob)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(blob)
    assert parameter_counts(snapshot) == parameter_counts(source)
    assert math.isclose(weight_bytes(snapshot), blob.stat().st_size)
