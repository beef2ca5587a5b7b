"""NEFTune: noise of the magnitude of each example's own length, in training only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from llmkit.errors import UsageError
from llmkit.heads import head_of
from llmkit.heads.batch import Batch
from llmkit.heads.embedding_noise import EmbeddingNoise
from llmkit.heads.objective import Objective
from llmkit.tasks import Head
from tests.zoo.models import build

ALPHA = 5.0


def batch_of(head: Head, lengths: tuple[int, ...], **options: Any) -> Batch:
    lines = [
        {"input_ids": [*range(5, 5 + length)], "labels": [*range(5, 5 + length)], "decoder_input_ids": [2, 9]}
        for length in lengths
    ]
    if head_of(head).target_apart:
        lines = [line | {"labels": [9, 1]} for line in lines]
    return head_of(head).batch(lines, pad_id=0, **options)


def loss_of(objective: Objective, model: Any, batch: Batch) -> torch.Tensor:
    torch.manual_seed(1)
    return objective.loss_sum(model, batch, "cpu")


@pytest.mark.parametrize("adapted", [False, True])
def test_examples_of_one_length_have_the_noise_of_transformers(adapted: bool, tmp_path: Path) -> None:
    model: Any = build(Head.CAUSAL, "llama", tmp_path / "model").float()
    if adapted:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    plain, batch = Objective.of(model.train(), head_of(Head.CAUSAL)), batch_of(Head.CAUSAL, (6, 6))
    noisy = plain.with_noise(model, ALPHA)
    hook = activate_neftune(model, ALPHA)
    theirs = loss_of(plain, model, batch)
    deactivate_neftune(model, hook)
    trained = [each for each in model.parameters() if each.requires_grad]
    ours, without = loss_of(noisy, model, batch), loss_of(plain, model, batch)
    assert abs(float((ours - without).detach())) > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, trained), torch.autograd.grad(theirs, trained))
    torch.testing.assert_close(loss_of(noisy.for_evaluation(), model, batch), without, rtol=0, atol=0)


@pytest.mark.parametrize("packed", [False, True])
def test_the_length_is_that_of_each_example(packed: bool) -> None:
    lengths, width = (2, 40, 7), 64
    inputs = batch_of(Head.CAUSAL, lengths, packed=packed).inputs
    layer = torch.nn.Embedding(100, width)
    torch.nn.init.zeros_(layer.weight)
    with EmbeddingNoise(ALPHA, layer).added(inputs):
        noise = layer(inputs["input_ids"]).detach().abs().amax(-1)
    rows = noise[0].split(lengths) if packed else [row[:length] for row, length in zip(noise, lengths, strict=True)]
    for row, length in zip(rows, lengths, strict=True):
        largest = ALPHA / math.sqrt(length * width)
        assert 0.85 * largest < row.min()
        assert row.max() <= largest
    assert packed or noise[0, 2:].max() == 0
    assert layer(inputs["input_ids"]).abs().max() == 0


@pytest.mark.parametrize("model_type", ["t5", "bart", "marian"])
def test_the_encoders_input_has_noise_and_the_decoders_has_none(model_type: str, tmp_path: Path) -> None:
    """In T5 and BART, the layer that the hook of Transformers is on is not called."""
    model: Any = build(Head.SEQ2SEQ, model_type, tmp_path / "model").float().eval()
    noise = Objective.of(model, head_of(Head.SEQ2SEQ)).with_noise(model, ALPHA).noise
    assert noise is not None
    changed: dict[int, bool] = {}
    inputs = batch_of(Head.SEQ2SEQ, (3, 6)).inputs
    with noise.added(inputs):
        for part in (model.get_encoder(), model.get_decoder()):
            layer = part.get_input_embeddings()

            def compare(layer: Any, arguments: Any, output: torch.Tensor) -> None:
                ids = arguments[0]
                changed[ids.shape[1]] = not torch.equal(output, type(layer).forward(layer, ids))

            layer.register_forward_hook(compare)
        model(**inputs)
    assert changed == {6: True, 2: False}


def test_a_model_without_such_a_layer_is_refused(tmp_path: Path) -> None:
    model = build(Head.SPAN, "canine", tmp_path / "canine")  # which hashes characters
    with pytest.raises(UsageError, match="neftune_noise_alpha is not supported by this model"):
        Objective.of(model, head_of(Head.SPAN)).with_noise(model, ALPHA)
    model = build(Head.SPAN, "xlnet", tmp_path / "xlnet")  # whose batches are the second dimension
    objective = Objective.of(model, head_of(Head.SPAN)).with_noise(model, ALPHA)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(UsageError, match="neftune_noise_alpha is not supported by this model"):
        objective.loss_sum(model, Batch(inputs, torch.tensor([[[1], [2]]])), "cpu")
