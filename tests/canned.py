"""Results of canned ranks as values: trials, cases and runs without any launch.

Not a test module.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.results.case import CaseResult
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.trial import Section
from pytest_kvcache.results.verdicts.trial import evaluate_trial
from tests.site import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    measured, verdicts = evaluate_trial(record_of(plan), plan)
    return TrialResult(index=index, error=error, verdicts=verdicts, measured=measured)


def measuring(trial: TrialResult, **changes: Any) -> TrialResult:
    """The trial, had it measured this."""
    assert trial.measured is not None
    return replace(trial, measured=replace(trial.measured, **changes))


def counting(trial: TrialResult, **changes: Any) -> TrialResult:
    """The trial, had its ranks counted this together."""
    assert trial.measured is not None
    return measuring(trial, counters=replace(trial.measured.counters, **changes))


def section_of(count: int, censored: int = 0, value_ns: int = 1_000_000) -> Section:
    """A section of so many, all of one length."""
    histogram = Histogram()
    histogram.record(np.full(count, value_ns, dtype=np.int64))
    return Section.of(histogram, censored)


@dataclass(frozen=True, slots=True)
class ReadSeries:
    """A series that read so much in each second, with these p99; it stands in for a TimeSeries."""

    reads: Sequence[int]
    read_bytes: Sequence[int]
    p99_ms: Sequence[float | None]
    interval_s: int = 1
    kind: str = "read"  # or write, and then nothing was read

    @property
    def points(self) -> int:
        return len(self.reads)

    def done(self, kind: str) -> Sequence[int]:
        return self.reads if kind == self.kind else [0] * self.points

    def moved(self, kind: str) -> Sequence[int]:
        return self.read_bytes if kind == self.kind else [0] * self.points

    def p99s_ms(self, kind: str) -> Sequence[float | None]:
        return self.p99_ms if kind == self.kind else [None] * self.points


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
