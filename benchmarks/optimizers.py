"""Updates of llmkit against those of Transformers' Trainer, for every optimizer; runs of Trainer that are continued.

    python benchmarks/optimizers.py

A tiny Llama in float32 on the CPU: five updates with the optimizer that each side makes of the same settings, and the
largest difference of a weight. Then six updates of Trainer against three of Trainer and three of llmkit, which takes up
the checkpoint. Prints tables of Markdown (``benchmarks/optimizers.md``).
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from llmkit.config.optimizer_names import MUON, optimizer_names
from llmkit.errors import LlmkitError
from llmkit.log import log
from llmkit.training.optimizer import make_optimizer
from llmkit.training.optimizer_check import check_optimizer, state_bytes
from llmkit.training.run import finetune
from tests import tiny
from tests.training.test_adapted import LORA
from tests.training.test_optimizer import model, settings, trainer_optimizer, update
from tests.training.test_trainer_checkpoint import recipe_of, run_of_trainer, weights

CONTINUED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "all weights, AdamW, linear": (None, {}),
    "LoRA, AdamW, linear": (LORA, {}),
    "LoRA, Adafactor, cosine": (LORA, {"optim": "adafactor", "adam_beta2": 0.999, "lr_scheduler_type": "cosine"}),
    "all weights, SGD with momentum": (None, {"optim": "sgd", "optim_args": "momentum=0.9", "adam_beta2": 0.999}),
}

PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "schedulefree": "schedulefree",
    "torch-optimi": "optimi",
    "galore-torch": "galore_torch",
    "apollo-torch": "apollo_torch",
    "grokadamw": "grokadamw",
    "lomo-optim": "lomo_optim",
}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference of a weight."""
    assert one.keys() == other.keys()
    return max(float((each - other[name]).abs().max()) for name, each in one.items())


def state_of(name: str) -> float | str:
    """The bytes of its state per parameter, or why the optimizer is refused."""
    train = settings(name)
    try:
        check_optimizer(model(), train, 5, "cpu")
    except LlmkitError as error:
        return str(error).partition(";")[0].removeprefix("train.optim").lstrip(": ")
    return state_bytes(model(), train, 5, "cpu")


def row(name: str, state: float | str, folder: Path) -> str:
    """The row of an optimizer."""
    if isinstance(state, str):
        return f"refused: {state} | "
    if name == MUON:
        return f"not in Transformers | {state:.1f}"
    train, ours, theirs = settings(name), model(), model()
    found = update(ours, make_optimizer(ours, train, 5))
    return f"{difference(found, update(theirs, trainer_optimizer(theirs, train, folder))):.0e} | {state:.1f}"


def continued(name: str, folder: Path) -> float:
    """The largest difference after a run of Trainer is continued."""
    adapter, train = CONTINUED[name]
    base = tiny.build("llama", folder / "base")
    third = run_of_trainer(base, folder, adapter, **train)
    last = folder / "theirs" / "checkpoint-6"
    finetune(recipe_of(base, folder, "ours", adapter, **train, resume_from_checkpoint=str(third), save_strategy="no"))
    return difference(weights(folder / "ours"), weights(last))


def main() -> None:
    warnings.simplefilter("ignore")
    log.setLevel("ERROR")
    packages = (
        "bitsandbytes",
        "schedulefree",
        "torch-optimi",
        "galore-torch",
        "apollo-torch",
        "grokadamw",
        "lomo-optim",
    )
    modules = {"torch-optimi": "optimi"}
    there = [name for name in packages if find_spec(modules.get(name, name.replace("-", "_"))) is not None]
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", *there)))
    print("\n| optimizer | largest difference | bytes of state per parameter |\n|---|---|---|")
    # All before any update: bitsandbytes keeps settings of Trainer's parameters for later optimizers.
    states = {name: state_of(name) for name in optimizer_names()}
    with tempfile.TemporaryDirectory() as folder:
        for name, state in states.items():
            print(f"| {name} | {row(name, state, Path(folder))} |", flush=True)
    print("\n| run of Trainer, continued | largest difference |\n|---|---|")
    for name in CONTINUED:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {continued(name, Path(folder)):.0e} |", flush=True)


if __name__ == "__main__":
    main()
