"""Outputs restricted by many JSON Schemas, of a model with random weights."""

from __future__ import annotations

from typing import Any

import pytest

import llmkit
from llmkit.config.settings import GenerationSettings
from llmkit.errors import UsageError
from llmkit.inference.pipeline import Pipeline
from tests.conftest import Checkpoint
from tests.schemas import REFUSED, SCHEMAS, restricted, validate


@pytest.fixture
def pipeline(checkpoint: Checkpoint) -> Pipeline:
    return llmkit.load("generate", str(checkpoint("gpt2", n_positions=1024)), device="cpu", dtype="float32")


def test_every_finished_output_is_valid(pipeline: Pipeline) -> None:
    unfinished = []
    # Random weights would go on in a string for ever.
    closing = {str(number): 6.0 for text in '"}],' for number in pipeline.loaded.tokenizer.encode(text)}
    options: dict[str, Any] = {"logit_bias": closing, "temperature": 1.0, "max_new_tokens": 140}
    for name, output in restricted(pipeline, SCHEMAS, "今天 The quick", **options):
        if output.finish_reason == "length":
            unfinished.append(name)
        else:
            validate(output.text, SCHEMAS[name])
    assert len(unfinished) <= 5, unfinished


SHORT = [name for name in SCHEMAS if "enum" in name or "const" in name or "bounds" in name][:10]


@pytest.mark.starter
def test_the_starter_finishes_short_ones() -> None:
    pipeline = llmkit.load("generate", "starter", device="cpu", max_new_tokens=16, temperature=0)
    outputs = dict(restricted(pipeline, {name: SCHEMAS[name] for name in SHORT}, "Give an example."))
    finished = {name: output.text for name, output in outputs.items() if output.finish_reason == "stop"}
    assert len(finished) > 5
    for name, text in finished.items():
        validate(text, SCHEMAS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_weakened_is_refused(name: str, pipeline: Pipeline) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(UsageError, match=reason) as caught:
        pipeline.engine.check(GenerationSettings(json_schema=schema))
    assert caught.value.code == "not_supported"
