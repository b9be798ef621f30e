"""What closes the gate of a session, and what the user is told of it; canned ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from pytest_kvcache.results.summary import MetricSeries
from tests.site import SUITE, output, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.desk import Desk
    from tests.site import Site

METRICS = "--kv-metrics=read.p95_ms,read.gib_per_s"
ONE = "--kv-metrics=read.p95_ms"
BASE = "base.json"
GATE = "--kv-fail=read.p95_ms:20%"


@pytest.fixture(scope="module")
def recorded() -> dict[str, str]:
    """The baselines of the first test that needs them, for all others."""
    return {}


@pytest.fixture
def baseline(site: Site, recorded: dict[str, str]) -> None:
    """A run file and a pytest-benchmark file of two trials at usual speed."""
    if not recorded:
        gated(site, "--benchmark-json=benchmarks.json").assert_outcomes(passed=2)
        recorded["benchmarks.json"] = (site.path / "benchmarks.json").read_text()
        recorded[BASE] = site.run_file().read_text()
        shutil.rmtree(site.path / "results")
    for name, text in recorded.items():
        (site.path / name).write_text(text)


@pytest.fixture
def old(request: pytest.FixtureRequest, recorded: dict[str, str]) -> Desk:
    """A desk on which these baselines lie; where there are none yet, a session makes them."""
    if not recorded:
        request.getfixturevalue("baseline")
    desk: Desk = request.getfixturevalue("desk")
    for name, text in recorded.items():
        (desk.path / name).write_text(text)
    return desk


TWO_TRIALS = (METRICS, "--kv-trials=2")


def gated(site: Site, *args: str) -> pytest.RunResult:
    return site.canned(*TWO_TRIALS, *args)


def slos(site: Site, *args: str) -> pytest.RunResult:
    """One metric, judged although canned ranks store nothing."""
    return site.canned(ONE, "--kv-allow-invalid", *args)


@pytest.mark.parametrize("metric", ["read.p95_ms", "read.gib_per_s"])
@pytest.mark.usefixtures("baseline")
def test_a_gate_closes_in_the_metrics_own_direction(
    site: Site, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    result = gated(site, f"--kv-compare={BASE}", f"--kv-fail={metric}:20%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [f"{metric} * worse * 20% WORSE", f"FAILED kvcache::gate[[]{metric}:20%] - {metric} *"]
    )
    assert "INTERNALERROR" not in output(result)


@pytest.mark.usefixtures("baseline")
def test_better_is_never_worse(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "0.5")
    gates = ("--kv-fail=read.p95_ms:1%", "--kv-fail=read.gib_per_s:1%")
    result = gated(site, f"--kv-compare={BASE}", *gates, "--kv-allow-inconclusive")
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.usefixtures("baseline")
def test_a_gate_that_could_never_be_decided_is_refused_before_the_run(site: Site) -> None:
    gate = (METRICS, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%")
    sentence = refusal(site.canned(*gate))
    assert sentence.startswith("--kv-fail is read.p95_ms:5%, which could never be decided")
    assert "(--kv-compare=base.json) has 2 trials and this run 1 trial, and noise" in sentence
    assert "; raise --kv-trials (to 3, say), or let a gate" in sentence
    assert "anew" not in sentence
    sentence = refusal(site.canned(*gate, "--kv-trials=3", "--benchmark-disable"))
    assert "; leave out --benchmark-disable, which makes a single trial of all, or" in sentence
    assert site.launches() == []
    allowed = site.canned(*gate, "--kv-allow-inconclusive")
    assert allowed.ret == pytest.ExitCode.OK
    allowed.stdout.fnmatch_lines(["read.p95_ms * INCONCLUSIVE", "*is inconclusive: *"])


def test_a_baseline_of_one_trial_is_refused_with_what_mends_it(site: Site) -> None:
    site.canned(METRICS, "--benchmark-json=benchmarks.json").assert_outcomes(passed=2)
    site.run_file().rename(site.path / BASE)
    launched = len(site.launches())
    for kind in (BASE, "benchmarks.json"):
        gate = (f"--kv-compare={kind}", "--kv-fail=read.p95_ms:5%")
        sentence = refusal(site.canned(METRICS, "--kv-trials=5", *gate))
        assert f"(--kv-compare={kind}) has 1 trial and this run 5 trials" in sentence
        assert "; record the baseline anew with --kv-trials=5, or let a gate" in sentence
        assert "raise" not in sentence
    assert "--kv-trials=3 and raise --kv-trials (to 3, say), or" in refusal(
        site.canned(METRICS, *gate)
    )
    assert len(site.launches()) == launched


def test_an_slo_is_judged_by_one_trial(site: Site) -> None:
    assert slos(site, "--kv-trials=1", "--kv-slo=read.p95_ms<20").ret == pytest.ExitCode.OK


DEEPER = ("--kv-queue-depth=8", "--kv-num-users=7")
PLAN = ("users 100 -> 7;", "queue_depth 16 -> 8")


@pytest.mark.parametrize("kind", [BASE, "benchmarks.json"])
@pytest.mark.usefixtures("baseline")
def test_what_differs_from_the_baselines_plan_is_said(site: Site, kind: str) -> None:
    result = gated(site, f"--kv-compare={kind}", *DEEPER)
    assert result.ret == pytest.ExitCode.OK
    assert all(part in output(result) for part in PLAN)
    allowed = gated(site, f"--kv-compare={kind}", GATE, *DEEPER, "--kv-compare-across=plan")
    assert allowed.ret == pytest.ExitCode.OK, output(allowed)
    assert all(part in output(allowed) for part in PLAN)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [BASE, "benchmarks.json"])
def test_a_gate_against_another_plan_is_refused_before_the_run(old: Desk, kind: str) -> None:
    sentence = old.refusal(*TWO_TRIALS, f"--kv-compare={kind}", GATE, *DEEPER)
    assert "plan differs from the baseline's (users 100 -> 7;" in sentence
    assert "--kv-compare-across=plan" in sentence


@pytest.mark.usefixtures("baseline")
def test_a_users_own_case_of_another_plan_closes_the_gate(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(queue_depth=8, trials=2)"
    result = site.canned_tests(source, f"--kv-compare={BASE}", GATE)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("*plan differs from the baseline's (queue_depth 16 -> 8)*")


def test_a_result_of_no_storage_passes_no_gate_against_storage(site: Site) -> None:
    on_storage = ("--kv-backend=file", "--kv-cache-dir=/var/tmp", "--kv-storage-capacity-gb=1")
    recording = gated(site, *on_storage, "--benchmark-json=benchmarks.json")
    recording.assert_outcomes(passed=2)
    (site.path / BASE).write_text(site.run_file().read_text())
    for kind in (BASE, "benchmarks.json"):
        gate = (f"--kv-compare={kind}", "--kv-fail=read.p95_ms:20%", "--kv-allow-inconclusive")
        same = gated(site, *on_storage, *gate)
        assert same.ret == pytest.ExitCode.OK, output(same)
        sentence = refusal(gated(site, *gate, "--kv-compare-across=plan"))
        assert "the baseline was measured on storage and this run was not" in sentence
        own = site.canned_tests(OWN, *gate, "--kv-compare-across=plan")
        own.assert_outcomes(passed=1, failed=1)
        own.stdout.fnmatch_lines("read.p95_ms * INCOMPARABLE")


@pytest.mark.usefixtures("baseline")
def test_a_comparison_without_a_gate_is_shown_and_closes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    result = gated(site, f"--kv-compare={BASE}")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "metric*baseline*now*change*limit verdict",
            "mixed-tiny-1b-np2",
            "read.p95_ms * 30.0% worse * - worse",
            "read.gib_per_s * worse * - worse",
        ]
    )
    _, _, table = output(result).partition("metric                 baseline")
    assert max(map(len, table.partition("run file:")[0].splitlines())) <= 80
    few = slos(site, f"--kv-compare={BASE}", "--kv-slo=read.p95_ms<20")
    assert few.ret == pytest.ExitCode.OK
    few.stdout.fnmatch_lines(["read.p95_ms * - unknown", "read.p95_ms * <20 ok"])


@pytest.mark.usefixtures("baseline")
def test_an_older_baseline_is_compared_and_said_to_tell_too_little(site: Site) -> None:
    path = site.path / "benchmarks.json"
    data = json.loads(path.read_text())
    for entry in data["benchmarks"]:
        del entry["extra_info"]["is_storage"], entry["extra_info"]["verdicts"]
        del entry["extra_info"]["facts"], entry["extra_info"]["hit_ratio"]
    path.write_text(json.dumps(data))
    result = gated(site, f"--kv-compare={path}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["read.p95_ms * ok", "the baseline does not tell whether its values are of storage*"]
    )


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (
            ("--kv-np=3", "--kv-fail=read.p95_ms:5%"),
            (
                "read.p95_ms of mixed-tiny-1b-np3 for its gate: the baseline has no such case, only"
                " mixed-tiny-1b-np2: compare runs that both have it, or drop the --kv-fail"
            ),
        ),
        (("--kv-np=2,3", "--kv-fail=read.p95_ms:5%"), "mixed-tiny-1b-np3"),
        (
            ("--kv-fail=read.p999_ms:5%",),
            (
                "read.p999_ms of mixed-tiny-1b-np2 for its gate: the baseline has the case without"
                " that metric: compare runs that both have it, or drop the --kv-fail"
            ),
        ),
    ],
)
@pytest.mark.thorough
def test_a_missing_baseline_is_found_before_the_run(
    old: Desk, args: tuple[str, ...], missing: str
) -> None:
    sentence = old.refusal(*TWO_TRIALS, f"--kv-compare={BASE}", *args)
    assert sentence.startswith(f"--kv-compare={BASE} has no ")
    assert missing in sentence


@pytest.mark.thorough
def test_a_gate_that_can_never_close_is_found_before_the_run(old: Desk) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.gib_per_s:100%")
    assert "the gate would never close" in old.refusal(*TWO_TRIALS, *gate)


@pytest.mark.thorough
def test_a_baseline_in_another_unit_is_found_before_the_run(old: Desk) -> None:
    path = old.path / BASE
    path.write_text(path.read_text().replace('"unit":"ms"', '"unit":"s"'))
    sentence = old.refusal(*TWO_TRIALS, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%")
    assert sentence.startswith(f"--kv-compare is {BASE}")


OWN = "def test_one(kvcache): kvcache.run(trials=2)"


def test_a_baseline_that_can_not_be_read_is_found_before_any_test(site: Site) -> None:
    sentence = refusal(site.canned_tests(OWN, "--kv-compare=nonexistent.json"))
    assert sentence.startswith("--kv-compare is nonexistent.json; it must be a readable JSON")
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_gate_judges_the_cases_of_a_users_own_tests(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    same = site.canned_tests(OWN, *gate)
    assert same.ret == pytest.ExitCode.OK
    same.stdout.fnmatch_lines("read.p95_ms * ok")
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    slower = site.canned_tests(OWN, *gate)
    slower.assert_outcomes(passed=1, failed=1)
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.stdout.fnmatch_lines("read.p95_ms * WORSE")


@pytest.mark.usefixtures("baseline")
def test_a_users_own_case_that_the_baseline_lacks_is_missing_and_closes_the_gate(
    site: Site,
) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)"
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    result = site.canned_tests(source, *gate, "--kv-allow-inconclusive")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines("read.p95_ms * MISSING")
    assert "INTERNALERROR" not in output(result)


def test_a_run_file_of_one_case_under_two_plans_is_a_baseline(site: Site) -> None:
    source = """
        def test_short(kvcache): kvcache.run(duration=1, trials=2)
        def test_long(kvcache): kvcache.run(duration=2, trials=2)
    """
    site.canned_tests(source).assert_outcomes(passed=2)
    (site.path / BASE).write_text(site.run_file().read_text())
    result = site.canned_tests(source, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert "differs from the baseline" not in output(result)
    other = source.replace("duration=2", "duration=2.5")  # of another length: pytest caches
    result = site.canned_tests(other, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "2 results of this case, none with this" in " ".join(output(result).split())


@pytest.mark.usefixtures("baseline")
def test_a_gate_that_can_never_close_is_refused_for_a_users_own_tests_too(site: Site) -> None:
    result = site.canned_tests(OWN, f"--kv-compare={BASE}", "--kv-fail=read.gib_per_s:100%")
    assert "the gate would never close" in refusal(result)


@pytest.mark.usefixtures("baseline")
def test_a_run_that_failed_does_not_pass_its_gate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    result = gated(site, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:50%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "MISSING" in output(result)


@pytest.mark.parametrize(
    ("slo", "code"),
    [
        ("read.gib_per_s>1", pytest.ExitCode.OK),
        ("read.gib_per_s>=100", pytest.ExitCode.TESTS_FAILED),
        ("read.p999_ms<1000", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_an_slo_judges_in_its_own_direction(site: Site, slo: str, code: pytest.ExitCode) -> None:
    result = slos(site, f"--kv-slo={slo}")
    assert result.ret == code
    closed = code != pytest.ExitCode.OK
    result.assert_outcomes(passed=2 - closed, failed=closed)


def test_several_slos_must_all_hold_and_their_table_fits_the_terminal(site: Site) -> None:
    result = slos(site, "--kv-slo=read.p95_ms<20", "--kv-slo=write.p95_ms<0.1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["read.p95_ms * ok", "write.p95_ms * WORSE"])
    _, _, table = output(result).partition("metric                 baseline")
    table = table.partition("run file:")[0]
    assert table
    assert max(map(len, table.splitlines())) <= 80


def test_an_slo_of_a_users_own_test_is_judged(site: Site) -> None:
    slo = ("--kv-slo=read.p95_ms<0.1", "--kv-allow-invalid")
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", *slo)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)


# --- a closed gate is red everywhere --------------------------------------------------------

LIMIT = "--kv-slo=read.p95_ms<1"
VERDICT = "read.p95_ms 1.449 ms, limit < 1 ms"
NODE = "kvcache::slo[read.p95_ms<1]"


@pytest.mark.parametrize(
    "args",
    [
        (), ("-q",), ("-v",), ("--tb=no",), ("--tb=line",), ("--tb=short",), ("--tb=native",),
        ("-k", "p95"), ("-k", "test_kvcache"), ("-m", "not slow"), ("-p", "no:benchmark"),
        ("--benchmark-only",), ("--benchmark-disable",), ("-x",), ("--maxfail=5",),
        ("--reruns=2",), ("--random-order",), ("-rA",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_closed_gate_is_a_failed_test_in_the_summary(site: Site, args: tuple[str, ...]) -> None:
    for option, plugin in (("--reruns", "rerunfailures"), ("--random-order", "random_order")):
        if any(arg.startswith(option) for arg in args):
            pytest.importorskip("pytest_rerunfailures" if "rerun" in plugin else plugin)
    result = slos(site, LIMIT, *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    text = output(result)
    assert f"FAILED {NODE} - {VERDICT}" in text
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text


def test_the_last_line_of_a_closed_gates_report_is_its_verdict(site: Site) -> None:
    lines = output(slos(site, LIMIT)).splitlines()
    head = next(i for i, line in enumerate(lines) if line.strip("_ ") == "slo[read.p95_ms<1]")
    shown = lines[head + 1 :]
    last = next(i for i, line in enumerate(shown) if line.startswith(("-", "=")))
    assert [line for line in shown[:last] if line][-1] == VERDICT
    assert "which breaks read.p95_ms<1" in " ".join(shown[:last])


@pytest.mark.parametrize("args", [("--no-summary",), ("-p", "no:terminal"), ("--no-summary", "-q")])
def test_a_closed_gate_has_a_voice_where_there_is_no_summary(
    site: Site, args: tuple[str, ...]
) -> None:
    result = slos(site, LIMIT, *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert VERDICT in output(result)


def test_a_closed_gate_is_a_failure_in_junit(site: Site) -> None:
    slos(site, LIMIT, "--kv-slo=read.p95_ms<9", "--junitxml=j.xml")
    suite = ET.parse(site.path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "0")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    (failure,) = cases["slo[read.p95_ms<1]"]
    assert failure.get("message") == VERDICT
    assert (failure.text or "").splitlines()[-1] == VERDICT
    assert len(cases["slo[read.p95_ms<9]"]) == 0


def test_each_case_has_a_gate_of_its_own_that_names_it(site: Site) -> None:
    result = slos(site, LIMIT, "--kv-np=1,2", "-v")
    result.assert_outcomes(passed=2, failed=2)
    for ranks in (1, 2):
        result.stdout.fnmatch_lines(
            f"FAILED kvcache::slo[[]read.p95_ms<1 of mixed-tiny-1b-np{ranks}] - read.p95_ms *"
        )


def test_a_gate_on_several_cases_of_own_tests_names_each_that_closed_it(site: Site) -> None:
    source = """
        def test_one(kvcache): kvcache.run(np=1)
        def test_two(kvcache): kvcache.run(np=2)
    """
    result = site.canned_tests(source, LIMIT, "--kv-allow-invalid", "--junitxml=j.xml")
    result.assert_outcomes(passed=2, failed=1)
    reported = [f"mixed-tiny-1b-np{ranks}: {VERDICT}" for ranks in (1, 2)]
    assert f"FAILED {NODE} - {reported[0][:20]}" in output(result)  # 80 columns
    result.stdout.fnmatch_lines(reported)
    (failure,) = ET.parse(site.path / "j.xml").getroot().iter("failure")
    assert failure.get("message") == "; ".join(reported)


def test_the_suite_and_own_tests_are_judged_once_each(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def test_one(kvcache): kvcache.run(np=1)")
    result = slos(site, LIMIT, "test_mine.py")
    result.assert_outcomes(passed=2, failed=2)
    same = "def test_another_one(kvcache): kvcache.run()"
    site.pytester.makepyfile(test_mine=same)
    slos(site, LIMIT, "test_mine.py").assert_outcomes(passed=2, failed=1, skipped=1)


def test_a_gate_whose_case_failed_is_missing_and_says_why(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    result = slos(site, LIMIT)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines("FAILED kvcache::slo* - read.p95_ms no value, missing, limit < 1")
    assert "the case failed: the launcher ended" in output(result)


def test_a_gate_of_a_case_that_never_came_to_run_is_missing(site: Site) -> None:
    source = "def test_one(kvcache): raise OSError('the disk is gone')"
    result = site.canned_tests(source, LIMIT, "--kv-allow-invalid")
    result.assert_outcomes(failed=2)
    assert "it did not come to run" in output(result)
    idle = "def test_a_test_that_runs_nothing(kvcache): pass"
    site.canned_tests(idle, LIMIT, "--kv-allow-invalid").assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize("args", [("--benchmark-skip",), ()])
def test_a_gate_of_which_everything_was_skipped_is_skipped(
    site: Site, args: tuple[str, ...]
) -> None:
    source = "import pytest\ndef test_one(kvcache): pytest.skip('not here')"
    result = site.canned_tests(source, LIMIT, "--kv-allow-invalid", *args)
    result.assert_outcomes(skipped=2)


def test_a_typed_gate_without_a_benchmark_fails(site: Site) -> None:
    source = "def test_one(): pass"
    result = site.canned_tests(source, LIMIT, "--kv-allow-invalid")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    text = " ".join(output(result).split())
    assert "no benchmark was selected that it could judge" in text
    assert "none of the 1 tests that were selected uses" in text
    mixed = "def test_one(): pass\ndef test_two(kvcache): kvcache.run()"
    site.canned_tests(mixed, LIMIT, "--kv-allow-invalid", "-k", "one").assert_outcomes(
        passed=1, failed=1, deselected=1
    )


def test_a_gate_of_a_projects_file_asks_for_no_benchmark(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_slo = read.p95_ms<1\nkv_allow_invalid = true")
    result = site.canned_tests("def test_one(): pass")
    result.assert_outcomes(passed=1)
    site.pytester.makeini(f"[pytest]\naddopts = {LIMIT} --kv-allow-invalid")
    site.canned_tests("def test_one(): pass").assert_outcomes(passed=1)


def test_an_empty_selection_has_no_gate(site: Site) -> None:
    everything = slos(site, LIMIT, "-k", "nothing_of_this_name")
    assert everything.ret == pytest.ExitCode.NO_TESTS_COLLECTED


FEW = "FEW_SAMPLES, p99.9 needs 10000 operations per trial (10 beyond it), the trials had 2000"


def test_a_gate_on_too_few_samples_says_how_many_it_takes(site: Site) -> None:
    reported = f"read.p999_ms of mixed-tiny-1b-np2 is missing: {FEW}; lengthen --kv-duration"
    result = slos(site, "--kv-slo=read.p999_ms<9")
    result.assert_outcomes(passed=1, failed=1)
    assert reported in " ".join(output(result).split())
    assert "this run has no such entry" not in output(result)


def test_a_row_says_why_it_has_no_value(site: Site) -> None:
    result = site.canned("--kv-metrics=read.p999_ms,read.p95_ms")
    result.stdout.fnmatch_lines("*read.p999_ms @16*ms* —   too few samples: 2000 of 10000")


@pytest.mark.parametrize("args", [("-p", "no:terminal"), ("--no-summary",)])
def test_an_absent_metric_has_its_reason_where_there_is_no_summary(
    site: Site, args: tuple[str, ...]
) -> None:
    result = site.canned("--kv-metrics=read.p999_ms,read.p95_ms", *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    if "-p" in args:
        assert f"kvcache: mixed-tiny-1b-np2: no read.p999_ms: {FEW}" in output(result)
        assert "no read.p95_ms" not in output(result)


@pytest.mark.parametrize("args", [("--collect-only",), ("--kv-dry-run",)])
def test_what_runs_nothing_judges_nothing(site: Site, args: tuple[str, ...]) -> None:
    result = slos(site, LIMIT, *args)
    assert result.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), output(result)
    assert "FAILED" not in output(result)


def test_the_first_failure_ends_a_session_before_its_gates_and_stays_red(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "exit-3")
    result = slos(site, LIMIT, "-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)


def test_what_failed_last_keeps_its_gate(site: Site) -> None:
    pytester, args = site.pytester, (*SUITE, *site.canned_args(), METRICS, "--kv-allow-invalid")
    for extra in ((), ("--lf",), ("--ff",)):
        result = pytester.runpytest_inprocess(*args, LIMIT, *extra)
        result.assert_outcomes(passed=2, failed=1)


def test_fixtures_of_the_session_end_after_the_gates(site: Site) -> None:
    source = """
        import pytest

        @pytest.fixture(scope="session")
        def held():
            yield
            raise OSError("could not let go")

        def test_one(kvcache, held): kvcache.run()
    """
    result = site.canned_tests(source, "--kv-slo=read.p95_ms<9", "--kv-allow-invalid")
    result.assert_outcomes(passed=2, errors=1)
    assert "INTERNALERROR" not in output(result)


def test_an_inconclusive_gate_that_is_allowed_passes_as_an_item(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(trials=1)"
    record = site.canned_tests(source)
    record.assert_outcomes(passed=1)
    (site.path / BASE).write_text(site.run_file().read_text())
    gate = (f"--kv-compare={BASE}", GATE)
    site.canned_tests(source, *gate).assert_outcomes(passed=1, failed=1)
    allowed = site.canned_tests(source, *gate, "--kv-allow-inconclusive")
    allowed.assert_outcomes(passed=2)


def test_an_slo_on_no_storage_is_refused_before_the_run(site: Site) -> None:
    sentence = refusal(site.canned(ONE, LIMIT))
    assert "--kv-backend is null, which is no storage" in sentence
    assert "--kv-allow-invalid" in sentence
    assert site.launches() == []


# --- a baseline is verified -----------------------------------------------------------------


def altered(
    place: Site | Desk, change: Callable[[dict[str, Any]], object], name: str = BASE
) -> None:
    path = place.path / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def slow_summary(data: dict[str, Any]) -> None:
    """The baseline's summary at three times its values, consistent in itself."""
    summary = data["cases"][0]["summary"]
    series = MetricSeries.from_json("read.p95_ms", summary["read.p95_ms"])
    values = tuple(3 * value for value in series.values)
    summary["read.p95_ms"] = replace(series, values=values).to_json()


def slow_values(data: dict[str, Any]) -> None:
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        series = MetricSeries.from_json(info["metric"], info)
        values = tuple(3 * value for value in series.values)
        info |= replace(series, values=values).to_json()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (BASE, slow_summary, "summary.read.p95_ms"),
        (BASE, lambda d: d["cases"][0]["trials"][0]["read"]["ms"].update(p95=9.0),
         "read.ms.p95 is 9.0; computed from the ranks' records it is "),
        (BASE, lambda d: d["cases"][0]["trials"][0]["read"]["ms"].update(p95=9.0, max=9.0),
         "(and 1 more contradictions)"),
        (BASE, lambda d: d["cases"][0]["trials"].pop(), "summary."),
        (BASE, lambda d: d["cases"][0].update(looks=[1, 2]), "summary."),
        (BASE, lambda d: d["cases"][0].update(verdicts=[
            {"code": "NOISY", "severity": "warning", "text": ""}]), "the verdicts are ['NOISY']"),
        ("benchmarks.json", slow_values, "of its rounds, but its values give"),
        ("benchmarks.json", lambda d: d["benchmarks"][0]["extra_info"].update(median=9.0),
         "states median 9.0"),
        ("benchmarks.json", lambda d: d["benchmarks"][0]["stats"].update(mean=9.0), "the mean 9.0"),
        ("benchmarks.json", lambda d: d["benchmarks"][0]["stats"]["data"].__setitem__(0, 9.0),
         "has rounds [9.0"),
        ("benchmarks.json", lambda d: d["benchmarks"][0].update(fullname="x"), "the name 'x'"),
        ("benchmarks.json", lambda d: d["benchmarks"][0]["extra_info"].update(case="x"),
         "stands under the name"),
    ],
)  # fmt: skip
@pytest.mark.thorough
def test_an_altered_baseline_is_refused(
    old: Desk, name: str, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    gate = (*TWO_TRIALS, f"--kv-compare={name}", GATE)
    old.accept(*gate)
    altered(old, change, name)
    reported = old.refusal(*gate)
    assert reported.startswith(f"--kv-compare is {name}; it must be an intact")
    assert sentence in reported


@pytest.mark.usefixtures("baseline")
def test_an_altered_baseline_is_refused_before_the_run(site: Site) -> None:
    altered(site, slow_summary)
    assert "it must be an intact" in refusal(gated(site, f"--kv-compare={BASE}", GATE))
    assert site.launches() == []


# --- trials until the gates can tell --------------------------------------------------------


def made(site: Site) -> int:
    return len(site.case()["trials"])


@pytest.mark.usefixtures("baseline")
def test_trials_go_on_until_the_gate_can_tell(site: Site) -> None:
    gate = ("--kv-trials=2..9", f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:30%")
    assert site.canned(ONE, *gate).ret == pytest.ExitCode.OK
    few = made(site)
    assert site.case()["looks"] == [2, 3, 5, 9]
    shutil.rmtree(site.path / "results")
    tight = ("--kv-trials=2..9", f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:3%")
    site.canned(ONE, *tight)
    assert few < made(site)
    assert made(site) in (3, 5, 9)


def test_trials_go_on_until_an_slo_can_tell(site: Site) -> None:
    for limit, count in (("9", 2), ("1.462", 5)):  # 1 % more per trial: 1.457, 1.472, ...
        slos(site, "--kv-trials=2..5", f"--kv-slo=read.p95_ms<{limit}")
        assert made(site) == count
        shutil.rmtree(site.path / "results")


def test_a_range_of_trials_needs_what_ends_it(site: Site) -> None:
    sentence = refusal(site.canned(ONE, "--kv-trials=3..20"))
    assert "--kv-target-ci" in sentence
    assert "a gate (--kv-fail, --kv-slo)" in sentence


# --- pytest-benchmark's own comparison ------------------------------------------------------

FILES = ("--kv-backend=file", "--kv-cache-dir=/var/tmp", "--kv-storage-capacity-gb=1")


def test_pytest_benchmarks_comparison_refuses_null_against_storage(site: Site) -> None:
    assert gated(site, *FILES, "--benchmark-save=base").ret == pytest.ExitCode.OK
    again = gated(site, *FILES, "--benchmark-compare=0001", "--benchmark-compare-fail=mean:5%")
    assert again.ret == pytest.ExitCode.OK, output(again)
    shutil.rmtree(site.path / "results")
    for fail in ((), ("--benchmark-compare-fail=mean:5%",)):
        sentence = refusal(gated(site, "--benchmark-compare=0001", *fail))
        assert sentence.startswith("--benchmark-compare has mixed-tiny-1b-np2-read.")
        assert "the baseline was measured on storage and this run was not" in sentence
    assert site.launches() == []


def test_what_is_known_after_the_run_fails_the_entry(site: Site) -> None:
    assert gated(site, *FILES, "--benchmark-save=base").ret == pytest.ExitCode.OK
    (saved,) = (site.path / ".benchmarks").rglob("0001_base.json")
    data = json.loads(saved.read_text())
    for entry in data["benchmarks"]:
        entry["extra_info"]["verdicts"] = ["TMPFS"]
    saved.write_text(json.dumps(data))
    result = gated(site, *FILES, "--benchmark-compare=0001", "--benchmark-compare-fail=mean:5%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2, skipped=1)  # the gate has nothing to judge
    assert "only the baseline has the invalidating verdict TMPFS" in output(result)


def test_pytest_benchmarks_comparison_says_what_differs(site: Site) -> None:
    gated(site, "--benchmark-save=base")
    result = gated(site, *DEEPER, "--benchmark-compare=0001")
    assert result.ret == pytest.ExitCode.OK
    text = output(result)
    assert "mixed-tiny-1b-np2 differs from what --benchmark-compare compares with in:" in text
    assert all(part in text for part in PLAN)
