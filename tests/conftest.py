"""Fixtures: tiny checkpoints built once a session, a cache of its own, and no network."""

from __future__ import annotations

import os
import signal

# Before anything imports huggingface_hub, which reads its settings once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each worker: tiny models are no faster on several
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a script starts in the background ignores Ctrl+C, and so would the processes of the tests that send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from llmkit.tasks.output import Output
from tests import tiny

Checkpoint = Callable[..., Path]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed is sent to the main process as UTF-8, which names of files need not be."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's settings and caches are neither seen nor changed, except the starter by tests that are about it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user-config"))
    for name in ("LLMKIT_CONFIG", "LLMKIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    if request.node.get_closest_marker("starter") is None:
        monkeypatch.setenv("LLMKIT_CACHE", str(tmp_path / "llmkit-cache"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """``checkpoint("gpt2", chat=True)``: the folder of a tiny model, built at the first call."""
    built: dict[str, Path] = {}

    def get(family: str, **settings: Any) -> Path:
        key = repr((family, sorted(settings.items())))
        if key not in built:
            built[key] = tiny.build(family, tmp_path_factory.mktemp(family), **settings)
        return built[key]

    return get


def noted(output: Output) -> dict[str, str]:
    """The texts of an answer's notes, by their codes."""
    return {note.code: note.text for note in output.notes}
