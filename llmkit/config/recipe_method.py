"""The training methods of a recipe beside supervised tuning: tuning on preferences, with settings named as in TRL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llmkit.config.declaration import MOST
from llmkit.config.recipe_sections import Section

__all__ = ["DpoSection", "KtoSection", "MethodSection", "OrpoSection", "answer_fields", "learning_from"]

_PositiveNumber = Annotated[float, Field(gt=0, le=MOST)]
_LossType = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
_LossTypes = Annotated[
    list[_LossType],
    Field(min_length=1),
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=_LossType | list[_LossType],
    ),
]
_USES: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("robust", "exo_pair"),
    "discopop_tau": ("discopop",),
}
"""The types of loss that a setting is for."""


class PreferenceSection(Section):
    """The settings common to all methods of tuning on preferences."""

    name: str
    beta: _PositiveNumber = 0.1
    """DPO and KTO: how strongly the model is kept close to the reference, the model before training; ``ipo``: τ.
    ORPO: weight of the odds ratio (λ in the paper)."""
    disable_dropout: bool = True
    """Train without dropout, so that the model and the reference differ by their weights only."""


class DpoSection(PreferenceSection):
    """Direct preference optimization (Rafailov et al. 2023) on rows with a chosen and a rejected answer."""

    name: Literal["dpo"]
    loss_type: _LossTypes = ["sigmoid"]  # noqa: RUF012 - pydantic copies it
    """Type of loss, or a list of them, whose sum is trained, such as ``[sigmoid, sft]``."""
    loss_weights: list[_PositiveNumber] | None = None
    """Weights of several types of loss; 1 by default."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """``robust``: probability that a preference is wrong; ``exo_pair``: ε."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of the tokens of the longer answer beyond the length of the shorter one (LD-DPO); 1 by default."""
    discopop_tau: _PositiveNumber = 0.05
    """``discopop``: temperature."""

    def _conflicts(self) -> Iterator[str]:
        if len(set(self.loss_type)) < len(self.loss_type):
            yield "loss_type names a type twice; name each once, with loss_weights"
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            yield f"loss_weights needs one weight for each of the {len(self.loss_type)} types of loss; correct it"
        elif self.loss_weights is not None and len(self.loss_type) == 1:
            yield "loss_weights has no effect on a single type of loss; leave it out"
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            yield "loss_type: exo_pair requires label_smoothing above 0; set it, such as 0.001"
        for setting in self.changed(*_USES):
            if not {*_USES[setting]} & {*self.loss_type}:
                types = ", ".join(_USES[setting])
                yield f"{setting} has no effect on loss_type: {', '.join(self.loss_type)}; it is for {types}"


class OrpoSection(PreferenceSection):
    """Odds ratio preference optimization (Hong et al. 2024): as DPO, without a reference, and learning the chosen
    answer."""

    name: Literal["orpo"]
    nll_on: Literal["all", "target"] = "all"
    """Tokens of the chosen sequence that are learned: all, as in TRL, or only the answer."""


class KtoSection(PreferenceSection):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024) on rows with one answer and a label, or on pairs."""

    name: Literal["kto"]
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: _PositiveNumber = 1.0
    """Weight of the loss of desirable answers."""
    undesirable_weight: _PositiveNumber = 1.0
    """Weight of the loss of undesirable answers."""


MethodSection = Annotated[
    Annotated[DpoSection | OrpoSection | KtoSection, Field(discriminator="name")],
    BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) else value,
        json_schema_input_type=Literal["dpo", "orpo", "kto"] | DpoSection | OrpoSection | KtoSection,
    ),
]
"""A method by its name, or with its settings."""


def learning_from(method: Any) -> Literal["answers", "pairs", "labels"]:
    """What the rows of a method have: answers, pairs of a chosen and a rejected one, or answers with labels.

    Args:
        method: a recipe's section, or the name of a method.
    """
    if method is None:
        return "answers"
    return "labels" if getattr(method, "name", method) == "kto" else "pairs"


def answer_fields(method: Any) -> tuple[str, ...]:
    """The fields of a method's rows that can be mapped to columns, in addition to the task's."""
    return {"answers": (), "pairs": ("chosen", "rejected"), "labels": ("chosen", "rejected", "label")}[
        learning_from(method)
    ]
