"""Files: written whole or not at all, locked, hashed, their sizes in words, and one error where the disk refuses.

Knows folders and bytes; does not know what is in them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from llmkit.errors import LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.log import log

__all__ = [
    "BUILDING",
    "HASHES",
    "damaged_file",
    "disk_errors",
    "file_hash",
    "in_units",
    "locked",
    "remove_whole",
    "whole_file",
    "whole_folder",
    "write_hashes",
    "write_whole",
]

BUILDING = ".building-"
"""What the name of a folder begins with that is not complete, or on its way out."""

HASHES = "hashes.json"
"""In a folder that `write_hashes` was called on."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def file_hash(path: Path) -> str:
    """SHA-256 of its bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_hashes(folder: Path) -> None:
    """Keep the hash of each file of a folder, once its bytes are on the disk: it is renamed next, and found whole."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    write_whole(folder / HASHES, json.dumps({path.relative_to(folder).as_posix(): file_hash(path) for path in paths}))


def damaged_file(folder: Path) -> str | None:
    """The name of a file that is not as it was when `write_hashes` was called; None if all are."""
    try:
        written = json.loads((folder / HASHES).read_text(encoding="utf-8"))
        if not isinstance(written, dict) or not written:
            return HASHES
    except (OSError, ValueError, RecursionError):
        return HASHES
    return next((name for name, each in written.items() if _hash_of(folder / name) != each), None)


def _hash_of(path: Path) -> str | None:
    try:
        return file_hash(path)
    except (OSError, ValueError):  # a name that a damaged list of hashes holds may be no path
        return None


def in_units(number: float, units: Sequence[str] = ("bytes", "kB", "MB", "GB", "TB")) -> str:
    """A number of bytes, or of something else, in the largest unit that it fills, to three digits: ``1.23 GB``."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:{'.3g' if number < 100 else ',.0f'}} {units[power]}".rstrip()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place in one step, with the permissions of the one before: never half of it."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # a link of that name is not followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str, errors: str = "strict") -> None:
    """The same for a text. ``errors`` is Python's name of what becomes of characters that UTF-8 does not know."""
    content = text.encode("utf-8", errors)
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of ``folder`` in one step, or leaves nothing."""
    building = folder.with_name(f"{BUILDING}{folder.name}")
    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
    building.mkdir(parents=True)
    try:
        yield building
        if folder.exists():
            remove_whole(folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remove_whole(folder: Path) -> None:
    """Remove a folder in one step: no half of one is found. Windows refuses that where a process has its files open."""
    away = folder.with_name(f"{BUILDING}{folder.name}-{os.getpid()}")
    with suppress(OSError):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


@contextmanager
def locked(path: Path, doing: str, fix: str | None = None) -> Iterator[None]:
    """Hold a lock file, which is free again once this process has ended, however that was.

    Args:
        path: of the lock file.
        doing: what the lock is for, as in "writing out.jsonl".
        fix: what to do if another process holds it; without one, it is waited for.

    Raises:
        UsageError: another process holds it, and there is a ``fix``.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if fix is not None:
            raise UsageError(f"another process is {doing}", fix) from None
        log.warning("waiting for another process that is %s", doing)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open; filelock notices one that was removed
            path.unlink()
        lock.release()


@contextmanager
def disk_errors(folder: Path, fix: str) -> Iterator[None]:
    """Around what writes to a folder: a disk that is full, or refuses, ends it in one line.

    Args:
        fix: what to do after, or in place of, making room.

    Raises:
        NotEnoughMemoryError: the disk is full, a quota or the limit of a file's size is reached.
        LlmkitError: it cannot be written to.
    """
    try:
        yield
    except LlmkitError:
        raise
    except Exception as error:
        number = _refusal(error)
        if number is None:
            raise
        problem = f"{folder} cannot be written to ({os.strerror(number)})"
        if number in _FULL:
            raise NotEnoughMemoryError(problem, f"make room there, {fix}") from error
        raise LlmkitError(problem, f"make it writable, {fix}") from error


def _refusal(error: BaseException | None) -> int | None:
    """The number of the disk's refusal that an error comes from.

    Libraries in Rust (Safetensors, Tokenizers) have it in their text, and torch hides it behind an error of its own.
    """
    while error is not None:
        rust = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
        number = int(rust[1]) if rust else getattr(error, "errno", None)
        if number in _REFUSALS:
            return int(number)
        error = error.__cause__ or error.__context__
    return None
