"""What was completed per second, and how long it took: the time series of a trial.

An operation belongs to the second in which it was *done*, counted from the window's begin
on its rank's clock. Each interval has the operations, their bytes and a coarse histogram
of their service times, for reads and for writes, so that ranks add up exactly. Intervals
are 1 s wide and double (2 s, 4 s …) when there would be more than MAX_POINTS of them. Only
whole intervals of the window that all ranks share are kept: what was done in the rest of
it, less than one interval, is in the trial's sections but not in here.

The bins are those of histogram.py with 3 mantissa bits: 8 per power of two, so the middle of
one is within 1/16 (6.25 %) of every value in it. docs/histogram.md tells how to read them.

Runs on ranks and on the controller; imports numpy, the error tree and histogram.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
KINDS: Final = ("read", "write")
"""The rows of an interval, in this order."""
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
class Extent:
    """What a rank has: the width of its intervals, and its used bins as a half-open range."""

    interval_ns: int
    first_bin: int
    end_bin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What all ranks send: so many intervals of this width, these bins (half-open)."""

    interval_ns: int
    points: int
    first_bin: int
    end_bin: int

    @classmethod
    def common(cls, window_ns: int, extents: Iterable[Extent]) -> Cut:
        """The whole intervals of the common window, as wide as the widest; all used bins."""
        known = list(extents)
        interval_ns = max(extent.interval_ns for extent in known)
        while window_ns // interval_ns > MAX_POINTS:  # no rank has done anything for long
            interval_ns *= 2
        first_bin = min(extent.first_bin for extent in known)
        return cls(
            interval_ns=interval_ns,
            points=window_ns // interval_ns,
            first_bin=first_bin,
            end_bin=max(first_bin, *(extent.end_bin for extent in known)),
        )


class SeriesLedger:
    """One rank's intervals; what is done outside its window is not booked."""

    def __init__(self, begin_ns: int, end_ns: int | None) -> None:
        self.interval_ns = _SECOND_NS
        self._begin_ns = begin_ns
        self._end_ns = end_ns
        # 4.4 MB of untouched zeros: a page becomes real in the second that uses it.
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

    def extent(self) -> Extent:
        """What there is to send; without operations a range without bins."""
        used = np.flatnonzero(self._counts.any(axis=(0, 1)))
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (BIN_COUNT, 0)
        return Extent(interval_ns=self.interval_ns, first_bin=first, end_bin=end)

    def dense(self, cut: Cut) -> IntArray:
        """Per interval and kind the bytes, then the counts of the cut's bins; adds up."""
        self.coarsen(cut.interval_ns)
        counts = self._counts[: cut.points, :, cut.first_bin : cut.end_bin]
        return np.concatenate([self._bytes[: cut.points, :, np.newaxis], counts], axis=2)


def empty_dense(cut: Cut) -> IntArray:
    """What a rank without operations sends."""
    shape = (cut.points, len(KINDS), 1 + cut.end_bin - cut.first_bin)
    return np.zeros(shape, dtype=np.int64)


# --- of all ranks ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
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
        """How many intervals."""
        return len(self.counts)

    @property
    def operations(self) -> IntArray:
        """``operations[point, kind]``."""
        total: IntArray = self.counts.sum(axis=2)
        return total

    def medians_ms(self, kind: str, spans: Iterable[tuple[int, int]]) -> list[float | None]:
        """The median of a kind over each half-open range of intervals, as in ``to_json``."""
        counts = self.counts[:, KINDS.index(kind)]
        return [p50_ms(counts[begin:end].sum(axis=0)) for begin, end in spans]

    @classmethod
    def from_dense(cls, dense: IntArray, cut: Cut) -> Series:
        """From the sum of what the ranks have sent."""
        counts = np.zeros((cut.points, len(KINDS), BIN_COUNT), dtype=np.int64)
        counts[:, :, cut.first_bin : cut.end_bin] = dense[:, :, 1:]
        return cls(interval_ns=cut.interval_ns, moved_bytes=dense[:, :, 0].copy(), counts=counts)

    def to_json(self) -> dict[str, Any]:
        """As in the run file, p99 included; docs/results.md describes it."""
        operations = self.operations
        told: dict[str, Any] = {"interval_s": self.interval_ns // _SECOND_NS}
        for column, kind in enumerate(KINDS):
            told[f"{kind}s"] = operations[:, column].tolist()
            told[f"{kind}_bytes"] = self.moved_bytes[:, column].tolist()
            told[f"{kind}_p50_ms"] = [p50_ms(point) for point in self.counts[:, column]]
            told[f"{kind}_p99_ms"] = [p99_ms(point) for point in self.counts[:, column]]
        packed = {k: pack_bins(self.counts[:, c].ravel()) for c, k in enumerate(KINDS)}
        return {**told, "histograms": {"scheme": SCHEME, **packed}}

    @classmethod
    def from_json(cls, data: object) -> Series:
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
        told = {name: _integers(data[name], name) for name in _told_names()}
        points = len(told["reads"])
        if points > MAX_POINTS or any(len(values) != points for values in told.values()):
            lengths = ", ".join(f"{len(values)} {name}" for name, values in told.items())
            raise ResultError(
                f"a series has {lengths}; they must be equally many, at most {MAX_POINTS}"
            )
        counts = [
            unpack_bins(histograms[kind], points * BIN_COUNT).reshape(points, BIN_COUNT)
            for kind in KINDS
        ]
        for kind, of_kind in zip(KINDS, counts, strict=True):
            if not np.array_equal(of_kind.sum(axis=1), told[f"{kind}s"]):
                raise ResultError(f"a series' {kind}s are not those of its histograms")
        return cls(
            interval_ns=_interval_ns(data["interval_s"]),
            moved_bytes=np.stack([told[f"{kind}_bytes"] for kind in KINDS], axis=1),
            counts=np.stack(counts, axis=1),
        )


def _told_names() -> list[str]:
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
