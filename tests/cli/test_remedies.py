"""What a message advises exists: every setting and option in it is one of the commands that can print it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.cli import options
from llmkit.cli.options import flags, named_options
from llmkit.tasks import TASKS
from tests.call_graph import Node, definitions, reached, trees
from tests.cli.test_advice import COMMANDS
from tests.cli.test_help import LEAVES

SETTING = re.compile(r"`(\w+)(?:=([^`]*))?`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")

TRANSLATION = ("translate", "evaluate", "finetune", "data check")
MODULES = {
    "llmkit.cli.chat": ("chat",),
    "llmkit.data.shapes.row_languages": TRANSLATION,
    "llmkit.models.language_map": TRANSLATION,
    "llmkit.models.families.translators": TRANSLATION,
    "llmkit.text.detection": TRANSLATION,
    "llmkit.text.templates": ("generate", "summarize", "answer", "translate", "evaluate", "finetune", "data check"),
}
"""Modules whose messages only some commands can print, although others seem to reach them."""
NEVER = {
    ("merge", "device= is not available"): "it has no --device",
    ("merge", "is not on the Hub and has no revisions"): "it has no --revision",
    ("merge", "`quantize=`"): "it does not quantize",
    ("merge", "is a GGUF file, which is unpacked"): "it does not quantize",
    ("recipes copy", "`overrides="): "it passes no overrides",
    ("download", "`exact`"): "it does not count exactly",
    ("download", "`base`"): "it passes no base",
    ("evaluate", "no input file is plain text"): "it has no --sample-by",
    ("evaluate", "the column "): "it does not rename columns",
    ("generate", "`prompt_language`"): "it has no --prompt-language",
    ("chat", "`prompt_language`"): "it has no --prompt-language",
    ("chat", "`template`"): "it has no --template",
    ("merge", "`chat_template_kwargs`"): "it renders no conversation",
    ("merge", "is quantized already"): "it does not quantize",
    ("merge", "above which Transformers does not train"): "it does not train",
    ("next", "`chat_template_kwargs`"): "it renders no conversation",
    ("explain", "`prompt_language`"): "it has no --prompt-language",
    ("export", "`chat_template_kwargs`"): "it renders no conversation",
    ("export", "device= is not available"): "it has no --device",
    ("export", "is not on the Hub and has no revisions"): "it has no --revision",
    ("export", "above which Transformers does not train"): "it does not train",
    ("export", "`quantize=`"): "it does not quantize while loading",
    ("export", "is a GGUF file, which is unpacked"): "it does not quantize while loading",
    ("export", "is quantized already"): "it does not quantize while loading",
    **dict.fromkeys(
        [
            ("serve", part)
            for part in ("`chat_template_kwargs`", "`shots", "`max_new_tokens`", "`repetition_penalty", "`think=`")
        ],
        "a client gets it, whose request has the setting",
    ),
    ("serve", "`template`"): "a request has none",
    ("serve", "`prompt_language`"): "a request has none",
}
"""Messages that a command cannot print, by a part of them, and why."""


def _root(name: str, command: Any) -> tuple[set[Node], frozenset[str]]:
    """Where a command begins, and the modules of tasks that it does not have."""
    for task in TASKS.values():
        if name == f"llmkit {task.verb}":
            others = frozenset(each.__module__ for each in TASKS.values()) - {task.__module__}
            return {("llmkit.cli.tasks", "task_command"), (task.__module__, task.__name__)}, others
    others = frozenset()
    if name == "llmkit explain":
        explained = ("text-generation", "question-answering")
        others = frozenset(each.__module__ for task, each in TASKS.items() if task not in explained)
    function = command.callback.__name__
    modules = [module for module in trees() if module.startswith("llmkit.cli.")]
    found = {
        (module, each)
        for module in modules
        for each in (function, f"{function}_command")
        if each in definitions(module)
    }
    assert found, f"{function} is not a function of llmkit.cli"
    return found, others


@cache
def _reached(name: str) -> frozenset[Node]:
    return frozenset(reached(*_root(name, LEAVES[name])))


def _text(node: ast.AST) -> str:
    """The constant parts of a string."""
    return "".join(
        each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
    )


def _messages(node: Node) -> Iterator[tuple[str, list[str]]]:
    """The errors, notes and log lines that a function can make: which of them, and their texts."""
    module, name = node
    definition = definitions(module)[name]
    if isinstance(definition, ast.ClassDef):  # its methods are nodes of their own
        return
    for call in ast.walk(definition):
        if isinstance(call, ast.Call):
            made = getattr(call.func, "id", getattr(call.func, "attr", ""))
            if made.endswith("Error"):
                yield "error", [_text(each) for each in call.args]
            elif made in ("note", "Note"):
                yield "note", [_text(each) for each in call.args]
            elif made in ("warn", "warning", "info"):
                yield "line", [_text(each) for each in call.args]


def _is_known(text: str) -> bool:
    return all(options._spelled(*each) for each in SETTING.findall(text))


def _undoable(name: str) -> Iterator[str]:
    short = name.removeprefix("llmkit ")
    own = {option for each in LEAVES[name].params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    for node in sorted(_reached(name)):
        if short not in MODULES.get(node[0], (short,)):
            continue
        for kind, texts in _messages(node):
            if kind == "note" and short == "finetune":  # it prints no single answers
                continue
            if not texts or any(short == command and part in "; ".join(texts) for command, part in NEVER):
                continue
            advice = texts[1:] if kind == "error" else texts
            if advice and not (any if kind == "error" else all)(map(_is_known, advice)):
                yield f"{node[0]}: {'; '.join(texts)}"
            elif not _is_known(texts[0]):
                yield f"{node[0]}: {texts[0]}"
            elif node[0].startswith("llmkit.cli") and (unknown := set(OPTION.findall(" ".join(texts))) - own):
                yield f"{node[0]}: {' '.join(texts)} ({unknown})"


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_has_what_its_messages_advise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "options", named_options(LEAVES[name].params))
    assert list(_undoable(name)) == []


def test_enough_is_reached() -> None:
    assert ("llmkit.models.memory", "check_fits") in _reached("llmkit generate")
    assert ("llmkit.training.loop", "Trainer.run") in _reached("llmkit finetune") or len(
        _reached("llmkit finetune")
    ) > 1000
    assert len(_reached("llmkit recipes list")) < 100


def _command_lines() -> Iterator[tuple[list[str], list[str]]]:
    """The arguments of every `command_line(…)`: possible verbs, and the options."""
    for module, tree in trees().items():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "command_line" and call.args:
                verb = call.args[0]
                verbs = [str(verb.value)] if isinstance(verb, ast.Constant) else [task.verb for task in TASKS.values()]
                yield verbs, [f"--{each.arg.replace('_', '-')}" for each in call.keywords if each.arg]
                assert module


def test_command_lines_in_messages_exist() -> None:
    found = list(_command_lines())
    assert len(found) > 4
    for verbs, named in found:
        for verb in verbs:
            known = {option for each in LEAVES[f"llmkit {verb}"].params for option in each.opts}
            assert set(named) <= known, (verb, named)


def test_commands_in_texts_and_recipes_exist() -> None:
    """In backticks, and in the first line of a recipe."""
    folder = Path(llmkit.__file__).parents[1]
    texts = [_text(each) for tree in trees().values() for each in ast.walk(tree) if isinstance(each, ast.Constant)]
    found = [words for text in texts for words in re.findall(r"`(llmkit [a-z][^`]*)`", text)]
    for path in (folder / "recipes").glob("*/*.yaml"):
        found += re.findall(r"^# (llmkit [a-z].*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) > 20
    for line in found:
        words = shlex.split(re.sub(r"\{[^}]*\}|…", "X", line), comments=True)
        names = [name for name in COMMANDS if words[: len(name.split())] == name.split() and name != "llmkit"]
        assert names, line
        known = {option for each in COMMANDS[max(names, key=len)].params for option in each.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}, line
