"""What acts on the tokens of a single output: penalties, biases, and grammars.

Each output of a batch has controls of its own, which see its tokens and change the logits of the next one. They act
before temperature, top_k and top_p.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmkit.engines.transformers.grammars import Compiled, Grammar
from llmkit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from llmkit.config.settings import GenerationSettings
    from llmkit.models.load import Loaded

__all__ = ["TokenControl", "token_controls"]


class TokenControl(Protocol):
    """Acts on the tokens of one output."""

    def apply(self, logits: torch.Tensor) -> None:
        """Change the logits ``[vocabulary]`` of the next token, in place."""

    def push(self, token: int) -> None:
        """Add a generated token."""


def token_controls(
    loaded: Loaded,
    settings: GenerationSettings,
    is_reasoning: Callable[[], bool],
    grammar: Compiled | None = None,
    openings: Sequence[Sequence[int]] = (),
) -> list[TokenControl]:
    """New controls for one output.

    Args:
        is_reasoning: whether the next token belongs to the reasoning, which no grammar restricts.
        grammar: of the output.
        openings: tokens with which the output may open its reasoning itself.

    Raises:
        UsageError: the model or its tokenizer does not support them.
    """
    controls: list[TokenControl] = []
    if settings.frequency_penalty or settings.presence_penalty:
        controls.append(_Penalties(settings.frequency_penalty, settings.presence_penalty))
    if settings.logit_bias:
        controls.append(_Bias.of(settings.logit_bias))
    if grammar is not None:
        controls.append(Grammar(loaded, grammar, is_reasoning, openings))
    return controls


@dataclass
class _Penalties:
    """Penalties of tokens in the output, as OpenAI defines them: count × frequency + presence."""

    frequency: float
    presence: float
    _counts: Counter[int] = field(default_factory=Counter)

    def apply(self, logits: torch.Tensor) -> None:
        import torch

        if self._counts:
            penalties = [count * self.frequency + self.presence for count in self._counts.values()]
            places = torch.tensor(list(self._counts), device=logits.device)
            logits[places] -= torch.tensor(penalties, dtype=logits.dtype, device=logits.device)

    def push(self, token: int) -> None:
        self._counts[token] += 1


@dataclass
class _Bias:
    """Values that are added to the logits of tokens."""

    values: Mapping[int, float]

    @classmethod
    def of(cls, values: Mapping[str, float]) -> _Bias:
        try:
            return cls({int(token): float(value) for token, value in values.items()})
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"logit_bias is not a mapping of token ids to numbers ({error})",
                'give numbers for ids, as {"50256": -100}',
                code="invalid_value",
            ) from error

    def apply(self, logits: torch.Tensor) -> None:
        for token, value in self.values.items():
            if not 0 <= token < len(logits):
                raise UsageError(
                    f"logit_bias names token {token}, and the model has tokens 0 to {len(logits) - 1}",
                    "name one of those",
                    code="invalid_value",
                )
            logits[token] += value

    def push(self, token: int) -> None:
        """A bias does not depend on the output."""
