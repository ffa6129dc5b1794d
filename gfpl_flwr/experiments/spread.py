"""Means over seeds with their uncertainty, and differences between methods seed by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and half the width of its 95 % interval.

    Attributes:
        mean: of the values; NaN without any.
        half: ``t_{n-1} s / sqrt(n)`` with the sample standard deviation s; None for a single value.
        count: n.
    """

    mean: float
    half: float | None
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0: a single value tells nothing."""
        if self.half is None or not abs(self.mean) > self.half:
            return 0
        return 1 if self.mean > 0 else -1


def interval(values: Sequence[float]) -> Interval:
    """Return mean and 95 % interval of values of different seeds, by Student's t distribution."""
    if not values:
        return Interval(math.nan, None, 0)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, 1)
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)), len(values))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Return ``one - other`` over the seeds that both have: the same seed gives both the same data and sites."""
    return interval([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
