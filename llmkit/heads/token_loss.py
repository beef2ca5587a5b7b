"""The loss of tokens from their logits, for all tokens at once or for each chunk of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llmkit.config.recipe_training import TrainSection
from llmkit.heads.batch import IGNORED

if TYPE_CHECKING:
    import torch

__all__ = ["TokenLoss", "make_token_loss"]


@dataclass(frozen=True)
class TokenLoss:
    """The summed loss of logits ``[…, vocabulary]`` and labels ``[…]``, which may be `IGNORED`."""

    smoothing: float = 0.0
    loss_type: Literal["nll", "dft"] = "nll"
    """Cross entropy, or Dynamic Fine-Tuning (Wu et al. 2025, arXiv:2508.05629); named as in TRL's ``SFTConfig``."""

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
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
        return replace(self, loss_type="nll")


def make_token_loss(train: TrainSection) -> TokenLoss:
    """The loss that a recipe trains with."""
    return TokenLoss(train.label_smoothing_factor, train.loss_type)
