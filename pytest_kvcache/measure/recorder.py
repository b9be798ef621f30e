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
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.sections import CENSORED, MEMORY_SECTIONS, SECTIONS, TIERS
from pytest_kvcache.measure.series import TimeSeriesLedger, coarse_index
from pytest_kvcache.measure.service import ServiceBook, columns_of
from pytest_kvcache.measure.stalls import StallWatch
from pytest_kvcache.measure.steps import StepLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pytest_kvcache.measure.stalls import Stall
    from pytest_kvcache.measure.worth import WorthBook

    _Rows = NDArray[np.void]

# Kinds of rows.
READ = 0
WRITE = 1
TRANSFER = 2  # of an operation of several calls
LOAD = 3
REQUEST = 4
ADMIT = 5
SCHEDULING_LAG = 6  # an arrival of an open loop, and when it was dealt with
WAITING = 7  # a sample of how many requests wait for the storage
DELETE = 8
SYNC = 9  # the last call for an object that is synced
DEMOTE = 10  # a write into the storage of what left a faster tier
TIER_HITS = 11  # of an admission, where there are several tiers
BESIDE = 12  # of an admission that has blocks beside its prefix
REREAD = 13  # a read of what the request itself has stored; it is one of the reads
SERVICE = 14  # of an answered request, where requests have objectives
LOOKUP = 15  # of all that a request asks the storage for
SHARED = 16  # of a request's hits, where ranks share a store
STAGED = 17  # of a request's hits, where blocks wait in memory for a bucket
MEMORY_ROWS = {name: number for number, name in enumerate(MEMORY_SECTIONS, 18)}
"""Section of a memory tier → the kind of its rows."""

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
_REQUEST = _row_type("user", "started_ns", "done_ns", "prompt_tokens", "output_tokens")
_ADMISSION = _row_type("prompt_blocks", "started_ns", "hit_blocks", "prompt_tokens", "hit_tokens")
_SERVICE = _row_type("service_class", "started_ns", "done_ns", "computing_ns", "bytes")
_LOAD = _row_type("_", "started_ns", "done_ns", "tokens", "_")
_SAMPLE = _row_type("waiting", "started_ns", "done_ns", "_", "_")
_TIER_HITS = _row_type("gpu", "started_ns", "_", "cpu", "storage")
_LOOKUP = _row_type("asked", "started_ns", "done_ns", "found", "_")
_SHARED = _row_type("own_hit_blocks", "started_ns", "other_hit_blocks", "_", "_")
_STAGED = _row_type("staged_hit_blocks", "started_ns", "_", "_", "_")
_BESIDE = _row_type("beside_blocks", "started_ns", "beside_hit_blocks", "_", "_")

_OBJECTS = ((READ, "read"), (WRITE, "write"), (DEMOTE, "demote"))
_OPERATIONS = (*_OBJECTS, (DELETE, "delete"))

LEDGER_COLUMNS = (
    "read_bytes",
    "write_bytes",
    "demote_bytes",
    "operations",
    "requests",
    "prompt_tokens",
    "output_tokens",
    "prompt_blocks",
    "hit_blocks",
    *(f"{tier}_hit_blocks" for tier in TIERS),
    "beside_blocks",
    "beside_hit_blocks",
    "own_hit_blocks",
    "other_hit_blocks",
    "staged_hit_blocks",
    "asked_objects",
    "found_objects",
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


class TakesRows(Protocol):
    """A log, or what passes rows on to one."""

    def add(  # noqa: PLR0917  as the log has it
        self, kind: int, a: int, start_ns: int, end_ns: int, b: int, c: int
    ) -> None:
        """Write one row."""


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
        """How many rows there are."""
        return len(self._full) * _ROWS_PER_BUFFER + self._offset // _ROW.size

    def take(self) -> list[NDArray[np.void]]:
        """Take all rows; the log forgets them."""
        taken = [np.frombuffer(buffer, _ANY) for buffer in self._full]
        if self._offset:
            taken.append(np.frombuffer(bytes(memoryview(self._buffer)[: self._offset]), _ANY))
        self._full.clear()
        self._offset = 0
        return taken


class Ledger:
    """Sums per slice of time since ``origin_ns``; slices double when they get too many."""

    def __init__(self, origin_ns: int, columns: Sequence[str] = LEDGER_COLUMNS) -> None:
        self.origin_ns = origin_ns
        self.slice_ns = _SLICE_NS
        self._columns = {name: at for at, name in enumerate(columns)}
        self._sums = np.zeros((1024, len(columns)), dtype=np.int64)

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
            np.add.at(self._sums[:, self._columns[name]], slices, values[late])

    def _make_room(self, last_ns: int) -> None:
        while last_ns // self.slice_ns >= _MAX_SLICES:
            self.coarsen(self.slice_ns * 2)
        missing = last_ns // self.slice_ns + 1 - len(self._sums)
        if missing > 0:
            grown = min(_MAX_SLICES, max(2 * len(self._sums), len(self._sums) + missing))
            added = np.zeros((grown - len(self._sums), len(self._columns)), dtype=np.int64)
            self._sums = np.concatenate([self._sums, added])

    def coarsen(self, slice_ns: int) -> None:
        """Make the slices wider, by a power of two."""
        while self.slice_ns < slice_ns:
            if len(self._sums) % 2:
                pad = np.zeros((1, len(self._columns)), dtype=np.int64)
                self._sums = np.concatenate([self._sums, pad])
            self._sums = self._sums.reshape(-1, 2, len(self._columns)).sum(axis=1)
            self.slice_ns *= 2

    def sums(self, begin_ns: int, end_ns: int) -> dict[str, int]:
        """Totals from ``begin_ns`` to ``end_ns`` after the origin (multiples of a slice)."""
        part = self._sums[begin_ns // self.slice_ns : end_ns // self.slice_ns]
        return dict(zip(self._columns, (int(v) for v in part.sum(axis=0)), strict=True))


@dataclass(frozen=True, slots=True)
class Window:
    """The measured span on this rank's clock; ``end_ns`` None: until the work is done."""

    begin_ns: int
    end_ns: int | None

    def holds(self, started_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these moments lie in it."""
        inside = started_ns >= self.begin_ns
        return inside if self.end_ns is None else inside & (started_ns < self.end_ns)


class Recorder:
    """The log of a rank, its histograms, its ledger and its time series.

    Latency counts every operation *started* in the window, so that a stall at its end
    is not lost; bytes, requests and tokens count when *completed*, per slice. Belongs to
    one thread, but for ``take_recent``.
    """

    def __init__(self, service: ServiceBook | None = None, worth: WorthBook | None = None) -> None:
        self.log = Log()
        self.service = service
        self.worth = worth
        self._window: Window | None = None
        self.histograms = {name: Histogram() for name in SECTIONS}
        moving = ("read", "write", "demote", "device", *MEMORY_SECTIONS)
        self.section_bytes = dict.fromkeys(moving, 0)
        self.rereads = 0  # of the reads that began in the window
        self.in_flight_ns = 0  # of all calls of the backend, the time that lies in the window
        self.censored = dict.fromkeys(CENSORED, 0)
        self.ledger = Ledger(0)
        self.series = TimeSeriesLedger(0, None)
        self.stalls = StallWatch(0)
        self.steps = StepLedger()
        self.reap_lag = Histogram()
        self._recent = Recent()

    def open_window(self, window: Window) -> None:
        """From now on rows are measured against ``window``; earlier rows are dropped."""
        self.log.take()
        self._window = window
        self.ledger = Ledger(window.begin_ns)
        self.series = TimeSeriesLedger(window.begin_ns, window.end_ns)
        self.stalls = StallWatch(window.begin_ns)
        self.steps = StepLedger()
        self._recent = Recent()
        if self.worth is not None:
            self.worth.begin()
        if self.service is not None:
            names = self.service.limits.of_class
            columns = [column for name in names for column in columns_of(name)]
            self.service.begin(Ledger(window.begin_ns, columns))

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
            began = np.array([start_ns], dtype=np.int64)
            self.steps.add(f"{section}_censored", began, np.ones_like(began))

    def miss(self, service_class: str | None, start_ns: int) -> None:
        """A request is never answered, and keeps none of its objectives, if in the window."""
        window = self._window
        if window is None or self.service is None or start_ns < window.begin_ns:
            return
        if window.end_ns is None or start_ns < window.end_ns:
            self.service.miss(service_class)

    def begin_step(self, at_ns: int, users: int, obeyed_ns: int) -> None:
        """From ``at_ns`` on so many users are active, as they are since ``obeyed_ns``.

        Before anything is booked that began after ``at_ns``.
        """
        if self._window is not None:
            self.steps.begin(max(at_ns, self._window.begin_ns), users, obeyed_ns)

    def found_stalls(
        self, window_ns: int, pauses_ns: Sequence[tuple[int, int]] = ()
    ) -> tuple[Stall, ...]:
        """The stalls of the first ``window_ns`` of the window; after ``finish``.

        ``pauses_ns`` are the times in which this rank itself was paused.
        """
        usual_ns = {name: self.histograms[name].percentile_ns(50) for _kind, name in _OPERATIONS}
        return self.stalls.found(window_ns, usual_ns, pauses_ns)

    def absorb(self, now_ns: int) -> None:
        """Book all rows that there are at ``now_ns``."""
        for rows in self.log.take():
            if self._window is not None:
                self._book(self._count_rereads(rows, self._window), self._window)
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
        kinds, inside = rows["kind"], window.holds(rows["started_ns"])
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
        for name, kind in MEMORY_ROWS.items():
            if kind in there:
                self._book_memory(name, rows[inside & (kinds == kind)].view(_OPERATION))
        alone = np.isin(kinds, (READ, WRITE, DEMOTE)) & (rows.view(_OPERATION)["calls"] == 1)
        self._book_in_flight(rows[alone | np.isin(kinds, (TRANSFER, SYNC, DELETE))], window)

    def _count_rereads(self, rows: _Rows, window: Window) -> _Rows:
        """Count those of the window; from here on they are reads as any."""
        again = rows["kind"] == REREAD
        if not again.any():
            return rows
        started = rows["started_ns"][again]
        inside = started >= window.begin_ns
        if window.end_ns is not None:
            inside &= started < window.end_ns
        self.rereads += int(inside.sum())
        rows = rows.copy()  # what was taken may be read-only
        rows["kind"][again] = READ
        return rows

    def _bookings(self) -> Iterable[tuple[int, Callable[[_Rows, _Rows], None]]]:
        """What is done with rows of a kind: all, and those that began in the window."""
        return (
            (TRANSFER, lambda _every, inside: self._book_device(inside.view(_OPERATION))),
            (DELETE, lambda _every, inside: self._book_times("delete", inside)),
            (LOAD, lambda _every, inside: self._book_loads(inside.view(_LOAD))),
            (SCHEDULING_LAG, lambda _every, inside: self._book_times("scheduling_lag", inside)),
            (REQUEST, self._book_requests),
            (ADMIT, lambda _every, inside: self._book_arrivals(inside.view(_ADMISSION))),
            (TIER_HITS, lambda _every, inside: self._book_tier_hits(inside.view(_TIER_HITS))),
            (SERVICE, lambda every, _inside: self._book_service(every.view(_SERVICE))),
            (LOOKUP, lambda _every, inside: self._book_lookups(inside.view(_LOOKUP))),
            (SHARED, lambda _every, inside: self._book_shared(inside.view(_SHARED))),
            (STAGED, lambda _every, inside: self._book_staged(inside.view(_STAGED))),
            (BESIDE, lambda _every, inside: self._book_beside(inside.view(_BESIDE))),
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
        self.steps.add(f"{name}_op_bytes", rows["started_ns"], rows["bytes"])
        self.histograms["queue"].record(rows["started_ns"] - rows["submitted_ns"])
        self.section_bytes[name] += int(rows["bytes"].sum())
        self._book_device(rows[rows["calls"] == 1])

    def _book_memory(self, name: str, rows: _Rows) -> None:
        self._book_times(name, rows)
        self.section_bytes[name] += int(rows["bytes"].sum())

    def _book_device(self, rows: _Rows) -> None:
        self._book_times("device", rows)
        self.section_bytes["device"] += int(rows["bytes"].sum())

    def _book_times(self, name: str, rows: _Rows) -> None:
        times_ns = rows["done_ns"] - rows["started_ns"]
        self.histograms[name].record(times_ns)
        self.steps.record(name, rows["started_ns"], times_ns)

    def _book_loads(self, rows: _Rows) -> None:
        self._book_times("load", rows)
        if self.worth is not None:
            self.worth.book(rows["tokens"], rows["done_ns"] - rows["started_ns"])

    def _book_tier_hits(self, rows: _Rows) -> None:
        self.ledger.add(rows["started_ns"], {f"{tier}_hit_blocks": rows[tier] for tier in TIERS})

    def _book_lookups(self, rows: _Rows) -> None:
        self._book_times("lookup", rows)
        counted = {"asked_objects": rows["asked"], "found_objects": rows["found"]}
        self.ledger.add(rows["started_ns"], counted)

    def _book_shared(self, rows: _Rows) -> None:
        counted = {name: rows[name] for name in ("own_hit_blocks", "other_hit_blocks")}
        self.ledger.add(rows["started_ns"], counted)

    def _book_staged(self, rows: _Rows) -> None:
        self.ledger.add(rows["started_ns"], {"staged_hit_blocks": rows["staged_hit_blocks"]})

    def _book_beside(self, rows: _Rows) -> None:
        counted = {name: rows[name] for name in ("beside_blocks", "beside_hit_blocks")}
        self.ledger.add(rows["started_ns"], counted)

    def _book_in_flight(self, rows: _Rows, window: Window) -> None:
        """Book of calls that began before the window or end after it only what is inside."""
        begun, ended = (
            np.clip(rows[at], window.begin_ns, window.end_ns) for at in ("started_ns", "done_ns")
        )
        self.in_flight_ns += int((ended - begun).sum())

    def _book_requests(self, every: _Rows, inside: _Rows) -> None:
        self._book_times("request", inside)
        users = inside.view(_REQUEST)["user"]
        self.steps.answer(users, inside["started_ns"], inside["done_ns"], self.window_end_ns)
        every = every.view(_REQUEST)
        self.ledger.add(
            every["done_ns"],
            {
                "requests": np.ones(len(every), dtype=np.int64),
                "prompt_tokens": every["prompt_tokens"],
                "output_tokens": every["output_tokens"],
            },
        )

    def _book_service(self, rows: _Rows) -> None:
        assert self.service is not None
        assert self._window is not None
        self.service.book(rows, began_inside=self._window.holds(rows["started_ns"]))

    def _book_samples(self, rows: _Rows) -> None:
        ones = np.ones(len(rows), dtype=np.int64)
        self.ledger.add(rows["started_ns"], {"waiting": rows["waiting"], "samples": ones})

    def _book_arrivals(self, rows: _Rows) -> None:
        for name in ("prompt_blocks", "hit_blocks"):
            self.steps.add(name, rows["started_ns"], rows[name])
        self.ledger.add(
            rows["started_ns"],
            {
                "prompt_blocks": rows["prompt_blocks"],
                "hit_blocks": rows["hit_blocks"],
                "arrived_tokens": rows["prompt_tokens"],
                "hit_tokens": rows["hit_tokens"],
            },
        )
