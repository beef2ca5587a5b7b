"""The cache of training: nobody else reads it, damage heals, and what nobody uses goes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from llmkit.config.paths import cache_dir, make_cache_dir
from llmkit.errors import NotEnoughMemoryError
from llmkit.training.disk_cache import UNUSED_DAYS, cached_folder, cached_table
from tests.test_files import files_of_at_most


def _table(key: str = "key") -> list[str]:
    import datasets

    table = cached_table(key, lambda _: datasets.Dataset.from_dict({"text": ["fox", "dog"] * 10}))
    texts: list[str] = table["text"][:]
    return texts


def _write(folder: Path, content: str = "content") -> None:
    (folder / "file").write_text(content, encoding="utf-8")


def test_a_damaged_entry_is_made_again_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever bit is flipped, whatever file is cut or lost: mapped into memory, some would end the process."""
    expected, folder = _table(), cache_dir() / "training" / "key"
    for path in sorted(path for path in folder.iterdir()):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 4
        path.write_bytes(damaged)
        assert _table() == expected
        path.write_bytes(content[:-1])
        assert _table() == expected
        path.unlink()
        assert _table() == expected
    assert f"{folder} in the cache is damaged (data-00000-of-00001.arrow), so it is rebuilt" in caplog.text
    caplog.clear()
    assert _table() == expected
    assert not caplog.text


@pytest.mark.parametrize("older", [False, True])
def test_nobody_else_can_read_it(older: bool) -> None:
    if older:  # a version that left it open
        (make_cache_dir() / "training").mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        _table()
    finally:
        os.umask(before)
    root = cache_dir() / "training"
    modes = {path: path.stat().st_mode & 0o777 for path in (root.parent, root, root / "key", *(root / "key").iterdir())}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_what_killed_processes_left_is_removed_and_what_others_build_stays() -> None:
    root = cache_dir() / "training"
    killed, alive = root / ".building-killed", root / ".building-alive"
    for folder in (killed, alive):
        (folder / "result").mkdir(parents=True)
    with FileLock(alive / "lock"):
        cached_folder("key", _write)
    assert sorted(path.name for path in root.iterdir() if path.is_dir()) == [".building-alive", "key"]


def test_what_was_not_used_for_long_is_removed() -> None:
    folders = {name: cached_folder(name, _write) for name in ("old", "used", "fresh")}
    for name in ("old", "used"):
        long_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
        os.utime(folders[name], (long_ago, long_ago))
    cached_folder("used", _write)
    cached_folder("new", _write)
    assert {name for name, folder in folders.items() if folder.exists()} == {"used", "fresh"}


def test_a_build_that_fails_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_folder("key", fail)
    with (
        files_of_at_most(100),
        pytest.raises(NotEnoughMemoryError, match=r"training cannot be written to .*or set LLMKIT_CACHE to another"),
    ):
        cached_folder("key", lambda folder: _write(folder, "fox" * 100))
    assert [path.name for path in (cache_dir() / "training").iterdir() if path.is_dir()] == []
