"""Files that appear whole or not at all, and a disk that refuses."""

from __future__ import annotations

import errno
import json
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import LlmkitError, NotEnoughMemoryError, UsageError
from llmkit.files import (
    HASHES,
    damaged_file,
    disk_errors,
    in_units,
    locked,
    whole_folder,
    write_hashes,
    write_whole,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit of the system, which all libraries meet as they meet a full disk: the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _by_torch(path: Path) -> None:
    import torch

    with path.open("wb") as file:
        torch.save({"weight": torch.zeros(100_000)}, file)


def _by_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(100_000)}, path)


def _by_tokenizers(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({f"token{number}": number for number in range(2000)}, [])).save(str(path))


def _by_datasets(path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["fox" * 1000] * 100}).save_to_disk(str(path))


@pytest.mark.parametrize(
    "write",
    [_by_torch, _by_safetensors, _by_tokenizers, _by_datasets, lambda path: write_whole(path, "fox" * 100_000)],
)
def test_a_full_disk_is_one_error_whoever_writes(write: Callable[[Path], None], tmp_path: Path) -> None:
    with (
        files_of_at_most(5000),
        pytest.raises(NotEnoughMemoryError) as caught,
        disk_errors(tmp_path, "and go on with `resume`"),
    ):
        write(tmp_path / "file")
    assert str(caught.value) == (
        f"{tmp_path} cannot be written to (File too large); make room there, and go on with `resume`"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO])
def test_each_refusal_names_the_folder_and_what_to_do(number: int, tmp_path: Path) -> None:
    full = number in (errno.ENOSPC, errno.EDQUOT)
    fix = "make room there" if full else "make it writable"
    with pytest.raises(LlmkitError, match=rf"{tmp_path} cannot be written to .*; {fix}, or go$") as caught:  # noqa: SIM117
        with disk_errors(tmp_path, "or go"):
            raise OSError(number, "no")
    assert isinstance(caught.value, NotEnoughMemoryError) == full


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError(errno.ENOENT, "no"), LlmkitError("a", "b")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path, ""):
        raise error
    assert caught.value is error


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    write_whole(path, "before")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_whole(path, "after" * 100)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("resolved.yaml", "before")]


def _write(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: _write(folder / "a", "one!"), "a"),
        (lambda folder: (folder / "more" / "b").unlink(), "more/b"),
        (lambda folder: (folder / HASHES).unlink(), HASHES),
        (lambda folder: _write(folder / HASHES, {}), HASHES),
        (lambda folder: _write(folder / HASHES, []), HASHES),
        (lambda folder: _write(folder / HASHES, {"a\0": ""}), "a\0"),
        (lambda folder: _write(folder / HASHES, "[" * 100_000), HASHES),
        (lambda folder: _write(folder / "notes.txt", "beside"), None),
    ],
)
def test_a_file_that_changed_is_named(damage: Callable[[Path], None], named: str | None, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    _write(tmp_path / "a", "one")
    _write(tmp_path / "more" / "b", "two")
    write_hashes(tmp_path)
    assert damaged_file(tmp_path) is None
    damage(tmp_path)
    assert damaged_file(tmp_path) == named


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder) as building:
        _write(building / "a", "one")
        assert not folder.exists()
    with pytest.raises(FileNotFoundError), whole_folder(folder) as building:
        (building / "missing" / "a").touch()
    assert (folder / "a").read_text() == "one"
    with whole_folder(folder) as building:
        _write(building / "b", "three")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["model", "model/b"]


def test_a_lock_is_refused_to_others_or_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, got = tmp_path / ".lock", threading.Event()

    def wait() -> None:
        with locked(path, "writing out.jsonl"):
            got.set()

    waiting = threading.Thread(target=wait)
    with locked(path, "writing out.jsonl", "wait for it"):
        refusal = "another process is writing out.jsonl; wait for it"
        with pytest.raises(UsageError, match=refusal), locked(path, "writing out.jsonl", "wait for it"):
            pass
        waiting.start()
        assert not got.wait(0.05)
    assert got.wait(10)
    waiting.join()
    assert caplog.messages == ["waiting for another process that is writing out.jsonl"]
    assert not path.exists()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (93_200_000, "93.2 MB"),
        (270_400_000, "270 MB"),
        (999_600_000, "1 GB"),
        (1_504_000_000, "1.5 GB"),
        (2**63, "9,223,372 TB"),
    ],
)
def test_sizes_have_three_digits_and_the_largest_unit(number: int, text: str) -> None:
    assert in_units(number) == text
