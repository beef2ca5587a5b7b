"""Shared by the commands of the tasks: options for the input text, and printing of an answer."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.options import flags
from llmkit.cli.streams import echo, fresh_line
from llmkit.log import log

if TYPE_CHECKING:
    from llmkit.inference.pipeline import Pipeline
    from llmkit.tasks import Row
    from llmkit.tasks.output import Output

__all__ = ["AsJson", "Encoding", "LiteralText", "StreamPrinter", "TextArgument", "report", "show"]

TextArgument = Annotated[
    str | None, typer.Argument(metavar="TEXT|FILE|-", help="The text, a file, or - for standard input.")
]
LiteralText = Annotated[
    str | None, typer.Option("--text", help="The text, also if a file has that name.", rich_help_panel="Input")
]
Encoding = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Encoding of the file or standard input, if not UTF-8.", rich_help_panel="Input"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")]


def show(pipeline: Pipeline, row: str | Row, *, as_json: bool, reasoning: bool = False) -> Output:
    """Answer one row and print the answer as it is generated, or at once as JSON or if there are several.

    ``reasoning`` shows the model's reasoning before its answer.
    """
    started, printer = time.perf_counter(), StreamPrinter()
    whole = as_json or pipeline.settings.num_return_sequences > 1
    output = pipeline(
        row,
        on_text=None if whole else printer.say,
        on_reasoning=printer.think if reasoning and not whole else None,
    )
    if as_json:
        echo(json.dumps(output.to_dict(), ensure_ascii=False))
    elif whole:
        echo("\n---\n".join(each.text for each in (output, *output.alternatives)))
    else:
        printer.end(empty=not reasoning)
    report(output, time.perf_counter() - started)
    return output


class StreamPrinter:
    """Prints an answer while it is generated: the answer to stdout, the reasoning before it to stderr."""

    def __init__(self) -> None:
        self._thought = self._answered = False
        """Whether there was a piece of each."""

    def think(self, piece: str) -> None:
        """Show a piece of the reasoning."""
        if not self._thought:
            piece = piece.lstrip("\n")
        if piece and not flags.quiet:
            self._thought = True
            echo(piece, end="", err=True, dim=True)

    def say(self, piece: str) -> None:
        """Show a piece of the answer."""
        self._end_thought()
        self._answered = True
        echo(piece, end="")

    def end(self, *, empty: bool = False) -> None:
        """Finish the last line; ``empty`` prints one even for an empty answer."""
        self._end_thought()
        if self._answered:
            fresh_line()
        elif empty:
            echo()

    def _end_thought(self) -> None:
        if self._thought:
            fresh_line(err=True)
        self._thought = False


def report(output: Output, seconds: float) -> None:
    """Print speed and notes; a truncated answer must not look like a finished one."""
    tokens = sum(each.usage.completion_tokens for each in (output, *output.alternatives))
    if tokens:
        log.info("%d tokens in %.1f s (%.1f tokens/s)", tokens, seconds, tokens / seconds)
    for note in output.notes:
        log.warning("%s", note.text, extra={"code": note.code})
