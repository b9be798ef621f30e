"""The plugin as a session sees it: header, dry run, gates, hooks, exit codes; canned ranks."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.site import PATIENCE_S, PYTEST, SUITE, output, refusal

if TYPE_CHECKING:
    from tests.site import Site

METRICS = "--kv-metrics=read.p95_ms,read.gib_per_s"
ONE = "--kv-metrics=read.p95_ms"


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
            heavy = {"numpy", "mpi4py", "pytest_kvcache.launch.runner"} & set(sys.modules)
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


@pytest.mark.thorough
def test_named_in_a_conftest_and_an_ini_and_beside_xdist_it_disturbs_nothing(
    site: Site,
) -> None:
    site.pytester.makeconftest("pytest_plugins = ['pytest_kvcache.plugin']")
    site.pytester.makeini("[pytest]\nkv_np = 2\nkv_duration = 10\n")  # which select nothing
    site.pytester.makepyfile("def test_one(): pass")
    site.pytester.runpytest_subprocess(*PYTEST, "-n1", timeout=PATIENCE_S).assert_outcomes(passed=1)


@pytest.mark.thorough
def test_in_an_xdist_worker_the_fixture_fails_in_one_sentence_and_launches_nothing(
    site: Site,
) -> None:
    settings = "\n".join(
        f"kv_{name.replace('-', '_')} = {value or 'true'}"
        for name, _, value in (arg[5:].partition("=") for arg in site.canned_args())
    )
    site.pytester.makeini(f"[pytest]\n{settings}\n")
    site.pytester.makepyfile("def test_one(): pass\ndef test_mine(kvcache): kvcache.run()")
    result = site.pytester.runpytest_subprocess(*PYTEST, "-n1", *SUITE, ".", timeout=PATIENCE_S)
    result.assert_outcomes(passed=1, errors=6)
    assert "a benchmark runs alone; drop xdist's -n (or use -n 0)" in output(result)
    assert "INTERNALERROR" not in output(result)
    assert "Traceback" not in output(result)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert not (site.path / "results").exists()


def test_without_a_terminal_reporter_everything_runs(site: Site) -> None:
    result = site.canned("-p", "no:terminal", ONE)
    assert result.ret == pytest.ExitCode.OK
    assert site.case()["trials"][0]["ok"]


# --- the plan -------------------------------------------------------------------------------


def test_a_dry_run_prints_plan_and_command_and_launches_nothing(site: Site, fake: str) -> None:
    result = site.canned("--kv-dry-run", f"--kv-mpi-bin={fake}", "--kv-allow-run-as-root")
    assert result.ret == pytest.ExitCode.OK
    text = output(result)
    assert "mixed-tiny-1b-np2\n  2 ranks on 127.0.0.1:2" in text
    (command,) = (line for line in result.outlines if line.strip().startswith(fake))
    assert command.split()[1:3] == ["--allow-run-as-root", "--host"]
    assert "-n 3" in command
    assert "-m mpi4py -m pytest_kvcache.ranks.worker" in command
    assert not (site.path / "results").exists()


def test_a_dry_run_of_two_cases_prints_both_once(site: Site) -> None:
    result = site.canned("--kv-dry-run", "--kv-np=1,2")
    heads = [line for line in result.outlines if line.startswith("mixed-tiny-1b-np")]
    assert heads == ["mixed-tiny-1b-np1", "mixed-tiny-1b-np2"]


@pytest.mark.thorough
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


# --- gates: test_gates.py has the rest --------------------------------------------------------


@pytest.mark.thorough
def test_a_baseline_of_either_kind_passes_the_same_speed_and_no_slower_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (METRICS, "--kv-trials=2")
    gates = ("--kv-fail=read.p95_ms:20%", "--kv-fail=read.gib_per_s:20%")
    site.canned(*two, "--benchmark-json=benchmarks.json").assert_outcomes(passed=2)
    site.run_file().rename(site.path / "base.json")
    for kind in ("base.json", "benchmarks.json"):
        same = site.canned(*two, f"--kv-compare={kind}", *gates)
        assert same.ret == pytest.ExitCode.OK
        same.stdout.fnmatch_lines(
            [
                "metric*baseline*now*change*limit*verdict",
                "read.p95_ms*unchanged*20% ok",
                "read.gib_per_s*unchanged*20% ok",
            ]
        )
        assert "plan_digest" not in output(same)
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.3")
    slower = site.canned(*two, "--kv-compare=benchmarks.json", *gates)
    assert slower.ret == pytest.ExitCode.TESTS_FAILED
    slower.assert_outcomes(passed=2, failed=2)
    slower.stdout.fnmatch_lines(["read.p95_ms * worse * 20% WORSE", "read.gib_per_s * 20% WORSE"])
    assert "INTERNALERROR" not in output(slower)


@pytest.mark.parametrize(
    ("slo", "code"),
    [("read.p95_ms<20", pytest.ExitCode.OK), ("read.p95_ms<0.1", pytest.ExitCode.TESTS_FAILED)],
)
def test_an_slo_judges_the_run_alone(site: Site, slo: str, code: pytest.ExitCode) -> None:
    result = site.canned(ONE, f"--kv-slo={slo}", "--kv-allow-invalid")
    assert result.ret == code
    closed = int(code != pytest.ExitCode.OK)
    result.assert_outcomes(passed=2 - closed, failed=closed)


# --- samples --------------------------------------------------------------------------------


def test_too_few_samples_fail_the_item_of_that_metric_only(site: Site) -> None:
    result = site.canned("--kv-metrics=read.p95_ms,read.p999_ms")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines("FEW_SAMPLES, p99.9 needs 10000 operations*2000*")
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


@pytest.mark.thorough
def test_a_run_that_goes_on_after_a_collection_error_is_checked_all_the_same(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def broken(:")
    goes_on = ("--continue-on-collection-errors", "test_mine.py")
    result = site.canned(ONE, *goes_on, "--kv-mpi-bin=/no/mpirun")
    assert refusal(result).startswith("--kv-mpi-bin is /no/mpirun")
    site.canned(ONE, *goes_on).assert_outcomes(passed=1, errors=1)


def test_nothing_selected_is_pytests_own_exit_code(site: Site) -> None:
    assert site.canned("-k", "nothing_like_it").ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.thorough
def test_a_timeout_in_the_middle_of_a_launch_ends_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "hang")
    timeout = ("--timeout=3", "--timeout-method=signal")
    result = site.canned_apart("--kv-metrics=read.p95_ms,write.p95_ms", *timeout)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    assert len(site.launches()) == 1
    (trial,) = site.case()["trials"]
    # pytest-timeout 2.3 writes ">3.0s", later ones "(>3.0s)".
    ended = r"trial 1 was ended from outside \(Failed: Timeout \(?>3\.0s\)"
    assert re.match(ended, trial["error"])
    assert "@pytest.mark.timeout(SECONDS)" in trial["error"]
    assert not trial["interrupted"]  # slow storage may be why
    left = subprocess.run(["pgrep", "-f", str(site.path)], capture_output=True, check=False)
    assert left.stdout == b""


def test_the_output_names_the_run_file(site: Site) -> None:
    text = output(site.canned(ONE))
    assert f"run file: {site.run_file().relative_to(site.path)}" in text
