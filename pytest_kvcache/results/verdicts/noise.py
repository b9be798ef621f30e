"""Whether the trials of a case agree with each other: verdicts on a case. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from pytest_kvcache.measure.metrics import ALWAYS_SHOWN
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.results.verdicts.sides import check_sides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.summary import MetricSeries

NOISY_CV: Final = 0.1  # pyperf calls a benchmark unstable from here on as well
_ODD: Final = 0.5  # what is left of the CV without a trial that stands alone
_FEWEST: Final = 3  # trials, of which one can be the odd one


def evaluate_case(case: CaseResult) -> tuple[Verdict, ...]:
    """All verdicts on a case as a whole; none on one that failed."""
    return (*_check_noise(case), *check_sides(case))


def _check_noise(case: CaseResult) -> Iterator[Verdict]:
    shown = dict.fromkeys([*case.metrics, *ALWAYS_SHOWN])
    found = [case.series(metric) for metric in shown]
    noisy = [s for s in found if s is not None and (s.cv or 0.0) >= NOISY_CV]
    longer = "more --kv-requests" if case.plan.requests is not None else "a longer --kv-duration"
    if case.plan.restarts:
        longer = "more objects (--kv-num-users)"
    if noisy:
        noisy.sort(key=lambda series: -(series.cv or 0.0))
        yield Verdict.of(
            "NOISY",
            f"the trials differ: {', '.join(map(_spread, noisy))}; look for what disturbed them,"
            f" take more trials (--kv-trials) or {longer}",
        )


def _spread(series: MetricSeries) -> str:
    """CV, and the odd trial if there is one."""
    text = f"{series.name} by {series.cv:.0%} (CV)"
    odd = odd_trial(series)
    if odd is None:
        return text
    index, rest = odd
    return (
        f"{text}, most of it trial {index + 1} ({series.values[index]:.4g}; without it {rest:.0%})"
    )


def odd_trial(series: MetricSeries) -> tuple[int, float] | None:
    """The trial without which the CV is lowest, and that CV; None: no trial stands alone.

    It does where the others have at most half of the CV.
    """
    if len(series.values) < _FEWEST or not series.cv:
        return None
    rests = []
    for index in range(len(series.values)):
        others = series.values[:index] + series.values[index + 1 :]
        mean = statistics.mean(others)
        if mean:
            rests.append((statistics.stdev(others) / abs(mean), index))
    rest, index = min(rests, default=(series.cv, 0))
    return (index, rest) if rest <= _ODD * series.cv else None
