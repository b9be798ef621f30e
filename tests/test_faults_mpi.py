"""Real ranks that die, fail, hang or are interrupted: what the user is told, what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.filesystems import small_filesystem
from tests.leftovers import is_alive, leaving_nothing, the_cause
from tests.site import PATIENCE_S, output, refusal, wait_for

if TYPE_CHECKING:
    from tests.site import Site

pytestmark = pytest.mark.mpi

FILES = ("--kv-backend=file", "--kv-allow-invalid", "--kv-metrics=read.gib_per_s")
LONG = (*FILES, "--kv-duration=300")
RANK_1 = r"rank 1 \(pid \d+\) on host \S+|rank 1 on host \S+"


def failed(site: Site, *args: str) -> str:
    """Run two metrics of a case that must fail; return all that was printed."""
    with leaving_nothing(site):
        result = site.real(*args)
    text = output(result)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, text
    assert "INTERNALERROR" not in text
    return text


# --- ranks that go wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "cause"),
    [
        ("raising", rf"({RANK_1}): RuntimeError: a bug in a backend"),
        ("failing", rf"({RANK_1}): 1 failed operation, the first: .*Input/output error"),
        ("killed", rf"({RANK_1}) was killed by signal 9"),
        ("leaving", rf"({RANK_1}) ended in the middle of the work"),
    ],
)
def test_a_rank_that_goes_wrong_fails_its_case_and_is_named_with_its_host(
    real_site: Site, backend: str, cause: str
) -> None:
    text = failed(real_site, f"--kv-backend={backend}", "--kv-verify=full", "--kv-allow-invalid")
    assert re.fullmatch(cause, the_cause(text)), the_cause(text)
    assert os.uname().nodename in the_cause(text)
    (trial,) = real_site.case()["trials"]
    assert not trial["ok"]


def test_corrupt_data_is_called_so_and_named(real_site: Site) -> None:
    options = ("--kv-backend=corrupt", "--kv-verify=full", "--kv-allow-invalid")
    cause = the_cause(failed(real_site, *options))
    assert re.fullmatch(rf"({RANK_1}): 1 failed operation, the first: .*", cause), cause
    assert os.uname().nodename in cause
    (trial,) = real_site.case()["trials"]
    assert not trial["ok"]
    assert trial["integrity"]["failed"] == 1
    assert trial["read"]["failed"] == 1
    assert "corrupt" in trial["error"] or "wrong" in trial["error"]


@pytest.mark.parametrize("data", ["normal", "strict"])
def test_one_flipped_bit_fails_the_case_and_its_object_is_named(real_site: Site, data: str) -> None:
    options = ("--kv-backend=flipped-bit", "--kv-verify=full", f"--kv-data={data}")
    cause = the_cause(failed(real_site, *options))
    reported = re.fullmatch(
        rf"({RANK_1}): 1 failed operation, the first: object ([0-9a-f]{{32}}\.\d+) read back"
        r" wrong at byte \d+: page \d+ of object \2 differs in 1 bytes, the first at byte"
        r" 3096 of the page",
        cause,
    )
    assert reported, cause
    (trial,) = real_site.case()["trials"]
    assert (trial["integrity"]["failed"], trial["read"]["failed"]) == (1, 1)
    assert trial["integrity"]["checked"] > 1
    assert real_site.run()["cases"][0]["plan"]["data"] == data


def test_a_rank_that_ends_before_it_began_fails_the_case(real_site: Site) -> None:
    cause = the_cause(failed(real_site, "--kv-backend=early-exit"))
    assert re.match(r"rank \d", cause), cause
    assert os.uname().nodename in cause


EXIT_AT_START = """
    import os

    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "2":
        os._exit(0)
"""


def test_a_rank_that_ends_before_it_joined_fails_the_case(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mpirun waits for it for ever, without a word.
    real_site.pytester.makepyfile(sitecustomize=EXIT_AT_START)
    path = os.pathsep.join([str(real_site.path), os.environ["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)
    cause = the_cause(failed(real_site, "--kv-deadline=5"))
    assert "was ended" in cause or "ended in the middle" in cause
    assert real_site.case()["trials"][0]["ok"] is False


def test_the_other_cases_still_run(real_site: Site) -> None:
    # With one rank there is no rank 1 that could go wrong.
    with leaving_nothing(real_site):
        result = real_site.real("--kv-backend=raising", "--kv-np=2,1", "--kv-allow-invalid",
                                "--kv-metrics=read.gib_per_s")  # fmt: skip
    result.assert_outcomes(failed=1, passed=1)
    assert [case["np"] for case in real_site.run()["cases"]] == [2, 1]


@pytest.mark.parametrize("store", ["file", "slab"])
def test_a_rank_that_is_killed_leaves_no_data(real_site: Site, store: str) -> None:
    args = real_site.real_args(*LONG, f"--kv-store={store}")
    with leaving_nothing(real_site), real_site.started(*args) as process:
        *_others, rank = real_site.wait_for_window(process)
        os.kill(rank, signal.SIGKILL)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"rank 1 (pid {rank}) on host {os.uname().nodename} was killed by signal 9" in text


def test_a_coordinator_that_is_killed_fails_the_case(real_site: Site) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        coordinator, *_ranks = real_site.wait_for_window(process)
        os.kill(coordinator, signal.SIGKILL)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"the coordinator on host {os.uname().nodename} was killed by signal 9" in text


def test_a_launcher_that_is_killed_fails_the_case(real_site: Site) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        coordinator, *_ranks = real_site.wait_for_window(process)
        os.kill(parent_of(coordinator), signal.SIGKILL)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert "failed: the launcher was killed by signal 9" in text


def parent_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def test_a_rank_that_is_stopped_is_noticed_and_named(real_site: Site) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        *_others, rank = real_site.wait_for_window(process)
        os.kill(rank, signal.SIGSTOP)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"rank 1 on host {os.uname().nodename}: has not reported for 10 s" in text


def test_a_read_that_never_ends_is_ended_by_the_deadline(real_site: Site) -> None:
    cause = the_cause(failed(real_site, "--kv-backend=hanging", "--kv-deadline=12"))
    assert re.match(rf"rank 1 on host {os.uname().nodename} has waited \d+ s for one", cause), cause
    assert "the launch was not over after 12 s and was ended" in cause


# --- storage that is full -------------------------------------------------------------------

BALLAST = """
    import os
    import pathlib

    def pytest_kvcache_modify_plan(config, plan):
        free = os.statvfs(plan.cache_dir)
        with (pathlib.Path(plan.cache_dir) / "ballast").open("wb") as file:
            file.write(bytes(free.f_bavail * free.f_frsize - {left}))
"""


def test_a_full_disk_is_reported_with_host_and_directory(real_site: Site) -> None:
    # Planned while there was room, which somebody else then took.
    real_site.pytester.makeconftest(BALLAST.format(left=4 << 20))
    with small_filesystem(real_site.cache_dir, "size=64m"):
        text = failed(real_site, *FILES[:2])
    cause = the_cause(text)
    assert "is full" in cause
    assert f" on {os.uname().nodename} " in cause
    assert str(real_site.cache_dir) in cause
    assert "No space left on device" in cause


def test_no_inodes_left_is_named_as_that(real_site: Site) -> None:
    with small_filesystem(real_site.cache_dir, "size=64m,nr_inodes=400"):
        cause = the_cause(failed(real_site, *FILES[:2], "--kv-store=file"))
    assert "has no inode left" in cause
    assert "--kv-store=slab" in cause
    assert str(real_site.cache_dir) in cause


def test_memory_is_refused_before_anything_is_launched(real_site: Site) -> None:
    with small_filesystem(real_site.cache_dir, "size=256m"):
        result = real_site.real(FILES[0])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--kv-cache-dir is {real_site.cache_dir}, which is memory*"])


# --- interruptions --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_session_ends_as_pytests_do_and_leaves_nothing(
    real_site: Site, number: signal.Signals
) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        real_site.wait_for_window(process)
        process.send_signal(number)
        text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, text
    assert "KeyboardInterrupt" in text
    assert "INTERNALERROR" not in text
    (trial,) = real_site.case()["trials"]
    assert trial["error"].startswith("interrupted after 0 of ")


def test_when_pytest_is_killed_the_ranks_end_by_themselves(real_site: Site) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        pids = real_site.wait_for_window(process)
        process.kill()
        process.wait()
        wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_slabs_of_ranks_that_are_all_killed_at_once_are_removed(real_site: Site) -> None:
    args = real_site.real_args(*LONG, "--kv-store=slab")
    with leaving_nothing(real_site), real_site.started(*args) as process:
        pids = real_site.wait_for_window(process)
        assert list(real_site.cache_dir.glob("kvcache-*/rank-1/kvcache-slab-0007"))
        for pid in (process.pid, *pids):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def test_a_timeout_in_the_middle_ends_the_launch_and_is_not_repeated(real_site: Site) -> None:
    metrics = "--kv-metrics=read.p95_ms,read.gib_per_s"
    timeout = ("--timeout=6", "--timeout-method=signal")
    with leaving_nothing(real_site):
        result = real_site.real(*LONG, metrics, *timeout)
    result.assert_outcomes(failed=2)
    assert len(real_site.launches()) == 1
    assert "Timeout" in output(result)


def test_a_second_benchmark_on_the_host_is_refused_and_told_of_the_first(real_site: Site) -> None:
    with leaving_nothing(real_site), real_site.started(*real_site.real_args(*LONG)) as process:
        real_site.wait_for_window(process)
        launches = real_site.launches()
        second = real_site.real()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    sentence = refusal(second)
    host = os.uname().nodename
    assert f"a benchmark runs on {host} already (pid {process.pid}, run " in sentence
    assert real_site.launches() == launches


def test_a_finished_trial_outlives_the_killing_of_pytest(real_site: Site) -> None:
    args = real_site.real_args("--kv-trials=20", *FILES[1:])
    with leaving_nothing(real_site), real_site.started(*args) as process:
        wait_for(lambda: len(real_site.launches()) == 2 or process.poll() is not None)
        process.kill()
        process.wait()
    (trial,) = real_site.case()["trials"]
    assert trial["ok"]
    command = [sys.executable, "-m", "pytest_kvcache", "verify", str(real_site.run_file())]
    reported = subprocess.run(command, check=False, capture_output=True, text=True).stderr
    (fault,) = reported.splitlines()  # the figures are right, and that they are not all is told
    assert "trials are missing, or the run was killed or goes on" in fault
