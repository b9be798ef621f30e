"""The workflow of docs/github-actions.md does what its page says: its steps are executed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from tests.site import SMALL, storage_directory
from tests.workflowrunner import Runner

if TYPE_CHECKING:
    from pathlib import Path

    from tests.site import Site
    from tests.workflowrunner import Job


@pytest.fixture
def runner(site: Site, tmp_path: Path) -> Runner:
    """A runner that finds this interpreter's environment installed, and has canned ranks."""
    options = [*site.canned_args(), "--kv-trials=3"]
    runner = Runner(tmp_path, {}, OPTIONS=" ".join(options))
    (runner.workspace / "kv").symlink_to(sys.prefix)
    return runner


def measure(runner: Runner, **changes: str) -> Job:
    """The job without its installation, in a workspace that holds what Install leaves there."""
    (runner.workspace / "baseline.json").unlink(missing_ok=True)
    for path in runner.workspace.glob("results/*"):
        path.rename(runner.workspace.parent / f"old-{path.name}")
    return runner.run(without=("Fetch the benchmark", "Install"), **changes)


def baseline_of(runner: Runner) -> str:
    """The run that the baseline in the workspace is of."""
    run_id: str = json.loads((runner.workspace / "baseline.json").read_text())["run_id"]
    return run_id


def failures(runner: Runner) -> int:
    """Failed and broken tests of the JUnit file."""
    (suite,) = ET.parse(runner.workspace / "kvcache.xml").getroot().iter("testsuite")
    return int(suite.get("failures", 0)) + int(suite.get("errors", 0))


def test_the_first_run_is_the_baseline_of_those_that_follow(runner: Runner) -> None:
    first = measure(runner)
    assert first.ok, first.log
    assert set(first.artifact) == {"results", "baseline.json", "kvcache.xml", "run.svg"}
    assert "load.p95_ms" in first.summary
    (run_file,) = runner.workspace.glob("results/*/run.json")
    assert baseline_of(runner) == run_file.parent.name
    assert failures(runner) == 0
    recorded = baseline_of(runner)
    second = measure(runner)
    assert second.ok, second.log
    assert "25% ok" in second.log
    assert baseline_of(runner) == recorded


def test_a_slower_storage_is_red_and_everything_is_kept(runner: Runner) -> None:
    assert measure(runner).ok
    slower = measure(runner, KVCACHE_TEST_FACTOR="2")
    assert slower.exits == {"Measure": 1, "Show": 0}, slower.log
    assert "WORSE" in slower.log
    assert {"results", "kvcache.xml", "run.svg"} <= set(slower.artifact)
    assert failures(runner) > 0


def test_a_new_baseline_is_recorded_on_demand(runner: Runner) -> None:
    assert measure(runner).ok
    old = baseline_of(runner)
    anew = measure(runner, KVCACHE_TEST_FACTOR="2", RECORD="true")
    assert anew.ok, anew.log
    assert baseline_of(runner) != old


def test_a_run_that_failed_is_no_baseline(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setenv("KVCACHE_TEST_FAULT", "rank-error")
        failed = measure(runner)
    assert failed.exits["Measure"] == pytest.ExitCode.TESTS_FAILED, failed.log
    assert "baseline.json" not in failed.artifact
    after = measure(runner)
    assert after.ok, after.log
    assert "25%" not in after.log


@pytest.mark.lengthy
def test_the_whole_workflow_runs_in_an_empty_directory(real_site: Site, tmp_path: Path) -> None:
    del real_site
    with storage_directory("kvcache") as cache_dir:
        options = [option for option in SMALL if "kvcache_test" not in option]
        options += [f"--kv-cache-dir={cache_dir}", "--kv-backend=file", "--kv-duration=3"]
        runner = Runner(tmp_path, {"PYTHONPATH": ""}, OPTIONS=" ".join(options))
        job = runner.run()
    assert job.ok, job.log
    assert job.exits == {"Install": 0, "Measure": 0, "Show": 0}
    assert set(job.artifact) == {"results", "baseline.json", "kvcache.xml", "run.svg"}
