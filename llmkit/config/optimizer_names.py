"""The optimizers of the installed Transformers, by the names of ``TrainingArguments.optim``, and torch's Muon.

They are parsed from its source, since importing it would import torch. Does not know which of them run with the
installed packages (`llmkit.training.optimizer`).
"""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmkit.config.yaml12 import parse

__all__ = ["MUON", "OptimizerName", "optimizer_arguments", "optimizer_names"]

MUON = "muon"
"""`torch.optim.Muon` for the matrices of linear layers, AdamW for the rest; as Axolotl calls it."""


@functools.cache
def optimizer_names() -> tuple[str, ...]:
    """The names, in the order of Transformers."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_bytes())
    declared = next(each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "OptimizerNames")
    names = [ast.literal_eval(each.value) for each in declared.body if isinstance(each, ast.Assign)]
    return (*names, MUON)


if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[optimizer_names()]


def optimizer_arguments(value: Any) -> Any:
    """A mapping from ``key=value,…``, as ``TrainingArguments.optim_args`` is written; other values as they are."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.replace(" ", "").split(",") if pair]
    if wrong := [name for name, sign, _ in pairs if not (name and sign)]:
        raise ValueError(f"{wrong[0]!r} is not key=value; separate the arguments with commas")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("an argument is repeated; give it once")
    return {name: parse(text, name)[0] for name, _, text in pairs}
