"""The output of a run over rows: a JSON Lines file that grows by whole lines, and the files beside it.

Knows how a killed run leaves its output, and how the outputs of several processes are merged. Does not know rows.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

from llmkit.data.sources import MANIFEST
from llmkit.errors import LlmkitError, UsageError
from llmkit.files import whole_file
from llmkit.inference.row_columns import note_codes

__all__ = ["OutputLines", "join_shards", "manifest_of", "shard_of", "shards_of", "writing"]


class OutputLines:
    """An output file that grows by whole lines, or stdout. The partial line of a killed run is removed."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.total = self.errors = 0
        self.notes: Counter[str] = Counter()
        self._state = (0, 0, 0)
        if path is not None:
            with writing(path), path.open("a+b") as file:
                file.seek(0)
                self.total, self.errors, self.notes, whole = _count(file)
                file.truncate(whole)
                self._state = _state(file)

    def write(self, lines: list[str], errors: int, notes: Counter[str]) -> None:
        """Append lines in one call, so that a killed run leaves at most one partial line."""
        text = "".join(lines)
        if self.path is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            with writing(self.path), self._opened(self.path) as file:
                file.seek(0, os.SEEK_END)
                file.write(text.encode())
                file.flush()
                self._state = _state(file)
        self.total += len(lines)
        self.errors += errors
        self.notes += notes

    def check(self) -> None:
        """Raise a `UsageError` if another program replaced, removed, emptied or extended the file."""
        if self.path is not None:
            with writing(self.path), self._opened(self.path):
                pass

    @contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            raise _changed(path, "removed") from None
        with file:
            if _state(file) != self._state:
                raise _changed(path, "changed")
            yield file


def _state(file: BinaryIO) -> tuple[int, int, int]:
    """Properties that change when another program replaces, empties or extends an open file."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size


def _changed(path: Path, how: str) -> UsageError:
    return UsageError(
        f"another program {how} {path} while rows were being answered, so its lines would no longer match the rows",
        "start again with `overwrite`",
        "name another `output`",
        code="resume_mismatch",
    )


def _count(file: BinaryIO) -> tuple[int, int, Counter[str], int]:
    """Number of whole lines, error records among them, their notes by code, and their size in bytes."""
    total = errors = size = 0
    notes: Counter[str] = Counter()
    for line in file:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        total, errors, size = total + 1, errors + ("error" in record), size + len(line)
        notes.update(note_codes(record))
    return total, errors, notes, size


def manifest_of(output: Path) -> Path:
    """The manifest beside an output."""
    return output.with_name(output.name + MANIFEST)


def shard_of(output: Path, rank: int, world: int) -> Path:
    """The file with the answers of one process."""
    return output.with_name(f"{output.name}.shard-{rank}-of-{world}")


def shards_of(output: Path) -> list[Path]:
    """The files of all processes that exist."""
    found = output.parent.glob(f"{escape(output.name)}.shard-*-of-*")
    return sorted(path for path in found if not path.name.endswith(".lock"))


def join_shards(output: Path, world: int, window: int) -> None:
    """Merge the windows of all processes in the order of the rows, atomically, and remove the shards."""
    shards = [shard_of(output, rank, world) for rank in range(world)]
    with whole_file(output) as joined:
        files = [path.open("rb") for path in shards]
        try:
            for number in count():
                taken = 0
                for line in islice(files[number % world], window):
                    joined.write(line)
                    taken += 1
                if taken < window:
                    break
            if any(file.read(1) for file in files):
                raise UsageError(
                    f"the parts of {output} do not fit together",
                    "start over with `overwrite`",
                    "name another `output`",
                    code="resume_mismatch",
                )
        finally:
            for file in files:
                file.close()
    for path in shards:
        path.unlink(missing_ok=True)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Raise errors of the disk as an error about the output."""
    try:
        yield
    except OSError as error:
        raise LlmkitError(
            f"{output} cannot be written ({error.strerror})",
            "free some space or fix the disk, then `resume`",
            code="not_writable",
        ) from error
