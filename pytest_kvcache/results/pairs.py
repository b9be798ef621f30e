"""The two launches of a trial with stores and without: put together, and held against. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.plan.interference import without_stores
from pytest_kvcache.results.interference import InterferenceFigures, SideFigures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult


def figures_of(trial: TrialResult, alone: TrialResult) -> InterferenceFigures | None:
    """How a launch with stores stands to the one without; None: one of them measured nothing."""
    if trial.measured is None or alone.measured is None:
        return None
    return InterferenceFigures(
        with_stores=SideFigures.of(trial.measured, trial.verdicts, withholds=trial.withholds),
        without_stores=SideFigures.of(alone.measured, alone.verdicts, withholds=alone.withholds),
    )


def paired(trial: TrialResult, alone: TrialResult) -> TrialResult:
    """The trial of two launches: what was measured with stores, and how it stands to the other."""
    return replace(trial, interference=figures_of(trial, alone))


def pair_faults(case: CaseResult, cases: Sequence[CaseResult], *, ended: bool) -> Iterator[str]:
    """Where a case's trials are not the pairs that its plan says, of launches of the run.

    In one that has not ``ended`` the first launch of all may be one without stores.
    """
    if case.plan.interference != "with-stores":
        if any(trial.interference is not None for trial in case.trials):
            yield "a trial has interference; by the plan it is a single launch"
        belongs = any(
            without_stores(other.plan) == case.plan
            for other in cases
            if other.plan.interference == "with-stores"
        )
        if ended and case.plan.interference == "without-stores" and not belongs:
            yield "it is without stores; the run has no case with stores that it belongs to"
        return
    beside = without_stores(case.plan)
    faults = [list(_faults(case, other)) for other in cases if other.plan == beside]
    if not faults:
        if any(trial.ok or trial.interference is not None for trial in case.trials):
            yield f"the run has no launches without stores of it: {beside.case}"
        return
    yield from min(faults, key=len)


def _faults(case: CaseResult, other: CaseResult) -> Iterator[str]:
    by_index = {trial.index: trial for trial in other.trials}
    for trial in case.trials:
        where = f"trial {trial.index + 1}: its interference is"
        alone = by_index.get(trial.index)
        if trial.ok and (alone is None or not alone.ok):
            yield f"{where} of no launch without stores that is sound"
            continue
        both = alone is not None and alone.ok and (trial.ok or trial.interference is not None)
        expected = figures_of(trial, alone) if both and alone is not None else None
        if trial.interference != expected:
            yield f"{where} {trial.interference}; by its two launches it must be {expected}"
