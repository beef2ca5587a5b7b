"""Runaway outputs: a passage repeated over and over, as by models that never generate an end, or implausible lengths.

Knows token ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq

__all__ = ["RunawayDetector", "ends_in_loop", "repeats"]

_LONGEST = 64
"""Tokens of the longest passage whose repetition is found."""
_TIMES = 4
_TOKENS = 48
"""A loop has at least this many tokens, so short passages are repeated more often than `_TIMES`."""
_INTERVAL = 8
"""Tokens between two searches for a loop."""


class RunawayDetector:
    """Watches one output. Depends on nothing but its tokens and its prompt, so not on a batch."""

    def __init__(self, prompt: Sequence[int], *, stop_loops: bool, plausible_tokens: int | None) -> None:
        self._prompt = prompt
        self._plausible = plausible_tokens
        self._stop_loops = stop_loops
        self._tokens: list[int] = []

    def push(self, token: int) -> bool:
        """Whether the output, with this token, has run away."""
        self._tokens.append(token)
        count = len(self._tokens)
        if self._stop_loops and count % _INTERVAL == 0 and ends_in_loop(self._tokens):
            if not repeats(self._prompt):
                return True
            self._stop_loops = False  # where the input repeats itself, the output may
        return self._plausible is not None and count >= self._plausible


def ends_in_loop(tokens: list[int]) -> bool:
    """Whether the last tokens are one passage, at least `_TIMES` in a row."""
    return any(
        tokens[-length:-passage] == tokens[passage - length :]
        for passage in range(1, min(_LONGEST, len(tokens) // _TIMES) + 1)
        if (length := max(_TOKENS, _TIMES * passage)) <= len(tokens)
    )


def repeats(tokens: Sequence[int]) -> bool:
    """Whether a passage occurs in a row anywhere: where a text repeats itself, so may its translation or summary."""
    return any(
        b"\1" * max(_TOKENS // 3, 2 * passage) in bytes(map(eq, tokens, tokens[passage:]))
        for passage in range(1, min(_LONGEST, len(tokens) // 2) + 1)
    )
