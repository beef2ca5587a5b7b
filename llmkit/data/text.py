"""Decoding of text files, and errors about encodings."""

from __future__ import annotations

import codecs
from pathlib import Path

from llmkit.config.paths import user_path
from llmkit.errors import InputError

__all__ = ["decode_text", "find_codec", "read_bytes", "read_text_file", "refuse_wide", "undecodable"]

_WIDE_BOMS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def find_codec(encoding: str) -> str:
    """Python's name of a text encoding; `InputError` if it is unknown."""
    try:
        "\n".encode(encoding)  # lookup() also finds codecs that are not text encodings, such as base64
        b"\n".decode(encoding, "replace")  # which IDNA refuses
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InputError(
            f"unknown encoding {encoding!r}", "use a name such as utf-8, gb18030 or latin-1", code="wrong_encoding"
        ) from error


def refuse_wide(content: bytes, name: str) -> None:
    """Raise `InputError` if content that should be UTF-8 has a byte order mark of UTF-16 or UTF-32."""
    wide = next((label for bom, label in _WIDE_BOMS.items() if content.startswith(bom)), None)
    if wide:
        raise InputError(f"{name} is {wide} text, not UTF-8", f"pass `encoding={wide.lower()}`", code="wrong_encoding")


def decode_text(content: bytes, name: str, encoding: str = "utf-8") -> str:
    """Bytes as text without a byte order mark; `InputError` with the position of a byte that cannot be decoded."""
    codec = find_codec(encoding)
    if codec == "utf-8":
        refuse_wide(content, name)
        codec = "utf-8-sig"
    if codec.startswith("utf-8") and b"\0" in content:
        raise InputError(
            f"{name} is a binary file (NUL at byte {content.index(0)})", "give a text file", code="unsupported_format"
        )
    try:
        return content.decode(codec)
    except UnicodeDecodeError as error:
        raise undecodable(name, encoding, content[error.start], error.start) from error


def undecodable(name: str, encoding: str, byte: int, position: int) -> InputError:
    """The error of a text with a byte that cannot be decoded."""
    return InputError(
        f"{name} is not {encoding} text (byte 0x{byte:02x} at position {position})",
        "name its encoding, such as `encoding=gb18030` or latin-1",
        code="wrong_encoding",
    )


def read_text_file(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file."""
    return decode_text(read_bytes(path), str(path), encoding)


def read_bytes(path: Path) -> bytes:
    """The content of a file."""
    if user_path(str(path)).is_dir():
        raise InputError(f"{path} is a folder", "give a text file", code="unsupported_format")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})", "check the path and its permissions", code="unreadable_file"
        ) from error
