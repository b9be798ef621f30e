"""All trials of one case, and what they say together. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.usersearch import PathOfSearch
from pytest_kvcache.results.verdictcodes import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.results.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """All trials of one case.

    ``looks`` are the numbers of trials after which it may end (`stopping.planned_looks`),
    ``metrics`` those that were asked for. ``path`` is how its number of users was searched for;
    None: it was given, or the case is a step of a search.
    """

    plan: Plan
    trials: tuple[TrialResult, ...] = ()
    looks: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    path: PathOfSearch | None = None

    @property
    def name(self) -> str:
        """The benchmark's fullname without the metric."""
        return self.plan.case

    @property
    def counted(self) -> tuple[TrialResult, ...]:
        """The trials that came to their own end; one that was interrupted says nothing."""
        return tuple(trial for trial in self.trials if not trial.interrupted)

    @property
    def measured(self) -> tuple[Trial, ...]:
        """What the trials measured, of those that left a record."""
        return tuple(trial.measured for trial in self.trials if trial.measured is not None)

    @property
    def error(self) -> str | None:
        """The error of the first trial that failed or was interrupted."""
        return next((trial.error for trial in self.trials if trial.error is not None), None)

    @property
    def effective_plan(self) -> Plan:
        """The plan with the I/O that really was: direct I/O may have been refused."""
        modes = sorted({trial.proof.io_mode for trial in self.measured} - {"none"})
        syncs = sorted({trial.proof.sync for trial in self.measured})
        if not modes:
            return self.plan
        return replace(self.plan, io="+".join(modes), sync="+".join(syncs))

    @property
    def plan_digest(self) -> str:
        """Equal in two runs that measured the same thing: as planned, and as it was."""
        planned, ran = self.plan.workload_digest, self.effective_plan.workload_digest
        return planned if ran == planned else f"{planned}-{ran}"

    def with_trial(self, trial: TrialResult) -> CaseResult:
        """The case with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    def series(self, metric: str) -> MetricSeries | None:
        """The metric over all trials that count; None if any of them failed or lacks it."""
        values = [trial.value(metric) for trial in self.counted if trial.ok]
        known = tuple(value for value in values if value is not None)
        if not known or len(known) != len(self.counted):
            return None
        spec = METRICS[metric]
        return MetricSeries(
            name=metric,
            unit=spec.unit,
            better=spec.better,
            values=known,
            looks=max(1, len(self.looks)),
        )

    def summary(self) -> dict[str, Any]:
        """Metric → median, mean, cv and confidence interval, where all trials have it."""
        found = {name: self.series(name) for name in METRICS}
        return {name: series.to_json() for name, series in found.items() if series is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseResult:
        """The inverse of ``to_json``; what is derived is not believed but derived again."""
        plan = Plan.from_json(data["plan"])
        return cls(
            plan=plan,
            trials=tuple(TrialResult.from_json(trial, plan) for trial in data["trials"]),
            looks=tuple(data["looks"]),
            metrics=tuple(data["metrics"]),
            verdicts=tuple(Verdict(**verdict) for verdict in data["verdicts"]),
            path=None if data["search"] is None else PathOfSearch.from_json(data["search"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The case as in the run file."""
        plan = self.plan
        return {
            "name": self.name,
            "scenario": plan.scenario,
            "model": plan.model.name,
            "np": plan.np,
            "hosts": [host.name for host in plan.layout.hosts],
            "plan_digest": self.plan_digest,
            "plan": plan.to_json(),
            "looks": list(self.looks),
            "metrics": list(self.metrics),
            "search": None if self.path is None else self.path.to_json(),
            "trials": [trial.to_json() for trial in self.trials],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "summary": self.summary(),
        }
