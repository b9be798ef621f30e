"""Whether a series of equal intervals changed on the way: its parts, compared. Pure.

What lies before a moment is compared with what lies after it, for up to 20 moments; and
thirds and quarters with each other; all parts have at least three intervals, or two where
there are not six in all. Where none of these differ, each stretch of a tenth of the intervals
and two or more, wherever it lies, is compared with the rest: a dip in the middle, or the
first and last two intervals of a short window. Two parts differ if their medians do by more
than a limit *and* the means of their logarithms by more than chance can make. Three things
bound that:

- the scatter inside the parts: Student's two-sample t with a pooled variance (NIST/SEMATECH
  e-Handbook of Statistical Methods, section 1.3.5.3) beyond its 0.9999 quantile. Few
  intervals can't tell their scatter, so a usual one counts with them, as in a moderated t
  (Smyth 2004): in a window of five intervals only a drastic change stands out.
- neighbours that are alike: storage is slow for seconds, not for one. Then many intervals
  tell no more than a few would: as many as the mean of an AR(1) process leaves of them.
- the operations themselves, where their number is given: few of them vary by chance.

A stretch is the most different of many, so it must be clearer: the means of the logarithms
differ by the limit as well, and by more than twice what chance can make (1.5 times where
there are fewer than 12 intervals); one of two intervals, whose scatter nobody knows, is told
from a factor of two on.

`grouped` sums neighbouring intervals of few operations beforehand.

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

    Span = tuple[int, int]

_PARTS: Final = (3, 4)
_MOMENTS: Final = 20
_EDGES: Final = 40  # of stretches, or up to twice as many
_LEAST_SHARE: Final = 10  # a stretch, and what is not in it, is one so-manieth or more
_FACTOR_OF_TWO: Final = 0.5  # of the larger one, which a stretch of two intervals differs by
_CLEARER: Final = 2.0
_CLEARER_OF_FEW: Final = 1.5
_FEW: Final = 12  # fewer intervals have few stretches
_FLOOR: Final = 0.1  # of the median: an interval of a stall is an outlier, not infinitely far
_LEAST: Final = 3  # intervals of a part: fewer have no scatter to speak of
_LEAST_OF_FEW: Final = 2  # the same where there are too few for two such parts
_LEAST_FOR_A_TREND: Final = 5  # intervals of a part, to tell neighbours that are alike from a drift
_MOST_ALIKE: Final = 0.95
_USUAL_SCATTER: Final = 0.3  # of the logarithms, and as how many intervals it counts
_USUAL_WEIGHT: Final = 10
_CHANCE: Final = 3.9  # standard deviations that few operations may differ by
# 0.9999 quantiles of Student's t by degrees of freedom; those between have that of the lower.
_T_9999: Final = (
    *((2, 70.70), (3, 22.204)),
    *((4, 13.034), (5, 9.678), (6, 8.025), (7, 7.063), (8, 6.442), (9, 6.010), (10, 5.694)),
    *((12, 5.263), (14, 4.985), (16, 4.791), (18, 4.648), (20, 4.539), (24, 4.382)),
    *((30, 4.234), (40, 4.094), (60, 3.962), (120, 3.837)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The medians of two parts, and where these lie: half-open ranges of intervals.

    ``first`` is None where the first part is all that the second is not, on both sides of it.
    """

    before: float
    after: float
    first: tuple[int, int] | None
    second: tuple[int, int]

    @property
    def size(self) -> float:
        """What lies between the two medians, as a part of the larger one."""
        return abs(self.after - self.before) / max(self.after, self.before)


def grouped(operations: Sequence[int], least: int) -> list[Span]:
    """Half-open ranges of neighbouring intervals with ``least`` operations each on average.

    As many as there can be, of lengths that differ by one at most.
    """
    count = len(operations)
    groups = min(count, sum(operations) // least)
    return [(i * count // groups, (i + 1) * count // groups) for i in range(groups)]


def largest_change(
    values: Sequence[float], limit_ratio: float, operations: Sequence[int] | None = None
) -> Change | None:
    """The pair of parts that differ most, by more than ``limit_ratio`` of the larger median.

    ``values`` are at least 0; ``operations`` are what each of them rests on, where these
    vary by chance. None: no two parts differ beyond the limit and beyond chance.
    """
    for changes in (_changes(values, operations), _stretches(values, limit_ratio, operations)):
        found = [pair for pair in changes if pair[0].size > limit_ratio]
        if found:
            return max(found, key=_rank)[0]
    return None


def _rank(found: tuple[Change, float]) -> tuple[float, int, float]:
    """The largest one; of these one that leaves no interval out, and the clearest of those."""
    change, clear = found
    length = 0  # a stretch in the middle; of stretches equally different one at an end is plainer
    if change.first is not None:
        length = sum(end - begin for begin, end in (change.first, change.second))
    return change.size, length, round(clear, 9)


def _changes(
    values: Sequence[float], operations: Sequence[int] | None
) -> Iterator[tuple[Change, float]]:
    """Each with the difference of its logarithms."""
    logs = _logs(values)
    # The least: with the parts of another moment the change itself looks like a likeness.
    likeness = min((_likeness(logs[:at], logs[at:]) for at in _moments(len(values))), default=0.0)
    for first, second in _parts(len(values)):
        a, b = slice(*first), slice(*second)
        before, after = statistics.median(values[a]), statistics.median(values[b])
        if max(before, after) <= 0 or not _differ(logs[a], logs[b], likeness):
            continue
        if operations is not None and not _counts_differ(operations[a], operations[b]):
            continue
        change = Change(before=before, after=after, first=first, second=second)
        yield change, abs(statistics.fmean(logs[b]) - statistics.fmean(logs[a]))


def _stretches(
    values: Sequence[float], limit_ratio: float, operations: Sequence[int] | None
) -> Iterator[tuple[Change, float]]:
    """Each stretch that differs from the rest, with the difference of its logarithms."""
    logs, clearer = _logs(values), _CLEARER if len(values) >= _FEW else _CLEARER_OF_FEW
    for begin, end in _bounds(logs, limit_ratio):
        within, rest = logs[begin:end], logs[:begin] + logs[end:]
        likeness = _likeness(logs[:begin], within, logs[end:])
        if not _differ(rest, within, likeness, clearer):
            continue
        if operations is not None and not _counts_differ(
            [*operations[:begin], *operations[end:]], operations[begin:end]
        ):
            continue
        change = _stretch(values, begin, end)
        if min(len(within), len(rest)) >= _LEAST or change.size >= _FACTOR_OF_TWO:
            yield change, abs(statistics.fmean(within) - statistics.fmean(rest))


def _stretch(values: Sequence[float], begin: int, end: int) -> Change:
    """A stretch and the rest: in their order in time, unless the rest lies on both sides."""
    within, rest = values[begin:end], [*values[:begin], *values[end:]]
    first, second = (within, rest) if begin == 0 else (rest, within)
    spans: tuple[Span | None, Span] = (None, (begin, end))
    if begin == 0:
        spans = (0, end), (end, len(values))
    elif end == len(values):
        spans = (0, begin), (begin, end)
    return Change(
        before=statistics.median(first),
        after=statistics.median(second),
        first=spans[0],
        second=spans[1],
    )


def _bounds(logs: Sequence[float], limit_ratio: float) -> Iterator[Span]:
    """Stretches of which the mean logarithm differs from that of the rest by the limit."""
    count, apart = len(logs), -math.log(1 - limit_ratio)
    if count < 2 * _LEAST:
        return
    least, step = max(_LEAST_OF_FEW, -(-count // _LEAST_SHARE)), max(1, count // _EDGES)
    sums = [0.0, *itertools.accumulate(logs)]
    edges = [*range(0, count, step), count]
    for begin, end in itertools.combinations(edges, 2):
        if least <= end - begin <= count - least:
            total = sums[end] - sums[begin]
            rest = (sums[count] - total) / (count - end + begin)
            if abs(total / (end - begin) - rest) > apart:
                yield begin, end


def _least(count: int) -> int:
    return _LEAST if count >= 2 * _LEAST else _LEAST_OF_FEW


def _moments(count: int) -> Iterator[int]:
    yield from range(_least(count), count - _least(count) + 1, max(1, count // _MOMENTS))


def _parts(count: int) -> Iterator[tuple[Span, Span]]:
    """Two half-open ranges of intervals each time."""
    for moment in _moments(count):
        yield (0, moment), (moment, count)
    for number in _PARTS:
        if count // number >= _least(count):
            bounds = [(i * count // number, (i + 1) * count // number) for i in range(number)]
            yield from itertools.combinations(bounds, 2)


def _logs(values: Sequence[float]) -> list[float]:
    """Logarithms: what is twice as fast scatters twice as much. Next to nothing is a floor."""
    floor = _FLOOR * (statistics.median(values) or max(values)) if values else 0.0
    return [math.log(max(value, floor) or 1.0) for value in values]


def _differ(a: Sequence[float], b: Sequence[float], alike: float, times: float = 1.0) -> bool:
    """Whether the means differ by more than the scatter inside both explains, so many times."""
    means = statistics.fmean(a), statistics.fmean(b)
    squares = math.fsum((x - means[0]) ** 2 for x in a) + math.fsum((x - means[1]) ** 2 for x in b)
    count = len(a) + len(b)
    as_one = _as_one(len(a), alike), _as_one(len(b), alike)
    freedom = count * count / (len(a) * as_one[0] + len(b) * as_one[1]) - 2
    spread = as_one[0] / len(a) + as_one[1] / len(b)
    difference, variance = abs(means[1] - means[0]) / times, squares / (count - sum(as_one))
    if difference > _quantile(freedom) * math.sqrt(variance * spread):
        return True
    freedom = max(0.0, freedom)
    variance = freedom * variance + _USUAL_WEIGHT * _USUAL_SCATTER**2
    freedom += _USUAL_WEIGHT
    return difference > _quantile(freedom) * math.sqrt(variance / freedom * spread)


def _quantile(freedom: float) -> float:
    return next((t for known, t in reversed(_T_9999) if known <= freedom), math.inf)


def _as_one(count: int, alike: float) -> float:
    """So many intervals tell of the mean what one does: the variance of an AR(1)'s mean."""
    return (1 + alike - 2 * alike * (1 - alike**count) / (count * (1 - alike))) / (1 - alike)


def _likeness(*parts: Sequence[float]) -> float:
    """The correlation of neighbours, 0 or more.

    Around the line through each part, for a drift is no likeness. That of few values around
    a line comes out too low (Kendall's bias), most of which is corrected.
    """
    products = squares = 0.0
    count = 0
    for part in parts:
        if len(part) >= _LEAST_FOR_A_TREND:
            rest = _around_a_line(part)
            products += math.fsum(x * y for x, y in itertools.pairwise(rest))
            squares += math.fsum(x * x for x in rest)
            count += len(part)
    if not squares:
        return 0.0
    alike = products / squares
    return min(_MOST_ALIKE, max(0.0, alike + (3 + 4 * alike) / count))


def _around_a_line(values: Sequence[float]) -> list[float]:
    middle, mean = (len(values) - 1) / 2, statistics.fmean(values)
    squares = math.fsum((at - middle) ** 2 for at in range(len(values)))
    slope = math.fsum((at - middle) * value for at, value in enumerate(values)) / squares
    return [value - mean - slope * (at - middle) for at, value in enumerate(values)]


def _counts_differ(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether the operations per interval differ by more than independent ones may."""
    counts = sum(a), sum(b)
    mean = sum(counts) / (len(a) + len(b))
    error = math.sqrt(mean / len(a) + mean / len(b))
    return abs(counts[0] / len(a) - counts[1] / len(b)) > _CHANCE * error
