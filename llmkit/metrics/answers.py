"""Exact match and F1 of answers: SQuAD v1 and v2 (Rajpurkar et al. 2016, 2018), and CMRC 2018's Chinese variant.

Answers in a script without spaces between words are scored like CMRC's evaluation script, others like SQuAD's.
An empty text means "no answer".
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmkit.metrics.words import has_unspaced

__all__ = ["SIGNATURE", "Threshold", "best_threshold", "exact_match", "f1"]

SIGNATURE = "squad:lower-punctuation-articles|unspaced:cmrc2018|refs:best"

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = set(string.punctuation)
_CMRC_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》……·、「」（）－～『』") | _PUNCTUATION


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if the answer equals a reference up to case, punctuation and articles; without references, if it is empty."""
    return max(map(float, (_same(prediction, reference) for reference in references or [""])))


def f1(prediction: str, references: Sequence[str]) -> float:
    """The best overlap with a reference, between 0 and 1."""
    return max(_overlap(prediction, reference) for reference in references or [""])


def _same(prediction: str, reference: str) -> bool:
    if has_unspaced(reference):
        return "".join(_cmrc(prediction)) == "".join(_cmrc(reference))
    return _normal(prediction) == _normal(reference)


def _overlap(prediction: str, reference: str) -> float:
    if has_unspaced(reference):
        predicted, expected = _cmrc(prediction), _cmrc(reference)
        return _f1(_longest_run(predicted, expected), len(predicted), len(expected))
    predicted, expected = _normal(prediction).split(), _normal(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    return _f1((Counter(predicted) & Counter(expected)).total(), len(predicted), len(expected))


def _f1(shared: int, predicted: int, expected: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / predicted, shared / expected
    return 2 * precision * recall / (precision + recall)


def _normal(text: str) -> str:
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def _cmrc(text: str) -> list[str]:
    """Characters of unspaced scripts and words of other scripts, without punctuation."""
    parts: list[str] = []
    begun = ""
    for character in text.lower().strip():
        if character in _CMRC_PUNCTUATION:
            continue
        if character.isspace() or has_unspaced(character):
            parts += [begun] if begun else []
            parts += [] if character.isspace() else [character]
            begun = ""
        else:
            begun += character
    return [*parts, *([begun] if begun else [])]


def _longest_run(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common substring, which CMRC's script calls LCS."""
    signs: dict[str, str] = {}
    text, within = ("".join(signs.setdefault(word, chr(len(signs))) for word in words) for words in (one, other))
    longest = 0
    for start in range(len(text)):
        while start + longest < len(text) and text[start : start + longest + 1] in within:
            longest += 1
    return longest


@dataclass(frozen=True)
class Threshold:
    """The no-answer score above which no answer is predicted."""

    value: float
    figure: float
    """The mean score with this threshold."""


def best_threshold(scores: Sequence[float], answered: Sequence[float], empty: Sequence[float]) -> Threshold:
    """The threshold with the best mean score, as in SQuAD v2's script.

    Args:
        scores: for each row, the score of no answer relative to the best answer.
        answered: the score of the row if its best answer is predicted.
        empty: the score of the row if no answer is predicted.
    """
    gains = [one - other for one, other in zip(answered, empty, strict=True)]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    ranked = [scores[row] for row in order]
    total = sum(empty)
    best = Threshold(ranked[0] - 1 if ranked else 0.0, total)  # below all: never answer
    for place, row in enumerate(order):
        total += gains[row]
        above = ranked[place + 1] if place + 1 < len(ranked) else math.inf
        if total > best.figure and above > ranked[place]:
            best = Threshold(_between(ranked[place], above), total)
    return Threshold(best.value, best.figure / max(1, len(scores)))


def _between(low: float, high: float) -> float:
    """A value strictly between two scores, so that rounding errors cannot move a score across it."""
    return (low + high) / 2 if math.isfinite(high) else low + 1
