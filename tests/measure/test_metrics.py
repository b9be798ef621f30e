from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.metrics import METRICS, PERCENTILES
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, SECTIONS
from pytest_kvcache.options.options import Options
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.pairs import paired
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.factories import (
    layout_of,
    memory_tiers,
    rank_result,
    restart_result,
    sound_plan,
    sound_record,
    sound_restart_plan,
    sound_restart_record,
)

if TYPE_CHECKING:
    from pytest_kvcache.results.trial import Trial


@pytest.fixture(scope="module")
def trial() -> Trial:
    plan = sound_plan(request_rate=5.0, arrival="poisson")
    trial, _ = evaluate_trial(sound_record(plan, [rank_result()]), plan)
    return trial


def test_there_is_a_latency_metric_of_every_section_and_statistic() -> None:
    names = {
        f"{section}.{what}_ms" for section in SECTIONS for what in ("mean", *PERCENTILES, "max")
    }
    assert {name for name, metric in METRICS.items() if metric.latency} == names


def test_the_default_metrics_exist() -> None:
    assert set(Options().metrics) <= set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_found_in_a_trial(name: str) -> None:
    policy = "demote" if "demote" in name else "write-through"
    tiers = memory_tiers("gpu", "cpu")
    plan = sound_plan(request_rate=5.0, arrival="poisson", tiers=tiers, tier_policy=policy)
    if name.startswith("run."):
        plan = sound_plan(duration_s=None, requests=200)
    if name.startswith("lookup."):
        plan = sound_plan(lookup="all")
    if name.startswith(("visibility.", "sharing.")):
        plan = sound_plan(sharing="run", lookup="all", publish="link", layout=layout_of(n1=1, n2=1))
    trial = trial_of(sound_record(plan, [rank_result()]), plan)
    if name.startswith("restart."):
        plan = sound_restart_plan()
        trial = trial_of(sound_restart_record(plan, [restart_result()]), plan)
    metric = METRICS[name]
    if metric.of_a_pair:
        result = TrialResult(index=0, error=None, measured=trial)
        assert result.value(name) is None  # of one launch
        twin = paired(result, result)
        assert twin.interference is not None
        assert twin.value(name) == getattr(twin.interference, metric.path[1])
        assert twin.value(name) == twin.to_json()["interference"][metric.path[1]]
        return
    value: Any = trial.to_json()
    for key in metric.path:
        value = value[key]
    assert metric.name == name
    assert metric.of(trial) == value
    assert metric.section == name.partition(".")[0]


_OF_SHARING = ("visibility.", "sharing.")
_OF_LOADS = tuple(name for name in METRICS if name.startswith("worth.") and "dwpd" not in name)


@pytest.mark.parametrize("name", METRICS)
def test_lower_is_better_of_what_is_spent_alone(name: str) -> None:
    metric = METRICS[name]
    spent = ("_ms", ".s", ".turning_tokens", "_per_mtok", ".dwpd", "p50_ratio", "p99_ratio")
    assert metric.better == ("lower" if name.endswith(spent) else "higher")
    assert metric.latency == (metric.unit == "ms") == name.endswith("_ms")
    assert (metric.impossible("prefill") is not None) == name.startswith(
        ("interference.", "read.", "lookup.", "load.", "request.", "gpu_read.", "cpu_read.",
         "run.read", "restart.", *_OF_SHARING, *_OF_LOADS)
    )  # fmt: skip
    moves = tuple(f"{section}." for section in MEMORY_SECTIONS if not section.endswith("_read"))
    assert (metric.impossible("decode") is not None) == name.startswith(
        ("write.", "delete.", "demote.", "run.write", "worth.dwpd", "restart.", *moves)
    )
    assert (metric.impossible("both") is not None) == name.startswith("restart.")
    assert (metric.impossible("restart") is None) == name.startswith(("restart.", "run.s"))


def test_a_phase_without_requests_says_so_and_another_one_that_it_does_not_restart() -> None:
    assert METRICS["requests.per_s"].impossible("restart") == "--kv-phase=restart makes no requests"
    said = METRICS["restart.p99_ms"].impossible("decode")
    assert said == "only --kv-phase=restart finds again what was stored, and this one is decode"


def test_percentiles_know_which_they_are() -> None:
    found = {name: METRICS[f"read.{name}_ms"].percentile for name in (*PERCENTILES, "mean", "max")}
    assert found == {**PERCENTILES, "mean": None, "max": None}


@pytest.mark.parametrize("name", ["read.gib_per_s", "read.p95_ms"])
def test_a_value_that_a_trial_lacks_is_none(trial: Trial, name: str) -> None:
    nothing = replace(trial.read, ms=Latencies.of(Histogram()), gib_per_s=None)
    assert METRICS[name].of(replace(trial, read=nothing)) is None
    assert METRICS["scheduling_lag.p95_ms"].of(replace(trial, scheduling_lag=None)) is None


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1.001, 10))
def test_a_better_value_is_recorded_as_a_shorter_time(value: float, factor: float) -> None:
    for metric in METRICS.values():
        worse, better = metric.round_s(value), metric.round_s(value * factor)
        assert (worse < better) if metric.better == "lower" else (worse > better)


def test_latencies_are_recorded_in_seconds_and_rates_as_reciprocals() -> None:
    assert METRICS["read.p95_ms"].round_s(20.0) == 0.02
    assert METRICS["read.gib_per_s"].round_s(4.0) == 0.25


def test_what_is_recorded_is_named_with_its_unit() -> None:
    names = (
        "read.p95_ms", "read.gib_per_s", "requests.per_s", "tokens.per_s", "cache.hit_ratio",
        "run.s", "run.read_gib_per_s",
    )  # fmt: skip
    assert [METRICS[name].round_name for name in names] == [
        "read.p95_ms", "read.s_per_gib", "requests.s_per_request", "tokens.s_per_token",
        "cache.hit_ratio.inverse", "run.s", "run.read.s_per_gib",
    ]  # fmt: skip
    assert METRICS["run.s"].round_s(7.5) == 7.5


def test_no_two_metrics_are_recorded_under_one_name() -> None:
    names = [metric.round_name for metric in METRICS.values()]
    assert len(set(names)) == len(names)
    assert not [name for name in names if set(name) & set(" ,/")]  # they become names of files


def test_a_ratio_of_zero_has_no_reciprocal_and_says_so() -> None:
    with pytest.raises(ResultError, match=r"cache\.hit_ratio is 0"):
        METRICS["cache.hit_ratio"].round_s(0.0)
