from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.gates.compare import Found, Judgement, compare, judge, judge_slo
from pytest_kvcache.gates.table import gate_table, verdict_line
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.rules import (
    FailRule,
    SloRule,
    check_rule,
    check_slo,
    parse_fail,
    parse_slo,
)
from pytest_kvcache.results.provenance import Provenance
from pytest_kvcache.results.summary import MetricSeries
from tests.series import (
    CASE,
    IN_MEMORY,
    NO_STORAGE,
    SERIES,
    STORAGE,
    latency,
    reported,
    throughput,
)

TEN_PERCENT = FailRule(metric="read.p99_ms", limit_ratio=0.1)
TRIALS = st.lists(st.floats(0.1, 1e6), min_size=2, max_size=6)
LIMITS = st.floats(0.001, 0.99)


def judged(
    rule: FailRule, baseline: MetricSeries | None, now: MetricSeries | None, *, case: str = ""
) -> Judgement:
    """Judge against an entry of the same plan."""
    return judge(rule, Found(series=baseline), now, case=case)


# -- rules --


@pytest.mark.parametrize(
    ("text", "limit_ratio"),
    [
        ("read.p99_ms:10%", 0.1),
        ("read.p99_ms:2.5%", 0.025),
        ("read.p99_ms:.5%", 0.005),
        ("read.p99_ms:250%", 2.5),
        (" read.p99_ms : 10 % ", 0.1),
    ],
)
def test_a_fail_rule_is_a_metric_and_a_percentage(text: str, limit_ratio: float) -> None:
    assert parse_fail(text) == FailRule(metric="read.p99_ms", limit_ratio=limit_ratio)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "read.p99_ms",
        "read.p99_ms:10",
        "read.p99_ms:%",
        ":10%",
        "read.p99_ms:ten%",
        "read.p99_ms:0%",
        "read.p99_ms:-5%",
        "read.p99_ms:nan%",
        "read.p99_ms:1e999%",
        "read.p99_ms:10%%",
        "read p99:10%",
        "read.p99_ms:10%\nmore",
    ],
)
def test_a_broken_fail_rule_is_told_with_a_correct_one(text: str) -> None:
    expected = f"--kv-fail is {text!r}; it must be METRIC:N% with N above 0, e.g. "
    with pytest.raises(OptionError, match=re.escape(expected)) as caught:
        parse_fail(text)
    assert parse_fail(str(caught.value).split("--kv-fail=")[1])


@pytest.mark.parametrize(
    ("text", "op", "value"),
    [
        ("read.p95_ms<20", "<", 20.0),
        ("read.p95_ms<=20.5", "<=", 20.5),
        ("read.p95_ms > 1e-3", ">", 0.001),
        ("read.p95_ms>=-1", ">=", -1.0),
    ],
)
def test_an_slo_is_a_metric_an_operator_and_a_number(text: str, op: Any, value: float) -> None:
    assert parse_slo(text) == SloRule(metric="read.p95_ms", op=op, value=value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "read.p95_ms",
        "read.p95_ms=20",
        "read.p95_ms<",
        "<20",
        "read.p95_ms<20ms",
        "read.p95_ms<nan",
        "read.p95_ms<1e999",
        "read.p95_ms<<20",
        "read.p95_ms=<20",
    ],
)
def test_a_broken_slo_is_told_with_a_correct_one(text: str) -> None:
    expected = f"--kv-slo is {text!r}; it must be METRIC, one of < <= > >=, and a number, e.g. "
    with pytest.raises(OptionError, match=re.escape(expected)) as caught:
        parse_slo(text)
    assert parse_slo(str(caught.value).split("'")[-2])


@pytest.mark.parametrize(
    ("text", "better", "meant"),
    [
        ("read.p95_ms>5", "lower", "the most that is good enough, e.g. --kv-slo='read.p95_ms<5'"),
        ("read.p95_ms>=5", "lower", "--kv-slo='read.p95_ms<=5'"),
        ("read.gib_per_s<5", "higher", "the least that is good enough"),
        ("read.gib_per_s<=0.5", "higher", "--kv-slo='read.gib_per_s>=0.5'"),
    ],
)
def test_an_slo_against_its_metrics_direction_is_refused_with_what_is_meant(
    text: str, better: Any, meant: str
) -> None:
    with pytest.raises(OptionError, match=f"is better when {better}, so a bad storage") as caught:
        check_slo(parse_slo(text), better)
    assert str(caught.value).startswith(f"--kv-slo is {text}; ")
    assert meant in str(caught.value)
    rule = parse_slo(re.findall(r"--kv-slo='(.*)'", str(caught.value))[0])
    check_slo(rule, better)


@pytest.mark.parametrize("limit_ratio", [0.0, -0.1, float("nan"), float("inf")])
def test_a_fail_rule_without_a_limit_can_not_exist(limit_ratio: float) -> None:
    with pytest.raises(OptionError, match="it must be above 0%"):
        FailRule(metric="a", limit_ratio=limit_ratio)


@pytest.mark.parametrize("change", [{"op": "="}, {"value": float("nan")}])
def test_an_slo_that_nothing_can_keep_can_not_exist(change: dict[str, Any]) -> None:
    intact: dict[str, Any] = {"metric": "a", "op": "<", "value": 1.0}
    SloRule(**intact)
    with pytest.raises(OptionError, match="it must be <, <=, > or >= and a finite number"):
        SloRule(**{**intact, **change})


@given(st.decimals("0.001", "1000", places=3))
def test_a_fail_rule_reads_back_from_its_text(percent: object) -> None:
    rule = parse_fail(f"read.p99_ms:{percent}%")
    assert parse_fail(str(rule)) == rule


@given(st.sampled_from(["<", "<=", ">", ">="]), st.floats(allow_nan=False, allow_infinity=False))
def test_an_slo_reads_back_from_its_text(op: Any, value: float) -> None:
    rule = SloRule(metric="read.p95_ms", op=op, value=value)
    assert parse_slo(str(rule)) == rule


# -- judging against a baseline --


@pytest.mark.parametrize(
    ("baseline", "now", "status"),
    [
        ((10.0, 10.1, 9.9), (10.1, 10.2, 10.0), "ok"),  # 1 % worse, quiet
        ((10.0, 10.1, 9.9), (10.9, 11.0, 10.8), "ok"),  # 9 % worse, quiet: under the limit
        ((10.0, 10.1, 9.9), (11.2, 11.3, 11.1), "worse"),  # 12 % worse, quiet
        ((10.0, 12.0, 8.0), (11.5, 14.0, 9.0), "inconclusive"),  # 15 % worse, noisy
        ((10.0, 12.0, 8.0), (10.0, 12.0, 8.0), "inconclusive"),  # no change, but it may be
        ((10.0, 12.0, 8.0), (1.0, 1.2, 0.8), "ok"),  # far better than any noise
        ((10.0, 12.0, 8.0), (30.0, 32.0, 28.0), "worse"),  # far worse than any noise
        ((10.0,), (10.0, 10.0), "inconclusive"),
        ((10.0, 10.0), (10.0,), "inconclusive"),
        ((10.0,), (5.0,), "inconclusive"),
        ((10.0,), (50.0,), "inconclusive"),
        ((10.0, 10.0), (11.0, 11.0), "ok"),  # exactly the limit is not more than it
        ((1.0, 1.0), (1.1, 1.1), "ok"),  # 1.1 / 1.0 - 1 is a little more in binary
        ((10.0, 10.0), (11.001, 11.001), "worse"),
        ((-10.0, -10.0), (-5.0, -5.0), "worse"),  # more is worse below zero too
        ((0.0, 0.0), (0.0, 0.0), "ok"),
        ((0.0, 0.0), (1.0, 1.0), "worse"),  # any change from nothing is infinite
        ((0.0, 0.0), (1.0, 2.0), "inconclusive"),
    ],
)
def test_verdicts_of_a_latency(
    baseline: tuple[float, ...], now: tuple[float, ...], status: str
) -> None:
    assert judged(TEN_PERCENT, latency(*baseline), latency(*now)).status == status


@pytest.mark.parametrize(
    ("now", "status", "change_ratio"),
    [((2.0, 2.0), "ok", 0.0), ((4.0, 4.0), "ok", -1.0), ((1.0, 1.0), "worse", 0.5)],
)
def test_less_throughput_is_worse(now: tuple[float, ...], status: str, change_ratio: float) -> None:
    rule = FailRule(metric="read.gib_per_s", limit_ratio=0.1)
    judgement = judged(rule, throughput(2.0, 2.0), throughput(*now))
    assert (judgement.status, judgement.change_ratio) == (status, change_ratio)


def test_a_judgement_carries_medians_changes_and_noise() -> None:
    judgement = judged(TEN_PERCENT, latency(10.0, 12.0, 14.0), latency(18.0, 27.0, 22.0), case=CASE)
    assert (judgement.case, judgement.baseline, judgement.now) == (CASE, 12.0, 22.0)
    assert judgement.change_ratio == pytest.approx(10 / 12)
    assert judgement.mean_change_ratio == pytest.approx((67 / 3 - 12) / 12)
    half = np.log1p(judgement.noise_ratio or 0)  # relative squared errors 1/108 and 61/9/22.33²
    error = np.sqrt(1 / 108 + 61 / 9 / (67 / 3) ** 2)
    assert 2.776 * error < half < 4.303 * error


def test_a_single_trial_has_a_change_but_no_noise() -> None:
    judgement = judged(TEN_PERCENT, latency(10.0), latency(12.0, 12.0))
    assert judgement.noise_ratio is None
    assert "the baseline has 1 trial and this run 2 trials" in judgement.reason
    assert "raise --kv-trials" in judgement.reason


@pytest.mark.thorough
@pytest.mark.parametrize("regression", [0.25, 0.5])
@pytest.mark.parametrize("cv", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("trials", [2, 3, 5])
def test_noise_never_lets_a_regression_of_over_twice_the_limit_pass(
    trials: int, cv: float, regression: float
) -> None:
    random = np.random.default_rng(42)
    passed = 0
    for _ in range(300):
        baseline, now = 1 + cv * random.standard_normal((2, trials))
        now *= 1 + regression
        verdict = judged(TEN_PERCENT, latency(*baseline.tolist()), latency(*now.tolist()))
        passed += verdict.status == "ok"
    assert passed <= 0.04 * 300  # a 95 % interval errs to this side in 2.5 % of the cases


@pytest.mark.thorough
@pytest.mark.parametrize("trials", [2, 3, 5])
def test_noise_alone_seldom_closes_the_gate_as_worse(trials: int) -> None:
    random = np.random.default_rng(42)
    closed = 0
    for _ in range(400):
        baseline, now = 1 + 0.1 * random.standard_normal((2, trials))
        verdict = judged(TEN_PERCENT, latency(*baseline.tolist()), latency(*now.tolist()))
        closed += verdict.status == "worse"
    assert closed <= 0.04 * 400


@given(TRIALS, LIMITS)
def test_a_run_is_never_worse_than_itself(values: list[float], limit: float) -> None:
    rule = FailRule(metric="read.p99_ms", limit_ratio=limit)
    assert judged(rule, latency(*values), latency(*values)).status in ("ok", "inconclusive")


@pytest.mark.thorough
@given(TRIALS, TRIALS, LIMITS, st.floats(1e-3, 1e3))
def test_the_unit_does_not_change_the_verdict(
    baseline: list[float], now: list[float], limit: float, factor: float
) -> None:
    rule = FailRule(metric="read.p99_ms", limit_ratio=limit)
    reported = judged(rule, latency(*baseline), latency(*now))
    scaled = judged(rule, *(latency(*(v * factor for v in side)) for side in (baseline, now)))
    assert scaled.change_ratio == pytest.approx(reported.change_ratio, rel=1e-6, abs=1e-9)
    assert scaled.noise_ratio == pytest.approx(reported.noise_ratio, rel=1e-6, abs=1e-9)


@pytest.mark.thorough
@given(TRIALS, TRIALS, LIMITS)
def test_no_side_of_a_gate_is_ok_and_worse_at_once(
    baseline: list[float], now: list[float], limit: float
) -> None:
    there = judged(
        FailRule(metric="read.p99_ms", limit_ratio=limit), latency(*baseline), latency(*now)
    )
    back = judged(
        FailRule(metric="read.gib_per_s", limit_ratio=limit),
        throughput(*baseline),
        throughput(*now),
    )
    assert {there.status, back.status} != {"worse"}
    assert there.change_ratio == pytest.approx(-(back.change_ratio or 0.0))


CLEAN, MIXED = [10.0] * 25, [10.0] * 13 + [20.0] * 12


@pytest.mark.parametrize("turn", [lambda v: v, lambda v: 1 / v], ids=["latency", "throughput"])
@pytest.mark.parametrize(
    ("trials", "limit", "status"),
    [(25, 0.2, "worse"), (25, 0.1, "worse"), (11, 0.2, "worse"), (5, 0.1, "inconclusive")],
)
def test_half_of_the_trials_at_twice_the_latency_are_never_ok(
    trials: int, limit: float, status: str, turn: Any
) -> None:
    now = [10.0] * (trials - trials // 2) + [20.0] * (trials // 2)
    is_latency = turn(2) == 2
    rule = FailRule(metric=SERIES if is_latency else "read.gib_per_s", limit_ratio=limit)
    side = latency if is_latency else throughput
    found = judged(rule, side(*map(turn, [10.0] * trials)), side(*map(turn, now)))
    assert (found.change_ratio, found.status) == (0.0, status)
    assert (found.mean_change_ratio or 0) > limit


def test_a_baseline_of_two_kinds_of_trials_hides_no_regression() -> None:
    found = judged(FailRule(metric=SERIES, limit_ratio=0.25), latency(*MIXED), latency(14.0, 14.0))
    assert found.status == "inconclusive"  # the mean is better, the median 40 % worse
    assert (found.mean_change_ratio or 0) < 0
    assert "only the median got worse by more than the limit" in found.reason


@pytest.mark.parametrize(
    ("baseline", "now"),
    [
        ((28.0, 44.0, 60.0), (0.8, 0.9, 1.0)),  # as it was reported: 97 % better
        ((28.0, 60.0), (0.8, 1.0)),
        ((10.0, 20.0, 40.0), (9.0, 9.5, 3.0)),  # the trials of the sides don't overlap
        ((10.0, 12.0, 8.0), (1.0, 1.2, 0.8)),
    ],
)
def test_a_clear_improvement_is_ok_whatever_its_noise(
    baseline: tuple[float, ...], now: tuple[float, ...]
) -> None:
    assert judged(TEN_PERCENT, latency(*baseline), latency(*now)).status == "ok"
    rates = throughput(*(1 / v for v in baseline)), throughput(*(1 / v for v in now))
    rule = FailRule(metric="read.gib_per_s", limit_ratio=0.05)
    assert judged(rule, *rates).status == "ok"
    assert judged(TEN_PERCENT, latency(*now), latency(*baseline)).status != "ok"
    assert compare(SERIES, Found(series=latency(*baseline)), latency(*now)).standing == "better"


@given(TRIALS, TRIALS, LIMITS)
def test_an_improvement_whose_interval_does_not_reach_the_baselines_is_never_inconclusive(
    baseline: list[float], now: list[float], limit: float
) -> None:
    before, after = latency(*baseline), latency(*now)
    low = (before.ci95 or (0.0, 0.0))[0]
    high = (after.ci95 or (0.0, 0.0))[1]
    shift = 0.999 * low / high
    verdict = judged(
        FailRule(metric="read.p99_ms", limit_ratio=limit),
        before,
        latency(*(value * shift for value in now)),
    )
    assert verdict.status == "ok" or (verdict.change_ratio or 0) > 0  # the median is worse


@pytest.mark.parametrize("looks", [1, 5])
def test_inconclusive_says_how_many_trials_the_limit_needs(looks: int) -> None:
    sides = [latency(8.0, 10.0, 12.0), latency(8.5, 10.0, 12.0)]
    before, now = (replace(side, looks=looks) for side in sides)
    found = judged(TEN_PERCENT, before, now)
    assert found.status == "inconclusive"
    assert found.needs_trials
    (count,) = map(int, re.findall(r"10% needs about (\d+) trials on each side", found.reason))
    assert "at this noise (CV 19%)" in found.reason
    even = [0.83, 1.17] * (count // 2) + [1.0] * (count % 2)  # the same CV, nearly
    enough = [replace(latency(*even), looks=looks)] * 2
    assert judged(TEN_PERCENT, *enough).status == "ok"
    fewer = [replace(latency(*even[: count // 2]), looks=looks)] * 2
    assert judged(TEN_PERCENT, *fewer).status == "inconclusive"


def test_more_trials_are_asked_for_where_they_help_and_nowhere_else() -> None:
    few, noisy, quiet = latency(10.0), latency(8.0, 10.0, 12.0), latency(10.0, 10.0)
    assert judged(TEN_PERCENT, quiet, few).needs_trials
    assert judged(TEN_PERCENT, noisy, noisy).needs_trials
    assert not judged(TEN_PERCENT, few, noisy).needs_trials  # it is the baseline that lacks them
    assert not judged(TEN_PERCENT, quiet, quiet).needs_trials
    slo = SloRule(metric=SERIES, op="<", value=11.0)
    assert judge_slo(slo, noisy).needs_trials
    assert judge_slo(slo, few).needs_trials
    assert not judge_slo(slo, quiet).needs_trials


@given(TRIALS, TRIALS, LIMITS, LIMITS)
def test_a_wider_limit_never_closes_what_a_narrower_one_let_pass(
    baseline: list[float], now: list[float], one: float, other: float
) -> None:
    narrow, wide = (
        judged(
            FailRule(metric="read.p99_ms", limit_ratio=limit), latency(*baseline), latency(*now)
        ).status
        for limit in sorted((one, other))
    )
    if narrow == "ok":
        assert wide == "ok"
    if wide == "worse":
        assert narrow == "worse"


def test_an_absent_side_is_missing() -> None:
    absent = judged(TEN_PERCENT, None, latency(10.0, 10.0), case=CASE)
    assert (absent.status, absent.baseline, absent.now) == ("missing", None, 10.0)
    assert "the baseline has no such entry" in absent.reason
    absent = judged(TEN_PERCENT, latency(10.0, 10.0), None)
    assert (absent.status, absent.baseline, absent.now) == ("missing", 10.0, None)
    assert "this run has no such entry" in absent.reason


@pytest.mark.parametrize(
    ("status", "refused", "allowed"),
    [
        ("ok", "passes", "passes"),
        ("worse", "closes", "closes"),
        ("missing", "closes", "closes"),
        ("incomparable", "closes", "closes"),
        ("inconclusive", "closes", "passes"),
    ],
)
def test_only_an_inconclusive_verdict_can_be_allowed(
    status: Any, refused: str, allowed: str
) -> None:
    judgement = Judgement(rule=TEN_PERCENT, case=CASE, status=status, reason="")
    assert judgement.closes(allow_inconclusive=False) is (refused == "closes")
    assert judgement.closes(allow_inconclusive=True) is (allowed == "closes")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (STORAGE, NO_STORAGE, "the baseline was measured on storage and this run was not"),
        (NO_STORAGE, STORAGE, "this run was measured on storage and the baseline was not"),
        (STORAGE, IN_MEMORY, "only this run has the invalidating verdict TMPFS"),
        (IN_MEMORY, STORAGE, "only the baseline has the invalidating verdict TMPFS"),
        (Provenance(is_storage=True), NO_STORAGE, "the baseline was measured on storage"),
    ],
)
def test_what_is_not_of_one_kind_is_incomparable_and_closes_the_gate(
    before: Provenance, after: Provenance, reason: str
) -> None:
    found = Found(series=latency(10.0, 10.0), provenance=before)
    judgement = judge(TEN_PERCENT, found, latency(1.0, 1.0), case=CASE, provenance=after)
    assert (judgement.status, judgement.change_ratio) == ("incomparable", None)
    assert judgement.reason.startswith(reason)
    assert judgement.closes(allow_inconclusive=True)
    text = gate_table([judgement])
    assert re.search(r"^read.p99_ms +10 +1 +- +10% INCOMPARABLE$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (STORAGE, STORAGE),
        (NO_STORAGE, NO_STORAGE),
        (IN_MEMORY, IN_MEMORY),
        (STORAGE, Provenance(is_storage=True, verdicts=("SHORT_WINDOW",))),
        (Provenance(), NO_STORAGE),
        (Provenance(), IN_MEMORY),
        (STORAGE, Provenance()),
    ],
)
def test_what_is_of_one_kind_or_does_not_tell_is_compared(
    before: Provenance, after: Provenance
) -> None:
    found = Found(series=latency(10.0, 10.0), provenance=before)
    assert judge(TEN_PERCENT, found, latency(10.0, 10.0), provenance=after).status == "ok"


@pytest.mark.parametrize(
    ("metric", "status"),
    [("read.p99_ms", "inconclusive"), ("run.s", "ok"), ("cache.hit_ratio", "ok")],
)
@pytest.mark.parametrize("is_now", [False, True])
def test_ranks_that_ended_apart_leave_what_is_of_the_whole_work(
    metric: str, status: str, *, is_now: bool
) -> None:
    uneven = Provenance(is_storage=True, verdicts=("UNEVEN",))
    before, after = (STORAGE, uneven) if is_now else (uneven, STORAGE)
    better = METRICS[metric].better
    series = MetricSeries(
        name=metric, unit=METRICS[metric].unit, better=better, values=(10.0, 10.0)
    )
    found = Found(series=series, provenance=before)
    rule = replace(TEN_PERCENT, metric=metric)
    judgement = judge(rule, found, series, provenance=after)
    assert judgement.status == status
    assert ("UNEVEN" in judgement.reason) == (status != "ok")


STANDSTILLS = [("STALL", "the storage stalled"), ("PAUSED", "a rank was paused")]
DISTURBANCES = [
    "BUSY_DEVICE",
    "LATE_REPLAY",
    "LATE_STAMPS",
    "NOT_STEADY",
    "PAUSED",
    "STALL",
    "THROTTLED",
]


@pytest.mark.parametrize("code", DISTURBANCES)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_disturbed_side_is_never_better_and_may_be_worse(code: str, side: str) -> None:
    disturbed = Provenance(is_storage=True, verdicts=(code,))
    before, after = (disturbed, STORAGE) if side == "before" else (STORAGE, disturbed)
    found = Found(series=latency(10.0, 10.1), provenance=before)
    for value in (10.0, 5.0):
        better = judge(TEN_PERCENT, found, latency(value, value), provenance=after)
        assert better.status == "inconclusive"
        assert code in better.reason
        assert not better.needs_trials  # more of the same can't help
    assert judge(TEN_PERCENT, found, latency(20.0, 20.1), provenance=after).status == "worse"
    free = compare(SERIES, found, latency(5.0, 5.1), provenance=after)
    assert (free.standing, code in free.reason) == ("noise", True)


@pytest.mark.parametrize("code", DISTURBANCES)
def test_what_disturbed_both_sides_is_said_below_the_table(code: str) -> None:
    disturbed = Provenance(is_storage=True, verdicts=(code,))
    found = Found(series=throughput(1.0, 1.01, 1.02), provenance=disturbed)
    now = throughput(2.0, 2.01, 2.02)
    reported = f"{CASE}: both sides had {code}: what they compare is the disturbance as well"
    rule = FailRule(metric="read.gib_per_s", limit_ratio=0.1)
    judgement = judge(rule, found, now, case=CASE, provenance=disturbed)
    assert judgement.status == "ok"
    free = compare(rule.metric, found, now, case=CASE, provenance=disturbed)
    assert free.standing == "better"
    for row in (judgement, free):
        text = " ".join(gate_table([row, row]).split())
        assert text.count(reported) == 1
    quiet = judge(rule, Found(series=now, provenance=STORAGE), now, provenance=STORAGE)
    assert quiet.note == ""


def test_what_is_proven_by_no_side_or_alone_passes_a_gate_but_never_silently() -> None:
    unproven = Provenance(is_storage=True, verdicts=("UNPROVEN",))
    now = latency(10.0, 10.0)
    found = Found(series=now, provenance=unproven)
    both = judge(TEN_PERCENT, found, now, case=CASE, provenance=unproven)
    assert both.status == "ok"
    assert f"{CASE}: both sides had UNPROVEN" in " ".join(gate_table([both]).split())
    for before, after in ((unproven, STORAGE), (STORAGE, unproven)):
        one = judge(TEN_PERCENT, replace(found, provenance=before), now, provenance=after)
        assert one.status == "inconclusive"
        assert "has UNPROVEN, so its figures may be of a cache" in one.reason
    alone = slo("read.p95_ms<20", 10.0, "UNPROVEN")
    assert alone.status == "ok"
    assert f"{CASE}: this run had UNPROVEN" in gate_table([alone])


def test_a_disturbance_of_which_the_baseline_does_not_tell_is_said() -> None:
    disturbed = Provenance(is_storage=True, verdicts=("THROTTLED",))
    found = Found(series=latency(10.0, 10.1))
    judgement = judge(TEN_PERCENT, found, latency(5.0, 5.1), provenance=disturbed)
    assert (judgement.status, judgement.note) == (
        "ok",
        "this run had THROTTLED, of the other is unknown",
    )


def slo(text: str, value: float, *verdicts: str, plan: dict[str, Any] | None = None) -> Judgement:
    """An SLO on one metric of three equal trials that had these verdicts."""
    rule = parse_slo(text)
    spec = METRICS[rule.metric]
    now = MetricSeries(name=spec.name, unit=spec.unit, better=spec.better, values=(value,) * 3)
    provenance = replace(reported(plan=plan or {}), verdicts=verdicts)
    return judge_slo(rule, now, case=CASE, provenance=provenance)


@pytest.mark.parametrize("code", DISTURBANCES)
def test_an_slo_that_a_disturbed_run_keeps_names_the_disturbance(code: str) -> None:
    judgement = slo("read.gib_per_s>1", 2.0, code)
    assert judgement.status == "ok"
    assert f"{CASE}: this run had {code}" in gate_table([judgement])
    assert "had" not in gate_table([slo("read.gib_per_s>1", 2.0, "SHORT_WINDOW")])


@pytest.mark.parametrize(
    ("rule", "plan", "status"),
    [
        ("read.p95_ms<20", {}, "inconclusive"),
        ("load.p99_ms<20", {}, "inconclusive"),
        ("read.max_ms<20", {}, "inconclusive"),
        ("load.max_ms<20", {}, "ok"),
        ("request.max_ms<20", {}, "ok"),
        ("request.p95_ms<20", {}, "inconclusive"),
        ("request.p95_ms<20", {"request_rate": 5.0}, "ok"),
        ("request.p95_ms<20", {"trace.speedup": 2.0}, "ok"),
        ("load.p95_ms<20", {"request_rate": 5.0}, "inconclusive"),
        ("read.p95_ms<9", {}, "worse"),
        ("interference.load_p99_ratio<20", {}, "inconclusive"),
        ("interference.request_p99_ratio<20", {"request_rate": 5.0}, "inconclusive"),
        ("interference.load_p99_ratio<9", {}, "worse"),
    ],
)
@pytest.mark.parametrize(("code", "what"), STANDSTILLS)
def test_a_latency_that_hides_a_standstill_keeps_no_slo(
    code: str, what: str, rule: str, plan: dict[str, Any], status: str
) -> None:
    judgement = slo(rule, 10.0, code, plan=plan)
    assert judgement.status == status
    assert not judgement.needs_trials
    assert slo(rule, 1.0).status == "ok"
    if status == "inconclusive":
        assert f"{what} ({code})" in judgement.reason


@pytest.mark.parametrize("standstill", STANDSTILLS)
@pytest.mark.parametrize("baseline_had", ["the same", "who knows"])
@pytest.mark.parametrize(
    ("metric", "plan", "status"),
    [
        ("read.p95_ms", {}, "inconclusive"),
        ("load.p99_ms", {}, "inconclusive"),
        ("load.max_ms", {}, "ok"),
        ("request.p95_ms", {}, "inconclusive"),
        ("request.p95_ms", {"request_rate": 5.0}, "ok"),
        ("read.gib_per_s", {}, "ok"),
        ("interference.read_p99_ratio", {}, "inconclusive"),
    ],
)
def test_a_latency_that_hides_a_standstill_passes_no_gate_whatever_the_baseline_had(
    standstill: tuple[str, str], baseline_had: str, metric: str, plan: dict[str, Any], status: str
) -> None:
    code, what = standstill
    spec = METRICS[metric]
    better = (10.0, 20.0) if spec.better == "higher" else (20.0, 10.0)
    before, now = (
        MetricSeries(name=metric, unit=spec.unit, better=spec.better, values=(value,) * 3)
        for value in better
    )
    stalled = replace(reported(plan=plan), verdicts=(code,))
    found = Found(
        series=before,
        provenance=replace(stalled, verdicts=(code,) if baseline_had == "the same" else None),
    )
    rule = FailRule(metric=metric, limit_ratio=0.1)
    judgement = judge(rule, found, now, case=CASE, provenance=stalled)
    assert judgement.status == status
    assert not judgement.needs_trials
    if status == "inconclusive":
        assert f"but {what} ({code})" in judgement.reason
    slower = replace(
        now, values=tuple(v * (4 if spec.better == "lower" else 0.25) for v in now.values)
    )
    assert judge(rule, found, slower, provenance=stalled).status == "worse"


@pytest.mark.parametrize("kind", ["plan", "placement", "device", "filesystem"])
def test_another_setting_closes_the_gate_unless_it_may_differ(kind: str) -> None:
    found = Found(series=latency(10.0, 10.0), provenance=reported(**{kind: {"x": 16}}))
    now = reported(**{kind: {"x": 1}})
    closed = judge(TEN_PERCENT, found, latency(5.0, 5.0), provenance=now)
    assert closed.status == "incomparable"
    assert f"{kind} differs from the baseline's (x 16 -> 1)" in closed.reason
    assert f"--kv-compare-across={kind}" in closed.reason
    allowed = judge(
        TEN_PERCENT, found, latency(5.0, 5.0), provenance=now, across=frozenset({kind, "plan"})
    )
    assert allowed.status == "ok"


@pytest.mark.parametrize("kind", ["software", "hosts"])
def test_other_software_closes_nothing(kind: str) -> None:
    found = Found(series=latency(10.0, 10.0), provenance=reported(**{kind: {"x": 16}}))
    now = reported(**{kind: {"x": 1}})
    assert judge(TEN_PERCENT, found, latency(5.0, 5.0), provenance=now).status == "ok"


def test_a_plan_that_is_another_and_not_told_closes_the_gate() -> None:
    found = Found(series=latency(10.0, 10.0), provenance=STORAGE, other_plan=True)
    closed = judge(TEN_PERCENT, found, latency(10.0, 10.0), provenance=STORAGE)
    assert (closed.status, "plan_digest" in closed.reason) == ("incomparable", True)
    across = frozenset({"plan"})
    allowed = judge(TEN_PERCENT, found, latency(10.0, 10.0), provenance=STORAGE, across=across)
    assert allowed.status == "ok"


def test_a_baseline_that_does_not_tell_what_it_is_of_is_said() -> None:
    text = " ".join(gate_table([], unknown=[CASE]).split())
    assert text.startswith("the baseline does not tell whether its values are of storage")
    assert text.endswith(CASE)


def test_sides_of_different_units_are_not_compared() -> None:
    seconds = MetricSeries(name="read.p99_ms", unit="s", better="lower", values=(1.0, 1.0))
    with pytest.raises(OptionError, match=r"--kv-compare has read.p99_ms in 's', lower better"):
        judged(TEN_PERCENT, seconds, latency(10.0, 10.0))


def test_sides_of_different_directions_are_not_compared() -> None:
    other = MetricSeries(name="read.p99_ms", unit="ms", better="higher", values=(1.0, 1.0))
    with pytest.raises(OptionError, match="this run in 'ms', higher better; they must be"):
        judged(TEN_PERCENT, latency(10.0, 10.0), other)


def test_a_rule_is_not_applied_to_another_metric() -> None:
    with pytest.raises(ResultError, match=r"read.p99_ms:10% is applied to read.gib_per_s"):
        judged(TEN_PERCENT, throughput(1.0), throughput(1.0))
    other = MetricSeries(name="write.p99_ms", unit="ms", better="lower", values=(1.0,))
    with pytest.raises(ResultError, match=r"is applied to write.p99_ms"):
        judged(TEN_PERCENT, other, latency(1.0))
    with pytest.raises(ResultError, match=r"is applied to read.p99_ms"):
        judge_slo(SloRule(metric="read.gib_per_s", op=">", value=1.0), latency(2.0))


def test_a_limit_that_can_not_be_exceeded_is_refused() -> None:
    rule = FailRule(metric="read.gib_per_s", limit_ratio=1.0)
    with pytest.raises(OptionError, match=r"--kv-fail is read.gib_per_s:100%; .* never close"):
        check_rule(rule, "higher")
    with pytest.raises(OptionError, match="never close"):
        judged(rule, throughput(1.0), throughput(1.0))
    check_rule(FailRule(metric="read.gib_per_s", limit_ratio=0.99), "higher")
    check_rule(FailRule(metric="read.p99_ms", limit_ratio=3.0), "lower")


# -- comparing without a gate --


@pytest.mark.parametrize(
    ("baseline", "now", "standing", "change_ratio"),
    [
        ((10.0, 10.1, 9.9), (11.2, 11.3, 11.1), "worse", 0.12),
        ((10.0, 10.1, 9.9), (8.0, 8.1, 7.9), "better", -0.2),
        ((10.0, 12.0, 8.0), (11.0, 13.0, 9.0), "noise", 0.1),
        ((10.0, 10.0), (10.0, 10.0), "noise", 0.0),
        ((10.0,), (20.0, 20.0), "unknown", 1.0),
        ((10.0, 10.0), (20.0,), "unknown", 1.0),
    ],
)
def test_a_comparison_says_what_the_trials_prove(
    baseline: tuple[float, ...], now: tuple[float, ...], standing: str, change_ratio: float
) -> None:
    found = compare(SERIES, Found(series=latency(*baseline)), latency(*now), case=CASE)
    assert (found.standing, found.reason) == (standing, "")
    assert found.change_ratio == pytest.approx(change_ratio)


def test_more_throughput_is_better() -> None:
    found = Found(series=throughput(2.0, 2.0))
    assert compare("read.gib_per_s", found, throughput(3.0, 3.0)).standing == "better"


def test_a_comparison_without_two_sides_of_a_kind_says_why() -> None:
    now = latency(1.0, 1.0)
    assert compare(SERIES, Found(), now).reason.startswith("the baseline has no such entry")
    absent = compare(SERIES, Found(series=now), None)
    assert (absent.standing, absent.baseline, absent.now) == ("missing", 1.0, None)
    assert absent.reason.startswith("this run has no such entry")
    unlike = compare(SERIES, Found(series=now, provenance=STORAGE), now, provenance=NO_STORAGE)
    assert (unlike.standing, unlike.change_ratio) == ("incomparable", None)


def test_the_table_of_comparisons_has_no_limits() -> None:
    base = Found(series=latency(10.0, 10.0))
    comparisons = [
        compare(SERIES, base, latency(12.5, 12.5), case=CASE),
        compare(SERIES, base, latency(5.0), case=CASE),
        compare(SERIES, Found(), latency(5.0), case=CASE),
    ]
    lines = gate_table(comparisons).splitlines()
    assert lines == [
        "metric                 baseline       now        change       limit verdict",
        "mixed-llama3.1-8b-np2",
        "read.p99_ms                  10      12.5   25.0% worse           - worse",
        "read.p99_ms                  10         5  50.0% better           - unknown",
        "read.p99_ms                   -         5             -           - missing",
        "read.p99_ms of mixed-llama3.1-8b-np2 is missing: the baseline has no such entry:",
        "  compare runs that both have it",
    ]


# -- judging the run alone --


@pytest.mark.parametrize(
    ("op", "statuses"),
    [
        ("<", ("ok", "worse", "worse")),
        ("<=", ("ok", "ok", "worse")),
        (">", ("worse", "worse", "ok")),
        (">=", ("worse", "ok", "ok")),
    ],
)
def test_an_slo_judges_median_and_mean_over_trials(op: Any, statuses: tuple[str, ...]) -> None:
    outcome = tuple(
        judge_slo(
            SloRule(metric="read.p99_ms", op=op, value=value), latency(1.0, 20.0, 39.0)
        ).status
        for value in (21.0, 20.0, 19.0)
    )
    assert outcome == statuses


def test_an_slo_says_what_it_measured() -> None:
    rule = SloRule(metric="read.p99_ms", op="<", value=20.0)
    broken = judge_slo(rule, latency(25.0), case=CASE)
    assert broken.reason == "the median over 1 trial is 25 ms, which breaks read.p99_ms<20"
    assert (broken.case, broken.now, broken.baseline) == (CASE, 25.0, None)
    assert "which keeps" in judge_slo(rule, latency(15.0)).reason


@pytest.mark.parametrize("values", [(10.0, 10.0, 60.0), (30.0, 30.0, 1.0, 1.0, 30.0)])
def test_an_slo_that_only_one_of_median_and_mean_keeps_is_inconclusive(
    values: tuple[float, ...],
) -> None:
    found = judge_slo(SloRule(metric=SERIES, op="<", value=20.0), latency(*values), case=CASE)
    assert found.status == "inconclusive"
    assert "look for the odd one" in found.reason


def test_an_slo_on_no_storage_is_refused_unless_that_is_allowed() -> None:
    rule = SloRule(metric=SERIES, op="<", value=20.0)
    refused = judge_slo(rule, latency(1.0, 1.0), provenance=NO_STORAGE)
    assert (refused.status, "NOT_STORAGE" in refused.reason) == ("incomparable", True)
    allowed = judge_slo(rule, latency(1.0, 1.0), provenance=NO_STORAGE, allow_invalid=True)
    assert allowed.status == judge_slo(rule, latency(1.0, 1.0), provenance=STORAGE).status == "ok"


@pytest.mark.parametrize(
    ("judgement", "line"),
    [
        (
            judged(TEN_PERCENT, latency(10.0, 10.0), latency(12.5, 12.5)),
            "read.p99_ms 12.5 ms, 25.0% worse than 10, limit 10%",
        ),
        (
            judge_slo(SloRule(metric=SERIES, op="<", value=1.0), latency(22.1)),
            "read.p99_ms 22.1 ms, limit < 1 ms",
        ),
        (
            judged(TEN_PERCENT, latency(10.0), latency(12.5)),
            "read.p99_ms 12.5 ms, 25.0% worse than 10, inconclusive, limit 10%",
        ),
        (judged(TEN_PERCENT, None, latency(12.5)), "read.p99_ms 12.5 ms, missing, limit 10%"),
        (
            judged(TEN_PERCENT, latency(8.0, 10.0, 12.0), latency(8.0, 11.0, 12.0)),
            "read.p99_ms 11 ms, 10.0% worse than 10, inconclusive, limit 10%",
        ),
    ],
)
def test_a_verdict_in_a_line_has_metric_value_and_limit(judgement: Judgement, line: str) -> None:
    assert verdict_line(judgement) == line


def test_an_slo_on_a_metric_the_run_lacks_is_missing() -> None:
    assert judge_slo(SloRule(metric="a", op="<", value=1.0), None).status == "missing"


# -- the table --


def test_the_table_names_everything_a_reader_needs() -> None:
    slo = SloRule(metric="read.p99_ms", op="<", value=20.0)
    speed = FailRule(metric="read.gib_per_s", limit_ratio=0.025)
    judgements = [
        judged(TEN_PERCENT, latency(10.0, 10.0), latency(12.5, 12.5), case=CASE),
        judged(speed, throughput(2.0, 2.0), throughput(2.5, 2.5), case=CASE),
        judge_slo(slo, latency(12.5, 12.5), case=CASE),
        judged(TEN_PERCENT, latency(10.0), latency(1234.5), case="agent"),
        judged(TEN_PERCENT, None, latency(0.0), case="agent"),
        judged(TEN_PERCENT, latency(10.0, 10.0), latency(10.0, 10.0), case="agent"),
    ]
    # The lines of a verdict table, spaces and all.
    assert gate_table(judgements, differences={"agent": ["plan: users 8 -> 100"]}).splitlines() == [
        "metric                 baseline       now        change       limit verdict",
        "mixed-llama3.1-8b-np2",
        "read.p99_ms                  10      12.5   25.0% worse         10% WORSE",
        "read.gib_per_s                2       2.5  25.0% better        2.5% ok",
        "read.p99_ms                   -      12.5             -         <20 ok",
        "agent",
        "read.p99_ms                  10      1234  >9999% worse         10% INCONCLUSIVE",
        "read.p99_ms                   -         0             -         10% MISSING",
        "read.p99_ms                  10        10     unchanged         10% ok",
        "read.p99_ms of mixed-llama3.1-8b-np2 is worse: it is 25.0% worse (mean 25.0%",
        "  worse, noise 0.0%, limit 10%): the difference is beyond the noise of the",
        "  trials",
        "read.p99_ms of agent is inconclusive: the baseline has 1 trial and this run 1",
        "  trial; noise needs at least 2 on both sides: raise --kv-trials",
        "read.p99_ms of agent is missing: the baseline has no such entry: compare runs",
        "  that both have it",
        "agent differs from the baseline in:",
        "  plan: users 8 -> 100",
    ]


def test_a_noisy_verdict_says_how_to_get_a_better_one() -> None:
    noisy = judged(TEN_PERCENT, latency(10.0, 12.0, 8.0), latency(10.0, 12.0, 8.0))
    text = " ".join(gate_table([noisy]).split())
    assert "read.p99_ms is inconclusive: it is unchanged (mean unchanged, noise" in text
    assert "10% needs about 36 trials on each side at this noise (CV 20%)" in text


@pytest.mark.parametrize(
    ("now", "cells"),
    [
        (0.1, "0.1 95.0% worse"),
        (1.9, "1.9 5.0% worse"),
        (2.0, "2 unchanged"),
        (21.98, "21.98 999.0% better"),
        (26.68, "26.68 1234% better"),
        (1e7, "10000000 >9999% better"),
        (1.2345e-12, "1.235e-12 100.0% worse"),
    ],
)
def test_a_change_names_its_direction_and_fits_its_column(now: float, cells: str) -> None:
    rule = FailRule(metric="read.gib_per_s", limit_ratio=0.1)
    row = gate_table([judged(rule, throughput(2.0), throughput(now))])
    line = row.splitlines()[1]
    assert " ".join(line.split()).startswith(f"read.gib_per_s 2 {cells} 10% INCONCLUSIVE")
    assert len(line) == 80


def test_a_metric_too_long_for_its_column_has_a_line_of_its_own() -> None:
    name = "plugin.a_metric_with_a_very_long_name_ms"
    series = MetricSeries(name=name, unit="ms", better="lower", values=(1.0, 1.0))
    rule = FailRule(metric=name, limit_ratio=0.1)
    lines = gate_table([judged(rule, series, series)]).splitlines()
    assert lines[1] == name
    assert lines[2].split() == ["1", "1", "unchanged", "10%", "ok"]


def test_a_baseline_of_another_session_is_said_once() -> None:
    judgement = judged(TEN_PERCENT, latency(10.0, 10.0), latency(10.0, 10.0), case=CASE)
    text = " ".join(gate_table([judgement] * 2, session="2026-01-01").split())
    assert text.count("the baseline is of another session (2026-01-01)") == 1
    assert "how much sessions differ is unknown" in text
    assert gate_table([], session="2026-01-01") == ""


def test_nothing_to_say_is_an_empty_text() -> None:
    assert gate_table([]) == ""
    assert gate_table([], differences={"a": ["plan: x 1 -> 2"]}).startswith("a differs from")


WORDS = st.text("abcdefgh.-_0123456789", min_size=1, max_size=200)
FIGURES = st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=3)


@given(WORDS, WORDS, st.tuples(FIGURES, FIGURES), st.floats(1e-9, 1e9), st.floats(-1e300, 1e300))
def test_no_line_is_wider_than_80_columns(
    case: str, metric: str, sides: tuple[list[float], ...], limit: float, value: float
) -> None:
    before, after = (
        MetricSeries(name=metric, unit="ms", better="lower", values=tuple(side)) for side in sides
    )
    fail = FailRule(metric=metric, limit_ratio=limit)
    slo = SloRule(metric=metric, op="<=", value=value)
    judgements = [judged(fail, before, after, case=case), judge_slo(slo, after, case=case)]
    text = gate_table(judgements, differences={case: ["plan: users 8 -> 100"]})
    assert max(map(len, text.splitlines())) <= 80
    unwrapped = "".join(text.split())
    assert unwrapped.count(case) >= 2
    assert metric in unwrapped
