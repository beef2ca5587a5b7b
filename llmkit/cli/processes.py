"""One command as several processes: this program, started several times under Accelerate's variables.

Not by ``accelerate launch``, which without a GPU runs one process and does not say so (Accelerate 1.15). Nor by
torchrun's ``elastic_launch`` (PyTorch 2.13): it takes any exit code but 0 for a failure and ends the others, as when
some rows have errors; the workers of a parent that was killed go on; and the parent would load torch, 4 s and 220 MB.
Started by either, the program finds its place all the same. Knows processes; does not know what they do.
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
"""Accelerate's own, where the machines must know it beforehand."""
_EXPECTED_EXIT_CODES = (0, 3, 130, 143)
"""Exit codes of a run that ended as it was told to, some rows perhaps with errors."""


_MOST = 64
"""Processes on one machine, where it has few cores for a number of devices."""
_SIGKILL = 9
"""Which Windows has no name for."""
_GO_ON = "go on with --resume"


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, and which of them this is."""

    count: int = 1
    rank: int = 0
    address: str | None = None
    """Of the first."""
    port: int | None = None


def start(count: int, arguments: Sequence[str], *, on_cpu: bool, machines: Nodes = Nodes()) -> int:
    """Run this machine's share of ``count`` processes with the same arguments, and return the first's exit code.

    What the others print is shown only if one of them fails and the first does not. Ctrl+C and SIGTERM are passed on,
    each time they come; none is left behind.

    Raises:
        UsageError: there are more than any machine of this size runs.
        LlmkitError: one of the others failed, or any was ended by a signal that it did not expect.
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
            # A terminal's Ctrl+C would reach them beside the one that is passed on.
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
    """That of a shell: 128 and the number of the signal that ended a process."""
    return code if code >= 0 else 128 - code


def _was_killed(code: int | None) -> bool:
    """Whether a process was ended by a signal that does not ask it to end."""
    return code is not None and code < 0 and _exit_code(code) not in _EXPECTED_EXIT_CODES


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or for the first that fails; its rank, 0 if none of the others did."""
    while True:
        codes = [process.poll() for process in running]
        killed = [place for place, code in enumerate(codes) if _was_killed(code)]
        if killed:  # the others fail for want of it
            return killed[0]
        if None not in codes or codes[0] not in (None, *_EXPECTED_EXIT_CODES):
            return 0
        if failed := next(
            (place for place, code in enumerate(codes) if place and code not in (None, *_EXPECTED_EXIT_CODES)), 0
        ):
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
        if process.stdin is not None:
            process.stdin.close()


def _error_of(rank: int, code: int, stderr_files: IO[bytes] | None) -> LlmkitError | None:
    """Why a process failed; None for the first, unless it could not say so itself."""
    if stderr_files is None and not _was_killed(code):
        return None
    lines = _lines(stderr_files) if stderr_files is not None else []
    printed = next((found[1] for line in reversed(lines) if (found := _ERROR.search(line))), "")
    if code >= 0:
        return LlmkitError(
            f"process {rank} failed{f': {printed}' if printed else ''}",
            "" if printed else _GO_ON,
            code="process_failed",
        )
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == _SIGKILL:
        why, fix = ", most likely because memory ran out", f"free memory, and {_GO_ON}"
    else:
        why, fix = f": {printed}" if printed else "", _GO_ON
    error = LlmkitError(f"process {rank} was ended by {name}{why}", fix, code="process_failed")
    error.exit_code = _exit_code(code)
    return error


def _lines(stderr_files: IO[bytes]) -> list[str]:
    stderr_files.seek(0)
    return stderr_files.read().decode(errors="replace").splitlines()
