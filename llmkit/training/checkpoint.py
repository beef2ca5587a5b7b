"""Checkpoints: everything needed to resume a run exactly. Each is also a model that can be loaded.

A checkpoint is written atomically. Knows tensors and random number generators; does not know when one is saved
(`llmkit.training.loop`), or the files of a model (`llmkit.training.result`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from llmkit.errors import CheckpointError
from llmkit.files import HASHES, damaged_file, read_json, remove_whole, whole_folder, write_hashes
from llmkit.log import warn
from llmkit.training.accelerator import load_optimizer_state, load_parameter

__all__ = [
    "STATE_FILES",
    "Progress",
    "Unlogged",
    "add_measures",
    "checkpoints",
    "last_intact",
    "load_checkpoint",
    "load_trained",
    "prune",
    "random_state",
    "restore_random",
    "save_checkpoint",
]

_NAME = re.compile(r"checkpoint-(\d+)")
_TRAINED = "trained.safetensors"
"""Trained tensors that the model's own files do not contain under the same name."""
_STATE, _PROGRESS = "state.pt", "progress.json"
STATE_FILES = (_TRAINED, _STATE, _PROGRESS, HASHES)
"""Files of a checkpoint that are not part of the model."""
_IN_MODEL = "in_model"
"""Metadata of `_TRAINED`: names of the tensors in the model's own files."""
_WEIGHTS = "model*.safetensors"


@dataclass
class Unlogged:
    """Counts since the last log entry."""

    loss: float = 0.0
    """Sum over predictions."""
    predicted: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    measures: dict[str, list[float]] = field(default_factory=dict)
    """Sums and counts of what is logged with the loss."""


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates done."""
    updates: int = 0
    """Updates of the whole run."""
    epoch: int = 0
    update: int = 0
    """Updates done in this epoch."""
    tokens: int = 0
    """Tokens seen, including prompts."""
    seconds: float = 0.0
    """Time spent on updates."""
    best_metric: float | None = None
    best_step: int | None = None
    worse_evaluations: int = 0
    """Consecutive evaluations without improvement."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """Log entries, each with its step."""
    hashes: dict[str, str] = field(default_factory=dict)
    """Hashes of everything that must be the same when the run is resumed."""
    unlogged: Unlogged = field(default_factory=Unlogged)
    stream: dict[str, Any] = field(default_factory=dict)
    """Of streamed rows: the position of the examples in memory (`llmkit.training.stream`)."""

    def count(
        self, loss: float, predicted: float, tokens: int, seconds: float, measures: Mapping[str, Sequence[float]]
    ) -> None:
        """Add an update."""
        self.tokens += tokens
        self.seconds += seconds
        since = self.unlogged
        since.loss, since.predicted = since.loss + loss, since.predicted + predicted
        since.tokens, since.seconds = since.tokens + tokens, since.seconds + seconds
        add_measures(since.measures, measures)


def add_measures(sums: dict[str, list[float]], more: Mapping[str, Sequence[float]]) -> None:
    """Add sums and counts to those of the same name."""
    for name, values in more.items():
        sums[name] = [before + value for before, value in zip(sums.get(name, (0.0, 0.0)), values, strict=True)]


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in an output folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def last_intact(found: Sequence[Path]) -> Path:
    """The last undamaged checkpoint; damaged ones are logged.

    Raises:
        CheckpointError: all of them are damaged.
    """
    for folder in reversed(found):
        if (damaged := damaged_file(folder)) is None:
            return folder
        warn("earlier_checkpoint_used", "%s is damaged (%s); using the one before it", folder, damaged)
    raise CheckpointError(f"{found[-1]} is damaged, and no earlier checkpoint exists", "start a new run")


def save_checkpoint(
    folder: Path,
    progress: Progress,
    trained: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    scheduler: Any,
    random_states: Sequence[Mapping[str, Any]],
    write_model: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write ``folder/checkpoint-STEP``; called in one process.

    Args:
        trained: complete tensors by name.
        optimizer: its state dict.
        random_states: `random_state` of each process.
        write_model: writes the files of the model to a folder.
    """
    import torch
    from safetensors.torch import save_file

    final = folder / f"checkpoint-{progress.step}"
    state = {"optimizer": optimizer, "scheduler": scheduler.state_dict(), "random": list(random_states)}
    tensors = {name: each.detach().contiguous() for name, each in trained.items()}
    with whole_folder(final) as building:
        write_model(building)
        in_model = _same_in_model(building, tensors)
        rest = {name: each for name, each in tensors.items() if name not in in_model}
        save_file(rest, building / _TRAINED, metadata={_IN_MODEL: json.dumps(sorted(in_model))})
        with (building / _STATE).open("wb") as file:  # with a path, torch omits the reason of a failure
            torch.save(state, file)
        (building / _PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        write_hashes(building)
    return final


def _same_in_model(folder: Path, tensors: Mapping[str, Any]) -> set[str]:
    """The tensors that the model's own files contain under the same name, so that they are not saved twice."""
    import torch
    from safetensors import safe_open

    found: set[str] = set()
    for path in folder.glob(_WEIGHTS):
        with safe_open(path, framework="pt") as file:
            for name in tensors.keys() & set(file.keys()):
                saved, tensor = file.get_tensor(name), tensors[name].cpu()
                if saved.dtype == tensor.dtype and torch.equal(saved, tensor):
                    found.add(name)
    return found


def load_checkpoint(
    folder: Path,
    trained: Mapping[str, Any],
    model: Any,
    optimizer: Any,
    scheduler: Any,
    rank: int,
    classes: Iterable[type] = (),
) -> Progress:
    """Restore everything from a checkpoint.

    Args:
        classes: of objects in the optimizer's state.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    import torch

    try:
        saved = read_json(folder / _PROGRESS)
        progress = Progress(**{**saved, "unlogged": Unlogged(**saved.get("unlogged", {}))})
        # Numbers and tensors only; the state of Python's generator is a nested tuple.
        with torch.serialization.safe_globals(list(classes)):
            state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, UnpicklingError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({type(error).__name__})", "remove it, and resume from the previous one"
        ) from error
    load_trained(folder, trained)
    load_optimizer_state(model, optimizer, state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    restore_random(state["random"][rank])
    return progress


def load_trained(folder: Path, trained: Mapping[str, Any]) -> None:
    """Load the trained parameters of a checkpoint, by name."""
    import torch
    from safetensors import SafetensorError

    try:
        saved = _saved_tensors(folder)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is damaged ({error})", "remove it, and resume from the previous one"
        ) from error
    if {name: each.shape for name, each in saved.items()} != {name: each.shape for name, each in trained.items()}:
        raise CheckpointError(f"{folder} is of a run that trained other parameters", "use the recipe it was made with")
    with torch.no_grad():
        for name, parameter in trained.items():
            load_parameter(parameter, saved[name])


def _saved_tensors(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    saved = load_file(folder / _TRAINED)
    with safe_open(folder / _TRAINED, framework="pt") as file:
        in_model = set(json.loads((file.metadata() or {}).get(_IN_MODEL, "[]")))
    for path in folder.glob(_WEIGHTS):
        with safe_open(path, framework="pt") as file:
            saved |= {name: file.get_tensor(name) for name in in_model & set(file.keys())}
    return saved


def prune(folder: Path, limit: int | None, keep: int | None) -> None:
    """Remove the oldest checkpoints above the limit, but never the one of step ``keep``."""
    found = checkpoints(folder)
    spare = [path for path in found if path.name != f"checkpoint-{keep}"]
    excess = 0 if limit is None else len(found) - limit
    for path in spare[: max(0, min(excess, len(spare) - 1))]:
        remove_whole(path)


def random_state() -> dict[str, Any]:
    """The states of this process's random number generators."""
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


def restore_random(state: Mapping[str, Any]) -> None:
    import numpy as np
    import torch

    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
