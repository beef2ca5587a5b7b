"""The token embeddings of a model: the modules that hold them, and their size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

__all__ = ["embedding_groups", "embedding_names", "resize_embeddings"]


def embedding_names(model: Any) -> list[str]:
    """Names of the modules that hold the token embeddings; the first if two are tied.

    Each is the shortest unique suffix of the name that the model itself uses: Marian has its embeddings under three
    names, and uses two.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    parts = [(inputs, model.get_input_embeddings)]
    if outputs is not None and outputs.weight is not inputs.weight:
        parts.append((outputs, model.get_output_embeddings))
    modules = list(model.named_modules(remove_duplicate=False))
    every = [name for name, _ in modules]
    found = []
    for part, read in parts:
        name = next(name for name, module in modules if module is part and _is_returned_by(model, name, read))
        tail = name.rpartition(".")[2]
        found.append(tail if sum(each.endswith(tail) for each in every) == 1 else name)
    return found


def _is_returned_by(model: Any, name: str, read: Callable[[], Any]) -> bool:
    """Whether `read` would return another module if it replaced the one under a name."""
    parent, _, attribute = name.rpartition(".")
    holder = model.get_submodule(parent)
    before = getattr(holder, attribute)
    other = copy.copy(before)
    setattr(holder, attribute, other)
    try:
        return read() is other
    finally:
        setattr(holder, attribute, before)


def embedding_groups(model: Any) -> list[list[str]]:
    """Names of the modules that hold the token embeddings, one list for each weight that they share."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(each.weight): each.weight for each in parts if each is not None}.values()
    modules = list(model.named_modules(remove_duplicate=False))
    return [[name for name, module in modules if getattr(module, "weight", None) is each] for each in weights]


def resize_embeddings(model: Any, rows: int) -> None:
    """Resize the embeddings without ``mean_resizing``, an argument that Marian's classes do not pass on."""
    name = "_init_added_embeddings_weights_with_mean"
    setattr(model, name, lambda *_, **__: None)
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    finally:
        delattr(model, name)
