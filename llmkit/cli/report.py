"""``llmkit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.streams import echo
from llmkit.pages.words import PageLanguage

__all__ = ["report_page"]


def report_page(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run, or of one of its checkpoints.")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            "-e",
            metavar="DIR",
            help="Add this evaluation, a folder that 'llmkit evaluate --output' wrote; can be repeated.",
        ),
    ] = None,
    language: Annotated[PageLanguage, typer.Option(help="Language of the page.")] = "en",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the page to this file.",
            rich_help_panel="Output",
            show_default="report.html in the folder of the run",
        ),
    ] = None,
) -> None:
    """Write a page about a training run, to be read or shown to others.

    It has the curves, the metrics of evaluations with the rows that gained and lost most, samples of what was learned,
    the data with hashes and licenses, and the recipe. It is one file, which loads nothing from elsewhere.

    Examples:
        llmkit report runs/papers
        llmkit report runs/papers --evaluation evaluations/papers --output papers.html
    """
    from llmkit.management import report as write

    echo(str(write(run, evaluation or (), output=output, language=language)))
