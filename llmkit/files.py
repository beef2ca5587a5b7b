"""Files: atomic writes, locks, hashes, JSON objects, readable sizes, and one-line errors of the disk.

Knows folders and bytes; does not know what is in them.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llmkit.errors import CheckpointError, LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.log import log

__all__ = [
    "BUILDING",
    "HASHES",
    "check_encoding",
    "damaged_file",
    "disk_errors",
    "file_hash",
    "file_stamp",
    "in_units",
    "locked",
    "read_json",
    "remove_whole",
    "whole_file",
    "whole_folder",
    "write_hashes",
    "write_whole",
]

BUILDING = ".building-"
"""Prefix of the name of a folder that is incomplete or being removed."""

HASHES = "hashes.json"
"""Name of the file that `write_hashes` adds to a folder."""
_STAMP_BLOCKS, _STAMP_BYTES = 8, 2**16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSALS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # loads OpenSSL, which commands that only print do not need

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> str:
    """The size of a file and a hash of some of its blocks, which large files are compared by without reading them."""
    import hashlib

    size, found = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_STAMP_BLOCKS):
            file.seek(number * max(0, size - _STAMP_BYTES) // (_STAMP_BLOCKS - 1))
            found.update(file.read(_STAMP_BYTES))
    return f"{size}-{found.hexdigest()[:32]}"


def write_hashes(folder: Path) -> None:
    """Record the hash of each file in a folder, once it is flushed to disk: the folder is renamed next."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    write_whole(folder / HASHES, json.dumps({path.relative_to(folder).as_posix(): file_hash(path) for path in paths}))


def damaged_file(folder: Path) -> str | None:
    """The name of a file that changed since `write_hashes` was called; None if none did."""
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
    except (OSError, ValueError):  # a name in a damaged list of hashes may not be a valid path
        return None


def in_units(number: float, units: Sequence[str] = ("bytes", "kB", "MB", "GB", "TB")) -> str:
    """A number of bytes, or of another unit, with an SI prefix and three digits: ``1.23 GB``."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:{'.3g' if number < 100 else ',.0f'}} {units[power]}".rstrip()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``path`` atomically and keeps the permissions of the previous file."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # a symbolic link of that name is not followed
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
    """Write a text file atomically. ``errors`` is Python's error handler for characters that UTF-8 cannot encode."""
    content = text.encode("utf-8", errors)
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which then replaces ``folder`` atomically, or is removed after an error."""
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
    """Remove a folder atomically. Windows refuses if a process has its files open."""
    away = folder.with_name(f"{BUILDING}{folder.name}-{os.getpid()}")
    with suppress(OSError):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


@contextmanager
def locked(path: Path, doing: str, fix: str | None = None) -> Iterator[None]:
    """Hold a lock file, which is released when this process ends, however it ends.

    Args:
        path: of the lock file.
        doing: what the lock is for, as in "writing out.jsonl".
        fix: what to do if another process holds it; without one, wait for the lock.

    Raises:
        UsageError: another process holds it, and there is a ``fix``.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if fix is not None:
            raise UsageError(f"another process is {doing}", fix, code="locked") from None
        log.warning("waiting for another process that is %s", doing)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows cannot remove an open file; filelock notices one that was removed
            path.unlink()
        lock.release()


@contextmanager
def disk_errors(folder: Path, fix: str) -> Iterator[None]:
    """Context manager around writing to a folder: turns errors of the disk into one line.

    Args:
        fix: what to do after, or in place of, making room.

    Raises:
        NotEnoughMemoryError: the disk is full, or a quota or file size limit is reached.
        LlmkitError: the folder is not writable.
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
            raise NotEnoughMemoryError(problem, f"make room there, {fix}", code="disk_full") from error
        raise LlmkitError(problem, f"make it writable, {fix}", code="not_writable") from error


def _refusal(error: BaseException | None) -> int | None:
    """The errno of the disk error that caused an exception.

    Rust libraries (Safetensors, Tokenizers) have it in their text, and torch hides it behind its own error.
    """
    while error is not None:
        rust = None if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
        number = int(rust[1]) if rust else getattr(error, "errno", None)
        if number in _REFUSALS:
            return int(number)
        error = error.__cause__ or error.__context__
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; `CheckpointError` names the file if it is not one."""
    check_encoding(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error})", "correct it, or download the checkpoint again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "correct it, or download the checkpoint again")
    return content


def check_encoding(path: Path) -> None:
    """Refuse a file that an editor or a shell saved with a byte order mark, which Transformers does not read."""
    try:
        with path.open("rb") as file:
            start = file.read(3)
    except OSError:  # reading all of it says what is wrong
        return
    if start.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CheckpointError(
            f"{path} begins with a byte order mark, which JSON does not have", "save it as UTF-8 without one"
        )
