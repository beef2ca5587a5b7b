"""The command ``llmkit serve``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from llmkit.cli.streams import echo
from llmkit.config.settings import LoadSettings
from llmkit.errors import UsageError
from llmkit.management import start_server
from llmkit.server.settings import ServeSettings

__all__ = ["serve"]


def serve(
    load: LoadSettings,
    settings: ServeSettings,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="Hub ids, folders of models or runs.")
    ] = None,
    adapters: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME=DIR",
            help="Serve an adapter of the model under this name, without loading the model again (repeatable).",
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP: OpenAI's API, and each task.

    Examples:
        llmkit serve starter
        llmkit serve runs/summaries --port 8080 --api-key-file key.txt
        llmkit serve starter --adapter papers=runs/papers --adapter news=runs/news
    """
    names = [*(models or ()), *([load.model] if load.model else ())]
    if not names:
        raise UsageError("no model to serve", "name one: llmkit serve MODEL")
    start_server(names, load, settings, _announce, _adapters(adapters or ()))


def _adapters(pairs: Sequence[str]) -> dict[str, str]:
    """The folders of adapters by name."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not (name and folder):
            raise UsageError(f"--adapter {pair}: expected NAME=DIR", "name the adapter and its folder")
        if name in found:
            raise UsageError(f"--adapter names {name} twice", "use another name")
        found[name] = folder
    return found


def _announce(address: str) -> None:
    echo(f"llmkit listens on {address} (with a page for browsers; Ctrl+C stops it)", err=True)
