"""Rows of Parquet and Arrow files, a small batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkit.data.records import Record, bad_row, check_columns
from llmkit.errors import InputError

__all__ = ["binary_records"]

_BATCH_ROWS = 64
_BAD_VALUE = (ValueError, ArithmeticError, LookupError)
"""What PyArrow raises where a value or a name cannot be one of Python's."""


def binary_records(path: Path, name: str, suffix: str, head: bytes) -> Iterator[Record]:
    """The rows of a file whose first bytes are ``head``, in order."""
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in _parquet_batches(path, name) if suffix == ".parquet" else _arrow_batches(path, name, head):
            for row in _batch_rows(batch):
                number += 1
                where = f"{name}, row {number}"
                if isinstance(row, Exception):
                    yield bad_row(where, f"cannot be read ({row})", "fix the row")
                else:
                    yield Record(where, row)
    except (ArrowException, OSError, *_BAD_VALUE) as error:
        raise InputError(f"{name} is damaged ({error})", "copy it again, or write it anew") from error


def _parquet_batches(path: Path, name: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    # A buffer, and none ahead: otherwise a whole row group is held.
    with ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
        check_columns(table.schema_arrow.names, name)
        yield from table.iter_batches(batch_size=_BATCH_ROWS)


def _arrow_batches(path: Path, name: str, head: bytes) -> Iterator[Any]:
    """Of an IPC stream, as Datasets writes it, or an IPC file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        if head.startswith(b"ARROW1"):
            table = pa.ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            table = pa.ipc.open_stream(file)
            batches = iter(table)
        check_columns(table.schema.names, name)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; in place of one that Python cannot hold, such as text that is not UTF-8, the reason."""
    try:
        yield from _validated(batch)
    except _BAD_VALUE:
        for number in range(batch.num_rows):
            try:
                yield from _validated(batch.slice(number, 1))
            except _BAD_VALUE as error:
                yield error


def _validated(batch: Any) -> list[dict[str, Any]]:
    batch.validate(full=True)  # otherwise a damaged offset ends the process
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows
