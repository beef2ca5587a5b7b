"""Available memory, and whether a model's weights fit.

Activations and the KV cache depend on the input and are not checked here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

from llmkit.errors import NotEnoughMemoryError
from llmkit.files import in_units

__all__ = ["available_memory", "check_fits", "free_weights", "is_out_of_memory", "peak_memory", "return_freed_tensors"]

_M_MMAP_THRESHOLD = -3
"""In malloc.h."""
_WANT = re.compile(
    r"(?i)(can't|cannot|could not|unable to|failed to) (allocate|mmap)|out of memory|not enough memory|bad_alloc"
    r"|alloc_failed|\(os error 12\)"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means out of memory; each library words it differently."""
    while error is not None:
        kind = type(error).__name__  # without importing torch
        if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or getattr(error, "errno", 0) == errno.ENOMEM:
            return True
        if _WANT.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _cgroup_room() -> int | None:
    """Bytes left under a container's memory limit, which the system-wide figure ignores; None without a limit."""
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii").strip()
        stat = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii")
        # The page cache counts as used but is freed on demand.
        cache = sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file "))
        return int(limit) - int(used) + cache
    except (OSError, ValueError):
        return None


def available_memory(device: str) -> int:
    """Bytes that can be allocated on a device now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    room = _cgroup_room()
    free = int(psutil.virtual_memory().available)
    return free if room is None else min(free, room)


def check_fits(needed: int, device: str, name: str) -> None:
    """Raise `NotEnoughMemoryError` with both figures if ``needed`` bytes of weights do not fit."""
    available = available_memory(device)
    if needed > available:
        raise NotEnoughMemoryError(
            f"{name} needs {in_units(needed)} for its weights and {device} has {in_units(available)} free",
            "choose a smaller model (llmkit models)",
            "choose a smaller `dtype`",
            "use `quantize=4bit`",
        )


def return_freed_tensors() -> None:
    """Make glibc return the memory of freed tensors to the system at once.

    By default it keeps blocks of up to 32 MiB, in which tensors of other sizes leave gaps: training with activation
    checkpointing then takes several times the memory of its tensors. Here, tensors of 2 MiB and more get mappings of
    their own, which the system clears each time. Updates take a fifth longer, and half as long again without the huge
    pages that PyTorch requests if the variable is set before its first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, 2 * 2**20)


def free_weights(model: Any) -> None:
    """Replace all tensors of a model by empty ones, in place, so that no reference keeps their memory."""
    for each in (*model.parameters(), *model.buffers()):
        each.grad, each.data = None, each.data.new_empty(0)


def peak_memory(device: str) -> int:
    """Peak memory of this process in bytes: tensors on a GPU, or otherwise the resident set."""
    import resource

    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
