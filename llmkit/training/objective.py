"""The loss of a micro-batch, summed over what it predicts, so that any division of an update gives the same."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.heads.base import IGNORED
from llmkit.tasks import Head
from llmkit.training.collate import Batch

if TYPE_CHECKING:
    import torch

__all__ = ["Objective", "predictions"]


def predictions(batch: Batch, head: Head) -> int:
    """What the loss of an update is divided by: tokens that are predicted; of extractive models, windows."""
    labels = batch.labels[:, 0, 0] if head is Head.SPAN else batch.labels
    return int((labels != IGNORED).sum())


@dataclass(frozen=True)
class Objective:
    """How a kind of model is asked for its loss."""

    head: Head
    keeps: bool
    """The model can give the logits of some positions only (``logits_to_keep``), which saves most of their memory."""
    smoothing: float

    @classmethod
    def of(cls, model: Any, head: Head, smoothing: float) -> Objective:
        """For a model, which may be wrapped by an adapter."""
        virtual = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters and not virtual
        return cls(head, keeps, smoothing)

    def loss_sum(self, model: Any, batch: Batch, device: Any) -> torch.Tensor:
        """The sum of the losses; 0 with a gradient where nothing is predicted.

        Span: the mean of the start's and the end's, as ``ForQuestionAnswering`` of Transformers has it, but no
        probability goes to padding, so that it does not depend on the batch, and of several answers each is right.
        """
        import torch

        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        labels = batch.labels.to(device)
        if self.head is Head.SPAN:
            output = model(**inputs)
            padding = inputs["attention_mask"] == 0
            pairs = zip((output.start_logits, output.end_logits), labels.unbind(dim=1), strict=True)
            return torch.stack([self._place_loss(logits, wanted, padding) for logits, wanted in pairs]).mean()
        if self.head is Head.SEQ2SEQ:
            logits = model(**inputs, use_cache=False).logits
        else:
            assert batch.keep is not None
            keep = batch.keep.to(device)
            some = {"logits_to_keep": keep} if self.keeps else {}
            # The default cache leaks between packed examples, and is of no use here.
            logits = model(**inputs, **some, use_cache=False).logits
            if not self.keeps:
                # Prompt tuning puts virtual tokens in front.
                logits = logits[:, logits.shape[1] - inputs["input_ids"].shape[1] :][:, keep]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def _place_loss(self, logits: torch.Tensor, places: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Of each row, the cross entropy of any of its right places against all that are no padding.

        The summed objective of Clark and Gardner (2018, arXiv:1710.10723); with one right place the plain one.

        Args:
            logits: ``[batch, length]``, as ``padding``.
            places: ``[batch, answers]``, distinct, `IGNORED` behind them or all over.
        """
        log_p = logits.float().masked_fill(padding, -1e9).log_softmax(dim=1)
        right = log_p.gather(1, places.clamp(min=0)).masked_fill(places == IGNORED, -1e9).logsumexp(dim=1)
        if self.smoothing:
            # What is smoothed goes to all places alike, but padding is none.
            even = log_p.masked_fill(padding, 0).sum(dim=1) / (~padding).sum(dim=1)
            right = (1 - self.smoothing) * right + self.smoothing * even
        return -right.masked_fill(places[:, 0] == IGNORED, 0).sum()
