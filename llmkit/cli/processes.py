"""Running one command in several processes: starts this program several times with Accelerate's variables.

``accelerate launch`` is not used, since without a GPU it silently runs one process (Accelerate 1.15). Neither is
torchrun's ``elastic_launch`` (PyTorch 2.13): it treats every exit code other than 0 as a failure and stops all
processes, also if only some rows failed; workers survive a parent that is killed; and the parent would have to load
torch (4 s, 220 MB). The program also works if it is started by either of them. Independent of what the processes do.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

from llmkit.errors import LlmkitError, UsageError
from llmkit.models.processes import PARENT

__all__ = ["Nodes", "start"]

_ERROR = re.compile(r"error\[\w+\]: (.*)")
_POLL = 0.1
_PORT = 29500
"""Accelerate's default, for runs on several machines."""
_EXPECTED_EXIT_CODES = (0, 3, 130, 143)
"""Exit codes of a run that was completed or stopped on request, possibly with failed rows."""


_MOST = 64
"""Maximum number of processes on a machine with few cores; it may have many devices."""
_SIGKILL = 9
"""Windows has no name for it."""
_CONTINUE = "continue with --resume"


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, and the rank of this one."""

    count: int = 1
    rank: int = 0
    address: str | None = None
    """Address of the first machine."""
    port: int | None = None


def start(count: int, arguments: Sequence[str], *, on_cpu: bool, machines: Nodes = Nodes()) -> int:
    """Run this machine's share of ``count`` processes with the same arguments, and return the first one's exit code.

    The output of the other processes is shown only if one of them fails and the first does not. Ctrl+C and SIGTERM are
    passed on to all of them, and no process survives.

    Raises:
        UsageError: too many processes for this machine.
        LlmkitError: a process other than the first failed, or one was killed by a signal.
    """
    port = machines.port or (_PORT if machines.count > 1 else _free_port())
    local = count // machines.count
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if local > max(_MOST, 4 * cores):
        raise UsageError(
            f"{local} processes are too many for a machine with {cores} cores",
            "lower num_processes",
            code="device_unavailable",
        )
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": machines.address or "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // local))),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU", "true" if on_cpu else "false"),
        PARENT: str(os.getpid()),
    }
    stderr_files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(local - 1)]  # noqa: SIM115 - closed below
    running = [
        subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "llmkit", *arguments],
            env={**os.environ, **common, "RANK": str(machines.rank * local + place), "LOCAL_RANK": str(place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if place else None,
            stderr=stderr_files[place - 1] if place else None,
            # Otherwise Ctrl+C in a terminal would reach them twice.
            start_new_session=True,
        )
        for place in range(local)
    ]
    try:
        with _passed_on(running):
            failed = _wait(running)
    finally:
        _end(running)
    error = _error_of(failed, running[failed].returncode, stderr_files[failed - 1] if failed else None)
    for file in stderr_files:
        file.close()
    if error is not None:
        raise error
    return _exit_code(running[0].returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _passed_on(running: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(code: int) -> int:
    """The exit code as in a shell: 128 plus the number of the signal that ended a process."""
    return code if code >= 0 else 128 - code


def _was_killed(code: int | None) -> bool:
    """Whether a process was ended by a signal other than Ctrl+C and SIGTERM."""
    return code is not None and code < 0 and _exit_code(code) not in _EXPECTED_EXIT_CODES


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or for the first that fails; returns its rank, or 0 if only the first failed or none."""
    while True:
        codes = [process.poll() for process in running]
        killed = [place for place, code in enumerate(codes) if _was_killed(code)]
        if killed:  # the others fail as a consequence
            return killed[0]
        if None not in codes or codes[0] not in (None, *_EXPECTED_EXIT_CODES):
            return 0
        if failed := next(
            (place for place, code in enumerate(codes) if place and code not in (None, *_EXPECTED_EXIT_CODES)), 0
        ):
            with suppress(subprocess.TimeoutExpired):
                running[0].wait(_POLL * 10)  # it may be about to report the same error
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
        if process.stdin is not None:
            process.stdin.close()


def _error_of(rank: int, code: int, stderr_files: IO[bytes] | None) -> LlmkitError | None:
    """The error of a process that failed; None for the first one, which reports its own unless it was killed."""
    if stderr_files is None and not _was_killed(code):
        return None
    lines = _lines(stderr_files) if stderr_files is not None else []
    printed = next((found[1] for line in reversed(lines) if (found := _ERROR.search(line))), "")
    if code >= 0:
        return LlmkitError(
            f"process {rank} failed{f': {printed}' if printed else ''}",
            "" if printed else _CONTINUE,
            code="process_failed",
        )
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == _SIGKILL:
        why, fix = ", most likely because memory ran out", f"free memory, and {_CONTINUE}"
    else:
        why, fix = f": {printed}" if printed else "", _CONTINUE
    error = LlmkitError(f"process {rank} was ended by {name}{why}", fix, code="process_failed")
    error.exit_code = _exit_code(code)
    return error


def _lines(stderr_files: IO[bytes]) -> list[str]:
    stderr_files.seek(0)
    return stderr_files.read().decode(errors="replace").splitlines()
