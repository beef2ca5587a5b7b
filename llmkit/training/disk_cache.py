"""The cache of prepared training data on disk: folders and tables, by a hash of what they were made from.

They contain the user's rows, so only the user can open them. Damaged ones are rebuilt; remains of killed processes, and
entries that were not used for a month, are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.config.paths import cache_dir, make_cache_dir
from llmkit.errors import UsageError
from llmkit.files import BUILDING, damaged_file, disk_errors, locked, remove_whole, write_hashes
from llmkit.log import warn

if TYPE_CHECKING:
    import datasets

__all__ = ["UNUSED_DAYS", "cached_folder", "cached_table", "code_version", "digest", "scratch_folder"]

UNUSED_DAYS = 30
"""Days until unused entries are removed. A run that has one open keeps what it mapped into memory."""


def digest(*parts: object) -> str:
    """A hash of the parts as JSON."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """A value that JSON lacks, as one that is the same in every process."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    text = str(value)
    if " at 0x" in text:
        raise TypeError(f"{text} is not the same in other processes")
    return text


@cache
def code_version() -> str:
    """A hash of the code that makes rows and examples, so that another version does not use old files."""
    root = Path(__file__).parents[1]
    layers = ("data", "heads", "models", "tasks", "text", "training")
    files = [path for layer in layers for path in sorted((root / layer).rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def cached_folder(key: str, build: Callable[[Path], None]) -> Path:
    """A folder of the cache. If it is missing or damaged, ``build`` fills it; it is written atomically."""
    root = cache_dir() / "training"
    folder = root / key
    with disk_errors(root, "or set LLMKIT_CACHE to another folder"):
        if folder.is_dir():
            if (damaged := damaged_file(folder)) is None:
                with suppress(OSError):  # a read-only cache
                    os.utime(folder)
                return folder
            warn("cache_rebuilt", "%s in the cache is damaged (%s), so it is rebuilt", folder, damaged)
        make_cache_dir()
        root.mkdir(exist_ok=True)
        root.chmod(0o700)
        with scratch_folder(root) as scratch:
            result = scratch / "result"
            result.mkdir()
            build(result)
            write_hashes(result)
            _make_private(result)
            if folder.is_dir() and damaged_file(folder) is not None:
                remove_whole(folder)
            try:
                result.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same content
                    raise
    return folder


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A folder to build in. Its lock is released when this process ends, in whatever way."""
    with ExitStack() as stack:
        with locked(root / ".lock", f"tidying {root}"):
            _prune(root)
            folder = Path(tempfile.mkdtemp(dir=root, prefix=BUILDING))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder / "lock", f"writing {folder}"))
        yield folder


def _prune(root: Path) -> None:
    """Remove what killed processes left, and entries that were not used for long."""
    for path in [path for path in root.iterdir() if path.is_dir()]:
        if path.name.startswith("."):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
        elif time.time() - path.stat().st_mtime > UNUSED_DAYS * 86_400:
            remove_whole(path)


def _is_abandoned(scratch: Path) -> bool:
    try:
        with locked(scratch / "lock", f"writing {scratch}", "leave it"):
            return True
    except UsageError:
        return False


def _make_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def cached_table(key: str, build: Callable[[Path], datasets.Dataset]) -> datasets.Dataset:
    """A table of the cache; ``build`` makes it, and can use its argument for temporary files."""
    import datasets

    def save(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, _quiet():
            build(Path(scratch)).save_to_disk(str(folder))

    return datasets.load_from_disk(str(cached_folder(key, save)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of Datasets, and the advice of Tokenizers to processes that fork."""
    import datasets

    bars, threads = datasets.are_progress_bars_disabled(), os.environ.get("TOKENIZERS_PARALLELISM")
    datasets.disable_progress_bars()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        if threads is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        if not bars:
            datasets.enable_progress_bars()
