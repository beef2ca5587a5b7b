"""The rows of one JSON document, one at a time: of a list, or of an object with one list of objects.

Holds one row in memory, and raises an error for a row above the limit. Does not know files, encodings, or which values
can be rows (`llmkit.data.rows`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from llmkit.errors import InputError

__all__ = ["JSON", "document_rows", "json_reason"]

_LIST_FIX = "give a JSON list of objects, or JSON Lines as .jsonl"
_BLANK = re.compile(r"[ \t\n\r]*+")
_LONGEST_TOKEN = 16
"""Characters at the end in which an error may come from an incomplete token other than a string."""

_EXPONENT = len("e-")
"""Characters after a number in which it may continue."""


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is Python's")


JSON = json.JSONDecoder(parse_constant=_no_json)


def json_reason(error: ValueError) -> str:
    """The reason of an error, without Python's advice on numbers of thousands of digits."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def document_rows(
    pieces: Iterator[str], name: str, limit: int, again: Callable[[], Iterator[str]] | None
) -> Iterator[tuple[Any, str]]:
    """Each item of the list in a document, and its text.

    Args:
        pieces: the document, in parts.
        name: its name in errors.
        limit: maximum length of an item in characters.
        again: opens the document again. With it, an object with several lists is refused before its first row;
            without it, when the second list begins.

    Raises:
        InputError: the document is not JSON or has no list of objects; partly when the iterator is asked for a row.
    """
    text = _Text(pieces, name, limit)
    if again is not None and text.peek() == "{":
        for _ in _only_list(text):
            pass
        text = _Text(again(), name, limit)
    yield from _only_list(text)


def _only_list(text: _Text) -> Iterator[tuple[Any, str]]:
    """The rows of a list, or of an object with one list, such as SQuAD's ``{"version": …, "data": […]}``."""
    keys: dict[str, None] = {}
    for key, value, content in _listed(text):
        keys[key] = None
        if len(keys) > 1:
            raise InputError(
                f"{text.name} holds an object with several lists of objects ({', '.join(keys)})",
                _LIST_FIX,
                code="unreadable_file",
            )
        yield value, content
    if text.peek():
        raise text.error("Extra data", text.position)


def _listed(text: _Text) -> Iterator[tuple[str, Any, str]]:
    """The key, value and text of each item of a list, and of each list of objects in an object."""
    if not (opening := text.peek()):
        return
    if opening == "[":
        for value, content in text.items():
            yield "", value, content
        return
    if opening != "{":
        text.value()
        raise InputError(f"{text.name} does not hold a list", _LIST_FIX, code="unreadable_file")
    keys, found = [], False
    for key in text.members():
        keys.append(key)
        if text.peek() != "[":
            text.value()
            continue
        wanted = None
        for value, content in text.items():
            wanted = isinstance(value, dict) if wanted is None else wanted
            if wanted:
                found = True
                yield key, value, content
    if not found:
        raise InputError(
            f"{text.name} holds an object with no list of objects ({', '.join(keys[:8])})",
            _LIST_FIX,
            code="unreadable_file",
        )


class _Text:
    """A document, of which only the part being parsed is in memory."""

    def __init__(self, pieces: Iterator[str], name: str, limit: int) -> None:
        self.name = name
        self.position = 0
        self._pieces, self._limit = pieces, limit
        self._held = ""
        self._lines = 1
        """Line number of the beginning of the buffer."""

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self.position = _BLANK.match(self._held, self.position).end()  # type: ignore[union-attr] # matches nothing
            if self.position < len(self._held) or not self._more():
                return self._held[self.position : self.position + 1]

    def items(self) -> Iterator[tuple[Any, str]]:
        """The items of the list that begins here, and their texts."""
        for _ in self._parts("]"):
            yield self.value()

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here; the caller parses each value before the next key."""
        for _ in self._parts("}"):
            if self.peek() != '"':
                raise self.error("Expecting property name enclosed in double quotes", self.position)
            key = self.value()[0]
            if self.peek() != ":":
                raise self.error("Expecting ':' delimiter", self.position)
            self.position += 1
            yield key

    def _parts(self, end: str) -> Iterator[None]:
        self.position += 1
        more = self.peek() != end
        while more:
            yield
            if (sign := self.peek()) not in (",", end):
                raise self.error("Expecting ',' delimiter", self.position)
            more = sign == ","
            self.position += more
        self.position += 1

    def value(self) -> tuple[Any, str]:
        """The value that begins here, and its text."""
        self.peek()
        while True:
            error = None
            try:
                value, end = JSON.raw_decode(self._held, self.position)
            except RecursionError as failure:
                raise InputError(f"{self.name} is nested too deeply", "flatten it", code="unreadable_file") from failure
            except json.JSONDecodeError as failure:
                error, end = failure, failure.pos
                if end + _LONGEST_TOKEN < len(self._held) and not error.msg.startswith("Unterminated"):
                    raise self.error(error.msg, end) from failure
            except ValueError as failure:
                raise InputError(
                    f"{self.name} is not JSON ({json_reason(failure)})", "fix the file", code="unreadable_file"
                ) from failure
            if error is None and end + _EXPONENT < len(self._held):
                break
            if len(self._held) - self.position > self._limit:
                raise InputError(f"{self.name}:{self._lines} has a row of more than {self._limit:,} bytes", "divide it")
            begun = self.position
            if not self._more():
                end -= begun
                if error is not None:
                    raise self.error(error.msg, end) from error
                break
        content = self._held[self.position : end]
        self.position = end
        return value, content

    def _more(self) -> bool:
        """Drop the parsed part and double the rest of the buffer, so that a long value is not parsed many times."""
        self._lines += self._held.count("\n", 0, self.position)
        parts = [self._held[self.position :]]
        self.position, held = 0, len(parts[0])
        wanted, size = 2 * held, held
        for piece in self._pieces:
            parts.append(piece)
            size += len(piece)
            if size > wanted:
                break
        self._held = "".join(parts)
        return size > held

    def error(self, reason: str, position: int) -> InputError:
        line = self._lines + self._held.count("\n", 0, position)
        return InputError(f"{self.name}:{line} is not JSON ({reason})", "fix the line", code="unreadable_file")
