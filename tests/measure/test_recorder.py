from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.recorder import (
    ADMIT,
    DEMOTE,
    LEDGER_COLUMNS,
    LOAD,
    MEMORY_ROWS,
    READ,
    REQUEST,
    SCHEDULING_LAG,
    TIER_HITS,
    TRANSFER,
    WAITING,
    WRITE,
    Ledger,
    Recorder,
    Window,
)
from pytest_kvcache.measure.sections import SECTIONS
from tests.factories import S, extremes, series_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SLICE_NS = 10_000_000
ORIGIN_NS = 7 * S
HOURS_NS = 3600 * S

EVENTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3 * S), st.integers(0, 30 * HOURS_NS)),
        st.sampled_from(LEDGER_COLUMNS),
        st.integers(0, 1 << 40),
    ),
    max_size=30,
)


def ledger_of(events: Sequence[tuple[int, str, int]]) -> Ledger:
    """A ledger in which each event was booked on its own, ns after the origin."""
    ledger = Ledger(ORIGIN_NS)
    for at_ns, name, value in events:
        ledger.add(
            np.array([ORIGIN_NS + at_ns], dtype=np.int64),
            {name: np.array([value], dtype=np.int64)},
        )
    return ledger


def test_what_does_not_end_counts_if_it_began_in_the_window() -> None:
    recorder = Recorder()
    recorder.censor("load", 5 * S)  # no window yet
    recorder.open_window(Window(2 * S, 4 * S))
    for start_ns in (2 * S - 1, 2 * S, 4 * S - 1, 4 * S):
        recorder.censor("request", start_ns)
    assert recorder.censored == {"load": 0, "request": 2}
    endless = Recorder()
    endless.open_window(Window(2 * S, None))
    endless.censor("load", 9 * S)
    assert endless.censored == {"load": 1, "request": 0}


def expected(events: Sequence[tuple[int, str, int]], begin_ns: int, end_ns: int) -> dict[str, int]:
    found = dict.fromkeys(LEDGER_COLUMNS, 0)
    for at_ns, name, value in events:
        if begin_ns <= at_ns < end_ns:
            found[name] += value
    return found


# -- the ledger ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.data())
def test_sums_are_those_of_the_events_in_the_range(
    events: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    ledger = ledger_of(events)
    last = ledger.end_ns // ledger.slice_ns
    begin, end = sorted(data.draw(st.tuples(st.integers(0, last), st.integers(0, last))))
    begin_ns, end_ns = begin * ledger.slice_ns, end * ledger.slice_ns
    assert ledger.sums(begin_ns, end_ns) == expected(events, begin_ns, end_ns)
    assert ledger.sums(0, ledger.end_ns) == expected(events, 0, ledger.end_ns)
    assert all(at_ns < ledger.end_ns for at_ns, _, _ in events)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.data())
def test_sums_over_adjacent_ranges_add_up(
    events: list[tuple[int, str, int]], data: st.DataObject
) -> None:
    ledger = ledger_of(events)
    slices = st.integers(0, ledger.end_ns // ledger.slice_ns)
    a, b, c = sorted(n * ledger.slice_ns for n in data.draw(st.tuples(slices, slices, slices)))
    left, right, both = ledger.sums(a, b), ledger.sums(b, c), ledger.sums(a, c)
    assert both == {name: left[name] + right[name] for name in LEDGER_COLUMNS}


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 6))
def test_wider_slices_hold_the_same_sums(
    events: list[tuple[int, str, int]], doublings: int
) -> None:
    ledger = ledger_of(events)
    slice_ns = ledger.slice_ns << doublings
    ledger.coarsen(slice_ns)
    assert ledger.slice_ns == slice_ns
    assert ledger.sums(0, ledger.end_ns) == expected(events, 0, 40 * HOURS_NS)
    for end_ns in (slice_ns, 3 * slice_ns):
        assert ledger.sums(0, end_ns) == expected(events, 0, end_ns)


def test_coarsening_pads_an_odd_number_of_slices() -> None:
    ledger = ledger_of([(1500 * SLICE_NS, "requests", 3)])
    while len(ledger._sums) % 2 == 0 and len(ledger._sums) > 1:
        ledger.coarsen(2 * ledger.slice_ns)
    ledger.coarsen(2 * ledger.slice_ns)
    assert ledger.sums(0, ledger.end_ns)["requests"] == 3


def test_coarsening_to_narrower_slices_changes_nothing() -> None:
    ledger = ledger_of([(0, "requests", 1)])
    ledger.coarsen(SLICE_NS // 2)
    assert ledger.slice_ns == SLICE_NS


def test_what_comes_before_the_origin_is_not_booked() -> None:
    ledger = Ledger(ORIGIN_NS)
    times = np.array([ORIGIN_NS - 1, ORIGIN_NS], dtype=np.int64)
    ledger.add(times, {"requests": np.array([10, 1], dtype=np.int64)})
    ledger.add(times[:1], {"requests": np.array([100], dtype=np.int64)})
    assert ledger.sums(0, ledger.end_ns)["requests"] == 1


def test_values_in_one_slice_are_added() -> None:
    ledger = Ledger(0)
    ledger.add(np.full(1000, 5, dtype=np.int64), {"requests": np.ones(1000, dtype=np.int64)})
    assert ledger.sums(0, SLICE_NS)["requests"] == 1000


def test_a_day_takes_a_bounded_number_of_slices() -> None:
    ledger = Ledger(0)
    for hour in range(25):
        ledger.add(
            np.array([hour * HOURS_NS], dtype=np.int64),
            {"read_bytes": np.array([1 << 50], dtype=np.int64)},
        )
    assert len(ledger._sums) <= 1 << 16
    assert ledger.slice_ns == SLICE_NS * 256
    assert ledger.sums(0, ledger.end_ns)["read_bytes"] == 25 << 50


# -- rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 3 * 4096, 10_000])
def test_every_row_is_booked_once_however_many_there_are(rows: int) -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    for row in range(rows):
        recorder.log.add(READ, row, row, row + 1000, 1, 1)
        if row % 1000 == 0:
            recorder.absorb(row)
    assert recorder.log.rows == (rows - 1) % 1000 if rows else not recorder.log.rows
    recorder.finish()
    assert recorder.log.rows == 0
    assert recorder.histograms["read"].count == recorder.histograms["queue"].count == rows
    assert recorder.histograms["read"].sum_ns == 1000 * rows
    assert recorder.ledger.sums(0, recorder.ledger.end_ns)["read_bytes"] == rows
    assert moved(recorder) == ({"read": rows, "device": rows} if rows else {})


def test_a_full_buffer_is_not_written_again() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    log = recorder.log
    rows = 3 * 4096 + 5
    for row in range(rows):
        log.add(LOAD, 0, 0, row, 0, 0)
    recorder.finish()
    assert extremes(recorder.histograms["load"]) == (rows, 0, rows - 1, rows * (rows - 1) // 2)


def test_finishing_twice_books_once() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    recorder.log.add(LOAD, 0, 0, 5, 0, 0)
    recorder.finish()
    recorder.finish()
    assert recorder.histograms["load"].count == 1


def moved(recorder: Recorder) -> dict[str, int]:
    """Sections with bytes, and how many."""
    return {name: size for name, size in recorder.section_bytes.items() if size}


def booked(*rows: tuple[int, int, int, int, int, int], end_ns: int | None = 20 * S) -> Recorder:
    """What a recorder makes of these rows in a window from 10 s to 20 s."""
    recorder = Recorder()
    log = recorder.log
    recorder.open_window(Window(10 * S, end_ns))
    for row in rows:
        log.add(*row)
    recorder.finish()
    return recorder


# (start, end, in the histograms, in the bytes of the window)
PLACES = [
    pytest.param(9 * S, 10 * S - 1, False, False, id="before"),
    pytest.param(9 * S, 10 * S, False, True, id="begun in the ramp"),
    pytest.param(10 * S - 1, 21 * S, False, False, id="as long as the window"),
    pytest.param(10 * S, 11 * S, True, True, id="begun with the window"),
    pytest.param(20 * S - 1, 20 * S - 1, True, True, id="the last ns"),
    pytest.param(19 * S, 20 * S, True, False, id="ended with the window"),
    pytest.param(20 * S, 20 * S, False, False, id="after"),
]


@pytest.mark.parametrize(("start_ns", "end_ns", "latency", "amount"), PLACES)
@pytest.mark.parametrize(
    ("kind", "sections", "columns"),
    [
        (READ, ("read", "queue", "device"), {"read_bytes": 100, "operations": 1}),
        (WRITE, ("write", "queue", "device"), {"write_bytes": 100, "operations": 1}),
        (REQUEST, ("request",), {"requests": 1, "prompt_tokens": 100, "output_tokens": 1}),
        (LOAD, ("load",), {}),
        (DEMOTE, ("demote", "queue", "device"), {"demote_bytes": 100, "operations": 1}),
        *((row, (section,), {}) for section, row in MEMORY_ROWS.items()),
        (TRANSFER, ("device",), {}),
        (SCHEDULING_LAG, ("scheduling_lag",), {}),
    ],
)
def test_latency_goes_by_the_start_and_amounts_by_the_end(
    kind: int,
    sections: tuple[str, ...],
    columns: dict[str, int],
    start_ns: int,
    end_ns: int,
    *,
    latency: bool,
    amount: bool,
) -> None:
    recorder = booked((kind, start_ns, start_ns, end_ns, 100, 1))
    counts = {name: recorder.histograms[name].count for name in SECTIONS}
    assert counts == {name: int(latency and name in sections) for name in SECTIONS}
    sums = recorder.ledger.sums(0, 10 * S)
    assert sums == {name: columns.get(name, 0) * amount for name in LEDGER_COLUMNS}
    counted = set(sections) - {"queue", "request", "load", "scheduling_lag"}
    assert moved(recorder) == dict.fromkeys(counted if latency else (), 100)


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "inside_ns"),
    [
        (8 * S, 9 * S, 0),
        (8 * S, 11 * S, 1 * S),
        (12 * S, 15 * S, 3 * S),
        (19 * S, 50 * S, 1 * S),  # it stalls at the end
        (8 * S, 50 * S, 10 * S),
        (21 * S, 50 * S, 0),
    ],
)
def test_a_transfer_is_in_flight_as_long_as_it_is_in_the_window(
    start_ns: int, end_ns: int, inside_ns: int
) -> None:
    alone = [(kind, 0, start_ns, end_ns, 1, 1) for kind in (READ, WRITE, DEMOTE)]
    for row in (*alone, (TRANSFER, 0, start_ns, end_ns, 1, 0)):
        assert booked(row).in_flight_ns == inside_ns
        assert booked(row, end_ns=None).in_flight_ns == max(0, end_ns - max(start_ns, 10 * S))
    several = (WRITE, 0, start_ns, end_ns, 2, 2)  # its transfers have rows of their own
    assert booked(several).in_flight_ns == 0
    for kind in MEMORY_ROWS.values():
        assert booked((kind, 0, start_ns, end_ns, 1, 1)).in_flight_ns == 0


@pytest.mark.parametrize(
    ("at_ns", "counts"), [(10 * S - 1, False), (10 * S, True), (20 * S - 1, True), (20 * S, False)]
)
def test_hits_go_by_the_arrival(at_ns: int, *, counts: bool) -> None:
    recorder = booked((ADMIT, 7, at_ns, 5, 70, 50))
    sums = recorder.ledger.sums(0, recorder.ledger.end_ns)
    wanted = {"prompt_blocks": 7, "hit_blocks": 5, "arrived_tokens": 70, "hit_tokens": 50}
    assert sums == {name: wanted.get(name, 0) * counts for name in LEDGER_COLUMNS}


@pytest.mark.parametrize(
    ("at_ns", "counts"), [(10 * S - 1, False), (10 * S, True), (20 * S - 1, True), (20 * S, False)]
)
def test_hits_of_each_tier_go_by_the_arrival_as_well(at_ns: int, *, counts: bool) -> None:
    recorder = booked((TIER_HITS, 2, at_ns, at_ns, 3, 5))
    sums = recorder.ledger.sums(0, recorder.ledger.end_ns)
    wanted = {"gpu_hit_blocks": 2, "cpu_hit_blocks": 3, "storage_hit_blocks": 5}
    assert sums == {name: wanted.get(name, 0) * counts for name in LEDGER_COLUMNS}


def test_samples_of_the_queue_are_booked_when_they_were_taken() -> None:
    rows = [(WAITING, count, at, at, 0, 0) for count, at in ((9, 9 * S), (4, 10 * S), (7, 15 * S))]
    ledger = booked(*rows).ledger
    halves = [ledger.sums(0, 5 * S), ledger.sums(5 * S, 10 * S)]
    assert [(half["waiting"], half["samples"]) for half in halves] == [(4, 1), (7, 1)]


def test_a_window_without_an_end_takes_everything_after_its_begin() -> None:
    recorder = booked(
        (READ, 0, 10 * S - 1, 11 * S, 1, 1), (READ, 0, 99 * S, 100 * S, 1, 1), end_ns=None
    )
    assert recorder.histograms["read"].count == 1


def test_an_object_of_many_transfers_is_one_operation_and_its_transfers() -> None:
    recorder = booked(
        (TRANSFER, 0, 11 * S, 12 * S, 60, 0),
        (TRANSFER, 0, 11 * S, 14 * S, 40, 0),
        (READ, 10 * S, 11 * S, 14 * S, 100, 2),
    )
    assert extremes(recorder.histograms["device"]) == (2, S, 3 * S, 4 * S)
    assert extremes(recorder.histograms["read"]) == (1, 3 * S, 3 * S, 3 * S)
    assert extremes(recorder.histograms["queue"]) == (1, S, S, S)
    assert moved(recorder) == {"read": 100, "device": 100}


def test_rows_from_before_the_window_was_opened_are_not_measured() -> None:
    recorder = Recorder()
    log = recorder.log
    for _ in range(5000):
        log.add(READ, 0, S, 2 * S, 1, 1)
    recorder.absorb(0)
    recorder.open_window(Window(10 * S, None))
    log.add(READ, 0, 10 * S, 11 * S, 1, 1)
    recorder.finish()
    assert recorder.histograms["read"].count == 1
    assert recorder.ledger.sums(0, recorder.ledger.end_ns)["read_bytes"] == 1


def test_a_clock_that_runs_backwards_is_an_error() -> None:
    with pytest.raises(ResultError, match="must not be negative"):
        booked((READ, 11 * S, 12 * S, 12 * S - 1, 1, 1))


# -- the last second, out of buffers that are not full ---------------------------------------


def recent_of(recorder: Recorder) -> tuple[int, int, int]:
    """Operations, bytes read and written since this was asked last."""
    found = recorder.take_recent(0)
    assert found is not None
    return found["operations"], found["read_bytes"], found["write_bytes"]


def test_before_the_window_nothing_is_recent() -> None:
    recorder = Recorder()
    recorder.log.add(READ, 0, 1, 2, 100, 1)
    assert recorder.take_recent(0) is None


def test_what_the_population_did_is_not_recent() -> None:
    recorder = Recorder()
    log = recorder.log
    log.add(WRITE, 0, 1, 2, 100, 1)
    recorder.open_window(Window(S, None))
    assert recent_of(recorder) == (0, 0, 0)
    log.add(WRITE, 0, S, S + 1, 10, 1)
    recorder.absorb(S)
    assert recent_of(recorder) == (1, 0, 10)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5_000), st.booleans()), max_size=8))
def test_every_row_is_recent_once_when_it_is_booked(steps: list[tuple[int, bool]]) -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    written = seen = 0
    for count, absorbs in steps:
        for _ in range(count):
            recorder.log.add(READ, 0, S, S + 1000, 1, 1)
        written += count
        if absorbs:
            recorder.absorb(S)
        seen += recent_of(recorder)[0]
        assert not absorbs or seen == written
    recorder.absorb(S)
    assert seen + recent_of(recorder)[0] == written


def test_what_is_recent_counts_until_it_was_booked() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))
    recorder.absorb(7 * S)
    for now_ns, reported_ns in ((7 * S + 1, 7 * S), (70 * S, 70 * S - S // 2)):
        found = recorder.take_recent(now_ns)
        assert found is not None
        assert found["t_ns"] == reported_ns


@pytest.mark.thorough
def test_what_is_booked_while_another_thread_asks_is_recent_once() -> None:
    recorder = Recorder()
    recorder.open_window(Window(0, None))

    def write() -> None:
        for row in range(90_000):
            recorder.log.add(READ, 0, S, S + 1000, 7, 1)
            if row % 100 == 0:
                recorder.absorb(S)
        recorder.absorb(S)

    thread = threading.Thread(target=write)
    thread.start()
    seen = read_bytes = 0
    while thread.is_alive():
        operations, moved, _ = recent_of(recorder)
        seen, read_bytes = seen + operations, read_bytes + moved
        assert moved == 7 * operations
    operations, moved, _ = recent_of(recorder)
    assert (seen + operations, read_bytes + moved) == (90_000, 7 * 90_000)


def test_how_late_stamps_can_have_been_is_booked_in_the_window() -> None:
    recorder = Recorder()
    lags_ns = [5]
    recorder.note_lags(lags_ns)  # no window yet
    assert (recorder.reap_lag.count, lags_ns) == (0, [])
    recorder.open_window(Window(0, None))
    lags_ns += [1_000, 3_000]
    recorder.note_lags(lags_ns)
    assert lags_ns == []
    assert extremes(recorder.reap_lag) == (2, 1_000, 3_000, 4_000)


def test_other_rows_than_those_of_objects_are_not_recent() -> None:
    recorder = Recorder()
    log = recorder.log
    recorder.open_window(Window(0, None))
    for kind in (TRANSFER, LOAD, REQUEST, ADMIT):
        log.add(kind, 0, S, S + 1, 100, 1)
    recorder.absorb(S)
    assert recent_of(recorder) == (0, 0, 0)


# -- the series ------------------------------------------------------------------------------


def test_the_series_and_the_ledger_hold_the_same_bytes_of_whole_seconds() -> None:
    recorder = Recorder()
    log = recorder.log
    recorder.open_window(Window(2 * S, 5 * S))
    for done_ns in range(S, 7 * S, S // 10):
        log.add(READ, 0, done_ns - S // 2, done_ns, 100, 1)
        log.add(WRITE, 0, done_ns - S // 2, done_ns, 7, 1)
        log.add(DEMOTE, 0, done_ns - S // 2, done_ns, 9, 1)
        log.add(TRANSFER, 0, done_ns - S // 2, done_ns, 100, 1)
    recorder.finish()
    series = series_of(3 * S, [recorder.series])
    sums = recorder.ledger.sums(0, 3 * S)
    assert series.moved_bytes.sum(axis=0).tolist() == [
        sums[f"{kind}_bytes"] for kind in ("read", "write", "demote")
    ]
    assert series.operations.tolist() == [[10, 10, 10]] * 3
