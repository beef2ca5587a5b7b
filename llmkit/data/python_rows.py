"""Rows that were passed in Python: written once as JSON Lines, named by their hash, and read like those of a file.

Knows where they are kept and which values JSON has no form for; `llmkit.training.python_data` writes them to the cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import islice
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from llmkit.config.paths import cache_dir
from llmkit.config.recipe import PythonRows
from llmkit.data.records import Place, Record, without_null_fields
from llmkit.data.rows import object_record
from llmkit.errors import InputError, UsageError

__all__ = ["KEPT_ROWS", "encoded_row", "hold", "kept_key", "live_records", "python_records", "rows_of"]

KEPT_ROWS = "rows.jsonl"
"""Name of the file with the rows in a folder of the cache."""
_BATCH = 1000
"""Rows of a table that are converted together."""


def kept_key(sha256: str) -> str:
    """The name of the folder with rows of this hash, in the cache of training data."""
    return f"rows-{sha256[:32]}"


def python_records(rows: PythonRows) -> Iterator[Record]:
    """The rows, lazily.

    Raises:
        InputError: they are no longer in the cache.
    """
    path = cache_dir() / "training" / kept_key(rows.sha256) / KEPT_ROWS
    if not path.is_file():
        raise InputError(
            f"the {rows.count:,} rows of the {rows.kind} that was passed in Python are not in the cache any more",
            "pass the same rows to the function again",
            code="file_not_found",
        )
    return _records(path, rows.kind)


_live: dict[str, Any] = {}
"""Iterables that are streamed, by the hash of their first rows."""


def hold(sha256: str, data: Any) -> None:
    """Keep an iterable for the runs of this process."""
    _live[sha256] = data


def live_records(rows: PythonRows, start: Place) -> Iterator[tuple[Record, Place]]:
    """The rows from a place on, each with the place behind it. Those before it are skipped.

    Raises:
        InputError: they were not passed to this process.
    """
    if rows.sha256 not in _live:
        raise InputError(
            f"the {rows.kind} whose rows are streamed was not passed to this call",
            "pass it to the function again",
            code="file_not_found",
        )
    return _streamed(_live[rows.sha256], rows.kind, start.rows)


def _streamed(data: Any, kind: str, skip: int) -> Iterator[tuple[Record, Place]]:
    # Not by the state of an IterableDataset, which lacks the content of its shuffle buffer.
    for number, row in islice(enumerate(rows_of(data() if callable(data) else data), 1), skip, None):
        line = encoded_row(row).decode()
        yield object_record(json.loads(line), f"{kind}, row {number}", escapes="\\u" in line), Place(0, number)


def _records(path: Path, kind: str) -> Iterator[Record]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield object_record(json.loads(line), f"{kind}, row {number}", escapes="\\u" in line)


# From objects to rows.


def rows_of(data: Any) -> Iterator[Any]:
    """The rows of a `datasets.Dataset`, a data frame, an Arrow table, or an iterable of mappings.

    Raises:
        UsageError: it is something else.
    """
    kind = type(data).__name__
    if isinstance(data, Mapping):
        names = ", ".join(map(str, data))
        raise UsageError(f"a {kind} with the keys {names} is not rows", "pass one of its values, or a list of mappings")
    if hasattr(data, "itertuples"):
        return _frame_rows(data)
    if hasattr(data, "__arrow_c_stream__"):
        import pyarrow as pa

        batches = pa.RecordBatchReader.from_stream(data)
        return (without_null_fields(row) for batch in batches for row in batch.to_pylist())
    if not hasattr(data, "__iter__") and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    if hasattr(data, "features") and hasattr(data, "column_names"):  # of Datasets
        return map(without_null_fields, data)
    try:
        return iter(data)
    except TypeError as error:
        raise UsageError(f"a {kind} is not rows", "pass a Dataset, a DataFrame, an Arrow table, or mappings") from error


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    if not frame.columns.is_unique:
        names = frame.columns[frame.columns.duplicated()]
        raise InputError(
            f"the {type(frame).__name__} has more than one column {', '.join(map(str, names))}",
            "give each column a name of its own",
            code="ambiguous_header",
        )
    for start in range(0, len(frame), _BATCH):
        yield from frame.iloc[start : start + _BATCH].to_dict("records")


def encoded_row(row: Any) -> bytes:
    """A row as a line of JSON; half of a surrogate pair, which has no UTF-8, is escaped and refused when it is read."""
    value = _plain(row)
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def _plain(value: Any) -> Any:
    """A value as JSON has it. NaN, NaT and NA are missing values; of other objects only the type is left."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return _plain(value.tolist())
    if _is_missing(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | PurePath | UUID) else {"python": type(value).__name__}


def _is_missing(value: Any) -> bool:
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas.NA has no truth
        return True
