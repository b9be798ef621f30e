from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.series import (
    BIN_COUNT,
    BINS,
    KINDS,
    MAX_POINTS,
    MIN_OPERATIONS,
    CommonRange,
    TimeSeries,
    TimeSeriesLedger,
    UsedRange,
    coarse_index,
    empty_dense,
    p99_ms,
)
from tests.factories import S, series_of

if TYPE_CHECKING:
    from collections.abc import Sequence

BEGIN_NS = 7 * S
DAY_S = 86_400

Event = tuple[str, int, int, int]  # kind, done after the window's begin in ns, service ns, bytes
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.one_of(st.integers(-S, 12 * S), st.integers(0, 2 * DAY_S * S)),
        st.integers(0, 2 * 10**12),
        st.integers(1, 1 << 40),
    ),
    max_size=30,
)
SOON = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(-S, 12 * S),
        st.integers(0, 2 * 10**12),
        st.integers(1, 1 << 40),
    ),
    max_size=30,
)


def ns(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def ledger_of(events: Sequence[Event], end_ns: int | None = None) -> TimeSeriesLedger:
    """Booked kind by kind, several at once, as out of a buffer."""
    ledger = TimeSeriesLedger(BEGIN_NS, end_ns)
    for kind in KINDS:
        mine = [event for event in events if event[0] == kind]
        ledger.add(
            kind,
            ns(*(BEGIN_NS + done for _, done, _, _ in mine)),
            coarse_index(ns(*(service for _, _, service, _ in mine))),
            ns(*(moved for _, _, _, moved in mine)),
        )
    return ledger


def totals(
    events: Sequence[Event], kind: str, interval_s: int, points: int
) -> list[tuple[int, int]]:
    """(operations, bytes) per interval, the slow way."""
    found = [(0, 0)] * points
    for of_kind, done_ns, _, moved in events:
        point = done_ns // (interval_s * S)
        if of_kind == kind and 0 <= point < points:
            found[point] = (found[point][0] + 1, found[point][1] + moved)
    return found


def reported(series: TimeSeries, kind: str) -> list[tuple[int, int]]:
    data = series.to_json()
    return list(zip(data[f"{kind}s"], data[f"{kind}_bytes"], strict=True))


# --- the bins -------------------------------------------------------------------------------


@given(st.integers(100, 10**12))
def test_the_middle_of_a_bin_is_within_a_sixteenth_of_its_values(value_ns: int) -> None:
    (index,) = coarse_index(ns(value_ns))
    assert 0 <= index < BIN_COUNT
    assert BINS.mid_ns(int(index)) == pytest.approx(value_ns, rel=1 / 16)


def test_values_beyond_the_ends_are_in_the_outer_bins() -> None:
    assert coarse_index(ns(0, 99, 10**12, 2**62)).tolist() == [0, 0, BIN_COUNT - 1, BIN_COUNT - 1]


@given(st.integers(0, 2 * 10**12), st.integers(0, 2 * 10**12))
def test_a_longer_time_is_never_in_a_lower_bin(left_ns: int, right_ns: int) -> None:
    low, high = coarse_index(ns(*sorted((left_ns, right_ns))))
    assert low <= high


@pytest.mark.thorough
@settings(max_examples=50)
@given(st.lists(st.integers(1_000, 10**9), min_size=MIN_OPERATIONS, max_size=300))
def test_the_p99_is_the_nearest_rank_within_a_sixteenth(values_ns: list[int]) -> None:
    counts = np.bincount(coarse_index(ns(*values_ns)), minlength=BIN_COUNT)
    exact_ns = sorted(values_ns)[math.ceil(99 * len(values_ns) / 100) - 1]
    assert p99_ms(counts) == pytest.approx(exact_ns / 1e6, rel=1 / 16)


def test_a_p99_needs_an_operation_beyond_it() -> None:
    counts = np.zeros(BIN_COUNT, dtype=np.int64)
    counts[50] = MIN_OPERATIONS - 1
    assert p99_ms(counts) is None
    counts[200] = 1
    assert p99_ms(counts) == BINS.mid_ns(50) / 1e6


# --- a rank's ledger ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SOON, st.integers(0, 15))
def test_an_operation_belongs_to_the_second_in_which_it_was_done(
    events: list[Event], window_s: int
) -> None:
    series = series_of(window_s * S, [ledger_of(events)])
    assert series.points == window_s
    for kind in KINDS:
        assert reported(series, kind) == totals(events, kind, 1, window_s)


def test_what_is_done_after_the_window_is_not_booked() -> None:
    late = [("read", 3 * S, 1_000, 5), ("read", 3 * S - 1, 1_000, 7)]
    series = series_of(4 * S, [ledger_of(late, end_ns=BEGIN_NS + 3 * S)])
    assert reported(series, "read") == [(0, 0), (0, 0), (1, 7), (0, 0)]


def test_the_last_part_of_an_interval_is_left_out() -> None:
    series = series_of(2 * S + S // 2, [ledger_of([("write", 2 * S + 1, 1_000, 5)])])
    assert reported(series, "write") == [(0, 0), (0, 0)]


def test_a_stall_is_no_operation_and_no_percentile() -> None:
    busy = [("read", second * S, 50_000, 10) for second in (0, 2) for _ in range(MIN_OPERATIONS)]
    data = series_of(3 * S, [ledger_of(busy)]).to_json()
    assert data["reads"] == [MIN_OPERATIONS, 0, MIN_OPERATIONS]
    assert data["read_bytes"] == [1_000, 0, 1_000]
    assert [value is None for value in data["read_p99_ms"]] == [False, True, False]


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 5))
def test_wider_intervals_hold_the_same_sums(events: list[Event], doublings: int) -> None:
    ledger = ledger_of(events)
    ledger.coarsen(ledger.interval_ns << doublings)
    interval_s = ledger.interval_ns // S
    series = series_of(MAX_POINTS * ledger.interval_ns, [ledger])
    for kind in KINDS:
        assert reported(series, kind) == totals(events, kind, interval_s, MAX_POINTS)
    inside = [event for event in events if event[1] >= 0]
    assert int(series.counts.sum()) == len(inside)
    assert int(series.moved_bytes.sum()) == sum(event[3] for event in inside)


def test_two_days_take_a_bounded_number_of_intervals() -> None:
    ledger = ledger_of([("read", 2 * DAY_S * S, 1_000, 1)])
    assert ledger.interval_ns == 256 * S
    assert series_of(2 * DAY_S * S, [ledger]).points == 2 * DAY_S // 256 <= MAX_POINTS


def test_a_window_of_as_many_seconds_as_there_are_points_is_not_coarsened() -> None:
    last = [("read", MAX_POINTS * S - 1, 1_000, 1)]
    assert series_of(MAX_POINTS * S, [ledger_of(last)]).interval_ns == S


# --- ranks ----------------------------------------------------------------------------------


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=4), st.integers(0, 2 * DAY_S * S))
def test_the_sum_of_ranks_is_the_series_of_all_their_operations(
    ranks: list[list[Event]], window_ns: int
) -> None:
    merged = series_of(window_ns, [ledger_of(events) for events in ranks])
    union = series_of(window_ns, [ledger_of([e for events in ranks for e in events])])
    assert merged.to_json() == union.to_json()


def test_a_long_silence_still_makes_the_intervals_wider() -> None:
    series = series_of(5_000 * S, [ledger_of([("read", 0, 1_000, 1)])])
    assert (series.interval_ns, series.points) == (8 * S, 625)


def test_a_rank_without_operations_has_nothing_to_add() -> None:
    idle, busy = TimeSeriesLedger(BEGIN_NS, None), ledger_of([("read", 0, 1_000, 9)])
    assert series_of(2 * S, [idle, busy]).to_json() == series_of(2 * S, [busy]).to_json()
    alone = series_of(2 * S, [idle])
    assert reported(alone, "read") == [(0, 0), (0, 0)]


def test_what_a_rank_sends_is_bounded_and_trimmed_to_what_is_used() -> None:
    used = UsedRange(interval_ns=S, kinds=2, first_bin=100, end_bin=110)
    nothing = UsedRange(interval_ns=S, kinds=0, first_bin=BIN_COUNT, end_bin=0)
    common = CommonRange.of(60 * S, [used, nothing])
    assert empty_dense(common).shape == (60, 2, 11)
    widest = UsedRange(interval_ns=S, kinds=2, first_bin=0, end_bin=BIN_COUNT)
    assert empty_dense(CommonRange.of(10**6 * S, [widest])).nbytes < 4.5e6


def test_demotions_are_sent_where_there_are_some() -> None:
    reads, demotions = (
        ledger_of([(kind, S // 2, 9_000, 5)]).used_range() for kind in ("read", "demote")
    )
    assert (reads.kinds, demotions.kinds) == (1, 3)
    series = series_of(2 * S, [ledger_of([("read", 0, 1_000, 7)]),
                               ledger_of([("demote", S, 9_000, 5)])])  # fmt: skip
    assert (series.moved("read"), series.moved("write"), series.moved("demote")) == (
        [7, 0], [0, 0], [0, 5],
    )  # fmt: skip
    assert series.done("demote") == [0, 1]


# --- the run file ---------------------------------------------------------------------------


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 3_000))
def test_a_series_survives_json(events: list[Event], window_s: int) -> None:
    data = series_of(window_s * S, [ledger_of(events)]).to_json()
    again = TimeSeries.from_json(json.loads(json.dumps(data)))
    assert again.to_json() == data


EMPTY: dict[str, str] = dict.fromkeys(KINDS, "")


def sound() -> dict[str, Any]:
    events: list[Event] = [("read", n * S // 100, 50_000 + n, 10) for n in range(300)]
    return series_of(3 * S, [ledger_of([*events, ("write", S, 9_000, 5)])]).to_json()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"reads": [100, 100]}, "equally many"),
        ({"reads": [100, 100, 101]}, "reads are not those of its histograms"),
        ({"writes": [0, 0, 1]}, "writes are not those of its histograms"),
        ({"write_bytes": [0, 0, 5]}, "operations without bytes, or bytes without operations"),
        ({"read_bytes": [-1, 1, 1]}, "read_bytes must be at least 0"),
        ({"read_bytes": [1, 1, 2**63]}, "read_bytes must be at least 0 and below"),
        ({"read_bytes": [1, 1, 1.5]}, "read_bytes must be a list of whole numbers"),
        ({"read_bytes": None}, "read_bytes must be a list"),
        ({"interval_s": 3}, "they must be 1 s, 2 s, 4 s"),
        ({"interval_s": 0}, "they must be 1 s, 2 s, 4 s"),
        ({"interval_s": 1.0}, "it must be a whole number"),
        ({"histograms": None}, "histograms must be scheme, read, write, demote"),
        ({"histograms": {"scheme": "loglinear-3/1", "read": "", "write": ""}}, "must be scheme"),
        ({"histograms": EMPTY | {"scheme": "loglinear-9/1"}}, "this version"),
        ({"histograms": EMPTY | {"scheme": "loglinear-3/1"}}, "cut short"),
        ({"more": 1}, "must be an object of"),
    ],
)
def test_a_damaged_series_is_refused(changes: dict[str, Any], fault: str) -> None:
    assert TimeSeries.from_json(sound()).points == 3
    with pytest.raises(ResultError, match=re.escape(fault)):
        TimeSeries.from_json(sound() | changes)


def test_counts_whose_sum_would_overflow_are_refused() -> None:
    counts = np.zeros((1, 2, BIN_COUNT), dtype=np.int64)
    counts[0, 0, :4] = 1 << 62
    with pytest.raises(ResultError, match="counts below"):
        TimeSeries(interval_ns=S, moved_bytes=np.ones((1, 2), dtype=np.int64), counts=counts)


def test_an_hour_is_small_in_the_run_file() -> None:
    generator = np.random.default_rng(7)
    ledger = TimeSeriesLedger(0, 1_000 * S)
    done_ns = generator.integers(0, 1_000 * S, 1_000_000)
    service_ns = generator.lognormal(15, 1, done_ns.size).astype(np.int64)
    ledger.add("read", done_ns, coarse_index(service_ns), np.full(done_ns.size, 4096))
    assert len(json.dumps(series_of(1_000 * S, [ledger]).to_json())) < 250_000


# --- docs/histogram.md ----------------------------------------------------------------------


def test_the_recipe_of_the_documentation_decodes_a_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "histogram.md"
    recipe = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)[2]
    assert len(recipe.strip().splitlines()) <= 10
    data = sound()
    run = {"cases": [{"trials": [{"series": data}]}]}
    (tmp_path / "run.json").write_text(json.dumps(run), "utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(recipe, names)
    seconds = names["seconds"]
    assert [sum(count for _, _, count in bins) for bins in seconds] == data["reads"]
    (only,) = {(low, high) for bins in seconds for low, high, _ in bins}
    assert only[0] <= 50_000 < only[1]
    assert (only[0] + only[1]) / 2e6 == data["read_p99_ms"][0]
