"""Adapters on models that PEFT alone would refuse, or would put them on in the wrong place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from llmkit.config.recipe import Adapter
from llmkit.config.settings import LoadSettings
from llmkit.models.adapters import attach
from llmkit.models.load import load_model
from llmkit.tasks import Head
from tests.zoo.models import build

IDS = torch.tensor([[9, 10, 11, 12]])


def adapted(head: Head, model_type: str, folder: Path) -> Any:
    build(head, model_type, folder)
    section = TypeAdapter(Adapter).validate_python({"peft_type": "LORA", "r": 4})
    return attach(load(folder), section, head, tokenizer_name=str(folder))


def load(folder: Path, task: str = "text-generation", *, training: bool = False) -> Any:
    settings = LoadSettings(model=str(folder), offline=True, device="cpu", dtype="float32")
    return load_model(settings, task, training=training).model


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
    section = TypeAdapter(Adapter).validate_python({"peft_type": "LORA", "r": 4})
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
    section = TypeAdapter(Adapter).validate_python({"peft_type": "LORA", "r": 4})
    with torch.no_grad():
        expected = base(**inputs).start_logits
        model = attach(base, section, Head.SPAN, tokenizer_name="").eval()  # a new adapter changes nothing
        torch.testing.assert_close(model(**inputs).start_logits, expected)
        model.save_pretrained(tmp_path / "adapter")
        again = load(tmp_path / "adapter", "question-answering")
        torch.testing.assert_close(again(**inputs).start_logits, expected)
