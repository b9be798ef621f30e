"""What was completed per second, and how long it took: the time series of a trial.

An operation belongs to the second in which it was *done*, counted from the window's begin
on its rank's clock. Each interval has the operations, their bytes and a coarse histogram
of their service times, for reads, writes and demotions, so that ranks add up exactly. Intervals
are 1 s wide and double (2 s, 4 s …) when there would be more than MAX_POINTS of them. Only
whole intervals of the window that all ranks share are kept: what was done in the rest of
it, less than one interval, is in the trial's sections but not in here.

The bins are those of histogram.py with 3 mantissa bits: 8 per power of two, so the middle of
one is within 1/16 (6.25 %) of every value in it. docs/histogram.md says how to read them.

Runs on ranks and on the controller; imports numpy, the error tree and histogram.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.histogram import Bins, pack_bins, unpack_bins

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    FloatArray = npt.NDArray[np.float64]

SCHEME: Final = "loglinear-3/1"
"""Name of the bins and of their serialised form; another layout gets another name."""
MANTISSA_BITS: Final = 3
"""Bits of the mantissa that choose the bin: 2**3 bins per power of two."""
KINDS: Final = ("read", "write", "demote")
"""The rows of an interval, in this order."""
DONE: Final = MappingProxyType({"read": "read", "write": "written", "demote": "demoted"})
"""What bytes of each kind have been, for people."""
MAX_POINTS: Final = 1024
"""More intervals than this make each of them twice as wide."""
MIN_OPERATIONS: Final = 100
"""An interval with fewer operations has no p99: none would lie beyond it."""
MIN_FOR_MEDIAN: Final = 20
"""An interval with fewer operations has no median: ten would not lie beyond it."""

_SECOND_NS: Final = 1_000_000_000
_NS_PER_MS: Final = 1e6
_COUNT_LIMIT: Final = 1 << 53  # of one bin
_FIELDS: Final = frozenset(
    {"interval_s", "histograms"}
    | {f"{kind}{what}" for kind in KINDS for what in ("s", "_bytes", "_p50_ms", "_p99_ms")}
)


BINS: Final = Bins(MANTISSA_BITS)
BIN_COUNT: Final = BINS.count
"""Number of bins, 267; the first begins at 96 ns, the last one holds 1000 s and more."""


def coarse_index(values_ns: IntArray) -> IntArray:
    """Return the bin of each value in ns, 0 to BIN_COUNT - 1; the outer ones take the rest."""
    return BINS.index(values_ns)


def p99_ms(counts: IntArray) -> float | None:
    """The 99th percentile (nearest rank) of one histogram; None below MIN_OPERATIONS."""
    return _percentile_ms(counts, 99, MIN_OPERATIONS)


def p50_ms(counts: IntArray) -> float | None:
    """The median of one histogram; None below MIN_FOR_MEDIAN."""
    return _percentile_ms(counts, 50, MIN_FOR_MEDIAN)


def _percentile_ms(counts: IntArray, percent: int, least: int) -> float | None:
    total = int(counts.sum())
    if total < least:
        return None
    rank = -(-percent * total // 100)
    return BINS.mid_ns(int(np.searchsorted(np.cumsum(counts), rank))) / _NS_PER_MS


# --- on a rank ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedRange:
    """A rank's width of intervals, how many of the kinds, and which bins (half-open) it used."""

    interval_ns: int
    kinds: int
    first_bin: int
    end_bin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonRange:
    """What all ranks send: so many intervals of this width, kinds, and bins (half-open)."""

    interval_ns: int
    points: int
    kinds: int
    first_bin: int
    end_bin: int

    @classmethod
    def of(cls, window_ns: int, used: Iterable[UsedRange]) -> CommonRange:
        """The whole intervals of the common window, as wide as the widest; all used bins."""
        known = list(used)
        interval_ns = max(used_range.interval_ns for used_range in known)
        while window_ns // interval_ns > MAX_POINTS:  # no rank has done anything for long
            interval_ns *= 2
        first_bin = min(used_range.first_bin for used_range in known)
        return cls(
            interval_ns=interval_ns,
            points=window_ns // interval_ns,
            kinds=max(used_range.kinds for used_range in known),
            first_bin=first_bin,
            end_bin=max(first_bin, *(used_range.end_bin for used_range in known)),
        )


class TimeSeriesLedger:
    """One rank's intervals; what is done outside its window is not booked."""

    def __init__(self, begin_ns: int, end_ns: int | None) -> None:
        self.interval_ns = _SECOND_NS
        self._begin_ns = begin_ns
        self._end_ns = end_ns
        # 6.6 MB of untouched zeros: a page becomes real in the second that uses it.
        self._bytes = np.zeros((MAX_POINTS, len(KINDS)), dtype=np.int64)
        self._counts = np.zeros((MAX_POINTS, len(KINDS), BIN_COUNT), dtype=np.int64)

    def add(self, kind: str, done_ns: IntArray, bins: IntArray, moved_bytes: IntArray) -> None:
        """Book operations of a kind at the moments at which they were done.

        ``bins`` are the ``coarse_index`` of their service times.
        """
        inside = done_ns >= self._begin_ns
        if self._end_ns is not None:
            inside &= done_ns < self._end_ns
        since_ns = done_ns[inside] - self._begin_ns
        if not since_ns.size:
            return
        last_ns = int(since_ns.max())
        while last_ns // self.interval_ns >= MAX_POINTS:
            self.coarsen(2 * self.interval_ns)
        points, column = since_ns // self.interval_ns, KINDS.index(kind)
        np.add.at(self._bytes[:, column], points, moved_bytes[inside])
        first, end = int(points.min()), int(points.max()) + 1
        flat = (points - first) * BIN_COUNT + bins[inside]
        counted = np.bincount(flat, minlength=(end - first) * BIN_COUNT)
        self._counts[first:end, column] += counted.reshape(-1, BIN_COUNT)

    def coarsen(self, interval_ns: int) -> None:
        """Make the intervals wider, by a power of two."""
        while self.interval_ns < interval_ns:
            for array in (self._bytes, self._counts):
                half = array[0::2] + array[1::2]
                array[: len(half)] = half
                array[len(half) :] = 0
            self.interval_ns *= 2

    def used_range(self) -> UsedRange:
        """What there is to send; without operations a range without bins."""
        used = np.flatnonzero(self._counts.any(axis=(0, 1)))
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (BIN_COUNT, 0)
        kinds = np.flatnonzero(self._bytes.any(axis=0))
        return UsedRange(
            interval_ns=self.interval_ns,
            kinds=int(kinds[-1]) + 1 if kinds.size else 0,
            first_bin=first,
            end_bin=end,
        )

    def dense(self, common: CommonRange) -> IntArray:
        """Per interval and kind the bytes, then the counts of the range's bins; adds up."""
        self.coarsen(common.interval_ns)
        points, kinds = common.points, common.kinds
        counts = self._counts[:points, :kinds, common.first_bin : common.end_bin]
        return np.concatenate([self._bytes[:points, :kinds, np.newaxis], counts], axis=2)


def empty_dense(common: CommonRange) -> IntArray:
    """What a rank without operations sends."""
    shape = (common.points, common.kinds, 1 + common.end_bin - common.first_bin)
    return np.zeros(shape, dtype=np.int64)


# --- of all ranks ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeSeries:
    """The intervals of a trial: ``moved_bytes[point, kind]``, ``counts[point, kind, bin]``.

    Raises ResultError where the arrays can't belong together.
    """

    interval_ns: int
    moved_bytes: IntArray
    counts: IntArray

    def __post_init__(self) -> None:
        """Refuse what no ledger can have held."""
        seconds, odd_ns = divmod(self.interval_ns, _SECOND_NS)
        if odd_ns or seconds < 1 or seconds & (seconds - 1):
            raise ResultError(
                f"a series has intervals of {self.interval_ns} ns; they must be 1 s, 2 s, 4 s …"
            )
        if self.points > MAX_POINTS:
            raise ResultError(f"a series has {self.points} points; at most {MAX_POINTS} are kept")
        low = min(self.counts.min(initial=0), self.moved_bytes.min(initial=0))
        high = self.counts.max(initial=0)
        if low < 0 or high >= _COUNT_LIMIT:  # their sum must not overflow
            raise ResultError(
                f"a series has values from {low}, and counts up to {high}; they must be at least 0,"
                f" and counts below {_COUNT_LIMIT}"
            )
        if not np.array_equal(self.operations > 0, self.moved_bytes > 0):
            raise ResultError("a series has operations without bytes, or bytes without operations")

    @property
    def points(self) -> int:
        """How many intervals there are."""
        return len(self.counts)

    @property
    def operations(self) -> IntArray:
        """``operations[point, kind]``."""
        total: IntArray = self.counts.sum(axis=2)
        return total

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TimeSeries)
            and self.interval_ns == other.interval_ns
            and np.array_equal(self.moved_bytes, other.moved_bytes)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]  # as of every mutable array

    @property
    def interval_s(self) -> int:
        """Width of an interval."""
        return self.interval_ns // _SECOND_NS

    def done(self, kind: str) -> list[int]:
        """Completed operations of a kind, interval by interval."""
        return [int(count) for count in self.counts[:, KINDS.index(kind)].sum(axis=1)]

    def moved(self, kind: str) -> list[int]:
        """Logical bytes of the completed operations of a kind, interval by interval."""
        return [int(size) for size in self.moved_bytes[:, KINDS.index(kind)]]

    def p99s_ms(self, kind: str) -> list[float | None]:
        """The 99th percentile of a kind in each interval; None below MIN_OPERATIONS."""
        return [p99_ms(point) for point in self.counts[:, KINDS.index(kind)]]

    def medians_ms(self, kind: str, spans: Iterable[tuple[int, int]]) -> list[float | None]:
        """The median of a kind over each half-open range of intervals, as in ``to_json``."""
        counts = self.counts[:, KINDS.index(kind)]
        return [p50_ms(counts[begin:end].sum(axis=0)) for begin, end in spans]

    @classmethod
    def from_dense(cls, dense: IntArray, common: CommonRange) -> TimeSeries:
        """The series whose ranks have sent parts of this sum."""
        moved_bytes = np.zeros((common.points, len(KINDS)), dtype=np.int64)
        moved_bytes[:, : common.kinds] = dense[:, :, 0]
        counts = np.zeros((common.points, len(KINDS), BIN_COUNT), dtype=np.int64)
        counts[:, : common.kinds, common.first_bin : common.end_bin] = dense[:, :, 1:]
        return cls(interval_ns=common.interval_ns, moved_bytes=moved_bytes, counts=counts)

    def to_json(self) -> dict[str, Any]:
        """The series as it stands in the run file, p99 included; docs/results.md describes it."""
        fields: dict[str, Any] = {"interval_s": self.interval_s}
        for column, kind in enumerate(KINDS):
            fields[f"{kind}s"] = self.done(kind)
            fields[f"{kind}_bytes"] = self.moved(kind)
            fields[f"{kind}_p50_ms"] = [p50_ms(point) for point in self.counts[:, column]]
            fields[f"{kind}_p99_ms"] = self.p99s_ms(kind)
        packed = {k: pack_bins(self.counts[:, c].ravel()) for c, k in enumerate(KINDS)}
        return {**fields, "histograms": {"scheme": SCHEME, **packed}}

    @classmethod
    def from_json(cls, data: object) -> TimeSeries:
        """The inverse of ``to_json``; what is derived (percentiles) is not believed.

        Raises ResultError for what is missing, damaged or of unequal length.
        """
        if not isinstance(data, Mapping) or set(data) != _FIELDS:
            raise ResultError(f"a series must be an object of {', '.join(sorted(_FIELDS))}")
        histograms = data["histograms"]
        if not isinstance(histograms, Mapping) or set(histograms) != {"scheme", *KINDS}:
            raise ResultError(f"a series' histograms must be scheme, {', '.join(KINDS)}")
        if histograms["scheme"] != SCHEME:
            raise ResultError(
                f"a series has scheme {histograms['scheme']!r}; this version reads {SCHEME!r} only"
            )
        fields = {name: _integers(data[name], name) for name in _field_names()}
        points = len(fields["reads"])
        if points > MAX_POINTS or any(len(values) != points for values in fields.values()):
            lengths = ", ".join(f"{len(values)} {name}" for name, values in fields.items())
            raise ResultError(
                f"a series has {lengths}; they must be equally many, at most {MAX_POINTS}"
            )
        counts = [
            unpack_bins(histograms[kind], points * BIN_COUNT).reshape(points, BIN_COUNT)
            for kind in KINDS
        ]
        for kind, of_kind in zip(KINDS, counts, strict=True):
            if not np.array_equal(of_kind.sum(axis=1), fields[f"{kind}s"]):
                raise ResultError(f"a series' {kind}s are not those of its histograms")
        return cls(
            interval_ns=_interval_ns(data["interval_s"]),
            moved_bytes=np.stack([fields[f"{kind}_bytes"] for kind in KINDS], axis=1),
            counts=np.stack(counts, axis=1),
        )


def _field_names() -> list[str]:
    return [f"{kind}{what}" for kind in KINDS for what in ("s", "_bytes")]


def _interval_ns(interval_s: object) -> int:
    if not isinstance(interval_s, int) or isinstance(interval_s, bool):
        raise ResultError(f"a series' interval_s is {interval_s!r}; it must be a whole number")
    return interval_s * _SECOND_NS


def _integers(values: object, name: str) -> IntArray:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ResultError(f"a series' {name} must be a list of whole numbers")
    if any(not 0 <= value < 2**63 for value in values):
        raise ResultError(f"a series' {name} must be at least 0 and below 2**63")
    return np.array(values, dtype=np.int64)
