"""Rows of Parquet and Arrow files, a small batch at a time.

The memory for a batch is known from the file's metadata before it is read, and the memory for its rows before they
are converted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from llmkit.data.arrow_sizes import element_bytes, unpacked_bytes
from llmkit.data.records import MAX_ROW_BYTES, Record, bad_row, check_columns, too_long, without_null_fields
from llmkit.errors import InputError
from llmkit.files import in_units

__all__ = ["binary_records"]

_BATCH_ROWS = 64
_MAX_UNPACKED = 16 * MAX_ROW_BYTES
_MAX_HELD = 4 * MAX_ROW_BYTES
_MAX_RATIO = 100
"""Maximum ratio of decompressed to compressed size, above `_MAX_UNPACKED`."""
_WIDTHS = {"BOOLEAN": 1, "INT64": 8, "DOUBLE": 8, "INT96": 8}  # others 4, indices into a dictionary too
_INDEX_BYTES = 5
_BAD_VALUE = (ValueError, ArithmeticError, LookupError)
"""Exceptions of PyArrow for values and names that cannot be converted to Python."""


def binary_records(path: Path, name: str, suffix: str, head: bytes, skip: int) -> Iterator[Record]:
    """The rows of a file whose first bytes are ``head``, in order, without the first ``skip``."""
    from pyarrow import ArrowException

    number = skip
    try:
        batches = _parquet_batches(path, name, skip) if suffix == ".parquet" else _arrow_batches(path, name, head, skip)
        for batch in batches:
            for row in _batch_rows(batch):
                number += 1
                yield _record(row, f"{name}, row {number}")
    except (ArrowException, OSError, *_BAD_VALUE, struct.error) as error:
        raise InputError(
            f"{name} is damaged ({error})", "copy it again, or write it anew", code="unreadable_file"
        ) from error


def _record(row: dict[str, Any] | Exception | int, where: str) -> Record:
    if isinstance(row, int):
        return Record(where, None, too_long(where, row))
    if isinstance(row, Exception):
        return bad_row(where, f"cannot be read ({row})", "fix the row")
    return Record(where, without_null_fields(row))


def _check_unpacked(name: str, what: str, unpacked: int, packed: int) -> None:
    if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * packed):
        raise InputError(
            f"{name} has {what} that {in_units(packed)} unpack to {in_units(unpacked)}",
            "write it anew, with fewer rows in each row group or batch",
            code="unreadable_file",
        )


def _parquet_batches(path: Path, name: str, skip: int) -> Iterator[Any]:
    with _parquet(path) as table, path.open("rb") as file:
        check_columns(table.schema_arrow.names, name)
        for group in range(table.num_row_groups):
            if skip >= (count := table.metadata.row_group(group).num_rows):
                skip -= count
                continue
            rows, repeated = _plan_group(table.metadata, group, file, name)
            with _parquet(path, repeated) if repeated else nullcontext(table) as found:
                for batch in found.iter_batches(batch_size=rows, row_groups=[group]):
                    yield batch.slice(skip)
                    skip = max(0, skip - batch.num_rows)


def _parquet(path: Path, repeated: Sequence[str] = ()) -> Any:
    from pyarrow.parquet import ParquetFile

    # A buffer without pre-buffering, which would hold a whole row group.
    return ParquetFile(path, buffer_size=2**20, pre_buffer=False, read_dictionary=repeated or None)


def _plan_group(metadata: Any, group: int, file: BinaryIO, name: str) -> tuple[int, list[str]]:
    """How many rows of a group can be loaded at once, and the columns whose repeated texts stay in dictionaries.

    Raises:
        InputError: a column takes more memory than its part of the file can need.
    """
    longest, repeated = 0, []
    for number in range(metadata.num_columns):
        chunk, column = metadata.row_group(group).column(number), metadata.schema.column(number)
        nested = column.max_repetition_level > 0
        width = max(column.length, _WIDTHS.get(chunk.physical_type, 4))
        unpacked = max(chunk.total_uncompressed_size, chunk.num_values * width if nested else width)
        _check_unpacked(name, f"a column {chunk.path_in_schema!r}", unpacked, chunk.total_compressed_size)
        texts = _dictionary_bytes(file, chunk)
        if not nested:
            longest += max(width, texts)
        elif texts * chunk.num_values > _MAX_UNPACKED and unpacked - texts <= _INDEX_BYTES * chunk.num_values:
            repeated.append(chunk.path_in_schema)  # slow where other values are among them
    return min(_BATCH_ROWS, max(1, _MAX_HELD // max(longest, 1))), repeated


def _dictionary_bytes(file: BinaryIO, chunk: Any) -> int:
    """The size of a column's dictionary as declared in its page, the maximum size of a value."""
    if not chunk.has_dictionary_page or not chunk.dictionary_page_offset:
        return 0
    file.seek(chunk.dictionary_page_offset)
    header = file.read(16)  # Thrift's compact form: 1: type, 2: uncompressed size, each behind a byte 0x15
    size = shift = 0
    for byte in header[3:] if header[2:3] == b"\x15" else b"":
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return max(size >> 1, 0)


def _arrow_batches(path: Path, name: str, head: bytes, skip: int) -> Iterator[Any]:
    """The batches of an IPC stream, as saved by Datasets, or of an IPC file."""
    import pyarrow as pa

    packed = head.startswith(b"ARROW1")
    with pa.memory_map(str(path)) as file:
        file.seek(8 if packed else 0)
        _check_messages(file, name)
        file.seek(0)
        if packed:
            table = pa.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            table = pa.ipc.open_stream(file)
            batches = iter(table)
        check_columns(table.schema.names, name)
        for batch in batches:
            for start in range(skip, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)
            skip = max(0, skip - batch.num_rows)


def _check_messages(file: Any, name: str) -> None:
    """Refuse batches that decompress to far more than their part of the file. An IPC file contains a stream."""
    import pyarrow as pa

    while True:
        try:
            message = pa.ipc.read_message(file)
        except EOFError:
            return
        _check_unpacked(name, f"a {message.type}", unpacked_bytes(message), len(message.body or b""))


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | Exception | int]:
    """The rows of a batch; the size in place of a row that is too long, the error for one that cannot be converted."""
    try:
        batch.validate(full=True)  # otherwise a corrupt offset crashes the process
        size = _batch_bytes(batch)
        if size <= MAX_ROW_BYTES:
            yield from batch.to_pylist()
            return
    except _BAD_VALUE:
        pass
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            row.validate(full=True)
            size = _batch_bytes(row)
            yield row.to_pylist()[0] if size <= MAX_ROW_BYTES else size
        except _BAD_VALUE as error:
            yield error


def _batch_bytes(batch: Any) -> int:
    return sum(int(element_bytes(column).sum()) for column in batch.columns)
