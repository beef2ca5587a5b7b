"""Reasoning and answer of replies in the formats of many models, token by token, with and without special tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from llmkit.heads.reasoning import TagSplitter, reasoning_format
from llmkit.heads.text_stream import TextStream
from tests import tiny

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@cache
def trained(folder: Path) -> Any:
    return tiny.train_tokenizer("Qwen2Tokenizer", folder)


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from copy import deepcopy

    found = deepcopy(trained(tmp_path_factory.getbasetemp()))
    found.chat_template = PLAIN
    return found


def split(tokenizer: Any, reply: str, prompt: str = "assistant:", *, finished: bool = True) -> tuple[str, str, bool]:
    """Reasoning, answer, and whether there is none; nothing of a mark may ever be shown."""
    reasoning = reasoning_format(tokenizer)
    splitter, stream = reasoning.splitter(prompt), TextStream(tokenizer, shown=reasoning.shown)
    pieces = [splitter.push(stream.push(token)) for token in tokenizer(reply, add_special_tokens=False)["input_ids"]]
    pieces += [splitter.push(stream.flush()), splitter.flush(finished=finished)]
    text, seen = "".join(pieces), ""
    for piece in pieces:
        seen += piece
        assert text.startswith(seen)
    return splitter.reasoning.strip(), text.strip(), splitter.thinking


HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|constrain|>"]
FINAL = "<|start|>assistant<|channel|>final<|message|>Paris.<|return|>"
FORMATS: list[tuple[list[str], str, str, str, str]] = [
    # special tokens, end of the prompt, reply, reasoning, answer
    (HARMONY, "<|start|>assistant", f"<|channel|>analysis<|message|>Hm.<|end|>{FINAL}", "Hm.", "Paris."),
    (HARMONY, "<|start|>assistant", f"<|channel|>commentary<|message|>Hm.<|end|>{FINAL}", "Hm.", "Paris."),
    (HARMONY, "<|start|>assistant", "<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}"),
    (HARMONY, "<|start|>assistant", "No marks at all.", "", "No marks at all."),
    (
        HARMONY,
        "<|start|>assistant",
        f' to=functions.f<|channel|>commentary json<|message|>{{"a": 1}}<|call|>{FINAL}',
        '{"a": 1}',
        "Paris.",
    ),
    (
        ["<|start|>", "<|message|>", "<|channel|>", "<|eom|>", "<|eot|>"],
        "<|start|>assistant",
        " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Paris.<|eot|>",
        "Hm.",
        "Paris.",
    ),
    (["<think>", "</think>"], "", "<think>\nHm.\n</think>\n\nParis.", "Hm.", "Paris."),
    (["<think>", "</think>"], "<think>\n", "Hm.\n</think>\n\nParis.", "Hm.", "Paris."),
    (["</think>"], "<think>\n", "Hm.\n</think>\n\nParis.</think>", "Hm.", "Paris."),
    (["<think>", "</think>"], "", "Paris<think>.", "", "Paris."),
    ([], "<thought>\n", "Hm.\n</thought>\n\nParis.", "Hm.", "Paris."),
    (["<thought>", "</thought>"], "", "<thought>Hm.</thought>Paris.", "Hm.", "Paris."),
    (["[THINK]", "[/THINK]"], "", "[THINK]Hm.[/THINK]Paris.", "Hm.", "Paris."),
    (["<|channel>", "<channel|>"], "", "<|channel>thought\nHm.<channel|>Paris.", "Hm.", "Paris."),
    (
        ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"],
        "",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Paris.<|END_RESPONSE|>",
        "Hm.",
        "Paris.",
    ),
    (["<|begin_of_thought|>", "<|end_of_thought|>"], "", "<|begin_of_thought|>Hm.<|end_of_thought|>A", "Hm.", "A"),
    (["<|thought_start|>", "<|thought_end|>"], "", "<|thought_start|>Hm.<|thought_end|>A", "Hm.", "A"),
    (["◁think▷", "◁/think▷"], "", "◁think▷Hm.◁/think▷Paris.", "Hm.", "Paris."),
    (["<my_think>", "</my_think>"], "<my_think>", "Hm.</my_think>Paris.", "Hm.", "Paris."),
    ([], "", "<think>\nHm.\n</think>\n<answer>\nParis.\n</answer>", "Hm.", "Paris."),
    ([], "", "<seed:think>Hm.</seed:think>Paris </answer>.", "Hm.", "Paris </answer>."),
]


@pytest.mark.parametrize(("special", "prompt", "reply", "reasoning", "answer"), FORMATS)
def test_formats(tokenizer: Any, special: list[str], prompt: str, reply: str, reasoning: str, answer: str) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    assert split(tokenizer, reply, f"user: Where?\n{prompt}") == (reasoning, answer, False)


def test_marks_that_only_the_chat_template_names(tokenizer: Any) -> None:
    plain, tags = (
        "Here is my thought process: Hm. Here is my response: Paris.",
        "<ponder_think>Hm.</ponder_think>Paris.",
    )
    assert split(tokenizer, plain) == ("", plain, False)
    tokenizer.chat_template += "{# Here is my thought process: … Here is my response: <ponder_think></ponder_think> #}"
    assert split(tokenizer, plain) == split(tokenizer, tags) == ("Hm.", "Paris.", False)


def test_a_template_may_name_only_the_opening_tag(tokenizer: Any) -> None:
    tokenizer.chat_template += "{# Think within <Thought>, and answer within <Output>. #}"
    splitter = reasoning_format(tokenizer).splitter("")
    found = splitter.push("<Thought>\nhm\n</Thought>\n\n<Output>\nParis\n</Output>") + splitter.flush(finished=True)
    assert (splitter.reasoning.strip(), found.strip()) == ("hm", "Paris")


def test_a_response_template_says_what_is_reasoning(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|say|>", "<|muse|>", "<|over|>"]})
    reply = "<|muse|>Hm.<|over|><|say|>Paris.<|over|><|call|>{not json<|over|>"
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "assistant:",
        "fields": {
            "thinking": {"open": "<|muse|>", "close": "<|over|>"},
            "content": {"open": "<|say|>", "close": "<|over|>"},
            "tool_calls": {
                "open_pattern": r"<\|(?P<name>call)\|>",
                "close": "<|over|>",
                "content": "json",
                "transform": {"name": "{name}", "arguments": "{content}"},
            },
        },
    }
    assert split(tokenizer, reply) == ("Hm.", "Paris.<|call|>{not json", False)
    assert split(tokenizer, "No marks at all.") == ("", "No marks at all.", False)
    assert split(tokenizer, "Hm.<|over|><|say|>A", "assistant:<|muse|>") == ("Hm.", "A", False)
    assert split(tokenizer, "<|muse|>Hm.", finished=False) == ("Hm.", "", True)


@pytest.mark.parametrize(
    ("special", "prompt", "reply"),
    [
        (HARMONY, "<|start|>assistant", "<|channel|>analysis<|message|>Hm."),
        (["<think>", "</think>"], "", "<think>Hm."),
        ([], "<think>\n", "Hm."),
    ],
)
def test_a_reply_cut_off_in_its_reasoning_has_no_answer(
    tokenizer: Any, special: list[str], prompt: str, reply: str
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    assert split(tokenizer, reply, prompt, finished=False) == ("Hm.", "", True)


def test_a_reply_that_ends_in_a_block_of_the_prompt_is_the_answer(tokenizer: Any) -> None:
    # Models that were tuned on plain replies behind a template that opens the block never close it.
    assert split(tokenizer, "Paris.", "assistant:<think>\n") == ("", "Paris.", False)
    assert split(tokenizer, "<think>Hm.", "assistant:") == ("Hm.", "", True)


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "answer"),
    [
        ("", "<think>\nhm, 42\n</think>\n\nForty two.", "\nhm, 42\n", "Forty two."),
        ("<|assistant|><think>\n", "hm</think>Yes", "hm", "Yes"),
        ("", "No <think>tags</think> here", "", "No <think>tags</think> here"),
        ("", "<thi", "", "<thi"),
        ("", "<think>never closed", "never closed", ""),
        ("", "  [THINK]a[/THINK] b", "a", "b"),
        ("", "<think></think>x < y", "", "x < y"),
        ("", "<think>a</think><answer>b</answer> c", "a", "b c"),
        ("", "<think>a</think><ans", "a", "<ans"),
    ],
)
def test_reasoning_is_kept_apart_however_the_text_arrives(prompt: str, text: str, reasoning: str, answer: str) -> None:
    for size in (1, 2, 3, 7, 100):
        splitter = TagSplitter(prompt)
        parts = [splitter.push(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join(parts) + splitter.flush() == answer
        assert splitter.reasoning == reasoning
