"""Values that the shell completes: models, recipes and their keys, tasks, languages. Loads no model.

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


def _recipe_keys() -> Iterable[str]:
    from llmkit.config.recipe_errors import keys_by_section

    sections = keys_by_section()
    names = {(*section, key) for section, keys in sections.items() for key in keys} - sections.keys()
    return sorted(f"{'.'.join(name)}=" for name in names)


def _languages() -> Iterable[str]:
    """Codes and English names."""
    from llmkit.text.languages import two_letter_languages

    return dict.fromkeys(name for each in two_letter_languages() for name in (each.tag, each.name))


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
    "overrides": _recipe_keys,
    "source": _languages,
    "target": _languages,
    "attn_implementation": lambda: ("eager", "sdpa", "flash_attention_2"),
    "encoding": lambda: ("utf-8", "utf-16", "latin-1", "cp1252", "gb18030", "big5", "shift_jis", "euc-kr"),
}
"""Completers by the name of the parameter."""


def completer(name: str) -> Callable[[str], list[str]] | None:
    """The completer of a parameter, as Typer takes it; None for file names and free text."""
    values = _COMPLETERS.get(name)
    return None if values is None else lambda incomplete: [each for each in values() if each.startswith(incomplete)]
