"""Rows of a file or of standard input, one at a time: JSON Lines, JSON, CSV, TSV, plain text, Parquet and Arrow.

Knows the formats and their encodings, and locates errors: a bad row becomes a `Record` with an error and the next row
follows; a bad file raises. Holds one row at a time (a small batch for Parquet and Arrow). Does not know what columns
mean, which are required, or how bad rows are handled.

Datasets is not used: its readers fail on an entire file for one bad line, do not support standard input, and convert
strings that look like dates and numbers.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from llmkit.data.binary_rows import binary_records
from llmkit.data.byte_lines import (
    byte_chunks,
    decoded_chunks,
    decoded_lines,
    divided_lines,
    opened,
    refuse_foreign,
    text_chunks,
    unreadable,
)
from llmkit.data.json_documents import JSON, document_rows, json_reason
from llmkit.data.records import MAX_ROW_BYTES, Layout, Line, Place, Record, bad_row, too_long
from llmkit.data.tables import DELIMITERS, may_be_table, table_format, table_records
from llmkit.data.text import find_codec
from llmkit.errors import InputError
from llmkit.files import in_units

__all__ = [
    "MAX_ROW_BYTES",
    "SUFFIXES",
    "Layout",
    "Place",
    "Record",
    "first_lines",
    "is_rows",
    "object_record",
    "open_records",
    "read_rows",
]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_BINARY = (".parquet", ".arrow")

_USUAL = Layout()
_BEGINNING = Place()


def is_rows(path: Path) -> bool:
    """Whether a file has the suffix of a row format."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return bool(suffixes) and (suffixes[-1] in SUFFIXES or (suffixes[-1] == ".gz" and suffixes[0] in SUFFIXES))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a small file, such as few-shot examples.

    Raises:
        InputError: the first bad row, or why the file cannot be read.
    """
    rows = []
    for record in open_records(path):
        if record.row is None:
            raise record.error or InputError(f"{record.where} cannot be read", "fix the row")
        rows.append(record.row)
    return rows


def first_lines(path: Path, count: int, *, encoding: str | None) -> list[str]:
    """The first lines of a text file of any format."""
    records = open_records(path, encoding=encoding, layout=Layout(format="txt"))
    return [record.row["text"] for record in islice(records, count) if record.row is not None]


def open_records(
    source: str | Path,
    *,
    encoding: str | None = None,
    text_column: str = "text",
    layout: Layout = _USUAL,
    start: Place = _BEGINNING,
) -> Iterator[Record]:
    """The rows of a source, lazily and in order.

    A file's suffix determines its format: ``.jsonl``, ``.ndjson``, ``.json`` (a list of objects or an object with one),
    ``.csv``, ``.tsv``, ``.txt`` (one row per line), each also with ``.gz``, or ``.parquet`` or ``.arrow``. Only LF and
    CRLF end a line. Blank lines are not rows, but count in line numbers. A CSV or TSV row may span several lines; after
    one that cannot be parsed, parsing resumes at its second line.

    Args:
        source: a file, or ``"-"`` for standard input: JSON Lines if its first non-blank character is ``{``, JSON if it
            begins with a list of objects, otherwise plain text.
        encoding: encoding of text formats; None is UTF-8. A byte order mark is removed.
        text_column: the column for lines of plain text.
        layout: properties that the suffix does not determine, or that override it.
        start: a place in this file. Lines of JSON or text are read from its byte, Parquet and Arrow from its row group
            or batch; of other formats, the rows before it are parsed and skipped.

    Raises:
        InputError: the source cannot be read as rows, or holds none; partly when the iterator is asked for a row.
    """
    codec = find_codec(encoding or "utf-8").removesuffix("-sig")
    if source == "-":
        suffix = f".{layout.format}" if layout.format else ""
        records = _text_records(None, "standard input", suffix, False, codec, text_column, layout, start)
        return _some(records, "standard input")
    # Names that are not UTF-8 hold lone surrogates, which no table takes.
    path, name = Path(source), str(source).encode("utf-8", "backslashreplace").decode()
    _check_file(path, name)
    suffix, packed = _format(path, name, layout.format)
    if suffix not in DELIMITERS and (useless := layout.table_settings()):
        named = " and ".join(f"`{each}`" for each in useless)
        raise InputError(f"{name} is not CSV or TSV, so {named} has no effect", "leave it out", code="no_effect")
    if suffix not in _BINARY:
        records = _text_records(path, name, suffix, packed, codec, text_column, layout, start)
        records = records if start.byte else islice(records, start.rows, None)
    elif encoding is None:
        records = _binary_records(path, name, suffix, start.rows)
    else:
        kind = suffix.removeprefix(".").capitalize()
        raise InputError(
            f"{name} is {kind}, on which `encoding` has no effect", "leave it out", code="unsupported_format"
        )
    return records if start.rows else _some(records, name)


def _check_file(path: Path, name: str) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist", "check the path", code="file_not_found") from error
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    if path.is_dir():
        raise InputError(f"{name} is a folder", f"give a file that ends in {_listed()}", code="unsupported_format")


def _listed() -> str:
    texts = [suffix for suffix in SUFFIXES if suffix not in _BINARY]
    return f"{', '.join(texts)} (each also with .gz), {' or '.join(_BINARY)}"


def _format(path: Path, name: str, explicit: str | None) -> tuple[str, bool]:
    """The suffix of the format, and whether the file is gzipped."""
    packed = path.suffix.lower() == ".gz"
    suffix = f".{explicit}" if explicit else Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if packed and suffix in _BINARY:
        raise InputError(
            f"{name} is {suffix.removeprefix('.').capitalize()} inside gzip", "unpack it", code="unsupported_format"
        )
    if suffix not in SUFFIXES:
        raise InputError(
            f"{name} has the suffix {path.suffix or '(none)'}", f"give {_listed()}", code="unsupported_format"
        )
    return suffix, packed


def _some(records: Iterator[Record], name: str) -> Iterator[Record]:
    record = None
    for record in records:
        yield record
    if record is None:
        raise InputError(f"{name} holds no rows", "add at least one", code="no_rows")


# From lines to rows.


def _text_records(
    path: Path | None, name: str, suffix: str, packed: bool, codec: str, text_column: str, layout: Layout, start: Place
) -> Iterator[Record]:
    with opened(path, name, packed) as file:
        if start.byte:
            lines = decoded_lines(byte_chunks(file, name, start.byte), name, codec, start)
            yield from _line_records(lines, name, suffix, text_column, layout.blank_lines)
            return
        if suffix == ".json" and path is not None:
            yield from _json_records(file, path, name, packed, codec)
            return
        own = codec
        chunks, codec = text_chunks(file, name, codec)
        if suffix == ".txt" and layout.sample_by == "document":
            yield from _document_record(decoded_chunks(chunks, name, codec), path, name, text_column)
            return
        if not suffix:
            head = next(chunks, b"")
            chunks = chain([head], chunks)
            if _LIST.match(head.decode(codec, "ignore")):
                yield from _items(decoded_chunks(chunks, name, codec), name, MAX_ROW_BYTES, None)
                return
        lines = decoded_lines(chunks, name, codec, _BEGINNING if codec == own else None)
        if layout.finds_tables and suffix in ("", ".txt"):
            suffix, lines = _or_table(lines, suffix, layout)
        if suffix in DELIMITERS:
            yield from table_records(lines, name, suffix, layout)
        elif suffix == ".txt" and layout.sample_by == "paragraph":
            yield from _paragraph_records(lines, name, text_column)
        else:
            yield from _line_records(lines, name, suffix, text_column, layout.blank_lines)


_LIST = re.compile(r"\ufeff?\s*\[\s*(?:\{|\Z)")
"""How a list of objects begins."""
_TABLE_LINES = 20


def _or_table(lines: Iterator[Line], suffix: str, layout: Layout) -> tuple[str, Iterator[Line]]:
    """The suffix of the format, and the lines. More lines than the first are needed only if it may be a table's."""
    ahead: list[Line] = []
    while not any(line.text.strip() for line in ahead) and (line := next(lines, None)) is not None:
        ahead.append(line)
    if ahead and may_be_table(ahead[-1].text, layout.named) and not (not suffix and _is_object(ahead[-1].text)):
        ahead += islice(lines, _TABLE_LINES)
        found = table_format([line.text for line in ahead], layout.named)
        suffix = f".{found}" if found else suffix
    return suffix, chain(ahead, lines)


def _is_object(line: str) -> bool:
    return line.lstrip().startswith("{")


def _line_records(
    lines: Iterator[Line], name: str, suffix: str, text_column: str, blank_lines: bool
) -> Iterator[Record]:
    is_json = suffix != ".txt" if suffix else None
    for line in lines:
        where, end = f"{name}:{line.number}", (line.number, line.end)
        if line.error is not None:
            yield Record(where, None, line.error, end=end)
            continue
        if not line.text.strip() and not blank_lines:
            continue
        if is_json is None:
            is_json = _is_object(line.text)
        if is_json:
            yield _json_record(line.text, where, end)
        else:
            yield Record(where, {text_column: line.text.removesuffix("\n").removesuffix("\r")}, end=end)


def _document_record(pieces: Iterator[str], path: Path | None, name: str, text_column: str) -> Iterator[Record]:
    parts, size, limit = [], 0, _document_limit(path)
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > limit:
            raise InputError(f"{name} holds more than {in_units(limit)}, too much for one row", "divide it")
    text = "".join(parts)
    if text.strip():
        yield Record(name, {text_column: text})


def _paragraph_records(lines: Iterator[Line], name: str, text_column: str) -> Iterator[Record]:
    for blank, run in groupby(lines, key=lambda line: not line.text.strip() and line.error is None):
        if blank:
            continue
        first = next(run)
        where, error, size, texts = f"{name}:{first.number}", None, 0, []
        for line in chain([first], run):
            error, size = error or line.error, size + line.size
            if size <= MAX_ROW_BYTES:
                texts.append(line.text.replace("\r\n", "\n"))
        if size > MAX_ROW_BYTES:
            error = error or too_long(where, size)
        text = "".join(texts).removesuffix("\n")
        yield Record(where, None if error else {text_column: text}, error)


_HALF_OF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def _json_record(text: str, where: str, end: tuple[int, int] = (0, 0)) -> Record:
    try:
        row = JSON.decode(text)
    except RecursionError:
        return bad_row(where, "is nested too deeply", "flatten it", end)
    except ValueError as error:
        spread = text.strip() in ("[", "{", "[{")
        fix = "write one object a line, or rename the file to .json if it is one list" if spread else "fix the line"
        return bad_row(where, f"is not JSON ({json_reason(error)})", fix, end)
    return object_record(row, where, escapes=bool(_HALF_OF_A_PAIR.search(text)), end=end)


def _json_records(file: io.BufferedIOBase, path: Path, name: str, packed: bool, encoding: str) -> Iterator[Record]:
    chunks, codec = text_chunks(file, name, encoding)
    seen, has_lines = _looks_like_lines(chunks)
    chunks = chain(seen, chunks)
    if has_lines:  # JSON Lines by the name of .json
        lines = decoded_lines(chunks, name, codec, _BEGINNING if codec == encoding else None)
        yield from _line_records(lines, name, ".jsonl", "", False)
        return
    again = partial(_reopened, path, name, packed, encoding) if path.is_file() else None
    yield from _items(decoded_chunks(chunks, name, codec), name, _document_limit(path), again)


def _items(pieces: Iterator[str], name: str, limit: int, again: Callable[[], Iterator[str]] | None) -> Iterator[Record]:
    rows = document_rows(pieces, name, limit, again)
    for number, (row, text) in enumerate(rows, start=1):
        yield object_record(row, f"{name}, item {number}", escapes=bool(_HALF_OF_A_PAIR.search(text)))


def _looks_like_lines(chunks: Iterator[bytes]) -> tuple[list[bytes], bool]:
    """The chunks read so far, and whether the first line is an object that is followed by another line."""
    seen: list[bytes] = []

    def first_chunks() -> Iterator[bytes]:
        while sum(map(len, seen)) <= MAX_ROW_BYTES and (chunk := next(chunks, b"")):
            seen.append(chunk)
            yield chunk

    first = list(islice((line for line, _ in divided_lines(first_chunks()) if line.strip()), 2))
    text = first[0].decode("utf-8", "replace").removeprefix("\ufeff") if len(first) == 2 else ""
    return seen, text.startswith("{") and _json_record(text, "").row is not None


def _reopened(path: Path, name: str, packed: bool, encoding: str) -> Iterator[str]:
    with opened(path, name, packed) as file:
        chunks, codec = text_chunks(file, name, encoding)
        yield from decoded_chunks(chunks, name, codec)


def _document_limit(path: Path | None) -> int:
    """The maximum size of a row in a format without lines; a row larger than its file was compressed."""
    return MAX_ROW_BYTES if path is None else max(MAX_ROW_BYTES, path.stat().st_size)


def object_record(row: object, where: str, *, escapes: bool, end: tuple[int, int] = (0, 0)) -> Record:
    """``escapes``: the row may contain half of a surrogate pair, which JSON can escape but UTF-8 cannot encode."""
    if not isinstance(row, dict):
        return bad_row(where, "is not an object", 'write rows as {"column": "value"}', end)
    if escapes:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return bad_row(where, "has half of a surrogate pair", "write the character as itself", end)
        except RecursionError:
            return bad_row(where, "is nested too deeply", "flatten it", end)
    return Record(where, row, end=end)


# Parquet and Arrow.


def _binary_records(path: Path, name: str, suffix: str, skip: int) -> Iterator[Record]:
    if not path.is_file():
        raise InputError(
            f"{name} is a pipe, and Parquet and Arrow are read from files",
            "give a file, or JSON Lines",
            code="unsupported_format",
        )
    with opened(path, name, packed=False) as file:
        head = next(byte_chunks(file, name), b"")
    if suffix == ".parquet" and head and not head.startswith(b"PAR1"):
        refuse_foreign(head, name)
        raise InputError(
            f"{name} is not Parquet, although its name ends in .parquet",
            "rename it, or copy it again",
            code="unsupported_format",
        )
    if head:
        yield from binary_records(path, name, suffix, head, skip)
