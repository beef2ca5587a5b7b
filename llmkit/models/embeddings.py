"""The token embeddings of a model: the modules that hold them, their size, and the rows of a changed vocabulary.

A vocabulary is known by ids alone here; which old tokens a new one is made of is found in `llmkit.models.vocabulary`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from llmkit.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["embedding_groups", "embedding_names", "rebuild_embeddings", "resize_embeddings"]


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


def rebuild_embeddings(model: Any, origins: Sequence[Sequence[int]], *, buffers: bool = True) -> list[str]:
    """Give the model one embedding per element of ``origins``: the mean of the old embeddings with these ids.

    A token that keeps its embedding has one origin; one without origins gets the mean of all. What has a value for each
    token is found by resizing, so that output layers, their biases and further tables change alike.

    Returns:
        The names of the changed tensors.

    Raises:
        UsageError: Transformers cannot resize this model, or some of its tables stay behind.
    """
    _refuse_reserved(model)
    weights = {name for name, _ in model.named_parameters()}
    before, old, new = dict(_tensors(model)), int(model.get_input_embeddings().weight.shape[0]), len(origins)
    try:
        resize_embeddings(model, new + (new == old))
        changed = {
            name: axis for name, each in _tensors(model) if (axis := _changed_axis(before.get(name), each)) is not None
        }
        if new == old:
            resize_embeddings(model, new)
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise _not_resizable(model, " ".join(str(error).split()) or type(error).__name__) from error
    if model.device.type == "meta":
        _refuse_undescribed(model)
    for name, axis in changed.items():
        if not before[name].is_meta and (buffers or name in weights):
            _tensor(model, name).data.copy_(_mean_rows(before[name], axis, origins))
    return list(changed)


def _refuse_reserved(model: Any) -> None:
    """Refuse a model with embeddings that have no output, such as for sound or another language."""
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings().weight.shape[0]
    if output is not None and (rows := output.weight.shape[0]) != inputs:
        raise _not_resizable(model, f"it has outputs for {rows:,} tokens and embeddings of {inputs:,}")


def _refuse_undescribed(model: Any) -> None:
    """Refuse a model that could not be loaded again, since its config does not describe the new sizes."""
    import torch

    with torch.device("meta"):
        again = dict(_tensors(type(model)._from_config(copy.deepcopy(model.config))))  # noqa: SLF001 - as AutoModel does
    for name, each in _tensors(model):
        if name in again and again[name].shape != each.shape:
            sizes = f"{list(again[name].shape)}, not {list(each.shape)}"
            raise _not_resizable(model, f"by its config, {name} would be {sizes}")


def _not_resizable(model: Any, reason: str) -> UsageError:
    return UsageError(
        f"the vocabulary of {type(model).__name__} cannot be changed ({reason})",
        "leave out tokenizer.add_tokens, tokenizer.name_or_path and tokenizer.train, or use a model of another type",
        code="not_supported",
    )


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name. They keep their values when the model replaces them."""
    for name, each in chain(model.named_parameters(), model.named_buffers()):
        yield name, each.detach()


def _tensor(model: Any, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(module), attribute)


def _changed_axis(before: torch.Tensor | None, after: torch.Tensor) -> int | None:
    """The only axis in which two tensors have different sizes."""
    if before is None or before.dim() != after.dim():
        return None
    axes = [axis for axis, sizes in enumerate(zip(before.shape, after.shape, strict=True)) if sizes[0] != sizes[1]]
    return axes[0] if len(axes) == 1 else None


def _mean_rows(table: torch.Tensor, axis: int, origins: Sequence[Sequence[int]]) -> torch.Tensor:
    """The slices of a table at each of ``origins``, averaged in float32."""
    import torch
    from torch.nn.functional import embedding_bag

    rows = table.movedim(axis, 0).float()
    flat = rows.reshape(len(rows), -1)
    known = [[each for each in ids if each < len(rows)] for ids in origins]
    starts = torch.tensor([0, *accumulate(map(len, known[:-1]))], device=table.device)
    means = embedding_bag(torch.tensor(list(chain(*known)), device=table.device).long(), flat, starts, mode="mean")
    means[[index for index, ids in enumerate(known) if not ids]] = flat.mean(0)
    return means.reshape(len(origins), *rows.shape[1:]).movedim(0, axis).to(table.dtype)
