"""Bootstrap confidence intervals, and the paired significance test of two systems (Koehn 2004).

A corpus-level score is a function of sums over rows, such as n-gram counts; for a mean these are one sum and a count.
So the statistics of rows are resampled, and rows are not scored again.
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
"""Computes a score from the summed statistics ``[statistics]`` of some rows."""


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def mean_of(sums: NDArray[np.float64]) -> float:
    """The mean, from statistics ``[value, 1]``, or ``[0, 0]`` for rows that do not count; NaN if no row counts."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def interval(
    statistics: NDArray[np.float64], figure: Figure = mean_of, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The score of all rows with its 95 % percentile interval.

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
    """The p-value of the difference of two systems.

    Two-sided, from the distribution of differences shifted to zero, as in sacreBLEU's paired bootstrap. Both systems
    are scored on the same resampled rows.
    """
    import numpy as np

    pairs = zip(_resampled(statistics, draws, seed), _resampled(baseline, draws, seed), strict=True)
    found = np.asarray([figure(one) - figure(other) for one, other in pairs])
    found = found[~np.isnan(found)]  # resamples without a row that counts
    real = abs(figure(statistics.sum(axis=0)) - figure(baseline.sum(axis=0)))
    return float((np.sum(np.abs(found - found.mean()) >= real) + 1) / (len(found) + 1))


def _resampled(statistics: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over rows sampled with replacement: ``[draws, statistics]``."""
    import numpy as np

    generator, rows = np.random.default_rng(seed), len(statistics)
    counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=draws)
    return np.asarray(counts @ statistics, dtype=np.float64)
