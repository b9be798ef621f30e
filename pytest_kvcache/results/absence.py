"""Why a case that ran has no value of a metric. Pure; controller side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.measure.metrics import METRICS, MIN_SAMPLES_BEYOND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import CaseResult, TrialResult


def why_absent(result: CaseResult, metric: str) -> str:
    """Why a case that ran lacks a metric."""
    spec = METRICS[metric]
    impossible = spec.impossible(result.plan.phase)
    if impossible is not None:
        return impossible
    sections = [trial.data[spec.section] for trial in result.trials if trial.data]
    if None in sections:
        return f"only an open loop has {spec.section}; add --kv-request-rate"
    few, counts = _samples(metric, sections)
    if few is not None:
        return (
            f"FEW_SAMPLES, p{spec.percentile:g} needs {few} operations per trial (10 beyond it),"
            f" the trials had {', '.join(map(str, counts))}; {_more_samples(result.plan)}"
        )
    if any(section.get("censored") for section in sections):
        shown = ", ".join(
            f"{section['censored']} of {section['count'] + section['censored']}"
            for section in sections
        )
        return (
            f"too much had not ended at the end of the window to tell ({spec.section}: {shown} by"
            " trial); lengthen --kv-duration, or lower --kv-num-users or --kv-request-rate"
        )
    return "the trials have no such value"


def _more_samples(plan: Plan) -> str:
    """What gives a case more operations: a replay has those of its trace."""
    if plan.trace is None:
        return "lengthen --kv-duration or add users"
    longer = "raise --kv-trace-cycles"
    if plan.trace.limit is not None:
        longer = "raise --kv-trace-limit"
    elif plan.duration_s is not None:
        longer = "leave out --kv-duration"
    if plan.capacity_blocks >= plan.need_blocks:
        return longer
    return (
        f"{longer}, or --kv-storage-capacity-gb for more hits (--kv-datasize tells how many), or"
        " take a smaller --kv-model"
    )


def absent_in_brief(trials: Sequence[TrialResult], metric: str) -> str:
    """The same in few words, for a row of a table."""
    sections = [trial.data[METRICS[metric].section] for trial in trials if trial.data]
    if None in sections:
        return "none"
    few, counts = _samples(metric, sections)
    if few is not None:
        return f"too few samples: {min(counts)} of {few}"
    return "some had not ended" if any(s.get("censored") for s in sections) else "none"


def _samples(
    metric: str, sections: Sequence[Mapping[str, Any]]
) -> tuple[int | None, Sequence[int]]:
    """How many operations a percentile needs, where a trial had fewer; how many there were."""
    percentile = METRICS[metric].percentile
    counts = [s["count"] + s.get("censored", 0) for s in sections if "count" in s]
    if percentile is None or len(counts) != len(sections):
        return None, counts
    needed = round(100 * MIN_SAMPLES_BEYOND / (100 - percentile))
    return (needed if any(count < needed for count in counts) else None), counts
