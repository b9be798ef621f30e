"""Whether the storage pays, as a sentence of a case. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from pytest_kvcache.plan.possible import why_impossible
from pytest_kvcache.units import format_count, format_short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.results.trial import Worth


def describe_worth(plan: Plan, trials: Sequence[TrialResult]) -> str:
    """Medians over the trials; nothing of what nobody gave an option for."""
    found = [trial.measured.worth for trial in trials if trial.measured is not None]
    parts = [*_of_computing(plan, found), *_of_running(plan, found)] if found else []
    return f"Worth: {'; '.join(parts)}." if parts else ""


def _of_computing(plan: Plan, found: Sequence[Worth]) -> Iterator[str]:
    per_s = plan.recompute_tokens_per_s
    ratio = _median([each.useful_hit_ratio for each in found])
    if per_s is None or ratio is None:
        return
    yield f"{ratio:.1%} of the tokens asked for came sooner than {per_s:,.6g} tokens/s compute"
    saved = _median([each.gpus_saved for each in found])
    busy = _median([each.gpus_busy for each in found])
    if saved is not None and busy is not None:
        saves = f"that saves {format_short(saved)} GPUs"
        yield f"{saves}, and computing the rest keeps {format_short(busy)} busy"
    moved = _median([each.load_gib_per_s for each in found])
    needed = _median([each.turning_gib_per_s for each in found])
    if moved is not None and needed is not None:
        yield f"a load moves {format_short(moved)} GiB/s, and pays above {format_short(needed)}"
    turning = _median([each.turning_tokens for each in found])
    if turning is not None:
        yield f"loads pay from {format_count(round(turning), 'token')} on"


def _of_running(plan: Plan, found: Sequence[Worth]) -> Iterator[str]:
    if why_impossible("worth.cost_per_mtok", plan) is not None:
        return
    cost = _median([each.cost_per_mtok for each in found])
    if cost is not None:
        yield f"a million hit tokens cost {format_short(cost)}"
    energy_j = _median([each.joules_per_mtok for each in found])
    if energy_j is not None:
        yield f"a million hit tokens take {format_short(energy_j)} J"


def _median(values: Sequence[float | None]) -> float | None:
    """Of values that all trials have."""
    known = [value for value in values if value is not None]
    return median(known) if known and len(known) == len(values) else None
