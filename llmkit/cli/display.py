"""Widths of texts in the columns of a terminal, where Chinese characters and emoji take two, and breaking of lines."""

from __future__ import annotations

__all__ = ["WordWrap", "display_width", "padded"]


def display_width(text: str) -> int:
    """Number of columns that a text takes."""
    if text.isascii():
        return len(text)
    from wcwidth import width

    return int(width(text))


def padded(text: str, width: int) -> str:
    """A text with spaces added up to this number of columns."""
    return text + " " * (width - display_width(text))


class WordWrap:
    """Breaks a streamed text into lines of a terminal, between words or beside wide characters.

    Spaces at the beginning of a line stay. Text without a break that is longer than a line is left to the terminal.

    Args:
        columns: of the terminal.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._limit = columns - 1  # the cursor stays on the line, and an emoji that is drawn wider does no harm
        self._column = 0
        self._space = self._word = ""
        self._wide = False
        """Whether the word ends in a wide character, after which a line may break."""
        self.rows = 0
        """Number of line ends that were shown."""

    def push(self, text: str) -> str:
        """What can be shown after this piece: all but the last word, which may continue."""
        return "".join(map(self._take, text))

    def flush(self) -> str:
        """The rest."""
        shown = self._end_word()
        space, self._space = self._space, ""
        self._column += display_width(space)
        return shown + space

    def verbatim(self, text: str) -> str:
        """Text that is shown as it is, such as a line of code; the words before it are shown first."""
        shown = self.flush() + text
        for part in text.splitlines(keepends=True):
            self._advance(display_width(part.rstrip("\n").expandtabs(8)))
            if part.endswith("\n"):
                self._new_line()
        return shown

    def _take(self, character: str) -> str:
        if character == "\n":
            shown = self._end_word()
            self._space = ""
            self._new_line()
            return f"{shown}\n"
        if character.isspace():
            shown = self._end_word()
            self._space += character
            return shown
        wide = display_width(character) == 2
        together = character in _CLOSING or self._word[-1:] in _OPENING
        shown = self._end_word() if (wide or self._wide) and not together else ""
        if display_width(character):  # not a mark of the character before it
            self._wide = wide
        self._word += character
        return shown

    def _end_word(self) -> str:
        word, self._word, self._wide = self._word, "", False
        if not word:
            return ""
        space, self._space = self._space, ""
        width = display_width(word)
        if self._column and self._column + display_width(space) + width > self._limit:
            space = "\n"
            self._new_line()
        else:
            self._column += display_width(space.expandtabs(8))
        self._advance(width)
        return space + word

    def _advance(self, width: int) -> None:
        self._column += width
        rows = max(0, self._column - 1) // self._columns
        self.rows += rows
        self._column -= rows * self._columns

    def _new_line(self) -> None:
        self._column = 0
        self.rows += 1


_CLOSING = frozenset("、。，．：；！？）］｝」』】》〉”’…—·!?,.:;)]}%")
"""Characters that do not begin a line."""
_OPENING = frozenset("（［｛「『【《〈“‘([{")
"""Characters that do not end a line."""
