"""Tools on texts take twice the time for twice the text, whatever is repeated in it."""

import contextlib
import time
from collections.abc import Callable

import pytest

from llmkit.errors import UsageError
from llmkit.text.detection import detect_language
from llmkit.text.markup import blocks
from llmkit.text.protected import protected, survives
from llmkit.text.sentences import pack, script_language, sentences

UNITS = [
    "@",
    "a@",
    "@a.",
    "\U0001f1eb\U0001f1f7",
    "\U0001f469\u200d",
    "\u0915\u094d",
    "a\u0301",
    "\u0301",
    "`",
    "``` ",
    "```",
]
UNITS += [
    "$a ",
    "\\(",
    "{{",
    "{% ",
    "<a ",
    "<a b=",
    "<!--",
    "](",
    "[a](",
    "[[",
    "(",
    "| ",
    "- ",
    "> ",
    "1. ",
    "%(",
    "&",
    "http://",
]
UNITS += ["a@b.", "www.", "<|", "***", "- -", "\t\n", "Mr. ", "\u3002", "\r", "\n \n"]


def _detect(text: str) -> None:
    with contextlib.suppress(UsageError):
        detect_language(text)


TOOLS: dict[str, Callable[[str], object]] = {
    "detect": _detect,
    "sentences": sentences,
    "pack": lambda text: pack([text], 50, len),
    "script": script_language,
    "blocks": blocks,
    "protected": protected,
    "survives": lambda text: survives(text, text),
}


def _seconds(tool: Callable[[str], object], text: str) -> float:
    begun = time.process_time()
    tool(text)
    return time.process_time() - begun


@pytest.mark.parametrize("name", TOOLS)
def test_repeats_take_linear_time(name: str) -> None:
    tool = TOOLS[name]
    tool("Good morning, my friend.")  # what is loaded once
    for unit in UNITS:
        text = f"Good morning {unit * (6000 // len(unit))} my friend"
        # Only where half the text takes long is the whole compared with it, so that no noise is measured.
        if (half := _seconds(tool, text)) > 0.1:
            assert _seconds(tool, text + text) < 3.2 * half, unit
