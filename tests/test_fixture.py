"""The ``kvcache`` fixture in a user's own tests, with canned ranks."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.fixture import KVCache, ReplayClock, Run
from pytest_kvcache.options.options import describe_value
from pytest_kvcache.results.absence import why_absent
from tests.canned import case_of, measuring, section_of, trial_of
from tests.factories import make_plan, make_trace_plan
from tests.site import output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.desk import Desk
    from tests.site import Site

    KVCacheOf = Callable[..., KVCache]


@pytest.fixture
def kvcache_of(desk: Desk, request: pytest.FixtureRequest) -> Iterator[KVCacheOf]:
    """Makes what a test of a session with these options has in its hand."""
    with ExitStack() as stack:
        yield lambda *words: KVCache(request, stack.enter_context(desk.benchmark_session(*words)))


def test_the_example_of_the_contract_works(site: Site) -> None:
    source = """
        def test_my_storage(kvcache):
            run = kvcache.run(scenario="agent", model="llama3.1-70b-instruct", np=4, duration=30)
            assert run.metric("read.p95_ms") < 20
    """
    site.canned_tests(source).assert_outcomes(passed=1)
    case = site.case()
    assert case["name"] == "agent-llama3.1-70b-instruct-np4"
    assert case["plan"]["duration_s"] == 30.0
    assert case["plan"]["origins"]["duration_s"] == "call"


def test_what_is_not_overridden_is_the_sessions(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)"
    site.canned_tests(source, "--kv-seed=77").assert_outcomes(passed=1)
    assert (site.case()["np"], site.case()["plan"]["seed"]) == (1, 77)


def test_without_overrides_the_sessions_case_runs(site: Site) -> None:
    site.canned_tests("def test_one(kvcache): kvcache.run()").assert_outcomes(passed=1)
    assert site.case()["name"] == "mixed-tiny-1b-np2"


def test_a_metric_is_the_median_over_trials() -> None:
    plan = make_plan()
    trials = [trial_of(plan, index) for index in (0, 5, 1)]
    run = Run(case_of(plan, *trials))
    values = [trial.value("read.p95_ms") for trial in trials]
    assert run.metric("read.p95_ms") == sorted(values, key=lambda v: v or 0)[1] == values[2]


def reported(kvcache: KVCache, **arguments: Any) -> str:
    """What a test that calls it like that fails with: a text alone, no traceback."""
    with pytest.raises(pytest.fail.Exception) as failed:
        kvcache.run(**arguments)
    assert failed.value.pytrace is False
    assert failed.value.__suppress_context__
    return str(failed.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"nump": 3}, "kvcache.run(nump=…) is no option (did you mean 'np'"),
        ({"scenarios": "chat"}, "is no option (did you mean 'scenario'?); names are"),
        ({"scenario": "chatt"}, "--kv-scenario is 'chatt' (did you mean 'chat'?); it"),
        ({"np": 0}, "--kv-np is 0; it must be at least 1"),
        ({"np": "two"}, "--kv-np is 'two'; it must be a whole number"),
        ({"np": None}, "--kv-np"),
        ({"scenario": "nope"}, "--kv-scenario is 'nope'; it must name a known scenario"),
        ({"model": "nope"}, "--kv-model is 'nope'; it must name a known model"),
        ({"backend": "nope"}, "--kv-backend is 'nope'; it must name a known backend"),
        ({"layout": "layers"}, "--kv-layout is 'layers'; it must be"),
        ({"html": "a.html"}, "--kv-html is a.html; this is not available yet"),
        ({"np": [1, 2]}, "kvcache.run() runs one case, the options ask for"),
        ({"model": ["tiny-1b", "qwen3-32b"]}, "kvcache.run() runs one case"),
        ({"scenario": "chat,agent"}, "kvcache.run() runs one case"),
        ({"backend": "file", "cache_dir": "/etc"}, "--kv-cache-dir is /etc"),
        *(({"label": label}, f"label is {label!r}; it must be")
          for label in ("", "a b", "../up", "-x", "x" * 41)),
    ],
)  # fmt: skip
def test_a_wrong_call_is_reported_in_one_sentence(
    kvcache_of: KVCacheOf, desk: Desk, arguments: dict[str, Any], sentence: str
) -> None:
    text = reported(kvcache_of(), **arguments)
    assert sentence in text
    assert "\n" not in text
    assert desk.launches() == []


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("read.p96_ms", "'read.p96_ms' is no metric (did you mean 'read."),
        ("read.p95", "'read.p95' is no metric (did you mean 'read.p95_ms'"),
        ("read.p999_ms", "FEW_SAMPLES, p99.9 needs 10000 operations"),
    ],
)
def test_a_metric_that_can_not_be_had_is_reported_in_one_sentence(
    metric: str, sentence: str
) -> None:
    with pytest.raises(pytest.fail.Exception) as failed:
        Run(case_of(make_plan())).metric(metric)
    assert sentence in str(failed.value)
    assert failed.value.pytrace is False


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("kvcache.run(scenario='chatt')", "--kv-scenario is 'chatt' (did you mean 'chat'?); it"),
        ("kvcache.run().metric('read.p95')", "'read.p95' is no metric (did you mean 'read.p95_ms'"),
    ],
)
def test_a_wrong_call_fails_the_test_in_one_sentence(site: Site, call: str, sentence: str) -> None:
    result = site.canned_tests(f"def test_one(kvcache): {call}")
    result.assert_outcomes(failed=1)
    text = output(result)
    assert sentence in text
    assert "Traceback" not in text
    assert "pytest_kvcache/" not in text  # no line of ours is shown
    assert "During handling" not in text
    assert text.count(sentence) <= 2  # in the failure, and in the short summary
    assert "KeyError" not in text


@pytest.mark.parametrize(
    ("first", "second", "launches"),
    [
        ({}, {}, 1),
        ({"np": 2}, {}, 1),  # which the command line says as well
        ({"num_users": 3, "seed": 1}, {"seed": 1, "num_users": 3}, 1),
        ({"np": 1}, {"np": 2}, 2),
        ({"seed": 1}, {"seed": 2}, 2),
        ({"np": 1}, {"np": 1, "mpi_params": "--map-by slot"}, 2),
        ({"np": 1}, {"np": 1, "oversubscribe": False}, 2),
        ({"np": 1}, {"np": 1, "allow_run_as_root": True}, 2),
    ],
)
def test_who_asks_for_the_same_shares_a_launch(
    kvcache_of: KVCacheOf,
    desk: Desk,
    first: dict[str, Any],
    second: dict[str, Any],
    launches: int,
) -> None:
    kvcache = kvcache_of()
    results = {id(kvcache.run(**arguments).result) for arguments in (first, second)}
    assert len(results) == launches
    assert len(desk.launches()) == launches


def test_tests_that_ask_for_the_same_share_a_launch(site: Site) -> None:
    source = """
        def test_first(kvcache): kvcache.run(np=2)
        def test_second(kvcache): kvcache.run()
        def test_third(kvcache): kvcache.run(seed=1)
    """
    site.canned_tests(source).assert_outcomes(passed=3)
    assert len(site.launches()) == 2
    assert len(site.run()["cases"]) == 2


def test_the_shipped_suite_and_an_own_test_share_a_launch(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def test_one(kvcache): kvcache.run()")
    site.canned("test_mine.py", "--kv-metrics=read.p95_ms").assert_outcomes(passed=2)
    assert len(site.launches()) == 1


def test_more_trials_asked_for_later_are_made(kvcache_of: KVCacheOf) -> None:
    kvcache = kvcache_of()
    assert len(kvcache.run(trials=1).result.trials) == 1
    assert len(kvcache.run(trials=3).result.trials) == 3


def test_a_trial_is_judged_by_the_options_of_the_test_that_asks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "short-window")
    source = """
        def test_tolerant(kvcache): kvcache.run(allow_invalid=True)
        def test_strict(kvcache): kvcache.run()
    """
    result = site.canned_tests(source)
    result.assert_outcomes(passed=1, failed=1)
    assert "SKEWED: all ranks were active together" in output(result)
    assert [case["trials"][0]["ok"] for case in site.run()["cases"]] == [True, False]


def test_fewer_trials_asked_for_later_do_not_push_out_those_that_were_made(
    kvcache_of: KVCacheOf, desk: Desk
) -> None:
    kvcache = kvcache_of()
    kvcache.run(trials=2)
    kvcache.run(trials=1)
    (run_file,) = desk.path.glob("results/*/run.json")
    cases = json.loads(run_file.read_text())["cases"]
    assert [len(case["trials"]) for case in cases] == [2, 1]


def test_a_plan_is_never_that_of_other_options(desk: Desk) -> None:
    with desk.benchmark_session() as benchmark_session:
        for users in range(1, 50):  # options that are gone leave their place in memory to others
            asked = replace(benchmark_session.options, num_users=users)
            assert benchmark_session.plan(benchmark_session.names[0], asked).plan.users == users


@pytest.mark.parametrize(
    "given",
    [
        {"hosts": "127.0.0.1"}, {"hosts": ["127.0.0.1"]}, {"np": (2,)}, {"trials": 1},
        {"model": ["tiny-1b"]}, {"mpi_params": "--map-by slot"},
        {"mpi_params": ["--map-by slot"]}, {"duration": 1.0}, {"oversubscribe": True},
        {"cache_dir": Path("/var/tmp")},
    ],
)  # fmt: skip
def test_values_may_be_given_as_python_has_them(
    kvcache_of: KVCacheOf, given: dict[str, Any]
) -> None:
    assert kvcache_of().run(**given).metric("read.p95_ms") > 0


@pytest.mark.parametrize(
    "given",
    [
        {"results_dir": "elsewhere"}, {"mpi_bin": "elsewhere"}, {"python": "/elsewhere"},
        {"plugin": ["kvcache_test_backends"]}, {"compare": "base.json"},
        {"slo": ["read.p95_ms<1"]}, {"datasize": True}, {"dry_run": True},
    ],
)  # fmt: skip
def test_what_is_decided_for_the_whole_session_is_no_override(
    kvcache_of: KVCacheOf, desk: Desk, given: dict[str, Any]
) -> None:
    (name,) = given
    flag = "--kv-" + name.replace("_", "-")
    assert reported(kvcache_of(), **given).startswith(f"{flag} is decided for the whole session")
    assert desk.launches() == []


@pytest.mark.parametrize("value", [True, False, 3, 0.25, "text", ("a", "b")])
def test_python_values_become_the_texts_of_options(value: object) -> None:
    texts = {True: "true", False: "false", 3: "3", 0.25: "0.25", "text": "text"}
    expected = ["a", "b"] if isinstance(value, tuple) else texts[value]
    assert describe_value(value) == expected


# --- failures -------------------------------------------------------------------------------


def test_a_failed_case_fails_every_test_that_asks_for_it_and_is_reported_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "exit-3")
    source = """
        def test_first(kvcache): kvcache.run()
        def test_second(kvcache): kvcache.run()
        def test_other(kvcache): kvcache.run(np=1)
    """
    result = site.canned_tests(source)
    result.assert_outcomes(failed=3)
    assert len(site.launches()) == 2
    assert output(result).count("last lines of ") == 2
    assert (
        output(result).count("failed: see test_first, which tells it whole") == 2
    )  # and the summary


def test_a_missing_launcher_fails_the_test_that_needs_it_and_no_other(site: Site) -> None:
    source = """
        def test_needs_it(kvcache): kvcache.run()
        def test_does_not(): pass
    """
    result = site.canned_tests(source, "--kv-mpi-bin=/no/mpirun")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines("*--kv-mpi-bin is /no/mpirun*pip install*")


# --- pytest-benchmark -----------------------------------------------------------------------


def test_the_users_own_benchmark_marker_is_kept(site: Site) -> None:
    source = """
        import pytest

        @pytest.mark.benchmark(group="mine", min_rounds=7)
        def test_one(kvcache, request):
            marker = request.node.get_closest_marker("benchmark")
            assert marker.kwargs["group"] == "mine"
            assert marker.kwargs["min_rounds"] == 7
            kvcache.run()
    """
    site.canned_tests(source).assert_outcomes(passed=1)


def test_a_group_of_the_users_own_stands(site: Site) -> None:
    source = """
        import pytest
        from pytest_kvcache.suite.test_kvcache import test_kvcache as test_all

        pytestmark = pytest.mark.benchmark(group="mine")
    """
    path = site.path / "out.json"
    site.canned_tests(source, f"--benchmark-json={path}").assert_outcomes(passed=5)
    groups = {entry["group"] for entry in json.loads(path.read_text())["benchmarks"]}
    assert groups == {"mine"}


def test_a_users_own_function_is_timed_by_a_clock_that_runs(site: Site) -> None:
    source = """
        def test_one(benchmark, kvcache):
            kvcache.run()
            benchmark(sum, range(10))
    """
    quick = ("--benchmark-max-time=0.01", "--benchmark-min-rounds=1")
    site.canned_tests(source, *quick).assert_outcomes(passed=1)


def test_benchmark_skip_launches_nothing_for_a_users_own_test(site: Site) -> None:
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", "--benchmark-skip")
    result.assert_outcomes(skipped=1)
    assert site.launches() == []


def test_the_clock_stands_still_when_it_is_set_and_runs_otherwise() -> None:
    clock = ReplayClock()
    assert clock() < clock()
    clock.now_s = 5.0
    assert clock() == clock() == 5.0


@pytest.mark.parametrize(
    ("metric", "count", "censored", "why"),
    [
        ("load.p50_ms", 66, 80, "had not ended at the end of the window to tell (load: 80 of 146"),
        ("load.max_ms", 66, 1, "had not ended at the end of the window to tell (load: 1 of 67"),
        ("load.p95_ms", 66, 8, "FEW_SAMPLES, p95 needs 200 operations"),
        ("load.max_ms", 0, 0, "the trials have no such value"),
        ("load.p50_ms", 12, 802, "had not ended at the end of the window to tell (load: 802 of 8"),
        (
            "scheduling_lag.p50_ms",
            0,
            0,
            "only an open loop has scheduling_lag; add --kv-request-rate",
        ),
        ("run.s", 66, 0, "only a fixed amount of work that was done has it; add --kv-requests"),
    ],
)
def test_an_absent_metric_says_what_it_lacked(
    metric: str, count: int, censored: int, why: str
) -> None:
    trial = measuring(trial_of(make_plan(np=2)), load=section_of(count, censored))
    case = case_of(make_plan(np=2), trial)
    assert why in why_absent(case, metric)


def test_operations_that_nobody_made_are_named_with_what_makes_some() -> None:
    plan = make_plan(np=2, requests=10, duration_s=None)
    trial = measuring(trial_of(plan), write=section_of(0))
    reason = "no write was completed in the window of a trial; raise --kv-requests"
    assert why_absent(case_of(plan, trial), "write.gib_per_s") == reason


@pytest.mark.parametrize(
    ("limit", "duration_s", "capacity", "advice"),
    [
        (60, None, 10, "raise --kv-trace-limit, or --kv-storage-capacity-gb for more hits"),
        (None, 5.0, 10, "leave out --kv-duration, or --kv-storage-capacity-gb for more hits"),
        (None, None, 10, "raise --kv-trace-cycles, or --kv-storage-capacity-gb for more hits"),
        (60, None, 100, "the trials had 7; raise --kv-trace-limit"),
    ],
)
def test_a_replay_with_few_samples_is_told_what_gives_it_more(
    limit: int | None, duration_s: float | None, capacity: int, advice: str
) -> None:
    plan = make_plan(
        scenario="trace", trace=make_trace_plan(limit=limit), duration_s=duration_s,
        capacity_blocks=capacity, need_blocks=100,
    )  # fmt: skip
    case = case_of(plan, measuring(trial_of(plan), load=section_of(7)))
    found = why_absent(case, "load.p95_ms")
    assert advice in found
    assert ("a smaller --kv-model" in found) == (capacity < 100)
    assert "add users" not in found


# --- names of cases -------------------------------------------------------------------------

TWO_DEPTHS = """
    def test_shallow(kvcache): kvcache.run(queue_depth=1, label="shallow", trials=2)
    def test_deep(kvcache): kvcache.run(queue_depth=16, label="deep", trials=2)
"""


@pytest.mark.thorough
def test_a_label_gives_a_case_a_name_and_a_baseline_of_its_own(site: Site) -> None:
    site.canned_tests(TWO_DEPTHS).assert_outcomes(passed=2)
    names = [case["name"] for case in site.run()["cases"]]
    assert names == ["mixed-tiny-1b-np2-shallow", "mixed-tiny-1b-np2-deep"]
    assert [case["plan"]["label"] for case in site.run()["cases"]] == ["shallow", "deep"]
    (site.path / "base.json").write_text(site.run_file().read_text())
    gate = ("--kv-compare=base.json", "--kv-fail=read.p95_ms:20%")
    again = site.canned_tests(TWO_DEPTHS, *gate)
    again.assert_outcomes(passed=3)
    again.stdout.fnmatch_lines(["mixed-tiny-1b-np2-shallow", "read.p95_ms * ok"])


@pytest.mark.thorough
def test_cases_of_one_name_are_said_to_be_several(site: Site) -> None:
    source = TWO_DEPTHS.replace('label="shallow", ', "").replace('label="deep", ', "")
    text = " ".join(output(site.canned_tests(source)).split())
    assert "mixed-tiny-1b-np2 is the name of 2 cases that differ in queue_depth 1 -> 16" in text
    assert "kvcache.run(label=...)" in text
    assert "is the name of" not in output(site.canned_tests(TWO_DEPTHS))
