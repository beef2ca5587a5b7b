"""The loss of tokens from their logits, for all tokens at once or for each chunk of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmkit.config.recipe_training import TrainSection
from llmkit.heads.batch import IGNORED

if TYPE_CHECKING:
    import torch

__all__ = ["Distillation", "TokenLoss", "make_token_loss"]


@dataclass(frozen=True)
class Distillation:
    """How a teacher's distribution over the next token takes part in the loss; named as in TRL and torchtune."""

    kd_ratio: float
    """Weight of the divergence; the loss of labels has the rest."""
    beta: float
    """0: KL(teacher ‖ student); 1: KL(student ‖ teacher); between them the generalized Jensen-Shannon divergence."""
    temperature: float

    def divergence(self, logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The summed divergence (Agarwal et al. 2024, arXiv:2306.13649) of logits ``[n, vocabulary]``.

        Models of one tokenizer may pad their vocabularies to different sizes: logits that only one has are left out.
        """
        import torch

        common = min(logits.shape[-1], teacher.shape[-1])
        ours, theirs = (
            torch.log_softmax(each[..., :common].float() / self.temperature, dim=-1) for each in (logits, teacher)
        )
        if self.beta == 0:
            return _kl(theirs, ours)
        if self.beta == 1:
            return _kl(ours, theirs)
        mixture = torch.logaddexp(ours + math.log(1 - self.beta), theirs + math.log(self.beta))
        return self.beta * _kl(theirs, mixture) + (1 - self.beta) * _kl(ours, mixture)


def _kl(true: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """The summed KL(true ‖ found) of log-probabilities."""
    import torch

    return torch.nn.functional.kl_div(found, true, reduction="sum", log_target=True)


@dataclass(frozen=True)
class TokenLoss:
    """The summed loss of logits ``[…, vocabulary]`` and labels ``[…]``, which may be `IGNORED`."""

    smoothing: float = 0.0
    loss_type: Literal["nll", "dft"] = "nll"
    """Cross entropy, or Dynamic Fine-Tuning (Wu et al. 2025, arXiv:2508.05629); named as in TRL's ``SFTConfig``."""

    distillation: Distillation | None = None
    """With a teacher, whose logits ``[n, vocabulary]`` are passed too; all labels are then to count."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None = None) -> torch.Tensor:
        if self.distillation is None:
            return self._on_labels(logits, labels)
        assert teacher is not None
        share = self.distillation.kd_ratio
        loss = share * self.distillation.divergence(logits, teacher)
        return loss if share == 1 else loss + (1 - share) * self._on_labels(logits, labels)

    def _on_labels(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import torch

        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum" if self.loss_type == "nll" else "none",
            label_smoothing=self.smoothing,
        )
        return losses if self.loss_type == "nll" else (losses * torch.exp(-losses.detach())).sum()

    def for_evaluation(self) -> TokenLoss:
        """The loss of validation rows: cross entropy, so that runs with different losses can be compared."""
        return replace(self, loss_type="nll", distillation=None)


def make_token_loss(train: TrainSection) -> TokenLoss:
    """The loss that a recipe trains with."""
    return TokenLoss(train.label_smoothing_factor, train.loss_type)
