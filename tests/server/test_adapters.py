"""A base model and its adapters: requests of several in one batch, each as with the adapter alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

import llmkit
from llmkit.engines.transformers.model_calls import ModelCalls
from llmkit.errors import CheckpointError, UsageError
from llmkit.inference.tuned_config import Contract, write_contract
from tests.conftest import Checkpoint
from tests.server.conftest import Serve
from tests.server.test_parity import OPTIONS, TEXTS, row

LORAS: dict[str, dict[str, Any]] = {
    "small.v1": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "wide": {"r": 8, "target_modules": ["q_proj", "down_proj", "up_proj"], "use_rslora": True},
    "all": {"r": 4, "target_modules": "all-linear", "rank_pattern": {"o_proj": 3}},
}
OF_T5: dict[str, dict[str, Any]] = {
    "small.v1": {"r": 2, "target_modules": ["q", "v"]},
    "wide": {"r": 8, "target_modules": ["wi", "wo"]},
    "all": {"r": 4, "target_modules": ["q", "k", "v", "o"]},
}
OF_BERT: dict[str, dict[str, Any]] = {
    "small.v1": {"r": 2, "target_modules": ["query"]},
    "wide": {"r": 8, "target_modules": ["dense"]},
    "all": {"r": 4, "target_modules": ["key", "value"]},
}


def adapter(base: Path, folder: Path, seed: int = 0, kind: Any = peft.LoraConfig, **settings: Any) -> str:
    """A random adapter of a base model, as PEFT saves it."""
    auto = {"t5": transformers.AutoModelForSeq2SeqLM, "bert": transformers.AutoModelForQuestionAnswering}
    config = transformers.AutoConfig.from_pretrained(base)
    model = auto.get(config.model_type, transformers.AutoModelForCausalLM).from_pretrained(base)
    adapted = peft.get_peft_model(model, kind(**settings))
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return str(folder)


def adapters(base: Path, folder: Path, settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {
        name: adapter(base, folder / name, seed, **own) for seed, (name, own) in enumerate(settings.items(), start=1)
    }


@pytest.mark.parametrize(
    ("verb", "family", "settings", "more"),
    [
        ("generate", "llama", LORAS, {}),
        ("generate", "llama", LORAS, {"num_beams": 3, "num_return_sequences": 2}),
        ("summarize", "t5", OF_T5, {}),
        ("summarize", "t5", OF_T5, {"num_beams": 2}),
        ("answer", "bert", OF_BERT, {}),
    ],
)
def test_each_row_is_answered_as_with_its_adapter_alone(
    verb: str,
    family: str,
    settings: dict[str, Any],
    more: dict[str, Any],
    checkpoint: Checkpoint,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = checkpoint(family)
    folders = {str(base): str(base)} | adapters(base, tmp_path, settings)
    options: dict[str, Any] = {} if family == "bert" else OPTIONS | more
    expected = {
        name: [pipeline(row(verb, text)).to_dict() for text in TEXTS]
        for name, folder in folders.items()
        for pipeline in [llmkit.load(verb, folder, device="cpu", dtype="float32", **options)]
    }
    texts = [str([each["text"] for each in answers]) for answers in expected.values()]
    assert len(set(texts)) == 4 or family == "bert"  # the adapters have an effect
    client: Any = serve(base, adapters={name: each for name, each in folders.items() if name != str(base)})
    batches: list[int] = []
    run = ModelCalls.run

    def counted(calls: ModelCalls, rows: Any, *arguments: Any, **options: Any) -> Any:
        batches.append(len({each.adapter for each in rows}))
        return run(calls, rows, *arguments, **options)

    monkeypatch.setattr(ModelCalls, "run", counted)

    def ask(which: tuple[str, str]) -> Any:
        name, text = which
        return client.post(f"/v1/{verb}", json=row(verb, text) | options | {"model": name}).json()

    requests = [(name, text) for text in TEXTS for name in folders]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, requests))
    for (name, text), answer in zip(requests, found, strict=True):
        assert answer == expected[name][TEXTS.index(text)], name
    if family != "bert":
        assert max(batches) > 2


def test_only_the_adapters_are_added_to_the_base(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> None:
    base = checkpoint("llama")
    folders = adapters(base, tmp_path, LORAS)
    client: Any = serve(base, adapters=folders)

    def parameters(*folders: str) -> int:
        files = [file for folder in folders for file in Path(folder).glob("*.safetensors")]
        return sum(tensor.numel() for file in files for tensor in load_file(file).values())

    engines = [served.engine for served in client.models.values()]
    models = {id(engine.loaded.model) for engine in engines}
    held = sum(each.numel() for each in engines[0].loaded.model.parameters())
    assert (len(models), held) == (1, parameters(str(base), *folders.values()))
    assert len({id(served.worker) for served in client.models.values()}) == 1
    listed = {each["id"]: (each["root"], each["parent"]) for each in client.get("/v1/models").json()["data"]}
    assert listed == {str(base): (str(base), None)} | {name: (each, str(base)) for name, each in folders.items()}


def test_an_adapter_brings_its_contract_and_chat_template(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> None:
    base = checkpoint("llama", chat=True, max_position_embeddings=512)
    folders = adapters(base, tmp_path, {"plain": LORAS["wide"], "tuned": LORAS["wide"]})
    write_contract(
        Path(folders["tuned"]),
        Contract("summarization", settings={"length": "long"}, prompt={"system": "Whisper."}, longest_target=5),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(folders["tuned"])
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}
    client: Any = serve(base, adapters=folders)
    for name, folder in {str(base): str(base), **folders}.items():
        expected = llmkit.load("summarize", folder, device="cpu", dtype="float32", **options)(TEXTS[0]).to_dict()
        body = {"document": TEXTS[0], "model": name, **options}
        assert client.post("/v1/summarize", json=body).json() == expected, name


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (peft.LoraConfig, {"r": 2, "target_modules": ["q_proj"], "use_dora": True}),
        (peft.LoraConfig, {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        (peft.LoraConfig, {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
        (peft.IA3Config, {"target_modules": ["v_proj"], "feedforward_modules": []}),
    ],
)
def test_adapters_that_cannot_be_mixed_take_turns(
    kind: Any, settings: dict[str, Any], checkpoint: Checkpoint, serve: Serve, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    own = LORAS["wide"] if kind is peft.LoraConfig else settings
    folders = {
        "other": adapter(base, tmp_path / "other", 1, kind, **own),
        "special": adapter(base, tmp_path / "special", 2, kind, **settings),
    }
    expected = {
        name: llmkit.load("generate", folder, device="cpu", dtype="float32", **OPTIONS)(TEXTS[0]).text
        for name, folder in {str(base): str(base), **folders}.items()
    }
    client: Any = serve(base, adapters=folders)
    assert "special" not in client.models["special"].engine.loaded.shared.mixed

    def ask(name: str) -> str:
        return str(client.post("/v1/generate", json={"prompt": TEXTS[0], "model": name, **OPTIONS}).json()["text"])

    names = [*expected] * 2
    with ThreadPoolExecutor(6) as pool:
        assert dict(zip(names, pool.map(ask, names), strict=True)) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        (peft.PromptTuningConfig, {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}, "virtual tokens"),
        (peft.LoraConfig, {"target_modules": ["q_proj"], "layer_replication": [(0, 2), (0, 2)]}, "layers"),
        (peft.LoraConfig, {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "changes weights"),
        (peft.IA3Config, {"target_modules": ["v_proj"], "feedforward_modules": []}, "peft_type IA3, and .* has LORA"),
    ],
)
def test_adapters_that_cannot_share_a_base_are_refused(
    kind: Any, settings: dict[str, Any], reason: str, checkpoint: Checkpoint, serve: Serve, tmp_path: Path
) -> None:
    base = checkpoint("llama")
    folders = adapters(base, tmp_path, {"one": LORAS["wide"]})
    folders["two"] = adapter(base, tmp_path / "two", 2, kind, **settings)
    with pytest.raises(CheckpointError, match=f"cannot share its base .*{reason}.*llmkit serve"):
        serve(base, adapters=folders)


def test_adapters_of_another_model_are_refused(checkpoint: Checkpoint, serve: Serve, tmp_path: Path) -> None:
    base, other = checkpoint("llama"), checkpoint("llama", hidden_size=32)
    with pytest.raises(CheckpointError, match=f"is an adapter of {other}, and {base} is served; serve {other}"):
        serve(base, adapters={"a": adapter(other, tmp_path / "a", **LORAS["wide"])})
    with pytest.raises(UsageError, match="adapters share one base model, and 2 models are named"):
        serve(base, other, adapters={"a": "somewhere"})
    with pytest.raises(UsageError, match="named twice"):
        serve(base, adapters={str(base): "somewhere"})
    with pytest.raises(UsageError, match="empty name"):
        serve(base, adapters={"": "somewhere"})


def test_runs_that_share_a_base_are_loaded_on_their_own(
    checkpoint: Checkpoint, serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = checkpoint("llama")
    runs = adapters(base, tmp_path, {"a": LORAS["wide"], "b": LORAS["wide"]})
    client: Any = serve(*runs.values())
    assert len({id(served.engine.loaded.model) for served in client.models.values()}) == 2
    assert f"llmkit serve {base} --adapter NAME=DIR" in caplog.text
