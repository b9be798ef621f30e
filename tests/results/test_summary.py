from __future__ import annotations

import json
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.options.stopping import planned_looks
from pytest_kvcache.results.summary import (
    MOST_TRIALS,
    MetricSeries,
    change_ci95,
    t_critical,
    trials_needed,
)

VALUES = st.lists(st.floats(-1e9, 1e9).map(lambda v: round(v, 6)), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=20)


SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=20)


def series(*values: float, looks: int = 1) -> MetricSeries:
    return MetricSeries(name="read.p95_ms", unit="ms", better="lower", values=values, looks=looks)


def shares(*values: float) -> MetricSeries:
    return MetricSeries(name="cache.hit_ratio", unit="ratio", better="higher", values=values)


# -- the value --


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "metric name is ''"),
        ({"unit": None}, "has unit None"),
        ({"better": "faster"}, "has better 'faster'; it must be 'lower' or 'higher'"),
        ({"values": ()}, "must have one per trial"),
        ({"values": [1.0]}, "must have one per trial"),
        ({"values": (1.0, math.nan)}, "value nan; it must be a finite number"),
        ({"values": (math.inf,)}, "value inf; it must be a finite number"),
        ({"values": (10**400,)}, "it must be a finite number"),
        ({"values": (True,)}, "value True; it must be a finite number"),
        ({"values": ("1",)}, "value '1'; it must be a finite number"),
        ({"values": (None,)}, "value None; it must be a finite number"),
        ({"looks": 0}, "has looks 0; it must be at least 1"),
        ({"looks": True}, "has looks True; it must be at least 1"),
    ],
)
def test_a_series_that_is_none_can_not_exist(change: dict[str, Any], message: str) -> None:
    intact: dict[str, Any] = {
        "name": "read.p95_ms",
        "unit": "ms",
        "better": "lower",
        "values": (1.0,),
    }
    MetricSeries(**intact)
    with pytest.raises(ResultError, match=message):
        MetricSeries(**{**intact, **change})


# -- centre and spread --


def test_a_worked_example() -> None:
    reported = series(12.0, 10.0, 17.0)
    assert reported.median == 12.0
    assert reported.mean == 13.0
    assert reported.cv == pytest.approx(math.sqrt(13) / 13)  # variance (1 + 9 + 16) / 2
    factor = math.exp(4.302653 * math.sqrt(13 / 3) / 13)  # the interval of the mean's logarithm
    assert reported.ci95 == pytest.approx((13 / factor, 13 * factor))


def test_one_trial_has_a_centre_and_no_spread() -> None:
    reported = series(7.0)
    assert (reported.median, reported.mean, reported.cv, reported.ci95) == (7.0, 7.0, None, None)


def test_a_mean_of_zero_has_no_cv_but_an_interval() -> None:
    assert series(-1.0, 1.0).cv is None
    assert series(0.0, 0.0).cv is None
    assert series(-1.0, 1.0).ci95 == pytest.approx((-12.7062, 12.7062))


@given(st.floats(-1e9, 1e9), st.integers(2, 9))
def test_equal_trials_have_no_spread_at_all(value: float, count: int) -> None:
    reported = series(*[value] * count)
    assert reported.mean == reported.median == value
    assert reported.ci95 == (value, value)
    assert reported.cv == (None if value == 0 else 0.0)


@given(VALUES)
def test_figures_agree_with_numpys(values: list[float]) -> None:
    reported, array = series(*values), np.array(values)
    slack = 1e-9 * max(map(abs, values))
    assert reported.median == pytest.approx(float(np.median(array)), abs=slack)
    assert reported.mean == pytest.approx(float(np.mean(array)), abs=slack)
    if reported.cv is not None and abs(reported.mean) > 0.01 * max(map(abs, values)):
        expected = float(np.std(array, ddof=1)) / abs(reported.mean)
        assert reported.cv == pytest.approx(expected, abs=1e-6)


@given(POSITIVE, st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter_to_the_spread(values: list[float], factor: float) -> None:
    reported, scaled = series(*values), series(*(v * factor for v in values))
    assert reported.ci95 is not None
    assert scaled.cv == pytest.approx(reported.cv, rel=1e-6, abs=1e-9)
    assert scaled.ci95 == pytest.approx([factor * b for b in reported.ci95], rel=1e-6)


@given(POSITIVE)
def test_the_interval_is_around_the_mean(values: list[float]) -> None:
    reported = series(*values)
    assert reported.ci95 is not None
    assert reported.ci95[0] <= reported.mean <= reported.ci95[1]


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=20).filter(any))
def test_what_can_not_be_negative_has_an_interval_above_zero(values: list[float]) -> None:
    low, high = series(*values).ci95 or (-1.0, -1.0)
    assert 0 <= low <= high < math.inf


@given(SHARES)
def test_the_interval_of_a_share_is_between_0_and_1(values: list[float]) -> None:
    low, high = shares(*values).ci95 or (-1.0, -1.0)
    assert 0 <= low <= high <= 1


def test_a_noisy_latency_and_a_share_near_1_as_they_were_reported() -> None:
    low, high = series(22.0, 30.1, 61.0).ci95 or (0.0, 0.0)
    assert 0 < low < 22
    assert 61 < high < 200
    low, high = shares(0.98, 0.99, 0.999).ci95 or (0.0, 0.0)
    assert 0.9 < low < 0.98
    assert 0.99 < high < 1


@given(POSITIVE, st.integers(2, 12))
def test_more_looks_make_the_interval_wider_and_keep_its_centre(
    values: list[float], looks: int
) -> None:
    once, often = series(*values).ci95, series(*values, looks=looks).ci95
    assert once is not None
    assert often is not None
    assert often[0] <= once[0] <= once[1] <= often[1]
    assert often[0] * often[1] == pytest.approx(once[0] * once[1])


# -- Student's t --


def share_within(t: float, dof: float) -> float:
    """P(|T| <= t): the density of t integrated over the angle atan(t / sqrt(dof))."""

    def area(angle: float) -> float:
        steps = 20_000
        middles = (np.arange(steps) + 0.5) * angle / steps
        return float(np.mean(np.cos(middles) ** (dof - 1))) * angle

    return area(math.atan(t / math.sqrt(dof))) / area(math.pi / 2)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.005])
@pytest.mark.parametrize("dof", [1, 1.01, 1.37, 2, 2.5, 3, 5.5, 10, 29.9, 30, 100, 1_000])
def test_beyond_the_critical_value_lies_alpha_of_the_t_distribution(
    dof: float, alpha: float
) -> None:
    assert 1 - share_within(t_critical(alpha, dof), dof) == pytest.approx(alpha, abs=1e-6)


@pytest.mark.parametrize(
    ("dof", "t"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (30, 2.042)]
)
def test_the_critical_values_are_those_of_the_handbook(dof: float, t: float) -> None:
    assert t_critical(0.05, dof) == pytest.approx(t, abs=5e-4)


def test_the_critical_value_falls_towards_the_normal_one() -> None:
    values = [t_critical(0.05, tenth / 10) for tenth in (*range(10, 1_000, 7), 10**7)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-5)


@pytest.mark.parametrize("dof", [0, 0.99, math.nan])
def test_there_is_no_critical_value_below_one_degree_of_freedom(dof: float) -> None:
    with pytest.raises(ResultError, match=r"degrees of freedom are .*; they must be at least 1"):
        t_critical(0.05, dof)


# -- how many trials --


@pytest.mark.parametrize(("cv", "percent"), [(0.02, 5), (0.12, 10), (0.3, 25), (0.01, 10)])
def test_as_many_trials_as_are_needed_and_no_fewer(cv: float, percent: float) -> None:
    reach = math.log1p(percent / 100)
    count = trials_needed(cv, reach)
    assert count is not None

    def half(n: int) -> float:
        return t_critical(0.05, 2 * n - 2) * cv * math.sqrt(2 / n)

    assert half(count) <= reach
    assert count == 2 or half(count - 1) > reach


def test_what_no_sensible_number_of_trials_can_tell_has_none() -> None:
    assert trials_needed(1.0, 0.001) is None
    assert trials_needed(1e-9, 0.001) == 2
    assert 900 < (trials_needed(0.1, 0.0091) or 0) <= MOST_TRIALS


# -- looks --


@pytest.mark.parametrize(
    ("low", "high", "looks"),
    [(3, 3, (3,)), (3, 20, (3, 5, 8, 12, 20)), (1, 2, (1, 2)), (5, 6, (5, 6)), (2, 5, (2, 3, 5))],
)
def test_looks_begin_and_end_where_the_user_says(
    low: int, high: int, looks: tuple[int, ...]
) -> None:
    assert planned_looks(low, high) == looks


@given(st.integers(1, 50), st.integers(0, 500))
def test_looks_rise_and_are_few(low: int, more: int) -> None:
    looks = planned_looks(low, low + more)
    assert (looks[0], looks[-1]) == (low, low + more)
    assert list(looks) == sorted(set(looks))
    assert len(looks) <= 3 + math.log(1 + more) / math.log(1.5)


@pytest.mark.parametrize("cv", [0.05, 0.1])
def test_trials_that_end_when_the_interval_is_narrow_hold_their_confidence(cv: float) -> None:
    random = np.random.default_rng(42)
    looks = planned_looks(3, 20)
    held = {1: 0, len(looks): 0}
    for _ in range(300):
        values = np.abs(1 + cv * random.standard_normal(20)).tolist()
        for count in held:
            low, high = next(
                interval
                for n in looks
                if (interval := series(*values[:n], looks=count).ci95) is not None
                and (interval[1] - interval[0] <= 0.1 or n == looks[-1])
            )
            held[count] += low <= 1 <= high
    assert held[len(looks)] >= 0.95 * 300
    assert held[1] < held[len(looks)]  # what it is without a correction


# -- Welch's interval --


def test_a_worked_change_of_equal_spreads() -> None:
    # Relative squared errors (2 / 12)² / 3 and (2 / 24)² / 3; Satterthwaite's degrees of freedom.
    parts = [(2 / 12) ** 2 / 3, (2 / 24) ** 2 / 3]
    dof = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = t_critical(0.05, dof) * math.sqrt(sum(parts))
    interval = change_ci95(series(10.0, 12.0, 14.0), series(22.0, 24.0, 26.0))
    assert interval == pytest.approx((2 * math.exp(-half) - 1, 2 * math.exp(half) - 1))


def test_a_worked_change_of_what_may_be_negative() -> None:
    # Squared errors 4/3 each: 4 degrees of freedom, t 2.776.
    half = t_critical(0.05, 4) * math.sqrt(8 / 3)
    interval = change_ci95(series(-10.0, -12.0, -14.0), series(-20.0, -22.0, -24.0))
    assert interval == pytest.approx(((-10 - half) / 12, (-10 + half) / 12))


def test_sides_without_spread_differ_exactly() -> None:
    assert change_ci95(series(1.0, 1.0), series(3.0, 3.0)) == pytest.approx((2.0, 2.0))
    assert change_ci95(series(0.0, 0.0), series(3.0, 3.0)) == (math.inf, math.inf)
    assert change_ci95(series(1e-160, 1e-160), series(0.0, 1e-160)) is not None


@pytest.mark.parametrize("pair", [((1.0,), (1.0, 2.0)), ((1.0, 2.0), (1.0,))])
def test_a_single_trial_has_no_interval(pair: tuple[tuple[float, ...], ...]) -> None:
    assert change_ci95(series(*pair[0]), series(*pair[1])) is None


@given(POSITIVE, POSITIVE)
def test_swapping_the_sides_turns_the_interval_around(
    left: list[float], right: list[float]
) -> None:
    there, back = (change_ci95(series(*a), series(*b)) for a, b in ((left, right), (right, left)))
    assert there is not None
    assert back is not None
    # Low bounds next to -100 % have lost all digits but those of a float next to 1.
    assert 1 + there[0] == pytest.approx(1 / (1 + back[1]), rel=1e-6, abs=1e-15)
    assert 1 + back[0] == pytest.approx(1 / (1 + there[1]), rel=1e-6, abs=1e-15)


@given(POSITIVE, POSITIVE)
def test_intervals_that_do_not_overlap_mean_a_difference(
    left: list[float], right: list[float]
) -> None:
    a, b = series(*left), series(*right)
    assert a.ci95 is not None
    assert b.ci95 is not None
    factor = 1.000001 * a.ci95[1] / b.ci95[0]
    interval = change_ci95(a, series(*(value * factor for value in right)))
    assert interval is not None
    assert interval[0] > 0


# -- JSON --


def test_json_has_what_the_run_file_promises() -> None:
    reported = series(10.0, 12.0, 14.0).to_json()
    factor = math.exp(t_critical(0.05, 2) * 2 / math.sqrt(3) / 12)
    assert reported == {
        "median": 12.0,
        "mean": 12.0,
        "cv": pytest.approx(2 / 12),
        "ci95": [pytest.approx(12 / factor), pytest.approx(12 * factor)],
        "looks": 1,
        "unit": "ms",
        "better": "lower",
        "values": [10.0, 12.0, 14.0],
    }
    assert series(1.0).to_json()["ci95"] is None


@given(VALUES, st.sampled_from(["lower", "higher"]))
def test_json_round_trip(values: list[float], better: Any) -> None:
    reported = MetricSeries(
        name="a.b", unit="s", better=better, values=tuple(values), looks=len(values)
    )
    assert MetricSeries.from_json("a.b", json.loads(json.dumps(reported.to_json()))) == reported


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"median": 11.0}, "states median 11.0, but its values give 12.0"),
        ({"median": None}, "states median None"),
        ({"mean": math.nan}, "states mean nan"),
        ({"cv": None}, "states cv None"),
        ({"cv": 10**400}, "states cv 1000"),
        ({"ci95": None}, "states ci95 None"),
        ({"ci95": [7.9]}, "states ci95"),
        ({"ci95": [series(10.0, 12.0, 14.0).to_json()["ci95"][0], None]}, "states ci95"),
        ({"looks": 2}, "states ci95"),
        ({"looks": None}, "has looks None"),
        ({"ci95": [0.0, 24.0]}, "states ci95"),
        ({"values": [10.0, 12.0]}, "states median 12.0, but its values give 11.0"),
        ({"values": "10"}, "values '10'; they must be a list"),
        ({"values": [None]}, "value None; it must be a finite number"),
        ({"unit": 5}, "has unit 5"),
        ({"better": ["lower"]}, "it must be 'lower' or 'higher'"),
    ],
)
def test_an_altered_summary_is_refused(change: dict[str, Any], message: str) -> None:
    intact = series(10.0, 12.0, 14.0).to_json()
    MetricSeries.from_json("read.p95_ms", intact)
    with pytest.raises(ResultError, match=message):
        MetricSeries.from_json("read.p95_ms", {**intact, **change})


@pytest.mark.parametrize("data", [None, [1.0], {"median": 1.0}], ids=repr)
def test_a_summary_of_another_form_is_refused(data: object) -> None:
    with pytest.raises(ResultError, match=r"summary of read.p95_ms is .* it must be an object"):
        MetricSeries.from_json("read.p95_ms", data)
