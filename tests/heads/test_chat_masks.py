"""Ids and labels of conversations equal those of Transformers for templates that mark what the assistant generates."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.settings import LoadSettings
from llmkit.engines.transformers.traits import traits_of
from llmkit.errors import InputError
from llmkit.heads import head_of
from llmkit.heads.base import IGNORED, Features
from llmkit.models.load import Loaded, load_model
from llmkit.tasks import PromptOptions, Traits, get_task
from tests.conftest import Checkpoint

CALLS = "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}{% for d in documents or [] %}{{ d.text }};{% endfor %}"
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    + CALLS
    + "{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}"
)
STRIPPING = TEMPLATE.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}")
ALTERNATING = (
    "{% set last = namespace(role='') %}{% for m in messages %}{% if m.role == last.role %}"
    "{{ raise_exception('take turns') }}{% endif %}{% set last.role = m.role %}{% endfor %}" + TEMPLATE
)
WEATHER = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "a", "function": {"name": "weather", "arguments": {"city": "北京"}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


TALK = [turn("user", "Hot?"), turn("assistant", "今天天气很好。"), turn("user", "Why?"), turn("assistant", "The sun.")]
TOOLS = [
    turn("user", "Hot?"),
    turn("assistant", "Let me see.", tool_calls=[CALL, CALL], reasoning_content="no idea"),
    turn("tool", "31", tool_call_id="a"),
    turn("tool", "32", tool_call_id="a"),
    turn("assistant", "Yes.", reasoning_content="31 > 30"),
]
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"messages": TALK[:2]},
    "several turns": {"messages": TALK},
    "system": {"messages": [turn("system", "简短。"), *TALK[:2], turn("system", "Be brief."), *TALK[2:]]},
    "replies in a row": {"messages": [*TALK[:2], TALK[3], *TALK[2:]]},
    "tools": {"messages": TOOLS, "tools": [WEATHER]},
    "a call at the end": {"messages": [*TALK, *TOOLS[:2]], "tools": [WEATHER]},
    "documents": {"messages": TALK, "chat_template_kwargs": {"documents": [{"title": "a", "text": "b"}]}},
    "reasoning": {"messages": [TALK[0], {**TALK[1], "reasoning_content": "hm"}, *TALK[2:]]},
}


@pytest.fixture
def loaded(checkpoint: Checkpoint) -> Loaded:
    found = load_model(LoadSettings(model=str(checkpoint("qwen3"))), "chat", training=True, weights=False)
    own: Any = replace(found, tokenizer=deepcopy(found.tokenizer))
    own.tokenizer.chat_template = TEMPLATE
    return own  # type: ignore[no-any-return]


def learn(loaded: Loaded, row: dict[str, Any], *, options: PromptOptions | None = None) -> list[Features]:
    task = get_task("dialogue")
    traits = replace(traits_of(loaded, task), chat=True)
    examples = task.examples(row, traits, options or PromptOptions())
    return head_of(loaded.head).features(loaded, examples, loss_on="target")


def pieces(loaded: Loaded, features: Features) -> str:
    """The text of the learned tokens, and a bar for all others."""
    parts: list[list[int]] = [[]]
    for token, label in zip(features.input_ids, features.labels, strict=True):
        if label != IGNORED:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return "|".join(str(loaded.tokenizer.decode(part)) for part in parts if part).replace(
        str(loaded.tokenizer.eos_token), ""
    )


@pytest.mark.parametrize("name", ROWS)
def test_ids_and_labels_equal_those_of_the_tagged_template(loaded: Loaded, name: str) -> None:
    row = ROWS[name]
    (found,) = learn(loaded, row)
    expected: Any = loaded.tokenizer.apply_chat_template(
        row["messages"], tools=row.get("tools"), return_dict=True, return_assistant_tokens_mask=True,
        **row.get("chat_template_kwargs", {}),
    )  # fmt: skip
    assert list(found.input_ids) == expected["input_ids"]
    assert [label != IGNORED for label in found.labels] == [bool(mask) for mask in expected["assistant_masks"]]


def test_replies_are_learned_as_flagged(loaded: Loaded) -> None:
    (found,) = learn(loaded, {"messages": [*TOOLS[:1], {**TOOLS[1], "weight": 0}, *TOOLS[2:]], "tools": [WEATHER]})
    assert pieces(loaded, found) == "<think>31 > 30</think>Yes."
    (found,) = learn(loaded, {"messages": [*TOOLS[:-1], {**TOOLS[-1], "weight": 0}], "tools": [WEATHER]})
    assert pieces(loaded, found).startswith("<think>no idea</think>Let me see.<weather")
    (found,) = learn(loaded, {"messages": [{**TALK[1], "weight": 0}, TALK[1], *TALK]})
    assert pieces(loaded, found) == "今天天气很好。|The sun."


def test_each_reply_has_the_context_of_inference_where_the_template_drops_earlier_reasoning(loaded: Loaded) -> None:
    loaded.tokenizer.chat_template = STRIPPING
    first, second = learn(loaded, ROWS["tools"])
    assert pieces(loaded, first).startswith("<think>no idea</think>Let me see.<weather")
    assert pieces(loaded, second) == "<think>31 > 30</think>Yes."
    assert "no idea" not in loaded.tokenizer.decode(list(second.input_ids))


def test_consecutive_replies_are_one_for_a_template_of_alternating_roles(loaded: Loaded) -> None:
    loaded.tokenizer.chat_template = ALTERNATING
    (found,) = learn(loaded, ROWS["replies in a row"])
    assert pieces(loaded, found) == "今天天气很好。\nThe sun.|The sun."
    flagged = [TALK[0], {**TALK[1], "weight": 0}, TALK[3]]
    with pytest.raises(InputError, match="consecutive replies that have to be one message"):
        learn(loaded, {"messages": flagged})


def test_white_space_that_the_template_puts_before_a_reply_is_learned(loaded: Loaded) -> None:
    # As in the templates of Llama 2 and Mistral.
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else "
        "' ' + m.content + eos_token }}{% endfor %}"
    )
    (found,) = learn(loaded, {"messages": TALK})
    whole = loaded.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert loaded.tokenizer.decode(list(found.input_ids)) == whole
    assert pieces(loaded, found) == " 今天天气很好。| The sun."


def test_variables_of_the_template_for_all_rows_and_for_one(loaded: Loaded) -> None:
    options = PromptOptions(chat_template_kwargs={"documents": [{"title": "a", "text": "all"}]})
    (found,) = learn(loaded, {"messages": TALK}, options=options)
    assert "all;[user]" in loaded.tokenizer.decode(list(found.input_ids))
    (found,) = learn(loaded, ROWS["documents"], options=options)
    assert "b;[user]" in loaded.tokenizer.decode(list(found.input_ids))


def test_a_conversation_without_a_chat_template_has_no_tools(loaded: Loaded) -> None:
    plain = Traits(continues=True)
    task = get_task("dialogue")
    (example,) = task.examples({"messages": TALK[:2]}, plain, PromptOptions())
    assert example.target == " 今天天气很好。"
    for name, what in (("tools", "tools"), ("reasoning", "reasoning"), ("documents", "variables")):
        with pytest.raises(InputError, match=f"has {what}.*no chat template"):
            task.examples(ROWS[name], plain, PromptOptions())
