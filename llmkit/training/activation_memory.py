"""How much a forward pass keeps for the backward pass, counted without computing anything.

The model runs on PyTorch's fake tensors, which have shapes and no values, and what autograd saves is added up: exact
for any architecture and adapter, but for kernels of a GPU that save something else than those of a CPU. Does not know
what backward passes and optimizers take on top.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkit.heads.batch import Batch
from llmkit.heads.objective import Objective
from llmkit.log import log

if TYPE_CHECKING:
    import torch

__all__ = ["activation_bytes", "failure_of", "unreached"]


def activation_bytes(model: Any, objective: Objective, batch: Batch, *, half: bool) -> int | None:
    """Bytes that are saved for the gradient of a micro-batch's loss, weights not counted.

    Args:
        model: on the meta device, with ``requires_grad`` set on what is trained.
        half: in bfloat16, frozen weights too.

    Returns:
        None for a model whose forward pass depends on values, as that of some mixtures of experts.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    saved: dict[int, torch.UntypedStorage] = {}

    def storage_id(tensor: torch.Tensor) -> int:
        return int(StorageWeakRef(tensor.untyped_storage()).cdata)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved[storage_id(tensor)] = tensor.untyped_storage()  # kept, so that no other gets its place
        return tensor

    with _fake(model, half=half) as (parameters, forward):
        try:
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=half),
                torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
            ):
                objective.loss_sum(forward, batch, "cpu")
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises where it asks for a value
            log.debug("the activations of %s cannot be counted: %r", type(model).__name__, error)
            return None
        weights = set(map(storage_id, parameters.values()))
    return sum(each.nbytes() for key, each in saved.items() if key not in weights)


def failure_of(model: Any, objective: Objective, batch: Batch) -> Exception | None:
    """What a forward pass raises, if it does; also where its class asks for values, which are not there."""
    with _fake(model, half=False) as (_, forward):
        try:
            objective.loss_sum(forward, batch, "cpu")
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            return error
    return None


def unreached(model: Any, objective: Objective, batch: Batch) -> list[str]:
    """The names of trained tensors that the loss of a batch has no gradient for; none where a class asks for values."""
    with _fake(model, half=False) as (parameters, forward):
        try:
            objective.loss_sum(forward, batch, "cpu").backward()
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            log.debug("the gradients of %s cannot be tried: %r", type(model).__name__, error)
            return []
        return [name for name, each in parameters.items() if each.requires_grad and each.grad is None]


@contextmanager
def _fake(model: Any, *, half: bool) -> Iterator[tuple[dict[str, torch.Tensor], Callable[..., Any]]]:
    """The parameters of a model without values, and its forward pass on them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet_torch():  # the batch is no fake
        parameters = {name: _empty(each, half) for name, each in model.named_parameters()}
        buffers = {name: _empty(each, half=False) for name, each in model.named_buffers()}

        def forward(**given: Any) -> Any:
            return torch.func.functional_call(model, parameters | buffers, (), given)

        yield parameters, forward


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without the tracebacks that fake tensors log for what a caller handles."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _empty(tensor: torch.Tensor, half: bool) -> torch.Tensor:
    import torch

    dtype = tensor.dtype
    if dtype.is_floating_point:
        dtype = torch.bfloat16 if half and not tensor.requires_grad else torch.float32
    return torch.empty(tensor.shape, dtype=dtype, device="cpu", requires_grad=tensor.requires_grad)
