"""The next-token distributions along a generation: what was chosen, what else was probable, and how undecided it was.

Knows the log probabilities of an `Output`. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.explanation.tokens import shown_token
from llmkit.pages import framed, render
from llmkit.tasks.output import Output, TokenLogprob

__all__ = ["Steps"]


@dataclass(frozen=True)
class Steps:
    """A generation with the distribution of each of its tokens, before temperature, top_k and top_p."""

    prompt: str
    output: Output
    """With ``logprobs``."""

    @property
    def tokens(self) -> tuple[TokenLogprob, ...]:
        """The generated tokens, the end token included."""
        return self.output.logprobs or ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: that of the output, which has ``logprobs``, with the prompt."""
        return self.output.to_dict() | {"prompt": self.prompt}

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The cells of a table: number, token, probability, entropy in bits, and the most probable tokens."""
        for number, step in enumerate(self.tokens, start=1):
            others = "  ".join(f"{shown_token(other.text)} {_percent(other)}" for other in step.top)
            yield str(number), shown_token(step.text), _percent(step), f"{step.entropy or 0:.2f}", others

    def to_html(self) -> str:
        """A page with the generation as a heat strip, and a table of all steps."""
        return render(
            "steps.html",
            model=self.output.model,
            prompt=self.prompt,
            steps=[_step(each) for each in self.tokens],
            notes=[note.text for note in self.output.notes],
        )

    def _repr_html_(self) -> str:
        return framed(self.to_html())


def _percent(token: TokenLogprob) -> str:
    return f"{math.exp(token.logprob):.1%}"


def _step(token: TokenLogprob) -> dict[str, Any]:
    own = {"id": token.id, "text": token.text, "shown": shown_token(token.text)}
    return own | {
        "probability": math.exp(token.logprob),
        "entropy": token.entropy or 0.0,
        "top": [_step(other) for other in token.top],
    }
