from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.tiers import TIER_POLICIES
from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.counters import MAY_BE_UNKNOWN, TABLE
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, SECTIONS, tier_sections
from pytest_kvcache.measure.stalls import Stall
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.record import RankResult, TrialRecord
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from pytest_kvcache.units import ratio
from tests.factories import (
    FILESYSTEM,
    PAGE,
    memory_tiers,
    rank_result,
    sound_plan,
    sound_record,
    sound_restart_plan,
    watch,
    watched,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial

GIB = 1 << 30


def two_ranks(**changes: Any) -> list[RankResult]:
    return [rank_result(0), rank_result(1, **changes)]


def trial_by(ranks: list[RankResult], **changes: Any) -> Trial:
    plan = sound_plan(np=len(ranks))
    return trial_of(sound_record(plan, ranks, **changes), plan)


def data_of(ranks: list[RankResult], **changes: Any) -> dict[str, Any]:
    return trial_by(ranks, **changes).to_json()


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def good_trial(index: int = 0, **changes: Any) -> TrialResult:
    plan = sound_plan(np=2, trial=index)
    measured, verdicts = evaluate_trial(sound_record(plan, two_ranks(**changes)), plan)
    return TrialResult(index=index, error=None, verdicts=verdicts, measured=measured)


def a_run(*cases: CaseResult) -> RunResult:
    return RunResult(
        run_id="run",
        started_at="2026-01-01T00:00:00+00:00",
        command=("pytest", "--kv-np", "2"),
        version="1.0",
        commit=None,
        environment={"python": "3.12", "hosts": ["n1"]},
        cases=cases,
    )


# -- ranks and records ---------------------------------------------------------------------


def test_a_rank_survives_its_json() -> None:
    rank = watched([rank_result(3, read_p95_ms=None, error="disk full")])[0]
    assert RankResult.from_json(through_json(rank.to_json())) == rank


@pytest.mark.parametrize("change", [{"pid": None}, {"iops": 5}])
def test_a_rank_with_other_fields_is_refused(change: dict[str, Any]) -> None:
    data = rank_result().to_json()
    (name,) = change
    if name in data:
        del data[name]
    else:
        data |= change
    with pytest.raises(ResultError, match=f"other fields than this version's: {name}"):
        RankResult.from_json(data)


def test_a_record_survives_its_json() -> None:
    plan = sound_plan(np=2)
    record = sound_record(plan, two_ranks())
    again = TrialRecord.from_json(through_json(record.to_json()), plan)
    assert again.ranks == record.ranks
    assert (again.plan_digest, again.trial, again.window_s) == (plan.digest, 0, 60.0)
    written = {name: histogram.to_json() for name, histogram in record.histograms.items()}
    assert {name: histogram.to_json() for name, histogram in again.histograms.items()} == written
    assert again == record
    assert trial_of(again, plan) == trial_of(record, plan)


def spoiled(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The JSON of a sound record of two ranks, spoiled."""
    data: dict[str, Any] = through_json(sound_record(sound_plan(np=2), two_ranks()).to_json())
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(schema="pytest-kvcache/trial/9"), "has schema"),
        (lambda data: data.pop("schema"), "has schema None"),
        (lambda data: data.update(plan_digest="f" * 16), "belongs to another plan or trial"),
        (lambda data: data.update(trial=1), "belongs to another plan or trial"),
        (lambda data: data["ranks"].pop(), "has 1 ranks; the plan has 2"),
        (lambda data: data["ranks"].pop(0), "has 1 ranks; the plan has 2"),
        (lambda data: data["ranks"].append(data["ranks"][0]), "has 3 ranks; the plan has 2"),
        (lambda data: data["ranks"].reverse(), "ranks"),
        (lambda data: data["ranks"][0].pop("cpu_s"), "cpu_s"),
        (lambda data: data["histograms"].pop("load"), "has histograms"),
        (lambda data: data["histograms"].update(other={}), "has histograms"),
        (lambda data: data["histograms"]["read"].update(count=1), "histogram count is 1"),
        (lambda data: data["ranks"][0]["filesystem"].pop("type"), "is missing or odd: KeyError"),
        (lambda data: data["ranks"][0]["device"].update(speed=1), "is missing or odd: TypeError"),
        (lambda data: data["ranks"][0].update(device=7), "is missing or odd: TypeError"),
        (lambda data: data.update(clock=None), "is missing or odd: TypeError"),
    ],
)
def test_a_record_that_is_not_whole_is_refused(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ResultError, match=message):
        TrialRecord.from_json(spoiled(change), sound_plan(np=2))


@pytest.mark.parametrize(
    "name", ["schema", "plan_digest", "trial", "window_s", "ranks", "histograms"]
)
def test_a_record_without_one_of_its_parts_is_refused(name: str) -> None:
    with pytest.raises(ResultError):
        TrialRecord.from_json(spoiled(lambda data: data.pop(name)), sound_plan(np=2))


# -- latencies -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "enough"), [("p50", 20), ("p95", 200), ("p99", 1_000), ("p999", 10_000)]
)
def test_a_percentile_rests_on_ten_samples_beyond_it(name: str, enough: int) -> None:
    def shown(count: int) -> float | None:
        histogram = Histogram()
        histogram.record(np.arange(1, count + 1, dtype=np.int64) * 1_000_000)
        found: float | None = getattr(Latencies.of(histogram), name)
        return found

    assert shown(enough - 1) is None
    assert shown(enough) is not None


def test_latencies_are_milliseconds() -> None:
    histogram = Histogram()
    histogram.record(np.array([1_000_000] * 30 + [4_000_000], dtype=np.int64))
    found = Latencies.of(histogram)
    assert found.mean == pytest.approx(34 / 31)
    assert found.p50 == pytest.approx(1.0, rel=1e-3)
    assert (found.max, found.p95) == (4.0, None)


def test_what_did_not_end_hides_no_slow_request() -> None:
    histogram = Histogram()
    histogram.record(np.full(66, 6_000_000, dtype=np.int64))
    found = Latencies.of(histogram, censored=8)  # of 8 users, all held up at the end
    assert found.p50 == pytest.approx(6.0, rel=1e-3)
    assert found.mean is found.max is found.p95 is None
    assert Latencies.of(histogram, censored=67).p50 is None


def test_what_was_not_measured_is_none_and_never_zero() -> None:
    assert set(asdict(Latencies.of(Histogram())).values()) == {None}


def test_a_ratio_of_nothing_is_none() -> None:
    assert (ratio(1, 4), ratio(0, 4), ratio(0, 0), ratio(3, 0)) == (0.25, 0.0, None, None)


# -- a trial -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.place])
def test_a_counter_of_all_ranks_stands_at_its_place_in_a_trial(name: str) -> None:
    ranks = [rank_result(0, **{name: 3}), rank_result(1, **{name: 5})]
    policy = "demote" if "demote" in name else "write-through"
    plan = sound_plan(np=2, tiers=memory_tiers("gpu", "cpu"), tier_policy=policy, lookup="all")
    if TABLE[name].place[0] == "sharing":
        plan = sound_plan(np=2, lookup="all", publish="link", sharing="run")
    if name.startswith("restart_"):
        plan = sound_restart_plan(np=2)
    value: Any = trial_of(sound_record(plan, ranks), plan).to_json()
    for key in TABLE[name].place:
        value = value[key]
    assert value == (8 if TABLE[name].merge == "sum" else 5)


def test_rates_are_amounts_of_the_window_by_its_length() -> None:
    ranks = [
        rank_result(n, read_bytes=GIB, write_bytes=2 * GIB, prompt_tokens=300, generated_tokens=100,
                    completed_in_window=5)
        for n in range(2)
    ]  # fmt: skip
    data = data_of(ranks, window_s=4.0)
    assert data["window_s"] == 4.0
    assert data["read"]["gib_per_s"] == 0.5
    assert data["write"]["gib_per_s"] == 1.0
    assert data["requests"]["per_s"] == 2.5
    assert data["tokens"]["per_s"] == 200.0


def test_hit_ratios_are_of_all_ranks_together() -> None:
    ranks = [
        rank_result(0, hit_blocks=10, prompt_blocks=10, hit_tokens=5, arrived_tokens=10,
                    first_half_hits=0, first_half_blocks=0, second_half_hits=1,
                    second_half_blocks=4),
        rank_result(1, hit_blocks=0, prompt_blocks=90, hit_tokens=0, arrived_tokens=10,
                    first_half_hits=0, first_half_blocks=0, second_half_hits=2,
                    second_half_blocks=2),
    ]  # fmt: skip
    cache = data_of(ranks)["cache"]
    assert (cache["hit_ratio"], cache["hit_token_ratio"]) == (0.1, 0.25)
    assert cache["half_hit_ratios"] == [None, 0.5]


def test_times_of_the_slowest_and_the_fastest_rank_are_reported() -> None:
    data = data_of(
        [rank_result(0, start_s=0.5, drained_s=60.0), rank_result(1, start_s=0.25, drained_s=61.0)]
    )
    assert (data["start_skew_s"], data["first_done_s"], data["last_done_s"]) == (0.25, 60.0, 61.0)


def test_what_did_not_happen_is_none_and_never_zero() -> None:
    nothing = dict.fromkeys(
        ("read_bytes", "write_bytes", "completed_in_window", "prompt_tokens", "generated_tokens",
         "prompt_blocks", "hit_blocks", "arrived_tokens", "hit_tokens", "requested_read_bytes",
         "requested_write_bytes"), 0,
    )  # fmt: skip
    trial = trial_by([rank_result(0, **nothing)])
    absent = ("read.gib_per_s", "write.gib_per_s", "requests.per_s", "tokens.per_s",
              "cache.hit_ratio", "cache.hit_token_ratio")  # fmt: skip
    assert {name: METRICS[name].of(trial) for name in absent} == dict.fromkeys(absent)
    assert trial.harness.cpu_s_per_gib is None


def test_a_byte_counter_that_one_rank_lacks_is_unknown() -> None:
    data = data_of(two_ranks(device_read_bytes=None))
    assert data["proof"]["device_read_bytes"] is None
    assert data["proof"]["device_write_bytes"] == 2 * 500 * PAGE


def test_io_modes_of_all_ranks_are_reported() -> None:
    assert data_of(two_ranks())["proof"]["io_mode"] == "direct"
    assert data_of(two_ranks(io_mode="buffered"))["proof"]["io_mode"] == "buffered+direct"
    assert data_of(two_ranks(sync="data"))["proof"]["sync"] == "data+none"


def test_every_host_shows_its_filesystem() -> None:
    data = data_of(two_ranks(host="n2", filesystem={**FILESYSTEM, "type": "xfs"}))
    found = {host: facts["type"] for host, facts in data["proof"]["filesystem"].items()}
    assert found == {"test-host": "ext4", "n2": "xfs"}


def test_a_trial_survives_its_json() -> None:
    trial = replace(good_trial(2), verdicts=(Verdict(code="A", severity="warning", text="b"),))
    assert TrialResult.from_json(through_json(trial.to_json()), sound_plan(np=2)) == trial
    failed = TrialResult(index=1, error="the ranks left no record")
    assert TrialResult.from_json(through_json(failed.to_json()), sound_plan()) == failed


@pytest.mark.parametrize(("ok", "error"), [(True, "disk full"), (False, None)])
def test_a_trial_is_ok_or_has_an_error(*, ok: bool, error: str | None) -> None:
    data = {**good_trial().to_json(), "ok": ok, "error": error}
    with pytest.raises(ResultError, match="is ok and has an error, or neither"):
        TrialResult.from_json(data, sound_plan(np=2))


# -- cases ---------------------------------------------------------------------------------


def case_of(*trials: TrialResult) -> CaseResult:
    return CaseResult(plan=sound_plan(np=2), trials=trials)


def test_a_series_has_one_value_per_trial() -> None:
    case = case_of(good_trial(0), good_trial(1, read_bytes=3_000 * PAGE))
    series = case.series("read.gib_per_s")
    assert series is not None
    assert series.values == tuple(bytes_ / GIB / 60 for bytes_ in (2_000 * PAGE, 4_000 * PAGE))
    assert (series.unit, series.better) == ("GiB/s", "higher")


@pytest.mark.parametrize(
    "other",
    [
        TrialResult(index=1, error="disk full"),
        replace(good_trial(1), error="CACHED_READS: …"),
        good_trial(1, read_bytes=-1_000 * PAGE),  # together with the other rank: none at all
    ],
)
def test_a_series_is_whole_or_absent(other: TrialResult) -> None:
    assert case_of(good_trial(0), other).series("read.gib_per_s") is None
    assert "read.gib_per_s" not in case_of(good_trial(0), other).summary()


def test_an_interrupted_trial_leaves_the_others_their_series() -> None:
    case = case_of(good_trial(0), TrialResult(index=1, error="interrupted", interrupted=True))
    series = case.series("read.gib_per_s")
    assert series is not None
    assert len(series.values) == 1
    assert case.error == "interrupted"
    assert CaseResult.from_json(case.to_json()) == case


@pytest.mark.parametrize("trial", [good_trial(0), TrialResult(index=0, error=None)])
def test_what_has_a_result_was_not_interrupted(trial: TrialResult) -> None:
    with pytest.raises(ResultError, match="was interrupted and has a result, or no error"):
        replace(trial, interrupted=True)


def test_an_interrupted_trial_alone_gives_no_values() -> None:
    case = case_of(TrialResult(index=0, error="interrupted", interrupted=True))
    assert (case.series("read.p95_ms"), case.summary()) == (None, {})


def test_direct_io_that_was_refused_is_in_the_digest_and_in_the_effective_plan() -> None:
    planned = case_of(good_trial(0))
    refused = case_of(good_trial(0, io_mode="buffered", sync="data"))
    assert planned.effective_plan == planned.plan
    assert planned.plan_digest == planned.plan.workload_digest
    assert (refused.effective_plan.io, refused.effective_plan.sync) == (
        "buffered+direct",
        "data+none",
    )
    assert refused.plan_digest not in (planned.plan_digest, refused.effective_plan.workload_digest)
    assert refused.plan_digest.startswith(planned.plan_digest)


def test_a_case_without_trials_has_no_values() -> None:
    assert case_of().series("read.p95_ms") is None
    assert (case_of().summary(), case_of().error) == ({}, None)


def test_a_summary_has_every_metric_that_all_trials_have() -> None:
    # 2000 reads and 1000 writes, but 400 requests: too few for a p99, none enough for a p999.
    summary = case_of(good_trial(0), good_trial(1)).summary()
    absent = {f"{section}.p999_ms" for section in SECTIONS} | {"load.p99_ms", "request.p99_ms"}
    # A closed loop, an endless cache, and time ended the work.
    absent |= {name for name in METRICS if name.startswith(("scheduling_lag.", "delete.", "run."))}
    absent |= {name for name in METRICS if name.startswith("restart.")}
    without_tiers = ("demote.", "gpu_", "cpu_", "cache.gpu", "cache.cpu")
    absent |= {name for name in METRICS if name.startswith(without_tiers)}
    absent |= {name for name, spec in METRICS.items() if spec.needs is not None}
    assert set(summary) == set(METRICS) - absent
    assert summary["read.p95_ms"]["values"] == pytest.approx([1.0, 1.0], rel=1e-3)


def test_the_first_error_of_a_case_is_its_error() -> None:
    trials = [good_trial(0), *(TrialResult(index=n, error=f"error {n}") for n in (1, 2))]
    assert case_of(*trials).error == "error 1"


def test_trials_are_added_in_order() -> None:
    case = case_of().with_trial(good_trial(0)).with_trial(good_trial(1))
    assert [trial.index for trial in case.trials] == [0, 1]


# -- the run file --------------------------------------------------------------------------


def test_a_run_survives_its_json() -> None:
    run = a_run(case_of(good_trial(0), TrialResult(index=1, error="disk full")))
    data = through_json(run.to_json())
    assert RunResult.from_json(data) == run
    assert through_json(RunResult.from_json(data).to_json()) == data


def test_what_is_derived_is_derived_again() -> None:
    data = through_json(a_run(case_of(good_trial(0))).to_json())
    data["cases"][0] |= {"name": "forged", "summary": {}, "plan_digest": "0"}
    assert RunResult.from_json(data) == a_run(case_of(good_trial(0)))


def test_another_schema_is_refused() -> None:
    with pytest.raises(ResultError, match="the schema is 'x'; it must be 'pytest-kvcache/run/1'"):
        RunResult.from_json({**a_run().to_json(), "schema": "x"})


@pytest.mark.parametrize(
    "name", ["run_id", "started_at", "command", "version", "commit", "environment", "cases"]
)
def test_a_run_file_without_one_of_its_parts_is_refused(name: str) -> None:
    data = a_run(case_of(good_trial(0))).to_json()
    del data[name]
    with pytest.raises(ResultError, match=name):
        RunResult.from_json(data)


@pytest.mark.parametrize("value", [None, 5, "x", [1], {"a": 1}])
def test_cases_of_another_type_are_refused(value: object) -> None:
    with pytest.raises(ResultError):
        RunResult.from_json({**a_run().to_json(), "cases": value})


# -- whatever ranks may have counted ---------------------------------------------------------

COUNTS = st.integers(0, 1 << 40)
TIMES = st.floats(0, 1e6)
COUNTED = st.fixed_dictionaries(
    {
        name: (TIMES if row.unit in {"s", "ms", "per s"} else COUNTS)
        | (st.none() if name in MAY_BE_UNKNOWN else st.nothing())
        for name, row in TABLE.items()
    }
)
SECTION_NS = st.lists(st.integers(1, 10**12), max_size=50)
STALLS = st.builds(
    lambda kind, begin_s, length_s: Stall(kind=kind, begin_s=begin_s, end_s=begin_s + length_s),
    st.sampled_from(["every", "read", "write"]),
    st.floats(0, 50),
    st.floats(0.6, 5),
)
FOUND = st.fixed_dictionaries(
    {
        "start_s": TIMES,
        "drained_s": TIMES,
        "stalls": st.lists(STALLS, max_size=3).map(tuple),
        "io_mode": st.sampled_from(["direct", "buffered", "none"]),
        "sync": st.sampled_from(["none", "data"]),
        "io_note": st.none() | st.text(max_size=9),
        "is_storage": st.booleans(),
        "device": st.none() | st.builds(watch, read_bytes=COUNTS, run_s=st.floats(0.1, 90)),
        "host": st.sampled_from(["test-host", "n2"]),
    }
)


@st.composite
def trials(draw: st.DrawFn) -> tuple[Plan, Trial]:
    found = draw(st.lists(st.tuples(COUNTED, FOUND), min_size=1, max_size=3))
    plan = sound_plan(
        np=len(found),
        phase=draw(st.sampled_from(["both", "prefill"])),
        tiers=draw(st.sampled_from([(), memory_tiers("cpu"), memory_tiers("gpu", "cpu")])),
        tier_policy=draw(st.sampled_from(TIER_POLICIES)),
    )
    ranks = tuple(rank_result(n, **counted, **facts) for n, (counted, facts) in enumerate(found))
    histograms = {}
    for name in SECTIONS:
        histograms[name] = Histogram()
        histograms[name].record(np.array(draw(SECTION_NS), dtype=np.int64))
    sound = sound_record(plan, [rank_result(n) for n in range(len(found))])
    record = replace(sound, ranks=ranks, histograms=histograms, window_s=draw(st.floats(0.1, 99)))
    return plan, trial_of(record, plan)


@pytest.mark.thorough
@settings(deadline=None, max_examples=40)
@given(trials(), st.integers(0, 9))
def test_any_trial_survives_the_run_file(made: tuple[Plan, Trial], index: int) -> None:
    plan, measured = made
    trial = TrialResult(index=index, error=None, measured=measured)
    written = through_json(trial.to_json())
    again = TrialResult.from_json(written, plan)
    assert through_json(again.to_json()) == written
    assert again == trial


@pytest.mark.thorough
@settings(deadline=None, max_examples=40)
@given(trials())
def test_every_counter_of_a_trial_is_where_its_row_says(made: tuple[Plan, Trial]) -> None:
    plan, measured = made
    data = measured.to_json()
    there = {*tier_sections(plan.tiers, plan.tier_policy), *(tier.name for tier in plan.tiers)}
    may_lack = ("request", "lookup", "restart", "sharing")
    there |= {name for name in may_lack if getattr(measured, name) is not None}
    not_there = {*may_lack, "demote", *MEMORY_SECTIONS, "gpu", "cpu"} - there
    for name, row in TABLE.items():
        value: Any = data
        for key in row.place:
            value = value if value is None else value[key]
        if row.place:
            lacking = not_there.intersection(row.place)
            assert value == (None if lacking else getattr(measured.counters, name)), name


@pytest.mark.parametrize(
    "place", [("cases", 0, "plan", "users"), ("cases", 0, "plan", "model", "layers")]
)
def test_what_another_version_wrote_is_told_to_be_read_by_that_one(place: tuple[Any, ...]) -> None:
    data = through_json(a_run(case_of(good_trial(0))).to_json())
    data.update(version="0.0.9", commit="0123456789abcdef")
    part: Any = data
    for name in place[:-1]:
        part = part[name]
    del part[place[-1]]
    with pytest.raises(
        ResultError, match=r"; pytest-kvcache 0\.0\.9, commit 0123456789ab, wrote it, and reads"
    ):
        RunResult.from_json(data)
