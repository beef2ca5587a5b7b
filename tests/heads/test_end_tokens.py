"""An output ends at each token that a file of its checkpoint names as an end, and at stop strings of special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import llmkit
from llmkit.heads.end_tokens import declare_ends, end_id, text_ends, turn_ends
from tests import tiny

QUESTION = "What is the capital of France?"
ANSWER = "Paris is the capital."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def byte_tokenizer(special: list[str], eos: str, template: str) -> Any:
    texts = [QUESTION, ANSWER, "The user asks. analysis final assistant user", "Hello there, friend."]
    tokenizer: Any = transformers.Qwen2Tokenizer().train_new_from_iterator(
        texts * 4, vocab_size=420, show_progress=False
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    return tokenizer


def recite(folder: Path, tokenizer: Any, prompt: str, output: str, *, eos: int | None, positions: int = 128) -> str:
    """A GPT-2 whose position alone decides the next token: after the prompt it writes the output."""
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, output))
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=positions, n_layer=1, n_head=1, n_positions=positions, n_inner=8,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model: Any = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(positions))
        for position in range(positions):
            at = position - len(before) + 1
            model.lm_head.weight[after[at] if 0 <= at < len(after) else after[-1], position] = 30.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def asked(tokenizer: Any) -> str:
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
        )
    )


def generate(model: str, prompt: str = QUESTION, **options: Any) -> llmkit.Output:
    return llmkit.load("generate", model, device="cpu", **{"max_new_tokens": 24, **options})(prompt)


@pytest.mark.parametrize(
    ("special", "eos", "template", "end"),
    [
        (["<|im_start|>", "<|im_end|>"], "<|im_end|>", CHATML, "<|im_end|>"),  # the tokenizer says so
        (["<|im_start|>", "<|im_end|>"], "<|endoftext|>", CHATML, "<|im_end|>"),  # only the template does
        (["<|user|>", "<|assistant|>"], "<|endoftext|>", TURNS, "<|user|>"),  # nothing but the next turn ends one
    ],
)
def test_a_reply_ends_where_tokenizer_or_template_end_it(
    special: list[str], eos: str, template: str, end: str, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(special, eos, template)
    base_end = tokenizer.convert_tokens_to_ids("<|endoftext|>")  # generation_config.json is still the base model's
    model = recite(
        tmp_path, tokenizer, asked(tokenizer), f"{ANSWER}{end}\nuser\nHello there, friend.{end}", eos=base_end
    )
    output = generate(model)
    assert (output.text, output.finish_reason) == (ANSWER, "stop")
    pipeline = llmkit.load("generate", model, device="cpu", max_new_tokens=24, num_beams=2)
    assert pipeline(QUESTION).text == ANSWER
    assert [each.text for each in pipeline.map([QUESTION, QUESTION])] == [ANSWER, ANSWER]


def test_a_continued_text_goes_on_past_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], "<|endoftext|>", CHATML)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model = recite(tmp_path, tokenizer, QUESTION, f"{ANSWER}<|im_end|>Hello<|endoftext|>", eos=end)
    pipeline = llmkit.load("generate", model, device="cpu", max_new_tokens=24, raw=True)
    assert pipeline(QUESTION).text == f"{ANSWER}Hello"
    assert text_ends(pipeline.loaded) == {end}
    assert turn_ends(pipeline.loaded) == {end, tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_the_end_of_a_message_is_not_that_of_a_reply_of_several(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"], "<|return|>", HARMONY
    )
    reply = (
        "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant<|channel|>final<|message|>"
        f"{ANSWER}<|return|>"
    )
    output = generate(
        recite(tmp_path, tokenizer, asked(tokenizer), reply, eos=tokenizer.eos_token_id), max_new_tokens=60
    )
    assert output.text == ANSWER
    assert output.reasoning.strip() == "The user asks."


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|im_end|>", ANSWER),
        ("capital.<|im_end|>", "Paris is the "),
        ("<|im_end|>\nuser", ANSWER),
        ("<|im_end|>\nHello", f"{ANSWER}\nuser Hello"),
        ("user", f"{ANSWER}\n"),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_may_hold_special_tokens(stop: str, text: str, beams: int, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["<|im_end|>"], "<|endoftext|>", "")
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model = recite(tmp_path, tokenizer, QUESTION, f"{ANSWER}<|im_end|>\nuser Hello<|endoftext|>", eos=end)
    assert generate(model, stop=(stop,), num_beams=beams).text == text


@pytest.mark.parametrize("file", ["generation_config.json", "config.json", "neither"])
def test_an_end_beyond_the_vocabulary_is_replaced_by_the_tokenizers(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As Chinese GPT-2 models are published: BERT's vocabulary, and GPT-2's default end token or none."""
    tokenizer = tiny.train_tokenizer("BertTokenizer", tmp_path / "training")
    model = recite(tmp_path / "model", tokenizer, "[CLS] 今天天气", "很好，我们去公园散步。 [SEP] 很好", eos=50256)
    if file != "generation_config.json":
        (tmp_path / "model" / "generation_config.json").unlink()
    if file == "neither":
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in config.items() if name != "eos_token_id"}))
    for weights in (True, False):
        caplog.clear()
        loaded = llmkit.models.load.load_model(
            llmkit.config.settings.LoadSettings(model=model, device="cpu"), "generate", weights=weights
        )
        assert ("eos_token_id 50256 is not among the model's" in caplog.text) == (file != "neither")
        assert ("the tokenizer's [SEP]" in caplog.text) == (file != "neither")
        assert text_ends(loaded) == {tokenizer.sep_token_id}
        assert end_id(loaded) == tokenizer.sep_token_id
    output = generate(model, "今天天气", raw=True)
    assert output.finish_reason == "stop"
    assert output.text.replace(" ", "") == "很好，我们去公园散步。"


def test_a_saved_model_names_its_ends_for_other_programs(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], "<|endoftext|>", CHATML)
    end, turn = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    folder = recite(tmp_path / "base", tokenizer, asked(tokenizer), ANSWER, eos=end)
    published = {"eos_token_id": end, "do_sample": False, "temperature": 0.6, "length_penalty": 2.0}  # no effect
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(published))
    loaded = llmkit.load("generate", folder, device="cpu").loaded
    declare_ends(loaded)
    loaded.model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == sorted([end, turn])
    assert saved["temperature"] == 0.6
