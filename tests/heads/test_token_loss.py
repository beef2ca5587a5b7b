"""The loss of tokens equals those of TRL."""

from __future__ import annotations

import pytest
import torch

from llmkit.heads.base import IGNORED
from llmkit.heads.token_loss import Distillation, TokenLoss


def test_dft_weights_each_token_by_its_probability_as_in_trl() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 11, generator=generator, requires_grad=True)
    labels = torch.randint(11, (2, 5), generator=generator)
    labels[0, :2] = IGNORED
    log_probs = torch.log_softmax(logits, -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORED)
    expected = (-log_probs * log_probs.exp().detach()).sum()  # TRL 1.16, SFTTrainer.compute_loss
    found = TokenLoss(loss_type="dft")(logits, labels)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    plain = TokenLoss(loss_type="dft").for_evaluation()(logits, labels)
    torch.testing.assert_close(plain, -log_probs.sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of TRL's import
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 1.0])
def test_the_divergence_from_a_teacher_is_that_of_trl(beta: float, temperature: float) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    generator = torch.Generator().manual_seed(1)
    logits, teacher = (3 * torch.randn(7, 13, generator=generator) for _ in range(2))
    logits.requires_grad_()
    labels = torch.randint(13, (7,), generator=generator)
    expected = GKDTrainer.generalized_jsd_loss(logits, teacher, beta=beta, temperature=temperature, reduction="sum")
    found = TokenLoss(distillation=Distillation(1.0, beta, temperature))(logits, labels, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    mixed = TokenLoss(0.1, distillation=Distillation(0.3, beta, temperature))(logits, labels, teacher)
    torch.testing.assert_close(mixed, 0.3 * expected + 0.7 * TokenLoss(0.1)(logits, labels))
    padded = torch.cat([logits, torch.full((7, 3), 9.0)], dim=-1)  # embeddings beyond the tokenizer's tokens
    wider = TokenLoss(distillation=Distillation(1.0, beta, temperature))(padded, labels, teacher)
    torch.testing.assert_close(wider, found)
