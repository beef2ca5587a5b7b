"""The processes of one run over a file: this program, started several times under Accelerate's variables.

Not by ``accelerate launch``, which without a GPU runs one process and does not say so (Accelerate 1.15); started by it
or by torchrun, the program finds its place all the same. Knows processes; does not know rows.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any

from llmkit.errors import LlmkitError, UsageError

__all__ = ["Member", "is_member", "join", "start"]

_PARENT = "LLMKIT_PARENT"
_SLOWEST = timedelta(days=30)
"""One process may have much longer rows than another, which then waits for it."""
_POLL = 0.1


@dataclass(frozen=True)
class Member:
    """One of the processes."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


def is_member() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(wanted: int | None, device: str) -> Member:
    """Meet the others. ``wanted`` is how many there are to be, None: however many there are.

    Raises:
        UsageError: there are more processes than GPUs.
        LlmkitError: there are other processes than were asked for.
    """
    import torch
    from accelerate import PartialState

    if _PARENT in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    world = int(os.environ["WORLD_SIZE"])
    cpu = device == "cpu" or not torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if not cpu and local > torch.cuda.device_count():
        raise UsageError(
            f"{local} processes were asked for and there are {torch.cuda.device_count()} GPUs",
            "lower --num-processes, or use --device cpu",
        )
    state: Any = PartialState(cpu=cpu, timeout=_SLOWEST)
    if state.num_processes != (wanted or world):
        raise LlmkitError(
            f"{wanted or world} processes were asked for and {state.num_processes} found each other",
            "start them with --num-processes alone",
        )
    return Member(state.process_index, state.num_processes, state.wait_for_everyone)


def _end_with_parent() -> None:
    """A parent that was killed closes the pipe; its children would go on for hours, and hold the output."""
    # Not sys.stdin.read(), whose lock would be held when the interpreter ends.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def start(count: int, arguments: Sequence[str]) -> int:
    """Run the program ``count`` times with the same arguments, and return the first's exit code.

    What the others say is told only if one of them fails and the first does not. None is left behind.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count))),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU", "true" if _on_cpu(arguments) else "false"),
        _PARENT: str(os.getpid()),
    }
    said: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(count - 1)]  # noqa: SIM115 - closed below
    running = [
        subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "llmkit", *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if rank else None,
            stderr=said[rank - 1] if rank else None,
        )
        for rank in range(count)
    ]
    try:
        failed = _wait(running)
    finally:
        _end(running)
    if failed:
        _explain(failed, running[failed], said[failed - 1])
    for file in said:
        file.close()
    return running[0].returncode


def _on_cpu(arguments: Sequence[str]) -> bool:
    import torch

    return not torch.cuda.is_available() or "--device=cpu" in " ".join(arguments).replace(
        "--device cpu", "--device=cpu"
    )


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for the first that fails; its rank, 0 if none of the others did."""
    while True:
        codes = [process.poll() for process in running]
        if None not in codes or codes[0] not in (None, 0, 3):
            return 0
        if failed := next((rank for rank, code in enumerate(codes) if rank and code), 0):
            with suppress(subprocess.TimeoutExpired):
                running[0].wait(_POLL * 10)  # it may be about to say the same
            return 0 if running[0].poll() not in (None, 0, 3) else failed
        time.sleep(_POLL)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in running:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _explain(rank: int, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    error = next((line for line in reversed(lines) if "error: " in line), "").partition("error: ")[2]
    how = f"was ended by signal {-process.returncode}" if process.returncode < 0 else "failed"
    raise LlmkitError(f"process {rank} {how}{': ' + error if error else ''}", "" if error else "go on with --resume")
