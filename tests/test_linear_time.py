"""Tools on texts take twice the time for twice the text, whatever is repeated in it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import random
import re
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import regex

from llmkit.data import column_names, conversations, flags, headers, json_documents, records, tables
from llmkit.data.text import decode_text
from llmkit.errors import LlmkitError
from llmkit.heads import reasoning
from llmkit.metrics import answers, rouge, words
from llmkit.metrics.translation import translation_metrics
from llmkit.models.families.reasoning_marks import MESSAGES
from llmkit.tasks import get_task, question_answering
from llmkit.text import answers as text_answers
from llmkit.text import sentences

SIZE = 3000
SIGNS = [*"@#|[](){}<>\"'`*_-=:;,.!?/\\%$&~+^ \t\n\raA10", *"\u3000\u3002\u8bed\u0e01\u0301\u200d\u2028\u0130\ud800"]
SIGNS += ["\U0001f469", "\U0001f1eb", "\U0001f1eb\U0001f1f7", "\U0001f469\u200d", "\u0915\u094d", "a\u0301", "\r\n"]
SIGNS += ["<think>", "</think>", "http://", "www.", "<!--", "```", "a@b.", "]( ", "$$", "\\(", "{{", "{% ", "<a b="]
SIGNS += ["a: b  \n", "# a\n", "to\n", "- a\n", "a=b\\\n", "<|", "x:y;", "|`a`", '"a" ', "a a ", "1. ", "1\n"]
ARGUMENTS: dict[str, Callable[[str], Any]] = {
    "among": lambda _: None,
    "budget": lambda _: 50,
    "context": lambda text: f"{text} my friend",
    "count": lambda _: len,
    "fix": lambda _: "fix it",
    "row": lambda text: {"text": text},
    "by_sentence": lambda _: True,
    "room": lambda _: 50,
    "starts": lambda _: (),
    "language": lambda _: "en",
    "kept": lambda text: [(at, at + 2) for at in range(0, len(text), 7)],
    "lines": lambda text: text.splitlines(keepends=True) or [text],
    "names": lambda _: ("text", "prompt"),
    "references": lambda text: [text],
    "taken": lambda _: (),
    "translation": lambda text: text,
}
"""What the tools want beside their text."""


def _modules() -> Iterator[ModuleType]:
    for name in ("llmkit.text", "llmkit.errors", "llmkit.log"):
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.iter_modules(getattr(package, "__path__", ())):
            yield importlib.import_module(f"{name}.{found.name}")
    yield from (answers, rouge, words, column_names)


def _public(module: ModuleType) -> Iterator[tuple[str, Callable[[str], object]]]:
    """The public functions of a module whose first argument is a text, or texts."""
    for name in getattr(module, "__all__", ()):
        tool = getattr(module, name)
        if not inspect.isfunction(tool) or tool.__module__ != module.__name__:
            continue
        parameters = list(inspect.signature(tool).parameters.values())
        first, others = parameters[0] if parameters else None, parameters[1:]
        if first is not None and first.annotation in ("str", "Sequence[str]", "Iterable[str]"):
            needed = [each.name for each in others if each.default is each.empty]
            yield name, _called(tool, first.name if first.annotation != "str" else "", needed)


def _called(tool: Callable[..., Any], several: str, needed: list[str]) -> Callable[[str], object]:
    def call(text: str) -> None:
        first = ARGUMENTS[several](text) if several in ARGUMENTS else [text] if several else text
        result = tool(first, **{name: ARGUMENTS[name](text) for name in needed})
        if isinstance(result, Iterator):
            list(result)

    return call


def _split_reply(splitter: reasoning.ReasoningSplitter, text: str) -> None:
    for at in range(0, len(text), 8):
        splitter.push(text[at : at + 8])
    splitter.flush()


def _records(text: str, suffix: str) -> None:
    lines = (records.Line(number, line, len(line)) for number, line in enumerate(text.splitlines(keepends=True), 1))
    list(tables.table_records(lines, "rows", suffix, records.Layout(named=frozenset())))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


OTHERS: dict[str, tuple[ModuleType, Callable[[str], object]]] = {
    "reply": (reasoning, lambda text: _split_reply(reasoning.TagSplitter(), text)),
    "messages": (reasoning, lambda text: _split_reply(reasoning._ParsedSplitter("", MESSAGES, ()), text)),
    "template": (reasoning, lambda text: reasoning._pairs([text], text)),
    "answer": (question_answering, lambda text: get_task("question-answering").parse(text)),
    "answers": (text_answers, text_answers.to_answers),
    "header": (headers, lambda text: headers.find_header([text.split("a"), text.split("a")[::-1]], (), "rows")),
    "csv": (tables, lambda text: _records(text, ".csv")),
    "tsv": (tables, lambda text: _records(text, ".tsv")),
    "json": (json_documents, lambda text: list(json_documents.document_rows(iter([text]), "rows", 10**6, None))),
    "flags": (flags, lambda text: flags.refuse_preferences({text: text}, (), get_task("dialogue"))),
    "turns": (conversations, lambda text: conversations.turn_columns({text: text})),
    "bytes": (records, lambda text: decode_text(_bytes(text), "rows")),
    "bleu": (words, lambda text: translation_metrics("en", [[text]])[0].statistics([text], [[text]])),
    "bleu, Chinese": (words, lambda text: translation_metrics("zh", [[text]])[0].statistics([text], [[text]])),
    "pack by bytes": (sentences, lambda text: sentences.pack([text], 50, lambda part: len(_bytes(part)))),
}
TOOLS = {f"{each.__name__}.{name}": (each, tool) for each in _modules() for name, tool in _public(each)} | OTHERS


def _units(module: ModuleType) -> Iterator[str]:
    """Signs, those that the regular expressions of a module are made of, and some of them together."""
    found = (each.pattern for each in vars(module).values() if isinstance(each, re.Pattern | regex.Pattern))
    signs = [*SIGNS, *sorted({sign for pattern in found for sign in pattern} - set(SIGNS))[:100]]
    yield from signs
    draw = random.Random(0)
    yield from ("".join(draw.choices(signs, k=draw.randint(2, 5))) for _ in range(20))


def _seconds(tool: Callable[[str], object], text: str) -> float:
    begun = time.process_time()
    with contextlib.suppress(LlmkitError):
        tool(text)
    return time.process_time() - begun


def test_there_are_tools() -> None:
    assert len(TOOLS) > 30
    assert {"llmkit.text.markup.blocks", "llmkit.metrics.rouge.rouge"} <= TOOLS.keys()


@pytest.mark.parametrize("name", TOOLS)
def test_repeats_take_linear_time(name: str) -> None:
    module, tool = TOOLS[name]
    _seconds(tool, "Good morning, my friend.")  # what is loaded once
    for unit in _units(module):
        text = f"Good morning {unit * (SIZE // len(unit))} my friend"
        # Only where half the text takes long is the whole compared with it, so that no noise is measured.
        if _seconds(tool, text) > 0.04:
            half = min(_seconds(tool, text) for _ in range(3))
            assert half < 0.04 or min(_seconds(tool, text + text) for _ in range(3)) < 3 * half, unit
