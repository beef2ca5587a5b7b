"""The command ``llmkit serve``."""

from __future__ import annotations

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
) -> None:
    """Answer requests over HTTP: OpenAI's API, and each task.

    Examples:
        llmkit serve starter
        llmkit serve runs/summaries --port 8080 --api-key-file key.txt
    """
    names = [*(models or ()), *([load.model] if load.model else ())]
    if not names:
        raise UsageError("no model to serve", "name one: llmkit serve MODEL")
    start_server(names, load, settings, _announce)


def _announce(address: str) -> None:
    echo(f"llmkit listens on {address} (with a page for browsers; Ctrl+C stops it)", err=True)
