"""``llmkit inspect``, ``llmkit models`` and ``llmkit download``: commands about models that do not run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import declared, worded
from llmkit.cli.streams import echo
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.files import in_units
from llmkit.log import log, printable

__all__ = ["download", "inspect", "models"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Revision = Annotated[str | None, declared(LoadSettings, "revision")]


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, folder, adapter folder, GGUF file, or starter.")
    ],
    revision: Revision = None,
    base: Annotated[str | None, declared(LoadSettings, "base")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Count parameters by building the model on the meta device.")
    ] = False,
    offline: Annotated[bool, declared(LoadSettings, "offline")] = False,  # noqa: ARG001 - see `llmkit.cli.options`
    as_json: AsJson = False,
) -> None:
    """Show a model's architecture, supported tasks and known issues.

    Reads only its small files, without loading it.

    Examples:
        llmkit inspect starter
        llmkit inspect Qwen/Qwen3-0.6B --json
    """
    from llmkit.models.hub import hub_parameter_counts
    from llmkit.models.inspect import inspect_source, render
    from llmkit.models.locate import locate
    from llmkit.models.reachability import is_offline

    source = locate(LoadSettings(model=model, revision=revision, base=base), weights=False)
    on_hub = source.commit and not source.adapter and not source.gguf_file and not is_offline()
    counts = hub_parameter_counts(model, revision) if on_hub else None
    report = inspect_source(source, exact=exact, hub_counts=counts)
    echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else worded(printable(render(report))))


def models(
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="Show the models of one task only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List recommended models, with size and licence.

    Examples:
        llmkit models
        llmkit models translate
    """
    from dataclasses import asdict

    from llmkit.tasks import TASKS, find_task

    rows = [(each.name, row) for each in ([find_task(task)] if task else TASKS.values()) for row in each.recommended]
    if as_json:
        echo(json.dumps([{"task": name, **asdict(row)} for name, row in rows], ensure_ascii=False))
        return
    width = max(len(row.model) for _, row in rows)
    shown = ""
    for name, row in rows:
        if name != shown:
            echo(f"{'' if not shown else chr(10)}{name}")
            shown = name
        size = in_units(row.megabytes * 1e6)
        echo(f"  {row.model:<{width}}  {row.parameters:>6}  {size:>7}  {row.licence:<15}  {row.note}")


def download(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help="Hub ids, starter or minilm.")],
    revision: Revision = None,
) -> None:
    """Download models for offline use.

    A damaged starter or minilm is prepared again.

    Examples:
        llmkit download starter minilm
        llmkit download HuggingFaceTB/SmolLM2-360M-Instruct --revision main
    """
    from llmkit.models.bundled import embedded_source, is_embedded
    from llmkit.models.reachability import is_offline

    if revision is not None and (embedded := [name for name in model if is_embedded(name)]):
        raise UsageError(f"the {embedded[0]} has no revisions", "leave --revision out", code="no_effect")
    for name in model:
        known = is_embedded(name)
        folder = embedded_source(name, offline=is_offline(), verify=True).folder if known else _fetch(name, revision)
        echo(f"{name}\t{folder}")
        _log_next(name, Path(folder))


def _log_next(name: str, folder: Path) -> None:
    """Log the command that uses a model."""
    from llmkit.models.inspect import inspect_source
    from llmkit.models.source import Source

    for text in inspect_source(Source(name, folder)).commands[:1]:
        log.info("try it: %s", text)


def _fetch(name: str, revision: str | None) -> str:
    from llmkit.models import hub

    return str(hub.download(name, revision=revision).folder)
