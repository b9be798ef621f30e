"""The plugin as a session sees it: header, dry run, gates, hooks, exit codes; canned ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.site import PYTEST, SUITE, output, refusal

if TYPE_CHECKING:
    from tests.site import Site

METRICS = "--kv-metrics=read.p95_ms,read.gib_per_s"
ONE = "--kv-metrics=read.p95_ms"
BASE = "base.json"


# --- an innocent session --------------------------------------------------------------------


def test_a_session_without_the_benchmark_is_left_alone(site: Site) -> None:
    site.pytester.makepyfile("def test_one(): pass")
    result = site.call()
    result.assert_outcomes(passed=1)
    assert "kvcache:" not in output(result)
    assert not (site.path / "results").exists()


def test_a_session_without_the_benchmark_loads_none_of_it(site: Site) -> None:
    site.pytester.makepyfile(
        """
        import sys

        def test_one():
            heavy = {"numpy", "mpi4py", "pytest_kvcache.controller"} & set(sys.modules)
            assert not heavy
        """
    )
    site.pytester.runpytest_subprocess(*PYTEST).assert_outcomes(passed=1)


def test_pytest_never_initialises_mpi(site: Site) -> None:
    site.pytester.makepyfile(
        test_mine="""
        import sys

        def test_one(kvcache):
            kvcache.run()
            assert "mpi4py.MPI" not in sys.modules
        """
    )
    result = site.pytester.runpytest_subprocess("test_mine.py", *PYTEST, *site.canned_args())
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("args", [("--version",), ("--markers",), ("--fixtures", "-q")])
def test_informative_commands_of_pytest_work(site: Site, args: tuple[str, ...]) -> None:
    assert site.call(*args).ret == pytest.ExitCode.OK


def test_the_fixture_is_listed_with_what_it_is_for(site: Site) -> None:
    text = output(site.call("--fixtures", "-v"))
    assert "kvcache -- " in text
    assert "Run KV-cache benchmark cases from a test" in text


def test_named_in_a_conftest_and_beside_xdist_the_plugin_disturbs_nothing(site: Site) -> None:
    site.pytester.makeconftest("pytest_plugins = ['pytest_kvcache.plugin']")
    site.pytester.makepyfile("def test_one(): pass")
    result = site.pytester.runpytest_subprocess(*PYTEST, "-n1")
    result.assert_outcomes(passed=1)


def test_in_an_xdist_worker_the_fixture_fails_in_one_sentence_and_launches_nothing(
    site: Site,
) -> None:
    settings = "\n".join(
        f"kv_{name.replace('-', '_')} = {value or 'true'}"
        for name, _, value in (arg[5:].partition("=") for arg in site.canned_args())
    )
    site.pytester.makeini(f"[pytest]\n{settings}\n")
    site.pytester.makepyfile("def test_one(): pass\ndef test_mine(kvcache): kvcache.run()")
    result = site.pytester.runpytest_subprocess(*PYTEST, "-n1", *SUITE, ".", timeout=30)
    result.assert_outcomes(passed=1, errors=6)
    assert "a benchmark runs alone; drop xdist's -n (or use -n 0)" in output(result)
    assert "INTERNALERROR" not in output(result)
    assert "Traceback" not in output(result)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not (site.path / "results").exists()


def test_beside_xdist_settings_that_select_nothing_stay_in_the_ini(site: Site) -> None:
    site.pytester.makeini("[pytest]\nkv_np = 2\nkv_duration = 10\n")
    site.pytester.makepyfile("def test_one(): pass")
    site.pytester.runpytest_subprocess(*PYTEST, "-n1", timeout=30).assert_outcomes(passed=1)


def test_without_a_terminal_reporter_everything_runs(site: Site) -> None:
    result = site.canned("-p", "no:terminal", ONE)
    assert result.ret == pytest.ExitCode.OK
    assert site.case()["trials"][0]["ok"]


# --- the plan -------------------------------------------------------------------------------


def test_a_dry_run_prints_plan_and_command_and_launches_nothing(site: Site, fake: str) -> None:
    result = site.canned("--kv-dry-run", f"--kv-mpi-bin={fake}", "--kv-allow-run-as-root")
    assert result.ret == pytest.ExitCode.OK
    text = output(result)
    assert "mixed-tiny-1b-np2: 2 ranks on 127.0.0.1:2" in text
    (command,) = (line for line in result.outlines if line.strip().startswith(fake))
    assert command.split()[1:3] == ["--allow-run-as-root", "--host"]
    assert "-n 3" in command
    assert "-m mpi4py -m pytest_kvcache.worker" in command
    assert not (site.path / "results").exists()


def test_a_dry_run_of_two_cases_prints_both_once(site: Site) -> None:
    result = site.canned("--kv-dry-run", "--kv-np=1,2")
    heads = [line for line in result.outlines if line.startswith("mixed-tiny-1b-np")]
    assert [head.partition(":")[0] for head in heads] == ["mixed-tiny-1b-np1", "mixed-tiny-1b-np2"]


def test_every_value_of_a_dry_run_has_its_origin(site: Site) -> None:
    result = site.canned("--kv-dry-run", "--kv-ramp=0")
    lines = [line for line in result.outlines if line.startswith("  ") and "canned" not in line]
    named = [line for line in lines if line.split()[0].isidentifier() and line.endswith(")")]
    assert len(named) >= 25
    origins = {line.rpartition("(")[2].rstrip(")") for line in named}
    assert origins <= {"default", "scenario", "ini", "command line", "derived"}


def test_a_dry_run_plans_other_hosts_and_tells_of_those_it_can_not_reach(
    site: Site, fake: str
) -> None:
    result = site.canned("--kv-dry-run", "--kv-hosts=n1.invalid,n2.invalid", "--kv-np=4",
                         f"--kv-mpi-bin={fake}", "--kv-allow-run-as-root")  # fmt: skip
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "n1.invalid:2,n2.invalid:2" in output(result)
    assert "host n2.invalid: can't be reached over ssh" in output(result)


@pytest.fixture
def fake(site: Site) -> str:
    path = site.path / "mpirun"
    path.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    path.chmod(0o755)
    return str(path)


# --- roots ----------------------------------------------------------------------------------


def test_a_path_that_moves_the_root_of_the_tests_is_refused(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    site.pytester.makeini("[pytest]\nkv_num_users = 3\n")
    result = site.call(*site.canned_args(), "--kv-cache-dir", elsewhere)
    assert f"write --kv-cache-dir={elsewhere}" in refusal(result)


# --- gates ----------------------------------------------------------------------------------


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


def gated(site: Site, *args: str) -> pytest.RunResult:
    return site.canned(METRICS, "--kv-trials=2", *args)


@pytest.mark.parametrize("kind", [BASE, "benchmarks.json"])
@pytest.mark.usefixtures("baseline")
def test_the_same_speed_passes_either_kind_of_baseline(site: Site, kind: str) -> None:
    result = gated(
        site, f"--kv-compare={kind}", "--kv-fail=read.p95_ms:20%", "--kv-fail=read.gib_per_s:20%"
    )
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "metric*baseline*now*change*limit*verdict",
            "read.p95_ms*unchanged*20% ok",
            "read.gib_per_s*unchanged*20% ok",
        ]
    )


@pytest.mark.parametrize("metric", ["read.p95_ms", "read.gib_per_s"])
@pytest.mark.usefixtures("baseline")
def test_a_gate_closes_in_the_metrics_own_direction(
    site: Site, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    result = gated(site, f"--kv-compare={BASE}", f"--kv-fail={metric}:20%")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(f"{metric} * worse * 20% WORSE")
    assert "INTERNALERROR" not in output(result)


@pytest.mark.usefixtures("baseline")
def test_better_is_never_worse(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "0.5")
    gates = ("--kv-fail=read.p95_ms:1%", "--kv-fail=read.gib_per_s:1%")
    result = gated(site, f"--kv-compare={BASE}", *gates, "--kv-allow-inconclusive")
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.usefixtures("baseline")
def test_too_few_trials_are_inconclusive_and_close_the_gate(site: Site) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%")
    result = site.canned(METRICS, *gate)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["read.p95_ms * INCONCLUSIVE", "*is inconclusive: *", "*raise --kv-trials"]
    )
    allowed = site.canned(METRICS, *gate, "--kv-allow-inconclusive")
    assert allowed.ret == pytest.ExitCode.OK
    assert "INCONCLUSIVE" in output(allowed)


@pytest.mark.usefixtures("baseline")
def test_another_plan_than_the_baselines_is_said(site: Site) -> None:
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%")
    same = output(gated(site, *gate))
    assert "plan_digest" not in same
    other = output(gated(site, *gate, "--kv-queue-depth=8"))
    assert "the plan differs from the baseline's (plan_digest)" in other


@pytest.mark.usefixtures("baseline")
def test_another_plan_is_said_without_a_gate_as_well(site: Site) -> None:
    text = output(site.canned(ONE, f"--kv-compare={BASE}", "--kv-queue-depth=8"))
    assert "the plan differs from the baseline's (plan_digest)" in text


@pytest.mark.parametrize("kind", [BASE, "benchmarks.json"])
def test_a_result_of_no_storage_passes_no_gate_against_storage(site: Site, kind: str) -> None:
    on_storage = ("--kv-backend=file", "--kv-cache-dir=/var/tmp", "--kv-storage-capacity-gb=1")
    recording = gated(site, *on_storage, "--benchmark-json=benchmarks.json")
    recording.assert_outcomes(passed=2)
    (site.path / BASE).write_text(site.run_file().read_text())
    gate = (f"--kv-compare={kind}", "--kv-fail=read.p95_ms:20%", "--kv-allow-inconclusive")
    same = gated(site, *on_storage, *gate)
    assert same.ret == pytest.ExitCode.OK, output(same)
    result = gated(site, *gate)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["read.p95_ms * INCOMPARABLE", "read.p95_ms of mixed-tiny-1b-np2 is incomparable: *"]
    )


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
    few = site.canned(ONE, f"--kv-compare={BASE}", "--kv-slo=read.p95_ms<20")
    assert few.ret == pytest.ExitCode.OK
    few.stdout.fnmatch_lines(["read.p95_ms * - —", "read.p95_ms * <20 ok"])


@pytest.mark.usefixtures("baseline")
def test_an_older_baseline_is_compared_and_said_to_tell_too_little(site: Site) -> None:
    path = site.path / "benchmarks.json"
    data = json.loads(path.read_text())
    for entry in data["benchmarks"]:
        del entry["extra_info"]["is_storage"], entry["extra_info"]["verdicts"]
    path.write_text(json.dumps(data))
    result = gated(site, f"--kv-compare={path}", "--kv-fail=read.p95_ms:20%")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["read.p95_ms * ok", "the baseline does not tell whether its values are of storage*"]
    )


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        (("--kv-np=3", "--kv-fail=read.p95_ms:5%"), "mixed-tiny-1b-np3"),
        (("--kv-np=2,3", "--kv-fail=read.p95_ms:5%"), "mixed-tiny-1b-np3"),
        (("--kv-fail=read.p999_ms:5%",), "read.p999_ms"),
    ],
)
@pytest.mark.usefixtures("baseline")
def test_a_missing_baseline_is_found_before_the_run(
    site: Site, args: tuple[str, ...], missing: str
) -> None:
    sentence = refusal(gated(site, f"--kv-compare={BASE}", *args))
    assert sentence.startswith(f"--kv-compare={BASE} has no ")
    assert missing in sentence
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_gate_that_can_never_close_is_found_before_the_run(site: Site) -> None:
    result = gated(site, f"--kv-compare={BASE}", "--kv-fail=read.gib_per_s:100%")
    assert "the gate would never close" in refusal(result)
    assert site.launches() == []


@pytest.mark.usefixtures("baseline")
def test_a_baseline_in_another_unit_is_found_before_the_run(site: Site) -> None:
    path = site.path / BASE
    path.write_text(path.read_text().replace('"unit":"ms"', '"unit":"s"'))
    refusal(gated(site, f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:5%"))
    assert site.launches() == []


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
    slower.assert_outcomes(passed=1)
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.stdout.fnmatch_lines("read.p95_ms * WORSE")


@pytest.mark.usefixtures("baseline")
def test_a_users_own_case_that_the_baseline_lacks_is_missing_and_closes_the_gate(
    site: Site,
) -> None:
    source = "def test_one(kvcache): kvcache.run(np=1)"
    gate = (f"--kv-compare={BASE}", "--kv-fail=read.p95_ms:20%")
    result = site.canned_tests(source, *gate, "--kv-allow-inconclusive")
    result.assert_outcomes(passed=1)
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
    assert "plan_digest" not in output(result)
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
        ("read.p95_ms<20", pytest.ExitCode.OK),
        ("read.p95_ms<0.1", pytest.ExitCode.TESTS_FAILED),
        ("read.gib_per_s>1", pytest.ExitCode.OK),
        ("read.gib_per_s>=100", pytest.ExitCode.TESTS_FAILED),
        ("read.p999_ms<1000", pytest.ExitCode.TESTS_FAILED),
    ],
)
def test_an_slo_judges_the_run_alone(site: Site, slo: str, code: pytest.ExitCode) -> None:
    result = site.canned(ONE, f"--kv-slo={slo}")
    assert result.ret == code
    result.assert_outcomes(passed=1)


def test_several_slos_must_all_hold(site: Site) -> None:
    result = site.canned(ONE, "--kv-slo=read.p95_ms<20", "--kv-slo=write.p95_ms<0.1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["read.p95_ms * ok", "write.p95_ms * WORSE"])


def test_an_slo_of_a_users_own_test_is_judged(site: Site) -> None:
    result = site.canned_tests("def test_one(kvcache): kvcache.run()", "--kv-slo=read.p95_ms<0.1")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_the_verdict_table_fits_the_terminal(site: Site) -> None:
    text = output(site.canned(ONE, "--kv-slo=read.p95_ms<0.1"))
    _, _, table = text.partition("metric                 baseline")
    table = table.partition("run file:")[0]
    assert table
    assert max(map(len, table.splitlines())) <= 80


# --- samples --------------------------------------------------------------------------------


def test_too_few_samples_fail_the_item_of_that_metric_only(site: Site) -> None:
    result = site.canned("--kv-metrics=read.p95_ms,read.p999_ms")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("read.p999_ms: FEW_SAMPLES: p99.9 needs 10000 operations*2000*")
    assert len(site.launches()) == 1


# --- hooks ----------------------------------------------------------------------------------

HOOKS = """
    import dataclasses
    import json
    import pathlib

    def note(**words):
        with pathlib.Path("hooks.jsonl").open("a") as file:
            file.write(json.dumps(words) + "\\n")

    def pytest_kvcache_modify_plan(config, plan):
        note(hook="modify_plan", case=plan.case)
        return dataclasses.replace(plan, queue_depth=plan.queue_depth + 1)

    def pytest_kvcache_trial_finished(config, case, trial):
        written = json.loads(next(pathlib.Path("results").glob("*/run.json")).read_text())
        trials = len(written["cases"][-1]["trials"])
        note(hook="trial_finished", case=case.name, index=trial.index, ok=trial.ok, trials=trials)

    def pytest_kvcache_run_finished(config, run):
        note(hook="run_finished", cases=len(run.cases))
"""


def hooks_called(site: Site) -> list[dict[str, Any]]:
    lines = (site.path / "hooks.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_hooks_see_every_case_and_trial_and_may_change_the_plan(site: Site) -> None:
    site.pytester.makeconftest(HOOKS)
    site.canned(METRICS, "--kv-trials=2").assert_outcomes(passed=2)
    case = "mixed-tiny-1b-np2"
    assert hooks_called(site) == [
        {"hook": "modify_plan", "case": case},
        {"hook": "trial_finished", "case": case, "index": 0, "ok": True, "trials": 1},
        {"hook": "trial_finished", "case": case, "index": 1, "ok": True, "trials": 2},
        {"hook": "run_finished", "cases": 1},
    ]
    assert site.case()["plan"]["queue_depth"] == 17


def test_hooks_hear_of_failed_trials(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    site.pytester.makeconftest(HOOKS)
    site.canned(ONE).assert_outcomes(failed=1)
    finished = [call for call in hooks_called(site) if call["hook"] == "trial_finished"]
    assert finished == [
        {"hook": "trial_finished", "case": "mixed-tiny-1b-np2", "index": 0, "ok": False,
         "trials": 1}
    ]  # fmt: skip


def test_a_session_without_a_case_finishes_no_run(site: Site) -> None:
    site.pytester.makeconftest(HOOKS)
    site.pytester.makepyfile("def test_one(): pass")
    site.call().assert_outcomes(passed=1)
    assert not (site.path / "hooks.jsonl").exists()


# --- exit codes -----------------------------------------------------------------------------


def test_a_collection_error_launches_nothing(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def broken(:")
    result = site.canned(ONE, "test_mine.py")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert site.launches() == []


def test_a_run_that_goes_on_after_a_collection_error_is_checked_all_the_same(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def broken(:")
    goes_on = ("--continue-on-collection-errors", "test_mine.py")
    result = site.canned(ONE, *goes_on, "--kv-mpi-bin=/no/mpirun")
    assert refusal(result).startswith("--kv-mpi-bin is /no/mpirun")
    site.canned(ONE, *goes_on).assert_outcomes(passed=1, errors=1)


def test_nothing_selected_is_pytests_own_exit_code(site: Site) -> None:
    assert site.canned("-k", "nothing_like_it").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_timeout_in_the_middle_of_a_launch_ends_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "hang")
    timeout = ("--timeout=4", "--timeout-method=signal")
    result = site.canned_apart("--kv-metrics=read.p95_ms,write.p95_ms", *timeout)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    assert len(site.launches()) == 1
    assert "the run was interrupted (Failed)" in site.case()["trials"][0]["error"]
    left = subprocess.run(["pgrep", "-f", str(site.path)], capture_output=True, check=False)
    assert left.stdout == b""


def test_the_output_names_the_run_file(site: Site) -> None:
    text = output(site.canned(ONE))
    assert f"run file: {site.run_file().relative_to(site.path)}" in text
