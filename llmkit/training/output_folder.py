"""The folder of a run: whether it may be used, which checkpoint a run resumes from, and how its result gets there.

Checkpoints, the resolved recipe and the result are in it. Does not know what a result consists of
(`llmkit.training.result`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llmkit.config.recipe import Recipe
from llmkit.config.recipe_file import MAY_RUN_CODE, load_recipe
from llmkit.errors import UsageError
from llmkit.files import BUILDING, disk_errors, locked
from llmkit.log import warn
from llmkit.models.processes import Worker
from llmkit.training.accelerator import TRACKERS
from llmkit.training.checkpoint import checkpoints, last_intact
from llmkit.training.provenance import RESOLVED, SHORT_RECIPE, changes

__all__ = ["RESUME", "claim_folder", "find_checkpoint", "moved_when_complete"]

RESUME = "and continue with `resume`"
"""The end of a fix after which a run can be resumed."""
_LOCK = ".lock"
_BUILDING = f"{BUILDING}result"
"""Subfolder in which the result is written before it is moved."""
_BEFORE_CHECKPOINTS = (RESOLVED, f"{RESOLVED}.tmp", SHORT_RECIPE, f"{SHORT_RECIPE}.tmp", _LOCK, TRACKERS)
"""Files that a run writes before its first checkpoint."""


def find_checkpoint(recipe: Recipe, folder: Path, *, resume: bool) -> Path | None:
    """The checkpoint to resume from, None for a new run. Nothing is written.

    A run that was killed before its first checkpoint, or while its result was moved, starts again.

    Raises:
        UsageError: the folder contains other files, or the checkpoint of another run.
    """
    content = list(folder.iterdir()) if folder.is_dir() else []
    found = checkpoints(folder)
    names = [path.name for path in content]
    unfinished = not found and (
        _BUILDING in names or all(name in _BEFORE_CHECKPOINTS or name.startswith(BUILDING) for name in names)
    )
    if not resume:
        if not unfinished:
            fix = "continue with `resume`, " if found else ""
            raise UsageError(
                f"{folder} is not empty", f"{fix}remove it, or set another train.output_dir", code="output_exists"
            )
        return None
    if not content:
        raise UsageError(f"{folder} has no checkpoint to resume from", "leave `resume` out", code="nothing_to_resume")
    if not found and not unfinished:
        raise UsageError(
            f"{folder} has no checkpoint to resume from",
            "remove it, or set another train.output_dir",
            code="nothing_to_resume",
        )
    if (folder / RESOLVED).is_file() and (
        differ := changes(load_recipe(str(folder / RESOLVED), trusted=MAY_RUN_CODE), recipe)
    ):
        raise UsageError(
            f"the recipe changed since the run in {folder} began ({'; '.join(differ)})",
            "undo the change, or start a new run: set another train.output_dir",
            code="resume_mismatch",
        )
    if not found:
        warn("fresh_start", "%s has no checkpoint: the run starts at its first update", folder)
        return None
    return last_intact(found)


@contextmanager
def claim_folder(folder: Path, worker: Worker) -> Iterator[None]:
    """Lock the folder for this run; if it is still empty at the end, remove it."""
    if worker.rank:
        yield
        return
    new = not folder.exists()
    lock = locked(folder / _LOCK, f"writing to {folder}", "set train.output_dir")
    with ExitStack() as stack:
        with disk_errors(folder, "or set train.output_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            if new:
                stack.callback(_remove_empty, folder)
            stack.enter_context(lock)
        for left in folder.glob(f"{BUILDING}*"):  # by a run that was killed
            if left.name != _BUILDING:  # which marks the files beside it as incomplete
                shutil.rmtree(left, ignore_errors=True)
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it has content, or a disk error was reported before
        folder.rmdir()


@contextmanager
def moved_when_complete(folder: Path) -> Iterator[Path]:
    """A temporary folder whose content is moved to ``folder`` once it is complete.

    The temporary folder is removed last: if it is left, the run was killed between moves, and its result is written
    again.
    """
    building = folder / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    for path in building.iterdir():
        if (place := folder / path.name).is_dir():
            shutil.rmtree(place)
        path.replace(place)
    building.rmdir()
