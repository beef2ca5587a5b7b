"""The loss of a micro-batch, summed over what it predicts, so that any division of an update gives the same.

A mixture of experts whose config sets ``output_router_logits`` has the losses of its routers beside that of its
predictions, with the coefficients of its config, as its class adds them. They are means over the tokens of a
micro-batch and are counted once for each predicted token: an update has their mean over its micro-batches and
processes. (The Trainer of Transformers 5.23 adds one for each micro-batch and process: transformers#48690.)
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from llmkit.heads.base import IGNORED
from llmkit.log import log
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
    balances: bool = False
    """The config asks for the losses of the routers. They count padding unless there is an attention mask."""
    coefficient: float = 0.0
    """Causal: of the balancing loss."""

    @classmethod
    def of(cls, model: Any, head: Head, smoothing: float) -> Objective:
        """For a model, which may be wrapped by an adapter."""
        virtual = bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        keeps = "logits_to_keep" in inspect.signature(base.forward).parameters and not virtual
        balances = bool(getattr(base.config.get_text_config(), "output_router_logits", False))
        return cls(head, keeps, smoothing, balances and head is not Head.SPAN, _coefficient(base))

    def loss_sum(self, model: Any, batch: Batch, device: Any, *, balanced: bool = True) -> torch.Tensor:
        """The sum of the losses; 0 with a gradient where nothing is predicted.

        Args:
            balanced: with the losses of routers; False gives that of the predictions alone.

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
        balances = self.balances and balanced
        routers: dict[str, Any] = {"output_router_logits": True} if balances else {}
        if self.head is Head.SEQ2SEQ:
            # These classes give the losses of their routers in their own loss only.
            routers |= {"labels": labels} if balances else {}
            output = model(**inputs, **routers, use_cache=False)
            logits = output.logits
        else:
            assert batch.keep is not None
            keep = batch.keep.to(device)
            some = {"logits_to_keep": keep} if self.keeps else {}
            # The default cache leaks between packed examples, and is of no use here.
            output = model(**inputs, **some, **routers, use_cache=False)
            logits = output.logits
            if not self.keeps:
                # Prompt tuning puts virtual tokens in front.
                logits = logits[:, logits.shape[1] - inputs["input_ids"].shape[1] :][:, keep]
        loss = self._token_loss(logits, labels, self.smoothing)
        if balances and (count := predictions(batch, self.head)):
            own = self._token_loss(logits, labels, 0.0) if self.head is Head.SEQ2SEQ else None
            loss = loss + self._router_loss(output, own, count)
        return loss

    def _token_loss(self, logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )

    def _router_loss(self, output: Any, own: torch.Tensor | None, count: int) -> Any:
        """The losses of routers with their coefficients, once for each of ``count`` predictions.

        Args:
            own: seq2seq; the sum of the losses of the predictions, which the model's own loss has the mean of.
        """
        if own is not None:
            return output.loss * count - own
        balance = getattr(output, "aux_loss", None)
        if balance is None:
            _warn_of_no_balance(type(output).__name__)
            return 0.0
        return balance * self.coefficient * count

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


def _coefficient(base: Any) -> float:
    """Of the ``aux_loss`` in a causal model's output; classes of Transformers keep it on the model or in its config."""
    names = ("router_aux_loss_coef", "aux_loss_coef")
    owners = (base, base.config.get_text_config())
    return float(next((getattr(each, name) for each in owners for name in names if hasattr(each, name)), 0.0))


@cache
def _warn_of_no_balance(kind: str) -> None:
    log.warning("output_router_logits has no effect: %s of Transformers computes no balancing loss", kind)
