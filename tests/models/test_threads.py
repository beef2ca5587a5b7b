"""The number of CPU threads: what was requested, what the process may use, and what other programs leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import llmkit
from llmkit.models import threads
from llmkit.models.threads import CpuUse, settle_threads, usable_cpus
from tests.conftest import Checkpoint

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """``machine(load=3.0)``: eight CPUs, of which other programs use three. PyTorch has one thread for each."""

    def use(load: float = 0.0, current: int = 8) -> None:
        monkeypatch.setattr(threads, "_affinity", lambda: set(range(8)))
        monkeypatch.setattr("os.cpu_count", lambda: 8)
        monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
        monkeypatch.setattr("psutil.cpu_count", lambda **_: 8)
        monkeypatch.setattr(CpuUse, "now", lambda: CpuUse(1.0, 0.5 + load, 0.5))
        monkeypatch.setattr(torch, "get_num_threads", lambda: current)

    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    monkeypatch.setattr(threads, "_own_group", list)
    monkeypatch.setattr(threads, "_WINDOW", 0)
    for name in ("_chosen", "_default"):
        monkeypatch.setattr(threads, name, None)
    monkeypatch.setattr(threads, "_logged", False)
    for name in threads._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: use(current=number))
    return use


START = CpuUse(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("load", "expected"), [(0.0, 8), (1.4, 8), (3.2, 5), (7.0, 1), (40.0, 1)])
def test_other_programs_keep_their_cpus(
    load: float, expected: int, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(load)
    settle_threads(None, START)
    # Less than a quarter of the CPUs is not worth a measurement.
    assert torch.get_num_threads() == expected
    assert len(caplog.messages) == (expected < 8)
    settle_threads(None, START)
    assert len(caplog.messages) == (expected < 8), "it is logged for each model"


def test_a_run_that_may_be_resumed_ignores_the_load(machine: Machine) -> None:
    machine(40.0)
    settle_threads(None, None)
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_was_chosen_stays(name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(40.0, current=3)  # by the program
    settle_threads(None, START)
    assert torch.get_num_threads() == 3
    machine(40.0)
    monkeypatch.setenv(name, "8")
    settle_threads(None, START)
    assert torch.get_num_threads() == 8
    settle_threads(2, START)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu.max": ""}, 8),
        ({}, 8),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], expected: int, machine: Machine, tmp_path: Path) -> None:
    machine()
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert usable_cpus() == expected
    settle_threads(None, None)
    assert torch.get_num_threads() == expected


def test_a_model_is_loaded_with_the_requested_threads(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    try:
        llmkit.load("generate", str(checkpoint("gpt2")), device="cpu", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
