from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.metrics import METRICS, PERCENTILES
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.options.options import Options
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.factories import rank_result, sound_plan, sound_record


@pytest.fixture(scope="module")
def trial() -> dict[str, Any]:
    plan = sound_plan(request_rate=5.0, arrival="poisson")
    data, _ = evaluate_trial(sound_record(plan, [rank_result()]), plan)
    return data


def test_there_is_a_latency_metric_of_every_section_and_statistic() -> None:
    names = {
        f"{section}.{what}_ms" for section in SECTIONS for what in ("mean", *PERCENTILES, "max")
    }
    assert {name for name, metric in METRICS.items() if metric.latency} == names


def test_the_default_metrics_exist() -> None:
    assert set(Options().metrics) <= set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_found_in_a_trial(trial: dict[str, Any], name: str) -> None:
    metric = METRICS[name]
    value: Any = trial
    for key in metric.path:
        value = value[key]
    assert metric.name == name
    assert metric.of(trial) == value
    assert metric.section == name.partition(".")[0]


@pytest.mark.parametrize("name", METRICS)
def test_lower_is_better_of_latencies_alone(name: str) -> None:
    metric = METRICS[name]
    assert metric.better == ("lower" if name.endswith("_ms") else "higher")
    assert metric.latency == (metric.unit == "ms") == name.endswith("_ms")
    assert (metric.impossible("prefill") is not None) == name.startswith(
        ("read.", "load.", "request.")
    )
    assert (metric.impossible("decode") is not None) == name.startswith(("write.", "delete."))
    assert metric.impossible("both") is None


def test_percentiles_know_which_they_are() -> None:
    found = {name: METRICS[f"read.{name}_ms"].percentile for name in (*PERCENTILES, "mean", "max")}
    assert found == {**PERCENTILES, "mean": None, "max": None}


@pytest.mark.parametrize("name", ["read.gib_per_s", "read.p95_ms"])
def test_a_value_that_a_trial_lacks_is_none(trial: dict[str, Any], name: str) -> None:
    section, key = METRICS[name].path[0], METRICS[name].path[-1]
    inner = {**trial[section]["ms"], key: None} if key == "p95" else trial[section]["ms"]
    lacking = {**trial, section: {**trial[section], "ms": inner, "gib_per_s": None}}
    assert METRICS[name].of(lacking) is None
    assert METRICS[name].of({**trial, section: None}) is None


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 10))
def test_a_better_value_is_recorded_as_a_shorter_time(value: float, factor: float) -> None:
    for metric in METRICS.values():
        worse, better = metric.round_s(value), metric.round_s(value * factor)
        assert (worse < better) if metric.latency else (worse > better)


def test_latencies_are_recorded_in_seconds_and_rates_as_reciprocals() -> None:
    assert METRICS["read.p95_ms"].round_s(20.0) == 0.02
    assert METRICS["read.gib_per_s"].round_s(4.0) == 0.25


def test_what_is_recorded_is_named_with_its_unit() -> None:
    names = ("read.p95_ms", "read.gib_per_s", "requests.per_s", "tokens.per_s", "cache.hit_ratio")
    assert [METRICS[name].round_name for name in names] == [
        "read.p95_ms", "read.s_per_gib", "requests.s_per_request", "tokens.s_per_token",
        "cache.hit_ratio.inverse",
    ]  # fmt: skip


def test_no_two_metrics_are_recorded_under_one_name() -> None:
    names = [metric.round_name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if set(name) & set(" ,/")]  # they become names of files


def test_a_ratio_of_zero_has_no_reciprocal_and_says_so() -> None:
    with pytest.raises(ResultError, match=r"cache\.hit_ratio is 0"):
        METRICS["cache.hit_ratio"].round_s(0.0)
