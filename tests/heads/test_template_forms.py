"""Tools, tool calls, results and reasoning in chat templates: kept in a form that the template takes, or refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.settings import LoadSettings
from llmkit.errors import InputError, UsageError
from llmkit.heads.chat_template import alternates, omitted_reasoning, render_chat, render_reply
from llmkit.models.load import load_model
from llmkit.tasks import Chat, Message
from tests.conftest import Checkpoint

HEAD = "{% for m in messages %}[{{ m.role }}]"
TAIL = "{% endfor %}{{ '[assistant]' if add_generation_prompt }}"
CALLS = "{% for c in m.tool_calls or [] %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}"
PLAIN = f"{HEAD}{{{{ m.content }}}}|{TAIL}"
TOOLS = "{% for t in tools or [] %}{{ t | tojson }};{% endfor %}" + PLAIN.replace("|", f"{CALLS}|", 1)
THINKS = (
    "{% set last = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    + TOOLS.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and loop.index0 > last.user and (loop.last or m.KEY) %}<think>{{ m.KEY }}</think>"
        "{% endif %}{{ m.content }}",
    )
)
WEATHER = {"type": "function", "function": {"name": "weather", "description": "天气", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "call_1", "function": {"name": "weather", "arguments": {"city": "北京"}}}
ASKED = Message("user", "Hot?")
CALLED = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "31", tool_call_id="call_1")


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Any:
    return deepcopy(load_model(LoadSettings(model=str(checkpoint("llama"))), "generate", weights=False).tokenizer)


def render(tokenizer: Any, template: str, *messages: Message, **fields: Any) -> str:
    tokenizer.chat_template = template
    return render_chat(tokenizer, Chat(messages, **fields))


def test_tools_calls_and_results_are_rendered_by_the_template(tokenizer: Any) -> None:
    text = render(tokenizer, TOOLS, ASKED, CALLED, RESULT, tools=(WEATHER,))
    assert '"天气"' in text
    assert text.endswith('[user]Hot?|[assistant]<weather {"city": "北京"}>|[tool]31|[assistant]')
    chat = Chat((ASKED,), tools=(WEATHER,))
    assert render_reply(tokenizer, chat, CALLED) == '<weather {"city": "北京"}>|'
    assert hash(chat) == hash(replace(chat))


def test_reasoning_as_a_part_of_the_content(tokenizer: Any) -> None:
    """The template of Magistral, shortened."""
    template = PLAIN.replace(
        "{{ m.content }}",
        "{% if m.content is string %}{{ m.content }}{% else %}{% for block in m.content %}"
        "{% if block.type == 'thinking' %}[THINK]{{ block.thinking }}[/THINK]"
        "{% elif block.type == 'text' %}{{ block.text }}{% endif %}{% endfor %}{% endif %}",
    )
    tokenizer.chat_template = template
    reply = Message("assistant", "Yes.", reasoning="31 degrees")
    assert render_reply(tokenizer, Chat((ASKED,)), reply) == "[THINK]31 degrees[/THINK]Yes.|"


@pytest.mark.parametrize(
    ("template", "messages", "tools", "problem"),
    [
        (PLAIN, [ASKED], (WEATHER,), "drops the tools; set tokenizer.chat_template"),
        (TOOLS.replace("t | tojson", "t.function.name"), [ASKED], (WEATHER,), "drops the tools"),
        (PLAIN, [ASKED, CALLED, RESULT], (), "drops the tool calls; set tokenizer.chat_template .* remove the row"),
        (TOOLS.replace("c.function.arguments | tojson", "1"), [ASKED, CALLED, RESULT], (), "drops the tool calls"),
        (TOOLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
         [ASKED, replace(CALLED, tool_calls=(CALL, CALL)), RESULT], (), "drops the tool calls"),
        (TOOLS.replace("in messages", "in messages if m.role != 'tool'"), [ASKED, CALLED, RESULT], (),
         "drops the results of tools"),
        (TOOLS.replace(HEAD, HEAD + "{{ raise_exception('no tool') if m.role == 'tool' }}"), [ASKED, CALLED, RESULT],
         (), r"refuses these messages \(no tool\); set tokenizer.chat_template"),
        (TOOLS, [ASKED, Message("assistant", "Yes.", reasoning="31 > 30"), ASKED], (), "drops the reasoning"),
        (TOOLS.replace("{{ m.content }}", "{{ m.content if not m.tool_calls }}"),
         [ASKED, replace(CALLED, content="Let me see."), RESULT], (), "drops the text of the assistant"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_take_is_refused_by_name(
    tokenizer: Any, template: str, messages: list[Message], tools: Any, problem: str
) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=problem):
            render(tokenizer, template, *messages, tools=tools)


def test_arguments_contents_and_ids_in_the_form_that_a_template_takes(tokenizer: Any) -> None:
    text = TOOLS.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
    assert '<weather {"city": "北京"}>' in render(tokenizer, text, ASKED, CALLED, RESULT)
    null = TOOLS.replace(
        "m.tool_calls or []", "(m.tool_calls if (m.content or none) is none and m.content != '' else [])"
    )
    assert "<weather" in render(tokenizer, null.replace("{{ m.content }}", "{{ m.content or '' }}"), ASKED, CALLED)
    nine = TOOLS.replace(
        "%}<{{", "%}{{ raise_exception('nine digits') if not c.id is defined or c.id | length != 9 }}{{ c.id }}<{{"
    ).replace("m.content }}", "m.tool_call_id }}{{ m.content }}")
    for call, result in ((CALLED, RESULT), (CALLED, Message("tool", "31"))):
        assert "000000001<weather" in (text := render(tokenizer, nine, ASKED, call, result))
        assert "[tool]00000000131" in text
    own = replace(CALLED, tool_calls=({**CALL, "id": "abcdefghi"},))
    assert "abcdefghi<weather" in render(tokenizer, nine, ASKED, own)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_under_the_name_that_the_template_reads(tokenizer: Any, key: str) -> None:
    template = THINKS.replace("KEY", key)
    thought = replace(CALLED, reasoning="看看")
    reply = Message("assistant", "Yes.", reasoning="31 > 30")
    text = render(tokenizer, template, ASKED, thought, RESULT)
    assert "[assistant]<think>看看</think><weather" in text
    chat = Chat((ASKED, thought, RESULT))
    assert render_reply(tokenizer, chat, reply) == "<think>31 > 30</think>Yes.|"
    assert omitted_reasoning(tokenizer, chat) == 0
    later = Chat((*chat.messages, reply, ASKED))
    assert "think" not in render_chat(tokenizer, later)  # the template's own rule for earlier turns
    assert omitted_reasoning(tokenizer, later) == 2


def test_a_reply_that_does_not_continue_its_prompt_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKS.replace("KEY", "thinking").replace(
        "'[assistant]' if", "('[assistant]' + ('' if enable_thinking else '<think></think>')) if"
    )
    reply = Message("assistant", "Yes.", reasoning="31 > 30")
    with pytest.raises(InputError, match=r"another way.*prompt.think.*or remove the reasoning"):
        render_reply(tokenizer, Chat((ASKED,)), reply)
    chat = Chat((ASKED,), template_kwargs={"enable_thinking": True})
    assert render_reply(tokenizer, chat, reply) == "<think>31 > 30</think>Yes.|"


def test_instructions_at_any_place_and_under_both_roles(tokenizer: Any) -> None:
    rules, later = Message("developer", "Be brief."), Message("system", "Now in French.")
    reply = Message("assistant", "Sure.")
    both = (rules, ASKED, reply, later, ASKED)
    assert render(tokenizer, PLAIN, *both).startswith("[system]Be brief.|[user]Hot?|[assistant]Sure.|[system]Now")
    known = PLAIN.replace("{% for", "{# system or developer #}{% for")
    assert render(tokenizer, known, *both).startswith("[developer]Be brief.|")
    none = PLAIN.replace("in messages", "in messages if m.role != 'system'")
    assert render(tokenizer, none, *both) == (
        "[user]Be brief.\n\nHot?|[assistant]Sure.|[user]Now in French.\n\nHot?|[assistant]"
    )
    with pytest.raises(InputError, match="drops the system message"):
        render(tokenizer, none, ASKED, reply, later)


def test_other_variables_of_the_template(tokenizer: Any) -> None:
    template = "{% for d in documents or [] %}{{ d.text }};{% endfor %}" + PLAIN
    options: dict[str, Any] = {"documents": [{"title": "a", "text": "31"}]}
    assert render(tokenizer, template, ASKED, template_kwargs=options) == "31;[user]Hot?|[assistant]"
    for options, problem in (
        ({"dokuments": []}, "dokuments, which the model's chat template does not use"),
        ({"messages": []}, "cannot set messages"),
        ({"documents": {1, 2}}, "not JSON"),
    ):
        with pytest.raises(UsageError, match=problem):
            render(tokenizer, template, ASKED, template_kwargs=options)


def test_tools_take_the_template_for_tools(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": PLAIN, "tool_use": TOOLS}
    assert "weather" in render_chat(tokenizer, Chat((ASKED,), tools=(WEATHER,)))
    assert render_chat(tokenizer, Chat((ASKED,))) == "[user]Hot?|[assistant]"


def test_templates_that_refuse_consecutive_replies(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    assert not alternates(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('a') if messages | length > 1 }}" + PLAIN
    assert alternates(tokenizer)
