"""The one text that a command works on: from its argument, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from llmkit.data.text import decode_text, read_text_file
from llmkit.errors import InputError

__all__ = ["read_text"]


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # a long text is no valid path
        return False


def _looks_like_a_file(argument: str) -> bool:
    """A missing file must not be answered as if its name were the text."""
    path = Path(argument)
    if any(character.isspace() for character in argument) or not argument.isprintable():
        return False
    return argument.startswith(("./", "../", "/", "~/")) or path.suffix.lower() in {".txt", ".md", ".jsonl", ".json"}


def read_text(argument: str | None, literal: str | None, encoding: str | None = None) -> str:
    """The text a command works on.

    ``literal`` (``--text``) is taken as it is. ``argument`` is a file if one of that name exists, standard
    input if it is ``-`` or missing with something piped in, and otherwise the text itself. ``encoding`` is
    that of the file or of standard input, UTF-8 if None.
    """
    if literal is not None:
        if argument is not None:
            raise InputError(f"both {argument!r} and `text` were given", "give one of them", code="no_effect")
        return _unencoded(literal, encoding)
    if argument == "-" or (argument is None and not sys.stdin.isatty()):
        return decode_text(sys.stdin.buffer.read(), "standard input", encoding or "utf-8")
    if argument is None:
        raise InputError("there is no text", "give a text, a file, or pipe one in", code="empty_input")
    if _is_file(argument):
        return read_text_file(Path(argument), encoding or "utf-8")
    if _looks_like_a_file(argument):
        if Path(argument).is_dir():
            raise InputError(f"{argument} is a folder", "give a text file", code="unsupported_format")
        raise InputError(
            f"there is no file {argument}",
            "check the path, or pass `text` for the words themselves",
            code="file_not_found",
        )
    return _unencoded(argument, encoding)


def _unencoded(text: str, encoding: str | None) -> str:
    if encoding is not None:
        raise InputError("`encoding` has an effect on files and standard input only", "leave it out", code="no_effect")
    # How Python holds the bytes of an argument that are not in the terminal's encoding.
    if place := next((n for n, character in enumerate(text, start=1) if "\udc80" <= character <= "\udcff"), None):
        raise InputError(
            f"the text is not UTF-8 (byte 0x{ord(text[place - 1]) - 0xDC00:02x} at character {place})",
            "put it in a file and name its encoding, such as `encoding=latin-1`",
            code="wrong_encoding",
        )
    return text
