"""The loss of a micro-batch, summed over its predictions, so that any split of an update gives the same result.

A mixture of experts whose config sets ``output_router_logits`` adds the losses of its routers to its prediction loss,
with the coefficients of its config, as its class does. Router losses are means over the tokens of a micro-batch and
are counted once per predicted token: an update has their mean over its micro-batches and processes. (The Trainer of
Transformers 5.23 adds one per micro-batch and process: transformers#48690.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkit.heads.batch import IGNORED, Batch, Line
from llmkit.heads.embedding_noise import EmbeddingNoise
from llmkit.heads.projection import CHUNK, LogitsLoss, Projection, find_projection, log_all_logits, verified
from llmkit.heads.token_loss import Distillation, TokenLoss
from llmkit.log import warn

if TYPE_CHECKING:
    import torch

    from llmkit.heads.base import BaseHead

__all__ = ["Objective", "Teacher"]


@dataclass(frozen=True)
class Objective:
    """How a model's loss is computed."""

    head: BaseHead
    keeps: bool
    """The model supports ``logits_to_keep``, which saves most of the memory of logits."""
    token_loss: TokenLoss = TokenLoss()  # noqa: RUF009 - frozen
    balances: bool = False
    """The config enables router losses. They count padding unless there is an attention mask."""
    coefficient: float = 0.0
    """Causal: coefficient of the load-balancing loss."""
    projection: Projection | None = None
    """Computes the loss of many labels in chunks; None needs all logits."""
    noise: EmbeddingNoise | None = None
    teacher: Teacher | None = None
    """Whose logits the token loss takes."""

    @classmethod
    def of(cls, model: Any, head: BaseHead, token_loss: TokenLoss = TokenLoss()) -> Objective:  # noqa: B008 - frozen
        """The objective of a model, which may be wrapped by an adapter."""
        virtual = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
        base = _base(model)
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters and not virtual
        balances = bool(getattr(base.config.get_text_config(), "output_router_logits", False))
        return cls(head, keeps, token_loss, balances and head.writes, _coefficient(base))

    def with_noise(self, model: Any, alpha: float | None) -> Objective:
        """The objective with noise on the embeddings, if there is an alpha (`EmbeddingNoise`)."""
        return self if alpha is None else replace(self, noise=EmbeddingNoise.of(_base(model), alpha))

    def with_teacher(self, model: Any, distillation: Distillation, labels: int) -> Objective:
        """The objective with a teacher.

        Args:
            model: the teacher, on the student's device, in the mode of evaluation.
            labels: maximum number of labels in a batch.
        """
        own = replace(Objective.of(model, self.head), balances=False).in_chunks(model, labels, ())
        token_loss = replace(self.token_loss, distillation=distillation)
        return replace(self, token_loss=token_loss, teacher=Teacher(model, own))

    @property
    def is_sum(self) -> bool:
        """Whether the loss of a micro-batch is the sum of the losses of its examples; those of routers are not."""
        return not self.balances

    @property
    def needs_mask(self) -> bool:
        """Whether padding must be masked, even if the model ignores it without a mask."""
        return self.balances or self.noise is not None

    def in_chunks(self, model: Any, labels: int, trained: Sequence[torch.Tensor]) -> Objective:
        """The objective with a projection, if the labels of a batch need one and the model's has been verified.

        Args:
            model: with its weights, on its device; may be wrapped by an adapter.
            labels: maximum number of labels in a batch.
            trained: the parameters that are trained.
        """
        import torch

        found = find_projection(_base(model)) if self.head.writes else None
        if found is None or labels * found.width <= CHUNK:
            return self
        ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]], device=next(model.parameters()).device)
        projection = verified(found, self.head.probe(ids), trained)
        if projection is None:
            log_all_logits(model, labels, f"{type(found.model).__name__} does more than project its hidden states")
        return replace(self, projection=projection)

    def without_logits(self, model: Any) -> Objective:
        """The objective for counting the memory of everything but logits, if they are computed in chunks."""
        found = find_projection(_base(model)) if self.head.writes else None
        return self if found is None else replace(self, projection=found)

    def for_evaluation(self) -> Objective:
        """The objective of validation rows: cross entropy, without router losses, noise and teacher."""
        return replace(self, balances=False, noise=None, teacher=None, token_loss=self.token_loss.for_evaluation())

    @property
    def measures(self) -> Mapping[str, list[float]]:
        """Sums and counts of what is logged with the loss, over the batches since `for_update`."""
        return {}

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        """Collate examples into one micro-batch."""
        return self.head.batch(lines, pad_id=pad_id, packed=packed, masked=masked)

    def count(self, batch: Batch) -> int:
        """What the loss of a micro-batch is a sum over: predictions."""
        return self.head.predictions(batch)

    def for_update(
        self, model: Any, batches: Sequence[Batch], device: Any, sum_up: Callable[..., list[float]]
    ) -> tuple[Objective, float]:
        """The objective of one update, and what the sum of its losses is divided by.

        Args:
            model: not wrapped for distributed training.
            batches: all micro-batches of this process.
            sum_up: sums each of some values over the processes that make the update together.
        """
        (count,) = sum_up(sum(map(self.count, batches)))
        return self, count

    def loss_sum(self, model: Any, batch: Batch, device: Any) -> torch.Tensor:
        """The summed loss; a differentiable 0 if nothing is predicted."""
        batch = batch.to(device)
        with nullcontext() if self.noise is None else self.noise.added(batch.inputs):
            return self.loss(model, batch)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The summed loss of a micro-batch on the model's device."""
        return self.head.loss(model, batch, self)

    def projection_for(self, batch: Batch) -> Projection | None:
        """The projection, if the batch has so many labels that their logits are worth avoiding."""
        projection = self.projection
        return projection if projection is not None and projection.serves(batch.labels) else None

    def label_loss(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The summed loss of the states that predict the labels, ``[batch, kept, width]``.

        They are logits or, with a projection for this batch, hidden states.
        """
        projection, teacher = self.projection_for(batch), self.teacher
        if projection is None and teacher is None:
            return self.token_loss(states, batch.labels)
        if projection is not None and projection.body is None:
            return states.sum()
        counted = batch.labels != IGNORED
        states, targets = states[counted], [batch.labels[counted]]
        loss: LogitsLoss = self.token_loss
        if teacher is not None:
            targets.append(teacher.states(batch)[counted])
            loss = lambda logits, labels, its: self.token_loss(logits, labels, teacher.logits(its, batch))  # noqa: E731
        return loss(states, *targets) if projection is None else projection.loss(states, loss, *targets)

    def balance(self, output: Any, count: int) -> Any:
        """Causal: the weighted load-balancing loss, once for each of ``count`` predictions."""
        balance = getattr(output, "aux_loss", None)
        if balance is None:
            _warn_of_no_balance(type(output).__name__)
            return 0.0
        return balance * self.coefficient * count


@dataclass(frozen=True)
class Teacher:
    """A frozen model with the student's head and tokenizer."""

    model: Any
    objective: Objective

    def states(self, batch: Batch) -> torch.Tensor:
        """Its logits or hidden states that predict the labels, ``[batch, kept, width]``."""
        import torch

        head: Any = self.objective.head  # which generates text
        with torch.no_grad():
            states: torch.Tensor = head.states(self.model, batch, self.objective)[1]
        return states

    def logits(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The logits ``[n, vocabulary]`` of some of its states for a batch."""
        import torch

        projection = self.objective.projection_for(batch)
        with torch.no_grad():
            return states if projection is None else projection.logits(states)


def _base(model: Any) -> Any:
    """A model without an adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _coefficient(base: Any) -> float:
    """Coefficient of ``aux_loss`` in a causal model's output; Transformers keeps it on the model or in its config."""
    names = ("router_aux_loss_coef", "aux_loss_coef")
    owners = (base, base.config.get_text_config())
    return float(next((getattr(each, name) for each in owners for name in names if hasattr(each, name)), 0.0))


@cache
def _warn_of_no_balance(kind: str) -> None:
    warn("setting_ignored", "output_router_logits has no effect: %s of Transformers computes no balancing loss", kind)
