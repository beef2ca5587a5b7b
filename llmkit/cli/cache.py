"""``llmkit cache``: what is stored on this machine, how large it is, and its removal."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from llmkit.cli.display import display_width, padded
from llmkit.cli.output import AsJson
from llmkit.cli.streams import echo
from llmkit.errors import UsageError
from llmkit.files import in_units

__all__ = ["cache_list", "cache_prune", "cache_size"]


def cache_list(as_json: AsJson = False) -> None:
    """List what is cached: embedded models, tokenized training data, and models from the Hub.

    Examples:
        llmkit cache list
        llmkit cache list --json
    """
    from llmkit.models.cached import cache_entries

    entries = cache_entries()
    if as_json:
        echo(json.dumps([entry.to_dict() for entry in entries], ensure_ascii=False))
        return
    width = max((display_width(entry.name) for entry in entries), default=0)
    for entry in entries:
        used = "in use" if entry.in_use else f"{entry.idle_days:.0f} days ago"
        echo(f"{entry.kind:<9} {padded(entry.name, width)}  {in_units(entry.size):>8}  {used}")


def cache_size(as_json: AsJson = False) -> None:
    """Print the size of llmkit's cache and of the Hub's, with their folders.

    Examples:
        llmkit cache size
    """
    from huggingface_hub import constants

    from llmkit.config.paths import cache_dir
    from llmkit.models.cached import cache_entries

    sizes = {"llmkit": 0, "hub": 0}
    for entry in cache_entries():
        sizes["hub" if entry.kind == "hub" else "llmkit"] += entry.size
    folders = {"llmkit": str(cache_dir()), "hub": constants.HF_HUB_CACHE}
    if as_json:
        found = {name: {"size": sizes[name], "folder": folders[name]} for name in sizes}
        echo(json.dumps(found, ensure_ascii=False))
        return
    for name, size in sizes.items():
        echo(f"{name:<7} {in_units(size):>8}  {folders[name]}")


def cache_prune(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Entries to remove; by default all but the embedded models."),
    ] = None,
    unused_days: Annotated[
        float, typer.Option("--unused-days", min=0, help="Keep what was used within this number of days.")
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove tokenized training data, old versions and remains of interrupted work from llmkit's cache.

    Entries that a running process uses are kept, and so is the Hub's cache (see: hf cache).

    Examples:
        llmkit cache prune
        llmkit cache prune starter --yes
        llmkit cache prune --unused-days 7
    """
    from llmkit.models.cached import prunable, prune_cache

    entries = prunable(names or (), unused_days=unused_days)
    size = in_units(sum(entry.size for entry in entries))
    if entries and not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{len(entries)} entries ({size}) would be removed", "confirm with `yes`")
        for entry in entries:
            echo(f"{entry.name}  {in_units(entry.size)}", err=True)
        if not typer.confirm(f"Remove {len(entries)} entries ({size})?", err=True):
            entries = []
    removed = prune_cache(entries)
    if as_json:
        echo(json.dumps([entry.to_dict() for entry in removed], ensure_ascii=False))
        return
    echo(f"removed {len(removed)} entries ({in_units(sum(entry.size for entry in removed))})")
