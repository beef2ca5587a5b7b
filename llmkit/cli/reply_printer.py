"""Printing of a reply on a terminal while it is generated: lines break between words, Markdown is formatted.

A block of Markdown (a paragraph, list, table or fenced code) is shown as it streams. Once it is complete, it is drawn
again with its formatting, if it has any and is still on the screen. Blocks above it are never touched, so that
nothing is lost or doubled in the history of the terminal.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys

from llmkit.cli.display import WordWrap
from llmkit.cli.output import StreamPrinter
from llmkit.cli.streams import draw, printed
from llmkit.log import printable

__all__ = ["ReplyPrinter", "formatted", "reply_printer"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def reply_printer(*, markdown: bool) -> StreamPrinter:
    """The printer for standard output: plain unless that is a terminal that can move its cursor."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return StreamPrinter()
    return ReplyPrinter(markdown=markdown)


class ReplyPrinter(StreamPrinter):
    """Prints a reply on a terminal.

    Args:
        markdown: whether to format it; without, lines only break between words.
    """

    def __init__(self, *, markdown: bool) -> None:
        super().__init__()
        self._markdown = markdown
        self._size = shutil.get_terminal_size()
        self._wrap = WordWrap(self._size.columns)
        self._block = self._line = ""
        """Text of the current block, and of its last line."""
        self._fence = ""
        """The characters that opened the fenced code of the block, until it is closed."""
        self._blank = False
        """Whether the last line was blank, so that the next one may begin another block."""
        self._printed = 0
        """What `printed` returned at the beginning of the block."""

    def say(self, piece: str) -> None:
        """Show a piece of the reply."""
        self._end_thought()
        self._answered = True
        for part in printable(piece).splitlines(keepends=True):
            self._take(part)

    def end(self, *, empty: bool = False) -> None:
        """Finish the reply."""
        if self._answered:
            draw(self._wrap.flush())
            self._end_block()
        super().end(empty=empty)

    def _take(self, part: str) -> None:
        """Show a part of one line, which ends it if it has a line break."""
        if not self._line and self._blank and part.strip() and not self._fence and not part[0].isspace():
            self._end_block()
        if not self._block:
            self._printed = printed()
        self._line += part
        self._block += part
        code = self._fence or _FENCE.match(self._line)
        draw(self._wrap.verbatim(part) if code else self._wrap.push(part))
        if part.endswith("\n"):
            self._end_line()

    def _end_line(self) -> None:
        line, self._line = self._line, ""
        self._blank = not line.strip() and bool(self._block.strip())
        fence = _FENCE.match(line)
        if self._fence:
            closes = fence is not None and fence[1].startswith(self._fence) and not line.strip().strip("`~")
            if closes:
                self._fence = ""
                self._end_block()
        elif fence is not None:
            self._fence = fence[1]

    def _end_block(self) -> None:
        """Draw the block again with its formatting, and begin another."""
        block, rows = self._block, self._wrap.rows
        self._wrap, self._block, self._blank, self._fence = WordWrap(self._size.columns), "", False, ""
        on_screen = rows < self._size.lines - 1 and shutil.get_terminal_size() == self._size
        alone = printed() == self._printed + 1
        if not (self._markdown and on_screen and alone) or (shown := formatted(block, self._size.columns - 1)) is None:
            return
        blank = "\n" * (len(block) - len(block.rstrip("\n")))
        up = f"\x1b[{rows}A" if rows else ""
        draw(f"\r{up}\x1b[J{shown}{blank}")


def formatted(text: str, columns: int) -> str | None:
    """Markdown as lines with the escape sequences of a terminal; None if it is plain text."""
    from markdown_it import MarkdownIt

    # Rules that drop characters are off: HTML, escapes (of formulas, too) and link definitions stay as they are.
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    tokens = parser.disable(["escape", "reference", "entity"]).parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    plain = {"paragraph_open", "paragraph_close", "inline"}
    if plain.issuperset(token.type for token in tokens) and {"text", "softbreak"}.issuperset(
        child.type for child in inline
    ):
        return None
    for child in inline:  # lines of a reply are meant as such
        if child.type == "softbreak":
            child.type = "hardbreak"
    from rich.console import Console
    from rich.markdown import Markdown

    markdown = Markdown("", hyperlinks=False, code_theme="ansi_dark")
    markdown.parsed = tokens
    output = io.StringIO()
    console = Console(
        file=output, force_terminal=True, color_system="standard", width=max(columns, 20), legacy_windows=False
    )
    console.print(markdown)
    return "\n".join(line.rstrip() for line in output.getvalue().strip("\n").split("\n"))
