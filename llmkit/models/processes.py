"""The processes of one run, seen from one of them: which it is, how many there are, and how they wait for each other.

They are started by llmkit itself, by torchrun or by ``accelerate launch``. Knows Accelerate's state; starts nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from llmkit.errors import LlmkitError, UsageError

__all__ = ["PARENT", "Worker", "is_distributed", "join_process_group", "on_cpu"]

PARENT = "LLMKIT_PARENT"
"""Environment variable: set if llmkit started the processes, and holds their standard input open."""
_SLOWEST = timedelta(days=30)
"""Timeout: a process may wait long for another with much longer rows."""


@dataclass(frozen=True)
class Worker:
    """One of the processes."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """On its machine."""
    barrier: Callable[[], None] = lambda: None

    @contextmanager
    def local_main_process_first(self) -> Iterator[None]:
        """Context manager whose body runs first in one process of each machine, whose files the others then find."""
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()


def is_distributed() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_process_group(wanted: int | None, device: str) -> Worker:
    """Join the other processes. ``wanted`` is the expected number; None accepts any.

    Raises:
        UsageError: there are more processes than GPUs.
        LlmkitError: the number of processes differs.
    """
    world = int(os.environ["WORLD_SIZE"]) if is_distributed() else 1
    asked = wanted or world
    if world == 1:
        _compare(asked, 1)
        return Worker()
    import torch
    from accelerate import PartialState

    if PARENT in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    cpu = on_cpu(device)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if not cpu and local > torch.cuda.device_count():
        raise UsageError(
            f"{local} processes were requested, but only {torch.cuda.device_count()} GPUs were found",
            "lower `num_processes`, or use the CPU",
            code="device_unavailable",
        )
    state: Any = PartialState(cpu=cpu, timeout=_SLOWEST)
    _compare(asked, state.num_processes)
    return Worker(state.process_index, state.num_processes, state.local_process_index, state.wait_for_everyone)


def on_cpu(device: str) -> bool:
    """Whether processes for ``device`` run on the CPU."""
    import torch

    return device == "cpu" or not torch.cuda.is_available()


def _compare(asked: int, found: int) -> None:
    if found != asked:
        raise LlmkitError(
            f"{asked} processes were expected, and {found} joined",
            "start llmkit itself with `num_processes`",
            code="process_failed",
        )


def _end_with_parent() -> None:
    """A parent that was killed closes the pipe; its children would go on for hours, and hold the output."""
    # Not sys.stdin.read(), whose lock would be held when the interpreter ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)
