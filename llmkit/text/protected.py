"""Spans that translation must not change: code, web addresses, tags, TeX, placeholders of format strings.

They are recognized by their form alone. Lines and paragraphs are parsed in `llmkit.text.markup`.
Uses `regex`: possessive groups of `re` match too little before Python 3.11.5.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass

import regex as re

__all__ = ["Block", "around", "code_spans", "protected", "survives"]


@dataclass(frozen=True)
class Block:
    text: str
    translate: bool
    cue: bool = False
    """Whether it is a subtitle cue: a sentence may span its lines, and the number of lines must stay the same."""
    unquoted: str = ""
    """The text with spaces in place of the markers (``> ``) at the start of all lines but the first."""
    mark: str = ""
    """The quotation mark that encloses it in the file."""
    written: str = ""
    """How the file escapes that quotation mark within the text."""


_CJK = r"\u2e80-\u303f\u3040-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"
# An address in Chinese text ends at the first Chinese character, unless that is part of its path: /wiki/北京.
_ADDRESS = rf"""(?:[^\s<>"`\\^|{_CJK}“”‘’«»…]|(?<=[/=_#%-])[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+)++"""
_CONVERSION = r"(?:\d+\$)?[-+#0]*+(?:\d++|\*)?(?:\.(?:\d++|\*))?(?:hh|h|ll|l|L|z|j|t)?[diouxXeEfFgGcrsaA@]"
_SPANS = re.compile(
    "|".join(
        [
            r"(?P<columns>(?<=\S)(?:\t[ \t]*| {4,}\t?)(?=\S)|[._]{5,})",
            r"(?P<comment><!--(?:(?!<!--|-->).)*+-->)",
            r"(?P<special><[|｜][^|｜<>\n]{1,64}[|｜]>)",
            r"(?P<stamp><\d{1,3}:\d{2}(?:[:.]\d{1,3}){0,2}>)",
            r"(?P<voice></?(?:v|c|lang|ruby|rt)(?:[.\s][^<>\n]*)?>)",
            r"(?P<override>\{\\[^{}\n]*\})",
            r"(?P<autolink><(?:[A-Za-z][A-Za-z0-9+.-]+:|[\w.+-]+@)[^<>\s]*>)",
            r"""(?P<tag></?[A-Za-z][\w:.-]*+(?:\s++[\w:@.-]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>=`]++))?+)*+\s*+/?>)""",
            r"""(?P<target>\]\(\s*+(?:<[^<>\n]*>|(?:[^\s()\\]|\\.|\([^\s()]*\))*+)"""
            r"""(?:\s+(?:"[^"\n]*"|'[^'\n]*'|\([^()\n]*\)))?\s*\))""",
            r"(?P<reference>\]\[[^\[\]\n]{1,100}\])",
            r"(?P<footnote>\[\^[^\[\]\s]{1,100}\])",
            rf"(?P<url>(?<![A-Za-z0-9])(?i:(?:https?|ftp)://|mailto:|www\.){_ADDRESS})",
            r"(?P<mail>(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?:[A-Za-z0-9-]++\.)+[A-Za-z]{2,})",
            r"(?P<braces>\{\{[^{}\n]{0,200}\}\}|\{%[^%\n]{0,200}%\}|\$\{[^{}\n]{0,200}\})",
            r"(?P<field>\{[\w.\[\]-]*+(?:![rsa])?(?::[^{}\s]{0,30})?\})",
            rf"(?P<named>%\(\w{{1,100}}\){_CONVERSION})",
            # "50% sure", "50 %de": a number before the sign makes it a percentage. "%sure" is not a placeholder either.
            rf"(?P<percent>(?<![\d%])(?<!\d\s)%{_CONVERSION}(?![A-Za-z]{{3}}))",
            r"(?P<entity>&(?:\#\d{1,7}|\#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)",
            r"(?P<display>\$\$(?:(?!\$\$).)+\$\$)",
            r"(?P<tex>\\\((?:(?!\\[()]).)+\\\)|\\\[(?:(?!\\[\[\]]).)+\\\])",
            r"(?P<math>(?<![\\$A-Za-z0-9])\$(?![\s$])[^$\n]{1,300}(?<![\s\\])\$(?![A-Za-z0-9]))",
            r"(?P<variable>(?<![\\A-Za-z0-9_$])\$[A-Za-z_][A-Za-z0-9_]*)",
        ]
    ),
    re.DOTALL,
)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_TICKS = re.compile(r"`+")
_OPERATOR = re.compile(r"[\\^_=<>]")
_WORD = re.compile(r"[^\W\d_]{2}")


def protected(text: str) -> list[tuple[int, int]]:
    """The spans of a block that must stay unchanged: code, addresses, tags, formulas, placeholders."""
    code = code_spans(text)
    starts = [start for start, _ in code]
    spans = list(code)
    at = 0
    while found := _SPANS.search(text, at):
        start, end = found.start(), _extent(found)
        before = bisect_right(starts, start)
        if before and start < code[before - 1][1]:
            at = code[before - 1][1]
        elif end <= start or (before < len(code) and starts[before] < end):  # inline code takes precedence
            at = start + 1
        else:
            spans.append((start, end))
            at = end
    return sorted(spans)


def _extent(found: re.Match[str]) -> int:
    """Where the span of a match ends; the start of the match if it is not a protected span after all."""
    start: int = found.start()
    end: int = found.end()
    kind = found.lastgroup
    if kind == "url":
        return _url_end(found[0]) + start
    if kind == "math":
        inner = found[0][1:-1]
        # "$5, or 6$ at the door": several words without an operator are not a formula; a single word may be.
        formula = _OPERATOR.search(inner) or not _WORD.search(inner) or len(inner.split()) == 1
        return end if formula else start
    return end


def _url_end(url: str) -> int:
    """Where an address ends once trailing punctuation of the sentence is removed."""
    end = len(url)
    count = Counter(url)
    while end:
        char = url[end - 1]
        opening = _PAIRS.get(char)
        if not (char in ".,;:!?'*" or (opening and count[opening] < count[char])):
            break
        count[char] -= 1
        end -= 1
    scheme = re.match(r"(?:https?|ftp)://|mailto:|www\.", url, re.IGNORECASE)
    return end if scheme and end > scheme.end() else 0


def code_spans(text: str) -> list[tuple[int, int]]:
    """The spans of inline code: from a run of backticks to the next run of the same length."""
    runs = [(tick.start(), tick.end()) for tick in _TICKS.finditer(text)]
    later: dict[int, list[int]] = {}
    for number in range(len(runs) - 1, -1, -1):
        later.setdefault(runs[number][1] - runs[number][0], []).append(number)
    spans, number = [], 0
    while number < len(runs):
        same = later[runs[number][1] - runs[number][0]]
        while same and same[-1] <= number:
            same.pop()
        if same and (runs[number][0] == 0 or text[runs[number][0] - 1] != "\\"):
            spans.append((runs[number][0], runs[same[-1]][1]))
            number = same[-1]
        number += 1
    return spans


def around(text: str) -> list[Block]:
    """Split a block at its protected spans; text with letters between them is translated, without outer whitespace."""
    divided: list[Block] = []
    place = 0
    for start, end in [*protected(text), (len(text), len(text))]:
        between = text[place:start]
        if any(char.isalpha() for char in between):
            left = len(between) - len(between.lstrip())
            right = len(between.rstrip())
            divided.append(Block(between[:left], translate=False))
            divided.append(Block(between[left:right], translate=True))
            divided.append(Block(between[right:], translate=False))
        else:
            divided.append(Block(between, translate=False))
        divided.append(Block(text[start:end], translate=False))
        place = end
    return [block for block in divided if block.text]


def survives(source: str, translation: str) -> bool:
    """Whether the translation has every protected string of the source, at least as often, and no new ones."""
    wanted = Counter(source[start:end] for start, end in protected(source))
    spans = protected(translation)
    found = Counter(translation[start:end] for start, end in spans)
    if found.keys() - wanted.keys():
        return False
    # A string may be present without being recognized, such as "%s" after a number: search for it between the spans,
    # longest first, since the "{a}" within "{{a}}" is not an occurrence of its own.
    edges = [0, *(edge for span in spans for edge in span), len(translation)]
    rest = "\0".join(translation[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    for span in sorted(wanted - found, key=len, reverse=True):
        parts = rest.split(span)
        if len(parts) - 1 + found[span] < wanted[span]:
            return False
        rest = "\0".join(parts)
    return True
