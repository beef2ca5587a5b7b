"""Command lines of llmkit and quoted words, for messages and generated files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = ["command_line", "quoted"]


def quoted(word: object) -> str:
    """A word for a POSIX shell: quoted only if it has to be, which letters of other scripts do not require."""
    text = str(word)
    plain = text and all(character.isalnum() or character in "_@%+=:,./-" for character in text)
    return text if plain else shlex.quote(text)


def command_line(verb: str, *arguments: str, **options: str | bool | Sequence[str]) -> str:
    """A command line of llmkit, for messages and for generated files; an option with several values is repeated."""
    given = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {quoted(value)}")
        for name, values in options.items()
        for value in ([values] if isinstance(values, str | bool) else values)
        if value
    ]
    return " ".join(filter(None, ("llmkit", verb, *arguments, *given)))
