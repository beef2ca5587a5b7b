"""Attention weights against "Attention Is All You Need", computed from the outputs of the model's own projections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import llmkit
from llmkit.errors import ContextOverflowError, UsageError
from llmkit.explanation.attention import AttentionKind, AttentionWeights, attention_weights, eager_attention
from llmkit.models.load import Loaded
from llmkit.tasks import Example, QuestionContext, Text
from tests.conftest import Checkpoint

QUESTION = QuestionContext("What is life?", "今天天气很好 😀 The meaning of life is forty two.")
TASKS = {"bert": "answer", "distilbert": "answer", "deberta-v2": "answer", "roberta": "answer"}
NAMES = {"gpt2": ("q", "k", "v"), "bert": ("query", "key", "value"), "t5": ("q", "k", "v")}
OUTPUTS = {"gpt2": "c_proj", "t5": "o", "bart": "out_proj"}


def load(family: str, checkpoint: Checkpoint, **settings: Any) -> Loaded:
    task = TASKS.get(family, "generate")
    return llmkit.load(task, str(checkpoint(family)), device="cpu", dtype="float32", **settings).loaded


def example(loaded: Loaded) -> Example:
    if str(loaded.head) == "span":
        return Example(QUESTION, "")
    return Example(Text("The quick 今天 brown"), "fox jumps" if str(loaded.head) == "seq2seq" else "")


@contextmanager
def recorded(loaded: Loaded) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Inputs and outputs of every module during a call of the model."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def record(_: Any, given: tuple[Any, ...], returned: Any) -> None:
            if given and isinstance(given[0], torch.Tensor):
                inputs[name] = given[0]
            if isinstance(returned, torch.Tensor):
                outputs[name] = returned

        return record

    hooks = [module.register_forward_hook(hook(name)) for name, module in loaded.model.named_modules()]
    try:
        yield inputs, outputs
    finally:
        for each in hooks:
            each.remove()


def heads(states: torch.Tensor, width: int) -> torch.Tensor:
    """``[1, length, heads * width]`` as ``[heads, length, width]``."""
    apart: torch.Tensor = states[0].unflatten(-1, (-1, width)).transpose(0, 1)
    return apart


def rotated(states: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary position embedding, "RoFormer", with the two halves of a head as Llama pairs them."""
    length, width = states.shape[-2:]
    angles = torch.arange(length)[:, None] / theta ** (torch.arange(0, width, 2) / width)
    cos, sin = angles.cos(), angles.sin()
    left, right = states.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def scaled(query: torch.Tensor, key: torch.Tensor, *, causal: bool, bias: Any = 0.0, scale: bool = True) -> Any:
    """softmax(QKᵀ/√d)."""
    key = key.repeat_interleave(len(query) // len(key), dim=0)  # grouped heads
    scores = query @ key.transpose(-1, -2) / (math.sqrt(query.shape[-1]) if scale else 1.0) + bias
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)


def gpt2(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    return tuple(heads(part, 8) for part in outputs[f"{place}.c_attn"].chunk(3, dim=-1))


def llama(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    query, key, value = (heads(outputs[f"{place}.{name}_proj"], 8) for name in "qkv")
    return rotated(query, 10000.0), rotated(key, 10000.0), value


def qwen3(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    query, key = (outputs[f"{place}.{name}_norm"][0].transpose(0, 1) for name in "qk")
    return rotated(query, 10000.0), rotated(key, 10000.0), heads(outputs[f"{place}.v_proj"], 8)


def bert(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    query, key, value = (heads(outputs[f"{place}.{name}"], 8) for name in ("query", "key", "value"))
    return query, key, value


def bart(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    query, key, value = (heads(outputs[f"{place}.{name}_proj"], 8) for name in "qkv")
    return query, key, value


def t5(outputs: Mapping[str, torch.Tensor], place: str) -> tuple[torch.Tensor, ...]:
    query, key, value = (heads(outputs[f"{place}.{name}"], 8) for name in "qkv")
    return query, key, value


CASES = [
    ("gpt2", "self", gpt2, "transformer.h.{}.attn", "c_proj"),
    ("llama", "self", llama, "model.layers.{}.self_attn", "o_proj"),
    ("qwen3", "self", qwen3, "model.layers.{}.self_attn", "o_proj"),
    ("bert", "self", bert, "bert.encoder.layer.{}.attention.self", None),
    ("t5", "encoder", t5, "encoder.block.{}.layer.0.SelfAttention", "o"),
    ("t5", "decoder", t5, "decoder.block.{}.layer.0.SelfAttention", "o"),
    ("t5", "cross", t5, "decoder.block.{}.layer.1.EncDecAttention", "o"),
    ("bart", "encoder", bart, "model.encoder.layers.{}.self_attn", "out_proj"),
    ("bart", "decoder", bart, "model.decoder.layers.{}.self_attn", "out_proj"),
    ("bart", "cross", bart, "model.decoder.layers.{}.encoder_attn", "out_proj"),
]


@pytest.mark.parametrize(("family", "kind", "projections", "path", "output"), CASES)
def test_weights_are_those_of_the_paper(
    family: str, kind: AttentionKind, projections: Any, path: str, output: str | None, checkpoint: Checkpoint
) -> None:
    loaded = load(family, checkpoint)
    model: Any = loaded.model
    with recorded(loaded) as (inputs, outputs):
        found = attention_weights(loaded, example(loaded))[kind]
    causal = kind in ("self", "decoder") and family != "bert"
    for layer in found.layers:
        place = path.format(layer)
        query, key, value = projections(outputs, place)
        bias: Any = 0.0
        if family == "t5" and kind != "cross":
            stack = getattr(model, kind)
            attention = stack.block[0].layer[0].SelfAttention
            bias = attention.compute_bias(query.shape[1], key.shape[1])[0]
        expected = scaled(query, key, causal=causal, bias=bias, scale=family != "t5")
        torch.testing.assert_close(torch.from_numpy(found.weights[layer]), expected, rtol=0, atol=1e-5)
        mixed = expected @ value.repeat_interleave(len(query) // len(value), dim=0)
        combined = mixed.transpose(0, 1).flatten(1)
        given = inputs[f"{place}.{output}"] if output else inputs[f"bert.encoder.layer.{layer}.attention.output.dense"]
        torch.testing.assert_close(given[0], combined, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5", "distilbert", "deberta-v2"])
def test_each_row_is_a_distribution_and_the_model_is_left_as_it_was(family: str, checkpoint: Checkpoint) -> None:
    loaded = load(family, checkpoint)
    before = loaded.model.config._attn_implementation
    for kind, found in attention_weights(loaded, example(loaded)).items():
        assert found.weights.shape[2:] == (len(found.queries), len(found.keys))
        if kind != "question":
            assert found.weights.sum(-1) == pytest.approx(np.ones(found.weights.shape[:-1]), abs=1e-5)
    assert loaded.model.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="stop"), eager_attention(loaded):
        raise RuntimeError("stop")
    assert loaded.model.config._attn_implementation == before


def test_the_question_attends_to_its_context(checkpoint: Checkpoint) -> None:
    loaded = load("bert", checkpoint)
    found = attention_weights(loaded, example(loaded))
    question, whole = found["question"], found["self"]
    assert next(iter(found)) == "question"
    assert "".join(question.queries).replace(" ", "") == "whatislife?"
    assert "".join(question.keys).replace(" ", "") == "".join(str(QUESTION.context).split()).lower()
    rows = slice(1, 1 + len(question.queries))
    columns = slice(len(whole.keys) - 1 - len(question.keys), len(whole.keys) - 1)
    assert np.array_equal(question.weights, whole.weights[:, :, rows, columns])


def test_tokens_are_readable(checkpoint: Checkpoint) -> None:
    for family in ("gpt2", "llama"):
        found = attention_weights(load(family, checkpoint), Example(Text("今天天气😀"), ""))["self"]
        assert "Ġ" not in "".join(found.keys)
        assert "\ufffd" not in "".join(found.keys)
        assert found.keys == found.queries


def weights() -> AttentionWeights:
    values = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    return AttentionWeights("self", "m", ("a", "b"), ("a", "b"), (1, 3), values)


def test_a_layer_a_head_or_the_mean() -> None:
    found = weights()
    assert np.array_equal(found.head(3, 1), found.weights[1, 1])
    assert np.array_equal(found.head(-1, -1), found.weights[1, 2])
    assert np.array_equal(found.head(), found.weights.mean(axis=(0, 1)))
    assert np.array_equal(found.head(head=0), found.weights[:, 0].mean(axis=0))
    with pytest.raises(UsageError, match=r"no layer 2 with attention weights; name one of 1, 3"):
        found.head(2)
    with pytest.raises(UsageError, match=r"no attention head 3; name one of 0 to 2"):
        found.head(1, 3)
    with pytest.raises(UsageError, match=r"name one of 0 to 1"):
        replace(found, layers=(0, 1)).head(7)


def test_nothing_is_cut_in_silence(checkpoint: Checkpoint) -> None:
    loaded = load("gpt2", checkpoint)
    with pytest.raises(ContextOverflowError, match=r"tokens, and the attention of at most 128 is shown; shorten it"):
        attention_weights(loaded, Example(Text("word " * 200), ""))
    span = load("bert", checkpoint)
    with pytest.raises(ContextOverflowError, match="windows, and the attention of one is shown"):
        attention_weights(span, Example(replace(QUESTION, context=QUESTION.context * 20), ""))


def test_no_weights_are_an_error(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llama", checkpoint)
    monkeypatch.setattr(type(loaded.model), "set_attn_implementation", lambda *_: None)
    with pytest.raises(UsageError, match="LlamaForCausalLM returns no attention weights"):
        attention_weights(loaded, example(loaded))
