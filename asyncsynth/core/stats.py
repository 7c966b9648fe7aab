"""Counts and distributions that can be merged, e.g. of several servers or of the runs of one epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import ceil, exp, floor, inf, log


class Tally(Counter[str]):
    """Named counts; merging is addition."""

    def merge(self, other: Tally) -> None:
        """Add another tally's counts to this one's."""
        self.update(other)


_PER_OCTAVE = 8  # buckets per doubling: a quantile is off by at most 2**(1/16) - 1 = 4.4 %
_LN_STEP = log(2.0) / _PER_OCTAVE


class Histogram:
    """A distribution of positive numbers in logarithmic buckets; quantiles are within 5 %.

    Memory is one integer per bucket used (8 per doubling); zero and below share one bucket.
    """

    __slots__ = ("buckets", "count", "maximum", "minimum", "total")

    _ZERO = -(1 << 30)

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.buckets: dict[int, int] = {}
        self.count: int = 0
        self.total: float = 0.0
        self.minimum: float = inf
        self.maximum: float = -inf
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Count one value; NaN and infinity are refused with ValueError."""
        if 0.0 < value < inf:
            index = floor(log(value) / _LN_STEP)
        elif -inf < value <= 0.0:
            index = self._ZERO
        else:
            raise ValueError(f"a histogram takes finite numbers, not {value}")
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total += value
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts to this one's."""
        for index, n in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + n
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    @property
    def mean(self) -> float:
        """The mean; 0.0 when empty."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The value below which a share `q` (0 to 1) of the values lies; 0.0 when empty."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile is between 0 and 1, not {q}")
        if not self.count:
            return 0.0
        rank = max(1, ceil(q * self.count))
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                middle = exp((index + 0.5) * _LN_STEP) if index != self._ZERO else self.minimum
                return min(max(middle, self.minimum), self.maximum)
        return self.maximum

    def copy(self) -> Histogram:
        """An independent copy, for a snapshot."""
        twin = Histogram()
        twin.merge(self)
        return twin
