from __future__ import annotations

import pytest
import torch

import llmkit
from llmkit.errors import CheckpointError, InputError, UsageError
from llmkit.inference.next_tokens import next_tokens
from tests.conftest import Checkpoint


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_probabilities_are_those_of_the_model(family: str, checkpoint: Checkpoint) -> None:
    text = "今天天气很"
    folder = str(checkpoint(family))
    loaded = llmkit.load("generate", folder).loaded
    with torch.no_grad():
        logits = loaded.model(**loaded.tokenizer(text, return_tensors="pt")).logits[0, -1]
    expected = logits.softmax(-1).topk(5)
    found = llmkit.next_tokens(text, folder, top=5)
    assert [token.id for token in found] == expected.indices.tolist()
    assert [token.probability for token in found] == pytest.approx(expected.values.tolist(), abs=1e-6)


def test_the_whole_distribution_sums_to_one(checkpoint: Checkpoint) -> None:
    tokens = llmkit.next_tokens("The", str(checkpoint("t5")), top=10**6)
    assert sum(token.probability for token in tokens) == pytest.approx(1, abs=1e-5)


def test_bytes_of_a_character_are_readable(checkpoint: Checkpoint) -> None:
    tokens = llmkit.next_tokens("今", str(checkpoint("gpt2")), top=10**6)
    texts = {token.token: token.text for token in tokens}
    assert texts["ä"] == "<E4>"
    assert texts["Ġbrown"] == " brown"
    assert all("\ufffd" not in text for text in texts.values())


def test_bad_arguments(checkpoint: Checkpoint) -> None:
    folder = str(checkpoint("gpt2"))
    with pytest.raises(UsageError, match="top=0 is out of range"):
        llmkit.next_tokens("The", folder, top=0)
    with pytest.raises(InputError, match="the text is empty"):
        llmkit.next_tokens("", folder)


@pytest.mark.parametrize(("family", "weight"), [("llama", "down_proj"), ("t5", "DenseReluDense.wo")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(
    value: float, family: str, weight: str, checkpoint: Checkpoint
) -> None:
    loaded = llmkit.load("generate", str(checkpoint(family)), device="cpu").loaded
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if weight in name:
                parameter.fill_(value)
    with pytest.raises(CheckpointError, match="computes NaN or infinity in float32; use another checkpoint"):
        next_tokens(loaded, "The quick")
