"""The cache commands: list, size, prune; what a process has locked stays, and the Hub's cache is never touched."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmkit.cli import main
from llmkit.config.paths import cache_dir
from llmkit.files import BUILDING, locked
from llmkit.models.starter import STARTER


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One entry of each kind, by kind."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("a" * 40)
    paths = {
        "model": cache_dir() / "starter" / STARTER.folder,
        "old": cache_dir() / "starter" / "earlier",
        "training": cache_dir() / "training" / "0123",
        "partial": cache_dir() / "training" / f"{BUILDING}x",
        "hub": snapshot,
    }
    for path in paths.values():
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"x" * 1000)
    refs = tmp_path / "hub" / "models--org--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    return paths


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert main(["cache", "list", "--json"]) == 0
    return {entry["kind"]: entry for entry in json.loads(capsys.readouterr().out)}


def test_list_and_size(entries: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(capsys)
    assert {kind: (entry["name"], entry["size"], entry["in_use"]) for kind, entry in found.items()} == {
        "model": ("starter", 1000, False),
        "old": ("starter/earlier", 1000, False),
        "training": ("training/0123", 1000, False),
        "partial": (f"training/{BUILDING}x", 1000, False),
        "hub": ("org/tiny", 1000, False),
    }
    assert main(["cache", "size", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert (sizes["llmkit"]["size"], sizes["hub"]["size"]) == (4000, 1000)
    assert main(["cache", "list"]) == 0
    assert "starter" in capsys.readouterr().out


def test_prune_keeps_models_and_what_is_in_use(entries: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with locked(entries["partial"] / "lock", "writing"):
        assert listed(capsys)["partial"]["in_use"] is True
        assert main(["cache", "prune", "--yes"]) == 0
        assert capsys.readouterr().out == "removed 2 entries (2 kB)\n"
        assert main(["cache", "prune", entries["partial"].parent.name + "/" + entries["partial"].name, "--yes"]) == 2
        assert "error[locked]" in capsys.readouterr().err
    assert {kind for kind, path in entries.items() if path.exists()} == {"model", "partial", "hub"}


def test_prune_by_name_and_age(entries: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(entries["training"], (time.time() - 10 * 86_400,) * 2)
    assert main(["cache", "prune", "--unused-days", "7", "-y"]) == 0
    assert {kind for kind, path in entries.items() if not path.exists()} == {"training"}
    assert main(["cache", "prune", "starter", "-y"]) == 0
    assert not entries["model"].exists()
    capsys.readouterr()
    assert main(["cache", "prune", "org/tiny", "-y"]) == 2
    assert "run: hf cache rm model/org/tiny" in capsys.readouterr().err
    assert main(["cache", "prune", "strater", "-y"]) == 2
    assert "the cache has no entry strater" in capsys.readouterr().err
    assert entries["hub"].exists()


def test_nothing_is_removed_unasked(
    entries: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cache", "prune"]) == 2
    assert "3 entries (3 kB) would be removed; confirm with --yes" in capsys.readouterr().err
    assert all(path.exists() for path in entries.values())
    monkeypatch.setenv("LLMKIT_CACHE", str(entries["hub"].parent / "none"))
    assert main(["cache", "prune"]) == 0
    assert capsys.readouterr().out == "removed 0 entries (0 bytes)\n"
