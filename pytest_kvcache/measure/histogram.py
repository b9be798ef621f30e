"""A latency histogram with fixed bins: record, percentile, serialise.

Every rank has the same bins, so adding the counts of two histograms gives exactly
the histogram of all their values, and a percentile of the sum is a percentile over
all operations. docs/histogram.md tells how to read the serialised form without us.

The bins are HdrHistogram's idea (http://hdrhistogram.org: linear steps inside each
power of two) taken from the number format itself: the exponent and the first 9
mantissa bits of the value as an IEEE 754 float64 are its bin. A power of two thus
has 512 bins, each at most 1/512 of its value wide, and the middle of a bin is within
1/1024 (0.098 %) of every value in it.

Runs on ranks and on the controller; imports numpy and the error tree, nothing else.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_kvcache.errors import OptionError, ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    FloatArray = npt.NDArray[np.float64]

SCHEME: Final = "loglinear-9/1"
"""Name of the bins and of their serialised form; another layout gets another name."""
MANTISSA_BITS: Final = 9
"""Bits of the mantissa that choose the bin: 2**9 bins per power of two."""
LOWEST_NS: Final = 100
"""Lower edge of the first bin: 100 ns, less than two clock reads of Python take."""
HIGHEST_NS: Final = 1_000_000_000_000
"""The last bin holds this value: 1000 s."""

_PAIR: Final = np.dtype([("gap", "<i8"), ("count", "<i8")])
_FIELDS: Final = ("scheme", "count", "sum_ns", "min_ns", "max_ns", "bins")


class Bins:
    """Bins of equal ratio: a value's are the exponent and leading mantissa bits of its float64.

    Monotonic, as floats sort like their bits. Values outside LOWEST_NS to HIGHEST_NS land in
    the first and the last bin.
    """

    __slots__ = ("_first", "_shift", "count")

    def __init__(self, mantissa_bits: int) -> None:
        self._shift = 52 - mantissa_bits  # a float64 has 52 mantissa bits
        self._first = 0
        ends = self.index(np.array([LOWEST_NS, HIGHEST_NS]))
        self._first = int(ends[0])
        self.count = int(ends[1] - ends[0]) + 1

    def index(self, values_ns: IntArray) -> IntArray:
        """Return the bin of each value, 0 to ``count`` - 1, in the shape of the input.

        Exact: integers between the bounds have float64s of their own.
        """
        inside = np.clip(values_ns, LOWEST_NS, HIGHEST_NS).astype(np.float64)
        bits: IntArray = inside.view(np.int64) >> self._shift
        return bits - self._first

    def low_ns(self, index: IntArray) -> FloatArray:
        """Return the lower edge of each bin; that of ``index + 1`` is its upper edge."""
        bits: IntArray = (np.asarray(index, dtype=np.int64) + self._first) << self._shift
        return bits.view(np.float64)

    def mid_ns(self, index: int) -> float:
        """Return the middle of a bin, what a percentile reports for it."""
        return float(self.low_ns(np.array([index, index + 1])).mean())


BINS: Final = Bins(MANTISSA_BITS)
BIN_COUNT: Final = BINS.count
"""Number of bins, 17,028: 33.2 powers of two between 100 ns and 1000 s."""


class Histogram:
    """Counts of latencies per bin, with the exact count, sum, minimum and maximum.

    Starts empty; ``record`` adds to it. Not thread-safe: give each thread its own, and add
    up their counts.
    """

    __slots__ = ("_counts", "_max_ns", "_min_ns", "_sum_ns")

    def __init__(self) -> None:
        self._counts: IntArray = np.zeros(BIN_COUNT, dtype=np.int64)
        self._sum_ns = 0
        self._min_ns: int | None = None
        self._max_ns: int | None = None

    @classmethod
    def from_counts(
        cls, counts: IntArray, sum_ns: int, min_ns: int | None, max_ns: int | None
    ) -> Histogram:
        """Build one from a dense array of BIN_COUNT counts (copied), as MPI reduces it.

        ``sum_ns``, ``min_ns`` and ``max_ns`` are the exact ones over all values; with
        no values they are 0, None and None. Raises ResultError where they contradict
        the counts: such a histogram can't come from recorded values.
        """
        counts = np.asarray(counts)
        if counts.shape != (BIN_COUNT,) or counts.dtype.kind not in "iu":
            raise ResultError(
                f"histogram counts are {counts.dtype} of shape {counts.shape}; "
                f"they must be {BIN_COUNT} integers, one per bin"
            )
        if int(counts.min()) < 0 or _total(counts) >= 2**63:
            raise ResultError(
                f"histogram counts start at {int(counts.min())} and sum to {_total(counts)}; "
                "they must not be negative or sum to 2**63"
            )
        _check_extremes(counts, sum_ns, min_ns, max_ns)
        histogram = cls()
        histogram._counts = counts.astype(np.int64)  # a copy
        histogram._sum_ns, histogram._min_ns, histogram._max_ns = sum_ns, min_ns, max_ns
        return histogram

    @classmethod
    def added(
        cls, counts: IntArray, parts: Sequence[tuple[int, int | None, int | None]]
    ) -> Histogram:
        """Build one of several: their summed counts, and ``extremes`` of each."""
        lows = [low for _sum, low, _high in parts if low is not None]
        highs = [high for _sum, _low, high in parts if high is not None]
        total_ns = sum(sum_ns for sum_ns, _low, _high in parts)
        return cls.from_counts(counts, total_ns, min(lows, default=None), max(highs, default=None))

    @classmethod
    def from_json(cls, data: object) -> Histogram:
        """Rebuild what ``to_json`` wrote; ResultError names what is wrong with it."""
        if not isinstance(data, Mapping) or set(data) != set(_FIELDS):
            raise ResultError(
                f"a histogram is {_short(data)}; it must be an object of {', '.join(_FIELDS)}"
            )
        if data["scheme"] != SCHEME:
            raise ResultError(
                f"histogram scheme is {data['scheme']!r}; this version reads {SCHEME!r} only"
            )
        counts = unpack_bins(data["bins"], BIN_COUNT)
        count = _integer(data, "count")
        if count != _total(counts):
            raise ResultError(
                f"histogram count is {count}, but its bins hold {_total(counts)}; "
                "they must be equal"
            )
        extremes = [_integer(data, k) if count else data[k] for k in ("min_ns", "max_ns")]
        return cls.from_counts(counts, _integer(data, "sum_ns"), *extremes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and (
            (self._sum_ns, self._min_ns, self._max_ns)
            == (other._sum_ns, other._min_ns, other._max_ns)
            and np.array_equal(self._counts, other._counts)
        )

    __hash__ = None  # type: ignore[assignment]  # it grows

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values, a few kB; docs/histogram.md describes it."""
        return {
            "scheme": SCHEME,
            "count": self.count,
            "sum_ns": self._sum_ns,
            "min_ns": self._min_ns,
            "max_ns": self._max_ns,
            "bins": pack_bins(self._counts),
        }

    @property
    def counts(self) -> IntArray:
        """The dense int64 counts, BIN_COUNT of them: a read-only view, for a reduction."""
        view = self._counts.view()
        view.flags.writeable = False
        return view

    @property
    def extremes(self) -> tuple[int, int | None, int | None]:
        """Exact sum, minimum and maximum, as ``added`` takes them."""
        return self._sum_ns, self._min_ns, self._max_ns

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return int(self._counts.sum())

    @property
    def sum_ns(self) -> int:
        """Exact sum of the values."""
        return self._sum_ns

    @property
    def min_ns(self) -> int | None:
        """Exact smallest value; None when empty."""
        return self._min_ns

    @property
    def max_ns(self) -> int | None:
        """Exact largest value; None when empty."""
        return self._max_ns

    def record(self, values_ns: IntArray) -> None:
        """Add values in ns, an integer array of any length (a large one costs least each).

        Raises ResultError on a negative value or on floats, and then adds none.
        """
        values = np.asarray(values_ns)
        if values.size == 0:
            return
        if values.dtype.kind not in "iu":
            raise ResultError(f"latencies are {values.dtype}; they must be integer ns")
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0:
            raise ResultError(
                f"a latency is {lowest} ns; it must not be negative: "
                "its clock ran backwards or its stamps are swapped"
            )
        bins = BINS.index(values.ravel())
        first = int(bins.min())
        counts = np.bincount(bins - first)  # of few bins, mostly: adding all costs more than these
        self._counts[first : first + len(counts)] += counts
        self._widen(_exact_sum(values, highest), lowest, highest)

    def mean_ns(self) -> float | None:
        """Exact mean; None when empty."""
        count = self.count
        return self._sum_ns / count if count else None

    def percentile_ns(self, q: float, *, censored: int = 0) -> float | None:
        """Return the q-th percentile (0 to 100), within 0.1 %; None when empty.

        ``censored`` values are known only to exist: each is taken to be longer than all
        that were recorded, and a percentile among them is None.

        Nearest rank: the smallest value with at least q % of all values at or below it.
        It is the middle of that value's bin, held inside the exact minimum and maximum.
        Outside the range of the bins it errs on the slow side: values below it count as
        100 ns, and a percentile in the last bin is the maximum if that is beyond 1000 s.
        Raises OptionError for a q outside 0 to 100.
        """
        rank = self._rank(q, censored)
        if self._min_ns is None or self._max_ns is None or rank > self.count:
            return None
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        if index == BIN_COUNT - 1 and self._max_ns > HIGHEST_NS:
            return float(self._max_ns)
        middle = BINS.mid_ns(index)
        return min(max(middle, float(self._min_ns)), float(self._max_ns))

    def samples_beyond(self, q: float, *, censored: int = 0) -> int:
        """How many values rank above the q-th percentile: what the percentile rests on."""
        return self.count + censored - self._rank(q, censored)

    def _rank(self, q: float, censored: int) -> int:
        """Rank (from 1) of the q-th percentile; 0 when empty.

        Through the decimal text of q: 99.9 means 999/1000, not the float below or above,
        which would move the rank by one whenever q % of the count is whole.
        """
        if not 0 <= q <= 100:  # noqa: PLR2004  # percent
            raise OptionError(f"percentile is {q}; it must be between 0 and 100")
        count = self.count + censored
        share = Fraction(repr(float(q))) / 100
        return min(count, max(1, math.ceil(share * count)))

    def _widen(self, sum_ns: int, min_ns: int, max_ns: int) -> None:
        self._sum_ns += sum_ns
        self._min_ns = min_ns if self._min_ns is None else min(self._min_ns, min_ns)
        self._max_ns = max_ns if self._max_ns is None else max(self._max_ns, max_ns)


def _exact_sum(values: IntArray, highest: int) -> int:
    """Sum without overflow; the slow way only for values no clock measures."""
    if highest * values.size < 2**63:
        return int(values.sum())
    return sum(values.ravel().tolist())


def _total(counts: IntArray) -> int:
    """Sum of counts that nobody vouches for: as Python integers, which can't overflow."""
    return sum(counts.tolist())


def _check_extremes(counts: IntArray, sum_ns: int, min_ns: int | None, max_ns: int | None) -> None:
    """Raise ResultError unless values with these counts can have this sum and extremes."""
    used = np.flatnonzero(counts)
    stated = f"sum_ns {sum_ns}, min_ns {min_ns} and max_ns {max_ns}"
    if min_ns is None or max_ns is None or not used.size:
        if used.size or sum_ns or min_ns is not None or max_ns is not None:
            raise ResultError(
                f"a histogram of {_total(counts)} values has {stated}; "
                "an empty one must have 0, null and null, any other one numbers"
            )
        return
    if not 0 <= min_ns <= max_ns < 2**63:
        raise ResultError(f"a histogram has {stated}; it must be 0 <= min_ns <= max_ns < 2**63")
    ends = BINS.index(np.array([min_ns, max_ns]))
    if list(ends) != [used[0], used[-1]]:
        raise ResultError(
            f"a histogram has {stated}; min_ns and max_ns must lie in its first and last used bin"
        )
    low, high = BINS.low_ns(used), BINS.low_ns(used + 1)
    low[0], high[-1] = min_ns, max_ns  # these two bins may hold values beyond their edges
    weights = counts[used].astype(np.float64)
    rounding = 1e-9 * float(high @ weights)
    if not low @ weights - rounding <= sum_ns <= high @ weights + rounding:
        raise ResultError(
            f"a histogram has {stated}; its bins allow a sum between "
            f"{low @ weights:.0f} and {high @ weights:.0f} only"
        )


def pack_bins(counts: IntArray) -> str:
    """Return the used bins as pairs (gap to the one before, count), deflated, in base64."""
    used = np.flatnonzero(counts)
    pairs = np.empty(used.size, dtype=_PAIR)
    pairs["gap"] = np.diff(used, prepend=0)
    pairs["count"] = counts[used]
    return base64.b64encode(zlib.compress(pairs.tobytes(), 9)).decode("ascii")


def unpack_bins(text: object, size: int) -> IntArray:
    """Return the ``size`` dense counts of ``pack_bins``' text; ResultError: it is damaged."""
    pairs = np.frombuffer(_inflate(text, size), dtype=_PAIR)
    gaps = pairs["gap"]
    # Bounded gaps first: only then can their sum not overflow.
    if gaps.size and (int(gaps[0]) < 0 or gaps[1:].min(initial=1) < 1 or gaps.max() > size):
        raise ResultError("histogram bins do not rise; they were damaged: use an intact file")
    used = np.cumsum(gaps)
    if used.size and (int(used[-1]) >= size or int(pairs["count"].min()) < 1):
        raise ResultError(
            f"histogram bins go beyond bin {size - 1} or hold a count below 1; "
            "they were damaged: use an intact file"
        )
    counts = np.zeros(size, dtype=np.int64)
    counts[used] = pairs["count"]
    return counts


def _inflate(text: object, size: int) -> bytes:
    """Return the decoded pairs, a multiple of 16 bytes and at most ``size`` of them."""
    if not isinstance(text, str):
        raise ResultError(f"histogram bins are {_short(text)}; they must be base64 text")
    decoder = zlib.decompressobj()
    try:
        data = decoder.decompress(base64.b64decode(text, validate=True), size * 16 + 1)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise ResultError(
            f"histogram bins are {_short(text)}; they must be zlib data in base64: {error}"
        ) from error
    if not decoder.eof or decoder.unused_data or len(data) % _PAIR.itemsize:
        raise ResultError(
            f"histogram bins hold {len(data)} bytes, cut short or with more behind them; "
            "they must be whole pairs of int64: use an intact file"
        )
    return data


def _integer(data: Mapping[str, object], name: str) -> int:
    value = data[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ResultError(f"histogram {name} is {_short(value)}; it must be an integer")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004  # a readable line
