"""Whether a series of equal intervals changed on the way: its parts, compared. Pure.

What lies before a moment is compared with what lies after it, for up to 20 moments; and
thirds and quarters with each other; all parts have at least three intervals. Two of them
differ if their medians do by more than a limit *and* the means of their logarithms by more
than the scatter inside the parts can make: Student's two-sample t with a pooled variance
(NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.5.3) beyond its 0.9999
quantile. Independent intervals pass it by chance in one of 5,000 comparisons, and the limit
then keeps out most of those.

Imports nothing of the package.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PARTS: Final = (3, 4)
_MOMENTS: Final = 20
_FLOOR: Final = 0.1  # of the median: an interval of a stall is an outlier, not infinitely far
_LEAST: Final = 3  # intervals of a part: fewer have no scatter to speak of
# 0.9999 quantiles of Student's t by degrees of freedom; those between have that of the lower.
_T_9999: Final = (
    *((4, 13.034), (5, 9.678), (6, 8.025), (7, 7.063), (8, 6.442), (9, 6.010), (10, 5.694)),
    *((12, 5.263), (14, 4.985), (16, 4.791), (18, 4.648), (20, 4.539), (24, 4.382)),
    *((30, 4.234), (40, 4.094), (60, 3.962), (120, 3.837)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The medians of two parts, and where these lie: half-open ranges of intervals."""

    before: float
    after: float
    first: tuple[int, int]
    second: tuple[int, int]

    @property
    def size(self) -> float:
        """Of the larger median, so much lies between the two."""
        return abs(self.after - self.before) / max(self.after, self.before)


def largest_change(values: Sequence[float], limit_ratio: float) -> Change | None:
    """The pair of parts that differ most, by more than ``limit_ratio`` of the larger median.

    ``values`` are at least 0; None: no two parts differ beyond the limit and their scatter.
    """
    found = [change for change in _changes(values) if change.size > limit_ratio]
    return max(found, key=lambda change: change.size, default=None)


def _changes(values: Sequence[float]) -> Iterator[Change]:
    logs = _logs(values)
    for first, second in _parts(len(values)):
        a, b = values[slice(*first)], values[slice(*second)]
        before, after = statistics.median(a), statistics.median(b)
        if max(before, after) > 0 and _differ(logs[slice(*first)], logs[slice(*second)]):
            yield Change(before=before, after=after, first=first, second=second)


def _parts(count: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Two half-open ranges of intervals each time."""
    step = max(1, count // _MOMENTS)
    for moment in range(_LEAST, count - _LEAST + 1, step):
        yield (0, moment), (moment, count)
    for number in _PARTS:
        if count // number >= _LEAST:
            bounds = [(i * count // number, (i + 1) * count // number) for i in range(number)]
            yield from itertools.combinations(bounds, 2)


def _logs(values: Sequence[float]) -> list[float]:
    """Logarithms: what is twice as fast scatters twice as much. Next to nothing is a floor."""
    floor = _FLOOR * (statistics.median(values) or max(values)) if values else 0.0
    return [math.log(max(value, floor) or 1.0) for value in values]


def _differ(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the means differ by more than the scatter inside both explains."""
    freedom = len(a) + len(b) - 2
    means = statistics.fmean(a), statistics.fmean(b)
    squares = math.fsum((x - means[0]) ** 2 for x in a) + math.fsum((x - means[1]) ** 2 for x in b)
    error = math.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
    limit = next(t for known, t in reversed(_T_9999) if known <= freedom)
    return abs(means[1] - means[0]) > limit * error
