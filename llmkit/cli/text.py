"""The one text that a command works on: its argument, a file, standard input, or an instruction and text below it."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

from llmkit.config.paths import user_path
from llmkit.errors import InputError
from llmkit.log import log, warn

__all__ = ["read_text"]

_ROWS = frozenset((".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow"))
_SUFFIXES = re.compile(
    r"\.(?:txt|md|rst|tex|log|srt|vtt|jsonl?|ndjson|[ct]sv|parquet|arrow|xml|html?|ya?ml|pdf|docx?|odt|rtf|epub|pptx?"
    r"|xlsx?|gz|zip|png|jpe?g)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+", re.IGNORECASE)
_PATH = re.compile(r"(?:\.{0,2}/|~/|[A-Za-z]:[\\/])\S")
_LONGEST_NAME = 80
"""Length of a single word, or of a file name with spaces, that is worth a warning."""
_LONGEST_PATH = 4096


def read_text(
    argument: str | None,
    literal: str | None,
    encoding: str | None = None,
    *,
    takes_instruction: bool = False,
    takes_document: bool = False,
    is_row: bool = True,
) -> str:
    """The text a command works on.

    Args:
        argument: the name of a file, ``-`` for standard input, or the text itself; standard input by default.
        literal: the text itself (``--text``), also if a file has that name.
        encoding: encoding of the file or of standard input, UTF-8 by default.
        takes_instruction: the text is an instruction: what is piped in belongs below it, and so does the file that is
            named beside a literal text. Other texts are complete, and a pipe beside them is an error.
        takes_document: the text is a document: HTML is read for its text, and a single word is not one.
        is_row: the text is all of a row, so that each file of a folder is one too.
    """
    if argument is None and literal is None:
        if sys.stdin.isatty():
            raise InputError("the text is missing", "give a text, a file, or pipe one in", code="empty_input")
        argument = "-"
    if argument is not None and literal is not None:
        if not takes_instruction or not (argument == "-" or _is_file(argument)):
            raise InputError(f"both {argument!r} and `text` are set", "leave one of them out", code="no_effect")
        return _below(_checked(literal), read_text(argument, None, encoding))
    if argument == "-":
        return _document(sys.stdin.buffer.read(), "standard input", encoding, takes_document)
    from llmkit.cli.piped import piped, something_is_piped

    is_file = argument is not None and _is_file(argument)
    if argument is not None and is_file:
        text = _file(argument, encoding, takes_document)
    else:
        text = _checked(literal or "" if argument is None else _no_file(argument, takes_document, is_row))
        if not takes_instruction and something_is_piped():
            raise InputError(
                "standard input contains a text beside the one of the command",
                "leave one of them out; in a shell loop, add </dev/null",
                code="no_effect",
            )
    below = _document(piped(), "standard input", encoding, takes_document) if takes_instruction else ""
    if below.strip():
        log.info("the prompt is the text, and below it %d characters from standard input", len(below))
        return _below(text, below)
    if encoding is not None and not is_file:
        raise InputError("`encoding` has an effect on files and standard input only", "leave it out", code="no_effect")
    return text


def _below(instruction: str, text: str) -> str:
    return f"{instruction.rstrip()}\n\n{text}" if instruction.strip() else text


def _is_file(argument: str) -> bool:
    with suppress(InputError, OSError, ValueError):  # a long text is no valid path
        return user_path(argument).is_file()
    return False


def _is_folder(argument: str) -> bool:
    with suppress(InputError, OSError, ValueError):
        return bool(argument.strip()) and user_path(argument).is_dir()
    return False


def _file(name: str, encoding: str | None, takes_document: bool) -> str:
    from llmkit.data.text import read_bytes

    content = read_bytes(user_path(name))
    suffixes = [each.lower() for each in Path(name).suffixes[-2:]]
    last = suffixes[0] if suffixes[1:] == [".gz"] else suffixes[-1] if suffixes else ""
    if last in _ROWS or (last == ".json" and content.lstrip().startswith(b"[")):
        raise InputError(
            f"{name} is a file of rows, not one text",
            f"answer each of its rows with `input={name}`",
            "pipe it in to pass it as one text",
            code="unsupported_format",
        )
    return _document(content, name, encoding, takes_document)


def _document(content: bytes, name: str, encoding: str | None, takes_document: bool) -> str:
    from llmkit.data.documents import document_text, format_of

    text = document_text(content, name, encoding, keep_html=not takes_document)
    if (found := format_of(content)) and (takes_document or not found.is_text):
        log.info("%s is %s, of which the text is used (%d characters)", name, found.name, len(text))
    return text


def _no_file(argument: str, takes_document: bool, is_row: bool) -> str:
    """The argument as the text itself, unless it must be the name of something that is not a file."""
    if _is_folder(argument):
        raise InputError(
            f"{argument} is a folder",
            f"answer each of its files with `input={argument}`" if is_row else "pass one of its files",
            f"pass `text={argument}` for the words themselves",
            code="unsupported_format",
        )
    if _ADDRESS.fullmatch(argument):
        raise InputError(
            f"{argument} is an address, and llmkit fetches no pages",
            "save the page, and pass the file",
            "pass `text` for the address itself",
            code="unsupported_format",
        )
    one_line = len(argument) <= _LONGEST_NAME and argument.isprintable()
    one_word = len(argument) <= _LONGEST_PATH and argument.isprintable() and not any(map(str.isspace, argument))
    has_suffix = (one_line or one_word) and _SUFFIXES.fullmatch(Path(argument).suffix) is not None
    if one_word and (has_suffix or _PATH.match(argument)):
        raise InputError(
            f"the file {argument} does not exist",
            "check the path, or pass `text` for the words themselves",
            code="file_not_found",
        )
    if has_suffix or (one_line and one_word and _is_suspicious(argument, takes_document)):
        warn("not_a_file", "no file is called %s, so that is taken as the text itself", argument)
    return argument


def _is_suspicious(word: str, takes_document: bool) -> bool:
    """Whether a single word is more likely the name of a missing file than a text."""
    from llmkit.text.scripts import is_unspaced

    if any(map(is_unspaced, word)):  # may be a sentence
        return False
    return any(map(str.isalpha, word)) and (takes_document or any(sign in word for sign in "/\\_"))


def _checked(text: str) -> str:
    # How Python holds the bytes of an argument that are not in the terminal's encoding.
    if place := next((n for n, character in enumerate(text, start=1) if "\udc80" <= character <= "\udcff"), None):
        raise InputError(
            f"the text is not UTF-8 (byte 0x{ord(text[place - 1]) - 0xDC00:02x} at character {place})",
            "put it in a file and name its encoding, such as `encoding=latin-1`",
            code="wrong_encoding",
        )
    return text
