"""Writes docs/cli.md, the help of every command: python docs/write_cli.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llmkit.cli.app import application

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100


def page() -> str:
    """The page as it should be."""
    root = application()
    context = typer.Context(root, info_name="llmkit", terminal_width=WIDTH, help_option_names=["-h", "--help"])
    parts = "".join(f"\n## {name}\n\n```text\n{text}\n```\n" for name, text in _helps(root, context))
    return f"# Commands\n\nWhat `--help` shows, written by `python docs/write_cli.py`.\n{parts}"


def _helps(command: Any, context: Any) -> Iterator[tuple[str, str]]:
    yield context.command_path, command.get_help(context)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, typer.Context(inner, info_name=name, parent=context, terminal_width=WIDTH))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
