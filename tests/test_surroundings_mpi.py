"""Real ranks among preloaded libraries, odd clocks and limits."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.results.verdictcodes import INVALIDATING
from tests.leftovers import leaving_nothing, the_cause
from tests.shims import FSYNC, HALF_SPEED, MALLOC, library, needs_compiler
from tests.site import output, refusal, runs_as_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.lengthy]

HOST = os.uname().nodename
ALLOWED = ("--kv-allow-preload", "--kv-metrics=read.gib_per_s")


def in_ranks_only(path: Path) -> str:
    """The launcher's parameter that preloads a library into ranks, and into nothing else."""
    return f"--kv-mpi-params=-x LD_PRELOAD={path}"


def trial(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.case()["trials"][0]
    return found


def codes(site: Site) -> set[str]:
    return {verdict["code"] for verdict in trial(site)["verdicts"]}


@needs_compiler
def test_what_is_preloaded_here_is_refused_before_the_launch(
    real_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = library(real_site.path, FSYNC)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    result = real_site.real("--kv-dry-run")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    reported = refusal(result)
    assert f"{shim} (LD_PRELOAD), which wraps fsync" in reported
    assert "--kv-allow-preload" in reported


@needs_compiler
def test_what_ranks_alone_are_under_fails_before_anything_is_stored(real_site: Site) -> None:
    shim = library(real_site.path, FSYNC)
    with leaving_nothing(real_site):
        result = real_site.real(in_ranks_only(shim))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    cause = the_cause(output(result))
    assert f"on host {HOST}: PRELOADED: I/O or clocks go through {shim} (LD_PRELOAD)" in cause
    assert [event for event in real_site.events() if event.get("phase") == "calibration"] == []


@needs_compiler
def test_an_allowed_preload_is_measured_and_reported(real_site: Site) -> None:
    shim = library(real_site.path, FSYNC)
    with leaving_nothing(real_site):
        result = real_site.real(in_ranks_only(shim), *ALLOWED)
    others = codes(real_site) & (INVALIDATING - {"PRELOADED"})  # of a busy machine
    assert (result.ret == pytest.ExitCode.OK) == (not others), output(result)
    assert "PRELOADED" in codes(real_site)
    found = trial(real_site)["ranks"][1]["surroundings"]
    assert found["wrappers"] == [{"library": str(shim), "functions": ["fsync"]}]
    assert main(["verify", str(real_site.run_file())]) == 0


@needs_compiler
def test_an_allocator_is_no_offence(real_site: Site) -> None:
    harmless = library(real_site.path, MALLOC)
    with leaving_nothing(real_site):
        result = real_site.real(in_ranks_only(harmless), ALLOWED[1], "--kv-allow-invalid")
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert "PRELOADED" not in codes(real_site)
    (preload,) = trial(real_site)["ranks"][0]["surroundings"]["preloaded"]
    assert preload["path"] == str(harmless)


@needs_compiler
def test_clocks_at_half_speed_invalidate_though_the_preload_is_allowed(real_site: Site) -> None:
    shim = library(real_site.path, HALF_SPEED)
    with leaving_nothing(real_site):
        result = real_site.real(in_ranks_only(shim), *ALLOWED)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "CLOCK" in codes(real_site)
    clock = trial(real_site)["clock"]
    assert clock["controller_least_s"] > 1.5 * clock["coordinator_s"]
    assert main(["verify", str(real_site.run_file())]) == 0


@contextmanager
def quota_group(cores: float) -> Iterator[Path]:
    """A control group with a CPU quota, of either version; skips where none can be made."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else v2) / f"kvcache-test-{os.getpid()}"
    try:
        group.mkdir()
        if v1.is_dir():
            (group / "cpu.cfs_quota_us").write_text(str(round(cores * 100_000)))
        else:
            (group / "cpu.max").write_text(f"{round(cores * 100_000)} 100000")
    except OSError as error:
        group.rmdir() if group.is_dir() else None
        pytest.skip(f"no control group with a quota can be made here: {error}")
    home = group.parent / "cgroup.procs"
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            home.write_text(pid)
        group.rmdir()


@pytest.mark.skipif(not runs_as_root(), reason="makes a control group")
def test_a_cpu_quota_that_stops_ranks_is_reported_with_its_numbers(real_site: Site) -> None:
    with quota_group(0.3) as group, leaving_nothing(real_site):
        (group / "cgroup.procs").write_text(str(os.getpid()))
        result = real_site.real(ALLOWED[1], "--kv-allow-invalid")
    assert result.ret == pytest.ExitCode.OK, output(result)
    (around,) = trial(real_site)["surroundings"]
    assert around["cpu_quota_cores"] == 0.3
    assert 0 < around["throttled_periods"] <= around["cpu_periods"]
    texts = [v["text"] for v in trial(real_site)["verdicts"] if v["code"] == "THROTTLED"]
    assert any("stopped by its CPU quota of 0.3 cores" in text for text in texts)
