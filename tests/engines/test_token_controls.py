"""Settings that act on the tokens of one output: grammars, penalties, biases, log probabilities."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

import llmkit
from llmkit.config.settings import GenerationSettings
from llmkit.engines.transformers.token_controls import token_controls
from llmkit.errors import UsageError
from llmkit.tasks import Chat, Message
from tests.conftest import Checkpoint

SCHEMA = {
    "type": "object",
    "properties": {"sunny": {"type": "boolean"}, "place": {"enum": ["公园", 'a "park" 🙂']}},
    "required": ["sunny", "place"],
    "additionalProperties": False,
}
PROMPTS = ["The quick brown fox", "今天天气?", "Where do we go now, and who comes with us?"]
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture
def folder(checkpoint: Checkpoint) -> str:
    return str(checkpoint("gpt2", chat=True, n_positions=1024))


def load(folder: str, **options: Any) -> llmkit.Pipeline:
    return llmkit.load("generate", folder, **{"dtype": "float32", "device": "cpu", "max_new_tokens": 80, **options})


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}])
def test_every_finished_output_conforms_to_the_schema(folder: str, sampling: dict[str, Any]) -> None:
    outputs = load(folder, json_schema=SCHEMA, max_new_tokens=300, **sampling)(PROMPTS)
    for output in outputs:
        assert output.finish_reason == "stop"
        found = json.loads(output.text)
        assert set(found) == {"sunny", "place"}
        assert found["place"] in SCHEMA["properties"]["place"]["enum"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": r"[A-C]{2}-\d{3} 天气"}, r"[A-C]{2}-\d{3} 天气"),
        ({"choice": ("yes", "no (maybe)", "是")}, r"yes|no \(maybe\)|是"),
        ({"choice": "yes"}, "yes"),
    ],
)
def test_outputs_match(folder: str, options: dict[str, Any], pattern: str) -> None:
    pipeline = load(folder, temperature=0, **options)
    together = pipeline(PROMPTS)
    assert all(re.fullmatch(pattern, output.text) for output in together)
    assert [pipeline(prompt).text for prompt in PROMPTS] == [output.text for output in together]


def test_alternatives_each_conform(folder: str) -> None:
    output = load(folder, regex="[a-z]{8}", num_return_sequences=4, temperature=1.0, seed=1)(PROMPTS[0])
    texts = [output.text, *(each.text for each in output.alternatives)]
    assert all(re.fullmatch("[a-z]{8}", text) for text in texts)
    assert len(set(texts)) > 1


def test_reasoning_that_the_prompt_opens_is_free(checkpoint: Checkpoint) -> None:
    pipeline = load(str(checkpoint("gpt2", chat=THINKS, n_positions=1024)), regex="ab{3}", temperature=0)
    assert pipeline(PROMPTS[0]).still_thinking  # a random model does not end it
    row = {"prompt": PROMPTS[0]}
    closed = load(str(pipeline.engine.facts.source.folder), regex="ab{3}", temperature=0, prefill="x</think>")(row)
    assert (closed.text.rpartition(">")[2], closed.finish_reason) == ("abbb", "stop")


def test_reasoning_that_the_model_opens_is_free(checkpoint: Checkpoint) -> None:
    """The template names the tag, as Qwen3's does, but leaves it to the model to open it."""
    names = "{% if false %}<think></think>{% endif %}"
    folder = str(checkpoint("gpt2", chat=names + THINKS.replace("<think>\n", ""), n_positions=1024))
    plain = load(folder, choice="ab", temperature=0)
    assert plain(PROMPTS[0]).text == "ab"
    (opening, *_) = ids = plain.loaded.tokenizer.encode("<think>")
    assert len(ids) > 1  # so that each of its tokens has to be allowed
    output = load(folder, choice="ab", temperature=0, logit_bias={str(opening): 100.0}, max_new_tokens=12)(PROMPTS[0])
    assert (output.text, output.still_thinking, output.finish_reason) == ("", True, "length")


@pytest.mark.parametrize(
    "choices",
    [
        ("yes", "yes, please"),
        ("yes, please", "yes"),
        ("🙂", "🙂🙂"),
        ("天", "天气", "天气很好"),
        ("one\ntwo", "one"),
        (" a", "a "),
    ],
)
def test_choices_may_begin_alike(choices: tuple[str, ...], folder: str) -> None:
    for output in load(folder, choice=choices, temperature=1.0, seed=1)(PROMPTS):
        assert (output.text.strip() in [each.strip() for each in choices], output.finish_reason) == (True, "stop")
    assert load(folder, regex=r"(a\n){2}天{1,3}", temperature=0)(PROMPTS[0]).text.startswith("a\na\n天")


def test_an_output_that_ends_early_says_so(folder: str) -> None:
    output = load(folder, json_schema=SCHEMA, temperature=0, max_new_tokens=5)(PROMPTS[0])
    assert output.finish_reason == "length"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"type": "strin"}, "strin"),
    ],
)
def test_what_cannot_be_enforced_is_refused_at_once(folder: str, schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(folder, json_schema=schema)


@pytest.mark.parametrize("family", ["t5", "llama"])  # neither has a token for a brace
def test_a_tokenizer_that_cannot_represent_json_is_refused(family: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        llmkit.load("summarize", str(checkpoint(family)), regex="a", device="cpu")


def test_penalties_are_those_of_openai(folder: str) -> None:
    settings = GenerationSettings(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={"2": 3})
    logits = torch.zeros(6)
    controls = token_controls(load(folder).loaded, settings, lambda: False)
    for control in controls:
        for token in (3, 5, 3):
            control.push(token)
        control.apply(logits)
    assert logits.tolist() == [0, 0, 3, -1.25, 0, -0.75]


def test_a_bias_that_outweighs_the_distance_changes_the_token(folder: str) -> None:
    plain = load(folder, temperature=0, logprobs=2, max_new_tokens=1)(PROMPTS[0])
    assert plain.logprobs is not None
    first, second = plain.logprobs[0].top
    distance = first.logprob - second.logprob
    for value, expected in ((-distance - 0.01, second.id), (-distance + 0.01, first.id)):
        biased = load(folder, temperature=0, logprobs=0, max_new_tokens=1, logit_bias={str(first.id): value})
        output = biased(PROMPTS[0])
        assert output.logprobs is not None
        assert output.logprobs[0].id == expected


def test_log_probabilities_equal_those_of_the_model(folder: str) -> None:
    pipeline = load(folder, temperature=1.0, seed=2, top_k=5, logprobs=3, max_new_tokens=12)
    output, loaded = pipeline(PROMPTS[0]), pipeline.loaded
    assert output.logprobs is not None
    encoded = pipeline.engine.encode(Chat((Message("user", PROMPTS[0]),)))
    ids = [*encoded.input_ids, *(each.id for each in output.logprobs)]
    with torch.no_grad():
        expected = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(encoded.input_ids) - 1
    for place, each in enumerate(output.logprobs, start=start):
        assert each.logprob == pytest.approx(float(expected[place, each.id]), abs=1e-4)
        assert [other.id for other in each.top] == expected[place].topk(3).indices.tolist()
