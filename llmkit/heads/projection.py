"""The loss from hidden states in chunks, so that the logits of all labels never exist at once.

A model that generates is a body, whose hidden states an output layer projects to logits, which some classes then scale
or cap. For each chunk of hidden states the class's own forward pass runs once more with them in place of the body's
output, so that all it does to its logits is kept, in any class. The gradients of a chunk are computed right away, and
its logits freed (as in Liger Kernel, Hsu et al. 2024, arXiv:2410.10989). Classes that do more than that with the output
of their body are found by `verified`, and need all logits.

Does not know batches and labels of the heads (`llmkit.heads.causal`, `llmkit.heads.seq2seq`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkit.files import in_units
from llmkit.log import log

if TYPE_CHECKING:
    import torch

__all__ = ["CHUNK", "LogitsLoss", "Projection", "chunk_size", "find_projection", "log_all_logits", "verified"]

CHUNK = 2**24
"""Logits per chunk: 64 MiB in float32, and four times as much with their gradients. Up to this number, all logits are
computed at once."""
_TOLERANCE = 1e-3
"""Of the largest logit; half precision rounds differently for another number of rows."""

LogitsLoss = Callable[..., "torch.Tensor"]
"""The summed loss of logits ``[n, vocabulary]`` and further tensors ``[n, …]``, such as labels."""


@dataclass(frozen=True)
class Projection:
    """The last part of a model, from hidden states to logits."""

    model: Any
    """The class with the output layer, without an adapter's wrapper."""
    width: int
    """Number of logits per token."""
    body: Any = None
    """The module whose last hidden states are projected; None to compute no logits, only to count the memory of
    everything else."""
    output_class: type[Any] | None = None
    """The class of the body's output."""
    trained: tuple[torch.Tensor, ...] = ()
    """The parameters that the logits of given hidden states depend on, of those that are trained."""

    def serves(self, labels: torch.Tensor) -> bool:
        """Whether the logits for these labels are more than one chunk."""
        return self.body is None or labels.numel() * self.width > CHUNK

    def run(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, torch.Tensor]:
        """The output of a forward pass without logits, and the hidden states ``[batch, sequence, width]``.

        Args:
            model: `model` itself, or what wraps it: adapters, distributed training.
        """
        states: list[torch.Tensor] = []

        def skip(_layer: Any, arguments: Any) -> Any:
            if self.body is None:
                states.append(arguments[0])
            return (arguments[0][..., :0, :], *arguments[1:])

        hooks = [self.model.get_output_embeddings().register_forward_pre_hook(skip)]
        if self.body is not None:
            keep = lambda _body, _arguments, output: states.append(output.last_hidden_state)  # noqa: E731
            hooks.append(self.body.register_forward_hook(keep))
        try:
            output = model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        (hidden,) = states
        return output, hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits ``[n, vocabulary]`` of hidden states ``[n, width]``."""
        import torch

        ids = torch.zeros((1, len(hidden)), dtype=torch.long, device=hidden.device)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        accepted = inspect.signature(self.model.forward).parameters
        if "output_router_logits" in accepted:
            inputs["output_router_logits"] = False
        if self.model.config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids, "encoder_outputs": (hidden[None],)}
        assert self.output_class is not None
        with _returning(self.body, self.output_class(last_hidden_state=hidden[None])):
            logits: torch.Tensor = self.model(**inputs).logits[0]
        return logits

    def chunks(self, hidden: torch.Tensor) -> list[slice]:
        """The parts of hidden states ``[n, width]`` whose logits exist at once."""
        size = max(1, chunk_size(hidden.device.type, trained=bool(self.trained)) // self.width)
        return [slice(start, start + size) for start in range(0, len(hidden), size)]

    def loss(self, hidden: torch.Tensor, logits_loss: LogitsLoss, *targets: torch.Tensor) -> torch.Tensor:
        """The summed loss of hidden states ``[n, width]``.

        Args:
            logits_loss: called for each chunk with its logits and its part of the targets.
            targets: tensors ``[n, …]`` without gradients, such as labels.
        """
        import torch

        parts = self.chunks(hidden)

        def part_loss(part: torch.Tensor, where: slice) -> torch.Tensor:
            return logits_loss(self.logits(part), *(each[where] for each in targets))

        if not (torch.is_grad_enabled() and (hidden.requires_grad or self.trained)):
            return sum((part_loss(hidden[where], where) for where in parts), hidden.new_zeros((), dtype=torch.float32))
        total: torch.Tensor = _chunked()(part_loss, parts, hidden, *self.trained)
        return total


def chunk_size(device: str, *, trained: bool) -> int:
    """Logits per chunk. Smaller ones save memory, and cost time on GPUs, and for the gradients of output layers.

    Args:
        device: its type.
        trained: whether the projection has parameters that are trained.
    """
    return CHUNK if trained or device != "cpu" else CHUNK // 4


@contextmanager
def _returning(body: Any, output: Any) -> Iterator[None]:
    """Make a body return this output instead of computing one."""
    before = body.__dict__.get("forward")
    body.forward = lambda *_arguments, **_options: output
    try:
        yield
    finally:
        if before is None:
            del body.forward
        else:
            body.forward = before


@cache
def _chunked() -> Any:
    """The differentiable sum of the losses of chunks, as a function of hidden states and parameters."""
    import torch

    class Chunked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, part_loss: Any, parts: Sequence[slice], hidden: Any, *trained: Any) -> Any:
            total = hidden.new_zeros((), dtype=torch.float32)
            gradient, sums = torch.empty_like(hidden), [torch.zeros_like(each) for each in trained]
            for where in parts:
                with torch.enable_grad():
                    part = hidden[where].detach().requires_grad_()
                    loss = part_loss(part, where)
                    gradient[where], *others = torch.autograd.grad(loss, [part, *trained])
                total += loss.detach()
                for each, other in zip(sums, others, strict=True):
                    each += other
            ctx.save_for_backward(gradient, *sums)
            return total

        @staticmethod
        def backward(ctx: Any, *outer: Any) -> Any:
            # In place: they are used once, and those of a large vocabulary are as large as its embeddings.
            return None, None, *(each.mul_(outer[0].to(each.dtype)) for each in ctx.saved_tensors)

    return Chunked.apply


def find_projection(base: Any) -> Projection | None:
    """The projection of a model by its structure, without its body; None if it has no output layer.

    Args:
        base: a model without an adapter's wrapper.
    """
    try:
        layer = base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None
    return Projection(base, int(getattr(layer, "out_features", weight.shape[0])))


def log_all_logits(model: Any, labels: int, reason: str) -> None:
    """Log that the logits of a batch with this number of labels exist at once, if they are many."""
    found = find_projection(model)
    if found is not None and labels * found.width > CHUNK:
        size = in_units(labels * found.width * 4)
        log.info("all logits of a batch exist at once, up to %s and their gradients: %s", size, reason)


def verified(
    projection: Projection, inputs: dict[str, torch.Tensor], trained: Sequence[torch.Tensor]
) -> Projection | None:
    """The projection with its body and parameters, if it gives the model's own logits; otherwise None.

    Args:
        inputs: of a forward pass, for a comparison.
        trained: the parameters that are trained.
    """
    import torch

    model, training = projection.model, projection.model.training
    arguments: dict[str, Any] = {**inputs, "use_cache": False}
    model.eval()
    try:
        with torch.no_grad():
            body, output_class, expected = _find_body(model, arguments)
            found = replace(projection, body=body, output_class=output_class, width=int(expected.shape[-1]))
            _, hidden = found.run(model, arguments)
        hidden = hidden.flatten(0, 1).detach().requires_grad_()
        logits = found.logits(hidden)
        if not _close(logits, expected.flatten(0, 1)):
            raise ValueError("its logits depend on more than its last hidden states")
        used = torch.autograd.grad(logits.float().sum(), [hidden, *trained], allow_unused=True)
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises
        log.debug("%s needs all logits for its loss: %r", type(model).__name__, error)
        return None
    finally:
        model.train(training)
    needed = (each for each, gradient in zip(trained, used[1:], strict=True) if gradient is not None)
    return replace(found, trained=tuple(needed))


def _find_body(model: Any, inputs: dict[str, Any]) -> tuple[Any, type[Any], torch.Tensor]:
    """The last module that returns hidden states before the output layer, the class of its output, and the logits."""
    import torch

    ended: list[tuple[Any, type[Any]]] = []
    last: list[tuple[Any, type[Any]]] = []

    def note(module: Any, _arguments: Any, output: Any) -> None:
        if getattr(output, "last_hidden_state", None) is not None:
            ended.append((module, type(output)))

    hooks = (
        torch.nn.modules.module.register_module_forward_hook(note),
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: last.append(ended[-1])),
    )
    try:
        logits: torch.Tensor = model(**inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    ((body, output_class),) = last
    return body, output_class, logits


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    difference = (found.float() - expected.float()).abs().max()
    return bool(difference <= _TOLERANCE * expected.float().abs().max())
