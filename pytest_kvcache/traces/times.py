"""What the timestamps of a trace mean: asked for, told by its fields, or doubted. Pure.

Rank-side; imports numpy only. The field ``timestamp`` is in milliseconds in Mooncake's own
traces, in seconds in others that have the same fields: a thousand times as many requests
per second, and nothing in the values says so. So where they look like something else than
milliseconds the unit has to be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    FloatArray = npt.NDArray[np.float64]

UNIT_NS: Mapping[str, int] = MappingProxyType(
    {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
)
MAX_TIMESTAMP = 2**63 - 1
MAX_SECONDS = MAX_TIMESTAMP // 10**9 - 1  # that are a time in ns
OPTION = "--kv-trace-time-unit"
_NO_UNITS: Mapping[str, str] = MappingProxyType({"date": "given as dates", "none": "absent"})

_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_MOST_PER_S = 50  # requests of a whole trace: no public one of these fields comes near
# The same where timestamps have fractions, as seconds do and milliseconds rarely do; none at
# all where such a trace would be over within a second.
_MOST_PER_S_WITH_FRACTIONS = 20
_LONGEST_PAUSE_S = 10.0  # on average: slower traces are replayed faster, or are no milliseconds
# Whole minutes in seconds. Whole seconds in milliseconds, which may be such multiples too,
# are what a recorder writes that looks around every few seconds.
_MINUTE, _SECOND_IN_MS = 60, 1000
_ENOUGH_TIMES = 5  # different ones, not to have them in common by chance
# Since 1970, in seconds: from September 2001 to the year 2100. In milliseconds the same
# numbers are days and weeks after a start at 0.
_EPOCH_S = (1_000_000_000, 4_102_444_800)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamps:
    """A trace's timestamps as they stand: whole part and the rest, below 1, of each."""

    whole: IntArray
    rest: FloatArray

    def in_ns(self, unit: str) -> IntArray:
        """All timestamps in ns; those beyond 63 bits stop there."""
        per_unit = UNIT_NS[unit]
        whole = np.minimum(self.whole, MAX_TIMESTAMP // per_unit - 1) * per_unit
        found: IntArray = whole + np.rint(self.rest * per_unit).astype(np.int64)
        return found

    def too_late(self, unit: str) -> int | None:
        """The first that is beyond 63 bits in ns; None: none is."""
        late = self.whole > MAX_TIMESTAMP // UNIT_NS[unit] - 1
        return int(np.argmax(late)) if late.any() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUnit:
    """The unit that timestamps are taken to be in; `DATES` and `NO_TIMES` have none.

    ``doubt`` is a sentence on what speaks against it and what to do; empty: nothing does.
    Where times play no part, neither does a doubt. ``is_assumed``: nobody gave the unit, and
    nothing in the file shows it.
    """

    name: str
    doubt: str = ""
    is_assumed: bool = False

    def __str__(self) -> str:
        """The unit as it stands in a sentence on its trace."""
        if self.name in _NO_UNITS:
            return _NO_UNITS[self.name]
        return f"taken for {self.name} ({OPTION})" if self.is_assumed else f"in {self.name}"


DATES = TimeUnit(name="date")
NO_TIMES = TimeUnit(
    name="none",
    doubt="it has no times, so its requests have none to come at; replay it as fast as the"
    " storage allows with --kv-trace-speedup=0",
)


def time_unit(stamps: Timestamps, asked: str | None) -> TimeUnit:
    """Find the unit of a trace of Mooncake's fields."""
    if asked is not None:
        return TimeUnit(name=asked)
    fractions = np.flatnonzero(stamps.rest)
    likely, sign = _other_unit(stamps, fractions)
    if not sign:
        return TimeUnit(name="ms", is_assumed=True)
    guess = f"; {likely} ({_NAMES[likely]}) is likely" if likely else ""
    doubt = f"{sign}; say with {OPTION}={{s,ms,us,ns}} what the timestamps are in{guess}"
    return TimeUnit(name=likely or "ms", doubt=doubt, is_assumed=True)


def _other_unit(stamps: Timestamps, fractions: IntArray) -> tuple[str, str]:
    """The unit that they are likely in, and what speaks against milliseconds."""
    if not len(stamps.whole):
        return "", ""
    first, last = int(stamps.whole.min()), int(stamps.whole.max())
    for unit, per_s in (("s", 1), ("us", 10**6), ("ns", 10**9)):
        if _EPOCH_S[0] * per_s <= first <= _EPOCH_S[1] * per_s:
            return unit, f"timestamps begin at {first}, which are {_NAMES[unit]} since 1970"
    if len(fractions):
        span = float(np.ptp(stamps.whole + stamps.rest))
        return _by_rate(len(stamps.whole), span, fractions=True)
    by_rate = _by_rate(len(stamps.whole), float(last - first), fractions=False)
    return by_rate if by_rate[1] else _by_common_factor(stamps.whole)


def _by_rate(requests: int, span: float, *, fractions: bool) -> tuple[str, str]:
    """Another unit by how many requests come per second, were they milliseconds."""
    pauses, span_s = requests - 1, span / 1e3
    most_per_s = _MOST_PER_S
    if fractions:
        most_per_s = 0 if span_s < 1 else _MOST_PER_S_WITH_FRACTIONS
    if span and pauses / span_s >= most_per_s:
        how = ", with fractions of a millisecond" if fractions else ""
        return "s", (
            f"in milliseconds its {requests:,} requests come within {span_s:g} s{how}, which is"
            f" {pauses / span_s:,.0f} a second"
        )
    if pauses and span_s / pauses > _LONGEST_PAUSE_S:
        likely = "us" if span_s / pauses / 1e3 <= _LONGEST_PAUSE_S else "ns"
        return likely, (
            f"in milliseconds its {requests:,} requests take {span_s:,.0f} s, one in"
            f" {span_s / pauses:,.0f} s"
        )
    return "", ""


def _by_common_factor(whole: IntArray) -> tuple[str, str]:
    """Another unit by what all timestamps are multiples of."""
    factor = int(np.gcd.reduce(whole))
    if factor % _MINUTE or factor % _SECOND_IN_MS == 0 or len(np.unique(whole)) < _ENOUGH_TIMES:
        return "", ""
    return "s", f"all its timestamps are multiples of {factor:,}, as whole minutes are in seconds"
