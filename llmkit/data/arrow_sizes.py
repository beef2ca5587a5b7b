"""The memory that values of Arrow arrays need as Python objects, before they are converted.

Few bytes can expand to many: dictionaries, runs, views and lists of nulls repeat a value that is stored once, and the
buffers of an IPC message may be compressed. Does not know files or rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from
from typing import Any

import numpy as np

__all__ = ["element_bytes", "unpacked_bytes"]

_FLAT = 2**24
"""Elements of lists up to which each is measured; above, they are only counted."""


def element_bytes(array: Any) -> Any:
    """Bytes of each element of an array, as 64-bit numbers; for very long lists, the number of elements."""
    import pyarrow as pa
    from pyarrow import compute, types

    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return element_bytes(array.storage)
    if types.is_dictionary(kind):
        sizes = np.append(element_bytes(array.dictionary), 0)
        return sizes[array.indices.fill_null(len(sizes) - 1).to_numpy(zero_copy_only=False)]
    if types.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy()
        runs = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
        return element_bytes(array.values)[runs]
    if types.is_string_view(kind) or types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1] or b"", np.int32)[::4][array.offset : array.offset + len(array)]
        return np.where(array.is_valid().to_numpy(zero_copy_only=False), views, 0).astype(np.int64)
    if types.is_string(kind) or types.is_binary(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return compute.binary_length(array).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if types.is_struct(kind):
        return sum((element_bytes(array.field(n)) for n in range(kind.num_fields)), np.ones(len(array), np.int64))
    if types.is_union(kind):  # at most
        fields = (element_bytes(array.field(n)) for n in range(kind.num_fields))
        return np.full(len(array), sum(int(sizes.max()) for sizes in fields if len(sizes)), np.int64)
    if types.is_nested(kind):
        return _list_bytes(array)
    try:
        width = max(1, kind.bit_width // 8)
    except ValueError:  # null
        width = 1
    return np.full(len(array), width, np.int64)


def _list_bytes(array: Any) -> Any:
    from pyarrow import types

    if not len(array):
        return np.zeros(0, np.int64)
    kind, values = array.type, array.values
    if types.is_fixed_size_list(kind):
        starts = (np.arange(len(array)) + array.offset) * kind.list_size
        stops = starts + kind.list_size
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        views = types.is_list_view(kind) or types.is_large_list_view(kind)
        starts = offsets if views else offsets[:-1]
        stops = offsets + array.sizes.to_numpy() if views else offsets[1:]
    counts = stops - starts
    begin, end = int(starts.min()), int(stops.max())
    if end - begin > _FLAT:
        return counts
    before = np.append(0, np.cumsum(element_bytes(values.slice(begin, end - begin))))
    return before[stops - begin] - before[starts - begin]


def unpacked_bytes(message: Any) -> int:
    """Bytes of the decompressed buffers of an IPC message, as declared in it: PyArrow allocates as much."""
    metadata, body = memoryview(message.metadata), memoryview(message.body) if message.body else memoryview(b"")
    batch = _Table.root(metadata).table(2)
    if message.type == "dictionary" and batch is not None:
        batch = batch.table(1)
    if message.type not in ("record batch", "dictionary") or batch is None or not batch.field(3):
        return len(body)
    return sum(_unpacked(body, start, length) for start, length in batch.buffers(2))


def _unpacked(body: memoryview, start: int, length: int) -> int:
    """The decompressed size of a buffer, which it begins with; -1 marks an uncompressed one."""
    if length < 8 or start < 0 or start + 8 > len(body):
        return max(length, 0)
    return max(int(unpack_from("<q", body, start)[0]), length)


class _Table:
    """A table of FlatBuffers, the format of Arrow's metadata, whose fields are located by offsets."""

    def __init__(self, data: memoryview, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - unpack_from("<i", data, place)[0]

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, unpack_from("<I", data, 0)[0])

    def field(self, number: int) -> int:
        """The position of a field; 0 if it is absent."""
        at = 4 + 2 * number
        size = unpack_from("<H", self._data, self._fields)[0]
        offset = unpack_from("<H", self._data, self._fields + at)[0] if at < size else 0
        return self._place + offset if offset else 0

    def table(self, number: int) -> _Table | None:
        place = self.field(number)
        return _Table(self._data, place + unpack_from("<I", self._data, place)[0]) if place else None

    def buffers(self, number: int) -> Iterator[tuple[int, int]]:
        """Start and length of each buffer."""
        if place := self.field(number):
            start = place + unpack_from("<I", self._data, place)[0]
            for each in range(unpack_from("<I", self._data, start)[0]):
                yield unpack_from("<qq", self._data, start + 4 + 16 * each)
