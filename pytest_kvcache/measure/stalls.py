"""When nothing was completed though something was in flight: the stalls of a trial.

A closed loop's percentiles can't see a stall: at most as many operations as the queue is
deep are slow, of thousands. So it is looked for in time: between two moments at which an
operation was completed lie LEAST_NS or more, and meanwhile an operation was in flight for
that long and for USUALLY times as long as an operation of its kind usually takes (the
median of those that its rank started in the window). A window of few long operations is
none, for there that is what an operation takes. Where few operations are in flight and
become ten times as slow for less than half of their number, each of the slow ones is a
stall: as long as it lasts, nothing is completed.

Looked for on each rank, over all its operations, and over each kind by itself: writes that
are stuck while reads go on are a stall of the writes, if there are several.

A rank that is stopped itself completes nothing either, so each stall says for how much of it
its rank did not run. Where that is nearly all of it, the storage is not to blame.

The part of a stall that lies before the window is none; one that begins in the window
counts as long as it lasts, into the drain.

Runs on ranks and on the controller; imports numpy and the error tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.sections import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]

KINDS: Final = OPERATIONS
"""What an operation may be."""
EVERY: Final = "every"
"""The kind of a stall in which no operation at all was completed."""
LEAST_NS: Final = 500_000_000
"""Shorter ones are not looked for; the highest percentiles and the maximum may show them."""
USUALLY: Final = 10
"""So many times as long as an operation of its kind usually takes."""
MOST: Final = 1000
"""So many are kept of a rank, the longest."""

_SEVERAL: Final = 2  # operations of a kind that are stuck together while others go on
_SLICE_NS: Final = 100_000_000
_MAX_SLICES: Final = 1 << 16
_NEVER: Final = np.iinfo(np.int64).max
_FIELDS: Final = frozenset({"kind", "begin_s", "end_s", "paused_s"})
_NEARLY_ALL: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """One stall of one rank, in seconds since the window's begin; ResultError if it is none."""

    kind: str
    begin_s: float
    end_s: float
    paused_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (EVERY, *KINDS):
            raise ResultError(
                f"a stall is of {self.kind!r}; it must be {EVERY}, {', '.join(KINDS)}"
            )
        for value in (self.begin_s, self.end_s, self.paused_s):
            if not isinstance(value, float) or not math.isfinite(value):
                raise ResultError(f"a stall has a time of {value!r}; it must be seconds")
        if self.begin_s < 0 or round((self.end_s - self.begin_s) * 1e9) < LEAST_NS:
            raise ResultError(
                f"a stall lasts from {self.begin_s} to {self.end_s} s; it must begin in the window"
                f" and last {LEAST_NS / 1e9:g} s"
            )

        if not 0 <= round(self.paused_s * 1e9) <= round(self.length_s * 1e9):
            raise ResultError(
                f"a stall of {self.length_s} s has paused_s {self.paused_s}; it must be a part of"
                " that"
            )

    @property
    def is_a_pause(self) -> bool:
        """Whether its rank itself did not run for nearly all of it."""
        return self.paused_s >= _NEARLY_ALL * self.length_s

    @property
    def length_s(self) -> float:
        """How long the stall lasted."""
        return self.end_s - self.begin_s

    @classmethod
    def from_json(cls, data: object) -> Stall:
        """The inverse of ``asdict``."""
        if not isinstance(data, Mapping) or set(data) != _FIELDS:
            raise ResultError(f"a stall is {data!r}; it must have {', '.join(sorted(_FIELDS))}")
        return cls(**data)


# --- on a rank ------------------------------------------------------------------------------


class StallWatch:
    """One rank's completions since ``begin_ns``: the first and the last one of each slice.

    That is all there is to keep, for what lies between two of them in one slice is shorter
    than a stall (slices double in a run of more than an hour, and stay shorter than one for
    eight), and the few operations that took as long as one.
    """

    def __init__(self, begin_ns: int) -> None:
        self._begin_ns = begin_ns
        self._slice_ns = _SLICE_NS
        self._first = np.full((len(KINDS), 1024), _NEVER, dtype=np.int64)
        self._last = np.full((len(KINDS), 1024), -1, dtype=np.int64)
        self._long: list[IntArray] = []

    def add(self, kind: str, started_ns: IntArray, done_ns: IntArray) -> None:
        """Book operations of a kind; those done before the begin are not booked."""
        late = done_ns >= self._begin_ns
        done = done_ns[late] - self._begin_ns
        if not done.size:
            return
        started, row = started_ns[late] - self._begin_ns, KINDS.index(kind)
        self._make_room(int(done.max()))
        slices = done // self._slice_ns
        np.minimum.at(self._first[row], slices, done)
        np.maximum.at(self._last[row], slices, done)
        took_long = done - started >= LEAST_NS
        if took_long.any():
            rows = np.full(np.count_nonzero(took_long), row, dtype=np.int64)
            self._long.append(np.stack([rows, started[took_long], done[took_long]], axis=1))

    def _make_room(self, last_ns: int) -> None:
        while last_ns // self._slice_ns >= _MAX_SLICES:
            self._first = self._first.reshape(len(KINDS), -1, 2).min(axis=2)
            self._last = self._last.reshape(len(KINDS), -1, 2).max(axis=2)
            self._slice_ns *= 2
        wanted = last_ns // self._slice_ns + 1
        while self._first.shape[1] < wanted:
            self._first = np.pad(self._first, ((0, 0), (0, self._first.shape[1])),
                                 constant_values=_NEVER)  # fmt: skip
            self._last = np.pad(self._last, ((0, 0), (0, self._last.shape[1])),
                                constant_values=-1)  # fmt: skip

    def found(
        self,
        window_ns: int,
        usual_ns: Mapping[str, float | None],
        pauses_ns: Sequence[tuple[int, int]] = (),
    ) -> tuple[Stall, ...]:
        """All stalls that begin in the window, in their order.

        ``pauses_ns`` are the times in which the rank itself was paused, apart from each other.
        ``usual_ns`` is what an operation of each kind usually takes; None: there was none.
        """
        if not self._long:
            return ()
        known = {kind: value for kind, value in usual_ns.items() if value is not None}
        if not known:
            return ()
        slowest_ns = max(known.values())  # for a kind of which nothing began in the window
        limits = np.array([max(LEAST_NS, USUALLY * known.get(k, slowest_ns)) for k in KINDS])
        rows = np.concatenate(self._long)
        every = [*self._of(range(len(KINDS)), rows, limits, window_ns)]
        stalls = [_stall(EVERY, span, pauses_ns) for span in every]
        for row, kind in enumerate(KINDS):
            for span in self._of([row], rows, limits, window_ns):
                if 2 * _overlap(span, every) < span[1] - span[0]:
                    stalls.append(_stall(kind, span, pauses_ns))
        longest = sorted(stalls, key=lambda stall: -stall.length_s)[:MOST]
        return tuple(sorted(longest, key=lambda stall: (stall.begin_s, stall.end_s, stall.kind)))

    def _of(
        self, kinds: Sequence[int], rows: IntArray, limits: npt.NDArray[np.float64], window_ns: int
    ) -> Iterator[tuple[int, int]]:
        """Begin and end of each stall of these kinds taken together."""
        rows = rows[np.isin(rows[:, 0], list(kinds))]
        several = 1 if len(kinds) > 1 else _SEVERAL
        first, last = self._first[list(kinds)].min(axis=0), self._last[list(kinds)].max(axis=0)
        used = last >= 0
        ends = first[used]
        begins = np.concatenate([[0], last[used][:-1]]) if ends.size else ends
        wide = (ends - begins >= LEAST_NS) & (begins < window_ns)
        for begin, end in zip(begins[wide].tolist(), ends[wide].tolist(), strict=True):
            there = rows[(rows[:, 2] >= end) & (rows[:, 1] < end)]
            since = np.maximum(there[:, 1], begin)
            stuck = since[end - since >= limits[there[:, 0]]]
            if stuck.size >= several and int(stuck.min()) < window_ns:
                yield int(stuck.min()), end


def _stall(kind: str, span: tuple[int, int], pauses_ns: Sequence[tuple[int, int]]) -> Stall:
    paused_ns = _overlap(span, pauses_ns)
    return Stall(kind=kind, begin_s=span[0] / 1e9, end_s=span[1] / 1e9, paused_s=paused_ns / 1e9)


def _overlap(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> int:
    """How much of ``span`` lies in the others, which are apart from each other."""
    return sum(max(0, min(span[1], end) - max(span[0], begin)) for begin, end in others)


# --- of all ranks ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StallSummary:
    """The stalls of all ranks of a trial: what stalled at once on several is one of them.

    ``longest_begin_s`` is when the longest one began, in seconds of the window.
    """

    count: int
    longest_s: float | None
    longest_begin_s: float | None
    total_s: float
    all_ranks_s: float
    ranks: int
    kinds: tuple[str, ...]


def stalls_of(ranks: Sequence[Sequence[Stall]]) -> StallSummary:
    """A trial's stalls, without those in which the rank itself was paused."""
    ranks = [[stall for stall in stalls if not stall.is_a_pause] for stalls in ranks]
    merged = _merged(stall for stalls in ranks for stall in stalls)
    longest = max(merged, key=lambda span: span[1] - span[0], default=None)
    return StallSummary(
        count=len(merged),
        longest_s=None if longest is None else longest[1] - longest[0],
        longest_begin_s=None if longest is None else longest[0],
        total_s=math.fsum(end - begin for begin, end in merged),
        all_ranks_s=math.fsum(end - begin for begin, end in _common(ranks)),
        ranks=sum(bool(stalls) for stalls in ranks),
        kinds=tuple(sorted({stall.kind for stalls in ranks for stall in stalls})),
    )


def _merged(stalls: Iterable[Stall]) -> list[tuple[float, float]]:
    """The time in which any of them was, as spans that do not touch."""
    spans: list[tuple[float, float]] = []
    for begin, end in sorted((stall.begin_s, stall.end_s) for stall in stalls):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return spans


def _common(ranks: Sequence[Sequence[Stall]]) -> Iterator[tuple[float, float]]:
    """The time in which no rank completed any operation, and all had some in flight."""
    steps = [
        step
        for stalls in ranks
        for begin, end in _merged(stall for stall in stalls if stall.kind == EVERY)
        for step in ((begin, 1), (end, -1))
    ]
    standing = 0
    for (at, step), (until, _next) in itertools.pairwise(sorted(steps)):
        standing += step
        if standing == len(ranks) and until > at:
            yield at, until
