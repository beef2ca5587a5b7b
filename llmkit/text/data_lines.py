"""The values in data files: JSON, YAML and key-value lines, whose keys stay unchanged when a document is translated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from llmkit.text.protected import Block

__all__ = ["INDENT", "DataReader", "trimmed", "unescaped"]

INDENT = re.compile(r"[^\S\r\n]*")
_PAIR = re.compile(
    r"""[ \t]*(?:(?:export[ \t]+)?[\w.$-]+[ \t]*=[ \t]*|(?P<key>["'])(?:[^"'\\\r\n]|\\.)*(?P=key)[ \t]*[=:][ \t]*"""
    r"""|(?=[\w$]*[._-])[\w.$-]++[ \t]*:[ \t]+|(?="))(?P<quote>["']?)"""
)
_PAIR_END = re.compile(r"""["']?[;,]*\s*\\?\s*\Z""")
_NO_PAIR = re.compile(r"[ \t]*(?:\[[^\]\r\n]*\]|[#;!].*|//.*|/\*.*\*/|[{}\[\](),;]*)\s*\Z")
_CONTINUES = re.compile(r"(?<!\\)(?:\\\\)*\\\s*\Z")
"""The end of a line whose value continues on the next."""
_MAPPING = re.compile(r"""(?P<indent>[ \t]*)(?:- +)?[a-z_][\w.-]*:(?:[ \t]+(?P<quote>["']?)(?=\S)|(?P<alone>\s*\Z))""")
_MEMBER = re.compile(r"""[ \t]*- +(?P<quote>["']?)|[ \t]*#.*\s*\Z|(?:---|\.\.\.)\s*\Z""")
"""Lines of YAML other than keys: list items, comments, document markers."""
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?')
_ESCAPE = re.compile(r"(?:\\[Nnrt])+")
"""Escaped line breaks and tabs."""
_NO_WORDS = re.compile(r"(?:true|false|null|none|yes|no|on|off|\S*[/\\@]\S*)\Z", re.IGNORECASE)


class DataReader:
    """Parses the lines of data formats; the other lines are up to a subclass."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.at = 0
        self.paragraph: list[str] = []
        """The lines of the open paragraph, within which no data begins."""
        self.no_mapping = self.no_pairs = 0
        """Line numbers before which no mapping or key-value lines can begin, since another line follows first."""

    def to_blank(self) -> int:
        """How many lines precede the next blank line."""
        rest = range(self.at, len(self.lines))
        return next((at for at in rest if not self.lines[at].strip()), len(self.lines)) - self.at

    def json(self) -> int:
        """How many of the next lines are JSON: the rest of the document, or this one."""
        if self.paragraph or not self.lines[self.at].lstrip().startswith(("{", "[")):
            return 0
        if self.at == 0 and _is_json("".join(self.lines)):
            return len(self.lines)
        return 1 if _is_json(self.lines[self.at]) else 0

    def strings(self, number: int) -> Iterator[Block]:
        """The string values of JSON, without the keys."""
        text, at = "".join(self.lines[self.at : self.at + number]), 0
        for string in _JSON_STRING.finditer(text):
            if string[2] is None and not _NO_WORDS.match(string[1]):
                yield Block(text[at : string.start(1)], translate=False)
                yield from unescaped(string[1], '"')
                at = string.end(1)
        yield Block(text[at:], translate=False)
        self.at += number

    def mapping(self) -> int:
        """How many of the next lines are YAML, up to a blank line: keys with values, and list items."""
        if self.paragraph or self.at < self.no_mapping or not _MAPPING.match(self.lines[self.at]):
            return 0
        keys, end = 0, self.at + self.to_blank()
        for at in range(self.at, end):
            key = _MAPPING.match(self.lines[at])
            keys += key is not None
            if not key and not _MEMBER.match(self.lines[at]):
                self.no_mapping = at
                return 0
        return end - self.at if keys > 1 else 0

    def members(self, number: int) -> Iterator[Block]:
        """The values of YAML lines."""
        for line in self.lines[self.at : self.at + number]:
            yield from _value(line, _MAPPING.match(line) or _MEMBER.match(line), doubled="'")
        self.at += number

    def pairs(self) -> int:
        """How many of the next lines are key-value lines or their continuation; 0 if fewer than two are."""
        if self.paragraph or self.at < self.no_pairs:
            return 0
        found, at = 0, self.at
        continued = False
        while at < len(self.lines) and (line := self.lines[at]).strip():
            pair = not continued and bool(_PAIR.match(line))
            if not pair and not continued and not _NO_PAIR.match(line):
                self.no_pairs = at
                return 0
            continued = (pair or continued) and bool(_CONTINUES.search(line))
            at, found = at + 1, found + pair
        if not found:
            self.no_pairs = at
        number = at - self.at
        return number if found > 1 or (found and number > 1) else 0

    def values(self, number: int) -> Iterator[Block]:
        """The values of key-value lines."""
        continued = False
        for line in self.lines[self.at : self.at + number]:
            pair = INDENT.match(line) if continued else None if _NO_PAIR.match(line) else _PAIR.match(line)
            yield from _value(line, pair)
            continued = pair is not None and bool(_CONTINUES.search(line))
        self.at += number


def _value(line: str, key: re.Match[str] | None, *, doubled: str = "") -> Iterator[Block]:
    """A line whose value after the key is translated; ``doubled``: the quotation mark that YAML escapes by doubling."""
    end = _PAIR_END.search(line, key.end()) if key else None
    value = line[key.end() : end.start()] if key and end else ""
    if not key or not end or _NO_WORDS.match(value):
        yield Block(line, translate=False)
        return
    mark = quote if (quote := key.groupdict().get("quote")) and line.startswith(quote, end.start()) else ""
    yield Block(line[: key.end()], translate=False)
    yield from unescaped(value, mark, doubled=bool(mark) and mark == doubled)
    yield Block(line[end.start() :], translate=False)


def unescaped(text: str, mark: str = "", *, doubled: bool = False) -> Iterator[Block]:
    """The parts of a value between escaped line breaks, with the escape of its quotation mark."""
    written = (mark * 2 if doubled else f"\\{mark}") if mark else ""
    ends = [(found.start(), found.end()) for found in _ESCAPE.finditer(text)]
    for start, end in zip([0, *(end for _, end in ends)], [*ends, (len(text), len(text))], strict=True):
        for block in trimmed(text[start : end[0]]):
            yield replace(block, mark=mark, written=written) if block.translate else block
        yield Block(text[end[0] : end[1]], translate=False)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def trimmed(text: str, rest: str = "", *, cue: bool = False, plain: str = "") -> Iterator[Block]:
    """A text to translate, with surrounding whitespace and a ``rest`` as separate blocks that are kept."""
    start = len(text) - len(text.lstrip())
    end = max(len(text.rstrip()), start)
    if end < len(text) and text[start:end].endswith("\\"):  # Markdown for a hard line break
        end = max(len(text[: end - 1].rstrip()), start)
    yield Block(text[:start], translate=False)
    yield Block(text[start:end], translate=True, cue=cue, unquoted=plain[start:end])
    yield Block(text[end:] + rest, translate=False)
