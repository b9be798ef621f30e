"""Which metrics a planned case can't have, whatever its storage does. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.options import why_impossible as why_impossible_by_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.measure.metrics import Metric
    from pytest_kvcache.plan.plan import Plan


def why_impossible(metric: str, plan: Plan) -> str | None:
    """Why no trial of the plan can have a metric; None: it can."""
    why = why_impossible_by_options(metric, plan.phase, plan.scenario)
    if why is None and METRICS[metric].section == "visibility" and not plan.shares_between_hosts:
        return (
            "no other host looks where these ranks store; it takes --kv-sharing=run and --kv-hosts"
        )
    if why is not None or plan.trace is None:
        return why
    if plan.replays_operations and METRICS[metric].tells_of_loads:
        return f"{plan.trace.name} tells operations and their bytes, and no tokens"
    if not plan.trace.shares_nothing:
        return None
    if _is_of_hits(METRICS[metric]) or (METRICS[metric].kind == "read" and not plan.reread_factor):
        return f"{plan.trace.name} tells lengths alone, so that no prompt finds what another stored"
    return None


def _is_of_hits(metric: Metric) -> bool:
    """Whether it tells of what a prompt finds, or of the answer that waits for that."""
    return (
        metric.section in {"load", "request"}
        or metric.section.endswith("_promote")
        or (metric.section == "cache" and metric.unit == "ratio")
    )


def possible(names: Sequence[str], plan: Plan) -> list[str]:
    """The metrics among ``names`` that a trial of the plan can have."""
    return [name for name in names if why_impossible(name, plan) is None]
