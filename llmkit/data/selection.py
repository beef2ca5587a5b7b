"""Which rows of a source are used: those that fulfil a condition, and of duplicates the first.

Counts the rows that are left out. Does not know what becomes of the others.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

from llmkit.config.row_condition import RowCondition
from llmkit.data.records import Record, located
from llmkit.errors import InputError
from llmkit.tasks import Task
from llmkit.tasks.wording import PREFIX

__all__ = ["Selection", "input_of"]

_SAMPLE = 200
"""Number of rows one of which must have each column of a condition."""


@dataclass
class Selection:
    """The selection of rows from one source or several; a duplicate may be in another source."""

    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by the key that did it."""
    _seen: set[bytes] = field(default_factory=set)

    def fulfilling(self, records: Iterator[Record], condition: RowCondition) -> Iterator[Record]:
        """The records whose row fulfils a condition; bad rows stay."""
        sample = list(islice(records, _SAMPLE))
        if rows := [record.row for record in sample if record.row is not None]:
            with located(sample[0].where):
                condition.check_columns(rows)
        yield from filter(None, (self.checked(record, condition) for record in chain(sample, records)))

    def checked(self, record: Record, condition: RowCondition) -> Record | None:
        """The record, None if its row does not fulfil a condition; with the error if that cannot be evaluated."""
        try:
            if record.row is None or condition(record.row):
                return record
            self.left_out["where"] += 1
            return None
        except InputError as error:
            return Record(record.where, None, error.reworded(f"{record.where}: {error.problem}"))

    def without_duplicates(self, records: Iterator[Record], by: str | None, task: Task) -> Iterator[Record]:
        """The records without those whose input or row occurred before; ``by`` is None for a source that keeps all."""
        for record in records:
            if by is None or record.row is None:
                yield record
            elif (key := _key(record.row, by, task)) not in self._seen:
                self._seen.add(key)
                yield record
            else:
                self.left_out["deduplicate"] += 1


def input_of(row: Mapping[str, Any], task: Task) -> Any:
    """The part of a row that the model is given; a plain text is all of its row."""
    names = (*task.columns, *task.optional_columns, PREFIX)
    return [row.get(name) for name in names] if not task.is_plain(row) else _content(row)


def _content(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}


def _key(row: Mapping[str, Any], by: str, task: Task) -> bytes:
    """A hash of what must not occur again, with normalized Unicode and white space."""
    content = _normalized(input_of(_without_target(row, task), task) if by == "input" else _content(row))
    text = json.dumps([by, content], ensure_ascii=False, sort_keys=True, default=str)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _without_target(row: Mapping[str, Any], task: Task) -> Mapping[str, Any]:
    """The row without its target, which in a conversation is part of the input column."""
    if task.is_plain(row):
        return row
    try:
        return task.without_target(dict(row)) or row
    except InputError:  # a bad row, which is reported later
        return row


def _normalized(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFC", value).split())
    if isinstance(value, Mapping):
        return {key: _normalized(each) for key, each in value.items()}
    return [_normalized(each) for each in value] if isinstance(value, list | tuple) else value
