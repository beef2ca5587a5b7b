"""Streaming decoder from token ids to text: no partial characters, no stop string and no beginning of one.

A special token, which decoding drops, is represented by a private use character if a stop string contains it.

Knows a tokenizer's ``decode`` and the artefacts it adds to texts; nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

__all__ = ["EDGE", "StopScanner", "Stops", "TextStream", "readable_token"]

EDGE = "\ufdd0"
"""Delimits a special token's text in a stream, to distinguish it from the same letters in ordinary text. A
noncharacter, which Unicode reserves for internal use."""
_PRIVATE = 0xF0000


@dataclass(frozen=True)
class Stops:
    """Compiled stop strings."""

    texts: tuple[str, ...]
    marks: dict[int, str] = field(default_factory=dict)
    """The special tokens in them, each with its private use character."""

    @classmethod
    def of(cls, tokenizer: Any, texts: Sequence[str], shown: Mapping[int, str]) -> Stops:
        """Compile the caller's stop strings; ``shown`` as for `TextStream`."""
        marks: dict[int, str] = {}
        if texts:
            special = dict(zip(tokenizer.all_special_ids, map(str, tokenizer.all_special_tokens), strict=True))
            special |= {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
            for token, name in sorted(special.items(), key=lambda item: -len(item[1])):
                if name and any(name in text for text in texts):
                    marks[token] = chr(_PRIVATE + len(marks))
                    spelled = marks[token] + (f"{EDGE}{shown[token]}{EDGE}" if token in shown else "")
                    texts = [text.replace(name, spelled) for text in texts]
        return cls(tuple(texts), marks)

    def shown(self, text: str) -> str:
        """Text without the private use characters for special tokens."""
        return text.translate({ord(mark): None for mark in self.marks.values()}) if self.marks else text


class TextStream:
    """Decodes one row token by token; the joined pieces equal the decoding of all tokens at once.

    A piece is held back while it ends in a partial character. Each step decodes only a few tokens: the last piece's
    tokens again, because many tokenizers drop the space in front of a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        continues: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        """``shown`` are special tokens that are not skipped, with their text, which is emitted between two `EDGE`."""
        self.tokenizer = tokenizer
        self._shown = shown or {}
        self._skip_special_tokens = skip_special_tokens
        self._corrections = _corrections(tokenizer)
        self._ids = list(continues)
        self._start, self._end = 0, len(self._ids)

    def _decode(self, start: int, end: int | None) -> str:
        text = str(self.tokenizer.decode(self._ids[start:end], skip_special_tokens=self._skip_special_tokens))
        for pattern, replacement in self._corrections:
            text = pattern.sub(replacement, text)
        return text

    def push(self, token: int) -> str:
        """Add a token; returns the text that has become final."""
        if token in self._shown:
            text = self.flush()
            self._ids, self._start, self._end = [], 0, 0
            return f"{text}{EDGE}{self._shown[token]}{EDGE}"
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """The text still held back."""
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        known = self._decode(self._start, self._end)
        text = self._decode(self._start, None)
        if len(text) <= len(known) or (text.endswith("\ufffd") and not final):
            return ""
        self._start, self._end = self._end, len(self._ids)
        return text[len(known) :]


_CHINESE = "\u3001-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff65\U00020000-\U0002fa1f"
_BLANK = re.compile(f"(?<=[{_CHINESE}]) | (?=[{_CHINESE}])|(?<=[—…]) (?=[—…])")
_LINE_BREAK = re.compile("<n> ?")


def _corrections(tokenizer: Any) -> list[tuple[re.Pattern[str], str]]:
    """Replacements in decoded texts that undo what a tokenizer changes in a text."""
    corrections = []
    # WordPiece makes a word of each Chinese character, and decoding puts spaces between words.
    if " " in tokenizer.convert_tokens_to_string(tokenizer.tokenize("好公")).strip():
        corrections.append((_BLANK, ""))
    # Pegasus has a token for a line break, and tokenizes one as a space.
    loses_line_breaks = "\n" not in tokenizer.convert_tokens_to_string(tokenizer.tokenize("a\na"))
    if loses_line_breaks and tokenizer.convert_tokens_to_ids("<n>") not in (None, tokenizer.unk_token_id):
        corrections.append((_LINE_BREAK, "\n"))
    return corrections


class StopScanner:
    """Finds stop strings in text that arrives in pieces, and never emits the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.held = ""
        """Held back text that may be the beginning of a stop string."""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns the text that can be emitted. Once `found`, nothing more is emitted."""
        if not self.stop:
            return text
        self.held += text
        hits = [at for at in (self.held.find(stop) for stop in self.stop) if at >= 0]
        if hits:
            self.found = True
            shown, self.held = self.held[: min(hits)], ""
            return shown
        keep = max((n for stop in self.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        split = len(self.held) - keep
        shown, self.held = self.held[:split], self.held[split:]
        return shown

    def flush(self) -> str:
        """The text still held back, after the text ended without a stop string."""
        held, self.held = self.held, ""
        return held


@cache
def _byte_of() -> dict[str, int]:
    """The inverse of GPT-2's ``bytes_to_unicode``: from the printable characters of byte-level BPE to bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def readable_token(tokenizer: Any, token_id: int, continues: Sequence[int] = ()) -> str:
    """What a token adds to a text that ends with other tokens; bytes of a partial character as ``<E5 A4>``.

    Knows how byte-level and byte-fallback vocabularies represent the bytes of a character that spans several tokens.
    """
    stream = TextStream(tokenizer, continues, skip_special_tokens=False)
    text = stream.push(token_id) or stream.flush()
    if text and "\ufffd" not in text:
        return text
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return f"<{match[1]}>"
    # Without text, the token completes a character whose first bytes came before.
    if (not text or "\ufffd" in text) and token and all(character in _byte_of() for character in token):
        return f"<{bytes(_byte_of()[character] for character in token).hex(' ').upper()}>"
    return text or token
