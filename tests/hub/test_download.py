"""Downloads into a folder: all files, no links, usable where there is no network; the base of an adapter with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import llmkit
from llmkit.config.settings import LoadSettings
from llmkit.errors import NotEnoughMemoryError, UsageError
from llmkit.hub.reachability import offline
from llmkit.models.locate import locate
from tests.hub.conftest import TINY, WEIGHTS, refuse_connections
from tests.hub.fake_hub import FakeHub

ADAPTER = {
    "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "org/tiny", "revision": "v1"}',
    "adapter_model.safetensors": WEIGHTS,
}


def test_the_folder_is_complete_and_needs_no_network(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add("org/tiny", {**TINY, "modeling_own.py": b"", "pytorch_model.bin": b"x"})
    folder = tmp_path / "模型 目录"
    assert llmkit.download("org/tiny", to=folder) == folder
    assert {path.name for path in folder.iterdir()} == {*TINY, "modeling_own.py"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    refuse_connections(monkeypatch)
    with offline():
        assert locate(LoadSettings(model=str(folder))).folder == folder


def test_an_adapter_brings_its_base_along(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY, branches=("main", "v1"))
    fake.add("org/adapter", ADAPTER)
    llmkit.download("org/adapter", to=tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    refuse_connections(monkeypatch)
    with offline():
        found = locate(LoadSettings(model=str(tmp_path / "moved")))
    assert found.adapter == tmp_path / "moved"
    assert (found.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert tmp_path in found.folder.parents


def test_what_is_there_is_not_touched(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; name another folder"):
        llmkit.download("org/tiny", to=tmp_path)
    assert not fake.requests


def test_a_full_disk_is_known_before(fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("org/tiny", TINY)
    llmkit.download("org/tiny")
    monkeypatch.setattr("llmkit.models.download.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(NotEnoughMemoryError, match="1 bytes free") as caught:
        llmkit.download("org/tiny", to=tmp_path / "copy")
    assert caught.value.code == "disk_full"
    assert not (tmp_path / "copy").exists()
    assert json.loads(ADAPTER["adapter_config.json"])["revision"] == "v1"
