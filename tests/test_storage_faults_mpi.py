"""Real ranks on storage that fills up, fails, hangs or goes away, and on odd clocks.

Each of them ends the trial with its cause, or is survived with a number that is right.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from tests.filesystems import MIB, fill, loop_disk, small_filesystem
from tests.leftovers import leaving_nothing, the_cause
from tests.site import PATIENCE_S, output, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.lengthy]

HOST = os.uname().nodename
FILES = ("--kv-backend=file", "--kv-allow-invalid")  # small objects: slabs
EACH_ITS_FILE = ("--kv-store=file", "--kv-duration=300")  # ended by the fault
IN_SLABS = ("--kv-store=slab", "--kv-duration=2")
ONE_METRIC = "--kv-metrics=read.gib_per_s"
FROZEN_S = 20.0
LINGER_S = 12.0  # longer than a rank may be silent


@contextmanager
def measuring(
    site: Site, *args: str, device_breaks: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A session whose ranks have just begun to measure; it leaves nothing behind."""
    left = leaving_nothing(site, device_breaks=device_breaks)
    with left, site.started(*site.real_args(*args)) as process:
        site.wait_for_window(process)
        yield process


def failed(site: Site, process: subprocess.Popen[str]) -> str:
    """The cause by which its case failed; the failed trial gives no metric."""
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED, text
    assert "INTERNALERROR" not in text
    case = site.case()
    assert not case["trials"][0]["ok"]
    assert case["summary"] == {}
    return the_cause(text)


def passed(site: Site, process: subprocess.Popen[str]) -> dict[str, Any]:
    """The only trial of a session that passed and is sound."""
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.OK, text
    assert main(["verify", str(site.run_file())]) == 0
    (trial,) = site.case()["trials"]
    assert trial["ok"]
    found: dict[str, Any] = trial
    return found


@contextmanager
def filesystem(kind: str, directory: Path) -> Iterator[None]:
    """64 MiB on memory or on a disk."""
    if kind == "tmpfs":
        with small_filesystem(directory, "size=64m"):
            yield
    else:
        with loop_disk(directory, 64 * MIB):
            yield


# --- storage that fills up, fails or goes away ------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_fills_up_half_way_fails_the_trial(real_site: Site, kind: str) -> None:
    with (
        filesystem(kind, real_site.cache_dir),
        measuring(real_site, *FILES, *EACH_ITS_FILE) as process,
    ):
        fill(real_site.cache_dir, until=lambda: process.poll() is not None)
        cause = failed(real_site, process)
    assert re.search(rf"rank \d on host {HOST}: \d+ failed operations?, the first: ", cause)
    assert f"the filesystem of {real_site.cache_dir}/kvcache-" in cause
    assert f" on {HOST} is full (can't write {real_site.cache_dir}/" in cause
    assert "lower --kv-storage-capacity-gb or give another --kv-cache-dir" in cause


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_that_fills_up_takes_nothing_from_slabs(real_site: Site, kind: str) -> None:
    with (
        filesystem(kind, real_site.cache_dir),
        measuring(real_site, *FILES, *IN_SLABS, ONE_METRIC) as process,
    ):
        fill(real_site.cache_dir, until=lambda: process.poll() is not None)
        trial = passed(real_site, process)
    assert trial["write"]["count"] > 0
    assert trial["write"]["failed"] == trial["read"]["failed"] == 0


def test_a_device_that_fails_ends_the_trial_with_its_own_error(real_site: Site) -> None:
    with (
        loop_disk(real_site.cache_dir, 64 * MIB) as disk,
        measuring(
            real_site, *FILES, *EACH_ITS_FILE, "--kv-io=direct", device_breaks=True
        ) as process,
    ):
        disk.lose_all_but(MIB)
        cause = failed(real_site, process)
    assert re.search(
        rf"failed operations?, the first: {HOST}: can't \w+ {real_site.cache_dir}/.*:"
        " Input/output error",
        cause,
    ), cause


@pytest.mark.parametrize("store", [EACH_ITS_FILE, IN_SLABS])
def test_a_removed_run_directory_fails_the_trial_and_is_named(
    real_site: Site, store: tuple[str, ...]
) -> None:
    with measuring(real_site, *FILES, *store) as process:
        (directory,) = real_site.cache_dir.glob("kvcache-*")
        # At once: while it is emptied, a rank may find a file gone and its directory there.
        shutil.rmtree(directory.rename(real_site.path / "removed"))
        cause = failed(real_site, process)
    assert re.search(rf"{directory}/rank-\d on {HOST} is gone: it was removed, or its", cause)


@pytest.mark.parametrize("store", [EACH_ITS_FILE, IN_SLABS])
def test_an_unmounted_cache_directory_fails_the_trial_and_is_named(
    real_site: Site, store: tuple[str, ...]
) -> None:
    with (
        loop_disk(real_site.cache_dir, 64 * MIB) as disk,
        measuring(real_site, *FILES, *store) as process,
    ):
        disk.unmount_lazily()
        cause = failed(real_site, process)
    assert re.search(rf"{real_site.cache_dir}/kvcache-\S+ on {HOST} is gone: it was", cause), cause


# --- storage that hangs -----------------------------------------------------------------------


def test_a_disk_that_hangs_for_20_s_shows_in_the_latencies(real_site: Site) -> None:
    with (
        loop_disk(real_site.cache_dir, 96 * MIB) as disk,
        measuring(real_site, *FILES, ONE_METRIC, "--kv-duration=4") as process,
    ):
        time.sleep(0.2)
        with disk.frozen(at_most_s=2 * FROZEN_S):
            time.sleep(FROZEN_S)
        trial = passed(real_site, process)
    assert trial["window_s"] <= 4
    assert trial["write"]["ms"]["max"] >= (FROZEN_S - 5) * 1e3  # begun in the window
    assert trial["last_done_s"] >= FROZEN_S
    moved = sum(rank["read_bytes"] for rank in trial["ranks"])
    assert trial["read"]["gib_per_s"] == pytest.approx(moved / trial["window_s"] / (1 << 30))


def test_a_disk_that_hangs_beyond_the_deadline_fails_the_trial(real_site: Site) -> None:
    with (
        loop_disk(real_site.cache_dir, 96 * MIB) as disk,
        measuring(real_site, *FILES, "--kv-duration=1", "--kv-deadline=25") as process,
        disk.frozen(at_most_s=70),
    ):
        cause = failed(real_site, process)
        assert list(real_site.cache_dir.glob("kvcache-*"))  # nobody waited for the disk
    assert re.search(rf"rank \d on host {HOST} has waited \d+ s for one", cause), cause
    assert "the launch was not over after 25 s and was ended" in cause


def test_a_read_that_hangs_shows_in_the_latencies(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_LINGER_S", str(LINGER_S))
    args = ("--kv-backend=lingering", "--kv-allow-invalid", ONE_METRIC)
    with measuring(real_site, *args) as process:
        trial = passed(real_site, process)
    assert trial["read"]["ms"]["max"] >= LINGER_S * 1e3
    assert trial["window_s"] <= 1
    assert trial["last_done_s"] >= LINGER_S
    assert "PAUSED" not in {verdict["code"] for verdict in trial["verdicts"]}


# --- signals while the last operations end ----------------------------------------------------


@pytest.fixture
def draining(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A session whose window of a second is over, while a read of rank 1 still hangs; its pids."""
    monkeypatch.setenv("KVCACHE_TEST_LINGER_S", "60")
    with measuring(real_site, "--kv-backend=lingering") as process:
        wait_for(lambda: process.poll() is not None or window_age_s(real_site) > 1.5)
        assert real_site.events()[-1]["phase"] == "window"
        yield process, real_site.wait_for_window(process)


def window_age_s(site: Site) -> float:
    """How long the window's begin is ago, by the coordinator's last word."""
    events = site.events()
    begun_s = next(event["t_s"] for event in events if event.get("phase") == "window")
    age_s: float = events[-1]["t_s"] - begun_s
    return age_s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_session_interrupted_in_the_drain_ends_as_pytests_do(
    real_site: Site, draining: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    process, _pids = draining
    process.send_signal(number)
    text, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, text
    case = real_site.case()
    assert case["trials"][0]["error"].startswith("interrupted after 0 of ")
    assert case["summary"] == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_ended_in_the_drain_fails_the_trial(
    real_site: Site, draining: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    process, (*_others, rank) = draining
    os.kill(rank, number)
    cause = failed(real_site, process)
    assert cause.startswith(f"rank 1 (pid {rank}) on host {HOST}"), cause


# --- clocks and pauses ------------------------------------------------------------------------

WALL_CLOCK_THAT_STEPS = """
    import itertools
    import time

    real, steps = time.time, itertools.cycle([-3600.0, 0.0, 3600.0])
    time.time = lambda: real() + next(steps)
    time.time_ns = lambda: int(time.time() * 1e9)
"""
MONOTONIC_CLOCK_THAT_STEPS = """
    import os
    import time

    real, began_ns = time.monotonic_ns, time.monotonic_ns()

    def stepping():
        now = real()
        return now - 50_000_000 * ((now - began_ns) // 200_000_000)

    if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "2":
        time.monotonic_ns = stepping
"""


def with_clock(site: Site, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Every Python of the session has this clock."""
    site.pytester.makepyfile(sitecustomize=source)
    path = os.pathsep.join([str(site.path), os.environ["PYTHONPATH"]])
    monkeypatch.setenv("PYTHONPATH", path)


def test_a_wall_clock_that_steps_changes_nothing(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_clock(real_site, monkeypatch, WALL_CLOCK_THAT_STEPS)
    with measuring(real_site, ONE_METRIC, "--kv-allow-invalid") as process:
        trial = passed(real_site, process)
    assert 0 < trial["window_s"] <= 1
    assert 0 < trial["read"]["ms"]["max"] < PATIENCE_S * 1e3
    assert 0 < trial["last_done_s"] < PATIENCE_S


def test_a_measuring_clock_that_runs_backwards_fails_the_trial(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_clock(real_site, monkeypatch, MONOTONIC_CLOCK_THAT_STEPS)
    with leaving_nothing(real_site):
        result = real_site.real("--kv-allow-preload")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    cause = the_cause(output(result))
    # It may have stepped while nothing was under way.
    fault = r"a latency is -\d+ ns; it must not be neg|the monotonic clock and the time since"
    assert re.search(rf"rank 1 on host {HOST}: .*({fault})", cause), cause
    assert real_site.case()["summary"] == {}


def test_a_rank_that_was_stopped_for_a_while_is_reported(real_site: Site) -> None:
    with measuring(real_site, "--kv-duration=5", ONE_METRIC, "--kv-allow-invalid") as process:
        *_others, rank = real_site.wait_for_window(process)
        time.sleep(0.3)
        os.kill(rank, signal.SIGSTOP)
        time.sleep(2)
        os.kill(rank, signal.SIGCONT)
        trial = passed(real_site, process)
    assert trial["ranks"][1]["longest_pause_s"] >= 1.9
    assert trial["harness"]["longest_pause_s"] >= 1.9
    (verdict,) = (verdict for verdict in trial["verdicts"] if verdict["code"] == "PAUSED")
    assert verdict["severity"] == "warning"
    assert re.match(rf"rank \d on host {HOST} was paused for \d", verdict["text"])


# --- a storage that stalls, or changes ------------------------------------------------------


def test_a_stall_of_one_rank_is_found_named_and_verified(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_STALL", "get,put,delete 1.0 2.2 1")
    result = real_site.real("--kv-backend=stalling", "--kv-duration=3", "--kv-allow-invalid")
    result.stdout.fnmatch_lines(["*STALL warning: the storage stalled *"])
    (trial,) = real_site.case()["trials"]
    stalls = trial["ranks"][1]["stalls"]
    assert any(s["kind"] == "every" and s["end_s"] - s["begin_s"] > 1.0 for s in stalls)
    assert trial["stalls"]["longest_s"] > 1.0
    assert trial["delete"]["count"] == sum(rank["delete_count"] for rank in trial["ranks"])
    assert main(["verify", str(real_site.run_file())]) == 0
