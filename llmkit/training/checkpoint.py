"""Checkpoints: everything that a run needs to go on as if it had not been stopped.

A checkpoint appears whole or not at all. Knows tensors and generators of random numbers; does not know when one is due.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from llmkit.errors import CheckpointError
from llmkit.files import damaged_file, remove_whole, whole_folder, write_hashes
from llmkit.log import warn
from llmkit.models.source import read_json
from llmkit.training.accelerator import load_optimizer_state, load_parameter

__all__ = [
    "Progress",
    "Unlogged",
    "checkpoints",
    "last_intact",
    "load_checkpoint",
    "load_trained",
    "prune",
    "random_state",
    "save_checkpoint",
]

_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass
class Unlogged:
    """Counted since the last line of the log."""

    loss: float = 0.0
    """The sum over predictions."""
    predicted: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    update: int = 0
    """Updates done in this epoch."""
    tokens: int = 0
    """Tokens seen, prompts included."""
    seconds: float = 0.0
    """Spent on updates."""
    best_metric: float | None = None
    best_step: int | None = None
    worse_evaluations: int = 0
    """In a row, since the best."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """What was measured at which step."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Of what the run was made from, so that it does not go on with something else."""
    unlogged: Unlogged = field(default_factory=Unlogged)

    def count(self, loss: float, predicted: float, tokens: int, seconds: float) -> None:
        """Add an update."""
        self.tokens += tokens
        self.seconds += seconds
        since = self.unlogged
        since.loss, since.predicted = since.loss + loss, since.predicted + predicted
        since.tokens, since.seconds = since.tokens + tokens, since.seconds + seconds


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, the oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_intact(found: Sequence[Path]) -> Path:
    """The last of some checkpoints whose files are as they were written; damaged ones are logged.

    Raises:
        CheckpointError: all of them are damaged.
    """
    for folder in reversed(found):
        if (damaged := damaged_file(folder)) is None:
            return folder
        warn("earlier_checkpoint_used", "%s is damaged (%s), so the one before it is taken", folder, damaged)
    raise CheckpointError(f"{found[-1]} is damaged, and there is none before it", "begin another run")


def save_checkpoint(
    folder: Path,
    progress: Progress,
    trained: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    scheduler: Any,
    random_states: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``folder/checkpoint-STEP``, as one process does for all.

    Args:
        trained: whole tensors by name.
        optimizer: its state.
        random_states: `random_state` of each process.
    """
    import torch
    from safetensors.torch import save_file

    final = folder / f"checkpoint-{progress.step}"
    state = {"optimizer": optimizer, "scheduler": scheduler.state_dict(), "random": list(random_states)}
    tensors = {name: each.detach().contiguous() for name, each in trained.items()}
    with whole_folder(final) as building:
        save_file(tensors, building / "trained.safetensors")
        with (building / "state.pt").open("wb") as file:  # given a path, torch does not say why it cannot write
            torch.save(state, file)
        (building / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        write_hashes(building)
    return final


def load_checkpoint(
    folder: Path, trained: Mapping[str, Any], model: Any, optimizer: Any, scheduler: Any, rank: int
) -> Progress:
    """Put everything back as it was when the checkpoint was written.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    import torch

    try:
        saved = read_json(folder / "progress.json")
        progress = Progress(**{**saved, "unlogged": Unlogged(**saved.get("unlogged", {}))})
        # Numbers and tensors only, but the generator of Python is a nested tuple.
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, UnpicklingError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__})", "remove it, and resume from the one before"
        ) from error
    load_trained(folder, trained)
    load_optimizer_state(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    _restore_random(state["random"][rank])
    return progress


def load_trained(folder: Path, trained: Mapping[str, Any]) -> None:
    """Put the parameters of a checkpoint in the place of those that are given by name."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(folder / "trained.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged ({error})", "remove it, and resume from the one before") from error
    if saved.keys() != trained.keys():
        raise CheckpointError(f"{folder} is of a run that trained other parameters", "give the recipe it was made with")
    with torch.no_grad():
        for name, parameter in trained.items():
            load_parameter(parameter, saved[name])


def prune(folder: Path, limit: int | None, keep: int | None) -> None:
    """Remove the oldest checkpoints above the limit, but never that of step ``keep``."""
    found = checkpoints(folder)
    spare = [path for path in found if path.name != f"checkpoint-{keep}"]
    excess = 0 if limit is None else len(found) - limit
    for path in spare[: max(0, min(excess, len(spare) - 1))]:
        remove_whole(path)


def random_state() -> dict[str, Any]:
    """The generators of this process."""
    import numpy as np
    import torch

    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.tensor(keys.astype("int64")), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_random(state: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
