from __future__ import annotations

import json
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.gates.baseline import Baseline, BaselineEntry, load_baseline
from pytest_kvcache.gates.compare import judge
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.rules import FailRule
from pytest_kvcache.results.provenance import Provenance
from pytest_kvcache.results.summary import MetricSeries
from tests.canned import case_of, run_of, trial_of
from tests.factories import make_plan
from tests.series import CASE, IN_MEMORY, NO_STORAGE, SERIES, STORAGE, latency, reported, throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pytest_kvcache.results.outcome import TrialResult


PLAN = make_plan(np=2)


def write(folder: Path, data: object) -> Path:
    path = folder / "base.json"
    path.write_text(json.dumps(data), "utf-8")
    return path


def run_file(*trials: TrialResult) -> dict[str, Any]:
    """A sound run file of one case of canned ranks."""
    data: dict[str, Any] = json.loads(json.dumps(run_of(case_of(PLAN, *trials)).to_json()))
    return data


def benchmark_entry(
    case: str = CASE,
    metric: str = SERIES,
    values: Sequence[float] = (10.0, 11.0),
    **change: object,
) -> dict[str, Any]:
    """What pytest-benchmark writes of an entry."""
    spec = METRICS[metric]
    series = MetricSeries(name=metric, unit=spec.unit, better=spec.better, values=tuple(values))
    rounds_s = [spec.round_s(value) for value in values]
    info = {"case": case, "metric": metric, "plan_digest": "abc", **series.to_json(), **change}
    stats = {
        "rounds": len(rounds_s),
        "min": min(rounds_s),
        "max": max(rounds_s),
        "mean": statistics.mean(rounds_s),
        "median": statistics.median(rounds_s),
        "data": rounds_s,
    }
    return {"name": "x", "fullname": f"{case}-{metric}", "stats": stats, "extra_info": info}


def test_a_run_file_is_a_baseline(tmp_path: Path) -> None:
    path = write(tmp_path, run_file())
    case = case_of(PLAN)
    baseline = load_baseline(path)
    assert (baseline.source, baseline.recorded_at) == (str(path), "2026-01-01T00:00:00+00:00")
    for metric in (SERIES, "read.gib_per_s"):
        found = baseline.find(case.name, metric, case.plan_digest)
        assert found.series == case.series(metric)
        assert not found.other_plan
        assert found.provenance.is_known
    assert baseline.find(case.name, "read.p999_ms", case.plan_digest).series is None
    assert baseline.find("other", SERIES, case.plan_digest).series is None
    assert baseline.find(case.name, SERIES, "another").other_plan


def test_a_benchmark_file_is_a_baseline_and_foreign_entries_are_left_out(
    tmp_path: Path,
) -> None:
    entries = [
        {"name": "foreign", "extra_info": {}},
        {"name": "foreign", "extra_info": {"case": "theirs", "metric": 5}},
        {"name": "foreign"},
        benchmark_entry(),
        benchmark_entry(metric="read.gib_per_s", values=[2.0, 2.1]),
        benchmark_entry(case="other", plan_digest=None),
    ]
    baseline = load_baseline(write(tmp_path, {"version": "5.3.1", "benchmarks": entries}))
    assert baseline.find(CASE, "read.p99_ms", "abc").series == latency(10.0, 11.0)
    assert baseline.find(CASE, "read.gib_per_s", "abc").series == throughput(2.0, 2.1)
    found = [(entry.case, entry.digest) for entry in baseline.entries]
    assert found == [(CASE, "abc"), ("other", None)]


def test_a_benchmark_file_without_the_rounds_is_checked_by_their_statistics(
    tmp_path: Path,
) -> None:
    entry = benchmark_entry()
    del entry["stats"]["data"]
    assert load_baseline(write(tmp_path, {"benchmarks": [entry]})).entries
    entry["stats"]["median"] *= 2
    with pytest.raises(OptionError, match=r"has the median .* of its rounds"):
        load_baseline(write(tmp_path, {"benchmarks": [entry]}))


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = run_file()
    change(data)
    return data


def bent(**change: object) -> dict[str, Any]:
    """An entry whose extra_info was changed."""
    entry = benchmark_entry()
    entry["extra_info"] |= change
    return entry


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], 'it has neither "schema" nor "benchmarks"'),
        ({"machine_info": {}}, 'it has neither "schema" nor "benchmarks"'),
        (changed(lambda d: d.update(schema="pytest-kvcache/run/2")), "its schema is 'pytest-kv"),
        ({"schema": None, "benchmarks": [benchmark_entry()]}, "its schema is None"),
        (changed(lambda d: d.pop("cases")), "cases must be a list"),
        (changed(lambda d: d.update(cases=[7])), "missing or odd"),
        (changed(lambda d: d.update(cases=[])), "the run has no case"),
        (changed(lambda d: d["cases"][0].pop("name")), "missing or odd"),
        (changed(lambda d: d["cases"][0].pop("summary")), "missing or odd"),
        (changed(lambda d: d["cases"][0].update(plan_digest=5)), "plan_digest is 5"),
        (changed(lambda d: d["cases"][0]["summary"].update(a=None)), "summary.a is unknown"),
        (
            changed(lambda d: d["cases"][0]["summary"][SERIES].update(median=9)),
            "summary.read.p99_ms.median is 9",
        ),
        (changed(lambda d: d["cases"][0].update(looks=[])), "looks are \\[\\]"),
        (changed(lambda d: d["cases"][0].update(looks=[2, 2])), "looks is 1"),
        (changed(lambda d: d["cases"][0].update(looks=[1])), "by its looks it has 1 at most"),
        (changed(lambda d: d["cases"][0].update(metrics=["a"])), "metrics has 'a'"),
        (
            run_file(replace(trial_of(PLAN), error="it broke", measured=None)),
            "it holds no result of this plugin",
        ),
        ({"benchmarks": {}}, "its 'benchmarks' is no list of objects"),
        ({"benchmarks": [{"extra_info": {"case": "x"}}]}, "it holds no result of this plugin"),
        ({"benchmarks": [benchmark_entry(), benchmark_entry()]}, "has read.p99_ms twice"),
        ({"benchmarks": [bent(values=[])]}, "must have one per trial"),
        ({"benchmarks": [bent(values="10")]}, "has values '10'"),
        ({"benchmarks": [bent(values=[float("nan")])]}, "a finite number"),
        ({"benchmarks": [bent(values=[10.0, 12.0])]}, "states median"),
        ({"benchmarks": [bent(looks=3)]}, "states ci95"),
        ({"benchmarks": [bent(metric="read.p42_ms")]}, "is none of this version's"),
        ({"benchmarks": [bent(is_storage=1)]}, "is_storage is 1; it must be true or false"),
        ({"benchmarks": [bent(verdicts="TMPFS")]}, "verdicts are 'TMPFS'"),
        ({"benchmarks": [bent(facts={"plan": {}})]}, "facts are odd"),
        ({"benchmarks": [bent(hit_ratio="x")]}, "hit_ratio is 'x'"),
        ({"benchmarks": [bent(case=["x"])]}, r"a case has name \['x'\]"),
    ],
)
def test_a_file_that_is_no_baseline_is_reported_with_option_file_and_fix(
    tmp_path: Path, data: object, message: str
) -> None:
    path = write(tmp_path, data)
    with pytest.raises(OptionError, match=message) as caught:
        load_baseline(path)
    assert str(caught.value).startswith(f"--kv-compare is {path}; it must be an intact run file")
    assert str(caught.value).endswith("record the baseline anew")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_reported_with_option_file_and_fix(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="it must be a readable JSON file, and is not") as caught:
        load_baseline(path)
    assert str(path) in str(caught.value)


def test_a_run_without_its_last_trial_is_no_baseline(tmp_path: Path) -> None:
    case = case_of(PLAN, *(trial_of(PLAN, index) for index in range(3)))
    whole = run_of(case)
    assert load_baseline(write(tmp_path, whole.to_json())).entries
    fewer = replace(whole, cases=(replace(case, trials=case.trials[:2]),))
    with pytest.raises(OptionError, match="it ends with trial 2, which is sound; by its looks"):
        load_baseline(write(tmp_path, fewer.to_json()))


def test_an_absent_file_and_a_folder_are_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is not \(No such file or directory\): give the run"):
        load_baseline(tmp_path / "none.json")
    with pytest.raises(OptionError, match=r"is not \(Is a directory\): give the run.json"):
        load_baseline(tmp_path)


def entry(case: str, digest: str | None, *values: float) -> BaselineEntry:
    return BaselineEntry(case=case, digest=digest, metrics={"read.p99_ms": latency(*values)})


def test_a_case_is_compared_with_the_entry_of_its_plan_or_else_with_the_only_one() -> None:
    entries = (entry("two", "a", 1.0), entry("two", "b", 2.0), entry("one", "a", 3.0))
    baseline = Baseline(source="base.json", entries=entries)
    assert baseline.find("two", "read.p99_ms", "a").series == latency(1.0)
    assert baseline.find("two", "read.p99_ms", "b").series == latency(2.0)
    assert baseline.find("one", "read.p99_ms", "z").series == latency(3.0)
    none = baseline.find("two", "read.p99_ms", "z")
    assert none.series is None
    assert "2 results of this case, none with this run's plan (plan_digest)" in none.reason
    rule = FailRule(metric=SERIES, limit_ratio=0.1)
    assert judge(rule, none, latency(1.0)).reason == none.reason


def test_of_several_results_of_one_plan_the_one_with_most_trials_counts() -> None:
    entries = (entry("c", "a", 1.0), entry("c", "a", 2.0, 2.0), entry("c", "a", 3.0, 3.0))
    baseline = Baseline(source="base.json", entries=entries)
    assert baseline.find("c", "read.p99_ms", "a").series == latency(2.0, 2.0)
    assert not baseline.find("c", "read.p99_ms", "a").other_plan


def test_a_case_that_ran_under_two_plans_makes_a_baseline(tmp_path: Path) -> None:
    plans = PLAN, replace(PLAN, queue_depth=PLAN.queue_depth + 1)
    run = run_of(*map(case_of, plans)).to_json()
    baseline = load_baseline(write(tmp_path, run))
    for plan in plans:
        found = baseline.find(PLAN.case, SERIES, plan.workload_digest)
        assert found.series == case_of(plan).series(SERIES)
        assert found.provenance.facts is not None
        assert found.provenance.facts["plan"]["queue_depth"] == plan.queue_depth
    benchmarks = {"benchmarks": [benchmark_entry(), benchmark_entry(plan_digest="def")]}
    baseline = load_baseline(write(tmp_path, benchmarks))
    assert baseline.find(CASE, "read.p99_ms", "def").series == latency(10.0, 11.0)


@pytest.mark.parametrize(
    ("count", "reported"),
    [(1, "only c0:"), (3, "only c0, c1, c2:"), (5, "only c0, c1, c2 and 2 more:")],
)
def test_a_case_that_is_not_there_is_reported_with_those_that_are(
    count: int, reported: str
) -> None:
    entries = tuple(entry(f"c{number}", "a", 1.0) for number in range(count))
    found = Baseline(source="base.json", entries=entries).find("x", SERIES, "a")
    assert reported in found.reason


def test_an_entry_of_another_plan_is_said_to_be_one() -> None:
    entries = (entry("same", "a", 1.0), entry("other", "b", 1.0), entry("unknown", None, 1.0))
    baseline = Baseline(source="base.json", entries=entries)
    cases = ("same", "other", "unknown")
    found = {case: baseline.find(case, SERIES, "a") for case in cases}
    assert [case for case in cases if found[case].other_plan] == ["other", "unknown"]


@pytest.mark.parametrize("provenance", [STORAGE, NO_STORAGE, IN_MEMORY, reported(), Provenance()])
def test_a_benchmark_file_tells_what_stands_behind_its_values(
    tmp_path: Path, provenance: Provenance
) -> None:
    data = {"benchmarks": [benchmark_entry(**provenance.to_json())]}
    found = load_baseline(write(tmp_path, data)).find(CASE, SERIES, "abc")
    assert found.provenance == provenance


def test_a_file_older_than_provenance_has_none(tmp_path: Path) -> None:
    data = {"benchmarks": [benchmark_entry()]}
    assert not load_baseline(write(tmp_path, data)).find(CASE, SERIES, "abc").provenance.is_known
