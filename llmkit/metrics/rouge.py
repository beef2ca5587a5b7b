"""ROUGE (Lin 2004): F1 of shared n-grams and of the longest common subsequence, in any script.

Computed like the package rouge-score without stemming, but with a word segmentation for all scripts
(`llmkit.metrics.words`); on ASCII text the scores are the same. Of several references the one with the best F1 counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from llmkit.metrics.words import WORDS, words

__all__ = ["ROUGE", "SIGNATURE", "rouge"]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SIGNATURE = f"{WORDS}|case:lower|stem:no|refs:best"


def _lines(text: str) -> list[str]:
    return text.split("\n")


def rouge(
    prediction: str,
    references: Sequence[str],
    *,
    tokens: Callable[[str], list[str]] = words,
    sentences: Callable[[str], list[str]] = _lines,
) -> dict[str, float]:
    """F1 between 0 and 1 under each name of `ROUGE`; ``sentences`` are those of ``rougeLsum``, by default lines."""
    best = dict.fromkeys(ROUGE, 0.0)
    predicted = tokens(prediction)
    predicted_lines = [tokens(line) for line in sentences(prediction) if line]
    for reference in references:
        expected = tokens(reference)
        expected_lines = [tokens(line) for line in sentences(reference) if line]
        found = {
            "rouge1": _ngrams(predicted, expected, 1),
            "rouge2": _ngrams(predicted, expected, 2),
            "rougeL": _f1(_common(predicted, expected), len(predicted), len(expected)),
            "rougeLsum": _summary(predicted_lines, expected_lines),
        }
        best = {name: max(best[name], value) for name, value in found.items()}
    return best


def _f1(shared: int, predicted: int, expected: int) -> float:
    return 2 * shared / (predicted + expected) if shared else 0.0


def _ngrams(predicted: Sequence[str], expected: Sequence[str], size: int) -> float:
    one, other = (
        Counter(zip(*(part[start:] for start in range(size)), strict=False)) for part in (predicted, expected)
    )
    return _f1((one & other).total(), max(1, one.total()), max(1, other.total()))


def _rows(one: Sequence[str], other: Sequence[str]) -> list[int]:
    """The table of the longest common subsequences of all prefixes, each row in the bits of a number (Hyyrö 2004).

    A bit is 0 where the length increases, so that the length at a position is the number of zeros before it.
    """
    where: dict[str, int] = {}
    for place, word in enumerate(other):
        where[word] = where.get(word, 0) | 1 << place
    every = (1 << len(other)) - 1
    rows = [every]
    for word in one:
        matched = rows[-1] & where.get(word, 0)
        rows.append((rows[-1] + matched | rows[-1] - matched) & every)
    return rows


def _length(row: int, place: int) -> int:
    return place - (row & (1 << place) - 1).bit_count()


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    return _length(_rows(one, other)[-1], len(other))


def _places(one: Sequence[str], other: Sequence[str]) -> list[int]:
    """The indices in ``one`` of a longest common subsequence, as rouge-score walks back through the table."""
    rows, found = _rows(one, other), []
    row, column = len(one), len(other)
    while row and column:
        if one[row - 1] == other[column - 1]:
            row, column = row - 1, column - 1
            found.append(row)
        elif _length(rows[row], column - 1) > _length(rows[row - 1], column):
            column -= 1
        else:
            row -= 1
    return found[::-1]


def _summary(predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
    """The F1 of the union LCS of each reference sentence with all predicted sentences; no word counts twice."""
    in_predicted, in_expected = (sum(map(len, part)) for part in (predicted, expected))
    if not in_predicted or not in_expected:
        return 0.0
    left_predicted, left_expected = (Counter(word for line in part for word in line) for part in (predicted, expected))
    lines, hits = dict.fromkeys(map(tuple, predicted)), 0
    shared: dict[tuple[str, ...], list[int]] = {}
    for sentence in map(tuple, expected):
        if sentence not in shared:
            shared[sentence] = sorted({place for line in lines for place in _places(sentence, line)})
        for place in shared[sentence]:
            word = sentence[place]
            if left_predicted[word] > 0 and left_expected[word] > 0:
                hits += 1
                left_predicted[word] -= 1
                left_expected[word] -= 1
    return _f1(hits, in_predicted, in_expected)
