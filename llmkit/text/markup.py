"""The blocks of a document: which are translated, and which stay unchanged.

Recognizes Markdown, HTML, subtitles (SRT, WebVTT, ASS), lyrics with times, and the data formats of
`llmkit.text.data_lines`, by the form of their lines. Plain text passes through as paragraphs; in doubt a text is
translated. Protected spans within a block are found by `llmkit.text.protected`. Independent of language and model.
Joined, the blocks are the text again. markdown-it-py is not used: CommonMark takes indented prose for code and text
between two tags for HTML, which would stay untranslated, and does not know the other formats, which may occur in the
same text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice

from llmkit.text.data_lines import INDENT, DataReader, trimmed, unescaped
from llmkit.text.protected import Block, around, code_spans

__all__ = ["blocks", "is_catalog"]


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_RULE = re.compile(r" {0,3}(?:([-*_])(?:[ \t]*\1){2,}|=+|-+)\s*\Z")
_FRONT = re.compile(r"(---|\+\+\+)[ \t]*\Z")
_KEY = re.compile(r"""["']?[\w.-]+["']?\s*[:=]|\[|#|- """)
_FENCE = re.compile(r"(`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_TAGS_ONLY = re.compile(r"\s*(?:</?[A-Za-z!][^<>]*>\s*)+\Z")
_VERBATIM = re.compile(r"<(pre|script|style|textarea)(?:\s[^<>]*)?>", re.IGNORECASE)
_REFERENCE = re.compile(
    r"""[ ]{0,3}\[[^\]\n]+\]:\s+(?:<[^>\n]*>|(?:[a-z][a-z0-9+.-]*:|[./#]|www\.)\S+|\S*[/]\S*|[\w-]+\.\w+)"""
    r"""(?:\s+(?:"[^"]*"|'[^']*'|\([^()]*\)))?\s*\Z""",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s*+(?=[^\n]*\|)\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*\Z")
_ROW = re.compile(r"\s*\|.*\|\s*\Z", re.DOTALL)
_QUOTE = re.compile(r"[ \t]*>[ \t]?")
_QUOTES = re.compile(r"[> \t]*")
_BULLET = re.compile(r"[ \t]*(?:[-*+•]|(\d{1,9})[.)])(?=\s)[ \t]*")
_TICK = re.compile(r"\[[ xX]\](?=\s)[ \t]*")
_FOOTNOTE = re.compile(r" {0,3}\[\^[^\]\s]+\]:[ \t]*")
_HEADING = re.compile(r"[ \t]*#{1,6}(?=\s)[ \t]*")
_HARD_BREAK = re.compile(r"(?:  |\\)\r?\n?\Z")
_TERMINAL = tuple(".!?…:\"'”’»。！？」")
_INDENTED = re.compile(r"(?: {4}| {0,3}\t)")
_TIME = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_TIMES = re.compile(rf"[ \t]*(?:{_TIME}[ \t]*-->[ \t]*{_TIME}(?:[ \t].*)?|{_TIME},{_TIME})[ \t]*\r?\n?\Z")
_SPEAKER = re.compile(r"[ \t]*(?:<[^<>]*>|\{[^{}]*\})*[ \t]*[-‐–—][ \t]*(?=\S)")
_VTT = re.compile(r"WEBVTT(?:[ \t].*)?\s*\Z")
_VTT_BLOCK = re.compile(r"(?:NOTE|STYLE|REGION)(?:[ \t].*)?\s*\Z")
_LYRICS_TAG = re.compile(r"\[(?:ar|ti|al|au|by|la|length|offset|re|tool|ve):[^\]]*\]\s*\Z")
_DATE = (
    r"[\[(]?\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ,]+\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?[\])]?"
)
_STAMP = re.compile(
    rf"[ \t]*(?:(?P<sung>(?:[\[(<]\d{{1,3}}:\d{{2}}(?:[:.]\d{{1,3}}){{0,2}}[\])>][ \t]*)+)"
    rf"|(?:{_DATE}|\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:[.,]\d+)?)?)[ \t]+)"
)
_CATALOG = re.compile(r'^msgid[ \t]+"(?s:.*?)^msgstr(?:\[0\])?[ \t]+"', re.MULTILINE)
_EVENT = re.compile(r"Dialogue: *(?:[^,\r\n]*,){9}")
_CODE_SIGNS = re.compile(r"[{}()\[\]=<>;$_/\\|&#@`~^+*]|\d")


def is_catalog(text: str) -> bool:
    """Whether a text is a gettext catalog (PO), which has separate fields for the translations."""
    return bool(_CATALOG.search(text))


def blocks(text: str) -> list[Block]:
    """Split a document into blocks to translate and blocks to keep; the blocks join to the text.

    A paragraph is one block with its inner line breaks. Line prefixes (bullets, heading and quote markers), code, front
    matter, tags and comments on lines of their own, rules, the pipes of tables, link definitions, whitespace around
    blocks and blocks without letters outside of `protected` spans are kept.
    """
    merged: list[Block] = []
    kept: list[str] = []
    for block in _Reader(text).read():
        if not block.translate or not any(char.isalpha() for char in block.text) or not _words(block.text):
            kept.append(block.text)
            continue
        if kept:
            merged.append(Block("".join(kept), translate=False))
            kept = []
        merged.append(block)
    if kept:
        merged.append(Block("".join(kept), translate=False))
    return [block for block in merged if block.text]


class _Reader(DataReader):
    """Parses lines in order; keeps track of the open paragraph and the list around it."""

    def __init__(self, text: str) -> None:
        super().__init__(_LINE.findall(text))
        self.quote = ""
        """The ``>`` markers at the start of the paragraph's lines."""
        self.margin = ""
        """The indent of the paragraph's first line, if its prefix is an indent only."""
        self.blank = True
        """Whether the previous line was blank; True at the start."""
        self.list = 0
        """The kind of the open list: 0 none, 1 bullets, 2 numbers."""
        self.vtt = False
        self.unclosed: set[str] = set()
        """End markers known not to occur in the rest of the document."""

    def read(self) -> Iterator[Block]:
        """The blocks of the document, in order."""
        if self.lines and self.lines[0].startswith("\ufeff"):  # a byte order mark
            yield Block("\ufeff", translate=False)
            self.lines[0] = self.lines[0][1:]
        if self.lines and self.lines[0].strip() == "[Script Info]":
            yield from self.script()
        yield from self.kept(self.front_matter())
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line.strip():
                yield from self.close()
                yield Block(line, translate=False)
                self.at, self.blank = self.at + 1, True
                continue
            whole = self.verbatim()
            if header := self.cue_header(self.at):
                yield from self.cue(header)
            elif number := self.json():
                yield from self.close()
                yield from self.strings(number)
            elif number := self.mapping():
                yield from self.close()
                yield from self.members(number)
            elif pairs := self.pairs():
                yield from self.close()
                yield from self.values(pairs)
            elif whole:
                yield from self.kept(whole)
                self.list = self.list if INDENT.match(line)[0] else 0  # type: ignore[index]
            elif self.is_table():
                yield from self.table()
            else:
                yield from self.prose(line)
            self.blank = False
        yield from self.close()

    def kept(self, number: int) -> Iterator[Block]:
        """The next lines, unchanged."""
        if number:
            yield from self.close()
            yield Block("".join(self.lines[self.at : self.at + number]), translate=False)
            self.at += number

    def cue_header(self, at: int) -> int:
        """How many lines from here are the header (number and times) of a subtitle cue; 0: none."""
        if at < len(self.lines) and _TIMES.match(self.lines[at]):
            return 1
        number = at + 1 < len(self.lines) and bool(self.lines[at].strip()) and _TIMES.match(self.lines[at + 1])
        # Without a blank line between two cues, the last words of the first are not the identifier of the second.
        return 2 if number and (self.blank or self.lines[at].strip().isdigit()) else 0

    def cue(self, header: int) -> Iterator[Block]:
        """A subtitle cue: its header is kept; its text ends at a blank line or the next cue."""
        yield from self.kept(header)
        self.blank = False
        words: list[str] = []
        while self.at < len(self.lines) and self.lines[self.at].strip() and not self.cue_header(self.at):
            line = self.lines[self.at]
            if speaker := _SPEAKER.match(line):
                yield from trimmed("".join(words), cue=True)
                yield Block(speaker[0], translate=False)
                words = []
            words.append(line[speaker.end() :] if speaker else line)
            self.at += 1
        yield from trimmed("".join(words), cue=True)

    def script(self) -> Iterator[Block]:
        """Subtitles in SubStation Alpha (ASS): the text of each event is translated."""
        for line in self.lines:
            event = _EVENT.match(line)
            if event is None:
                yield Block(line, translate=False)
                continue
            yield Block(event[0], translate=False)
            yield from unescaped(line[event.end() :])
        self.at = len(self.lines)

    def close(self) -> Iterator[Block]:
        """Finish the open paragraph, without its trailing whitespace."""
        if self.paragraph:
            text = "".join(self.paragraph)
            plain = self.paragraph[0] + "".join(_blanked(line) for line in self.paragraph[1:]) if self.quote else text
            yield from trimmed(text, plain="" if plain == text else plain)
            self.paragraph = []

    def prose(self, line: str) -> Iterator[Block]:
        """A line of a paragraph, a heading or a list item."""
        self.at += 1
        prefix, heading = self.prefix(line)
        if self.paragraph and not heading and self.continues(line, prefix):
            self.paragraph.append(line)
        else:
            yield from self.close()
            yield Block(prefix, translate=False)
            self.paragraph = [line[len(prefix) :]]
            self.margin = prefix if prefix.isspace() else ""
            self.quote = _QUOTES.match(prefix)[0].rstrip()  # type: ignore[index]
            if self.blank and not prefix:
                self.list = 0
        if heading:
            self.paragraph = []
            yield from trimmed(*_without_closing(line[len(prefix) :]))
        elif _HARD_BREAK.search(line):
            yield from self.close()

    def continues(self, line: str, prefix: str) -> bool:
        """Whether a line continues the paragraph of the previous line."""
        if not prefix:
            return True
        if self.quote:
            return prefix.rstrip() == self.quote and bool(line[len(prefix) :].strip())
        if not prefix.isspace():
            return False
        last = self.paragraph[-1].rstrip()
        if line[len(prefix)].islower() and last[-1:].isalpha() and not _CODE_SIGNS.search(line):
            return True
        # An indent begins a new paragraph, as in novels, unless the entire paragraph is indented.
        return bool(self.list) or (prefix == self.margin and not last.endswith(_TERMINAL))

    def prefix(self, line: str) -> tuple[str, bool]:
        """The prefix of a line (markers and indent), and whether the line is a heading."""
        stamp = _STAMP.match(line)
        at, heading = stamp.end() if stamp and (stamp["sung"] or self.stamped()) else 0, False
        while not heading:
            bullet = _BULLET.match(line, at)
            if bullet and bullet[1] and self.paragraph and not self.numbered(int(bullet[1])):
                bullet = None  # "born in / 1984. Then" within a paragraph
            mark = _QUOTE.match(line, at) or bullet or (_FOOTNOTE if at == 0 else _TICK).match(line, at)
            if not mark:
                mark = _HEADING.match(line, at)
                heading = mark is not None
            if not mark:
                break
            if bullet and mark is bullet:
                self.list = 2 if bullet[1] else 1
            at = mark.end()
        indent = INDENT.match(line, at)
        return line[: indent.end() if indent else at], heading

    def stamped(self) -> bool:
        """Whether a line next to the current one begins with a time too, as in a log."""
        near = [at for at in (self.at - 2, self.at) if 0 <= at < len(self.lines)]
        return any(_STAMP.match(self.lines[at]) for at in near)

    def numbered(self, number: int) -> bool:
        """Whether a number at the start of a line within a paragraph begins a list item."""
        return number == 1 or (self.list == 2 and number < 1000)

    def verbatim(self) -> int:
        """How many of the next lines are kept verbatim."""
        line = self.lines[self.at]
        if self.at == 0 and _VTT.match(line):
            self.vtt = True
            return self.to_blank()
        if self.vtt and self.blank and _VTT_BLOCK.match(line):
            return self.to_blank()
        if (
            _LYRICS_TAG.match(line)
            or _RULE.match(line)
            or _REFERENCE.match(line)
            or (_SEPARATOR.match(line) and "-" in line)
        ):
            return 1
        return self.fence() or self.html() or self.indented()

    def front_matter(self) -> int:
        """How many lines at the start are front matter (YAML or TOML)."""
        opening = _FRONT.match(self.lines[0].rstrip("\r\n")) if self.lines else None
        if not opening or len(self.lines) < 2 or not _KEY.match(self.lines[1]):
            return 0
        ends = (opening[1], "...") if opening[1] == "---" else (opening[1],)
        for number, line in enumerate(self.lines[1:], 2):
            if line.rstrip() in ends:
                return number
        return 0

    def fence(self) -> int:
        """How many lines are a fenced code block, up to its end or the end of the document."""
        line = self.lines[self.at]
        quote, body = _unquoted(line)
        at = 0
        while bullet := _BULLET.match(body, at):
            at = bullet.end()
        start = body[at:].lstrip(" \t")
        indent = len(body) - at - len(start)
        fence = _FENCE.match(start)
        if not fence or (fence[1][0] == "`" and "`" in fence["info"]) or (indent > 3 and not self.list):
            return 0
        closing = re.compile(rf"[ \t]*{fence[1][0]}{{{len(fence[1])},}}\s*\Z")
        for number in range(1, len(self.lines) - self.at):
            following = self.lines[self.at + number]
            quoted, inner = _unquoted(following)
            if quote and not quoted:
                return number
            if closing.match(inner if quote else following):
                return number + 1
        return len(self.lines) - self.at

    def html(self) -> int:
        """How many lines are a comment, preformatted text, or nothing but tags."""
        line = self.lines[self.at]
        start = line.lstrip()
        if start.startswith("<!--"):
            # The rest of the line after the comment is kept too: it is rare, and then rarely prose.
            return self.until("-->") or 1
        verbatim = _VERBATIM.match(start)
        if verbatim:
            return self.until(f"</{verbatim[1].lower()}>")
        return 1 if _TAGS_ONLY.match(line) else 0

    def until(self, end: str) -> int:
        """How many lines there are up to the one with this end marker; 0 if it does not occur."""
        if end not in self.unclosed:
            for number in range(self.at, len(self.lines)):
                if end in self.lines[number].lower():
                    return number - self.at + 1
            self.unclosed.add(end)
        return 0

    def indented(self) -> int:
        """How many lines are indented code. Prose may be indented too, so it has to look like code."""
        if self.paragraph or not self.blank or self.list or not _INDENTED.match(self.lines[self.at]):
            return 0
        number = 0
        for line in islice(self.lines, self.at, self.at + self.to_blank()):
            if not _INDENTED.match(line):
                return 0  # only the first line of a paragraph is indented
            number += 1
        code = "".join(self.lines[self.at : self.at + number]).strip()
        lowercase = code[0].islower()
        sentence = code.endswith((*_TERMINAL, ",")) and not lowercase
        return 0 if sentence or (not lowercase and not _CODE_SIGNS.search(code)) else number

    def is_table(self) -> bool:
        """Whether the next line is a row of a table."""
        line = self.lines[self.at]
        if "|" not in line:
            return False
        if _ROW.match(line) and len(_pipes(line)) > 1:
            return True
        following = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
        return bool(_SEPARATOR.match(following)) and (
            len(_pipes(line.strip().strip("|"))) == len(_pipes(following.strip().strip("|")))
        )

    def table(self) -> Iterator[Block]:
        """The rows of a table, up to the first line without a pipe."""
        yield from self.close()
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not _pipes(line):
                break
            self.at += 1
            if _SEPARATOR.match(line):
                yield Block(line, translate=False)
                continue
            start = 0
            for pipe in [*_pipes(line), len(line)]:
                yield from trimmed(line[start:pipe])
                yield Block(line[pipe : pipe + 1], translate=False)
                start = pipe + 1


def _blanked(line: str) -> str:
    """A block-quote line with spaces in place of its markers."""
    end = _QUOTES.match(line).end()  # type: ignore[union-attr]
    return " " * end + line[end:]


def _without_closing(heading: str) -> tuple[str, str]:
    """A heading, and its closing ``##``, if any."""
    words = heading.rstrip()
    body = words.rstrip("#")
    cut = len(body) if body[-1:].isspace() else len(words)
    return heading[:cut], heading[cut:]


def _unquoted(line: str) -> tuple[bool, str]:
    """Whether a line is block-quoted (``>``), and the line without the marker."""
    at = 0
    while mark := _QUOTE.match(line, at):
        at = mark.end()
    return at > 0, line[at:]


def _pipes(line: str) -> list[int]:
    """The positions of pipes between cells: neither escaped nor in code."""
    starts, ends = zip(*code_spans(line), strict=True) if "`" in line and code_spans(line) else ((), ())
    pipes = [found.start() for found in re.finditer(r"(?<!\\)\|", line)]
    return [pipe for pipe in pipes if bisect_left(starts, pipe) == bisect_left(ends, pipe)]


def _words(text: str) -> bool:
    """Whether a text has letters outside of its protected spans."""
    return any(block.translate for block in around(text))
