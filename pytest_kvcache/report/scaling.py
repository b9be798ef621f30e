"""How cases that differ in their number of ranks compare: a scaling study. Pure.

Users and working set are per rank, so that more ranks are more load (weak scaling): with rates
that grow like the ranks a storage scales. The parts of a trace are together one load (strong).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final

from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.options.options import USERS_METRIC
from pytest_kvcache.plan.possible import why_impossible
from pytest_kvcache.report.headline import describe_aim
from pytest_kvcache.report.text import figure, row, wrapped
from pytest_kvcache.results.provenance import HITS_MOVED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.summary import MetricSeries

_OF_RANKS: Final = frozenset({"np", "layout", "trace"})
"""Of what is measured, what follows from the number of ranks."""
_WIDTH: Final = 22  # of a metric


def report_scaling(cases: Sequence[CaseResult], metrics: Sequence[str]) -> str:
    """A table for each load that ran on several numbers of ranks; empty: there is none."""
    return "\n\n".join("\n".join(_table(of_load, metrics)) for of_load in _by_load(cases))


def _by_load(cases: Sequence[CaseResult]) -> Iterator[list[CaseResult]]:
    """Cases that differ in nothing but their ranks, those with the fewest first."""
    loads: dict[str, list[CaseResult]] = {}
    for case in cases:
        if case.error is None and not case.plan.open_loop:  # whose arrivals all ranks share
            loads.setdefault(_load_of(case), []).append(case)
    for of_load in loads.values():
        ranks = [case.plan.np for case in of_load]
        if len(ranks) > 1 and len(set(ranks)) == len(ranks):  # or they differ in something else
            yield sorted(of_load, key=lambda case: case.plan.np)


def _load_of(case: CaseResult) -> str:
    """What a case asks of each rank, as a text that is equal where that is."""
    plan, derived = case.plan, _OF_RANKS
    if "capacity_blocks" not in plan.given:
        derived |= {"capacity_blocks"}
    if plan.search_mode is not None:
        derived |= {"users"} if plan.search_mode == "qos" else {"users", "search"}
    load = {name: value for name, value in plan.workload.items() if name not in derived}
    replayed = None if plan.trace is None else plan.trace.digest
    return json.dumps([load, replayed, plan.label], sort_keys=True)


def _table(cases: Sequence[CaseResult], metrics: Sequence[str]) -> Iterator[str]:
    plan = cases[0].plan
    each = "as many users on each rank (weak)"
    if plan.trace is not None:
        each = "parts of one trace (strong)"
    elif plan.search_mode is not None:
        each = describe_aim(plan)
    yield from wrapped(f"scaling of {plan.scenario}-{plan.model.name}: {each}", indent="")
    yield from row("metric", _WIDTH, _cells("ranks", "median", "times", "efficiency"))
    for metric in metrics:
        found = ((case.plan, case.series(metric)) for case in cases)
        known = [
            (plan.np, series)
            for plan, series in found
            if series is not None and why_impossible(metric, plan) is None
        ]
        if len(known) > 1:
            yield from _rows(metric, known)
    hits = [series for case in cases if (series := case.series("cache.hit_ratio")) is not None]
    ratios = [series.median for series in hits]
    if ratios and max(ratios) - min(ratios) > HITS_MOVED:
        listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        said = f"the hit ratios differ ({listed}): ranks read another share of what they asked for"
        if len({case.plan.capacity_blocks for case in cases}) > 1:
            said += "; give all the same capacity per rank (--kv-storage-capacity-gb)"
        yield from wrapped(said, indent="  ")


def _rows(metric: str, known: Sequence[tuple[int, MetricSeries]]) -> Iterator[str]:
    """Of the first one how much it is; of the others how many times that, and per rank."""
    fewest, first = known[0]
    for ranks, series in known:
        label = metric if series is first else ""
        times = series.median / first.median if first.median else None
        shown = "—" if times is None or series is first else f"{times:.3g}x"
        efficiency = "—"
        if times is not None and series is not first and _adds_up(metric):
            efficiency = _percent(times * fewest / ranks, _noise(first, series))
        cells = _cells(str(ranks), figure(series.median), shown, efficiency)
        yield from row(label, _WIDTH, cells)


def _cells(ranks: str, value: str, times: str, efficiency: str) -> str:
    return f"{ranks:>6}{value:>12}{times:>9}{efficiency:>20}"


def _adds_up(metric: str) -> bool:
    """Whether a metric of all ranks is the sum of theirs: rates are, ratios and times are not."""
    is_share = METRICS[metric].unit == "ratio" or metric == USERS_METRIC
    return METRICS[metric].better == "higher" and not is_share


def _noise(first: MetricSeries, series: MetricSeries) -> float | None:
    """The coefficient of variation of their quotient, to first order; None with one trial."""
    if first.cv is None or series.cv is None:
        return None
    return math.hypot(first.cv, series.cv)


def _percent(efficiency: float, noise: float | None) -> str:
    spread = "" if noise is None else f" ± {efficiency * noise:.0%}"
    return f"{efficiency:.0%}{spread}"
