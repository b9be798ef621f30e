from __future__ import annotations

import base64
import json
import math
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.measure.histogram import (
    BIN_COUNT,
    BINS,
    HIGHEST_NS,
    LOWEST_NS,
    Histogram,
)

if TYPE_CHECKING:
    import numpy.typing as npt

IN_RANGE = st.one_of(
    st.integers(100, 1_000),
    st.integers(100, 10**6),
    st.integers(100, 10**9),
    st.integers(100, 10**12),
)
ANY_VALUE = st.one_of(IN_RANGE, st.integers(0, 100), st.integers(0, 2**63 - 1))
PERCENTS = st.sampled_from([0, 0.1, 1, 5, 7, 25, 29, 50, 90, 95, 99, 99.9, 99.99, 100])
ALL_BINS = np.arange(BIN_COUNT)


def ns(values: list[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.record(ns(values))
    return histogram


def nearest_rank(values: list[int], percent: float) -> int:
    """The definition, in exact decimal arithmetic."""
    rank = math.ceil(Fraction(str(percent)) * len(values) / 100)
    return sorted(values)[max(rank, 1) - 1]


# -- bins --


def test_bins_number_about_seventeen_thousand() -> None:
    assert BIN_COUNT == 17_028


def test_the_range_is_covered_from_its_first_to_its_last_nanosecond() -> None:
    assert BINS.index(ns([LOWEST_NS, HIGHEST_NS])).tolist() == [0, BIN_COUNT - 1]
    assert BINS.low_ns(ns([0])).tolist() == [100.0]
    assert BINS.low_ns(ns([BIN_COUNT - 1]))[0] <= HIGHEST_NS < BINS.low_ns(ns([BIN_COUNT]))[0]


def test_every_bin_begins_at_its_lower_edge_and_ends_at_the_next_one() -> None:
    first = np.ceil(BINS.low_ns(ALL_BINS)).astype(np.int64)
    last = np.ceil(BINS.low_ns(ALL_BINS + 1)).astype(np.int64) - 1
    holds = first <= last  # below 512 ns a bin is narrower than 1 ns: some hold no integer
    assert holds.sum() > 0.9 * BIN_COUNT
    assert BINS.index(first[holds & (first <= HIGHEST_NS)]).tolist() == [
        *ALL_BINS[holds & (first <= HIGHEST_NS)]
    ]
    inside = holds & (last <= HIGHEST_NS)
    assert BINS.index(last[inside]).tolist() == [*ALL_BINS[inside]]


def test_the_middle_of_every_bin_is_within_a_thousandth_of_both_its_edges() -> None:
    low, high = BINS.low_ns(ALL_BINS), BINS.low_ns(ALL_BINS + 1)
    middle = np.array([BINS.mid_ns(index) for index in range(BIN_COUNT)])
    assert np.all(middle - low <= 0.001 * low)
    assert np.all(high - middle <= 0.001 * low)
    assert np.all(low < middle)
    assert np.all(middle < high)


@given(st.lists(ANY_VALUE, min_size=1))
def test_a_larger_value_never_has_a_smaller_bin(values: list[int]) -> None:
    index = BINS.index(ns(sorted(values)))
    assert np.all(np.diff(index) >= 0)
    assert index[0] >= 0
    assert index[-1] < BIN_COUNT


def test_bin_index_keeps_the_shape_and_takes_strided_input() -> None:
    values = np.arange(1_000, 13_000, 1_000).reshape(3, 4)
    assert BINS.index(values[:, ::2]).shape == (3, 2)
    assert BINS.index(values[:, ::2]).tolist() == BINS.index(values)[:, ::2].tolist()


# -- recording --


@given(st.lists(ANY_VALUE, max_size=200))
def test_count_sum_and_extremes_are_exact(values: list[int]) -> None:
    histogram = histogram_of(values)
    assert histogram.count == len(values)
    assert histogram.sum_ns == sum(values)
    assert histogram.min_ns == (min(values) if values else None)
    assert histogram.max_ns == (max(values) if values else None)
    assert histogram.mean_ns() == (sum(values) / len(values) if values else None)


def test_an_empty_histogram_has_no_figures_rather_than_zeros() -> None:
    empty = Histogram()
    assert (empty.count, empty.sum_ns) == (0, 0)
    assert empty.min_ns is empty.max_ns is empty.mean_ns() is empty.percentile_ns(99) is None
    assert empty.samples_beyond(99) == 0


def test_a_negative_latency_is_refused_and_nothing_is_recorded() -> None:
    histogram = histogram_of([500])
    with pytest.raises(ResultError, match="-3 ns; it must not be negative"):
        histogram.record(ns([700, -3, 900]))
    assert histogram.to_json() == histogram_of([500]).to_json()


def test_float_latencies_are_refused_instead_of_truncated() -> None:
    with pytest.raises(ResultError, match="float64; they must be integer ns"):
        Histogram().record(np.array([1.5]))


@given(st.lists(ANY_VALUE, max_size=100), st.lists(ANY_VALUE, max_size=100))
def test_added_counts_are_the_histogram_of_the_union(left: list[int], right: list[int]) -> None:
    one, other = histogram_of(left), histogram_of(right)
    added = Histogram.added(one.counts + other.counts, [one.extremes, other.extremes])
    assert added.to_json() == histogram_of(left + right).to_json()


def test_counts_can_not_be_changed_from_outside() -> None:
    with pytest.raises(ValueError, match="read-only"):
        histogram_of([500]).counts[0] = 1


# -- percentiles --


@given(st.lists(IN_RANGE, min_size=1, max_size=300), st.integers(0, 64))
def test_a_percentile_is_within_a_thousandth_of_numpys(values: list[int], step: int) -> None:
    percent = step * 1.5625  # sixty-fourths: numpy's own float arithmetic is exact for them
    expected = float(np.percentile(ns(values), percent, method="inverted_cdf"))
    measured = histogram_of(values).percentile_ns(percent)
    assert measured == pytest.approx(expected, rel=0.001)


@given(st.lists(IN_RANGE, min_size=1, max_size=300), PERCENTS)
def test_a_percentile_is_the_nearest_rank(values: list[int], percent: float) -> None:
    measured = histogram_of(values).percentile_ns(percent)
    assert measured == pytest.approx(nearest_rank(values, percent), rel=0.001)


@given(st.lists(IN_RANGE, min_size=1, max_size=300), PERCENTS, st.integers(0, 300))
def test_censored_values_are_longer_than_all_others(
    values: list[int], percent: float, censored: int
) -> None:
    endless = HIGHEST_NS * 10
    every = [*values, *[endless] * censored]
    measured = histogram_of(values).percentile_ns(percent, censored=censored)
    expected = nearest_rank(every, percent)
    assert measured == (None if expected == endless else pytest.approx(expected, rel=0.001))
    beyond = histogram_of(values).samples_beyond(percent, censored=censored)
    assert beyond == histogram_of(every).samples_beyond(percent)


@pytest.mark.parametrize(
    ("percent", "count", "rank"),
    [
        (99.9, 1_000, 999),
        (99.9, 1_001, 1_000),
        (7, 100, 7),
        (29, 100, 29),
        (0, 5, 1),
        (100, 5, 5),
    ],
)
def test_a_whole_rank_is_not_moved_by_the_percents_binary_form(
    percent: float, count: int, rank: int
) -> None:
    histogram = histogram_of([1_000 * (i + 1) for i in range(count)])
    assert histogram.samples_beyond(percent) == count - rank
    assert histogram.percentile_ns(percent) == pytest.approx(1_000 * rank, rel=0.001)


@given(st.lists(ANY_VALUE, min_size=1, max_size=50), PERCENTS)
def test_a_percentile_lies_between_the_exact_extremes(values: list[int], percent: float) -> None:
    measured = histogram_of(values).percentile_ns(percent)
    assert measured is not None
    # As floats: beyond 2**53 ns, 104 days, not every integer has one of its own.
    assert float(min(values)) <= measured <= float(max(values))


@given(st.lists(ANY_VALUE, min_size=1, max_size=50))
def test_percentiles_rise(values: list[int]) -> None:
    histogram = histogram_of(values)
    measured = [histogram.percentile_ns(q) or 0.0 for q in (0, 1, 50, 95, 99, 99.9, 100)]
    assert measured == sorted(measured)


@given(st.lists(ANY_VALUE, min_size=1, max_size=50), PERCENTS)
def test_outside_the_range_a_percentile_never_looks_faster(
    values: list[int], percent: float
) -> None:
    measured = histogram_of(values).percentile_ns(percent)
    assert measured is not None
    assert measured >= 0.999 * nearest_rank(values, percent)


def test_a_percentile_beyond_1000_s_is_the_maximum() -> None:
    histogram = histogram_of([500, 2 * HIGHEST_NS, 3 * HIGHEST_NS, 5 * HIGHEST_NS])
    assert histogram.percentile_ns(25) == pytest.approx(500, rel=0.001)
    assert histogram.percentile_ns(50) == histogram.percentile_ns(99) == 5 * HIGHEST_NS


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan, math.inf])
def test_a_percentile_outside_0_to_100_is_refused_even_when_empty(percent: float) -> None:
    with pytest.raises(OptionError, match="must be between 0 and 100"):
        Histogram().percentile_ns(percent)
    with pytest.raises(OptionError, match="must be between 0 and 100"):
        histogram_of([500]).samples_beyond(percent)


# -- dense counts --


@pytest.mark.thorough
@given(st.lists(ANY_VALUE, max_size=100))
def test_from_counts_restores_the_histogram(values: list[int]) -> None:
    reported = histogram_of(values)
    restored = Histogram.from_counts(
        reported.counts, reported.sum_ns, reported.min_ns, reported.max_ns
    )
    assert restored.to_json() == reported.to_json()
    restored.record(ns([500]))  # it owns its counts
    assert reported.to_json() == histogram_of(values).to_json()


@given(st.lists(st.lists(ANY_VALUE, max_size=30), min_size=1, max_size=4))
def test_reduced_counts_of_ranks_are_the_histogram_of_all_values(
    ranks: list[list[int]],
) -> None:
    parts = [histogram_of(values) for values in ranks]
    total = Histogram.from_counts(
        np.sum([part.counts for part in parts], axis=0),
        sum(part.sum_ns for part in parts),
        min((part.min_ns for part in parts if part.min_ns is not None), default=None),
        max((part.max_ns for part in parts if part.max_ns is not None), default=None),
    )
    assert total.to_json() == histogram_of([v for values in ranks for v in values]).to_json()


@pytest.mark.parametrize(
    ("sum_ns", "min_ns", "max_ns", "message"),
    [
        (0, None, None, "any other one numbers"),
        (4_000, None, 3_000, "an empty one must have 0, null and null, any other one numbers"),
        (4_000, 1_000, None, "any other one numbers"),
        (4_000, 3_000, 1_000, "0 <= min_ns <= max_ns"),
        (4_000, -1, 3_000, "0 <= min_ns <= max_ns"),
        (4_000, 900, 3_000, "must lie in its first and last used bin"),
        (4_000, 1_000, 3_100, "must lie in its first and last used bin"),
        (3_990, 1_000, 3_000, "its bins allow a sum between"),
        (4_010, 1_000, 3_000, "its bins allow a sum between"),
    ],
)
def test_figures_that_contradict_the_counts_are_refused(
    sum_ns: int, min_ns: int | None, max_ns: int | None, message: str
) -> None:
    counts = histogram_of([1_000, 3_000]).counts
    Histogram.from_counts(counts, 4_000, 1_000, 3_000)
    with pytest.raises(ResultError, match=message):
        Histogram.from_counts(counts, sum_ns, min_ns, max_ns)


def test_a_sum_that_the_inner_bins_can_not_give_is_refused() -> None:
    counts = histogram_of([1_000] + [2_000] * 8 + [3_000]).counts
    with pytest.raises(ResultError, match="its bins allow a sum between"):
        Histogram.from_counts(counts, 20_100, 1_000, 3_000)


@pytest.mark.parametrize(("sum_ns", "min_ns"), [(1, None), (0, 1)])
def test_an_empty_histogram_with_figures_is_refused(sum_ns: int, min_ns: int | None) -> None:
    with pytest.raises(ResultError, match="an empty one must have 0"):
        Histogram.from_counts(Histogram().counts, sum_ns, min_ns, None)


@pytest.mark.parametrize(
    "counts",
    [
        np.zeros(BIN_COUNT - 1, dtype=np.int64),
        np.zeros(BIN_COUNT),
        np.zeros((2, BIN_COUNT), int),
    ],
    ids=["too few", "floats", "two-dimensional"],
)
def test_counts_of_another_form_are_refused(counts: npt.NDArray[np.int64]) -> None:
    with pytest.raises(ResultError, match="must be 17028 integers"):
        Histogram.from_counts(counts, 0, None, None)


@pytest.mark.parametrize("pair", [(-1, 2), (2**62, 2**62)], ids=["negative", "overflow"])
def test_impossible_counts_are_refused(pair: tuple[int, int]) -> None:
    counts = np.zeros(BIN_COUNT, dtype=np.int64)
    counts[:2] = pair
    with pytest.raises(ResultError, match="must not be negative or sum to 2"):
        Histogram.from_counts(counts, 100, 100, 100)


# -- JSON --


@given(st.lists(ANY_VALUE, max_size=200))
def test_json_round_trip(values: list[int]) -> None:
    reported = histogram_of(values)
    restored = Histogram.from_json(json.loads(json.dumps(reported.to_json())))
    assert np.array_equal(restored.counts, reported.counts)
    assert restored.to_json() == reported.to_json()


def test_a_million_operations_serialise_to_a_few_kilobytes() -> None:
    values = np.random.default_rng(42).lognormal(13, 0.6, 1_000_000).astype(np.int64)
    histogram = Histogram()
    histogram.record(values)
    assert len(json.dumps(histogram.to_json())) < 12_000


def bins_text(*pairs: tuple[int, int]) -> str:
    packed = b"".join(struct.pack("<qq", *pair) for pair in pairs)
    return base64.b64encode(zlib.compress(packed)).decode()


# The two values are in bins 1701 and 2512: gaps 1701 and 811.
INTACT: dict[str, Any] = histogram_of([1_000, 3_000]).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "loglinear-10/1"}, "scheme is 'loglinear-10/1'; this version reads"),
        ({"count": 3}, "count is 3, but its bins hold 2"),
        ({"count": 2.0}, "count is 2.0; it must be an integer"),
        ({"sum_ns": "4000"}, "sum_ns is '4000'; it must be an integer"),
        ({"min_ns": True}, "min_ns is True; it must be an integer"),
        ({"max_ns": None}, "max_ns is None; it must be an integer"),
        ({"max_ns": 5_000}, "must lie in its first and last used bin"),
        ({"bins": 7}, "bins are 7; they must be base64 text"),
        ({"bins": "§"}, "must be zlib data in base64"),
        ({"bins": INTACT["bins"][:8] + "\n" + INTACT["bins"][8:]}, "must be zlib data in base64"),
        ({"bins": "AAAA"}, "must be zlib data in base64"),
        ({"bins": INTACT["bins"][:-8]}, "cut short or with more behind"),
        ({"bins": base64.b64encode(zlib.compress(b"12345678")).decode()}, "cut short or with"),
        (
            {"bins": base64.b64encode(zlib.compress(b"") + b"rest").decode()},
            "cut short or with more behind",
        ),
        ({"bins": bins_text(*[(0, 1)] * (BIN_COUNT + 1))}, "cut short or with more behind"),
        ({"bins": bins_text((-1, 1), (812, 1))}, "do not rise"),
        ({"bins": bins_text((5, 1), (0, 1))}, "do not rise"),
        ({"bins": bins_text((2**62, 1), (2**62, 1))}, "do not rise"),
        ({"bins": bins_text((5, 1), (BIN_COUNT - 5, 1))}, "go beyond bin 17027"),
        ({"bins": bins_text((5, 3), (7, -1))}, "hold a count below 1"),
        ({"bins": bins_text((5, 2), (7, 0))}, "hold a count below 1"),
    ],
)
def test_damaged_json_is_refused(change: dict[str, object], message: str) -> None:
    Histogram.from_json(INTACT)
    with pytest.raises(ResultError, match=message):
        Histogram.from_json({**INTACT, **change})


@pytest.mark.parametrize("data", [None, [], {}, {**INTACT, "more": 1}], ids=repr)
def test_json_of_another_form_is_refused(data: object) -> None:
    with pytest.raises(ResultError, match="it must be an object of scheme, count, sum_ns"):
        Histogram.from_json(data)


def test_an_empty_histogram_with_an_extreme_is_refused() -> None:
    with pytest.raises(ResultError, match="an empty one must have 0, null and null"):
        Histogram.from_json({**Histogram().to_json(), "min_ns": 0})


# -- docs/histogram.md --


def test_the_recipe_of_the_documentation_decodes_a_run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "histogram.md"
    decode, percentile, _series = re.findall(
        r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL
    )
    assert len(decode.strip().splitlines()) <= 10
    histogram = Histogram()
    histogram.record(np.random.default_rng(7).lognormal(14, 1.5, 5_000).astype(np.int64))
    trial = {"read": {"histogram": histogram.to_json()}}
    run = {"schema": "pytest-kvcache/run/1", "cases": [{"trials": [trial]}]}
    (tmp_path / "run.json").write_text(json.dumps(run), "utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(decode, names)
    used = np.flatnonzero(histogram.counts)
    assert [low for low, _, _ in names["bins"]] == BINS.low_ns(used).tolist()
    assert [high for _, high, _ in names["bins"]] == BINS.low_ns(used + 1).tolist()
    assert [count for _, _, count in names["bins"]] == histogram.counts[used].tolist()
    exec(percentile, names)
    assert names["p99_ns"] == histogram.percentile_ns(99)
