"""Tables that were made once, on the disk, found again by a hash of what they were made from. Knows no content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.models.cache import cache_dir

if TYPE_CHECKING:
    import datasets

__all__ = ["code_version", "digest", "kept_folder", "kept_table"]


def digest(*parts: object) -> str:
    """A hash of what JSON can say of the parts."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that is the same in every process."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    text = str(value)
    if " at 0x" in text:
        raise TypeError(f"{text} has no lasting form")
    return text


@cache
def code_version() -> str:
    """A hash of the code that makes rows and examples: another version of it must not find old files."""
    root = Path(__file__).parents[1]
    files = [path for layer in ("data", "tasks", "heads", "training") for path in sorted((root / layer).glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def kept_folder(key: str, build: Callable[[Path], None]) -> Path:
    """A folder of the cache. If it is not there, ``build`` fills it; it appears whole or not at all."""
    folder = cache_dir() / "training" / key
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{key}-"))
        try:
            (scratch / "result").mkdir()
            build(scratch / "result")
            try:
                (scratch / "result").rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def kept_table(key: str, build: Callable[[Path], datasets.Dataset]) -> datasets.Dataset:
    """A table of the cache; ``build`` makes it, and may use the folder it is given for scratch files."""
    import datasets

    def save(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, _quiet():
            build(Path(scratch)).save_to_disk(str(folder))

    return datasets.load_from_disk(str(kept_folder(key, save)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of Datasets, and without the advice that Tokenizers gives a process that forks."""
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
