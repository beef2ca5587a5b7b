"""Chat templates of many kinds: no message is lost, or the template is refused in one line."""

from __future__ import annotations

import json
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llmkit.text.template_limits as template_limits
from llmkit.config.settings import LoadSettings
from llmkit.errors import CheckpointError, InputError, LlmkitError, UsageError
from llmkit.heads.chat_template import check_template, choose_template, encode_chat, render_chat, reply_frame
from llmkit.models.load import load_model
from llmkit.tasks import Chat, Message
from tests.conftest import Checkpoint

USER, REPLY, SYSTEM = Message("user", "Hi"), Message("assistant", "Sure."), Message("system", "Be brief.")
PARTS = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif c['type'] == 'image' %}<image>{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = (
    "{% for m in messages %}{{ m.role }}:{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NO_SYSTEM = TEXT.replace("%}{{ m.role", "if m.role != 'system' %}{{ m.role")


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Any:
    from copy import deepcopy

    return deepcopy(load_model(LoadSettings(model=str(checkpoint("llama"))), "generate", weights=False).tokenizer)


def render(tokenizer: Any, template: Any, *messages: Message, prefill: str = "") -> str:
    tokenizer.chat_template = template
    return render_chat(tokenizer, Chat(messages, prefill)).replace(tokenizer.eos_token, "|")


def test_a_template_of_content_parts_gets_parts(tokenizer: Any) -> None:
    # As templates of models that also see images have it (vllm#16219).
    assert render(tokenizer, PARTS, SYSTEM, USER, REPLY, USER) == (
        "system:Be brief.|user:Hi|assistant:Sure.|user:Hi|assistant:"
    )
    assert encode_chat(tokenizer, Chat((USER,))) != encode_chat(tokenizer, Chat((REPLY,)))
    assert render(tokenizer, PARTS, USER, prefill="Well") == "user:Hi|assistant:Well"
    only_user = PARTS.replace("{% for c in m['content'] %}", "{% for c in m['content'] if m.role == 'user' %}")
    with pytest.raises(InputError, match=r"drops the text of the assistant.*llmkit generate --raw"):
        render(tokenizer, only_user, USER, REPLY, USER)


@pytest.mark.parametrize(
    "template",
    [
        NO_SYSTEM,
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEXT,
        NO_SYSTEM.replace("m.content | trim", "m.content[0].text"),
    ],
)
def test_a_system_message_that_is_not_taken_stands_before_the_first_message(tokenizer: Any, template: str) -> None:
    assert render(tokenizer, template, SYSTEM, USER) == "user:Be brief.\n\nHi|assistant:"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("user said something", "drops the text of the user"),
        ("{{ messages[-1].content[:3] }}", "drops the text of the user"),
        ("{{ messages[-1].content[:1000] }}", "drops the text of the user"),
        ("{{ messages[-1].content.splitlines()[0] }}", "drops the text of the user"),
        ("{% for m in messages %}{{ m.content }}", "line 1 of the model's chat template is wrong .*endfor"),
        ("{{ describe(messages) }}", r"fails \(UndefinedError: 'describe' is undefined\)"),
        ("{{ turn['role'] }}", r"fails \(UndefinedError"),
        ("{{ messages[0].content + 1 }}", r"fails \(TypeError"),
        ("{{ raise_exception('roles must alternate') }}", r"refuses these messages \(roles must alternate\)"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_in_one_line(tokenizer: Any, template: str, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message) as caught:
        check_template(tokenizer)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        render(tokenizer, template, USER, prefill="Sure")


def test_of_several_templates_the_one_that_renders_conversations(tokenizer: Any, caplog: Any) -> None:
    tools = "{% for tool in tools %}{{ tool }}{% endfor %}"
    assert render(tokenizer, {"tool_use": tools, "chatml": TEXT}, USER) == "user:Hi|assistant:"
    assert render(tokenizer, {"default": PARTS, "chatml": TEXT}, USER) == "user:Hi|assistant:"
    assert not caplog.records
    assert render(tokenizer, {"one": TEXT, "two": PARTS.upper(), "three": PARTS}, USER) == "user:Hi|assistant:"
    assert "one, two, three and no default, so one is used" in caplog.text
    with pytest.raises(CheckpointError, match="templates tool_use, rag; none is named default"):
        render(tokenizer, {"tool_use": tools, "rag": "{{ documents }}"}, USER)


@pytest.mark.parametrize(
    "template",
    [
        TEXT,  # trims
        TEXT.replace("{{ eos_token }}", "\n"),
        TEXT.replace("m.content | trim", "m.content.split('</think>')[-1]"),
        "{% if messages[-1].role != 'user' %}{{ raise_exception('the user comes last') }}{% endif %}" + TEXT,
    ],
)
def test_a_prefill_is_kept_as_it_is(tokenizer: Any, template: str) -> None:
    for prefill in (" Well, ", "Sure", "user:Hi", "a</think>b "):
        text = render(tokenizer, template, USER, REPLY, USER, prefill=prefill)
        assert text.endswith(f"assistant:{prefill}")
        assert len(re.findall("Hi", text.removesuffix(prefill))) == 2


def test_the_frame_of_a_reply(tokenizer: Any) -> None:
    tokenizer.chat_template = TEXT.replace("{{ eos_token }}", "{{ eos_token }}\n")
    assert reply_frame(tokenizer) == ("", f"{tokenizer.eos_token}\n")
    tokenizer.chat_template = "{{ raise_exception('x') if messages | length > 1 }}{{ messages[0].content }}"
    assert reply_frame(tokenizer) == ("", "")


@pytest.mark.parametrize(
    ("template", "header"),
    [
        ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>{% endfor %}", "<|assistant|>\n"),
        ("{% for m in messages %} {{ m.role | upper }}: {{ m.content }}{% endfor %}", " ASSISTANT:"),
        (
            "{% for m in messages %}{{ '[I] ' + m.content + ' [/I]' if m.role == 'user' else m.content }}{% endfor %}",
            "",
        ),
    ],
)
def test_a_template_that_knows_no_generation_prompt_opens_the_reply(tokenizer: Any, template: str, header: str) -> None:
    tokenizer.chat_template = template
    chat = Chat((Message("user", "Hi"),))
    plain = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert render_chat(tokenizer, chat) == plain + header
    assert reply_frame(tokenizer)[0].strip() == ""


def test_a_recipe_names_a_template_by_text_file_or_name(tokenizer: Any, tmp_path: Path) -> None:
    file, old = tmp_path / "chat.jinja", tmp_path / "chat_template.json"
    file.write_text(PARTS, encoding="utf-8")
    old.write_text(json.dumps({"chat_template": PARTS}), encoding="utf-8")
    assert choose_template(tokenizer, TEXT) == TEXT
    assert choose_template(tokenizer, str(file)) == choose_template(tokenizer, str(old)) == PARTS
    tokenizer.chat_template = {"default": TEXT, "tool_use": PARTS}
    assert choose_template(tokenizer, "tool_use") == PARTS
    file.write_text("no template", encoding="utf-8")
    for value in ("chatml", str(file), "no template " * 500, str(tmp_path)):
        with pytest.raises(UsageError, match=r"neither a Jinja template nor a file.*the model's are default, tool_use"):
            choose_template(tokenizer, value)


def test_errors_are_not_remembered_and_templates_not_confused(tokenizer: Any) -> None:
    other = TEXT.replace("{{ m.role }}", "<{{ m.role }}>")
    for _ in range(2):
        with pytest.raises(LlmkitError):
            render(tokenizer, "nothing", USER)
        assert render(tokenizer, TEXT, USER) == "user:Hi|assistant:"
        assert render(tokenizer, other, USER) == "<user>:Hi|assistant:"


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}" + TEXT
DOUBLING = "{% set n = namespace(x='a' * 64) %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}" + TEXT


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "does not end within"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "does not end within",
        ),
        ("{{ 'a' * 10000000000 }}", "uses too much memory"),
        ("{{ messages[0].content | center(10000000000) }}", "uses too much memory"),
        (DOUBLING, "uses too much memory"),
        ("{{ messages[0].content }}{{ 10 ** (10 ** 10) }}", "raises a number to a power"),
    ],
)
def test_a_template_that_takes_too_much_is_ended_in_every_thread(
    tokenizer: Any, template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.2 if message == "does not end within" else 60.0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with ThreadPoolExecutor(1) as other:
        for call in (render, lambda *given: other.submit(render, *given).result()):
            with pytest.raises(CheckpointError, match=f"chat template {message}.*llmkit generate --raw"):
                call(tokenizer, template, USER)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert render(tokenizer, TEXT, USER) == "user:Hi|assistant:"


def test_keyword_arguments_are_no_power(tokenizer: Any) -> None:
    assert render(tokenizer, "{% set d = dict(a=1) %}{% set e = dict(b=2, **d) %}" + TEXT, USER).startswith("user:Hi")
