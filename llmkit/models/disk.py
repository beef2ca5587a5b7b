"""Files that appear whole or not at all, hashes by which damage is noticed, and one error where the disk refuses.

Knows folders and bytes; does not know what is in them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmkit.errors import LlmkitError, NotEnoughMemoryError

__all__ = ["HASHES", "damaged_file", "disk_errors", "file_hash", "write_hashes", "write_whole"]

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


def write_whole(path: Path, text: str) -> None:
    """Put a file in its place in one step, so that no half of one is ever found there, with the permissions it had."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="utf-8") as file:  # a link of that name is not followed
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
