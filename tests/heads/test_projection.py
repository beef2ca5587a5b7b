"""The loss in chunks: loss and gradients equal those of all logits, in any class, with adapters and router losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmkit.heads import head_of, objective, projection
from llmkit.heads.base import IGNORED
from llmkit.heads.batch import Batch
from llmkit.heads.objective import Objective
from llmkit.heads.token_loss import Distillation, TokenLoss
from llmkit.tasks import Head
from tests.zoo.models import build

TYPES = [
    (Head.CAUSAL, "llama"),
    (Head.CAUSAL, "gemma2"),  # caps its logits
    (Head.CAUSAL, "granite"),  # divides them
    (Head.CAUSAL, "cohere"),  # multiplies them
    (Head.CAUSAL, "opt"),  # calls a part of its body
    (Head.CAUSAL, "gemma3"),  # text side of a model with images
    (Head.SEQ2SEQ, "t5"),  # scales hidden states before the output layer
    (Head.SEQ2SEQ, "bart"),  # adds a bias to its logits
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (objective, projection):
        monkeypatch.setattr(module, "CHUNK", 500)  # a few tokens


def batch_for(head: Head) -> Batch:
    lines: list[dict[str, Any]] = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [IGNORED, 6, 7, 8, 9]},
        {"input_ids": [11, 12, 13], "labels": [IGNORED, IGNORED, 13]},
    ]
    if head_of(head).target_apart:
        lines = [line | {"decoder_input_ids": [2, 9, 8], "labels": [9, 8, 1]} for line in lines]
    return head_of(head).batch(lines, pad_id=0)


def trained_parameters(model: Any) -> list[torch.Tensor]:
    return [each for each in model.parameters() if each.requires_grad]


def compare(model: Any, head: Head, whole: Objective) -> Objective:
    """Loss and all gradients, and the loss without gradients."""
    batch, trained = batch_for(head), trained_parameters(model)
    chunked = whole.in_chunks(model, 10**6, trained)
    assert chunked.projection_for(batch) is not None
    losses = [each.loss_sum(model, batch, "cpu") for each in (chunked, whole)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    found, expected = (
        torch.autograd.grad(loss / 7, trained, allow_unused=True, materialize_grads=True) for loss in losses
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(chunked.loss_sum(model, batch, "cpu"), losses[1], rtol=1e-6, atol=1e-6)
    return chunked


@pytest.mark.parametrize("token_loss", [TokenLoss(0.1), TokenLoss(loss_type="dft")])
@pytest.mark.parametrize(("head", "model_type"), TYPES)
def test_loss_and_gradients_are_those_of_all_logits(
    head: Head, model_type: str, token_loss: TokenLoss, tmp_path: Path
) -> None:
    model = build(head, model_type, tmp_path / "model").float().eval()
    compare(model, head, Objective.of(model, head_of(head), token_loss))


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"]}])
def test_with_adapters_also_on_the_output_layer(options: dict[str, Any], tmp_path: Path) -> None:
    base = build(Head.CAUSAL, "llama", tmp_path / "model").float()
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **{"target_modules": ["q_proj"], **options})
    model: Any = get_peft_model(base, config).eval()
    chunked = compare(model, Head.CAUSAL, Objective.of(model, head_of(Head.CAUSAL)))
    assert chunked.projection is not None
    assert bool(chunked.projection.trained) == bool(options)


@pytest.mark.parametrize(
    ("head", "model_type"), [(Head.CAUSAL, "llama"), (Head.CAUSAL, "gemma2"), (Head.SEQ2SEQ, "t5")]
)
def test_the_logits_of_a_teacher_are_computed_in_chunks_too(head: Head, model_type: str, tmp_path: Path) -> None:
    """Those of a class of its own, padded to another size of vocabulary; nothing of it gets a gradient."""
    model = build(head, model_type, tmp_path / "model").float().eval()
    other = build(head, "mistral" if head is Head.CAUSAL else "mt5", tmp_path / "teacher").float().eval()
    other.resize_token_embeddings(model.config.get_text_config().vocab_size + 5, mean_resizing=False)
    other.requires_grad_(False)
    plain = Objective.of(model, head_of(head), TokenLoss(0.1))
    whole = plain.with_teacher(other, Distillation(0.5, 0.5, 2.0), 0)
    parts = plain.with_teacher(other, Distillation(0.5, 0.5, 2.0), 10**6)
    assert (whole.teacher.objective.projection is None, parts.teacher.objective.projection is None) == (True, False)  # type: ignore[union-attr]
    batch, trained = batch_for(head), trained_parameters(model)
    chunked = parts.in_chunks(model, 10**6, trained)
    losses = [
        each.loss_sum(model, batch, "cpu") for each in (whole, parts, replace(chunked, teacher=whole.teacher), chunked)
    ]
    expected, *gradients = (
        torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True) for loss in losses
    )
    for loss, gradient in zip(losses[1:], gradients, strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    evaluated = chunked.for_evaluation().loss_sum(model, batch, "cpu")
    torch.testing.assert_close(evaluated, plain.loss_sum(model, batch, "cpu"), rtol=1e-5, atol=1e-5)


def test_router_losses_are_added_once(tmp_path: Path) -> None:
    model = build(Head.CAUSAL, "mixtral", tmp_path / "model").float().eval()
    plain = Objective.of(model, head_of(Head.CAUSAL))
    compare(model, Head.CAUSAL, replace(plain, balances=True, coefficient=0.5))


def test_a_class_that_does_more_with_its_states_needs_all_logits(tmp_path: Path) -> None:
    model = build(Head.CAUSAL, "llama", tmp_path / "model").float()
    plain, own = Objective.of(model, head_of(Head.CAUSAL)), model.forward

    def forward(input_ids: Any, **options: Any) -> Any:
        output = own(input_ids=input_ids, **options)
        output.logits = output.logits + input_ids[..., :1, None]
        return output

    model.forward = forward
    assert plain.in_chunks(model, 10**6, trained_parameters(model)).projection is None


def test_few_labels_take_all_logits_at_once(tmp_path: Path) -> None:
    model = build(Head.CAUSAL, "llama", tmp_path / "model").float()
    plain = Objective.of(model, head_of(Head.CAUSAL))
    assert plain.in_chunks(model, 1, trained_parameters(model)) is plain
