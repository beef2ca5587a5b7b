"""Templates that turn reasoning on and off in many ways; a template that cannot is not asked to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.engines.fake import CHAT
from llmkit.errors import UsageError
from llmkit.heads.chat_template import render_chat, thinking_switch
from llmkit.tasks import Chat, Message, PromptOptions, get_task
from tests.conftest import Checkpoint
from tests.fakes import PLAIN

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>BEGIN{% endif %}"
USER = Message("user", "天气？")


def template(begin: str, before: str = "") -> str:
    return before + TURNS + PROMPT.replace("BEGIN", begin)


QWEN3 = template("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}")
DEEPSEEK = template(
    "{% if thinking %}<think>{% else %}</think>{% endif %}",
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}",
)
MISTRAL = template(
    "",
    "{% if not reasoning_effort %}{% set reasoning_effort = 'none' %}{% endif %}{% if reasoning_effort not in"
    " ['none', 'high'] %}{{ raise_exception('bad effort') }}{% endif %}[MODEL_SETTINGS]{{ reasoning_effort }}",
)
SEED = template(
    "{% if thinking_budget == 0 %}<seed:think></seed:think>{% endif %}",
    "{% if not thinking_budget is defined %}{% set thinking_budget = -1 %}{% endif %}",
)
NEMOTRON = (
    "{% set ns = namespace(enable_thinking = true) %}{% for m in messages %}{% if '/think' in m.content %}"
    "{% set ns.enable_thinking = true %}{% elif '/no_think' in m.content %}{% set ns.enable_thinking = false %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content.replace('/think', '').replace('/no_think', '').strip() }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if ns.enable_thinking else '<think></think>' }}{% endif %}"
)
GPT_OSS = template("", "Reasoning: {{ reasoning_effort | default('medium') }}\n")


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint("llama"))


@pytest.mark.parametrize(
    ("text", "default", "on", "off"),
    [
        pytest.param(QWEN3, "", "", "<think>\n\n</think>\n\n", id="Qwen 3"),
        pytest.param(DEEPSEEK, "</think>", "<think>", "</think>", id="DeepSeek V3.1"),
        pytest.param(SEED, "", "", "<seed:think></seed:think>", id="Seed-OSS"),
    ],
)
def test_a_variable_of_the_template_is_the_switch(tokenizer: Any, text: str, default: str, on: str, off: str) -> None:
    tokenizer.chat_template = text
    begun = [render_chat(tokenizer, Chat((USER,), thinking=think)) for think in (None, True, False)]
    assert begun == [f"<|user|>天气？<|assistant|>{begin}" for begin in (default, on, off)]


def test_an_effort_counts_where_the_template_knows_none(tokenizer: Any) -> None:
    tokenizer.chat_template = MISTRAL
    shown = [render_chat(tokenizer, Chat((USER,), thinking=think)) for think in (None, True, False)]
    assert [text.partition("<")[0] for text in shown] == [
        f"[MODEL_SETTINGS]{each}" for each in ("none", "high", "none")
    ]
    tokenizer.chat_template = GPT_OSS  # "Reasoning: none" is nothing that the model knows
    assert thinking_switch(tokenizer) is None
    assert render_chat(tokenizer, Chat((USER,), thinking=False)).startswith("Reasoning: medium")


@pytest.mark.parametrize("system", [(), (Message("system", "Be brief."),)])
def test_a_text_in_the_system_message_is_the_switch(tokenizer: Any, system: tuple[Message, ...]) -> None:
    tokenizer.chat_template = NEMOTRON
    for think, begun in ((None, "<think>"), (True, "<think>"), (False, "<think></think>")):
        text = render_chat(tokenizer, Chat((*system, USER), thinking=think))
        assert text.endswith(f"<|user|>天气？<|assistant|>{begun}")
        assert ("Be brief." in text, "think" in text.partition("<|user|>")[0]) == (bool(system), False)


@pytest.mark.parametrize("text", [TURNS + PROMPT.replace("BEGIN", "<think>\n"), GPT_OSS, "{{ enable_thinking }}"])
def test_a_template_without_a_switch(tokenizer: Any, text: str) -> None:
    tokenizer.chat_template = text if "messages" in text else template("", "{% set enable_thinking = 1 %}")
    assert thinking_switch(tokenizer) is None


@pytest.mark.parametrize("think", [True, False])
def test_a_choice_without_effect_is_refused(think: bool) -> None:
    chat = replace(CHAT, switches_thinking=True)
    for traits, problem in (
        (CHAT, "chat template cannot turn reasoning on or off"),
        (PLAIN, "not rendered by a chat template"),
    ):
        for task in map(get_task, ("generate", "chat", "summarize")):
            with pytest.raises(UsageError, match=f"`think={think}` has no effect: .*{problem}"):
                task.check_options(traits, PromptOptions(think=think))
            task.check_options(chat, PromptOptions(think=think))
    with pytest.raises(UsageError, match=f"`think={think}` has no effect: .*not rendered by a chat template"):
        get_task("generate").check_options(chat, PromptOptions(think=think, raw=True))
