"""One text from a file, standard input or the command line, or one clear line why not."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from llmkit.config.paths import user_path
from llmkit.errors import InputError

__all__ = ["decode_text", "find_codec", "read_text", "read_text_file", "refuse_wide", "undecodable"]

_WIDE_BOMS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def find_codec(encoding: str) -> str:
    """Python's name of a text encoding. `InputError` if there is none of that name."""
    try:
        "\n".encode(encoding)  # lookup() also finds what is no text encoding, such as base64
        b"\n".decode(encoding, "replace")  # which IDNA refuses
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InputError(f"unknown encoding {encoding!r}", "use a name such as utf-8, gb18030 or latin-1") from error


def refuse_wide(content: bytes, name: str) -> None:
    """`InputError` if the byte order mark says UTF-16 or UTF-32, for content that was to be UTF-8."""
    wide = next((label for bom, label in _WIDE_BOMS.items() if content.startswith(bom)), None)
    if wide:
        raise InputError(f"{name} is {wide} text, not UTF-8", f"pass --encoding {wide.lower()}")


def decode_text(content: bytes, name: str, encoding: str = "utf-8") -> str:
    """Bytes to text; a byte order mark is not part of it. `InputError` says what is wrong and where."""
    codec = find_codec(encoding)
    if codec == "utf-8":
        refuse_wide(content, name)
        codec = "utf-8-sig"
    if codec.startswith("utf-8") and b"\0" in content:
        raise InputError(f"{name} is a binary file (NUL at byte {content.index(0)})", "give a text file")
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        raise undecodable(name, encoding, content[error.start], error.start) from error


def undecodable(name: str, encoding: str, byte: int, position: int) -> InputError:
    """The error of a text with a byte that its encoding does not have."""
    return InputError(
        f"{name} is not {encoding} text (byte 0x{byte:02x} at position {position})",
        "name its encoding, such as --encoding gb18030 or latin-1",
    )


def read_text_file(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file."""
    if user_path(str(path)).is_dir():
        raise InputError(f"{path} is a folder", "give a text file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check the path and its permissions") from error
    return decode_text(content, str(path), encoding)


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
            raise InputError(f"both {argument!r} and --text were given", "give one of them")
        return _unencoded(literal, encoding)
    if argument == "-" or (argument is None and not sys.stdin.isatty()):
        return decode_text(sys.stdin.buffer.read(), "standard input", encoding or "utf-8")
    if argument is None:
        raise InputError("there is no text", "give a text, a file, or pipe one in")
    if _is_file(argument):
        return read_text_file(Path(argument), encoding or "utf-8")
    if _looks_like_a_file(argument):
        if Path(argument).is_dir():
            raise InputError(f"{argument} is a folder", "give a text file")
        raise InputError(f"there is no file {argument}", "check the path, or pass --text for the words themselves")
    return _unencoded(argument, encoding)


def _unencoded(text: str, encoding: str | None) -> str:
    if encoding is not None:
        raise InputError("--encoding has an effect on files and standard input only", "leave it out")
    # How Python holds the bytes of an argument that are not in the terminal's encoding.
    if place := next((n for n, character in enumerate(text, start=1) if "\udc80" <= character <= "\udcff"), None):
        raise InputError(
            f"the text is not UTF-8 (byte 0x{ord(text[place - 1]) - 0xDC00:02x} at character {place})",
            "put it in a file and name its encoding, such as --encoding latin-1",
        )
    return text
