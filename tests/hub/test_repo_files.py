"""Which files of a repository are fetched: chosen by name and size, seen through a Hub on this machine."""

from __future__ import annotations

import pytest

from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, ModelNotFoundError
from llmkit.hub import client, repo_files
from llmkit.models.locate import locate
from tests.hub.conftest import CONFIG, TINY, WEIGHTS, names, one_line
from tests.hub.fake_hub import FakeHub


def test_safetensors_are_preferred_and_nothing_unused_is_fetched(fake: FakeHub) -> None:
    unused = [
        *("pytorch_model.bin", "model.fp16.safetensors", "tf_model.h5", "flax_model.msgpack", "training_args.bin"),
        *("onnx/model.onnx", "onnx/config.json", "original/consolidated.safetensors", "openvino/openvino_model.bin"),
        *(".gitattributes", "modeling_own.py", "rust_model.ot", "model.gguf"),
    ]
    small = ["merges.txt", "source.spm", "spiece.model", "chat_template.jinja", "README.md", "LICENSE", "bpe.codes"]
    small += ["additional_chat_templates/tool.jinja", "tokenizer.model.v3"]
    fake.add("org/tiny", TINY | dict.fromkeys([*unused, *small], b"x"))
    assert names(client.fetch("org/tiny")) == {*TINY, *small}


def test_shards_come_with_their_index(fake: FakeHub) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS for i in (1, 2)}
    files = {"config.json": CONFIG, "model.safetensors.index.json": b"{}", **shards}
    fake.add("org/tiny", files | {"pytorch_model.bin": b"x"})
    assert names(client.fetch("org/tiny")) == set(files)


def test_a_missing_shard_is_an_error(fake: FakeHub) -> None:
    fake.add("org/tiny", {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": WEIGHTS})
    with pytest.raises(CheckpointError, match="model-00002-of-00002") as error:
        client.fetch("org/tiny")
    assert one_line(error)


def test_pickles_only_where_nothing_else_is(fake: FakeHub) -> None:
    fake.add("org/old", {"config.json": CONFIG, "pytorch_model.bin": b"x"})
    assert names(client.fetch("org/old")) == {"config.json", "pytorch_model.bin"}


def test_safetensors_only_refuses_pickles(fake: FakeHub) -> None:
    fake.add("org/old", {"config.json": CONFIG, "pytorch_model.bin": b"x"})
    with pytest.raises(CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\)") as error:
        client.fetch("org/old", safetensors_only=True)
    assert one_line(error)
    assert len(fake.requests) == 1


def test_an_adapter_is_fetched(fake: FakeHub) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS}
    fake.add("org/lora", files | {"adapter_model.bin": b"x"})
    assert names(client.fetch("org/lora")) == set(files)


def test_code_comes_only_when_asked_for(fake: FakeHub) -> None:
    fake.add("org/own", TINY | {"modeling_own.py": b"", "lib/util.py": b""})
    assert names(client.fetch("org/own")) == set(TINY)
    assert names(client.fetch("org/own", code=True)) == {*TINY, "modeling_own.py", "lib/util.py"}


def test_without_weights(fake: FakeHub) -> None:
    fake.add("org/tiny", TINY)
    assert names(client.fetch("org/tiny", weights=False)) == {"config.json", "tokenizer.json"}


def test_one_gguf_file(fake: FakeHub) -> None:
    fake.add("org/gguf", {"a-Q4.gguf": b"a", "q/b-Q8.gguf": b"b", "config.json": CONFIG})
    snapshot = client.fetch("org/gguf", filename="q/b-Q8.gguf")
    assert names(snapshot) == {"q/b-Q8.gguf", "config.json"}


@pytest.mark.parametrize("part", [1, 3])
def test_all_parts_of_a_gguf_file(part: int, fake: FakeHub) -> None:
    parts = [f"q/b-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    fake.add("org/gguf", dict.fromkeys([*parts, "q/c-00001-of-00002.gguf"], b"b"))
    assert names(client.fetch("org/gguf", filename=parts[part - 1])) == set(parts)
    source = locate(LoadSettings(model=f"org/gguf/{parts[part - 1]}"), "text-generation")
    assert source.gguf_file == parts[0]
    with pytest.raises(CheckpointError, match=r"lacks q/c-00002-of-00002.gguf on the hub"):
        client.fetch("org/gguf", filename="q/c-00001-of-00002.gguf")


def test_gguf_repositories_need_a_file_name(fake: FakeHub) -> None:
    fake.add("org/gguf", {"a-Q4.gguf": b"a", "b-Q8.gguf": b"b"})
    with pytest.raises(CheckpointError, match=r"org/gguf/a-Q4\.gguf") as error:
        client.fetch("org/gguf")
    assert one_line(error)
    with pytest.raises(ModelNotFoundError, match=r"no file c\.gguf; .*a-Q4\.gguf, b-Q8\.gguf"):
        client.fetch("org/gguf", filename="c.gguf")


def test_large_text_is_not_a_tokenizer(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo_files, "_SMALL", 100)
    fake.add("org/tiny", TINY | {"wiki.txt": b"x" * 101})
    assert names(client.fetch("org/tiny")) == set(TINY)
