"""What happened, when: rows written on the timed path, histograms made off it.

Rank-side; imports neither pytest nor MPI. A row is six int64 in a preallocated buffer,
one call to write; the columns that they are depend on the kind of the row. Now and then the
loop turns rows into histograms and into the ledger, which holds what was completed per slice
of time, so that all ranks can cut the same common window out of their counts after the fact,
and into the time series.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.sections import CENSORED, SECTIONS
from pytest_kvcache.measure.series import SeriesLedger, coarse_index
from pytest_kvcache.measure.stalls import StallWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pytest_kvcache.measure.stalls import Stall

    _Rows = NDArray[np.void]

# Kinds of rows.
READ = 0
WRITE = 1
TRANSFER = 2  # of an operation of several calls
LOAD = 3
REQUEST = 4
ADMIT = 5
WAKEUP = 6  # an arrival of an open loop, and when it was dealt with
WAITING = 7  # a sample of how many requests wait for the storage
DELETE = 8
SYNC = 9  # the last call for an object that is synced

_COLUMNS = 6
_ROW = struct.Struct(f"={_COLUMNS}q")
_ROWS_PER_BUFFER = 4096


def _row_type(*names: str) -> np.dtype[Any]:
    """The columns of a kind of row; ``_`` names one that is not used."""
    columns = [name if name != "_" else f"unused{at}" for at, name in enumerate(names)]
    return np.dtype([("kind", "<i8"), *((name, "<i8") for name in columns)])


# What the columns are called when nothing but the kind matters, and of each kind. An operation
# of one call is its own transfer.
_ANY = _row_type("_", "started_ns", "done_ns", "_", "_")
_OPERATION = _row_type("submitted_ns", "started_ns", "done_ns", "bytes", "calls")
_REQUEST = _row_type("_", "started_ns", "done_ns", "prompt_tokens", "output_tokens")
_ADMISSION = _row_type("prompt_blocks", "started_ns", "hit_blocks", "prompt_tokens", "hit_tokens")
_SAMPLE = _row_type("waiting", "started_ns", "done_ns", "_", "_")

_OBJECTS = ((READ, "read"), (WRITE, "write"))
_OPERATIONS = (*_OBJECTS, (DELETE, "delete"))

LEDGER_COLUMNS = (
    "read_bytes",
    "write_bytes",
    "operations",
    "requests",
    "prompt_tokens",
    "output_tokens",
    "prompt_blocks",
    "hit_blocks",
    "arrived_tokens",
    "hit_tokens",
    "waiting",
    "samples",
)
_SLICE_NS = 10_000_000
_MAX_SLICES = 1 << 16


def widest_slice_s(span_s: float) -> float:
    """The widest slice that the ledger of a span can have come to: the window's resolution."""
    return max(_SLICE_NS / 1e9, 2 * span_s / _MAX_SLICES)


class Log:
    """Rows that are not booked yet. ``add`` is all that the timed path calls."""

    __slots__ = ("_buffer", "_full", "_offset")

    def __init__(self) -> None:
        self._full: list[bytearray] = []
        self._buffer = bytearray(_ROW.size * _ROWS_PER_BUFFER)
        self._offset = 0

    def add(  # noqa: PLR0917  on the timed path, where keywords cost
        self, kind: int, a: int, start_ns: int, end_ns: int, b: int, c: int
    ) -> None:
        """Write one row; the columns are described at the row types."""
        offset = self._offset
        _ROW.pack_into(self._buffer, offset, kind, a, start_ns, end_ns, b, c)
        offset += _ROW.size
        if offset == len(self._buffer):
            self._full.append(self._buffer)
            self._buffer = bytearray(offset)
            offset = 0
        self._offset = offset

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._full) * _ROWS_PER_BUFFER + self._offset // _ROW.size

    def take(self) -> list[NDArray[np.void]]:
        """All rows, which the log forgets."""
        taken = [np.frombuffer(buffer, _ANY) for buffer in self._full]
        if self._offset:
            taken.append(np.frombuffer(bytes(memoryview(self._buffer)[: self._offset]), _ANY))
        self._full.clear()
        self._offset = 0
        return taken


class Ledger:
    """Sums per slice of time since ``origin_ns``; slices double when they get too many."""

    def __init__(self, origin_ns: int) -> None:
        self.origin_ns = origin_ns
        self.slice_ns = _SLICE_NS
        self._sums = np.zeros((1024, len(LEDGER_COLUMNS)), dtype=np.int64)

    @property
    def end_ns(self) -> int:
        """Where the last slice ends, counted from the origin."""
        return len(self._sums) * self.slice_ns

    def add(self, at_ns: NDArray[np.int64], columns: dict[str, NDArray[np.int64]]) -> None:
        """Book values at their times; times before the origin are not booked."""
        if not at_ns.size:
            return
        late = at_ns >= self.origin_ns
        since_ns = at_ns[late] - self.origin_ns
        if not since_ns.size:
            return
        self._make_room(int(since_ns.max()))
        slices = since_ns // self.slice_ns
        for name, values in columns.items():
            np.add.at(self._sums[:, LEDGER_COLUMNS.index(name)], slices, values[late])

    def _make_room(self, last_ns: int) -> None:
        while last_ns // self.slice_ns >= _MAX_SLICES:
            self.coarsen(self.slice_ns * 2)
        missing = last_ns // self.slice_ns + 1 - len(self._sums)
        if missing > 0:
            grown = min(_MAX_SLICES, max(2 * len(self._sums), len(self._sums) + missing))
            added = np.zeros((grown - len(self._sums), len(LEDGER_COLUMNS)), dtype=np.int64)
            self._sums = np.concatenate([self._sums, added])

    def coarsen(self, slice_ns: int) -> None:
        """Make the slices wider, by a power of two."""
        while self.slice_ns < slice_ns:
            if len(self._sums) % 2:
                pad = np.zeros((1, len(LEDGER_COLUMNS)), dtype=np.int64)
                self._sums = np.concatenate([self._sums, pad])
            self._sums = self._sums.reshape(-1, 2, len(LEDGER_COLUMNS)).sum(axis=1)
            self.slice_ns *= 2

    def sums(self, begin_ns: int, end_ns: int) -> dict[str, int]:
        """Totals from ``begin_ns`` to ``end_ns`` after the origin (multiples of a slice)."""
        part = self._sums[begin_ns // self.slice_ns : end_ns // self.slice_ns]
        return dict(zip(LEDGER_COLUMNS, (int(v) for v in part.sum(axis=0)), strict=True))


@dataclass(frozen=True, slots=True)
class Window:
    """The measured span on this rank's clock; ``end_ns`` None: until the work is done."""

    begin_ns: int
    end_ns: int | None


class Recorder:
    """The log of a rank, its histograms, its ledger and its time series.

    Latency counts every operation *started* in the window, so that a stall at its end
    is not lost; bytes, requests and tokens count when *completed*, per slice. Belongs to
    one thread, but for ``take_recent``.
    """

    def __init__(self) -> None:
        self.log = Log()
        self._window: Window | None = None
        self.histograms = {name: Histogram() for name in SECTIONS}
        self.section_bytes = dict.fromkeys(("read", "write", "device"), 0)
        self.in_flight_ns = 0  # of all calls of the backend, the time that lies in the window
        self.censored = dict.fromkeys(CENSORED, 0)
        self.ledger = Ledger(0)
        self.series = SeriesLedger(0, None)
        self.stalls = StallWatch(0)
        self.reap_lag = Histogram()
        self._recent = Recent()

    def open_window(self, window: Window) -> None:
        """From now on rows are measured against ``window``; earlier rows are dropped."""
        self.log.take()
        self._window = window
        self.ledger = Ledger(window.begin_ns)
        self.series = SeriesLedger(window.begin_ns, window.end_ns)
        self.stalls = StallWatch(window.begin_ns)
        self._recent = Recent()

    @property
    def window_end_ns(self) -> int | None:
        """Where the window ends; None: when the work is done, or there is none."""
        return None if self._window is None else self._window.end_ns

    def censor(self, section: str, start_ns: int) -> None:
        """Count what began at ``start_ns`` and will not be seen to end, if in the window."""
        window = self._window
        if window is None or start_ns < window.begin_ns:
            return
        if window.end_ns is None or start_ns < window.end_ns:
            self.censored[section] += 1

    def found_stalls(
        self, window_ns: int, pauses_ns: Sequence[tuple[int, int]] = ()
    ) -> tuple[Stall, ...]:
        """The stalls of the first ``window_ns`` of the window; after ``finish``.

        ``pauses_ns`` are the times in which this rank itself stood still.
        """
        usual_ns = {name: self.histograms[name].percentile_ns(50) for _kind, name in _OPERATIONS}
        return self.stalls.found(window_ns, usual_ns, pauses_ns)

    def absorb(self, now_ns: int) -> None:
        """Book all rows that there are at ``now_ns``."""
        for rows in self.log.take():
            if self._window is not None:
                self._book(rows, self._window)
        self._recent.publish(now_ns)

    def note_lags(self, lags_ns: list[int]) -> None:
        """Book how late stamps can have been, and empty the list."""
        if self._window is not None:
            self.reap_lag.record(np.array(lags_ns, dtype=np.int64))
        lags_ns.clear()

    def take_recent(self, now_ns: int) -> dict[str, Any] | None:
        """What was booked since this was asked last; None: there is no window yet.

        For another thread than the loop's; costs that one nothing.
        """
        return None if self._window is None else self._recent.take(now_ns)

    def finish(self) -> None:
        """Book everything; when nothing is added any more."""
        self.absorb(0)

    def _book(self, rows: NDArray[np.void], window: Window) -> None:
        kinds, started = rows["kind"], rows["started_ns"]
        inside = started >= window.begin_ns
        if window.end_ns is not None:
            inside &= started < window.end_ns
        there = set(np.unique(kinds).tolist())
        for kind, name in _OBJECTS:
            if kind in there:
                of_kind = kinds == kind
                self._book_objects(name, rows[of_kind].view(_OPERATION))
                self._book_operations(name, rows[inside & of_kind].view(_OPERATION))
        for kind, book in self._bookings():
            if kind in there:
                of_kind = kinds == kind
                book(rows[of_kind], rows[inside & of_kind])
        for kind, name in _OPERATIONS:
            if kind in there:
                of_kind = rows[kinds == kind]
                self.stalls.add(name, of_kind["started_ns"], of_kind["done_ns"])
        alone = ((kinds == READ) | (kinds == WRITE)) & (rows.view(_OPERATION)["calls"] == 1)
        self._book_flight(rows[alone | np.isin(kinds, (TRANSFER, SYNC, DELETE))], window)

    def _bookings(self) -> Iterable[tuple[int, Callable[[_Rows, _Rows], None]]]:
        """What is done with rows of a kind: all, and those that began in the window."""
        return (
            (TRANSFER, lambda _every, inside: self._book_device(inside.view(_OPERATION))),
            (DELETE, lambda _every, inside: self._book_times("delete", inside)),
            (LOAD, lambda _every, inside: self._book_times("load", inside)),
            (WAKEUP, lambda _every, inside: self._book_times("wakeup", inside)),
            (REQUEST, self._book_requests),
            (ADMIT, lambda _every, inside: self._book_arrivals(inside.view(_ADMISSION))),
            (WAITING, lambda every, _inside: self._book_samples(every.view(_SAMPLE))),
        )

    def _book_objects(self, name: str, rows: _Rows) -> None:
        """What was completed when, whenever it began."""
        done, moved = rows["done_ns"], rows["bytes"]
        bins = coarse_index(done - rows["started_ns"])
        ones = np.ones(len(rows), dtype=np.int64)
        self.ledger.add(done, {f"{name}_bytes": moved, "operations": ones})
        self.series.add(name, done, bins, moved)
        self._recent.add(name, bins, moved)

    def _book_operations(self, name: str, rows: _Rows) -> None:
        self._book_times(name, rows)
        self.histograms["queue"].record(rows["started_ns"] - rows["submitted_ns"])
        self.section_bytes[name] += int(rows["bytes"].sum())
        self._book_device(rows[rows["calls"] == 1])

    def _book_device(self, rows: _Rows) -> None:
        self._book_times("device", rows)
        self.section_bytes["device"] += int(rows["bytes"].sum())

    def _book_times(self, name: str, rows: _Rows) -> None:
        self.histograms[name].record(rows["done_ns"] - rows["started_ns"])

    def _book_flight(self, rows: _Rows, window: Window) -> None:
        """Of calls that began before the window or end after it, only what is inside."""
        begun, ended = (
            np.clip(rows[at], window.begin_ns, window.end_ns) for at in ("started_ns", "done_ns")
        )
        self.in_flight_ns += int((ended - begun).sum())

    def _book_requests(self, every: _Rows, inside: _Rows) -> None:
        self._book_times("request", inside)
        every = every.view(_REQUEST)
        self.ledger.add(
            every["done_ns"],
            {
                "requests": np.ones(len(every), dtype=np.int64),
                "prompt_tokens": every["prompt_tokens"],
                "output_tokens": every["output_tokens"],
            },
        )

    def _book_samples(self, rows: _Rows) -> None:
        ones = np.ones(len(rows), dtype=np.int64)
        self.ledger.add(rows["started_ns"], {"waiting": rows["waiting"], "samples": ones})

    def _book_arrivals(self, rows: _Rows) -> None:
        self.ledger.add(
            rows["started_ns"],
            {
                "prompt_blocks": rows["prompt_blocks"],
                "hit_blocks": rows["hit_blocks"],
                "arrived_tokens": rows["prompt_tokens"],
                "hit_tokens": rows["hit_tokens"],
            },
        )
