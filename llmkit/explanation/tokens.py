"""Tokens as readable text, for tables and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from llmkit.heads.text_stream import readable_token

__all__ = ["readable_tokens", "shown_token"]

_BYTES = re.compile(r"<((?:[0-9A-F]{2} ?)+)>")
_CONTEXT_FOR_DECODING = 8


def readable_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens of a text, each as it continues the tokens before it.

    Of a character that consists of several tokens, each shows the character and which part of it is meant: ``今 1/2``.
    """
    texts = [
        readable_token(tokenizer, token, ids[max(0, place - _CONTEXT_FOR_DECODING) : place])
        for place, token in enumerate(ids)
    ]
    found: list[str] = []
    for is_bytes, group in groupby(texts, lambda text: _BYTES.fullmatch(text) is not None):
        run = list(group)
        found += _parts(run) if is_bytes else run
    return tuple(found)


def _parts(texts: Sequence[str]) -> Iterator[str]:
    """Tokens of bytes, as parts of the characters that they form."""
    waiting: list[str] = []
    content = b""
    for text in texts:
        waiting.append(text)
        content += bytes.fromhex(text[1:-1])
        try:
            character = content.decode()
        except UnicodeDecodeError:
            continue
        count = len(waiting)
        yield from (f"{character} {number}/{count}" if count > 1 else character for number in range(1, count + 1))
        waiting, content = [], b""
    yield from waiting


def shown_token(text: str) -> str:
    """A token as visible text: spaces at its ends as ``·``, line breaks as ``⏎``, tabs as ``⇥``."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    return "·" * left + inner + "·" * (len(text) - left - len(inner))
