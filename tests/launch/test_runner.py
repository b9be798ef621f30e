"""What the controller makes of a launch: canned ranks that do, or leave undone, what ranks do."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import struct
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.results.verify import verify_run
from tests.site import PATIENCE_S, PYTEST, SUITE, output, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.desk import Desk
    from tests.site import Site

ONE_METRIC = "--kv-metrics=read.p95_ms"
FAULTS = [
    ("exit-3", "the launcher ended with exit code 3"),
    ("no-record", "exit code 0, but the ranks left no record"),
    ("cut-off", "trial.json is no whole record"),
    ("missing-rank", "the trial's record has 1 ranks; the plan has 2"),
    ("another-plan", "the trial's record belongs to another plan or trial"),
    ("another-schema", "the trial's record has schema 'pytest-kvcache/trial/0'"),
    ("failed", "rank 1 on host n1: the disk is on fire"),
    ("rank-error", "rank 1 on host n1: 3 failed operations, the first: host n1: can't read"),
    ("delete-error", "rank 1 on host n1: host n1: can't delete object x: I/O error"),
    ("cleanup-error", "rank 1 on host n1: clean-up failed: host n1: can't remove /x"),
    ("no-operation", "the storage tier completed no operation in the window"),
    ("impossible", "the trial's record contradicts itself: rank 1 on host n1: read_bytes is "),
    ("idle-rank", "rank 1 on host n1 completed no operation in the window, which others did"),
    ("short-window", "SKEWED: all ranks were active together for 0.5 s of 1 s only"),
]


def sound(path: Path, *, ended: bool = True) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text())
    assert verify_run(data, ended=ended) == []
    return data


# --- what fails a trial ---------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "cause"), FAULTS)
def test_a_launch_that_is_not_whole_fails_its_case(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: str, cause: str
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", fault)
    (case,) = desk.run()
    (trial,) = case.trials
    assert not trial.ok
    assert trial.error is not None
    assert cause in trial.error
    assert case.error is not None
    (written,) = sound(desk.run_file())["cases"]
    assert written["summary"] == {}
    assert written["trials"][0]["error"] == trial.error


def test_a_failed_case_fails_each_of_its_tests(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "missing-rank")
    result = site.canned("--kv-metrics=read.p95_ms,write.p95_ms")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=2)
    assert "Traceback" not in output(result)


def test_a_fault_is_reported_in_full_once_and_then_referred_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "exit-3")
    text = output(site.canned())
    assert text.count("last lines of ") == 1
    assert text.count("    a line of rank 0 in trial 0") == 1
    first = "test_kvcache[mixed-tiny-1b-np2-load.p95_ms]"
    assert text.count(f"\nfailed: see {first}, which tells it whole\n") == 4


def test_a_failed_trial_ends_its_case_and_the_next_case_runs(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "rank-error")  # which needs two ranks
    cases = desk.run("--kv-np=2,1", "--kv-trials=3")
    assert [(case.plan.np, len(case.trials)) for case in cases] == [(2, 1), (1, 1)]


def test_a_fault_in_a_later_trial_keeps_the_earlier_ones(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    monkeypatch.setenv("KVCACHE_TEST_FAULT_TRIAL", "1")
    (case,) = desk.run("--kv-trials=3")
    assert [trial.ok for trial in case.trials] == [True, False]
    sound(desk.run_file())


def test_with_x_the_cases_after_a_failed_one_are_not_launched(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    site.canned("-x", "--kv-np=1,2", ONE_METRIC).assert_outcomes(failed=1)
    assert len(site.launches()) == 1


def test_an_invalid_trial_is_reported_where_the_user_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "short-window")
    result = site.canned("--kv-allow-invalid", ONE_METRIC)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines("*SKEWED invalid: *")
    sound(site.run_file())


def test_an_error_of_a_rank_is_no_verdict_and_always_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "rank-error")
    (case,) = desk.run("--kv-allow-invalid")
    assert case.error is not None


def test_a_launch_that_takes_too_long_is_ended(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "hang")
    (case,) = desk.run("--kv-deadline=1")
    assert case.error is not None
    assert case.error.startswith("the launch was not over after 1 s and was ended")


# --- the run file ---------------------------------------------------------------------------


def test_the_run_file_has_all_trials_and_is_sound(site: Site) -> None:
    site.canned("--kv-trials=3", ONE_METRIC).assert_outcomes(passed=1)
    data = sound(site.run_file())
    assert data["schema"] == "pytest-kvcache/run/1"
    assert data["run_id"] == site.run_file().parent.name
    assert data["command"][0] == "pytest"
    assert ONE_METRIC in data["command"]
    assert data["environment"]["mpi"].startswith("Open MPI")
    assert data["environment"]["launcher"] == "canned"
    (case,) = data["cases"]
    assert (case["name"], case["scenario"], case["model"], case["np"]) == (
        "mixed-tiny-1b-np2", "mixed", "tiny-1b", 2,
    )  # fmt: skip
    assert [trial["index"] for trial in case["trials"]] == [0, 1, 2]


def test_the_launchers_output_is_kept_beside_every_trial(desk: Desk) -> None:
    desk.run("--kv-trials=2")
    logs = [(path / "mpirun.log").read_text() for path in desk.launches()]
    assert logs == [f"a line of rank 0 in trial {index}\n" for index in range(2)]


def test_the_plan_holds_what_ran(desk: Desk) -> None:
    desk.run("--kv-num-users=7", "--kv-seed=3")
    plan = sound(desk.run_file())["cases"][0]["plan"]
    assert (plan["users"], plan["seed"], plan["ramp_s"]) == (7, 3, 0.0)
    assert plan["origins"]["users"] == "command line"
    assert plan["origins"]["queue_depth"] == "default"


def test_no_half_written_file_is_left(desk: Desk) -> None:
    desk.run()
    beside = [path.name for path in desk.run_file().parent.iterdir() if path.is_file()]
    assert beside == ["run.json"]


def test_a_session_without_a_case_writes_nothing(site: Site) -> None:
    site.canned("--collect-only")
    site.canned("--kv-dry-run")
    site.canned("-k", "nothing_like_it")
    site.pytester.makepyfile("def test_one(): pass")
    site.call()
    assert not (site.path / "results").exists()


def test_two_runs_write_two_files(desk: Desk) -> None:
    desk.run()
    desk.run()
    assert len(list(desk.path.glob("results/*/run.json"))) == 2


def test_the_results_go_where_the_user_says(desk: Desk) -> None:
    desk.run("--kv-results-dir=deep/down")
    assert len(list(desk.path.glob("deep/down/*/run.json"))) == 1
    assert not (desk.path / "results").exists()


def test_pytest_killed_in_the_second_trial_leaves_the_first_one_behind(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "hang")
    monkeypatch.setenv("KVCACHE_TEST_FAULT_TRIAL", "1")
    args = (*PYTEST, *SUITE, *site.canned_args(), ONE_METRIC, "--kv-trials=2")
    with site.started(*args) as process:
        wait_for(lambda: len(site.launches()) == 2 or process.poll() is not None)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (trial,) = sound(site.run_file(), ended=False)["cases"][0]["trials"]
    assert trial["ok"]


# --- interrupted ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Interrupted:
    """A session that was interrupted in the second of three trials."""

    text: str
    run_file: str


@pytest.fixture(scope="module")
def recorded() -> list[Interrupted]:
    """That of the first test that needs one, for all others."""
    return []


@pytest.fixture
def interrupted(site: Site, recorded: list[Interrupted]) -> Interrupted:
    if not recorded:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KVCACHE_TEST_FAULT", "hang")
            patch.setenv("KVCACHE_TEST_FAULT_TRIAL", "1")
            text = interrupted_in_trial_2(site)
        recorded.append(Interrupted(text=text, run_file=site.run_file().read_text()))
        shutil.rmtree(site.path / "results")
    return recorded[0]


def interrupted_in_trial_2(site: Site) -> str:
    args = (ONE_METRIC, "--kv-trials=3", "--benchmark-verbose")
    with site.started(*PYTEST, *SUITE, *site.canned_args(), *args) as process:
        wait_for(lambda: len(site.launches()) == 2 or process.poll() is not None)
        wait_for(lambda: any(path.name == "events.jsonl" for path in site.launches()[1].iterdir()))
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, text
    return text


def test_an_interrupted_run_shows_and_keeps_what_was_finished(
    interrupted: Interrupted, tmp_path: Path
) -> None:
    text = interrupted.text
    assert "trial 2/3" in text
    assert "interrupted after 1 of 3 trials (KeyboardInterrupt); nothing can be said" in text
    assert re.search(r"read\.p95_ms @16 +ms +1\.449", text)
    assert "not used" not in text
    (tmp_path / "run.json").write_text(interrupted.run_file)
    case = sound(tmp_path / "run.json")["cases"][0]
    assert [(t["ok"], t["interrupted"]) for t in case["trials"]] == [(True, False), (False, True)]
    assert len(case["summary"]["read.p95_ms"]["values"]) == 1


def test_an_interrupted_run_is_a_shorter_baseline(site: Site, interrupted: Interrupted) -> None:
    (site.path / "base.json").write_text(interrupted.run_file)
    result = site.canned(ONE_METRIC, "--kv-trials=3", "--kv-compare=base.json")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines("read.p95_ms * 1.449 *")


def test_no_trial_follows_one_that_was_interrupted(interrupted: Interrupted) -> None:
    data = json.loads(interrupted.run_file)
    trials = data["cases"][0]["trials"]
    trials.reverse()
    assert any("followed by another one" in problem for problem in verify_run(data))


# --- how many trials ------------------------------------------------------------------------


def test_trials_go_on_until_the_interval_is_narrow_enough(desk: Desk) -> None:
    with desk.benchmark_session("--kv-trials=2..9", "--kv-target-ci=4%") as bench:
        (name,) = bench.names
        case = bench.run(name)
        assert len(case.trials) == 5  # one of the looks: 2, 3, 5 and 9
        assert bench.unsettled() == []
    summary = sound(desk.run_file())["cases"][0]["summary"]["read.p95_ms"]
    low, high = summary["ci95"]
    assert (high - low) / 2 <= 0.04 * summary["mean"]


def test_trials_end_at_the_upper_bound_and_the_report_says_so(site: Site) -> None:
    result = site.canned("--kv-trials=2..3", "--kv-target-ci=0.1%", ONE_METRIC)
    result.assert_outcomes(passed=1)
    assert len(site.case()["trials"]) == 3
    reported = "mixed-tiny-1b-np2: --kv-target-ci=0.1% was not reached after 3 trials"
    assert reported in result.outlines


# --- one launch for all ---------------------------------------------------------------------


def test_all_metrics_of_a_case_share_its_launches(site: Site) -> None:
    site.canned("--kv-trials=2").assert_outcomes(passed=5)
    assert len(site.launches()) == 2


def test_one_metric_alone_launches_as_well(site: Site) -> None:
    site.canned("-k", "write.gib_per_s").assert_outcomes(passed=1, deselected=4)
    assert len(site.launches()) == 1


def test_a_list_of_counts_gives_a_case_each(desk: Desk) -> None:
    assert [case.plan.np for case in desk.run("--kv-np=1,3")] == [1, 3]


# --- while it runs --------------------------------------------------------------------------


def progress_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("[kv] ")]


def test_progress_counts_the_trials_of_its_own_case(site: Site) -> None:
    source = "def test_one(kvcache): kvcache.run(trials=2)"
    text = output(site.canned_tests(source, "--kv-trials=1"))
    assert "trial 1/2 starting" in text
    assert "trial 2/2 starting" in text


def test_progress_is_plain_lines_where_there_is_no_terminal(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    model = site.path / "m.toml"
    name = "a-model-with-a-name-that-is-much-too-long-for-one-line-of-a-terminal"
    model.write_text(f'[{name}]\nlayers = 1\nkv_heads = 1\nhead_dim = 128\ndtype = "float16"\n')
    text = output(site.canned(ONE_METRIC, f"--kv-model={model}"))
    assert "\x1b" not in text
    assert "\r" not in text
    lines = progress_lines(text)
    assert lines
    assert max(map(len, lines)) <= 80


def test_without_a_terminal_and_without_colours_nothing_controls_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = output(site.canned("-s", ONE_METRIC, "--kv-trials=2"))
    assert not any(character < " " for character in text.replace("\n", ""))
    assert len(progress_lines(text)) == 2


def test_on_a_terminal_one_line_is_rewritten_and_wiped_at_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = in_terminal(site, ONE_METRIC)
    shown = [part for part in text.split("\r") if part.startswith("[kv] ")]
    assert any("GiB/s" in part for part in shown)
    assert max(map(len, shown)) < 80
    _, _, after = text.rpartition("[kv] ")
    assert re.match(r"[^\r]*\r +\r[^ ]*\.", after)  # wiped, and then the dot of the test
    assert "1 passed" in text


@pytest.mark.parametrize("columns", [20, 250])
def test_the_line_is_as_wide_as_the_terminal_and_no_wider_than_100(
    site: Site, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    text = in_terminal(site, ONE_METRIC, columns=columns)
    shown = [part for part in text.split("\r") if part.startswith("[kv] ")]
    assert shown
    assert max(map(len, shown)) < min(columns, 100)
    assert "\x1b" not in text


def test_a_terminal_that_can_not_rewrite_a_line_gets_those_of_a_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = in_terminal(site, ONE_METRIC)
    assert "\r[kv]" not in text
    assert len(progress_lines(text)) == 1


def test_a_quiet_log_has_no_progress(site: Site) -> None:
    assert progress_lines(output(site.canned(ONE_METRIC, "-q"))) == []


def in_terminal(site: Site, *args: str, columns: int = 80) -> str:
    """What a session writes to a terminal of its own."""
    command = [*PYTEST, *SUITE, *site.canned_args(), *args]
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with site.started(*command, stdout=slave) as process:
        os.close(slave)
        chunks = []
        while chunk := _read(master):
            chunks.append(chunk)
        process.wait()
    os.close(master)
    return b"".join(chunks).decode()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # Linux says so when the other side of a terminal is closed
        return b""


def test_output_of_the_run_is_shown_without_s_and_not_twice_with_it(site: Site) -> None:
    assert len(progress_lines(output(site.canned(ONE_METRIC)))) == 1
    assert len(progress_lines(output(site.canned(ONE_METRIC, "-s")))) == 1
