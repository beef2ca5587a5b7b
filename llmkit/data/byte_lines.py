"""Lines of a file or of standard input: bytes, unpacked, checked for their format, and decoded.

Locates bytes that cannot be decoded. Does not know rows (`llmkit.data.rows`).
"""

from __future__ import annotations

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import cast

from llmkit.data.records import MAX_ROW_BYTES, Line, Place, too_long
from llmkit.data.text import refuse_wide, undecodable
from llmkit.errors import InputError

__all__ = [
    "byte_chunks",
    "decoded_chunks",
    "decoded_lines",
    "divided_lines",
    "opened",
    "refuse_foreign",
    "text_chunks",
    "unreadable",
]

_CHUNK_BYTES = 2**16
_HEAD_BYTES = 2**13

_GZIP_MAGIC = b"\x1f\x8b"
_FOREIGN = (
    (_GZIP_MAGIC, "gzip", "unpack it, or give a file that ends in .gz"),
    (b"PAR1\x15", "Parquet", "give a file that ends in .parquet"),  # "PAR1" alone may begin a text
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the spreadsheet as .csv"),
)


def unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{name} cannot be read ({reason})", "check the path and its permissions", code="unreadable_file")


@contextmanager
def opened(path: Path | None, name: str, packed: bool) -> Iterator[io.BufferedIOBase]:
    if path is None:
        yield cast(io.BufferedIOBase, sys.stdin.buffer)
        return
    try:
        raw = path.open("rb")
    except OSError as error:
        raise unreadable(name, error) from error
    with raw:
        if not packed:
            yield raw
            return
        if not _GZIP_MAGIC.startswith(raw.peek(2)[:2]):
            raise InputError(
                f"{name} is not gzip, although its name ends in .gz",
                "rename it without .gz, or copy it again",
                code="unsupported_format",
            )
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked


def byte_chunks(file: io.BufferedIOBase, name: str, start: int = 0) -> Iterator[bytes]:
    """The available bytes, in chunks. Does not wait for a full chunk, since input may be interactive."""
    while True:
        try:
            if start:
                file.seek(start)
                start = 0
            chunk = file.read1(_CHUNK_BYTES)
        except EOFError as error:
            raise InputError(
                f"{name} ends in the middle of the gzip data", "copy it again", code="unreadable_file"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{name} is damaged ({error})", "copy it again", code="unreadable_file") from error
        except OSError as error:
            raise unreadable(name, error) from error
        if not chunk:
            return
        yield chunk


def _checked(chunks: Iterator[bytes], name: str, codec: str) -> Iterator[bytes]:
    """The chunks, after checking that the first looks like text in the encoding."""
    head = b""
    while len(head) < 4 and not head.endswith(b"\n") and (chunk := next(chunks, b"")):
        head += chunk
    refuse_foreign(head, name)
    if codec == "utf-8":
        refuse_wide(head, name)
    if _has_byte_lines(codec) and b"\0" in head[:_HEAD_BYTES]:
        raise InputError(
            f"{name} is a binary file (NUL at byte {head.index(0)})",
            "give a text file; of UTF-16 name the encoding, such as `encoding=utf-16-le`",
            code="unsupported_format",
        )
    yield head
    yield from chunks


def refuse_foreign(head: bytes, name: str) -> None:
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"the content of {name} is {what}", fix, code="unsupported_format")


def _has_byte_lines(codec: str) -> bool:
    """Whether the byte 0x0A always means the end of a line; not in UTF-16, UTF-32 and EBCDIC."""
    return "\n".encode(codec) == b"\n"


def _as_utf8(chunks: Iterator[bytes], name: str, codec: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise InputError(
            f"{name} is not {codec} text ({reason})",
            "name its encoding, such as `encoding=utf-16-le` or gb18030",
            code="wrong_encoding",
        ) from error


def text_chunks(file: io.BufferedIOBase, name: str, codec: str) -> tuple[Iterator[bytes], str]:
    """The content of a text file, transcoded if necessary, and an encoding in which only LF has the byte 0x0A."""
    chunks = _checked(byte_chunks(file, name), name, codec)
    return (chunks, codec) if _has_byte_lines(codec) else (_as_utf8(chunks, name, codec), "utf-8")


def decoded_chunks(chunks: Iterator[bytes], name: str, codec: str) -> Iterator[str]:
    """Decoded text without its byte order mark."""
    decoder, done, mark = codecs.getincrementaldecoder(codec)(), 0, "\ufeff"
    for chunk in chain(chunks, [b""]):
        begun = done - len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise undecodable(name, codec, error.object[error.start], begun + error.start) from error
        done += len(chunk)
        yield text.removeprefix(mark)
        mark = "" if text else mark


def decoded_lines(chunks: Iterator[bytes], name: str, codec: str, start: Place | None = None) -> Iterator[Line]:
    """The lines of a file; ``start`` is the place before the first, None if the chunks are in another encoding."""
    first, end = (1, 0) if start is None else (start.line + 1, start.byte)
    for number, (content, size) in enumerate(divided_lines(chunks), start=first):
        end += size if start is not None else 0
        where = f"{name}:{number}"
        error = None
        if size > MAX_ROW_BYTES:
            error = too_long(where, size)
        try:
            text = content.decode(codec)
        except UnicodeDecodeError as failure:
            text = content.decode(codec, "replace")
            error = InputError(
                f"{where} is not {codec} text (byte 0x{content[failure.start]:02x} at position {failure.start})",
                "fix the line, or name the encoding of the file, such as `encoding=gb18030` or latin-1",
                code="wrong_encoding",
            )
        if "\0" in text:
            error = error or InputError(
                f"{where} has a NUL at position {text.index(chr(0))}", "remove it", code="unsupported_format"
            )
        yield Line(number, text.removeprefix("\ufeff") if number == 1 else text, size, error, end)


def divided_lines(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines with their line ends, and their sizes; a line above the limit is empty."""
    held, size = bytearray(), 0
    for chunk in chunks:
        for part in io.BytesIO(chunk):  # which splits at LF only
            size += len(part)
            if size <= MAX_ROW_BYTES:
                held += part
            else:
                held = bytearray()
            if part.endswith(b"\n"):
                yield bytes(held), size
                held, size = bytearray(), 0
    if size:
        yield bytes(held), size
