"""Generation on tiny models of every family: batched ≡ single, streamed ≡ whole, ours ≡ model.generate."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

import llmkit
from llmkit.errors import CheckpointError, ContextOverflowError, InputError, UsageError
from llmkit.models.context import ContextLength
from tests import tiny
from tests.conftest import Checkpoint, noted

PROMPTS = ["The quick", "What is the meaning of life? The meaning of life is", "今天天气", "emoji 😀", "a"]
GREEDY: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_new_tokens": 12}


def load(folder: Any, **options: Any) -> llmkit.Pipeline:
    return llmkit.load("text-generation", str(folder), **{**GREEDY, **options})


@pytest.mark.parametrize("family", tiny.CAUSAL + tiny.SEQ2SEQ)
def test_batched_is_single_is_streamed(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family))
    single = [pipeline(prompt) for prompt in PROMPTS]
    assert list(pipeline.map(PROMPTS, window=5)) == single
    assert list(pipeline.map(iter(PROMPTS), window=2)) == single
    for prompt, output in zip(PROMPTS, single, strict=True):
        streamed = pipeline.stream(prompt)
        assert "".join(streamed) == output.text
        assert streamed.output == output
    assert len({output.text for output in single}) > 1, "the model ignores its prompt, so nothing was compared"


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_causal_text_is_that_of_model_generate(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family))
    model, tokenizer = pipeline.loaded.model, pipeline.loaded.tokenizer
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]  # type: ignore[operator]
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        before = tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
        assert pipeline(prompt).text == whole[len(before) :]


@pytest.mark.parametrize("family", tiny.SEQ2SEQ)
def test_seq2seq_text_is_that_of_model_generate(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family))
    model, tokenizer = pipeline.loaded.model, pipeline.loaded.tokenizer
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]  # type: ignore[operator]
        assert pipeline(prompt).text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_beams_are_those_of_model_generate(family: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family), num_beams=3, num_return_sequences=2)
    model, tokenizer = pipeline.loaded.model, pipeline.loaded.tokenizer
    inputs = tokenizer(PROMPTS[1], return_tensors="pt")
    ids = model.generate(  # type: ignore[operator]
        **inputs, max_new_tokens=12, num_beams=3, num_return_sequences=2, do_sample=False, pad_token_id=0
    )
    start = inputs["input_ids"].shape[1] if family == "gpt2" else 1
    output = pipeline(PROMPTS[1])
    expected = [tokenizer.decode(row[start:], skip_special_tokens=True) for row in ids]
    assert [output.text, *(other.text for other in output.alternatives)] == expected


def test_sampling_repeats_with_a_seed_and_leaves_the_global_state_alone(checkpoint: Checkpoint) -> None:
    folder = checkpoint("gpt2")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = load(folder, temperature=1.0, seed=1)(PROMPTS[0])
    assert torch.equal(torch.rand(1), expected)
    assert load(folder, temperature=1.0, seed=1)(PROMPTS[0]) == first
    assert load(folder, temperature=1.0, seed=2)(PROMPTS[0]) != first


def test_temperature_zero_is_greedy_on_a_model_that_samples_by_default(checkpoint: Checkpoint) -> None:
    greedy = load(checkpoint("gpt2"))(PROMPTS[0])
    pipeline = load(checkpoint("gpt2"), temperature=0)
    pipeline.loaded.model.generation_config.update(do_sample=True, temperature=2.0, top_k=3)
    try:
        assert pipeline(PROMPTS[0]) == greedy
    finally:
        pipeline.loaded.model.generation_config.update(do_sample=None, temperature=None, top_k=None)


def test_sampling_draws_from_the_whole_vocabulary_unless_told(checkpoint: Checkpoint) -> None:
    from llmkit.config.settings import GenerationSettings
    from llmkit.engines.transformers.generation_settings import generation_config

    loaded = load(checkpoint("gpt2")).loaded
    assert generation_config(loaded, GenerationSettings(temperature=1.0), 5).top_k == 0
    assert generation_config(loaded, GenerationSettings(top_k=7), 5).top_k == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_penalty": 2.0}, "set num_beams above 1"),
        ({"num_return_sequences": 2}, "would give the same text each time"),
        ({"num_return_sequences": 3, "num_beams": 2}, "at least as many beams"),
        ({"num_return_sequences": 3, "num_beams": 2, "temperature": 1.0}, "at least as many beams"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, Any], message: str, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), **options)
    with pytest.raises(UsageError, match=message):
        pipeline(PROMPTS[0])


def test_beams_of_the_models_own_give_settings_an_effect(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), length_penalty=2.0, num_return_sequences=2)
    own = pipeline.loaded.model.generation_config
    own.update(num_beams=4)
    try:
        assert len(pipeline(PROMPTS[0]).alternatives) == 1
    finally:
        own.update(num_beams=None)


def test_stop_strings_cut_the_text_in_batches_too(checkpoint: Checkpoint) -> None:
    whole = load(checkpoint("gpt2"))(PROMPTS[1])
    stop = whole.text[3:6]
    pipeline = load(checkpoint("gpt2"), stop=(stop,))
    cut = pipeline(PROMPTS[1])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens
    assert list(pipeline.map(PROMPTS))[1] == cut


def test_the_end_token_ends_a_row(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"))
    whole = pipeline(PROMPTS[1])
    model, tokenizer = pipeline.loaded.model, pipeline.loaded.tokenizer
    ids = model.generate(**tokenizer(PROMPTS[1], return_tensors="pt"), max_new_tokens=12, pad_token_id=0)  # type: ignore[operator]
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, int(ids[0, -4])
    try:
        ended = pipeline(PROMPTS[1])
    finally:
        model.generation_config.eos_token_id = before
    assert ended.finish_reason == "stop"
    assert whole.text.startswith(ended.text)
    assert whole.finish_reason == "length"
    assert ended.usage.completion_tokens <= 9


def test_a_closed_stream_stops_the_model(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("gpt2"), max_new_tokens=100)
    streamed = pipeline.stream("The")  # held on to, so that it is not the garbage collector that stops it
    pieces = iter(streamed)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "llmkit-generate"]
    assert streamed.output is None
    assert pipeline("The").usage.completion_tokens == 100


def test_a_second_pass_over_a_stream_keeps_its_output(checkpoint: Checkpoint) -> None:
    streamed = load(checkpoint("gpt2")).stream("The")
    assert "".join(streamed)
    output = streamed.output
    assert "".join(streamed) == ""
    assert streamed.output is output is not None


def test_an_error_in_the_model_reaches_the_caller(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load(checkpoint("gpt2"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model broke")

    monkeypatch.setattr(pipeline.loaded.model, "forward", fail)
    with pytest.raises(RuntimeError, match="the model broke"):
        pipeline("The")


# Prompts: chat, prefill, examples.


def seen(pipeline: llmkit.Pipeline, prompt: str) -> str:
    encoded = pipeline.reader(print, {"prompt": prompt}).fit({"prompt": prompt}).encoded
    return str(pipeline.loaded.tokenizer.decode(list(encoded.input_ids)))


def test_chat_template_is_used_and_can_be_switched_off(checkpoint: Checkpoint) -> None:
    folder = checkpoint("qwen3", chat=True)
    end = "<|endoftext|>"
    assert seen(load(folder), "Hi") == f"<|user|>Hi{end}<|assistant|>"
    assert seen(load(folder, system="Be kind."), "Hi") == f"<|system|>Be kind.{end}<|user|>Hi{end}<|assistant|>"
    assert seen(load(folder, raw=True), "Hi") == "Hi"
    assert seen(load(folder, raw=True, system="Be kind."), "Hi") == "Be kind.\n\nHi"


def test_prefill_begins_the_reply_and_is_not_repeated(checkpoint: Checkpoint) -> None:
    for folder in (checkpoint("qwen3", chat=True), checkpoint("gpt2"), checkpoint("t5"), checkpoint("bart")):
        pipeline = load(folder, prefill="The quick")
        plain = load(folder, max_new_tokens=1)("emoji")
        assert not pipeline("emoji").text.startswith("The quick")
        assert list(pipeline.map(["emoji", "The"])) == [pipeline("emoji"), pipeline("The")]
        assert plain.usage.completion_tokens == 1
    assert seen(load(checkpoint("qwen3", chat=True), prefill="Sure,"), "Hi").endswith("<|assistant|>Sure,")
    assert seen(load(checkpoint("gpt2"), prefill=" there"), "Hi") == "Hi there"


def test_seq2seq_prefill_stands_in_the_decoder(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("t5"), prefill="The quick")
    encoded = pipeline.reader(print, {"prompt": "emoji"}).fit({"prompt": "emoji"}).encoded
    assert pipeline.loaded.tokenizer.decode(list(encoded.decoder_ids[1:])) == "The quick"
    assert encoded.decoder_ids[0] == pipeline.loaded.model.config.decoder_start_token_id


EXAMPLES = [{"prompt": "one", "completion": "uno"}, {"prompt": "two", "completion": "dos"}]


def test_examples_are_turns_or_text(checkpoint: Checkpoint) -> None:
    chat = seen(load(checkpoint("qwen3", chat=True), examples=EXAMPLES), "three")
    assert (
        chat.replace("<|endoftext|>", "")
        == "<|user|>one<|assistant|>uno<|user|>two<|assistant|>dos<|user|>three<|assistant|>"
    )
    assert seen(load(checkpoint("gpt2"), examples=EXAMPLES), "three") == "one uno\n\ntwo dos\n\nthree"


def test_examples_give_way_before_the_input_does(checkpoint: Checkpoint) -> None:
    many = [{"prompt": f"word {n}", "completion": f"wort {n}"} for n in range(40)]
    pipeline = load(checkpoint("gpt2"), examples=many)
    text = seen(pipeline, "last")
    assert text.endswith("wort 39\n\nlast")
    assert "word 0 " not in text
    assert "of 40 examples dropped" in noted(pipeline("last"))["examples_dropped"]


def test_an_example_without_its_columns_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="example 2 has no 'completion'"):
        load(checkpoint("gpt2"), examples=[EXAMPLES[0], {"prompt": "x", "answer": "y"}])


# Input longer than the model.

LONG = "The quick brown fox. " * 40


def test_a_prompt_longer_than_the_context_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(
        ContextOverflowError, match=r"the input has \d+ tokens and the context of .* is 127; .*`on_overflow=truncate`"
    ):
        load(checkpoint("gpt2"))(LONG)


@pytest.mark.parametrize(("family", "chat"), [("gpt2", False), ("qwen3", True), ("bart", False)])
def test_truncation_keeps_the_end_and_is_counted(family: str, chat: bool, checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint(family, **({"chat": True} if chat else {})), on_overflow="truncate")
    text = f"{LONG}今天天气"
    output = pipeline(text)
    whole = len(pipeline.loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert 0 < output.truncated < whole
    assert f"of its {whole} tokens are kept" in noted(output)["input_truncated"]
    assert output.usage.prompt_tokens <= 128
    assert "今天天气" in seen(pipeline, text)
    assert load(checkpoint(family), on_overflow="truncate")("The").truncated == 0


def test_chunking_makes_no_sense_for_generation(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="text-generation does not support on_overflow=chunk"):
        load(checkpoint("gpt2"), on_overflow="chunk")(LONG)


def test_the_output_ends_where_the_context_does(checkpoint: Checkpoint) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 4
    pipeline = load(checkpoint("gpt2"), max_new_tokens=500)
    output = pipeline(prompt)
    assert output.finish_reason == "length"
    assert list(noted(output)) == ["context_full"]
    assert output.usage.prompt_tokens + output.usage.completion_tokens == 128
    assert list(pipeline.map(["The", prompt]))[1] == output


def test_relative_positions_take_longer_input_with_a_note(checkpoint: Checkpoint) -> None:
    pipeline = load(checkpoint("t5"))
    pipeline.engine.facts = replace(pipeline.engine.facts, context=ContextLength(16, hard=False))
    output = pipeline("The quick brown fox jumps over the lazy dog.")
    assert output.truncated == 0
    assert "more than the 16 this model was trained with" in noted(output)["context_exceeded"]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_text(prompt: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        load(checkpoint("gpt2"))(prompt)


def test_a_row_that_holds_no_text(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="the prompt is a NoneType, not text"):
        load(checkpoint("gpt2"))({"prompt": None})


def test_output_is_json_with_stable_keys(checkpoint: Checkpoint) -> None:
    output = load(checkpoint("gpt2"))("The")
    assert list(output.to_dict()) == [
        "schema_version", "task", "model", "commit", "head", "text", "finish_reason", "usage", "truncated",
        "notes",
    ]  # fmt: skip
    assert str(output) == output.text


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}, {"num_beams": 2}])
@pytest.mark.parametrize(("family", "weight"), [("llama", "down_proj"), ("t5", "DenseReluDense.wo")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(
    value: float, family: str, weight: str, options: dict[str, Any], checkpoint: Checkpoint
) -> None:
    pipe = llmkit.load("generate", str(checkpoint(family)), max_new_tokens=3, device="cpu", **options)
    with torch.no_grad():
        for name, parameter in pipe.loaded.model.named_parameters():
            if weight in name:
                parameter.fill_(value)
    with pytest.raises(CheckpointError, match="computes NaN or infinity in float32; use another checkpoint"):
        pipe("The quick")
