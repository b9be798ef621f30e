"""Loads with stores and without as whoever types it sees it; canned ranks, without any storage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.launch.trial import Launch
from pytest_kvcache.results.leftbehind import LeftBehind
from pytest_kvcache.results.verify import source_faults, verify_run
from tests.site import output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.results.record import TrialRecord
    from tests.desk import Desk
    from tests.site import Site

PAIRS = ("--kv-interference", "--kv-trials=2", "--kv-allow-invalid")
P99 = "interference.load_p99_ratio"
RELIEF = ("KVCACHE_TEST_RELIEF", "2")  # without stores all takes half as long


def told(text: str) -> str:
    return " ".join(text.split())


def cases(desk: Desk) -> dict[str, Any]:
    """The cases of the run file, which is sound."""
    data = json.loads(desk.run_file().read_text())
    assert verify_run(data) == []
    return {case["name"]: case for case in data["cases"]}


def test_the_ratio_is_an_item_and_a_gate_and_both_sides_are_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*RELIEF)
    gates = (f"--kv-slo={P99}<2.1", "--kv-slo=interference.read_p99_ratio<2.1")
    result = site.canned(*PAIRS, *gates, without={"--kv-metrics"})
    text = output(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "2 pairs of launches" in told(text)
    assert "with stores 2,000" in told(text)
    assert "without stores 2,000" in told(text)
    assert "load p99 2 (2 to 2)" in told(text)
    assert "loads of stored contexts, with stores beside them and without" in told(text)
    assert max(map(len, text.partition("- kvcache -")[2].splitlines())) <= 80


def test_a_gate_on_the_ratio_closes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*RELIEF)
    result = site.canned(*PAIRS, f"--kv-slo={P99}<1.5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"kvcache::slo[{P99}<1.5]" in output(result)


def test_each_trial_is_two_launches_of_one_plan(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*RELIEF)
    (case,) = desk.run(*PAIRS)
    assert case.error is None
    series = case.series(P99)
    assert series is not None
    assert series.values == pytest.approx((2.0, 2.0), rel=2e-3)
    found = cases(desk)
    alone = found["mixed-tiny-1b-np2-without-stores"]
    assert len(desk.launches()) == 4
    for both in zip(found["mixed-tiny-1b-np2"]["trials"], alone["trials"], strict=True):
        assert all(trial["sources"] for trial in both)
        assert (
            both[0]["interference"]["without_stores"]["load_p99_ms"]
            == (both[1]["load"]["ms"]["p99"])
        )
    plans = [found["mixed-tiny-1b-np2"]["plan"], alone["plan"]]
    assert {name for name in plans[0] if plans[0][name] != plans[1][name]} == {
        "phase", "interference", "label",
    }  # fmt: skip


def test_the_second_trial_begins_without_stores(site: Site) -> None:
    text = output(site.canned(*PAIRS))
    begun = [line.split()[1:4] for line in text.splitlines() if line.endswith(" starting")]
    with_stores, alone = "mixed-tiny-1b-np2", "mixed-tiny-1b-np2-without-stores"
    assert begun == [
        [with_stores, "launch", "1/4"], [alone, "launch", "2/4"],
        [alone, "launch", "3/4"], [with_stores, "launch", "4/4"],
    ]  # fmt: skip


@pytest.mark.parametrize(("trial", "launches"), [("0", 1), ("1", 3)])
def test_a_launch_that_fails_ends_the_case_with_its_pair(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, trial: str, launches: int
) -> None:
    """In trial 1 that is the one with stores, in trial 2 the one without."""
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "rank-error")
    monkeypatch.setenv("KVCACHE_TEST_FAULT_TRIAL", trial)
    (case,) = desk.run("--kv-interference", "--kv-trials=3")
    assert case.error is not None
    assert case.error.startswith("its launch without stores failed: " if trial == "1" else "rank 1")
    assert "can't read object x: I/O error" in case.error
    assert len(desk.launches()) == launches
    assert len(case.trials) == int(trial) + 1
    assert case.series(P99) is None
    assert cases(desk)["mixed-tiny-1b-np2"]["summary"] == {}


def test_an_interrupted_pair_leaves_the_pairs_before_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk.benchmark_session("--kv-interference", "--kv-trials=3") as session:
        session.check(session.names)
        begun = 0

        def interrupt(*_arguments: object) -> None:
            nonlocal begun
            begun += 1
            if begun == 4:  # the second launch of the second trial
                raise KeyboardInterrupt

        monkeypatch.setattr(session.controller._progress, "trial_started", interrupt)
        with pytest.raises(KeyboardInterrupt):
            session.run(session.names[0])
        case = session.run(session.names[0])
    assert [trial.interrupted for trial in case.trials] == [False, True]
    series = case.series(P99)
    assert series is not None
    assert len(series.values) == 1
    assert len(cases(desk)["mixed-tiny-1b-np2-without-stores"]["trials"]) == 2


@pytest.mark.parametrize("launch", [2, 3, 4])
def test_a_run_that_is_interrupted_in_either_launch_is_sound(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, launch: int
) -> None:
    """Launches 2 and 3 are without stores, and left a record that was not read."""
    begun = 0
    record = Launch.record

    def interrupted(self: Launch, environ: Mapping[str, str]) -> TrialRecord:
        nonlocal begun
        begun += 1
        found = record(self, environ)
        if begun == launch:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Launch, "record", interrupted)
    with desk.benchmark_session(*PAIRS) as session:
        session.check(session.names)
        with pytest.raises(KeyboardInterrupt):
            session.run(session.names[0])
    found = cases(desk)
    data = json.loads(desk.run_file().read_text())
    problems, compared = source_faults(data, LeftBehind(desk.run_file()))
    assert problems == []
    assert compared == launch
    ours, alone = found["mixed-tiny-1b-np2"], found["mixed-tiny-1b-np2-without-stores"]
    assert [trial["interrupted"] for trial in ours["trials"]][-1]
    assert [trial["interrupted"] for trial in alone["trials"]] == (
        {2: [True], 3: [False, True], 4: [False, False]}[launch]
    )


def test_a_ratio_is_compared_with_one_of_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = site.canned(*PAIRS)
    assert result.ret == pytest.ExitCode.OK, output(result)
    monkeypatch.setenv(*RELIEF)
    result = site.canned(*PAIRS, f"--kv-compare={site.run_file()}", f"--kv-fail={P99}:10%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert f"{P99}:10%" in output(result)


def test_trials_go_on_until_the_ratio_is_known_well_enough(desk: Desk) -> None:
    words = ("--kv-interference", "--kv-trials=2..4", "--kv-target-ci=90%", f"--kv-metrics={P99}")
    with desk.benchmark_session(*words) as session:
        session.check(session.names)
        (case,) = map(session.run, session.names)
        assert session.unsettled() == []
    assert len(case.trials) == 2
    cases(desk)


def test_each_number_of_ranks_has_its_pairs(desk: Desk) -> None:
    found = desk.run("--kv-interference", "--kv-np=1,2")
    assert [case.plan.np for case in found] == [1, 2]
    assert all(case.series(P99) is not None for case in found)
    assert len(desk.launches()) == 4


def test_a_test_of_ones_own_measures_interference(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*RELIEF)
    result = site.canned_tests(
        f"""
        def test_interference(kvcache):
            run = kvcache.run(interference=True, label="mine")
            assert 1.9 < run.metric("{P99}") < 2.1
        """
    )
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert "mixed-tiny-1b-np2-mine-without-stores" in output(result)


def test_a_dry_run_says_how_many_launches_there_are(site: Site) -> None:
    result = site.canned("--kv-interference", "--kv-trials=3", "--kv-dry-run")
    text = told(output(result))
    assert result.ret == pytest.ExitCode.OK, text
    assert "6 launches (3 trials, each with stores and without) of" in text
    assert "interference yes (command line)" in text
    assert site.launches() == []


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("--kv-phase=decode",), "--kv-phase decides on its own which requests store"),
        (("--kv-phase=prefill",), "--kv-phase decides on its own which requests store"),
        (("--kv-enable-autoscaling", "--kv-slo=load.p95_ms<5"), "--kv-enable-autoscaling searches"),
        (("--kv-load-steps=1,2",), "--kv-load-steps changes the load while it is measured"),
        (("--kv-io-trace=io.csv",), "--kv-io-trace notes the operations of a case"),
        (("--kv-trace=t.jsonl", "--kv-scenario=trace"), "--kv-trace loads what the requests"),
        (("--kv-scenario=mlperf-1",), "--kv-scenario is mlperf-1, whose requests load what those"),
        (("--kv-reread-factor=1",), "--kv-reread-factor reads what was just stored"),
        (("--kv-cpu-mem-gb=1",), "--kv-cpu-mem-gb puts a tier in front"),
        (("--kv-gpu-mem-gb=1",), "--kv-gpu-mem-gb puts a tier in front"),
        (("--kv-disable-prefix-caching",), "--kv-disable-prefix-caching lets no request find"),
        (("--kv-closed",), "--kv-interference"),
        (("--kv-storage-capacity-gb=64MiB",), "--kv-interference is given, which loads stored"),
    ],
)
def test_what_makes_no_pair_of_the_same_loads_is_refused(
    desk: Desk, words: tuple[str, ...], reported: str
) -> None:
    assert reported in desk.refusal("--kv-interference", *words)


def test_a_metric_of_pairs_needs_pairs(desk: Desk) -> None:
    reported = f"--kv-slo names {P99}, which needs loads with stores and without; add --kv-interf"
    assert reported in desk.refusal(f"--kv-slo={P99}<2")
