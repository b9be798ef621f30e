"""Verdicts on a case: whether its trials agree with each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.trial import CaseResult, TrialResult
from pytest_kvcache.results.verdicts.noise import evaluate_case, odd_trial
from tests.canned import trial_of
from tests.factories import make_plan


def trial(index: int, p95_ms: float, per_s: float = 100.0) -> TrialResult:
    canned = trial_of(make_plan(np=2), index)
    assert canned.data is not None
    read, requests = canned.data["read"], canned.data["requests"]
    changed = {
        "read": {**read, "ms": {**read["ms"], "p95": p95_ms}},
        "requests": {**requests, "per_s": per_s},
    }
    return replace(canned, data={**canned.data, **changed})


def case(*trials: TrialResult, metrics: tuple[str, ...] = ("read.p95_ms",)) -> CaseResult:
    return CaseResult(plan=make_plan(np=2), trials=trials, looks=(len(trials),), metrics=metrics)


def case_at(*values_ms: float, metrics: tuple[str, ...] = ("read.p95_ms",)) -> CaseResult:
    trials = (trial(index, value) for index, value in enumerate(values_ms))
    return case(*trials, metrics=metrics)


def series(*values: float) -> MetricSeries:
    return MetricSeries(name="read.p95_ms", unit="ms", better="lower", values=values)


@pytest.mark.parametrize(
    ("values_ms", "codes"),
    [
        ((10.0, 10.0, 10.0), []),
        ((9.1, 10.0, 10.9), []),  # 9 %
        ((8.9, 10.0, 11.1), ["NOISY"]),  # 11 %
        ((10.0, 13.0), ["NOISY"]),
        ((10.0,), []),
    ],
)
def test_trials_that_differ_by_a_tenth_are_noisy(
    values_ms: tuple[float, ...], codes: list[str]
) -> None:
    assert [verdict.code for verdict in evaluate_case(case_at(*values_ms))] == codes


def test_the_verdict_names_metric_spread_and_the_odd_trial() -> None:
    (verdict,) = evaluate_case(case_at(10.0, 10.2, 30.0, 9.9))
    assert verdict.severity == "warning"
    assert "read.p95_ms by 66% (CV), most of it trial 3 (30; without it 2%)" in verdict.text


def test_no_trial_is_odd_where_all_differ() -> None:
    (verdict,) = evaluate_case(case_at(10.0, 14.0, 18.0, 22.0))
    assert "(CV)" in verdict.text
    assert "trial " not in verdict.text.partition(";")[0]


def test_only_what_is_shown_is_judged() -> None:
    assert evaluate_case(case_at(10.0, 30.0, metrics=("write.p95_ms",))) == ()
    rates = case(trial(0, 10.0, 50.0), trial(1, 10.0, 100.0), metrics=())
    (verdict,) = evaluate_case(rates)  # requests.per_s always is
    assert "requests.per_s by 47% (CV)" in verdict.text


def test_the_noisiest_metric_comes_first() -> None:
    noisy = case(trial(0, 10.0, 80.0), trial(1, 30.0, 100.0))
    (verdict,) = evaluate_case(noisy)
    assert verdict.text.index("read.p95_ms") < verdict.text.index("requests.per_s")


def test_a_case_that_failed_is_not_judged() -> None:
    failed = replace(trial(1, 30.0), error="it broke")
    assert evaluate_case(case(trial(0, 10.0), failed)) == ()


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ((10.0, 10.0, 30.0), 2),
        ((1.0, 10.0, 10.1), 0),
        ((10.0, 30.0), None),  # either of two might be it
        ((10.0, 10.0, 10.0), None),
        ((10.0, 10.1, 30.0, 30.1), None),
        ((0.0, 0.0, 1.0), None),  # and of others that are all 0 there is no CV
    ],
)
def test_the_odd_trial_is_the_one_without_which_the_others_agree(
    values: tuple[float, ...], odd: int | None
) -> None:
    found = odd_trial(series(*values))
    assert (None if found is None else found[0]) == odd
