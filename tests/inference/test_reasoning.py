"""Models that think aloud, from their tokens to the output: alone, streamed and in batches, finished and cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.tasks import Chat, Message
from tests import tiny
from tests.forced import save_forced_model

HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SPECIAL = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]
REPLY = (
    "<|channel|>analysis<|message|>The fox 😀.<|end|><|start|>assistant<|channel|>final<|message|>"
    "The lazy dog.<|return|>"
)


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose every position names the next token, with gpt-oss's marks as special tokens."""
    folder, positions = tmp_path_factory.mktemp("gpt-oss"), 128
    tokenizer = tiny.train_tokenizer("Qwen2Tokenizer", folder)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.eos_token, tokenizer.chat_template = "<|return|>", HARMONY
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], add_generation_prompt=True)
    save_forced_model(folder, tokenizer, [(prompt["input_ids"], REPLY)], positions)
    return folder


def load(folder: Path, **options: Any) -> llmkit.Pipeline:
    return llmkit.load("dialogue", str(folder), device="cpu", **{"max_new_tokens": 48, **options})


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"stop": ("never",)}])
def test_marks_among_special_tokens_are_seen_however_it_is_run(gpt_oss: Path, options: dict[str, Any]) -> None:
    pipeline = load(gpt_oss, **options)
    shown: list[str] = []
    thought: list[str] = []
    output = pipeline("Who?", on_text=shown.append, on_reasoning=thought.append)
    assert (output.text, output.reasoning, output.finish_reason) == ("The lazy dog.", "The fox 😀.", "stop")
    assert ("".join(shown), "".join(thought)) == (output.text, output.reasoning)
    assert list(pipeline.map(["Who?", "Why"])) == [output, pipeline("Why")]
    assert not output.still_thinking


def test_a_conversation_shows_the_template_the_answer_alone(gpt_oss: Path) -> None:
    conversation = llmkit.Conversation(load(gpt_oss))
    conversation.send("Who?")
    assert conversation.messages == [Message("user", "Who?"), Message("assistant", "The lazy dog.")]
    tokenizer: Any = conversation.pipeline.loaded.tokenizer
    prompt = Chat((*conversation.messages, Message("user", "?")))
    read = tokenizer.decode(list(conversation._session.encode(prompt).input_ids))
    assert "The lazy dog." in read
    assert "The fox" not in read


@pytest.mark.parametrize("tokens", [3, 12])
def test_a_reply_cut_off_while_thinking_is_said_to_be(gpt_oss: Path, tokens: int) -> None:
    pipeline = load(gpt_oss, max_new_tokens=tokens)
    output = pipeline("Who?")
    assert (output.text, output.finish_reason, output.still_thinking) == ("", "length", True)
    assert output.to_dict()["still_thinking"] is True
    assert list(pipeline.map(["Who?", "Who?"])) == [output] * 2
    assert not load(gpt_oss)("Who?").still_thinking


def test_an_answer_in_another_window_stands() -> None:
    from llmkit.tasks import Generation, QuestionAnswering
    from llmkit.text.windows import Window

    windows = [Window(0, "The fox."), Window(8, " The dog.")]
    task = QuestionAnswering()
    cut, none = Generation("", "length", thinking=True), Generation("No answer")

    def answered(*raws: Generation) -> bool | None:
        return task._generated(windows[: len(raws)], raws).answered

    assert answered(cut, Generation("The dog")) is True
    assert answered(cut, none) is answered(none, cut) is answered(Generation("", "interrupted"), none) is None
    assert answered(none, none) is answered(none, Generation("")) is False
