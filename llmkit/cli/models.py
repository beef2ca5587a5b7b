"""``llmkit inspect``, ``llmkit models`` and ``llmkit download``: commands about models that do not run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import declared, worded
from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.config.commands import quoted
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.files import in_units
from llmkit.log import log, printable

__all__ = ["download", "inspect", "models"]

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
    from llmkit.management import inspect as inspect_model

    report = inspect_model(model, revision=revision, base=base, exact=exact)
    echo(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else worded(printable(str(report))))


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
    model: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Hub ids, GGUF files (owner/name/file.gguf), starter or minilm."),
    ],
    revision: Revision = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Copy all files to this new folder, for a machine without network."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download models for offline use.

    A damaged starter or minilm is prepared again.

    Examples:
        llmkit download starter minilm
        llmkit download HuggingFaceTB/SmolLM2-360M-Instruct --to models/smollm2
    """
    from llmkit.management import download as download_model

    if to is not None and len(model) > 1:
        raise UsageError("`to` is for one model", "download each with its own folder")
    folders = {}
    for name in model:
        folder = folders[name] = download_model(name, revision=revision, to=to)
        if not as_json:
            echo(f"{name}\t{folder}")
        _log_next(str(to or name), None if to is not None else revision)
    if as_json:
        found = [{"model": name, "folder": str(folder)} for name, folder in folders.items()]
        echo(json.dumps(found, ensure_ascii=False))
    if to is not None:
        log.info("copy %s to the other machine; it needs no network there", quoted(to))


def _log_next(name: str, revision: str | None) -> None:
    """Log the command that uses a model on this machine."""
    from llmkit.management import inspect as inspect_model

    for text in inspect_model(name, revision=revision, offline=True).commands[:1]:
        log.info("try it: %s", text)
