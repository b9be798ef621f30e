"""Results of canned ranks as values: trials, cases and runs without any launch.

Not a test module.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.trial import CaseResult, RunResult, TrialResult
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.site import PLUGINS

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import TrialRecord


def _launcher_plugin() -> ModuleType:
    """The plugin's module; it is not on the path of this process."""
    path = PLUGINS / "kvcache_test_launcher.py"
    spec = importlib.util.spec_from_file_location("canned_launcher", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_of(plan: Plan) -> TrialRecord:
    """What canned ranks of this plan leave behind."""
    record: TrialRecord = _launcher_plugin().canned_record(plan)
    return record


def trial_of(plan: Plan, index: int = 0, error: str | None = None) -> TrialResult:
    """One trial, judged."""
    plan = plan.for_trial(index)
    data, verdicts = evaluate_trial(record_of(plan), plan)
    return TrialResult(index=index, error=error, verdicts=verdicts, data=data)


def case_of(plan: Plan, *trials: TrialResult) -> CaseResult:
    """These trials, or two good ones."""
    trials = trials or (trial_of(plan), trial_of(plan, 1))
    return CaseResult(plan=plan, trials=trials, looks=(len(trials),))


def run_of(*cases: CaseResult, **changes: Any) -> RunResult:
    """A run of these cases."""
    values: dict[str, Any] = {
        "run_id": "20260101T000000-abcdef",
        "started_at": "2026-01-01T00:00:00+00:00",
        "command": ("pytest", "--kv-np=2"),
        "version": "1.0",
        "commit": None,
        "environment": {"python": "3.12.0", "hosts": ["n1"]},
    }
    return RunResult(cases=cases, **values | changes)
