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
from pytest_kvcache.summary import MetricSeries, difference_ci95, t_975

VALUES = st.lists(st.floats(-1e9, 1e9).map(lambda v: round(v, 6)), min_size=1, max_size=20)
POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=20)


def series(*values: float) -> MetricSeries:
    return MetricSeries(name="read.p95_ms", unit="ms", better="lower", values=values)


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
    told = series(12.0, 10.0, 17.0)
    assert told.median == 12.0
    assert told.mean == 13.0
    assert told.cv == pytest.approx(math.sqrt(13) / 13)  # variance (1 + 9 + 16) / 2
    half = 4.303 * math.sqrt(13 / 3)
    assert told.ci95 == pytest.approx((13 - half, 13 + half))


def test_one_trial_has_a_centre_and_no_spread() -> None:
    told = series(7.0)
    assert (told.median, told.mean, told.cv, told.ci95) == (7.0, 7.0, None, None)


def test_a_mean_of_zero_has_no_cv_but_an_interval() -> None:
    assert series(-1.0, 1.0).cv is None
    assert series(0.0, 0.0).cv is None
    assert series(-1.0, 1.0).ci95 == pytest.approx((-12.706, 12.706))


@given(st.floats(-1e9, 1e9), st.integers(2, 9))
def test_equal_trials_have_no_spread_at_all(value: float, count: int) -> None:
    told = series(*[value] * count)
    assert told.mean == told.median == value
    assert told.ci95 == (value, value)
    assert told.cv == (None if value == 0 else 0.0)


@given(VALUES)
def test_figures_agree_with_numpys(values: list[float]) -> None:
    told, array = series(*values), np.array(values)
    slack = 1e-9 * max(map(abs, values))
    assert told.median == pytest.approx(float(np.median(array)), abs=slack)
    assert told.mean == pytest.approx(float(np.mean(array)), abs=slack)
    if told.cv is not None and abs(told.mean) > 0.01 * max(map(abs, values)):
        expected = float(np.std(array, ddof=1)) / abs(told.mean)
        assert told.cv == pytest.approx(expected, abs=1e-6)


@given(POSITIVE, st.floats(1e-3, 1e3))
def test_the_unit_does_not_matter_to_the_spread(values: list[float], factor: float) -> None:
    told, scaled = series(*values), series(*(v * factor for v in values))
    assert told.ci95 is not None
    assert scaled.cv == pytest.approx(told.cv, rel=1e-6, abs=1e-9)
    slack = 1e-9 * factor * max(values)
    assert scaled.ci95 == pytest.approx([factor * b for b in told.ci95], rel=1e-6, abs=slack)


@given(POSITIVE)
def test_the_interval_is_around_the_mean(values: list[float]) -> None:
    told = series(*values)
    assert told.ci95 is not None
    assert told.ci95[0] <= told.mean <= told.ci95[1]


# -- Student's t --


def share_within(t: float, dof: float) -> float:
    """P(|T| <= t): the density of t integrated over the angle atan(t / sqrt(dof))."""

    def area(angle: float) -> float:
        steps = 20_000
        middles = (np.arange(steps) + 0.5) * angle / steps
        return float(np.mean(np.cos(middles) ** (dof - 1))) * angle

    return area(math.atan(t / math.sqrt(dof))) / area(math.pi / 2)


@pytest.mark.parametrize("dof", [*range(1, 36), 40, 60, 100, 1_000])
def test_the_quantile_encloses_95_percent_of_the_t_distribution(dof: int) -> None:
    # Half a unit of the table's last digit moves the share by at most 4e-5.
    assert share_within(t_975(dof), dof) == pytest.approx(0.95, abs=6e-5)


@pytest.mark.parametrize("dof", [1.01, 1.2, 1.5, 1.9, 2.1, 2.5, 3.7, 5.5, 12.3, 29.9, 30.5])
def test_between_whole_degrees_of_freedom_the_quantile_errs_on_the_wide_side(
    dof: float,
) -> None:
    assert 0.95 - 6e-5 < share_within(t_975(dof), dof) < 0.961


def test_the_quantile_falls_towards_the_normal_one() -> None:
    quantiles = [t_975(tenth / 10) for tenth in (*range(10, 1_000), 10**7)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert quantiles[-1] == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-5)


@pytest.mark.parametrize("dof", [0, 0.99, math.nan])
def test_there_is_no_quantile_below_one_degree_of_freedom(dof: float) -> None:
    with pytest.raises(ResultError, match=r"degrees of freedom are .*; they must be at least 1"):
        t_975(dof)


# -- Welch's interval --


def test_a_worked_difference_of_equal_spreads() -> None:
    # Squared errors 4/3 each: 4 degrees of freedom, t 2.776.
    half = 2.776 * math.sqrt(8 / 3)
    interval = difference_ci95(series(10.0, 12.0, 14.0), series(20.0, 22.0, 24.0))
    assert interval == pytest.approx((10 - half, 10 + half))


def test_a_worked_difference_of_unequal_spreads() -> None:
    # Squared errors 1/3 and 5; between 4 and 5 degrees of freedom.
    interval = difference_ci95(series(1.0, 2.0, 3.0), series(16.0, 12.0, 20.0, 24.0, 13.0))
    squared = 1 / 3 + statistics.variance([16, 12, 20, 24, 13]) / 5
    dof = squared**2 / ((1 / 3) ** 2 / 2 + (squared - 1 / 3) ** 2 / 4)
    assert 4 < dof < 5
    share = (1 / 4 - 1 / dof) / (1 / 4 - 1 / 5)
    half = (2.776 + share * (2.571 - 2.776)) * math.sqrt(squared)
    assert interval == pytest.approx((15 - half, 15 + half))


def test_sides_without_spread_differ_exactly() -> None:
    assert difference_ci95(series(1.0, 1.0), series(3.0, 3.0)) == (2.0, 2.0)
    assert difference_ci95(series(1e-160, 1e-160), series(0.0, 1e-160)) is not None


@pytest.mark.parametrize("pair", [((1.0,), (1.0, 2.0)), ((1.0, 2.0), (1.0,))])
def test_a_single_trial_has_no_interval(pair: tuple[tuple[float, ...], ...]) -> None:
    assert difference_ci95(series(*pair[0]), series(*pair[1])) is None


@given(POSITIVE, POSITIVE)
def test_swapping_the_sides_turns_the_interval_around(
    left: list[float], right: list[float]
) -> None:
    there, back = (
        difference_ci95(series(*a), series(*b)) for a, b in ((left, right), (right, left))
    )
    assert there is not None
    assert back is not None
    assert there == pytest.approx((-back[1], -back[0]))


@given(POSITIVE, POSITIVE)
def test_intervals_that_do_not_overlap_mean_a_difference(
    left: list[float], right: list[float]
) -> None:
    a, b = series(*left), series(*right)
    assert a.ci95 is not None
    assert b.ci95 is not None
    gap = 1e-6 * (max(left) + max(right))
    shift = a.ci95[1] - b.ci95[0] + gap
    interval = difference_ci95(a, series(*(value + shift for value in right)))
    assert interval is not None
    assert interval[0] > 0


# -- JSON --


def test_json_has_what_the_run_file_promises() -> None:
    told = series(10.0, 12.0, 14.0).to_json()
    half = 4.303 * 2 / math.sqrt(3)
    assert told == {
        "median": 12.0,
        "mean": 12.0,
        "cv": pytest.approx(2 / 12),
        "ci95": [pytest.approx(12 - half), pytest.approx(12 + half)],
        "unit": "ms",
        "better": "lower",
        "values": [10.0, 12.0, 14.0],
    }
    assert series(1.0).to_json()["ci95"] is None


@given(VALUES, st.sampled_from(["lower", "higher"]))
def test_json_round_trip(values: list[float], better: Any) -> None:
    told = MetricSeries(name="a.b", unit="s", better=better, values=tuple(values))
    assert MetricSeries.from_json("a.b", json.loads(json.dumps(told.to_json()))) == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"median": 11.0}, "states median 11.0, but its values give 12.0"),
        ({"median": None}, "states median None"),
        ({"mean": math.nan}, "states mean nan"),
        ({"cv": None}, "states cv None"),
        ({"cv": 10**400}, "states cv 1000"),
        ({"ci95": None}, "states ci95 None"),
        ({"ci95": [7.031]}, "states ci95"),
        ({"ci95": [12.0 - 4.303 * 2 / math.sqrt(3), None]}, "states ci95"),
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
