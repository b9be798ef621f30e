"""Whether the load was right: too little for the storage, or more than it takes. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_kvcache.results import Verdict
from pytest_kvcache.workloads.openloop import interval_cv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.plan import Plan

_SATURATED_SHARE = 0.5  # of the queue depth in flight on average
_BACKLOG_SHARE = 0.05  # of the offered requests that may wait for the storage at the end
_CHANCE = 3.0  # standard deviations that chance may make


def whether_the_load_was_right(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Queues of an open loop, and depths below the storage's limit."""
    if plan.open_loop or data["wakeup"] is not None:
        yield from _whether_requests_piled_up(data["requests"], plan)
    depths = [rank["mean_depth"] for rank in data["ranks"]]
    known = [depth for depth in depths if depth is not None]
    if known and sum(known) / len(known) < _SATURATED_SHARE * plan.queue_depth:
        speed = "this is the load's speed, not the storage's limit"
        if plan.open_loop:
            speed = f"an open loop below the storage's limit has the load's speed: {_faster(plan)}"
        yield Verdict.of(
            "UNSATURATED",
            f"{sum(known) / len(known):.1f} of {plan.queue_depth} transfers were in flight"
            f" per rank on average; {speed}",
        )


def _whether_requests_piled_up(requests: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Of an open loop: what was left at the end, and whether ever more were waiting.

    Simulated generation is no waiting; storing what was answered is.
    """
    offered, waiting = requests["offered"], requests["backlog"] - requests["generating"]
    left = requests["dropped"] + waiting + requests["storing"]
    why = None
    if left > max(plan.np, _BACKLOG_SHARE * offered):
        why = f"{left} of {offered} requests were dropped, unanswered or not stored at the end"
    elif _is_growing(requests, plan):
        first, second = requests["half_waiting"]
        why = f"from {first:.0f} in the first half of the window to {second:.0f} in the second one"
        why = f"the requests that wait for the storage grew {why}"
    if why is not None:
        slower = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
        yield Verdict.of(
            "OVERLOADED",
            f"{why}; the storage can't follow, and response times are those of a queue: lower"
            f" {slower}, or take faster storage (where wakeup is as long, it is the harness: more"
            " ranks)",
        )


def _is_growing(requests: Mapping[str, Any], plan: Plan) -> bool:
    """Whether more than chance has lengthened the queue from one half to the other.

    A queue that is exactly at its capacity is a random walk: n arrivals lengthen it by
    cv * sqrt(n) (one standard deviation), for cv of the times between them. One below
    its capacity varies less; one above it grows by a share of n.
    """
    first, second = requests["half_waiting"]
    if first is None or second is None:
        return False
    cv = 1.0 if plan.arrival is None else interval_cv(plan.arrival)
    return bool(second - first > _CHANCE * cv * math.sqrt(requests["offered"] / 2))


def _faster(plan: Plan) -> str:
    """What an open loop is told that has not come to the storage's limit."""
    option = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
    return f"leave it for that load's response times, raise {option} to find the limit"
