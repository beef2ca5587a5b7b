"""The commands about data: ``llmkit data check``. Prints what `llmkit.training.data_report` finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.options import declared
from llmkit.cli.streams import echo
from llmkit.config.settings import LoadSettings, RowSettings, delimiter_character, explicitly_set, setting_fields
from llmkit.errors import UsageError

if TYPE_CHECKING:
    from llmkit.config.recipe import Recipe, SourceSection
    from llmkit.training.data_report import Histogram, PartReport, Piece, Report
    from llmkit.training.encoding import Encoder

__all__ = ["data_check"]

_BAR = 40
_PROBLEMS = (
    ("bad", "bad", "on_bad_row"),
    ("no_label", "nothing to learn", "on_no_label"),
    ("too_long", "too long", "on_overflow"),
)


def data_check(
    given_paths: Annotated[
        list[str], typer.Argument(metavar="RECIPE|PATH…", help="A recipe, or files, a folder, a pattern or a Hub id.")
    ],
    *,
    task: Annotated[str | None, typer.Option(help="The task of the data; a recipe names its own.")] = None,
    source: Annotated[str | None, typer.Option("--from", help="Translation: source language.")] = None,
    target: Annotated[str | None, typer.Option("--to", help="Translation: target language.")] = None,
    validation: Annotated[str | None, typer.Option(help="Validation data, with a PATH.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the data, with a PATH, if not UTF-8.")] = None,
    header: Annotated[bool | None, declared(RowSettings, "header")] = None,
    delimiter: Annotated[str | None, declared(RowSettings, "delimiter")] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest example in tokens, with a PATH.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Examples to show.")] = 2,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe (repeatable).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    load: LoadSettings,
) -> None:
    """Show how a model would see the data, and report problems.

    For a PATH, first proposes a column mapping, as YAML for a recipe.

    Examples:
        llmkit data check papers.csv --task summarization
        llmkit data check summarization/starter-lora --rows 5
    """
    from llmkit.models.reachability import offline
    from llmkit.training.data_report import check
    from llmkit.training.dataset import make_examples
    from llmkit.training.encoding import make_encoder
    from llmkit.training.recipe_model import open_model, open_task

    notes: tuple[str, ...] = ()
    only_path: dict[str, Any] = {
        "--task": task,
        "--from": source,
        "--to": target,
        "--validation": validation,
        "--encoding": encoding,
    }
    only_path |= {"--header": header, "--delimiter": delimiter, "--max-length": max_length}
    if _is_recipe(given_paths):
        from llmkit.config.recipe_file import MAY_RUN_CODE, allowing, load_recipe

        named = [name for name in explicitly_set(load) if name not in MAY_RUN_CODE]
        if used := [name for name, value in only_path.items() if value is not None] + named:
            raise UsageError(
                f"{', '.join(used)} has no effect on a recipe", "change the recipe with --set", code="no_effect"
            )
        code = allowing(trust_remote_code=load.trust_remote_code, allow_pickle=load.allow_pickle)
        recipe = load_recipe(given_paths[0], [*(overrides or ()), *code])
    else:
        if overrides:
            raise UsageError("--set changes a recipe, but a data path was given", "give a recipe, or leave it out")
        recipe, notes = _propose(
            given_paths,
            task,
            {"source": source, "target": target},
            validation,
            {"encoding": encoding, "header": header, "delimiter": delimiter},
            max_length,
            load,
        )
    opened = open_task(recipe)
    with offline(getattr(recipe.model, "offline", False)):
        encoder = make_encoder(recipe, opened, open_model(recipe, opened, weights=False))
        report = check(make_examples(recipe, encoder, strict=False), encoder, samples=rows)
    proposal = _frozen(recipe)
    if as_json:
        found = {"task": recipe.task, "proposal": proposal, "notes": list(notes), **report.to_dict()}
        echo(json.dumps(found, ensure_ascii=False, default=str))
        return
    for line in _page(recipe, proposal, notes, report, encoder):
        echo(line) if isinstance(line, str) else _show(line)


def _is_recipe(paths: list[str]) -> bool:
    if len(paths) != 1:
        return False
    if paths[0].endswith((".yaml", ".yml")):
        return True
    from llmkit.config.recipe_file import shipped_recipes

    return paths[0] in shipped_recipes()


def _propose(
    paths: list[str],
    task: str | None,
    languages: dict[str, str | None],
    validation: str | None,
    form: dict[str, Any],
    max_length: int | None,
    load: LoadSettings,
) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe for some data, with the detected format set explicitly."""
    from llmkit.config.recipe import SourceSection, recipe_adapter
    from llmkit.data.proposals import propose
    from llmkit.data.sources import splits_of
    from llmkit.tasks import find_task
    from llmkit.training.row_table import need_hub

    if task is None:
        raise UsageError("the task of the data is missing", "name the task, such as --task summarization")
    kind = find_task(task)
    settings = {key: value for key, value in languages.items() if value is not None}
    if settings and not settings.keys() <= {item.name for item in setting_fields(kind.settings_class)}:
        raise UsageError(f"{kind.name} has no languages to name with --from and --to", "leave them out")
    made = kind(kind.settings_class(**settings))
    if form["delimiter"] is not None:
        form["delimiter"] = delimiter_character(form["delimiter"])
    parts = {"train": SourceSection(path=paths, **form)}
    if validation is not None:
        parts["validation"] = SourceSection(path=[validation], **form)
    elif "train" in (found := splits_of(paths)):
        parts = {
            part: SourceSection(path=paths, **form, split=part) for part in ("train", "validation") if part in found
        }
    need_hub(list(parts.values()))
    proposals = {part: propose(section, made) for part, section in parts.items()}
    model = {"name_or_path": load.model or "starter"}
    model |= {key: getattr(load, key) for key in explicitly_set(load) if key != "model"}
    data: dict[str, Any] = {part: [_set(proposal.source)] for part, proposal in proposals.items()}
    recipe = recipe_adapter({}).validate_python(
        {
            "version": 1,
            "task": made.name,
            "settings": settings | proposals["train"].settings,
            "model": model,
            "data": data | {"max_length": max_length},
            "train": {"output_dir": "unused"},
        }
    )
    return recipe, proposals["train"].notes


def _set(source: SourceSection) -> dict[str, Any]:
    return source.model_dump(exclude_defaults=True)


def _frozen(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that describes the data, without defaults."""
    found: dict[str, Any] = {"task": recipe.task}
    if settings := recipe.settings.model_dump(exclude_defaults=True):
        found["settings"] = settings
    parts = {"train": recipe.data.train, "validation": recipe.data.validation}
    found["data"] = {
        part: [_short(source) for source in sources] if len(sources) > 1 else _short(sources[0])
        for part, sources in parts.items()
        if sources
    }
    return found


def _short(source: SourceSection) -> Any:
    content = _set(source)
    if len(content.get("path", ())) == 1:
        content["path"] = content["path"][0]
    return content["path"] if list(content) == ["path"] else content


# The page.


def _page(
    recipe: Recipe, proposal: dict[str, Any], notes: tuple[str, ...], report: Report, encoder: Encoder
) -> Iterator[str | tuple[Piece, ...]]:
    from llmkit.config.yaml12 import dump

    yield from (f"# {note}" for note in notes)
    yield dump(proposal).rstrip()
    for name, part in (("train", report.train), ("validation", report.validation)):
        if part is not None:
            yield ""
            yield from _part(name, part, recipe, encoder)
    if report.validation is not None:
        yield ""
        yield f"overlap: {report.overlap:,} validation rows have an input that is trained on"


def _part(name: str, part: PartReport, recipe: Recipe, encoder: Encoder) -> Iterator[str | tuple[Piece, ...]]:
    from llmkit.training.row_counts import Ledger, describe

    yield from describe(Ledger(**part.ledger), name)
    if not part.ledger["examples"]:
        yield f"{name}: no example is left"
    share = part.ledger["target_tokens"] / max(1, part.ledger["tokens"])
    if part.ledger["target_tokens"] and not encoder.traits.extracts_spans:
        yield f"{name}: {part.ledger['target_tokens']:,} tokens carry loss ({share:.1%})"
    yield f"{name}: {part.duplicate_rows:,} duplicates, {part.conflicting_rows:,} inputs again with another answer"
    for status, what, key in _PROBLEMS:
        lines = part.problems.get(status, ())
        yield from (f"  {what}: {line}" for line in lines)
        if lines and getattr(recipe.data, key) in (None, "error"):
            yield f"  training would stop at the first of these; data.{key} says what else to do"
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
    for start, end, count in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False):
        bar = f" {'█' * -(-count * _BAR // most)} {count:,}" if count else ""
        yield f"  {start:>{width},}–{end - 1:<{width},}{bar}".rstrip()


def _show(pieces: tuple[Piece, ...]) -> None:
    """Tokens with loss in green, or between ⟦ and ⟧ without colour."""
    for each in pieces:
        if not each.learned:
            echo(each.text, end="")
        elif sys.stdout.isatty():
            echo(each.text, end="", fg="green")
        else:
            echo(f"⟦{each.text}⟧", end="")
    echo()
