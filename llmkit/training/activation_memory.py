"""Memory of the activations that a forward pass keeps for the backward pass, without computing anything.

The model runs on PyTorch's fake tensors, which have shapes but no values, and the sizes of what autograd saves are
added up. This is exact for any architecture and adapter, except for GPU kernels that save other tensors than CPU ones.
Does not include what backward passes and optimizers need.
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
    """Bytes kept by autograd for the loss of a micro-batch, without weights.

    Args:
        model: on the meta device, with ``requires_grad`` set on the parameters to train.
        half: compute in bfloat16, with frozen weights in bfloat16 too.

    Returns:
        None if the forward pass depends on values, as in some mixtures of experts.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    saved: dict[int, torch.UntypedStorage] = {}

    def storage_id(tensor: torch.Tensor) -> int:
        return int(StorageWeakRef(tensor.untyped_storage()).cdata)

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved[storage_id(tensor)] = tensor.untyped_storage()  # kept alive, so that its id is not reused
        return tensor

    with _fake(model, half=half) as (parameters, forward):
        try:
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=half),
                torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor),
            ):
                objective.loss_sum(forward, batch, "cpu")
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises when it needs a value
            log.debug("the activations of %s cannot be counted: %r", type(model).__name__, error)
            return None
        weights = set(map(storage_id, parameters.values()))
    return sum(each.nbytes() for key, each in saved.items() if key not in weights)


def failure_of(model: Any, objective: Objective, batch: Batch) -> Exception | None:
    """The exception of a forward pass, if any; also if the class needs values, which are missing."""
    with _fake(model, half=False) as (_, forward):
        try:
            objective.loss_sum(forward, batch, "cpu")
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            return error
    return None


def unreached(model: Any, objective: Objective, batch: Batch) -> list[str]:
    """Names of trained tensors without gradient from the loss of a batch; empty if the class needs values."""
    with _fake(model, half=False) as (parameters, forward):
        try:
            objective.loss_sum(forward, batch, "cpu").backward()
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            log.debug("the gradients of %s cannot be checked: %r", type(model).__name__, error)
            return []
        return [name for name, each in parameters.items() if each.requires_grad and each.grad is None]


@contextmanager
def _fake(model: Any, *, half: bool) -> Iterator[tuple[dict[str, torch.Tensor], Callable[..., Any]]]:
    """The parameters of a model without values, and its forward pass on them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet_torch():  # the batch has values
        parameters = {name: _empty(each, half) for name, each in model.named_parameters()}
        buffers = {name: _empty(each, half=False) for name, each in model.named_buffers()}

        def forward(**inputs: Any) -> Any:
            return torch.func.functional_call(model, parameters | buffers, (), inputs)

        yield parameters, forward


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Hide the tracebacks that fake tensors log for exceptions that are handled."""
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
