"""CPU threads: as many as this process may use, and fewer where other programs use the CPUs at the moment.

Under load, threads that wait for one another make generation many times slower than one thread. Knows affinity, cgroup
quotas and the use of the CPUs; does not know models.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmkit.log import log, warn

__all__ = ["CpuUse", "settle_threads", "usable_cpus"]

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_WINDOW = 0.25
"""Seconds over which the use of the CPUs is measured at least."""
_CGROUP = Path("/sys/fs/cgroup")

_chosen: int | None = None
"""The number set here last; another one in force is the choice of the program that uses llmkit."""
_default: int | None = None
"""PyTorch's own number."""
_logged = False


def usable_cpus() -> int:
    """CPUs that this process may use, by affinity and cgroup quota."""
    cpus, quota = len(_affinity()), _quota()
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> float | None:
    """CPUs by the quota of the control group of a container or service; None if it has none."""
    first = _CGROUP / "cpu"
    found = [[*_numbers(first / "cpu.cfs_quota_us"), *_numbers(first / "cpu.cfs_period_us")]]  # version 1
    found += [_numbers(path) for path in (_CGROUP / "cpu.max", *_own_group())]
    return min((each[0] / each[1] for each in found if len(each) == 2 and min(each) > 0), default=None)


def _own_group() -> list[Path]:
    """The quota files of this process's group and of those above it (version 2), as seen from a machine's root."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [_CGROUP / folder / "cpu.max" for folder in (Path(group), *Path(group).parents)]


def _numbers(path: Path) -> list[float]:
    """The numbers in a file; empty if it does not exist, or says ``max``."""
    try:
        return [float(number) for number in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []


@dataclass(frozen=True)
class CpuUse:
    """CPU time used up to a moment, by all programs on this process's CPUs and by this process alone."""

    time: float
    all: float
    own: float

    @classmethod
    def now(cls) -> Self:
        """A measurement."""
        import psutil

        cpus = psutil.cpu_times(percpu=True)
        times = [cpus[number] for number in _affinity() if number < len(cpus)]
        used = sum(sum(each) - each.idle - getattr(each, "iowait", 0.0) - getattr(each, "guest", 0.0) for each in times)
        return cls(time.monotonic(), used, time.process_time())

    def by_others(self, later: CpuUse) -> float:
        """CPUs that other programs used on average between two measurements."""
        seconds = max(1e-3, later.time - self.time)
        return max(0.0, (later.all - self.all) - (later.own - self.own)) / seconds


def settle_threads(requested: int | None, since: CpuUse | None) -> None:
    """Set PyTorch's number of threads for a model on the CPU.

    Args:
        requested: the number to use. None chooses one, unless an environment variable or the program has set one.
        since: an earlier measurement; None ignores what other programs use, so that a run that is resumed later
            computes with the same number.
    """
    global _chosen, _default, _logged
    import torch

    current = torch.get_num_threads()
    if _default is None:
        _default = current
    if requested is None:
        if any(name in os.environ for name in _VARIABLES) or _is_set_by_program(current):
            return
        limit = min(_default, usable_cpus())
        requested = limit if since is None else max(1, min(limit, round(_free(since, limit))))
        if requested < limit and not _logged:
            _logged = True
            warn(
                "cpus_busy",
                "the CPUs are busy: %d of %d threads %s used; choose another number with `threads`",
                requested,
                limit,
                "is" if requested == 1 else "are",
            )
    log.debug("%d CPU threads", requested)
    if requested != current:
        torch.set_num_threads(requested)
    _chosen = requested


def _is_set_by_program(current: int) -> bool:
    """Whether the program that uses llmkit has set the number of threads itself."""
    import psutil

    if _chosen is not None:
        return current != _chosen
    # PyTorch takes one thread for each core, which may have two CPUs.
    return current < min(len(_affinity()), psutil.cpu_count(logical=False) or 1)


def _free(since: CpuUse, limit: int) -> float:
    """CPUs that other programs leave free."""
    cpus = len(_affinity())
    if limit == 1 or (hasattr(os, "getloadavg") and os.getloadavg()[0] < 0.25 * (os.cpu_count() or 1)):
        return cpus
    time.sleep(max(0.0, since.time + _WINDOW - time.monotonic()))
    return cpus - since.by_others(CpuUse.now())
