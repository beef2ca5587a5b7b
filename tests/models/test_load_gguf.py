"""A GGUF file answers as the checkpoint it was made from."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, UsageError
from llmkit.models.checkpoint import gguf_metadata
from llmkit.models.inspect import inspect_source
from llmkit.models.load import load_model
from llmkit.models.locate import locate
from tests.conftest import Checkpoint

PROMPTS = ["The quick", "What is the meaning of life?", "今天天气"]


def write_gguf(checkpoint: Path, path: Path, splits: str = "qwen2", tensors_each: int = 0) -> Path:
    """A float32 GGUF file of a tiny Qwen3 checkpoint, as llama.cpp's converter lays it out.

    Transformers does not read the head size of a Qwen3 file and takes 128, so the tiny model has that too.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    config, tokenizer = model.config, json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "qwen3", split_max_tensors=tensors_each)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = tokenizer["model"]["vocab"]
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        writer.add_tensor(found, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(checkpoint("qwen3", head_dim=128), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_it_answers_as_its_checkpoint(
    gguf_file: Path, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    original = llmkit.load("generate", str(checkpoint("qwen3", head_dim=128)), max_new_tokens=10)
    expected = [output.text for output in original.map(PROMPTS)]
    with caplog.at_level("WARNING", logger="llmkit"):
        pipeline = llmkit.load("generate", str(gguf_file), max_new_tokens=10)
    assert [output.text for output in pipeline.map(PROMPTS)] == expected
    assert pipeline.loaded.context == original.loaded.context
    assert "tiny.gguf is unpacked to full weights each time it is loaded" in caplog.text
    assert "cuts text" not in caplog.text
    assert "it/s" not in capfd.readouterr().err


def test_a_tokenizer_that_transformers_cuts_otherwise(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_gguf(checkpoint("qwen3", head_dim=128), tmp_path / "other.gguf", splits="smollm")
    with caplog.at_level("WARNING", logger="llmkit"):
        load_model(LoadSettings(model=str(path)), "text-generation")
    assert "other.gguf has the pre-tokenizer 'smollm', which Transformers does not know" in caplog.text


def test_a_folder_with_one_gguf_file_is_enough(gguf_file: Path) -> None:
    loaded = load_model(LoadSettings(model=str(gguf_file.parent)), "text-generation")
    assert loaded.source.gguf_file == gguf_file.name


def test_several_files_must_be_told_apart(gguf_file: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_file.read_bytes())
    with pytest.raises(CheckpointError, match=r"contains 2 GGUF models; name one: `model=.*a\.gguf"):
        load_model(LoadSettings(model=str(tmp_path)), "text-generation")


def test_quantizing_it_again_is_refused(gguf_file: Path) -> None:
    with pytest.raises(UsageError, match="leave `quantize` out"):
        load_model(LoadSettings(model=str(gguf_file), quantize="8bit"), "text-generation")


def test_a_cut_file(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="is not a complete GGUF file"):
        load_model(LoadSettings(model=str(tmp_path / "cut.gguf")), "text-generation")


@pytest.fixture(scope="module")
def parts(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as llama.cpp's gguf-split writes it: several files, the metadata in the first."""
    folder = tmp_path_factory.mktemp("parts")
    write_gguf(checkpoint("qwen3", head_dim=128), folder / "m.gguf", tensors_each=10)
    assert len(list(folder.glob("m-0000?-of-00003.gguf"))) == 3
    return folder


@pytest.mark.parametrize("named", ["", "m-00001-of-00003.gguf", "m-00003-of-00003.gguf"])
def test_parts_answer_as_the_whole(named: str, parts: Path, gguf_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = llmkit.load("generate", str(gguf_file), max_new_tokens=10)
    pipeline = llmkit.load("generate", str(parts / named), max_new_tokens=10)
    assert [output.text for output in pipeline.map(PROMPTS)] == [output.text for output in expected.map(PROMPTS)]
    if not named:
        assert "llama-gguf-split --merge m-00001-of-00003.gguf NEW.gguf" in caplog.text
    source = locate(LoadSettings(model=str(parts / named)), "text-generation")
    whole = locate(LoadSettings(model=str(gguf_file)), "text-generation")
    assert inspect_source(source).parameters == inspect_source(whole).parameters


def test_a_missing_part_is_named(parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts, tmp_path / "some")
    (tmp_path / "some" / "m-00002-of-00003.gguf").unlink()
    for named in ("", "m-00003-of-00003.gguf"):
        with pytest.raises(CheckpointError, match=r"m-00002-of-00003.gguf is missing, one of 3 parts; put it beside"):
            load_model(LoadSettings(model=str(tmp_path / "some" / named)), "text-generation")


@pytest.mark.parametrize("names", [("a.gguf.part1of2", "a.gguf.part2of2"), ("a.gguf-split-a", "a.gguf-split-b")])
def test_pieces_that_were_cut_at_any_byte(names: tuple[str, str], gguf_file: Path, tmp_path: Path) -> None:
    for name, content in zip(names, (gguf_file.read_bytes()[:4000], gguf_file.read_bytes()[4000:]), strict=True):
        (tmp_path / name).write_bytes(content)
    for model in (tmp_path, tmp_path / names[1]):
        with pytest.raises(CheckpointError, match=rf"cat {names[0]} {names[1]} > a\.gguf$"):
            load_model(LoadSettings(model=str(model)), "text-generation")


def test_an_array_longer_than_its_file_ends_at_once(tmp_path: Path) -> None:
    name = b"general.architecture"
    array = struct.pack("<IIQ", 9, 4, 2**40)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(name)) + name
    (tmp_path / "m.gguf").write_bytes(header + array + bytes(64))
    with pytest.raises(CheckpointError, match=r"not a complete GGUF file .an array of 1,099,511,627,776 items"):
        gguf_metadata(tmp_path / "m.gguf")
