"""What pytest-benchmark makes of our entries, with canned ranks: every option of it works."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_kvcache.fixture import ReplayClock, replay
from tests.site import output

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.site import Site

METRICS = "--kv-metrics=read.p95_ms,read.gib_per_s"
TRIALS = "--kv-trials=3"


class Session(NamedTuple):
    """A session of three trials that ended: its entries by metric, and its case."""

    entries: dict[str, Any]
    case: dict[str, Any]

    def values(self, metric: str) -> list[float]:
        """The metric per trial, from the run file."""
        section, name = metric.split(".")
        trials = self.case["trials"]
        if name.endswith("_ms"):
            return [trial[section]["ms"][name.removesuffix("_ms")] for trial in trials]
        return [trial[section][name] for trial in trials]


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    """The session of the first test that needs one, for all others."""
    return []


@pytest.fixture
def session(site: Site, sessions: list[Session]) -> Session:
    """What --benchmark-json has of a session, and its run file."""
    if not sessions:
        path = site.path / "benchmarks.json"
        site.canned(METRICS, TRIALS, f"--benchmark-json={path}").assert_outcomes(passed=2)
        entries = json.loads(path.read_text())["benchmarks"]
        by_metric = {entry["extra_info"]["metric"]: entry for entry in entries}
        sessions.append(Session(by_metric, site.case()))
    return sessions[0]


# --- what an entry holds --------------------------------------------------------------------


def test_a_latency_is_recorded_in_seconds_to_the_last_bit(session: Session) -> None:
    stats = session.entries["read.p95_ms"]["stats"]
    assert stats["data"] == [value / 1000 for value in session.values("read.p95_ms")]
    assert (stats["rounds"], stats["iterations"]) == (3, 1)


def test_a_rate_is_recorded_as_its_reciprocal_and_read_as_operations_per_second(
    session: Session,
) -> None:
    stats = session.entries["read.gib_per_s"]["stats"]
    rates = session.values("read.gib_per_s")
    assert stats["data"] == [1 / rate for rate in rates]
    assert stats["ops"] == pytest.approx(statistics.harmonic_mean(rates), rel=1e-12)


@pytest.mark.parametrize(
    ("metric", "unit", "better"),
    [("read.p95_ms", "ms", "lower"), ("read.gib_per_s", "GiB/s", "higher")],
)
def test_an_entry_carries_the_true_values_and_what_makes_them_comparable(
    session: Session, metric: str, unit: str, better: str
) -> None:
    info = session.entries[metric]["extra_info"]
    assert info["values"] == session.values(metric)
    assert (info["unit"], info["better"]) == (unit, better)
    assert info["case"] == "mixed-tiny-1b-np2"
    assert info["plan_digest"] == session.case["plan_digest"]
    assert info["is_storage"] is False  # canned ranks of the backend null
    assert info["verdicts"] == ["NOT_STORAGE", "SHORT_WINDOW"]
    for name in ("median", "mean", "cv", "ci95"):
        assert info[name] == session.case["summary"][metric][name]


@pytest.mark.parametrize(
    ("metric", "group"),
    [("read.p95_ms", "read.p95_ms"), ("read.gib_per_s", "read.s_per_gib")],
)
def test_an_entry_is_identified_by_case_and_metric_and_named_by_what_its_times_are(
    session: Session, metric: str, group: str
) -> None:
    entry = session.entries[metric]
    assert entry["fullname"] == f"mixed-tiny-1b-np2-{metric}"
    assert entry["name"] == f"mixed-tiny-1b-np2-{group}"
    assert entry["group"] == group


class Pedantic:
    """What of pytest-benchmark's fixture a replay uses."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self._timer = timer
        self.rounds: list[float] = []

    def pedantic(
        self, target: Callable[[], None], *, setup: Callable[[], None], rounds: int, iterations: int
    ) -> None:
        assert iterations == 1
        for _ in range(rounds):
            setup()
            start = self._timer()
            target()
            self.rounds.append(self._timer() - start)


@pytest.mark.parametrize("rounds", [[0.1], [1e-9, 3.3e-7, 1000.1], [0.1 + 0.2] * 5])
def test_a_replay_gives_back_exactly_what_it_was_given(rounds: list[float]) -> None:
    clock = ReplayClock()
    benchmark = Pedantic(clock)
    replay(benchmark, clock, rounds)
    assert benchmark.rounds == rounds


# --- saved runs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a saved run has it saved, for all others."""
    return tmp_path_factory.mktemp("saved") / ".benchmarks"


@pytest.fixture
def saved(site: Site, storage: Path) -> Path:
    """A run of three trials at usual speed that pytest-benchmark saved in this directory."""
    here = site.path / ".benchmarks"
    if not storage.exists():
        site.canned(METRICS, TRIALS, "--benchmark-autosave").assert_outcomes(passed=2)
        shutil.copytree(here, storage)
    else:
        shutil.copytree(storage, here)
    (path,) = here.glob("*/0001_*.json")
    return path


@pytest.mark.usefixtures("saved")
def test_saved_runs_are_compared_and_the_same_speed_passes(site: Site) -> None:
    result = site.canned(METRICS, TRIALS, "--benchmark-compare", "--benchmark-compare-fail=mean:5%")
    assert result.ret == pytest.ExitCode.OK
    assert "(0001_" in output(result)
    assert "machine_info is different" not in output(result)


@pytest.mark.usefixtures("saved")
def test_a_slower_run_closes_the_stock_gate_whatever_direction_is_better(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "1.5")
    gate = ("--benchmark-compare=0001", "--benchmark-compare-fail=mean:20%")
    result = site.canned_apart(METRICS, *gate)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for name in ("read.p95_ms", "read.s_per_gib"):
        assert re.search(rf"mixed-tiny-1b-np2-{name}: .* has failed", output(result))


@pytest.mark.usefixtures("saved")
def test_a_faster_run_passes_the_stock_gate(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FACTOR", "0.5")
    result = site.canned(METRICS, "--benchmark-compare", "--benchmark-compare-fail=mean:5%")
    assert result.ret == pytest.ExitCode.OK


def test_a_machine_whose_clock_rate_changed_is_the_same_machine(site: Site, saved: Path) -> None:
    # The current frequency is part of pytest-benchmark's machine_info, and a difference
    # is a warning, which is an error where warnings are errors.
    site.pytester.makeini("[pytest]\nfilterwarnings = error\n")
    data = json.loads(saved.read_text())
    cpu = data["machine_info"].get("cpu", {})
    rates = {"hz_actual": [1_234_500_000, 0], "hz_actual_friendly": "1.2345 GHz"}
    cpu.update({name: rate for name, rate in rates.items() if name in cpu})
    saved.write_text(json.dumps(data))
    result = site.canned_apart(METRICS, "--benchmark-compare")
    assert result.ret == pytest.ExitCode.OK, output(result)[-2000:]
    result.assert_outcomes(passed=2)


@pytest.mark.usefixtures("saved")
def test_the_command_of_pytest_benchmark_reads_what_we_saved(site: Site) -> None:
    command = [str(Path(sys.executable).parent / "pytest-benchmark"), "compare", "0001"]
    done = subprocess.run(command, cwd=site.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mixed-tiny-1b-np2-read.p95_ms" in done.stdout


# --- options --------------------------------------------------------------------------------


def test_a_histogram_is_drawn_for_each_metric(site: Site) -> None:
    result = site.canned_apart(METRICS, "--benchmark-histogram=histogram")
    assert result.ret == pytest.ExitCode.OK, output(result)[-2000:]
    drawn = sorted(site.path.glob("histogram*.svg"))
    assert len(drawn) == 2
    assert all("mixed-tiny-1b-np2" in path.read_text(encoding="utf-8") for path in drawn)


def test_a_profile_is_made_and_adds_no_round(site: Site) -> None:
    path = site.path / "benchmarks.json"
    profile = ("--benchmark-cprofile=cumtime", "--benchmark-cprofile-loops=2")
    result = site.canned(METRICS, TRIALS, *profile, f"--benchmark-json={path}")
    result.assert_outcomes(passed=2)
    entries = json.loads(path.read_text())["benchmarks"]
    assert [entry["stats"]["rounds"] for entry in entries] == [3, 3]


def test_disabled_benchmarks_run_one_trial_and_record_nothing(site: Site) -> None:
    path = site.path / "benchmarks.json"
    result = site.canned(METRICS, TRIALS, "--benchmark-disable", f"--benchmark-json={path}")
    result.assert_outcomes(passed=2)
    assert len(site.launches()) == 1
    assert len(site.case()["trials"]) == 1


def test_disabled_benchmarks_that_fail_still_fail(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVCACHE_TEST_FAULT", "no-record")
    site.canned(METRICS, "--benchmark-disable").assert_outcomes(failed=2)


def test_skipped_benchmarks_launch_nothing_and_need_nothing(site: Site) -> None:
    result = site.canned(METRICS, "--benchmark-skip", "--kv-mpi-bin=/no/mpirun")
    result.assert_outcomes(skipped=2)
    assert not (site.path / "results").exists()


def test_only_benchmarks_run_where_only_they_are_asked_for(site: Site) -> None:
    site.pytester.makepyfile(test_mine="def test_other(): pass")
    result = site.canned(METRICS, "--benchmark-only", "test_mine.py")
    result.assert_outcomes(passed=2, skipped=1)


def test_the_list_of_columns_and_the_order_are_the_users(site: Site) -> None:
    result = site.canned(METRICS, "--benchmark-columns=ops", "--benchmark-sort=name")
    assert "OPS" in output(result)
    assert "Rounds" not in output(result).replace("rounds", "")
