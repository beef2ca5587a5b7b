"""Rows of a file or of standard input, one at a time: JSON Lines, JSON, CSV, TSV, plain text, Parquet and Arrow.

Knows the formats and their encodings, and says of everything that cannot be read where it stands and why: a row that
is bad becomes a `Record` with an error and reading goes on, a file that is bad raises. Holds one row at a time (of
Parquet and Arrow a small batch), except of ``.json`` and of text by document, which are read whole: give large inputs
as JSON Lines. Does not know what the columns mean, which are needed, or what is done with a bad row.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NoReturn, cast

from llmkit.data.binary_rows import binary_records
from llmkit.data.records import MAX_ROW_BYTES, Layout, Line, Record, bad_row
from llmkit.data.tables import DELIMITERS, table_records
from llmkit.data.text import decode_text, find_codec, refuse_wide
from llmkit.errors import InputError

__all__ = ["MAX_ROW_BYTES", "SUFFIXES", "Layout", "Record", "first_lines", "is_rows", "open_records", "read_rows"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_BINARY = (".parquet", ".arrow")

_CHUNK_BYTES = 2**16
_HEAD_BYTES = 2**13

_GZIP_MAGIC = b"\x1f\x8b"
_FOREIGN = (
    (_GZIP_MAGIC, "gzip", "unpack it, or give a file that ends in .gz"),
    (b"PAR1\x15", "Parquet", "give a file that ends in .parquet"),  # "PAR1" alone may begin a text
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the spreadsheet as .csv"),
)

_USUAL = Layout()


def is_rows(path: Path) -> bool:
    """Whether a file's name says that it holds rows."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return bool(suffixes) and (suffixes[-1] in SUFFIXES or (suffixes[-1] == ".gz" and suffixes[0] in SUFFIXES))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small file, such as few-shot examples.

    Raises:
        InputError: the first bad row, or why the file cannot be read.
    """
    rows = []
    for record in open_records(path, layout=Layout(named=frozenset())):
        if record.row is None:
            raise record.error or InputError(f"{record.where} cannot be read", "fix the row")
        rows.append(record.row)
    return rows


def first_lines(path: Path, count: int, *, encoding: str | None) -> list[str]:
    """The first lines of a text file, whatever its form."""
    records = open_records(path, encoding=encoding, layout=Layout(format="txt"))
    return [record.row["text"] for record in islice(records, count) if record.row is not None]


def open_records(
    source: str | Path, *, encoding: str | None = None, text_column: str = "text", layout: Layout = _USUAL
) -> Iterator[Record]:
    """The rows of a source, lazily and in order.

    A file's suffix says its format: ``.jsonl``, ``.ndjson``, ``.json`` (a list of objects, or an object with one),
    ``.csv``, ``.tsv`` (the first row names the columns), ``.txt`` (one row a line), each also with ``.gz``, or
    ``.parquet`` or ``.arrow``. Only LF and CRLF end a line. Blank lines are no rows but count in the numbers. In CSV
    and TSV a row may have several lines; after one that cannot be parsed, reading goes on with its second line.

    Args:
        source: a file, or ``"-"`` for standard input: JSON Lines if its first character that is not blank is ``{``,
            and otherwise plain text.
        encoding: of a text format; None is UTF-8. A byte order mark is removed.
        text_column: the column in which the lines of plain text are put.
        layout: what the suffix does not say, or says wrongly.

    Raises:
        InputError: the source cannot be read as rows, or holds none; partly when the iterator is asked for a row.
    """
    codec = find_codec(encoding or "utf-8").removesuffix("-sig")
    if source == "-":
        records = _text_records(None, "standard input", "", False, codec, text_column, layout)
        return _some(records, "standard input")
    path, name = Path(source), str(source)
    _check_file(path, name)
    suffix, packed = _format(path, name, layout.format)
    if suffix not in _BINARY:
        records = _text_records(path, name, suffix, packed, codec, text_column, layout)
    elif encoding is None:
        records = _binary_records(path, name, suffix)
    else:
        kind = suffix.removeprefix(".").capitalize()
        raise InputError(f"{name} is {kind}, on which --encoding has no effect", "leave it out")
    return _some(records, name)


def _check_file(path: Path, name: str) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}", "check the path") from error
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    if path.is_dir():
        raise InputError(f"{name} is a folder", f"give a file that ends in {_listed()}")


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{name} cannot be read ({reason})", "check the path and its permissions")


def _listed() -> str:
    texts = [suffix for suffix in SUFFIXES if suffix not in _BINARY]
    return f"{', '.join(texts)} (each also with .gz), {' or '.join(_BINARY)}"


def _format(path: Path, name: str, said: str | None) -> tuple[str, bool]:
    """The suffix that says the format, and whether gzip is around it."""
    packed = path.suffix.lower() == ".gz"
    suffix = f".{said}" if said else Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if packed and suffix in _BINARY:
        raise InputError(f"{name} is {suffix.removeprefix('.').capitalize()} inside gzip", "unpack it")
    if suffix not in SUFFIXES:
        raise InputError(f"{name} has the suffix {path.suffix or '(none)'}", f"give {_listed()}")
    return suffix, packed


def _some(records: Iterator[Record], name: str) -> Iterator[Record]:
    record = None
    for record in records:
        yield record
    if record is None:
        raise InputError(f"{name} holds no rows", "add at least one")


# From bytes to lines.


@contextmanager
def _opened(path: Path | None, name: str, packed: bool) -> Iterator[io.BufferedIOBase]:
    if path is None:
        yield cast(io.BufferedIOBase, sys.stdin.buffer)
        return
    try:
        raw = path.open("rb")
    except OSError as error:
        raise _unreadable(name, error) from error
    with raw:
        if not packed:
            yield raw
            return
        if not _GZIP_MAGIC.startswith(raw.peek(2)[:2]):
            raise InputError(f"{name} is not gzip, which its name says", "rename it without .gz, or copy it again")
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield unpacked


def _chunks(file: io.BufferedIOBase, name: str) -> Iterator[bytes]:
    """What there is, in pieces. Does not wait for a full one: somebody may be typing."""
    while True:
        try:
            chunk = file.read1(_CHUNK_BYTES)
        except EOFError as error:
            raise InputError(f"{name} ends in the middle of the gzip data", "copy it again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{name} is damaged ({error})", "copy it again") from error
        except OSError as error:
            raise _unreadable(name, error) from error
        if not chunk:
            return
        yield chunk


def _checked(chunks: Iterator[bytes], name: str, codec: str) -> Iterator[bytes]:
    """The chunks, if the first does not show that they are something else than text of the encoding."""
    head = b""
    while len(head) < 4 and not head.endswith(b"\n") and (chunk := next(chunks, b"")):
        head += chunk
    _refuse_foreign(head, name)
    if codec == "utf-8":
        refuse_wide(head, name)
    if _has_byte_lines(codec) and b"\0" in head[:_HEAD_BYTES]:
        raise InputError(
            f"{name} is a binary file (NUL at byte {head.index(0)})",
            "give a text file; of UTF-16 name the encoding, such as --encoding utf-16-le",
        )
    yield head
    yield from chunks


def _refuse_foreign(head: bytes, name: str) -> None:
    for magic, what, fix in _FOREIGN:
        if head.startswith(magic):
            raise InputError(f"the content of {name} is {what}", fix)


def _has_byte_lines(codec: str) -> bool:
    """Whether the byte 0x0A ends a line, and nothing else has it: in UTF-16, UTF-32 and EBCDIC it does not."""
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
            f"{name} is not {codec} text ({reason})", "name its encoding, such as --encoding utf-16-le or gb18030"
        ) from error


def _lines(chunks: Iterator[bytes], name: str, codec: str) -> Iterator[Line]:
    for number, (content, size) in enumerate(_divided(chunks), start=1):
        where = f"{name}:{number}"
        error = None
        if size > MAX_ROW_BYTES:
            megabytes = math.ceil(size / 2**20 * 10) / 10
            error = InputError(
                f"{where} has {megabytes:g} MB, more than the {MAX_ROW_BYTES / 2**20:g} MB of a row", "divide it"
            )
        try:
            text = content.decode(codec)
        except UnicodeDecodeError as failure:
            text = content.decode(codec, "replace")
            error = InputError(
                f"{where} is not {codec} text (byte 0x{content[failure.start]:02x} at position {failure.start})",
                "fix the line, or name the encoding of the file, such as --encoding gb18030 or latin-1",
            )
        if "\0" in text:
            error = error or InputError(f"{where} has a NUL at position {text.index(chr(0))}", "remove it")
        yield Line(number, text.removeprefix("\ufeff") if number == 1 else text, size, error)


def _divided(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines with their ends, and their sizes; one above the limit comes empty."""
    held, size = bytearray(), 0
    for chunk in chunks:
        for part in io.BytesIO(chunk):  # which only LF divides
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


# From lines to rows.


def _text_records(
    path: Path | None, name: str, suffix: str, packed: bool, codec: str, text_column: str, layout: Layout
) -> Iterator[Record]:
    with _opened(path, name, packed) as file:
        chunks = _checked(_chunks(file, name), name, codec)
        if not _has_byte_lines(codec):
            chunks, codec = _as_utf8(chunks, name, codec), "utf-8"
        if suffix == ".json":
            yield from _json_records(decode_text(b"".join(chunks), name, codec), name)
            return
        if suffix == ".txt" and layout.sample_by == "document":
            text = decode_text(b"".join(chunks), name, codec).removeprefix("\ufeff")
            if text.strip():
                yield Record(name, {text_column: text})
            return
        lines = _lines(chunks, name, codec)
        if suffix in DELIMITERS:
            yield from table_records(lines, name, suffix, layout)
        elif suffix == ".txt" and layout.sample_by == "paragraph":
            yield from _paragraph_records(lines, name, text_column)
        else:
            yield from _line_records(lines, name, suffix, text_column, layout.blank_lines)


def _line_records(
    lines: Iterator[Line], name: str, suffix: str, text_column: str, blank_lines: bool
) -> Iterator[Record]:
    is_json = suffix != ".txt" if suffix else None
    for line in lines:
        where = f"{name}:{line.number}"
        if line.error is not None:
            yield Record(where, None, line.error)
            continue
        if not line.text.strip() and not blank_lines:
            continue
        if is_json is None:
            is_json = line.text.lstrip().startswith("{")
        if is_json:
            yield _json_record(line.text, where)
        else:
            yield Record(where, {text_column: line.text.removesuffix("\n").removesuffix("\r")})


def _paragraph_records(lines: Iterator[Line], name: str, text_column: str) -> Iterator[Record]:
    for blank, run in groupby(lines, key=lambda line: not line.text.strip() and line.error is None):
        if blank:
            continue
        paragraph = list(run)
        where = f"{name}:{paragraph[0].number}"
        error = next((line.error for line in paragraph if line.error is not None), None)
        text = "".join(line.text.replace("\r\n", "\n") for line in paragraph).removesuffix("\n")
        yield Record(where, None if error else {text_column: text}, error)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is Python's")


_JSON = json.JSONDecoder(parse_constant=_no_json)
_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def _json_record(text: str, where: str) -> Record:
    try:
        row = _JSON.decode(text)
    except RecursionError:
        return bad_row(where, "is nested too deeply", "flatten it")
    except ValueError as error:
        spread = text.strip() in ("[", "{", "[{")
        fix = "write one object a line, or rename the file to .json if it is one list" if spread else "fix the line"
        return bad_row(where, f"is not JSON ({_reason(error)})", fix)
    return _object_record(row, where, escapes=bool(_HALF_OF_A_PAIR.search(text)))


def _json_records(text: str, name: str) -> Iterator[Record]:
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return
    try:
        content = _JSON.decode(text)
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply", "flatten it") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and re.match(r"\s*\{.*\}\s*\n", text):  # JSON Lines by the name of .json
            lines = enumerate(text.split("\n"), start=1)
            yield from (_json_record(line, f"{name}:{number}") for number, line in lines if line.strip())
            return
        raise InputError(f"{name}:{error.lineno} is not JSON ({error.msg})", "fix the line") from error
    except ValueError as error:
        raise InputError(f"{name} is not JSON ({_reason(error)})", "fix the file") from error
    if isinstance(content, dict):
        content = _only_list(content, name)
    if not isinstance(content, list):
        raise InputError(f"{name} does not hold a list", "give a JSON list of objects, or JSON Lines as .jsonl")
    escapes = bool(_HALF_OF_A_PAIR.search(text))
    for number, row in enumerate(content, start=1):
        yield _object_record(row, f"{name}, item {number}", escapes=escapes)


def _only_list(content: dict[str, Any], name: str) -> list[Any]:
    """The rows of a file that has something around them, such as SQuAD's ``{"version": …, "data": […]}``."""
    lists = {
        key: value for key, value in content.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if len(lists) == 1:
        return next(iter(lists.values()))
    keys = ", ".join(list(lists or content)[:8])
    raise InputError(
        f"{name} holds an object with {'several lists' if lists else 'no list'} of objects ({keys})",
        "give a JSON list of objects, or JSON Lines as .jsonl",
    )


def _reason(error: ValueError) -> str:
    """Without the advice that Python gives its programmers on a number of thousands of digits."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]


def _object_record(row: object, where: str, *, escapes: bool) -> Record:
    """``escapes``: half of a surrogate pair, which JSON can escape and UTF-8 cannot hold, is possible."""
    if not isinstance(row, dict):
        return bad_row(where, "is not an object", 'write rows as {"column": "value"}')
    if escapes:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return bad_row(where, "has half of a surrogate pair", "write the character as itself")
        except RecursionError:
            return bad_row(where, "is nested too deeply", "flatten it")
    return Record(where, row)


# Parquet and Arrow.


def _binary_records(path: Path, name: str, suffix: str) -> Iterator[Record]:
    with _opened(path, name, packed=False) as file:
        head = next(_chunks(file, name), b"")
    if suffix == ".parquet" and head and not head.startswith(b"PAR1"):
        _refuse_foreign(head, name)
        raise InputError(f"{name} is not Parquet, which its name says", "rename it, or copy it again")
    if head:
        yield from binary_records(path, name, suffix, head)
