from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.results.record import RankResult, TrialRecord
from pytest_kvcache.results.trial import (
    CaseResult,
    RunResult,
    TrialResult,
    Verdict,
    latencies_ms,
    ratio,
    trial_data,
)
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.factories import FILESYSTEM, PAGE, rank_result, sound_plan, sound_record

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 1 << 30


def two_ranks(**changes: Any) -> list[RankResult]:
    return [rank_result(0), rank_result(1, **changes)]


def data_of(ranks: list[RankResult], **changes: Any) -> dict[str, Any]:
    plan = sound_plan(np=len(ranks))
    return trial_data(sound_record(plan, ranks, **changes), plan)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def good_trial(index: int = 0, **changes: Any) -> TrialResult:
    plan = sound_plan(np=2, trial=index)
    data, verdicts = evaluate_trial(sound_record(plan, two_ranks(**changes)), plan)
    return TrialResult(index=index, error=None, verdicts=verdicts, data=data)


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
    rank = rank_result(3, read_p95_ms=None, error="disk full")
    assert RankResult.from_json(through_json(asdict(rank))) == rank


@pytest.mark.parametrize("change", [{"pid": None}, {"iops": 5}])
def test_a_rank_with_other_fields_is_refused(change: dict[str, Any]) -> None:
    data = asdict(rank_result())
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
    assert trial_data(again, plan) == trial_data(record, plan)


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
        return latencies_ms(histogram)[name]

    assert shown(enough - 1) is None
    assert shown(enough) is not None


def test_latencies_are_milliseconds() -> None:
    histogram = Histogram()
    histogram.record(np.array([1_000_000] * 30 + [4_000_000], dtype=np.int64))
    found = latencies_ms(histogram)
    assert found["mean"] == pytest.approx(34 / 31)
    assert found["p50"] == pytest.approx(1.0, rel=1e-3)
    assert (found["max"], found["p95"]) == (4.0, None)


def test_what_did_not_end_hides_no_slow_request() -> None:
    histogram = Histogram()
    histogram.record(np.full(66, 6_000_000, dtype=np.int64))
    found = latencies_ms(histogram, censored=8)  # of 8 users, all held up at the end
    assert found["p50"] == pytest.approx(6.0, rel=1e-3)
    assert found["mean"] is found["max"] is found["p95"] is None
    assert latencies_ms(histogram, censored=67)["p50"] is None


def test_what_was_not_measured_is_none_and_never_zero() -> None:
    assert set(latencies_ms(Histogram()).values()) == {None}


def test_a_ratio_of_nothing_is_none() -> None:
    assert (ratio(1, 4), ratio(0, 4), ratio(0, 0), ratio(3, 0)) == (0.25, 0.0, None, None)


# -- a trial -------------------------------------------------------------------------------

SUMMED = {
    "read.bytes": "read_bytes",
    "read.failed": "read_failed",
    "write.bytes": "write_bytes",
    "write.failed": "write_failed",
    "device.bytes": "device_bytes",
    "requests.offered": "offered",
    "requests.completed": "completed",
    "requests.dropped": "dropped",
    "requests.backlog": "backlog",
    "requests.completed_in_window": "completed_in_window",
    "tokens.prompt": "prompt_tokens",
    "tokens.generated": "generated_tokens",
    "cache.prompt_blocks": "prompt_blocks",
    "cache.hit_blocks": "hit_blocks",
    "cache.evictions": "evictions",
    "cache.populated_blocks": "populated_blocks",
    "cache.tiers.storage.blocks": "cached_blocks",
    "proof.requested_read_bytes": "requested_read_bytes",
    "proof.requested_write_bytes": "requested_write_bytes",
    "proof.device_read_bytes": "device_read_bytes",
    "proof.kernel_write_bytes": "device_write_bytes",
    "proof.distinct_read_bytes": "distinct_read_bytes",
    "integrity.read_back": "read_back",
    "harness.cpu_s": "cpu_s",
    "integrity.checked": "checked",
    "integrity.failed": "corrupt",
}


@pytest.mark.parametrize("path", SUMMED)
def test_a_trials_counts_are_the_sums_of_its_ranks(path: str) -> None:
    value: Any = data_of([rank_result(0, **{SUMMED[path]: 3}), rank_result(1, **{SUMMED[path]: 5})])
    for key in path.split("."):
        value = value[key]
    assert value == 8


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


def test_times_of_the_slowest_and_the_fastest_rank_are_told() -> None:
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
    data = data_of([rank_result(0, **nothing)])
    absent = ("read.gib_per_s", "write.gib_per_s", "requests.per_s", "tokens.per_s",
              "cache.hit_ratio", "cache.hit_token_ratio")  # fmt: skip
    assert {name: METRICS[name].of(data) for name in absent} == dict.fromkeys(absent)
    assert data["harness"]["cpu_s_per_gib"] is None


def test_a_byte_counter_that_one_rank_lacks_is_unknown() -> None:
    data = data_of(two_ranks(device_read_bytes=None))
    assert data["proof"]["device_read_bytes"] is None
    assert data["proof"]["device_write_bytes"] == 2 * 500 * PAGE


def test_io_modes_of_all_ranks_are_told() -> None:
    assert data_of(two_ranks())["proof"]["io_mode"] == "direct"
    assert data_of(two_ranks(io_mode="buffered"))["proof"]["io_mode"] == "buffered+direct"
    assert data_of(two_ranks(sync="data"))["proof"]["sync"] == "data+none"


def test_every_host_shows_its_filesystem() -> None:
    data = data_of(two_ranks(host="n2", filesystem={**FILESYSTEM, "type": "xfs"}))
    found = {host: facts["type"] for host, facts in data["proof"]["filesystem"].items()}
    assert found == {"test-host": "ext4", "n2": "xfs"}


def test_a_trial_survives_its_json() -> None:
    trial = replace(good_trial(2), verdicts=(Verdict(code="A", severity="warning", text="b"),))
    assert TrialResult.from_json(through_json(trial.to_json())) == trial
    failed = TrialResult(index=1, error="the ranks left no record")
    assert TrialResult.from_json(through_json(failed.to_json())) == failed


@pytest.mark.parametrize(("ok", "error"), [(True, "disk full"), (False, None)])
def test_a_trial_is_ok_or_has_an_error(*, ok: bool, error: str | None) -> None:
    data = {**good_trial().to_json(), "ok": ok, "error": error}
    with pytest.raises(ResultError, match="is ok and has an error, or neither"):
        TrialResult.from_json(data)


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
    # A closed loop, and an endless cache.
    absent |= {name for name in METRICS if name.startswith(("wakeup.", "delete."))}
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
