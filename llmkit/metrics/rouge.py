"""ROUGE (Lin 2004): F1 of shared n-grams and of the longest common subsequence, in any script.

As the package rouge-score computes it without stemming, with other words (`llmkit.metrics.words`); of several
references the one with the best F1 counts. Of ASCII text the figures are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmkit.metrics.words import WORDS, words

__all__ = ["ROUGE", "SIGNATURE", "rouge"]

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SIGNATURE = f"{WORDS}|case:lower|stem:no|refs:best"


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F1 between 0 and 1 under each name of `ROUGE`. Sentences of ``rougeLsum`` are lines."""
    best = dict.fromkeys(ROUGE, 0.0)
    said = words(prediction)
    said_lines = [words(line) for line in prediction.split("\n") if line]
    for reference in references:
        wanted = words(reference)
        wanted_lines = [words(line) for line in reference.split("\n") if line]
        found = {
            "rouge1": _ngrams(said, wanted, 1),
            "rouge2": _ngrams(said, wanted, 2),
            "rougeL": _f1(_common(said, wanted), len(said), len(wanted)) if said and wanted else 0.0,
            "rougeLsum": _summary(said_lines, wanted_lines),
        }
        best = {name: max(best[name], value) for name, value in found.items()}
    return best


def _f1(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


def _ngrams(said: Sequence[str], wanted: Sequence[str], size: int) -> float:
    one, other = (Counter(zip(*(part[start:] for start in range(size)), strict=False)) for part in (said, wanted))
    return _f1((one & other).total(), max(1, one.total()), max(1, other.total()))


def _table(one: Sequence[str], other: Sequence[str]) -> list[list[int]]:
    """Lengths of the longest common subsequences of all prefixes."""
    rows = [[0] * (len(other) + 1)]
    for word in one:
        above, row = rows[-1], [0]
        for place, match in enumerate(other, start=1):
            row.append(above[place - 1] + 1 if word == match else max(above[place], row[-1]))
        rows.append(row)
    return rows


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, in the memory of two rows."""
    last = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, match in enumerate(other, start=1):
            row.append(last[place - 1] + 1 if word == match else max(last[place], row[-1]))
        last = row
    return last[-1]


def _places(one: Sequence[str], other: Sequence[str]) -> list[int]:
    """The indices in ``one`` of a longest common subsequence, as rouge-score walks back through the table."""
    table, found = _table(one, other), []
    row, column = len(one), len(other)
    while row and column:
        if one[row - 1] == other[column - 1]:
            row, column = row - 1, column - 1
            found.append(row)
        elif table[row][column - 1] > table[row - 1][column]:
            column -= 1
        else:
            row -= 1
    return found[::-1]


def _summary(said: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> float:
    """The union of what each reference sentence has in common with any sentence said; no word counts twice."""
    in_said, in_wanted = (sum(map(len, part)) for part in (said, wanted))
    if not in_said or not in_wanted:
        return 0.0
    left_said, left_wanted = (Counter(word for line in part for word in line) for part in (said, wanted))
    hits = 0
    for sentence in wanted:
        for place in sorted({place for line in said for place in _places(sentence, line)}):
            word = sentence[place]
            if left_said[word] > 0 and left_wanted[word] > 0:
                hits += 1
                left_said[word] -= 1
                left_wanted[word] -= 1
    return _f1(hits, in_said, in_wanted)
