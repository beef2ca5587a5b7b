"""Outputs that never end: stopped where they repeat themselves or are implausibly long, and noted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import llmkit
from llmkit.tasks import Translation
from llmkit.text.loops import ends_in_loop, repeats
from tests.conftest import Checkpoint, noted
from tests.fakes import fake

TEXTS = ["The quick brown fox jumps over the lazy dog.", "今天天气很好，我们去公园散步。", "fox " * 30]
GREEDY: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 52}


@pytest.fixture
def endless(checkpoint: Checkpoint) -> Any:
    """Loads a model that generates three tokens in turn, whatever the prompt."""

    def load(task: str, **options: Any) -> llmkit.Pipeline:
        folder = checkpoint("llama", max_position_embeddings=1024)
        pipeline = llmkit.load(task, str(folder), **{**GREEDY, **options})
        model: Any = pipeline.loaded.model
        tokens = pipeline.loaded.tokenizer("quick brown fox", add_special_tokens=False).input_ids[:3]
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            embeddings = model.get_input_embeddings().weight.clone()
            head = torch.zeros_like(embeddings)
            for token, following in zip(tokens, (*tokens[1:], tokens[0]), strict=True):
                head[following] = embeddings[token] / embeddings[token].norm()
            model.lm_head.weight = torch.nn.Parameter(head)
        return pipeline

    return load


def test_a_loop_is_stopped_and_noted(endless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = endless("summarization")
    alone = [pipeline(text) for text in TEXTS]
    assert [each.text for each in pipeline.map(TEXTS)] == [each.text for each in alone]
    assert [list(noted(each)) for each in alone] == [["output_runaway"], ["output_runaway"], ["output_cut"]]
    assert all(each.finish_reason == "length" and each.usage.completion_tokens < 52 for each in alone[:2])
    monkeypatch.setattr(type(pipeline.task), "stop_loops", False)
    whole = pipeline(TEXTS[0])
    assert whole.text.startswith(alone[0].text)
    assert whole.usage.completion_tokens == 52


def test_other_tasks_repeat_what_they_like(endless: Any) -> None:
    assert list(noted(endless("text-generation")(TEXTS[0]))) == ["output_cut"]


def test_an_implausibly_long_translation_is_stopped(endless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Translation, "stop_loops", False)
    monkeypatch.setattr("llmkit.tasks.translation._SHORTEST_RUNAWAY", 4)
    monkeypatch.setattr("llmkit.tasks.translation._MAX_RATIO", 2)
    pipeline = endless("translation", source="en", target="fr")
    output = pipeline("The quick.")
    assert output.usage.completion_tokens == 4 + 2 * pipeline.engine.count("The quick.")
    assert list(noted(output)) == ["output_runaway"]


def test_a_low_limit_does_not_divide_the_source() -> None:
    source = "A sentence of the reef, which lies off Australia. " * 12
    options: dict[str, Any] = {"context": 4096, "source": "en", "target": "fr"}
    for limit in (None, 8, 60, 512):
        pipeline, engine = fake("translation", "Un récif.", max_new_tokens=limit, **options)
        output = pipeline(source)
        assert len(engine.prompts) == 1
        assert "output_cut" not in noted(output)
    pipeline, _ = fake("translation", source, max_new_tokens=8, **options)
    assert len(pipeline(source).text.split()) == 8


@pytest.mark.parametrize(
    ("passage", "times", "loops"),
    [
        ([7], 48, True),
        ([7], 47, False),
        ([1, 2, 3], 16, True),
        (range(60), 4, True),
        (range(60), 3, False),
        (range(65), 9, False),
    ],
)
def test_loops(passage: Any, times: int, loops: bool) -> None:
    before = list(range(1000, 1100))
    assert ends_in_loop(before + list(passage) * times) is loops
    assert not ends_in_loop(before + list(passage) * times + [5000])


def test_texts_that_repeat_themselves() -> None:
    other = list(range(1000, 1100))
    for passage, times in (([7], 17), ([1, 2], 10), (range(40), 3)):
        assert repeats([*other, *list(passage) * times, *other])
        assert not repeats([*other, *list(passage) * 2, *other])
    assert not repeats([])
    assert not repeats([n * n % 9973 for n in range(4000)])
