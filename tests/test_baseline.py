from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.baseline import Baseline, Entry, load_baseline
from pytest_kvcache.compare import FailRule, judge
from pytest_kvcache.errors import OptionError
from pytest_kvcache.evidence import Evidence
from tests.series import CASE, IN_MEMORY, NO_STORAGE, SERIES, STORAGE, latency, throughput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(folder: Path, data: object) -> Path:
    path = folder / "base.json"
    path.write_text(json.dumps(data), "utf-8")
    return path


def run_file() -> dict[str, Any]:
    return {
        "schema": "pytest-kvcache/run/1",
        "run_id": "r1",
        "cases": [
            {
                "name": CASE,
                "plan_digest": "abc",
                "summary": {
                    "read.p99_ms": latency(10.0, 11.0).to_json(),
                    "read.gib_per_s": throughput(2.0, 2.1).to_json(),
                },
            },
            {"name": "agent-llama3.1-8b-np2", "summary": {}},
        ],
    }


def benchmark_entry(**change: object) -> dict[str, Any]:
    info = {
        "case": CASE,
        "metric": "read.p99_ms",
        "unit": "ms",
        "better": "lower",
        "values": [10.0, 11.0],
        "plan_digest": "abc",
    }
    return {"name": "x", "stats": {"mean": 0.0105}, "extra_info": {**info, **change}}


def test_a_run_file_is_a_baseline(tmp_path: Path) -> None:
    path = write(tmp_path, run_file())
    baseline = load_baseline(path)
    assert baseline.source == str(path)
    assert baseline.find(CASE, "read.p99_ms", "abc").series == latency(10.0, 11.0)
    assert baseline.find(CASE, "read.gib_per_s", "abc").series == throughput(2.0, 2.1)
    assert baseline.find(CASE, "write.p99_ms", "abc").series is None
    assert baseline.find("other", "read.p99_ms", "abc").series is None
    assert [(entry.case, entry.digest) for entry in baseline.entries] == [(CASE, "abc")]


def test_a_benchmark_file_is_a_baseline_and_foreign_entries_are_left_out(
    tmp_path: Path,
) -> None:
    entries = [
        {"name": "foreign", "extra_info": {}},
        {"name": "foreign", "extra_info": {"case": "theirs", "metric": 5}},
        {"name": "foreign"},
        benchmark_entry(),
        benchmark_entry(metric="read.gib_per_s", unit="GiB/s", better="higher", values=[2.0, 2.1]),
        benchmark_entry(case="other", plan_digest=None),
    ]
    baseline = load_baseline(write(tmp_path, {"version": "5.3.1", "benchmarks": entries}))
    assert baseline.find(CASE, "read.p99_ms", "abc").series == latency(10.0, 11.0)
    assert baseline.find(CASE, "read.gib_per_s", "abc").series == throughput(2.0, 2.1)
    found = [(entry.case, entry.digest) for entry in baseline.entries]
    assert found == [(CASE, "abc"), ("other", None)]


def test_what_pytest_benchmark_writes_can_be_loaded(tmp_path: Path) -> None:
    info = benchmark_entry()["extra_info"]
    (tmp_path / "test_it.py").write_text(
        "def test_ours(benchmark):\n"
        f"    benchmark.extra_info.update({info!r})\n"
        "    benchmark.pedantic(int)\n"
        "def test_foreign(benchmark):\n"
        "    benchmark.pedantic(int)\n",
        "utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir=.", "--benchmark-json=out.json"]
    command += ["-p", "no:cacheprovider", "-p", "no:pytest_kvcache.plugin", "-p", "no:xdist"]
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_XDIST_")}
    subprocess.run([*command, "test_it.py"], cwd=tmp_path, check=True, capture_output=True, env=env)
    baseline = load_baseline(str(tmp_path / "out.json"))
    (entry,) = baseline.entries
    assert (entry.case, entry.metrics) == (CASE, {"read.p99_ms": latency(10.0, 11.0)})


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = run_file()
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], 'it has neither "schema" nor "benchmarks"'),
        ({"machine_info": {}}, 'it has neither "schema" nor "benchmarks"'),
        (
            changed(lambda d: d.update(schema="pytest-kvcache/run/2")),
            "its schema is 'pytest-kv",
        ),
        ({"schema": None, "benchmarks": [benchmark_entry()]}, "its schema is None"),
        (changed(lambda d: d.pop("cases")), "its 'cases' is no list of objects"),
        (changed(lambda d: d.update(cases=[7])), "its 'cases' is no list of objects"),
        (changed(lambda d: d.update(cases=[])), "it holds no result of this plugin"),
        (changed(lambda d: d["cases"].pop(0)), "it holds no result of this plugin"),
        (changed(lambda d: d["cases"][0].pop("name")), "a case has name None"),
        (changed(lambda d: d["cases"][0].pop("summary")), "has no summary"),
        (changed(lambda d: d["cases"][0].update(plan_digest=5)), "plan_digest 5"),
        (changed(lambda d: d["cases"][0]["summary"].update(a=None)), "summary of a is None"),
        (
            changed(lambda d: d["cases"][0]["summary"][SERIES].update(median=9)),
            "states median 9",
        ),
        ({"benchmarks": {}}, "its 'benchmarks' is no list of objects"),
        ({"benchmarks": [{"extra_info": {"case": "x"}}]}, "it holds no result of this plugin"),
        ({"benchmarks": [benchmark_entry(), benchmark_entry()]}, "has read.p99_ms twice"),
        ({"benchmarks": [benchmark_entry(values=[])]}, "must have one per trial"),
        ({"benchmarks": [benchmark_entry(values="10")]}, "values of read.p99_ms are '10'"),
        ({"benchmarks": [benchmark_entry(values=[float("nan")])]}, "a finite number"),
        (changed(lambda d: d["cases"][0].update(trials=5)), "its 'trials' is no list"),
        (changed(lambda d: d["cases"][0].update(trials=[{}])), "ranks or verdicts are odd"),
        (
            changed(lambda d: d["cases"][0].update(trials=[{"ranks": [5], "verdicts": []}])),
            "ranks or verdicts are odd",
        ),
        (
            changed(
                lambda d: d["cases"][0].update(
                    trials=[{"ranks": [{"is_storage": 1}], "verdicts": []}]
                )
            ),
            "it must be true or false",
        ),
        ({"benchmarks": [benchmark_entry(is_storage="yes")]}, "is_storage is 'yes'"),
        ({"benchmarks": [benchmark_entry(verdicts="TMPFS")]}, "verdicts are 'TMPFS'"),
        ({"benchmarks": [benchmark_entry(verdicts=[5])]}, "verdicts are "),
        ({"benchmarks": [benchmark_entry(metric=5)]}, "metric name is 5"),
        ({"benchmarks": [benchmark_entry(case=["x"])]}, r"a case has name \['x'\]"),
    ],
)
def test_a_file_that_is_no_baseline_is_told_with_option_file_and_fix(
    tmp_path: Path, data: object, message: str
) -> None:
    path = write(tmp_path, data)
    with pytest.raises(OptionError, match=message) as caught:
        load_baseline(path)
    assert str(caught.value).startswith(f"--kv-compare is {path}; it must be an intact run file")
    assert str(caught.value).endswith("record the baseline anew")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_told_with_option_file_and_fix(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(content)
    with pytest.raises(OptionError, match="it must be a readable JSON file, and is not") as caught:
        load_baseline(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_and_a_folder_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is not \(No such file or directory\): give the run"):
        load_baseline(tmp_path / "none.json")
    with pytest.raises(OptionError, match=r"is not \(Is a directory\): give the run.json"):
        load_baseline(tmp_path)


def entry(case: str, digest: str | None, *values: float) -> Entry:
    return Entry(case=case, digest=digest, metrics={"read.p99_ms": latency(*values)})


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
    assert not baseline.differs("c", "a")


@pytest.mark.parametrize("kind", ["run", "benchmarks"])
def test_a_case_that_ran_under_two_plans_makes_a_baseline(tmp_path: Path, kind: str) -> None:
    cases = [{**run_file()["cases"][0], "plan_digest": digest} for digest in ("abc", "def")]
    run = {**run_file(), "cases": cases}
    benchmarks = {"benchmarks": [benchmark_entry(), benchmark_entry(plan_digest="def")]}
    baseline = load_baseline(write(tmp_path, run if kind == "run" else benchmarks))
    assert baseline.find(CASE, "read.p99_ms", "def").series == latency(10.0, 11.0)


def test_cases_whose_plans_differ_or_can_not_be_shown_equal_are_told_apart() -> None:
    entries = (
        *(entry("same", "a", 1.0), entry("other", "b", 1.0), entry("unknown", None, 1.0)),
        *(entry("both", "a", 1.0), entry("both", "b", 1.0)),
    )
    baseline = Baseline(source="base.json", entries=entries)
    cases = ("same", "other", "unknown", "both", "new")
    assert [case for case in cases if baseline.differs(case, "a")] == ["other", "unknown"]


def trial(*verdicts: str, storage: bool = True) -> dict[str, Any]:
    return {
        "ranks": [{"rank": 0, "is_storage": True}, {"rank": 1, "is_storage": storage}],
        "verdicts": [{"code": code, "severity": "warning", "text": ""} for code in verdicts],
    }


@pytest.mark.parametrize(
    ("trials", "evidence"),
    [
        ([trial(), trial()], STORAGE),
        ([trial(), trial("NOT_STORAGE", storage=False)], NO_STORAGE),
        ([trial("TMPFS", "SHORT_WINDOW"), trial("TMPFS")], IN_MEMORY),
        ([{"verdicts": []}], Evidence(verdicts=())),
    ],
)
def test_a_run_file_tells_what_stands_behind_its_values(
    tmp_path: Path, trials: list[dict[str, Any]], evidence: Evidence
) -> None:
    data = changed(lambda d: d["cases"][0].update(trials=trials))
    found = load_baseline(write(tmp_path, data)).find(CASE, SERIES, "abc")
    assert found.evidence == evidence


@pytest.mark.parametrize("evidence", [STORAGE, NO_STORAGE, IN_MEMORY, Evidence()])
def test_a_benchmark_file_tells_what_stands_behind_its_values(
    tmp_path: Path, evidence: Evidence
) -> None:
    data = {"benchmarks": [benchmark_entry(**evidence.to_json())]}
    found = load_baseline(write(tmp_path, data)).find(CASE, SERIES, "abc")
    assert found.evidence == evidence


def test_a_file_older_than_the_evidence_does_not_tell(tmp_path: Path) -> None:
    for data in (run_file(), {"benchmarks": [benchmark_entry()]}):
        assert not load_baseline(write(tmp_path, data)).find(CASE, SERIES, "abc").evidence.is_told
