"""Losses of preferences: DPO and its relatives, ORPO and KTO, with the formulas and the names of TRL 1.16.

A micro-batch has the sequences of chosen answers first, and those of rejected ones after them; KTO has one sequence per
example, and as many with the answer of another example. All sums are over a micro-batch and are divided by the number
of examples of the update, so that any division of an update gives the same result. Causal models only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmkit.config.recipe_method import DpoSection
from llmkit.heads.batch import IGNORED, Batch, Line, fill, padded, shifted
from llmkit.heads.objective import Objective
from llmkit.heads.projection import Projection
from llmkit.heads.token_loss import TokenLoss

if TYPE_CHECKING:
    import torch

    from llmkit.heads.base import BaseHead

    Tensor = torch.Tensor

__all__ = ["MEASURES", "PreferenceBatch", "PreferenceObjective", "make_objective", "means", "rewards_of", "sequences"]

_ACCURACIES = "rewards/accuracies"
_OF_PAIRS = (_ACCURACIES, "rewards/margins")
MEASURES = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", *_OF_PAIRS)
"""Means that are logged with the loss, named as in TRL; of KTO without accuracies, and with ``kl``."""


def rewards_of(method: Any) -> list[str]:
    """The measures of a method by which evaluations can be compared."""
    return [] if method is None else [name for name in _OF_PAIRS if method.name != "kto" or name != _ACCURACIES]


def make_objective(
    model: Any,
    head: BaseHead,
    token_loss: TokenLoss = TokenLoss(),  # noqa: B008 - frozen
    method: Any = None,
) -> Objective:
    """The objective of a model, which may be wrapped by an adapter.

    Args:
        method: the recipe's section of a method of tuning on preferences, if any.
    """
    plain = Objective.of(model, head, token_loss)
    return plain if method is None else PreferenceObjective(**vars(plain), method=method)


@dataclass
class PreferenceBatch(Batch):
    """A micro-batch of examples with answers that are better or worse."""

    examples: int = 0
    answers: Tensor | None = None
    """Whether a label is of an answer, ``[sequences, kept]``; others are of a prompt."""
    reference: Tensor | None = None
    """Log-probabilities ``[sequences]`` of the reference; None while these are computed, or if the method has none."""
    desirable: Tensor | None = None
    """KTO: for each example whether its answer is desirable."""

    def to(self, device: Any) -> PreferenceBatch:
        parts = {name: getattr(self, name) for name in ("answers", "reference", "desirable")}
        moved: dict[str, Any] = {name: None if each is None else each.to(device) for name, each in parts.items()}
        return PreferenceBatch(**vars(super().to(device)), examples=self.examples, **moved)

    @property
    def mask(self) -> Tensor:
        """The labels of answers."""
        counted = self.labels != IGNORED
        return counted if self.answers is None else counted & self.answers

    def part(self, where: slice) -> PreferenceBatch:
        """Some of the sequences."""
        inputs = {name: each[where] for name, each in self.inputs.items()}
        parts = {name: getattr(self, name) for name in ("answers", "reference")}
        some: dict[str, Any] = {name: None if each is None else each[where] for name, each in parts.items()}
        return replace(self, inputs=inputs, labels=self.labels[where], **some)

    @property
    def counted(self) -> Tensor:
        """Whether each example counts: in a batch without labels none does."""
        return (self.labels[: self.examples] != IGNORED).any(dim=1)


def sequences(line: Line) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Ids and labels of the answers of an example: chosen, rejected, and of KTO the one of another example."""
    pairs = ((line.get(f"{name}input_ids"), line.get(f"{name}labels")) for name in ("", "rejected_", "kl_"))
    return [(ids, labels) for ids, labels in pairs if ids and labels]


def means(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The means of measures from their sums and counts; the margin of KTO is between means."""
    found = {name: total / count for name, (total, count) in sums.items() if count}
    if "kl" in sums and {"rewards/chosen", "rewards/rejected"} <= found.keys():
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    return found


@dataclass(frozen=True)
class PreferenceObjective(Objective):
    """How the loss of preferences is computed; of one update, if made by `for_update`."""

    method: Any = None
    """The recipe's section of the method."""
    nll_weight: float = 0.0
    """Examples of the update per learned token of its chosen sequences: makes a sum over tokens a mean."""
    kl: float = 0.0
    """KTO: the divergence from the reference, estimated on the sequences with answers of other examples."""
    sums: dict[str, list[float]] = field(default_factory=dict)

    @property
    def measures(self) -> Mapping[str, list[float]]:
        return self.sums

    @property
    def is_kto(self) -> bool:
        return bool(self.method.name == "kto")

    # Micro-batches.

    def batch(self, lines: Sequence[Line], *, pad_id: int, packed: bool = False, masked: bool = True) -> Batch:
        import torch

        found = [sequences(line) for line in lines]
        columns = [[each[place] for each in found] for place in range(min(map(len, found)))]
        rows = [{"input_ids": ids, "labels": labels} for column in columns for ids, labels in column]
        learned = [row["labels"] for row in rows]
        if getattr(self.method, "nll_on", "target") == "all":
            learned[: len(lines)] = [row["input_ids"] for row in rows[: len(lines)]]
        labels, keep = shifted(fill(learned, IGNORED))
        answers = fill([row["labels"] for row in rows], IGNORED)[:, 1:][:, keep] != IGNORED
        known = "reference" in lines[0]
        reference = torch.tensor([line["reference"] for line in lines]).T.flatten() if known else None
        desirable = torch.tensor([bool(line["input_ids"]) for line in lines]) if self.is_kto else None
        inputs = padded(rows, pad_id, masked=masked)
        return PreferenceBatch(inputs, labels, keep, len(lines), answers, reference, desirable)

    def count(self, batch: Batch) -> int:
        """The number of examples."""
        assert isinstance(batch, PreferenceBatch)
        return int(batch.counted.sum())

    def for_update(
        self, model: Any, batches: Sequence[Batch], device: Any, sum_up: Callable[..., list[float]]
    ) -> tuple[PreferenceObjective, float]:
        """See `Objective`. Computes the divergence of KTO, which no gradient passes through."""
        mine = [batch for batch in batches if isinstance(batch, PreferenceBatch)]
        tokens: float = sum(int((each.labels[: each.examples] != IGNORED).sum()) for each in mine)
        divergence = 0.0
        if self.is_kto and self.method.loss_type == "kto":
            divergence = sum(self._divergence(model, batch.to(device)) for batch in mine)
        count, tokens, divergence = sum_up(sum(map(self.count, mine)), tokens, divergence)
        kl = max(0.0, divergence / max(1.0, count))
        names = [name for name in MEASURES if not (self.is_kto and name in _OF_PAIRS)]
        sums = {name: [0.0, 0.0] for name in names} | ({"kl": [kl, 1.0]} if self.is_kto else {})
        return replace(self, nll_weight=count / max(1.0, tokens), kl=kl, sums=sums), count

    def _divergence(self, model: Any, batch: PreferenceBatch) -> float:
        """The sum of log-ratios of the sequences with answers of other examples."""
        import torch

        others = batch.part(slice(batch.examples, None))
        assert others.reference is not None
        with torch.no_grad():
            ratios = self.log_probs(model, others).sum(dim=1) - others.reference
        return float((ratios * batch.counted).sum())

    def loss_sum(self, model: Any, batch: Batch, device: Any) -> Tensor:
        assert isinstance(batch, PreferenceBatch)
        return super().loss_sum(model, batch.part(slice(batch.examples)) if self.is_kto else batch, device)

    def loss(self, model: Any, batch: Batch) -> Tensor:
        assert isinstance(batch, PreferenceBatch)
        output: list[Any] = []
        tokens = self.log_probs(model, batch, output if self.balances else None)
        if not (count := self.count(batch)):
            return tokens.sum() * 0.0
        loss = (self._labelled if self.is_kto else self._paired)(tokens, batch).sum()
        return loss + self.balance(output[0], count) if output else loss

    def log_probs(self, model: Any, batch: Batch, output: list[Any] | None = None) -> Tensor:
        """The log-probability of each label, ``[sequences, kept]``; 0 where there is none.

        Args:
            output: gets the output of the model, with the logits of routers.
        """
        assert batch.keep is not None
        routers = {} if output is None else {"output_router_logits": True}
        arguments = {**batch.inputs, **routers, "use_cache": False}
        if (projection := self.projection_for(batch)) is not None:
            made, states = projection.run(model, arguments)
            found = _in_chunks(projection, _at(states, batch), batch.labels)
        else:
            made = model(**arguments, **({"logits_to_keep": batch.keep} if self.keeps else {}))
            found = _of_labels(made.logits if self.keeps else _at(made.logits, batch), batch.labels)
        if output is not None:
            output.append(made)
        return found

    def reference(self, model: Any, batch: Batch) -> list[list[float]]:
        """The log-probabilities of each example's answers under a model that is not trained."""
        import torch

        assert isinstance(batch, PreferenceBatch)
        with torch.no_grad():
            totals = self._totals(self.log_probs(model, batch), batch.mask)
        found: list[list[float]] = totals.float().reshape(-1, batch.examples).T.tolist()
        return found

    def _totals(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The log-probability of each answer; the tail of the longer answer of a pair has the weight ``ld_alpha``."""
        import torch

        alpha = getattr(self.method, "ld_alpha", None)
        if alpha is None:
            return (tokens * mask).sum(dim=1)
        places = mask.cumsum(dim=1)
        chosen, rejected = places[:, -1].chunk(2)
        shared = torch.minimum(chosen, rejected).repeat(2)[:, None]
        return (tokens * mask * torch.where(places <= shared, 1.0, alpha)).sum(dim=1)

    # Losses.

    def _paired(self, tokens: Tensor, batch: PreferenceBatch) -> Tensor:
        lengths, beta = batch.mask.sum(dim=1).clamp(min=1), float(self.method.beta)
        nll = -tokens.chunk(2)[0].sum(dim=1) * self.nll_weight
        totals = self._totals(tokens, batch.mask)
        if self.method.name == "orpo":
            chosen, rejected = (totals / lengths).chunk(2)
            self._note(beta * chosen, beta * rejected, chosen, rejected)
            return nll + beta * _odds_ratio_loss(chosen, rejected)
        ratios = totals if batch.reference is None else totals - batch.reference  # None to find shapes only
        (chosen, rejected), (chosen_tokens, rejected_tokens) = ratios.chunk(2), lengths.chunk(2)
        pair = Pair(chosen, rejected, chosen_tokens, rejected_tokens, nll)
        self._note(beta * pair.chosen, beta * pair.rejected, *totals.chunk(2))
        kinds = self.method.loss_type
        weights = self.method.loss_weights or [1.0] * len(kinds)
        losses = (weight * LOSSES[kind](pair, self.method) for kind, weight in zip(kinds, weights, strict=True))
        return sum(losses, pair.chosen.new_zeros(()))

    def _labelled(self, tokens: Tensor, batch: PreferenceBatch) -> Tensor:
        import torch

        good, totals = batch.desirable, self._totals(tokens, batch.mask)
        assert good is not None
        ratios = totals if batch.reference is None else totals - batch.reference
        rewards = self.method.beta * ratios
        for kind, mine in (("chosen", good), ("rejected", ~good)) if self.sums else ():
            self._add(f"rewards/{kind}", rewards[mine])
            self._add(f"logps/{kind}", totals[mine])
        margins = torch.where(good, 1.0, -1.0) * (rewards - self.method.beta * self.kl)
        weights = torch.where(good, self.method.desirable_weight, self.method.undesirable_weight)
        losses: Tensor = weights * (1 - margins.sigmoid())
        return losses

    def _note(self, chosen: Tensor, rejected: Tensor, *log_probs: Tensor) -> None:
        """Add rewards and log-probabilities of pairs to the sums."""
        values = (chosen, rejected, *log_probs, chosen > rejected, chosen - rejected)
        for name, each in zip(MEASURES, values, strict=True) if self.sums else ():
            self._add(name, each)

    def _add(self, name: str, values: Tensor) -> None:
        total, count = self.sums[name]
        self.sums[name] = [total + float(values.detach().float().sum()), count + len(values)]


def _at(states: Tensor, batch: Batch) -> Tensor:
    """Logits or hidden states at the positions that predict a label; prompt tuning puts virtual tokens in front."""
    return states[:, states.shape[1] - batch.inputs["input_ids"].shape[1] :][:, batch.keep]


def _of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probabilities of labels ``[…]`` under logits ``[…, vocabulary]``; 0 for those that are ignored."""
    import torch

    flat = logits.flatten(0, -2).float()
    losses = torch.nn.functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view(labels.shape)


def _in_chunks(projection: Projection, hidden: Tensor, labels: Tensor) -> Tensor:
    """The log-probabilities of labels from hidden states ``[…, width]``, with the logits of one chunk at a time.

    Those of a chunk are computed again for the backward pass, since the loss is not a sum over tokens.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    if projection.body is None:  # only the memory of everything else is counted
        return hidden.float().mean(dim=-1)

    def part_of(hidden: Tensor, labels: Tensor) -> Tensor:
        return _of_labels(projection.logits(hidden), labels)

    counted = labels != IGNORED
    if not counted.any():  # yet each trained parameter needs a gradient
        counted = torch.zeros_like(counted)
        counted[0, 0] = True
    states, targets = hidden[counted], labels[counted]
    parts = ((states[where], targets[where]) for where in projection.chunks(states))
    found = torch.cat([checkpoint(part_of, *part, use_reentrant=False) for part in parts])
    return torch.zeros_like(labels, dtype=found.dtype).masked_scatter(counted, found)


@dataclass(frozen=True)
class Pair:
    """What the losses of pairs are computed from."""

    chosen: Tensor
    """Log-ratio of the chosen answer: its log-probability minus that of the reference."""
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    nll: Tensor
    """Negative log-likelihood of the chosen answer, whose sum over an update is the mean over its tokens times its
    pairs."""

    @property
    def delta(self) -> Tensor:
        return self.chosen - self.rejected

    @property
    def mean_delta(self) -> Tensor:
        """The same, per token."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def _log_sigmoid(value: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.logsigmoid(value)


def _exo(pair: Pair, to: DpoSection) -> Tensor:
    better, worse = to.beta * pair.delta, -to.beta * pair.delta
    return better.sigmoid() * (_log_sigmoid(better) - math.log1p(-to.label_smoothing)) + worse.sigmoid() * (
        _log_sigmoid(worse) - math.log(to.label_smoothing)
    )


def _nca(pair: Pair, to: DpoSection) -> Tensor:
    good, bad = to.beta * pair.chosen, to.beta * pair.rejected
    return -_log_sigmoid(good) - 0.5 * _log_sigmoid(-good) - 0.5 * _log_sigmoid(-bad)


def _robust(pair: Pair, to: DpoSection) -> Tensor:
    wrong = to.label_smoothing
    right, flipped = _log_sigmoid(to.beta * pair.delta), _log_sigmoid(-to.beta * pair.delta)
    return (wrong * flipped - (1 - wrong) * right) / (1 - 2 * wrong)


def _discopop(pair: Pair, to: DpoSection) -> Tensor:
    logits = to.beta * pair.delta
    share = (logits / to.discopop_tau).sigmoid()
    return -_log_sigmoid(logits) * (1 - share) + (-logits).exp() * share


LOSSES: dict[str, Callable[[Pair, DpoSection], Tensor]] = {
    "sigmoid": lambda pair, to: -_log_sigmoid(to.beta * pair.delta),
    "sigmoid_norm": lambda pair, to: -_log_sigmoid(to.beta * pair.mean_delta),
    "hinge": lambda pair, to: (1 - to.beta * pair.delta).relu(),
    "ipo": lambda pair, to: (pair.mean_delta - 1 / (2 * to.beta)) ** 2,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "robust": _robust,
    "bco_pair": lambda pair, to: -_log_sigmoid(to.beta * pair.chosen) - _log_sigmoid(-to.beta * pair.rejected),
    "sppo_hard": lambda pair, to: (pair.chosen - 0.5 / to.beta) ** 2 + (pair.rejected + 0.5 / to.beta) ** 2,
    "apo_zero": lambda pair, to: (-to.beta * pair.chosen).sigmoid() + (to.beta * pair.rejected).sigmoid(),
    "apo_down": lambda pair, to: (to.beta * pair.chosen).sigmoid() + (-to.beta * pair.delta).sigmoid(),
    "discopop": _discopop,
    "sft": lambda pair, _: pair.nll,
}
"""The loss of each pair by the type of loss, as in TRL."""


def _odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ORPO: the negative log-sigmoid of the log odds ratio, from mean log-probabilities per token."""
    odds = (chosen - rejected) - ((-chosen.expm1()).log() - (-rejected.expm1()).log())
    return -_log_sigmoid(odds)
