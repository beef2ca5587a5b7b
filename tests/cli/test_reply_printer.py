"""Replies on a terminal: what is on the screen in the end, whatever the pieces were."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

import pytest

from llmkit.cli.display import WordWrap, display_width, padded
from llmkit.cli.reply_printer import ReplyPrinter, formatted, reply_printer
from llmkit.cli.streams import echo

STYLE = re.compile(r"\x1b\[[0-9;]*m")


def screen(text: str, columns: int) -> list[str]:
    """The lines that a terminal without a limit of height shows, styles removed."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\x1b\[\d*[AJ]|[\r\n])", STYLE.sub("", text)):
        if part == "\n":
            row, column = row + 1, 0
        elif part == "\r":
            column = 0
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines[row] = lines[row][:column]
            del lines[row + 1 :]
        else:
            for character in part:
                if display_width(lines[row][:column] + character) > columns:
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
                column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``shown("text")``: what a reply writes to a terminal of 24 lines."""

    def call(text: str, columns: int = 20, step: int = 1, *, markdown: bool = True) -> str:
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        printer = ReplyPrinter(markdown=markdown)
        for start in range(0, len(text), step):
            printer.say(text[start : start + step])
        printer.end()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("The quick brown fox jumps.", 12, ["The quick", "brown fox", "jumps."]),
        ("  indented words here", 12, ["  indented", "words here"]),
        ("one\n\ntwo three", 8, ["one", "", "two", "three"]),
        # github.com/ollama/ollama/issues/1275
        ("今天天气很好，我们去公园。", 9, ["今天天气", "很好，我", "们去公", "园。"]),
        ("说「你好」的人", 6, ["说", "「你", "好」", "的人"]),
        ("a https://example.org/long b", 10, ["a", "https://ex", "ample.org/", "long b"]),
        ("🙂🙂 🙂🙂 ok", 8, ["🙂🙂 🙂", "🙂 ok"]),
    ],
)
def test_lines_break_between_words_and_beside_wide_characters(text: str, columns: int, lines: list[str]) -> None:
    for step in (1, 3, len(text)):
        wrap = WordWrap(columns)
        pieces = [text[start : start + step] for start in range(0, len(text), step)]
        written = "".join(map(wrap.push, pieces)) + wrap.flush()
        assert screen(written, columns) == lines
        assert wrap.rows == len(lines) - 1


def test_only_the_last_word_waits() -> None:
    wrap = WordWrap(20)
    assert wrap.push("The qu") + wrap.push("ick") == "The"
    assert wrap.push(" ") == " quick"


def test_widths_count_columns() -> None:
    assert [display_width(text) for text in ("ab", "中文", "e\u0301", "🙂")] == [2, 4, 1, 2]
    assert padded("中", 4) + "|" == "中  |"


MARKDOWN = """\
# Title

Some **bold** words and *more* of them in a longer paragraph.
- one
- two

| a | b |
|---|---|
| 中文 | 2 |

```python
def f(x):

    return x
```
Plain end, nothing to format here at all.
"""


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_markdown_is_formatted_block_by_block(step: int, shown: Callable[..., str]) -> None:
    written = shown(MARKDOWN, 30, step)
    lines = screen(written, 30)
    text = "\n".join(lines)
    assert "**" not in text
    assert "```" not in text
    assert "# Title" not in text
    for part in ("Title", "bold words", " • one", " • two", "中文", "def f(x):", "return x", "nothing to"):
        assert text.count(part) == 1, f"{part!r} once in {text}"
    assert "\x1b[1mbold\x1b[0m" in written
    assert written.endswith("at all.\n")
    assert "\x1b" not in written[written.rindex("Plain") :], "plain text is not drawn again"


def test_nothing_of_a_reply_is_lost(shown: Callable[..., str]) -> None:
    text = "**Note** List<int> <b>x</b>, \\[ \\frac{a}{b} \\], a\\_b, &amp;\n\n[1]: http://a.b\n"
    lines = " ".join(screen(shown(text, 100), 100))
    for part in ("List<int> <b>x</b>", "\\[ \\frac{a}{b} \\]", "a\\_b", "&amp;", "[1]: http://a.b"):
        assert part in lines
    assert screen(shown("**A** poem\nof lines\n", 40), 40)[:2] == ["A poem", "of lines"]


def test_a_block_that_left_the_screen_is_not_drawn_again(shown: Callable[..., str]) -> None:
    """The cursor cannot reach it: rich.live doubles it (github.com/Textualize/rich/issues/3263)."""
    written = shown("- *item*\n" * 30, 30)
    assert "\x1b" not in written
    assert written.count("- *item*") == 30


def test_a_line_of_the_log_is_not_drawn_over(shown: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    shown("")
    printer = ReplyPrinter(markdown=True)
    printer.say("**a** reply")
    echo("a line of the log", err=True)
    printer.end()
    assert capsys.readouterr().out == "**a** reply\n"


def test_without_markdown_only_lines_break(shown: Callable[..., str]) -> None:
    assert shown("Some **bold** words.", 12, markdown=False) == "Some\n**bold**\nwords.\n"


def test_control_characters_of_a_reply_are_shown_as_codes(shown: Callable[..., str]) -> None:
    assert "\x1b[2J" not in shown("**a** \x1b[2J b")


def test_anything_but_a_terminal_gets_the_text_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, name in ((False, "xterm"), (True, "dumb")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("TERM", name)
        printer = reply_printer(markdown=True)
        printer.say(MARKDOWN)
        printer.end()
        assert capsys.readouterr().out == MARKDOWN


def test_a_formatted_text_fits_the_columns() -> None:
    text = formatted("A **bold** paragraph of several 中文 words that is longer than a line.", 24)
    assert text is not None
    assert max(display_width(STYLE.sub("", line)) for line in text.splitlines()) <= 24
