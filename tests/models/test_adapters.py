"""Adapters on models that PEFT alone would refuse, or would put them on in the wrong place."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llmkit.config.recipe import AdapterSection
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, TaskMismatchError, UsageError
from llmkit.models.adapter_files import check_adapter
from llmkit.models.adapters import attach
from llmkit.models.inspect import inspect_source
from llmkit.models.load import load_model
from llmkit.models.locate import locate
from llmkit.tasks import Head
from llmkit.training.merge import merge
from tests.conftest import Checkpoint
from tests.training.recipes import make_recipe
from tests.zoo.models import build

IDS = torch.tensor([[9, 10, 11, 12]])


def section_of(peft_type: str, **settings: Any) -> AdapterSection:
    content = {"peft_type": peft_type, **settings}
    section: AdapterSection = make_recipe("summarization", Path("model"), Path("rows"), adapter=content).adapter
    return section


def adapted(head: Head, model_type: str, folder: Path) -> Any:
    build(head, model_type, folder)
    section = section_of("LORA", r=4)
    return attach(load(folder), section, head, tokenizer_name=str(folder))


def load(folder: Path, task: str = "text-generation", *, training: bool = False) -> Any:
    settings = LoadSettings(model=str(folder), offline=True, device="cpu", dtype="float32")
    return load_model(settings, task, training=training).model


def published(base: Path, folder: Path, *, rows: int | None = None, saved: Any = "auto", **settings: Any) -> Any:
    """An adapter as a program writes it that knows PEFT alone, trained with ``rows`` embeddings; the model itself."""
    import peft

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    given: Any = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that embeddings are tied, and that it saves them
        model = peft.get_peft_model(model, peft.LoraConfig(**given))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.3)
        model.save_pretrained(folder, save_embedding_layers=saved)
    return model.eval()


def same(one: Any, other: Any, *, rtol: float | None = None, atol: float | None = None) -> None:
    rows = other.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[5, 9, rows - 1]])
    with torch.no_grad():
        torch.testing.assert_close(one(input_ids=ids).logits, other(input_ids=ids).logits, rtol=rtol, atol=atol)


def targets(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(
    ("model_type", "left_out", "taken"),
    [
        ("mamba", "dt_proj", "in_proj"),  # its weight is read by the layer above, which would pass an adapter by
        ("jamba", "dt_proj", "in_proj"),
        ("llama4_text", "router", "q_proj"),  # a subclass of a linear layer that returns a pair
        ("falcon", "lm_head", "dense_h_to_4h"),  # a subclass that is linear all the same
    ],
)
def test_all_linear_is_what_computes_as_a_linear_layer(
    model_type: str, left_out: str, taken: str, tmp_path: Path
) -> None:
    model = adapted(Head.CAUSAL, model_type, tmp_path / model_type)
    assert left_out not in targets(model)
    assert taken in targets(model)
    model(input_ids=IDS).logits.sum().backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(weight.grad is not None for name, weight in trained.items() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # which PEFT says of all virtual tokens
@pytest.mark.parametrize("peft_type", ["PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHADOW"])
def test_keys_and_values_of_an_adapter_are_kept_while_it_writes(
    peft_type: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    import peft

    own: Any = {} if peft_type == "SHADOW" else {"num_virtual_tokens": 4}
    kind: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)]
    model: Any = peft.get_peft_model(load(checkpoint("llama")), kind(task_type="CAUSAL_LM", **own))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    model.save_pretrained(tmp_path / "adapter")
    model, ids = load(tmp_path / "adapter"), IDS
    for _ in range(8):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    found = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, eos_token_id=None)
    assert found.tolist() == ids.tolist()


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_span_model_takes_keys_and_values_of_an_adapter(family: str, tmp_path: Path) -> None:
    build(Head.SPAN, family, tmp_path / family)
    base = load(tmp_path / family, "question-answering")
    section: Any = section_of("PREFIX_TUNING", num_virtual_tokens=4)
    with torch.no_grad():
        before = base(input_ids=IDS).start_logits
        model = attach(base, section, Head.SPAN, tokenizer_name="").eval()
        model.prompt_encoder["default"].embedding.weight.fill_(1.0)
        assert (model(input_ids=IDS).start_logits - before).abs().max() > 1e-3


@pytest.mark.parametrize(("model_type", "said"), [("fuyu", ""), ("git", "new tokens of Git"), ("blt", "Blt")])
def test_new_tokens_are_those_of_the_embeddings_that_are_read(model_type: str, said: str, tmp_path: Path) -> None:
    build(Head.CAUSAL, model_type, tmp_path / model_type)
    base = load(tmp_path / model_type)
    section = section_of("LORA", r=4)
    with pytest.raises(UsageError, match=said) if said else nullcontext():
        model = attach(base, section, Head.CAUSAL, tokenizer_name="", new_tokens=[5])
        assert model.get_input_embeddings().token_adapter is not None


def test_weights_that_peft_renames_away_are_loaded(tmp_path: Path) -> None:
    model = adapted(Head.CAUSAL, "laguna", tmp_path / "laguna")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    model.eval()
    again = load(tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_an_adapter_that_lacks_weights_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted(Head.CAUSAL, "llama", tmp_path / "llama").save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight for name, weight in weights.items() if "q_proj" not in name}, file)
    caplog.set_level(logging.WARNING, "llmkit")
    load(tmp_path / "adapter")
    assert any("lacks 4 weights" in message for message in caplog.messages)


def test_an_encoder_gets_its_head_from_the_adapter(tmp_path: Path) -> None:
    build(Head.SPAN, "bert", tmp_path / "bert")
    transformers.AutoModel.from_pretrained(tmp_path / "bert").save_pretrained(tmp_path / "bert")
    base = load(tmp_path / "bert", "question-answering", training=True)
    section = section_of("LORA", r=4)
    model = attach(base, section, Head.SPAN, tokenizer_name=str(tmp_path / "bert"))
    model.save_pretrained(tmp_path / "adapter")
    model.eval()
    again = load(tmp_path / "adapter", "question-answering")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).start_logits, model(input_ids=IDS).start_logits)


def test_token_types_reach_a_model_below_an_adapter(tmp_path: Path) -> None:
    build(Head.SPAN, "bert", tmp_path / "bert")
    inputs = {"input_ids": IDS, "token_type_ids": torch.tensor([[0, 0, 1, 1]])}
    base = load(tmp_path / "bert", "question-answering")
    section = section_of("LORA", r=4)
    with torch.no_grad():
        expected = base(**inputs).start_logits
        model = attach(base, section, Head.SPAN, tokenizer_name="").eval()  # a new adapter changes nothing
        torch.testing.assert_close(model(**inputs).start_logits, expected)
        model.save_pretrained(tmp_path / "adapter")
        again = load(tmp_path / "adapter", "question-answering")
        torch.testing.assert_close(again(**inputs).start_logits, expected)


WHOLE: dict[str, Any] = {"modules_to_save": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (204, WHOLE),
        (204, {}),  # PEFT saves them unasked
        (204, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        (204, {"trainable_token_indices": [203]}),
        (256, WHOLE),  # padded to a multiple of 64
        (199, WHOLE),  # the base has more rows than its tokenizer has tokens
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_have_the_size_that_the_adapter_was_trained_with(
    rows: int, settings: dict[str, Any], tied: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = checkpoint("llama", tie_word_embeddings=tied)
    model = published(base, tmp_path / "adapter", rows=rows, **settings)
    same(load(tmp_path / "adapter"), model)
    merge(str(tmp_path / "adapter"), tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    same(merged, model, rtol=1e-3, atol=1e-3)


def test_tokens_whose_vectors_were_not_saved_are_told_of(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = checkpoint("llama")
    published(base, tmp_path / "adapter", rows=204, saved=False)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    one, other = load(tmp_path / "adapter"), load(tmp_path / "adapter")
    same(one, other)  # nothing is drawn
    assert "2 more tokens than its base model has" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),  # torch.compile
        lambda name: f"module.{name}",  # DataParallel
        lambda name: name.replace(".weight", ".default.weight") if "lora_" in name else name,
        lambda name: name.replace(".weight", ".mine.weight") if "lora_" in name else name,
        lambda name: name.replace("lm_head.", "lm_head.modules_to_save.default.") if "lora_" not in name else name,
    ],
    ids=["bare", "compiled", "wrapped", "default", "mine", "modules_to_save"],
)
def test_weights_are_found_by_the_names_that_programs_give_them(
    name: Callable[[str], str], checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = published(checkpoint("llama"), tmp_path / "adapter", **WHOLE)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name(key): weight for key, weight in load_file(file).items()}, file)
    same(load(tmp_path / "adapter"), model)
    assert "lacks" not in caplog.text


def test_an_adapter_of_another_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    published(checkpoint("llama", num_hidden_layers=3), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())

    def described(**more: Any) -> Path:
        (adapter / "adapter_config.json").write_text(json.dumps(config | more))
        return adapter

    def refused(match: str, **more: Any) -> None:
        described(**more)
        with pytest.raises(CheckpointError, match=match):
            load(adapter)
        with pytest.raises(CheckpointError, match=match):
            inspect_source(locate(LoadSettings(model=str(adapter), offline=True), "text-generation"))

    refused(r"layers\.2\..* has no place in it; .*`base`", base_model_name_or_path=str(checkpoint("llama")))
    narrow = checkpoint("llama", num_hidden_layers=3, intermediate_size=24)
    refused(r"is for 32 values and the layer is \(\d+, \d+\).*`base`", base_model_name_or_path=str(narrow))
    refused(r"has rank 2, but r is 4 in adapter_config\.json", r=4)
    refused("upgrade it: pip install -U peft", peft_type="FUTURE")
    described()
    source = locate(LoadSettings(model=str(adapter), offline=True), "text-generation")
    with pytest.raises(TaskMismatchError, match="was trained for another kind of model"):
        load(described(task_type="SEQ_CLS"))
    assert {fit.status for fit in inspect_source(source).tasks.values()} == {"no"}
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has an adapter_config.json and no adapter_model.safetensors"):
        load(described())


def test_an_adapter_of_another_format_is_refused_as_such(checkpoint: Checkpoint, tmp_path: Path) -> None:
    mlx = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 2.0}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(mlx), encoding="utf-8")
    settings = LoadSettings(model=str(tmp_path), base=str(checkpoint("llama")), offline=True, device="cpu")
    with pytest.raises(CheckpointError, match=r"not in PEFT's format .*; merge it with the program that trained it"):
        load_model(settings, "text-generation")


def test_a_base_whose_headers_tell_nothing_is_compared_when_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    published(checkpoint("llama", num_hidden_layers=3), tmp_path / "adapter")
    shutil.copytree(checkpoint("llama"), tmp_path / "base")
    torch.save(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    settings = LoadSettings(model=str(tmp_path / "adapter"), base=str(tmp_path / "base"), offline=True)
    with pytest.raises(CheckpointError, match=r"weights of the adapter .* match no layer of its base model .*`base`"):
        load_model(settings, "text-generation")


def test_a_grown_adapter_is_inspected_with_its_own_vocabulary(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint("llama", chat=True)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    for name, saved in (("saved", True), ("not-saved", False)):
        published(base, tmp_path / name, rows=len(tokenizer), saved=saved)
        tokenizer.save_pretrained(tmp_path / name)
        report = inspect_source(locate(LoadSettings(model=str(tmp_path / name), offline=True), "text-generation"))
        assert not [trap for trap in report.known_issues if "embeddings: resize" in trap]


def test_an_adapter_whose_chat_template_was_left_behind_has_that_of_its_base(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = checkpoint("llama", chat=True)
    published(base, tmp_path / "adapter")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "chat_template.jinja").unlink()
    settings = LoadSettings(model=str(tmp_path / "adapter"), offline=True)
    assert load_model(settings, "text-generation").tokenizer.chat_template == tokenizer.chat_template
    assert inspect_source(locate(settings, "text-generation")).chat_template
    assert "without a chat template" in caplog.text


def test_a_setting_of_a_newer_peft_is_told_of_where_it_is_in_use(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = published(checkpoint("llama"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"a_new_one": True, "another": None}))
    same(load(tmp_path / "adapter"), model)
    assert "sets a_new_one, which the installed PEFT does not support" in caplog.text


@pytest.mark.parametrize(("method", "fix"), [("lora", "write LORA"), ("A_NEW_ONE", "upgrade it")])
def test_a_method_that_peft_does_not_know_is_refused(method: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
    with pytest.raises(CheckpointError, match=f"peft_type {method}, which .* does not know; {fix}"):
        check_adapter(tmp_path, Head.CAUSAL)
