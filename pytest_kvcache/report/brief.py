"""A case in one line, for sessions that are to be quiet. Pure; prints nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.cachedir import run_dir, run_name
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.plan.possible import possible
from pytest_kvcache.report.text import figure
from pytest_kvcache.results.absence import why_absent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.results.case import CaseResult


def brief_case(case: CaseResult, metrics: Sequence[str]) -> str:
    """Name, medians (or why there are none), and what stands against them."""
    parts = [_median(case, metric) for metric in possible(metrics, case.plan)]
    text = ", ".join(part for part in parts if part)
    if case.error is not None:
        text = f"{text}; {case.error.splitlines()[0]}" if text else case.error.splitlines()[0]
    of_trials = [verdict for trial in case.trials if trial.ok for verdict in trial.verdicts]
    codes = dict.fromkeys(verdict.code for verdict in (*of_trials, *case.verdicts))
    doubts = f" ({', '.join(codes)})" if codes else ""
    return f"{case.name}: {text}{doubts}"


def absent_values(case: CaseResult, metrics: Sequence[str]) -> Iterator[str]:
    """A line for each metric that a sound case has no value of, with the reason."""
    if case.error is None:
        for metric in possible(metrics, case.plan):
            if case.series(metric) is None:
                yield f"{case.name}: no {metric}: {why_absent(case, metric)}"


def kept_data(cases: Sequence[CaseResult]) -> str | None:
    """Where the last trial's data was left; None: nobody asked for that, or nothing ran."""
    trials = [
        (case.plan, trial)
        for case in cases
        for trial in case.trials
        if case.plan.keep and case.plan.traits.is_storage
    ]
    if not trials:
        return None
    plan, trial = trials[-1]
    if not plan.needs_directory:
        return f"data of all trials (--kv-keep): {run_name(plan.run_id)} in {plan.backend}"
    hosts = [host.name for host in plan.layout.hosts]
    if trial.measured is not None:  # as they call themselves
        hosts = [rank.host for rank in trial.measured.ranks]
    where = run_dir(plan.cache_dir, plan.run_id)
    return f"data of the last trial (--kv-keep): {where} on {', '.join(dict.fromkeys(hosts))}"


def _median(case: CaseResult, metric: str) -> str:
    series = case.series(metric)
    if series is None:
        return ""
    unit = "" if series.unit == "ratio" else f" {series.unit}"
    name = (
        METRICS[metric].name.removesuffix("_ms").removesuffix(".gib_per_s").removesuffix(".per_s")
    )
    return f"{name} {figure(series.median)}{unit}"
