"""How far a figure may be trusted: bootstrap confidence intervals, and the paired test of two systems (Koehn 2004).

A figure of a corpus is a function of sums over rows, such as counts of n-grams; a mean over rows is the case of one sum
and a count. So rows are drawn by their statistics, not scored again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Interval", "interval", "mean_of", "p_value"]

Figure = Callable[["NDArray[np.float64]"], float]
"""From the sum of the statistics of some rows ``[statistics]`` to the figure."""


@dataclass(frozen=True)
class Interval:
    """A figure and where 95 % of its resamples lie."""

    value: float
    low: float
    high: float


def mean_of(sums: NDArray[np.float64]) -> float:
    """Of statistics ``[value, 1]``; rows that do not count have ``[0, 0]``, and the mean of none is NaN."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def interval(
    statistics: NDArray[np.float64], figure: Figure = mean_of, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The figure of all rows with its 95 % percentile interval.

    Args:
        statistics: ``[rows, statistics]``.
    """
    import numpy as np

    found = [figure(sums) for sums in _resampled(statistics, draws, seed)]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Interval(figure(statistics.sum(axis=0)), float(low), float(high))


def p_value(
    statistics: NDArray[np.float64],
    baseline: NDArray[np.float64],
    figure: Figure = mean_of,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> float:
    """How likely a difference as large, either way, would be if both systems were the same.

    Two-sided, from the distribution of the differences moved to zero, as sacreBLEU's paired bootstrap has it. Both
    systems are judged on the same drawn rows.
    """
    import numpy as np

    pairs = zip(_resampled(statistics, draws, seed), _resampled(baseline, draws, seed), strict=True)
    found = np.asarray([figure(one) - figure(other) for one, other in pairs])
    found = found[~np.isnan(found)]  # where no row was drawn that counts
    real = abs(figure(statistics.sum(axis=0)) - figure(baseline.sum(axis=0)))
    return float((np.sum(np.abs(found - found.mean()) >= real) + 1) / (len(found) + 1))


def _resampled(statistics: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over rows drawn with replacement: ``[draws, statistics]``."""
    import numpy as np

    generator, rows = np.random.default_rng(seed), len(statistics)
    counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=draws)
    return np.asarray(counts @ statistics, dtype=np.float64)
