"""How the number of active users changes within a window: ``--kv-load-steps``. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_kvcache.errors import OptionError

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

MIN_STEP_S: Final = 2.0
"""Each change is ordered a second beforehand, when the one before it has been obeyed."""


class LoadStep(NamedTuple):
    """A part of the window, from and to moments after its begin, with so many users per rank."""

    begin_ns: int
    end_ns: int
    users: int


def schedule_of(plan: Plan) -> tuple[LoadStep, ...]:
    """The load steps of a plan, equally long; none: the load does not change."""
    if plan.duration_s is None:
        return ()
    duration_ns, count = int(plan.duration_s * 1e9), len(plan.load_steps)
    bounds = [duration_ns * number // count for number in range(count + 1)] if count else []
    return tuple(map(LoadStep, bounds, bounds[1:], plan.load_steps))


def check_load_steps(plan: Plan) -> None:
    """Raise OptionError for load steps that a plan like this can't have."""
    steps = plan.load_steps
    if not steps:
        return
    told = f"--kv-load-steps is {','.join(map(str, steps))}"
    if plan.trace is not None:
        raise OptionError(
            f"{told}; a trace has users and an end of its own, so leave it out, or replay no trace"
        )
    if plan.request_rate is not None:
        raise OptionError(
            f"{told}, which is how many users take turns, and with --kv-request-rate"
            f" ({plan.request_rate:g}) requests come at times of their own; leave one of them out"
        )
    if max(steps) > plan.users:
        raise OptionError(
            f"{told}; a rank has {plan.users} users, so each must be at most that: lower it or"
            " raise --kv-num-users"
        )
    step_s = (plan.duration_s or 0.0) / len(steps)
    if step_s < MIN_STEP_S:
        raise OptionError(
            f"{told}, so that each of the {len(steps)} parts of --kv-duration lasts {step_s:.3g} s;"
            f" it must be at least {MIN_STEP_S:g} s, so lengthen --kv-duration or drop some"
        )
