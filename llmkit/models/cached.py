"""What is in the caches: llmkit's own files, which can be removed, and the Hub client's, which are only listed.

llmkit's cache holds prepared embedded models (``starter``, ``minilm``) and tokenized training data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmkit.config.paths import cache_dir
from llmkit.errors import UsageError
from llmkit.files import BUILDING, locked, remove_whole
from llmkit.models.bundled import EMBEDDED

__all__ = ["CacheEntry", "Kind", "cache_entries", "prunable", "prune_cache"]

Kind = Literal[
    "model",  # an embedded model, prepared for use
    "old",  # an embedded model, prepared by an earlier version
    "training",  # tokenized training data
    "partial",  # remains of interrupted work
    "hub",  # a model or data set in the cache of the Hub's client
]
_SECONDS = 86_400


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder of a cache."""

    kind: Kind
    name: str
    path: Path
    size: int
    last_used: float
    """Seconds since the epoch."""
    in_use: bool = False
    """A running process holds its lock."""

    @property
    def idle_days(self) -> float:
        """Days since it was last used."""
        return (time.time() - self.last_used) / _SECONDS

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, as printed by ``--json``."""
        return asdict(self) | {"path": str(self.path)}


def cache_entries() -> list[CacheEntry]:
    """All entries of both caches: llmkit's own, the largest first, then the Hub client's."""
    own = sorted(_own_entries(cache_dir()), key=lambda entry: -entry.size)
    return [*own, *sorted(_hub_entries(), key=lambda entry: -entry.size)]


def _own_entries(root: Path) -> Iterator[CacheEntry]:
    for wheel in EMBEDDED.values():
        for path in _children(root / wheel.name):
            if path.is_dir():
                partial = path.name.startswith(BUILDING)
                kind: Kind = "partial" if partial else "model" if path.name == wheel.folder else "old"
                name = wheel.name if kind == "model" else f"{wheel.name}/{path.name}"
                yield _entry(kind, name, path)
    for path in _children(root / "training"):
        if path.is_dir():
            kind = "partial" if path.name.startswith(BUILDING) else "training"
            yield _entry(kind, f"training/{path.name}", path)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _entry(kind: Kind, name: str, path: Path) -> CacheEntry:
    stats = [each.stat() for each in path.rglob("*") if each.is_file()]
    size = sum(each.st_size for each in stats)
    return CacheEntry(kind, name, path, size, path.stat().st_mtime, in_use=_is_held(_lock(kind, path)))


def _lock(kind: Kind, path: Path) -> Path:
    """The lock that is held while an entry is being written."""
    if path.parent.name != "training":
        return path.parent / "prepare.lock"
    return path / "lock" if kind == "partial" else path.parent / ".lock"


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with locked(lock, "using the cache", "wait for it"):
            return False
    except UsageError:
        return True
    except OSError:  # a cache that is read-only is not pruned either
        return False


def _hub_entries() -> Iterator[CacheEntry]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repo in found.repos:
        yield CacheEntry("hub", repo.repo_id, repo.repo_path, repo.size_on_disk, repo.last_accessed)


def prunable(names: Sequence[str] = (), *, unused_days: float = 0) -> list[CacheEntry]:
    """The entries that `prune_cache` would remove.

    Args:
        names: of entries; without any, all but the prepared models, which would have to be downloaded again.
        unused_days: leave what was used in the last days.

    Raises:
        UsageError: no entry of that name, it is in use, or it is in the Hub's cache.
    """
    entries = cache_entries()
    by_name = {entry.name: entry for entry in entries}
    for name in names:
        entry = by_name.get(name)
        if entry is None:
            known = ", ".join(entry.name for entry in entries if entry.kind != "hub") or "it is empty"
            raise UsageError(f"the cache has no entry {name}", f"choose from its entries: {known}")
        if entry.kind == "hub":
            raise UsageError(
                f"{name} is in the Hub's cache, which other programs share", f"run: hf cache rm model/{name}"
            )
        if entry.in_use:
            raise UsageError(f"{name} is in use by another process", "wait until it ends", code="locked")
    chosen = [by_name[name] for name in names] or [entry for entry in entries if entry.kind not in ("hub", "model")]
    return [entry for entry in chosen if not entry.in_use and entry.idle_days >= unused_days]


def prune_cache(entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Remove entries of llmkit's cache, except those that came into use meanwhile. Returns what was removed."""
    removed = []
    for entry in entries:
        if entry.kind == "hub":
            continue
        try:
            with locked(_lock(entry.kind, entry.path), "using the cache", "wait for it"):
                remove_whole(entry.path)
        except UsageError:
            continue
        if not entry.path.exists():
            removed.append(entry)
    return removed
