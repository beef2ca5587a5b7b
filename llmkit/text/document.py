"""Documents translated piece by piece: how they are split into segments and reassembled.

Knows blocks, sentences, lines and protected spans; does not know the model that translates. White space and
everything that is not translated stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from llmkit.text.lines import meant_breaks, spread
from llmkit.text.markup import blocks
from llmkit.text.protected import Block, around, protected, survives
from llmkit.text.sentences import pack, sentences

__all__ = ["Document", "Segment", "on_one_line", "segments_of"]


@dataclass
class Segment:
    """A sentence or paragraph of the document, beginning at character ``start``."""

    text: str
    start: int
    lines: Literal["", "meant", "cue"] = ""
    """What its line breaks are: not preserved, intentional, or the line breaks of a subtitle cue."""
    quoted: bool = False
    """Whether it is part of a block quote, where each further line would need a quote marker."""
    mark: str = ""
    """The quotation mark that encloses it in the file."""
    written: str = ""
    """How the file escapes that quotation mark within the text."""
    translation: str | None = None
    settled: bool = False

    def put(self, translation: str) -> None:
        """Set the translation. The segment is settled if all protected spans and intentional lines survived."""
        lines = self.text.splitlines()
        newline = "\r\n" if "\r\n" in self.text else "\n"
        found = [line.strip() for line in translation.splitlines()]
        joined = on_one_line(translation)
        if self.lines == "cue":
            found = spread(joined, lines, protected(joined))
        elif len(lines) == 1 or self.quoted:
            found = [joined]
        joined = newline.join(found)
        self.settle(joined)
        self.settled = survives(self.words, joined) and (self.lines != "meant" or len(found) == len(lines))

    @property
    def words(self) -> str:
        """The text with the escaped quotation marks of its file unescaped."""
        return self.text.replace(self.written, self.mark) if self.mark else self.text

    def settle(self, translation: str) -> None:
        """Accept a translation, with quotation marks escaped as in the file."""
        if self.mark:
            translation = translation.replace(self.written, self.mark).replace(self.mark, self.written)
        self.translation, self.settled = translation, True

    def pieces(self) -> list[Block]:
        """The pieces to translate separately if the whole segment was not settled, and what is kept between them."""
        if not self.lines:
            return around(self.words)
        return [piece for line in self.words.splitlines(keepends=True) for piece in around(line)]


@dataclass
class Document:
    """The text, its segments in order, and how much of the translation has been emitted."""

    text: str
    segments: list[Segment]
    emit: Callable[[str], None]
    translated: str = ""
    _next: int = 0
    _position: int = field(default=0)

    def put(self, index: int, translation: str) -> None:
        """Set the translation of a segment."""
        self.segments[index].put(translation)
        self.advance()

    def advance(self) -> None:
        """Emit what is final: settled segments in order, and the unchanged text between them."""
        new = ""
        while self._next < len(self.segments) and self.segments[self._next].settled:
            segment = self.segments[self._next]
            new += self.text[self._position : segment.start] + (segment.translation or "")
            self._position = segment.start + len(segment.text)
            self._next += 1
        until = self.segments[self._next].start if self._next < len(self.segments) else len(self.text)
        new += self.text[self._position : until]
        self._position = until
        self.translated += new
        if new:
            self.emit(new)


def segments_of(
    text: str, language: str, *, by_sentence: bool, room: int | None, count: Callable[[str], int]
) -> Iterator[Segment]:
    """Split a text into segments that are translated separately: sentences or paragraphs.

    Args:
        language: a BCP 47 tag.
        room: the maximum size of a segment, in units of ``count``; None: unlimited.
    """
    start = 0
    for block in blocks(text):
        offset, start = start, start + len(block.text)
        if not block.translate:
            continue
        cut = by_sentence or bool(block.unquoted)
        whole = block.unquoted or block.text
        for piece in sentences(whole, language, wrapped=block.cue) if cut else [whole]:
            for part in _parts(piece, language, room, count):
                stripped = part.strip()
                if any(character.isalpha() for character in stripped) and protected(part) != [(0, len(part))]:
                    lines = _kept_lines(stripped, block.cue, meant=not cut)
                    at = offset + part.index(stripped)
                    yield Segment(stripped, at, lines, bool(block.unquoted), block.mark, block.written)
                offset += len(part)


def _parts(piece: str, language: str, room: int | None, count: Callable[[str], int]) -> list[str]:
    """The piece if it fits, otherwise its parts; protected spans are never divided."""
    if room is None or count(piece) <= room:
        return [piece]
    return [
        part
        for block in around(piece)
        for part in (pack(sentences(block.text, language), room, count) if block.translate else [block.text])
    ]


def on_one_line(text: str) -> str:
    """The lines of a text joined by spaces."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _kept_lines(text: str, cue: bool, *, meant: bool) -> Literal["", "meant", "cue"]:
    """What the line breaks of a segment are; ``meant``: whether intentional ones can occur in it."""
    if len(lines := text.splitlines()) < 2:
        return ""
    return "cue" if cue else "meant" if meant and any(meant_breaks(lines)) else ""
