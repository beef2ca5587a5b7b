"""The commands about data: ``llmkit data check``. Prints what `llmkit.training.data_check` finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import dropwhile
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.new_recipe import row_format
from llmkit.cli.options import declared
from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.config.settings import LoadSettings, RowSettings
from llmkit.tasks.translation import TranslationSettings

if TYPE_CHECKING:
    from llmkit.training.data_check import DataCheck
    from llmkit.training.data_report import Histogram, PartReport, Piece
    from llmkit.training.encoding import Encoder

__all__ = ["data_check"]

_BAR = 40
_SHOWN = 200
"""Characters shown at either end of a text."""
_LANGUAGE = {"metavar": "LANGUAGE", "show_default": False, "rich_help_panel": None}
_PROBLEMS = {"bad": "bad", "no_label": "nothing to learn", "too_long": "too long"}


def data_check(
    given_paths: Annotated[
        list[str], typer.Argument(metavar="RECIPE|PATH…", help="A recipe, or files, a folder, a pattern or a Hub id.")
    ],
    *,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The task of the data; a recipe names its own.")
    ] = None,
    source: Annotated[str | None, declared(TranslationSettings, "source", **_LANGUAGE)] = None,
    target: Annotated[str | None, declared(TranslationSettings, "target", **_LANGUAGE)] = None,
    validation: Annotated[str | None, typer.Option(metavar="PATH", help="Validation data, with a PATH.")] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Encoding of the data, with a PATH, if not UTF-8.")
    ] = None,
    header: Annotated[bool | None, declared(RowSettings, "header")] = None,
    delimiter: Annotated[str | None, declared(RowSettings, "delimiter")] = None,
    column: Annotated[list[str] | None, declared(RowSettings, "column")] = None,
    max_rows: Annotated[int | None, declared(RowSettings, "max_rows", min=1)] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum length of an example in tokens, with a PATH.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Show this many examples.")] = 2,
    full: Annotated[
        bool, typer.Option("--full", help="Show examples in full; by default, long texts are cut.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe (repeatable).")
    ] = None,
    as_json: AsJson = False,
    load: LoadSettings,
) -> None:
    """Show how a model would see the data, and report problems.

    For a PATH, first proposes a column mapping, as YAML for a recipe. Exits with code 1 if training would stop.

    Examples:
        llmkit data check papers.csv --task summarization
        llmkit data check summarization/starter-lora --rows 5
    """
    from llmkit.training.data_check import check_data

    form = row_format(column, encoding, header, delimiter, max_rows)
    found = check_data(
        {"path": given_paths, **form},
        load,
        task=task,
        languages={"source": source, "target": target},
        validation=None if validation is None else {"path": [validation], **form},
        max_length=max_length,
        samples=rows,
        overrides=overrides or (),
    )
    if as_json:
        echo(json.dumps(found.to_dict(), ensure_ascii=False, default=str))
    else:
        for line in _page(found):
            echo(line) if isinstance(line, str) else _show(line, full=full)
    if found.stops:
        raise typer.Exit(1)


# The page.


def _page(found: DataCheck) -> Iterator[str | tuple[Piece, ...]]:
    from llmkit.config.yaml12 import dump

    yield from (f"# {note}" for note in found.notes)
    yield dump(found.proposal).rstrip()
    report = found.report
    yield ""
    yield f"tokens are counted with the tokenizer of {found.encoder.loaded.source.name}"
    for name, part in (("train", report.train), ("validation", report.validation)):
        if part is not None:
            yield ""
            yield from _part(name, part, found.encoder)
    if report.validation is not None:
        yield ""
        yield f"overlap: {report.overlap:,} validation rows have an input that is trained on"
    if found.stops:
        yield ""
        yield from (f"training would stop: {reason}" for reason in found.stops)


def _part(name: str, part: PartReport, encoder: Encoder) -> Iterator[str | tuple[Piece, ...]]:
    from llmkit.training.row_counts import Ledger, describe

    yield from describe(Ledger(**part.ledger), name)
    share = part.ledger["target_tokens"] / max(1, part.ledger["tokens"])
    if part.ledger["target_tokens"] and not encoder.traits.extracts_spans:
        yield f"{name}: {part.ledger['target_tokens']:,} tokens carry loss ({share:.1%})"
    yield f"{name}: {part.duplicate_rows:,} duplicates, {part.conflicting_rows:,} inputs again with another answer"
    for status, label in _PROBLEMS.items():
        yield from (f"  {label}: {line}" for line in part.problems.get(status, ()))
    yield from _histogram(part.lengths, encoder.max_length)
    for sample in part.samples:
        yield ""
        yield f"{sample.where} ({sample.tokens} tokens)"
        yield sample.pieces


def _histogram(lengths: Histogram, limit: int | None) -> Iterator[str]:
    if not lengths.counts:
        return
    reads = "" if limit is None else f", of at most {limit:,}"
    shares = f"median {lengths.median:,}, 95 % up to {lengths.p95:,}, longest {lengths.longest:,}"
    yield f"tokens in an example: {shares}{reads}"
    most, width = max(lengths.counts), len(f"{lengths.edges[-1]:,}")
    bins = list(zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False))
    for start, end, count in dropwhile(lambda each: not each[2], bins):
        bar = f" {'█' * -(-count * _BAR // most)} {count:,}" if count else ""
        yield f"  {start:>{width},}–{end - 1:<{width},}{bar}".rstrip()


def _show(pieces: tuple[Piece, ...], *, full: bool) -> None:
    """Tokens with loss in green, or between ⟦ and ⟧ without colour."""
    for each in pieces:
        text = each.text if full else _abbreviated(each.text)
        if not each.learned:
            echo(text, end="")
        elif sys.stdout.isatty():
            echo(text, end="", fg="green")
        else:
            echo(f"⟦{text}⟧", end="")
    echo()


def _abbreviated(text: str) -> str:
    """A text without its middle, if it is long."""
    left = len(text) - 2 * _SHOWN
    return text if left <= _SHOWN else f"{text[:_SHOWN]} [… {left:,} characters …] {text[-_SHOWN:]}"
