"""Values that the shell completes: models, recipes, tasks, languages. Imports nothing that loads a model.

A completer returns all its values; Typer keeps those that begin with what was typed. Where none does, the shell
completes file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperOption

from llmkit.tasks import TASKS

__all__ = ["completer", "completion_options"]


def completion_options() -> list[TyperOption]:
    """The options ``--install-completion`` and ``--show-completion``."""
    options: Any = typer.main.get_install_completion_arguments()
    # Typer passes descriptions through Rich, which would drop [brackets] and takes longer to import than the rest.
    typer._completion_classes._sanitize_help_text = lambda text: text  # noqa: SLF001
    helps = ("Install completion for the current shell.", "Print the completion script of the current shell.")
    for option, text in zip(options, helps, strict=True):
        option.rich_help_panel, option.help = "Program", text
    return list(options)


def _models() -> Iterable[str]:
    """Bundled and recommended models, and those in the cache of the Hub's client."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from llmkit.models.bundled import EMBEDDED

    recommended = (each.model for task in TASKS.values() for each in task.recommended)
    cached = (path.name.removeprefix("models--").replace("--", "/") for path in Path(HF_HUB_CACHE).glob("models--*"))
    return dict.fromkeys((*EMBEDDED, *recommended, *sorted(cached)))


def _recipes() -> Iterable[str]:
    from llmkit.config.paths import shipped_recipes

    return shipped_recipes()


def _tasks() -> Iterable[str]:
    return [name for task in TASKS.values() for name in (task.verb, task.name)]


_COMPLETERS: dict[str, Callable[[], Iterable[str]]] = {
    "model": _models,
    "base": _models,
    "baseline": _models,
    "adapter": _models,
    "recipe": _recipes,
    "name": _recipes,
    "names": _recipes,
    "given_paths": _recipes,
    "task": _tasks,
    "attn_implementation": lambda: ("eager", "sdpa", "flash_attention_2"),
    "encoding": lambda: ("utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "big5", "shift_jis", "euc-kr"),
}
"""Completers by the name of the parameter."""


def completer(name: str) -> Callable[[str], list[str]] | None:
    """The completer of a parameter, as Typer takes it; None for file names and free text."""
    values = _COMPLETERS.get(name)
    return None if values is None else lambda incomplete: [each for each in values() if each.startswith(incomplete)]
