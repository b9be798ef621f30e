"""pytest-side hooks, for conftest.py files and pytest plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import CaseResult, RunResult, TrialResult


@pytest.hookspec(firstresult=True)
def pytest_kvcache_modify_plan(config: pytest.Config, plan: Plan) -> Plan | None:
    """Called once per case, after planning and before anything is checked or launched.

    Return a changed plan, or None to leave it as it is; the first one that returns a
    plan wins. Plans are frozen::

        def pytest_kvcache_modify_plan(config, plan):
            return dataclasses.replace(plan, deadline_s=2 * plan.deadline_s)
    """


@pytest.hookspec
def pytest_kvcache_trial_finished(
    config: pytest.Config, case: CaseResult, trial: TrialResult
) -> None:
    """Called after every trial, failed ones too, when the run file has been written.

    ::

        def pytest_kvcache_trial_finished(config, case, trial):
            print(case.name, trial.index, trial.value("read.p95_ms"))
    """


@pytest.hookspec
def pytest_kvcache_run_finished(config: pytest.Config, run: RunResult) -> None:
    """Called once at the end of a session in which at least one case ran.

    ::

        def pytest_kvcache_run_finished(config, run):
            upload(run.to_json())
    """
