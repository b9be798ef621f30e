"""Which numbers of users to try, to find the load at which throughput peaks. Pure.

Two ways. *Capacity*: doubling until throughput grows no more, then bisection for the fewest users
that reach nearly the most. *Predictive*: doubling through the whole range, then the Universal
Scalability Law is fitted to what was seen (N. J. Gunther, Guerrilla Capacity Planning, 2007,
chapter 4), whose peak is the answer; it need not have been tried. A load is a launch of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_kvcache.plan.usersearch import DOUBLINGS, MAX_STEPS, RESOLUTION

if TYPE_CHECKING:
    from collections.abc import Sequence

PEAK_METRIC: Final = "requests.per_s"
"""What is taken for the throughput of a load: what its users get done."""
GROWS: Final = 1.05  # times as much by twice the users; less is no growth
NEARLY: Final = 0.95  # of the most
HOLDS: Final = 0.9  # of what was found, or predicted, when the answer is launched again
MIN_LOADS: Final = 4  # for three parameters
MOST_RESIDUAL: Final = 0.2  # a law that misses what was seen by more predicts nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalabilityFit:
    """X(n) = rate * n / (1 + contention * (n - 1) + coherency * n * (n - 1)), n users of a rank.

    ``rate`` is per second; ``residual`` is the root mean square of the relative errors.
    """

    rate: float
    contention: float
    coherency: float
    residual: float

    def per_s(self, users: int) -> float:
        """The throughput of so many users."""
        more = users - 1
        return self.rate * users / (1 + self.contention * more + self.coherency * users * more)

    @property
    def peak_users(self) -> float:
        """Where it is highest; infinity: it grows on."""
        if self.coherency <= 0:
            return math.inf
        return math.sqrt(max(0.0, 1 - self.contention) / self.coherency)


def fit_scalability(loads: Sequence[tuple[int, float]]) -> ScalabilityFit:
    """The law that is closest to these loads: users and throughput of each.

    n / X is a polynomial in n - 1 and n (n - 1), so that least squares of relative errors have a
    closed form; no coefficient may be negative, of which the best set is taken.
    """
    users = np.array([n for n, _per_s in loads], dtype=float)
    per_s = np.array([x for _n, x in loads], dtype=float)
    columns = np.stack([np.ones_like(users), users - 1, users * (users - 1)])
    target = users / per_s
    best: tuple[float, tuple[float, ...]] | None = None
    for count in (1, 2, 3):
        for others in combinations((1, 2), count - 1):
            chosen = [0, *others]
            scaled = (columns[chosen] / target).T
            found, *_ = np.linalg.lstsq(scaled, np.ones_like(target), rcond=None)
            if (found < 0).any():
                continue
            error = float(np.square(scaled @ found - 1).sum())
            values = [0.0, 0.0, 0.0]
            for place, value in zip(chosen, found, strict=True):
                values[place] = float(value)
            if best is None or error < best[0]:
                best = error, tuple(values)
    assert best is not None  # a constant alone is never negative
    base, contention, coherency = best[1]
    fit = ScalabilityFit(
        rate=1 / base, contention=contention / base, coherency=coherency / base, residual=0.0
    )
    relative = [fit.per_s(n) / x - 1 for n, x in loads]
    return replace(fit, residual=math.sqrt(sum(e * e for e in relative) / len(relative)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakSearch:
    """How far a search for the peak is, of 1 to ``most`` users per rank.

    ``tried`` are loads and their throughput, None where it could not be told, in their order.
    """

    most: int
    predicts: bool = False
    tried: tuple[tuple[int, float | None], ...] = ()

    @property
    def judged(self) -> list[tuple[int, float]]:
        """Loads whose throughput is known, by their users."""
        return sorted((users, per_s) for users, per_s in self.tried if per_s is not None)

    @property
    def best(self) -> tuple[int, float] | None:
        """The load with the most throughput; None: none is known."""
        return max(self.judged, key=lambda load: load[1], default=None)

    def next_users(self) -> int | None:
        """The number to try next; None: the search is over."""
        if len(self.tried) >= MAX_STEPS:
            return None
        doubled = self._doubled()
        if doubled is not None:
            return doubled
        if self.predicts or self.best is None or self.range_ended:
            return None
        low, high = self._knee()
        untried = high - low - 1
        if untried <= 0 or (low and untried < low / RESOLUTION):
            return None
        return low + (untried + 1) // 2

    def _doubled(self) -> int | None:
        """The next one of the doubling; None: it is over."""
        known = dict(self.tried)
        before: tuple[int, float] | None = None
        for users in self._steps:
            if users not in known:
                return users
            per_s = known[users]
            if per_s is None:
                continue
            if not (self.predicts or before is None or _grew(before, (users, per_s))):
                return None
            before = users, per_s
        return None

    @property
    def most_steps(self) -> int:
        """Launches that it makes at most, without those of the answer."""
        return len(self._steps) if self.predicts else min(MAX_STEPS, self.most)

    @property
    def _steps(self) -> list[int]:
        """The numbers of the doubling, up to the most."""
        found = [max(1, -(-self.most // 2**DOUBLINGS))]
        while found[-1] < self.most:
            found.append(min(2 * found[-1], self.most))
        return found

    def _knee(self) -> tuple[int, int]:
        """The most users with less than nearly the most, 0: none; and the fewest with it."""
        best = self.best
        assert best is not None
        high = min(users for users, per_s in self.judged if per_s >= NEARLY * best[1])
        return max((users for users, _per_s in self.tried if users < high), default=0), high

    @property
    def unjudged(self) -> tuple[int, ...]:
        """Loads whose throughput could not be told."""
        return tuple(sorted(users for users, per_s in self.tried if per_s is None))

    @property
    def fit(self) -> ScalabilityFit | None:
        """The law, of what was seen; None: it is not asked for, or too little is known."""
        return fit_scalability(self.judged) if self.predicts and self._is_enough else None

    @property
    def _is_enough(self) -> bool:
        return len(self.judged) >= MIN_LOADS and all(per_s > 0 for _users, per_s in self.judged)

    @property
    def kept(self) -> int:
        """The answer, as far as it is known; 0: none."""
        if self.best is None or not self.best[1]:
            return 0
        if self.range_ended:
            return self.most
        if not self.predicts:
            return self._knee()[1]
        fit = self.fit
        if fit is None or fit.residual > MOST_RESIDUAL:
            return 0
        if fit.peak_users <= self.most:
            return max(1, round(fit.peak_users))
        nearly = NEARLY * fit.per_s(self.most)  # it is flat, and has no peak in the range
        return next(users for users in range(1, self.most + 1) if fit.per_s(users) >= nearly)

    @property
    def range_ended(self) -> bool:
        """Whether throughput still grew, or is to grow, where the range ended."""
        before = self._steps[-2] if len(self._steps) > 1 else 0
        if self.predicts:
            fit = self.fit
            if fit is None or fit.residual > MOST_RESIDUAL or fit.peak_users <= self.most:
                return False
            ends = ((users, fit.per_s(users)) for users in (before, self.most))
            return not before or _grew(*ends)
        known = dict(self.judged)
        if self.best is None or self.best[0] < self.most or before not in known:
            return False
        return _grew((before, known[before]), self.best)

    @property
    def objective(self) -> str:
        """What the answer must reach when it is launched again: it, and what was seen, nearly."""
        fit, best = self.fit, self.best
        assert best is not None
        expected = best[1] if fit is None else max(best[1], fit.per_s(self.kept))
        return f"{PEAK_METRIC}>={HOLDS * expected:.6g}"

    def noted(self, users: int, per_s: float | None) -> PeakSearch:
        """The search with one more load tried; ValueError for another than was asked for."""
        if users != self.next_users():
            raise ValueError(f"{users} users were tried; the search asks for {self.next_users()}")
        return replace(self, tried=(*self.tried, (users, per_s)))


def _grew(before: tuple[int, float], after: tuple[int, float]) -> bool:
    """Whether more users get more done: 5 % for twice as many, and as much less for fewer."""
    (users, per_s), (more, more_per_s) = before, after
    return more_per_s >= math.pow(GROWS, math.log2(more / users)) * per_s
