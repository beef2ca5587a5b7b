"""A text that is translated piece by piece: what its pieces are, and how it is put together again.

Knows blocks, sentences, lines and what must survive; does not know who translates. White space and what is not
translated stay as they are.
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
    """A sentence or paragraph of the document, ``start`` characters into it."""

    text: str
    start: int
    lines: Literal["", "meant", "cue"] = ""
    """What its line breaks are: nothing that is kept, of lines on their own, or of a subtitle."""
    quoted: bool = False
    """Whether further lines would need marks before them."""
    mark: str = ""
    """The quotation mark that encloses it in its file."""
    written: str = ""
    """What stands for such a mark within."""
    translation: str | None = None
    settled: bool = False

    def put(self, translation: str) -> None:
        """Its translation. It is settled if everything that must survive did, lines included."""
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
        """The text as it is meant, with the quotation marks that its file writes otherwise."""
        return self.text.replace(self.written, self.mark) if self.mark else self.text

    def settle(self, translation: str) -> None:
        """Its translation, as its file writes it."""
        if self.mark:
            translation = translation.replace(self.written, self.mark).replace(self.mark, self.written)
        self.translation, self.settled = translation, True

    def pieces(self) -> list[Block]:
        """What is translated on its own where the whole was not settled, and what is kept between."""
        if not self.lines:
            return around(self.words)
        return [piece for line in self.words.splitlines(keepends=True) for piece in around(line)]


@dataclass
class Document:
    """The text, its segments in order, and how far its translation has been shown."""

    text: str
    segments: list[Segment]
    emit: Callable[[str], None]
    translated: str = ""
    _next: int = 0
    _read: int = field(default=0)

    def put(self, index: int, translation: str) -> None:
        """A segment's translation."""
        self.segments[index].put(translation)
        self.advance()

    def advance(self) -> None:
        """Show what has become certain: settled segments in order, and what stands between them as it is."""
        new = ""
        while self._next < len(self.segments) and self.segments[self._next].settled:
            segment = self.segments[self._next]
            new += self.text[self._read : segment.start] + (segment.translation or "")
            self._read = segment.start + len(segment.text)
            self._next += 1
        until = self.segments[self._next].start if self._next < len(self.segments) else len(self.text)
        new += self.text[self._read : until]
        self._read = until
        self.translated += new
        if new:
            self.emit(new)


def segments_of(
    text: str, language: str, *, by_sentence: bool, room: int | None, count: Callable[[str], int]
) -> Iterator[Segment]:
    """What is translated on its own: sentences, or paragraphs.

    Args:
        language: a BCP 47 tag.
        room: how much a piece may have, as ``count`` counts; None: any.
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
    """A piece that fits, or what it has to be divided into; never inside what must survive."""
    if room is None or count(piece) <= room:
        return [piece]
    return [
        part
        for block in around(piece)
        for part in (pack(sentences(block.text, language), room, count) if block.translate else [block.text])
    ]


def on_one_line(text: str) -> str:
    """Its lines joined by spaces."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _kept_lines(text: str, cue: bool, *, meant: bool) -> Literal["", "meant", "cue"]:
    """What the line breaks of a segment are; ``meant`` is whether some may be: sentences end at them already."""
    if len(lines := text.splitlines()) < 2:
        return ""
    return "cue" if cue else "meant" if meant and any(meant_breaks(lines)) else ""
