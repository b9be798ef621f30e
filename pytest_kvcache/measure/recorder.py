"""What happened, when: rows written on the timed path, histograms made off it.

Rank-side; imports neither pytest nor MPI. A row is six int64 in a preallocated buffer,
one call to write. The main thread turns full buffers into histograms and into the
ledger, which holds what was completed per slice of time, so that all ranks can cut the
same common window out of their counts after the fact, and into the time series. What it
has to know at once, for the live line, it reads out of buffers that are not full yet.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.sections import CENSORED, SECTIONS
from pytest_kvcache.measure.series import SeriesLedger, coarse_index
from pytest_kvcache.measure.stalls import StallWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pytest_kvcache.measure.stalls import Stall

# Kinds of rows; the meaning of the five other columns is given behind each.
READ = 0  # submitted, started, done, bytes, calls
WRITE = 1  # submitted, started, done, bytes, calls        (1: it is its own transfer)
TRANSFER = 2  # -, started, done, bytes, -        (of an operation of several calls)
LOAD = 3  # -, issued, last byte, bytes, -
REQUEST = 4  # -, intended, done, prompt tokens, output tokens
ADMIT = 5  # prompt blocks, arrival, hit blocks, prompt tokens, hit tokens
WAKEUP = 6  # -, intended, dealt with, -, -        (an arrival of an open loop)
WAITING = 7  # requests that wait for the storage, now, now, -, -        (a sample)
DELETE = 8  # submitted, started, done, -, -
SYNC = 9  # -, started, done, -, -        (the last call for an object that is synced)

_COLUMNS = 6
_ROW = struct.Struct(f"={_COLUMNS}q")
_ROWS_PER_BUFFER = 4096

_OBJECTS = ((READ, "read"), (WRITE, "write"))
_OPERATIONS = (*_OBJECTS, (DELETE, "delete"))

LEDGER_COLUMNS = (
    "read_bytes",
    "write_bytes",
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
    """One writer's rows. ``add`` is all that the timed path calls."""

    __slots__ = ("_buffer", "_full", "_offset")

    def __init__(self, full: deque[bytes | bytearray]) -> None:
        self._full = full
        self._buffer = bytearray(_ROW.size * _ROWS_PER_BUFFER)
        self._offset = 0

    def add(  # noqa: PLR0917  on the timed path, where keywords cost
        self, kind: int, a: int, start_ns: int, end_ns: int, b: int, c: int
    ) -> None:
        """Write one row; the columns are described at the kinds."""
        offset = self._offset
        _ROW.pack_into(self._buffer, offset, kind, a, start_ns, end_ns, b, c)
        offset += _ROW.size
        if offset == len(self._buffer):
            self._full.append(self._buffer)
            self._offset = offset = 0  # before the buffer: see ``written``
            self._buffer = bytearray(len(self._buffer))
        self._offset = offset

    def written(self) -> tuple[bytes | bytearray, int]:
        """The buffer and how far it is filled, for another thread than the writer's.

        Never further than it is: the writer moves the offset after the row is whole, and
        back before there is a new buffer, and the buffer is looked at first in here.
        """
        buffer = self._buffer
        return buffer, self._offset

    def flush(self) -> None:
        """Hand over what is left; only when the writer has stopped."""
        self._full.append(self._buffer[: self._offset])
        self._offset = 0


def _rows(buffer: bytes | bytearray, begin_bytes: int, end_bytes: int) -> NDArray[np.int64]:
    """Rows of a buffer; whole ones, as offsets move by whole rows."""
    values = (end_bytes - begin_bytes) // 8
    rows = np.frombuffer(buffer, dtype=np.int64, count=values, offset=begin_bytes)
    return rows.reshape(-1, _COLUMNS)


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
    """All logs of a rank, its histograms, its ledger and its time series.

    Latency counts every operation *started* in the window, so that a stall at its end
    is not lost; bytes, requests and tokens count when *completed*, per slice.
    """

    def __init__(self) -> None:
        self._full: deque[bytes | bytearray] = deque()
        self._logs: list[Log] = []
        self._window: Window | None = None
        self.histograms = {name: Histogram() for name in SECTIONS}
        self.section_bytes = dict.fromkeys(("read", "write", "device"), 0)
        self.in_flight_ns = 0  # of all calls of the backend, the time that lies in the window
        self.censored = dict.fromkeys(CENSORED, 0)
        self.ledger = Ledger(0)
        self.series = SeriesLedger(0, None)
        self.stalls = StallWatch(0)
        self._recent = Recent()
        self._peeked: dict[int, tuple[bytes | bytearray, int]] = {}  # by id, kept alive in here

    def new_log(self) -> Log:
        """A log for one more writer."""
        log = Log(self._full)
        self._logs.append(log)
        return log

    def open_window(self, window: Window) -> None:
        """From now on rows are measured against ``window``; earlier rows are dropped."""
        self._full.clear()
        self._window = window
        self.ledger = Ledger(window.begin_ns)
        self.series = SeriesLedger(window.begin_ns, window.end_ns)
        self.stalls = StallWatch(window.begin_ns)
        self._peeked.clear()
        self._peek()
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

    def absorb(self) -> None:
        """Book all full buffers; called by the main thread between its ticks."""
        while self._full:
            buffer = self._full.popleft()
            if self._window is not None:
                _kept, seen_bytes = self._peeked.pop(id(buffer), (buffer, 0))
                seen = seen_bytes // _ROW.size
                self._book(_rows(buffer, 0, len(buffer)), seen, self._window)

    def take_recent(self, now_ns: int) -> dict[str, Any] | None:
        """What was completed since this was asked last; None: there is no window yet.

        Called by the main thread, between two of ``absorb``; costs the writers nothing.
        """
        if self._window is None:
            return None
        self._peek()
        return self._recent.take(now_ns)

    def _peek(self) -> None:
        """Count what is in buffers that are not full yet, each row once."""
        fresh = []
        for log in self._logs:
            buffer, filled_bytes = log.written()
            _kept, seen_bytes = self._peeked.get(id(buffer), (buffer, 0))
            if filled_bytes > seen_bytes:
                fresh.append(_rows(buffer, seen_bytes, filled_bytes))
                self._peeked[id(buffer)] = (buffer, filled_bytes)
        if fresh:
            rows = np.concatenate(fresh)
            for kind, name in _OBJECTS:
                done = rows[rows[:, 0] == kind]
                self._recent.add(name, coarse_index(done[:, 3] - done[:, 2]), done[:, 4])

    def finish(self) -> None:
        """Book everything; only when all writers have stopped."""
        for log in self._logs:
            log.flush()
        self.absorb()

    def _book(self, rows: NDArray[np.int64], seen: int, window: Window) -> None:
        """Of the first ``seen`` rows the live line has been told."""
        started = rows[:, 2]
        inside = started >= window.begin_ns
        if window.end_ns is not None:
            inside &= started < window.end_ns
        kinds = rows[:, 0]
        for kind, name in _OBJECTS:
            every = rows[kinds == kind]
            self.ledger.add(every[:, 3], {f"{name}_bytes": every[:, 4]})
            bins = coarse_index(every[:, 3] - every[:, 2])
            self.series.add(name, every[:, 3], bins, every[:, 4])
            told = np.count_nonzero(kinds[:seen] == kind)
            self._recent.add(name, bins[told:], every[told:, 4])
            self._book_operations(name, rows[inside & (kinds == kind)])
        self._book_device(rows[inside & (kinds == TRANSFER)])
        deletes = rows[inside & (kinds == DELETE)]
        self.histograms["delete"].record(deletes[:, 3] - deletes[:, 2])
        for kind, name in _OPERATIONS:
            self.stalls.add(name, rows[kinds == kind, 2], rows[kinds == kind, 3])
        alone = ((kinds == READ) | (kinds == WRITE)) & (rows[:, 5] == 1)
        self._book_flight(rows[alone | np.isin(kinds, (TRANSFER, SYNC, DELETE))], window)
        loads = rows[inside & (kinds == LOAD)]
        self.histograms["load"].record(loads[:, 3] - loads[:, 2])
        self._book_requests(rows[kinds == REQUEST], rows[inside & (kinds == REQUEST)])
        self._book_arrivals(rows[inside & (kinds == ADMIT)])
        wakeups = rows[inside & (kinds == WAKEUP)]
        self.histograms["wakeup"].record(wakeups[:, 3] - wakeups[:, 2])
        samples = rows[kinds == WAITING]
        ones = np.ones(len(samples), dtype=np.int64)
        self.ledger.add(samples[:, 2], {"waiting": samples[:, 1], "samples": ones})

    def _book_operations(self, name: str, rows: NDArray[np.int64]) -> None:
        self.histograms[name].record(rows[:, 3] - rows[:, 2])
        self.histograms["queue"].record(rows[:, 2] - rows[:, 1])
        self.section_bytes[name] += int(rows[:, 4].sum())
        self._book_device(rows[rows[:, 5] == 1])

    def _book_device(self, rows: NDArray[np.int64]) -> None:
        self.histograms["device"].record(rows[:, 3] - rows[:, 2])
        self.section_bytes["device"] += int(rows[:, 4].sum())

    def _book_flight(self, rows: NDArray[np.int64], window: Window) -> None:
        """Of calls that began before the window or end after it, only what is inside."""
        begun, ended = (np.clip(rows[:, at], window.begin_ns, window.end_ns) for at in (2, 3))
        self.in_flight_ns += int((ended - begun).sum())

    def _book_requests(self, every: NDArray[np.int64], inside: NDArray[np.int64]) -> None:
        self.histograms["request"].record(inside[:, 3] - inside[:, 2])
        self.ledger.add(
            every[:, 3],
            {
                "requests": np.ones(len(every), dtype=np.int64),
                "prompt_tokens": every[:, 4],
                "output_tokens": every[:, 5],
            },
        )

    def _book_arrivals(self, rows: NDArray[np.int64]) -> None:
        self.ledger.add(
            rows[:, 2],
            {
                "prompt_blocks": rows[:, 1],
                "hit_blocks": rows[:, 3],
                "arrived_tokens": rows[:, 4],
                "hit_tokens": rows[:, 5],
            },
        )
