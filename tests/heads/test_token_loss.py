"""The loss of tokens equals those of TRL."""

from __future__ import annotations

import torch

from llmkit.heads.base import IGNORED
from llmkit.heads.token_loss import TokenLoss


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
