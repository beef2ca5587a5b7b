"""Memory of the activations of an update, without computing anything.

Forward and backward pass of the model run on PyTorch's fake tensors, which have shapes but no values, and the sizes of
all tensors alive at a time are added up. This is exact for any architecture and adapter, also with activation
checkpointing, except for GPU kernels that keep other tensors than CPU ones and for buffers inside of kernels. Does not
include what optimizers need.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.heads.batch import Batch
from llmkit.heads.objective import Objective
from llmkit.log import log

if TYPE_CHECKING:
    import torch

__all__ = ["ActivationBytes", "activation_bytes", "failure_of", "unreached"]


@dataclass
class ActivationBytes:
    """Bytes of the tensors of an update beside weights and gradients."""

    saved: int = 0
    """Those that the forward pass keeps for the backward pass."""
    peak: int = 0
    """The maximum during both passes."""


def activation_bytes(model: Any, objective: Objective, batch: Batch, *, half: bool) -> ActivationBytes | None:
    """Memory of the loss of a micro-batch and its gradients.

    Args:
        model: on the meta device, with ``requires_grad`` set on the parameters to train.
        half: compute in bfloat16, with frozen weights in bfloat16 too.

    Returns:
        None if the forward pass depends on values, as in some mixtures of experts.
    """
    import torch

    with _fake(model, half=half) as (parameters, run):
        for each in parameters.values():
            if each.requires_grad:  # gradients are counted apart
                each.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        found = ActivationBytes()

        def update() -> None:
            with _live_bytes(model) as live:
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = objective.loss_sum(model, batch, "cpu")
                found.saved = live.bytes
                loss.backward()
            found.peak = live.peak

        try:
            run(update)
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises when it needs a value
            log.debug("the activations of %s cannot be counted: %r", type(model).__name__, error)
            return None
    return found


@dataclass
class _Live:
    bytes: int = 0
    peak: int = 0


@contextmanager
def _live_bytes(model: Any) -> Iterator[_Live]:
    """Count the bytes of all tensors that operations create while they are alive; a model's own are there already."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    live = _Live()
    known = weakref.WeakSet[Any](each.untyped_storage() for each in (*model.parameters(), *model.buffers()))

    def add(storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        known.add(storage)
        live.bytes += size
        live.peak = max(live.peak, live.bytes)
        weakref.finalize(storage, free, size)

    def free(size: int) -> None:
        live.bytes -= size

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = func(*args, **(kwargs or {}))
            for each in tree_leaves(output):
                if isinstance(each, torch.Tensor) and (storage := each.untyped_storage()) not in known:
                    add(storage)
            return output

    with Count():  # type: ignore[no-untyped-call]
        yield live


def failure_of(model: Any, objective: Objective, batch: Batch) -> Exception | None:
    """The exception of a forward pass, if any; also if the class needs values, which are missing."""
    with _fake(model, half=False) as (_, run):
        try:
            run(lambda: objective.loss_sum(model, batch, "cpu"))
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            return error
    return None


def unreached(model: Any, objective: Objective, batch: Batch) -> list[str]:
    """Names of trained tensors without gradient from the loss of a batch; empty if the class needs values."""
    with _fake(model, half=False) as (parameters, run):
        try:
            run(lambda: objective.loss_sum(model, batch, "cpu").backward())
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises
            log.debug("the gradients of %s cannot be checked: %r", type(model).__name__, error)
            return []
        return [name for name, each in parameters.items() if each.requires_grad and each.grad is None]


@contextmanager
def _fake(model: Any, *, half: bool) -> Iterator[tuple[dict[str, torch.Tensor], Callable[[Callable[[], Any]], Any]]]:
    """The parameters of a model without values, and a function that calls another one while the model has them."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet_torch():  # the batch has values
        parameters = {name: _empty(each, half) for name, each in model.named_parameters()}
        buffers = {name: _empty(each, half=False) for name, each in model.named_buffers()}
        holder: Any = torch.nn.Module()  # its call includes the backward pass, in which checkpointed layers run again
        holder.model, holder.forward = model, lambda call: call()
        given = {f"model.{name}": each for name, each in (parameters | buffers).items()}
        yield parameters, lambda call: torch.func.functional_call(holder, given, (call,))


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
