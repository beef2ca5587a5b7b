"""Which line breaks of a paragraph are intentional, and which come from hard wrapping.

Distinguishes wrapped prose from lists, menus, verse and logs by the shape of the lines alone: their width, and how
they begin and end. Independent of language, model, and markup other than list markers.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

from llmkit.text.scripts import is_unspaced

__all__ = ["meant_breaks", "spread", "unwrap"]

_MARKED = re.compile(
    r"[^\S\n]*(?:(?:#{1,6}|\[[ xX✓✗]?\]|[-*+•‣◦·▪●○■□◆◇★☆→✓✔✗]|\(?\d{1,3}[.)]|\(?[A-Za-z]\))[^\S\n]"
    r"|[（(]?[一二三四五六七八九十\d]{1,3}[）、]|[①-⑳])"
)
_HEADING = re.compile(r"[^\S\n]{0,3}#{1,6}[^\S\n]")
_DASH = re.compile(r"[–—―‒]\s*")  # a change of speaker
_PAIR = re.compile(r"""["']?[\w.$-]+["']?[^\S\n]*=(?!=)""")
_NAMED = re.compile(r"""["']?[^\W\d][\w .'/-]{0,30}["']?[^\S\n]*[:：](?:\s|$|(?=[^\x00-\u2e7f]))""")
_SECTION = re.compile(r"\[[^\]\n]*\]\s*\Z")
_STAMP = re.compile(r"(?P<bracket>[\[(<])?(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2})")
_GAP = re.compile(r"\t|\S {3,}\S")  # between columns
_FLAG = re.compile(r"--?[A-Za-z]")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_LINE_BREAK = re.compile(r"<br\s*/?>\Z", re.IGNORECASE)
_CODE_END = (";", "{", "}")
_TERMINAL = tuple(".!?…。！？؟।۔")
_OPEN_END = (*_TERMINAL, *":;,")
_CLOSING = "\"'”’»)]」』）】"
_STOP_INSIDE = re.compile(r"[.!?…][\"'”’»)\]]*\s+\S|[。！？][」』”’）]*\S")
_CLAUSE_INSIDE = re.compile(r"[,;]\s+\w|[，、；]")

_NARROW = 40
"""In terminal cells. Prose is rarely wrapped at a smaller width; in lists rarely all lines are longer."""
_NARROWEST = 30
"""In terminal cells. In narrower paragraphs a full line does not mean that the break is a wrap."""
_SHORT_WORD = 3
"""Letters. In prose, a line ending in such a short lowercase word ("to", "and", "der") continues on the next."""
_SLACK = 10
"""Lines of prose may be shorter than the width by this fraction of it: some editors balance line lengths."""
_UNSPACED_SLACK = 4
"""Cells by which a full line may be short in scripts without spaces, where punctuation cannot begin a line."""


def meant_breaks(lines: Sequence[str]) -> list[bool]:
    """For each line of a paragraph but the last, whether the break after it is intentional."""
    return _Paragraph(lines).meant() if len(lines) > 1 else []


class _Paragraph:
    """Consecutive lines without a blank line between them."""

    def __init__(self, raw: Sequence[str]) -> None:
        lines = [_TAG.sub("", line).strip() or line.strip() for line in raw]
        self.lines, self.raw = lines, raw
        self.width = max(map(_cells, lines))
        ends = [_ends(line) for line in lines]
        self.stops = any(_STOP_INSIDE.search(line) for line in lines)
        self.clauses = any(_CLAUSE_INSIDE.search(line) for line in lines)
        lower = [_case(line) == "lower" for line in lines]
        self.slack = self.width // _SLACK if self.stops or any(lower[1:]) else 0
        self.prose = ends[-1] or self.stops or any(lower[1:])
        plain = self.width < _NARROW and not self.stops and not any(ends)
        self.list = plain and (len(lines) > 2 or (all(lower) and raw[1][:1].strip() != ""))
        self.verse = (
            len(lines) > 2
            and all(_case(line) == "upper" for line in lines)
            and not all(self.full(a, b) for a, b in pairwise(lines))
        )

    def meant(self) -> list[bool]:
        """For each line break, whether it is intentional."""
        found, item = [], False
        for place, (line, following) in enumerate(pairwise(self.lines)):
            item = item or bool(_MARKED.match(self.raw[place]))
            if _MARKED.match(self.raw[place + 1]) or _HEADING.match(self.raw[place]):
                found.append(True)
                item = False
            elif _own(self.raw[place].strip(), self.raw[place + 1].strip()):
                found.append(True)
            elif item and _case(following) == "lower":
                found.append(False)
            else:
                title = place == 0 and self.title(line, following)
                found.append(self.list or self.verse or title or self.ended(line, following))
        return found

    def ended(self, line: str, following: str) -> bool:
        """Whether a break is intentional, judging by its two lines alone."""
        if _case(following) == "lower":
            return False
        if _ends(line):  # a sentence ends here in any case
            return not self.full(line, following)
        full = self.full(line, following, self.slack)
        word = line.split()[-1] if line.split() else ""
        continues = len(word) <= _SHORT_WORD and word.isalpha() and word.islower()
        if continues and (self.stops or self.clauses):
            return False
        return not (full and self.prose and self.width >= _NARROWEST)

    def full(self, line: str, following: str, slack: int = 0) -> bool:
        """Whether the first word of the next line would not have fitted on this line."""
        if following and is_unspaced(following[0]):
            return _cells(line) + _UNSPACED_SLACK > self.width
        word = following.split(maxsplit=1)[0] if following else ""
        return _cells(line) + 1 + _cells(word) > self.width - slack

    def title(self, line: str, following: str) -> bool:
        """Whether the first line is a title, such as "Chapter 1" above prose, but not "I gave it to" above "Mary"."""
        words = line.split()
        ends = bool(words) and not words[-1][0].islower() and not line.endswith(_OPEN_END)
        return ends and _case(line) == _case(following) == "upper" and 2 * _cells(line) < self.width


def _own(line: str, following: str) -> bool:
    """Whether the next line begins like a separate line: with a key, a time, a dialogue dash or a symbol."""
    if _PAIR.match(following) or _SECTION.match(line) or _SECTION.match(following):
        return True
    if _NAMED.match(following) and (_case(following) != "lower" or _NAMED.match(line)):
        return True
    if (stamp := _STAMP.match(following)) and (stamp["bracket"] or _STAMP.match(line)):
        return True
    if (dash := _DASH.match(following)) and _case(following[dash.end() :]) != "lower":
        return True
    if (_GAP.search(line) and _GAP.search(following)) or (_FLAG.match(line) and _FLAG.match(following)):
        return True
    if _LINE_BREAK.search(line):
        return True
    if line.endswith(">") and following.startswith("<"):  # one element per line
        return True
    if line.endswith(_CODE_END) and following.endswith(_CODE_END):
        return True
    first = following[:1]
    symbol = unicodedata.category(first)[0] == "S" if first else False
    return first in ("@", "|", "\\", "~") or (symbol and not following[1:2].isdigit() and first not in "<`^")


def _ends(line: str) -> bool:
    """Whether a line ends a sentence."""
    return line.rstrip(_CLOSING).endswith(_TERMINAL)


def _case(line: str) -> str:
    """The case of the first letter: ``upper`` or ``lower``; ``none`` if it has no case or a digit precedes it."""
    first = next((char for char in line if char.isalnum()), "")
    return "upper" if first.isupper() else "lower" if first.islower() else "none"


def _cells(line: str) -> int:
    """The width of a line in terminal cells: wide East Asian characters take two."""
    if line.isascii():
        return len(line)
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def spread(text: str, lines: Sequence[str], kept: Sequence[tuple[int, int]]) -> list[str]:
    """Break a text into lines with the proportions of ``lines``; into fewer if it has too few words.

    Args:
        kept: spans ``[start, end)`` that must not be broken, in order.
    """
    starts = [start for start, _ in kept]
    places = [
        place
        for place in range(1, len(text))
        if (text[place].isspace() or (is_unspaced(text[place - 1]) and is_unspaced(text[place])))
        and not ((before := bisect_left(starts, place)) and place < kept[before - 1][1])
    ]
    total, done, cuts = sum(map(len, lines)), 0, [0]
    for line in lines[:-1]:
        done += len(line)
        target = len(text) * done / max(total, 1)
        low = bisect_right(places, cuts[-1])
        at = bisect_left(places, target, low)
        if near := places[max(low, at - 1) : at + 1]:
            cuts.append(min(near, key=lambda place: abs(place - target)))
    return [part for start, end in pairwise([*cuts, len(text)]) if (part := text[start:end].strip())]


_JOINING = frozenset(("and", "or", "to", "und", "oder", "bzw.", "en", "of", "och", "og", "eller"))
"""Words that follow a suspended hyphen, as in "Ein- und Ausgabe"."""


def unwrap(text: str) -> str:
    """Join lines by a space, or by nothing between characters of scripts without spaces."""
    lines = [line.strip() for line in text.splitlines()]
    joined = lines[0] if lines else ""
    for line in filter(None, lines[1:]):
        unspaced = is_unspaced(joined[-1:]) and is_unspaced(line[0])
        joined += line if unspaced or _is_divided(joined, line) else f" {line}"
    return joined


def _is_divided(line: str, following: str) -> bool:
    """Whether a word is hyphenated across two lines: "govern-", "ment"; not "Ein-", "und Ausgabe"."""
    word = following.split(maxsplit=1)[0]
    return len(line) > 1 and line[-1] == "-" and line[-2].isalpha() and word[0].islower() and word not in _JOINING
