"""Whether the load was right: too little for the storage, or more than it takes. Pure.

At most one of three is said of a trial. ``OVERLOADED``: requests of an open loop pile up.
``UNSATURATED``: the storage had fewer operations than it may have at a time. ``SATURATED``:
it had all it may have, and more waited in our own queue than were served.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_kvcache.results.trial import Verdict, ratio
from pytest_kvcache.workloads.openloop import interval_cv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.plan.plan import Plan

_SATURATED_SHARE = 0.5  # of the queue depth in flight on average
_BACKLOG_SHARE = 0.05  # of the offered requests that may wait for the storage at the end
_CHANCE = 3.0  # standard deviations that chance may make
_CHANCE_WHEN_FULL = 2.0  # likewise, where the storage has all it may have, and more waits
_LATE_SHARE = 0.5  # of the response times that the harness may make by itself


def whether_the_load_was_right(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Queues of an open loop, depths below the storage's limit, and our own queue."""
    depths = [rank["mean_depth"] for rank in data["ranks"]]
    known = [depth for depth in depths if depth is not None]
    depth = sum(known) / len(known) if known else None
    busy = depth is None or depth >= _SATURATED_SHARE * plan.queue_depth
    waits = _waits(data)
    full = busy and waits is not None and waits[0] > waits[1]
    piled = None
    if plan.open_loop or data["wakeup"] is not None:
        piled = _pile(data, plan, busy=busy, chance=_CHANCE_WHEN_FULL if full else _CHANCE)
    if piled is not None:
        yield _overloaded(piled, plan, busy=busy)
    elif not busy and depth is not None:
        yield _unsaturated(depth, data, plan)
    elif full and waits is not None:
        yield _saturated(*waits, data, plan)


def _overloaded(piled: str, plan: Plan, *, busy: bool) -> Verdict:
    slower = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
    why = f"the storage can't follow, and response times are those of a queue: lower {slower}, or"
    why = f"{why} take faster storage (where wakeup is as long, it is the harness: more ranks)"
    if not busy:
        why = (
            "not for the storage, which had few of them at a time, but for each other's blocks or"
            f" for the harness: more --kv-num-users, a lower {slower}, or where wakeup is as long"
            " as request, more ranks"
        )
    return Verdict.of("OVERLOADED", f"{piled}; {why}")


def _unsaturated(depth: float, data: Mapping[str, Any], plan: Plan) -> Verdict:
    speed = "this is the load's speed, at most what the users ask for, not the storage's limit"
    if plan.open_loop:
        speed = f"an open loop below the storage's limit has the load's speed: {_faster(plan)}"
        if plan.request_rate is not None and _in_flight(data) > plan.users * plan.np / 2:
            speed = (
                f"{speed}; {plan.users} users per rank are so few that their requests wait for"
                " each other: more --kv-num-users"
            )
    waits = _waits(data)
    if waits is not None and waits[0] > waits[1]:
        speed = (
            f"{speed}; operations still waited {_told(waits[0])} ms on average, for those that were"
            " asked for at the same moment: load.* is as long with this --kv-queue-depth only"
        )
    text = (
        f"{depth:.1f} of {plan.queue_depth} transfers were in flight per rank on average; {speed}"
    )
    return Verdict.of("UNSATURATED", text)


def _saturated(waited_ms: float, served_ms: float, data: Mapping[str, Any], plan: Plan) -> Verdict:
    p95_ms = data["queue"]["ms"]["p95"]
    tail = "" if p95_ms is None else f" (p95 {_told(p95_ms)} ms)"
    fewer = "fewer --kv-num-users"
    if plan.open_loop:
        fewer = f"a lower {'--kv-request-rate' if plan.trace is None else '--kv-trace-speedup'}"
    return Verdict.of(
        "SATURATED",
        f"operations waited {_told(waited_ms)} ms{tail} in the rank's own queue and were served in"
        f" {_told(served_ms)} ms on average, {plan.queue_depth} at a time: load.* and request.* are"
        " mostly queueing, read.* and write.* are service times at this depth; this is the limit,"
        " at it, of the storage and of whatever else the verdicts name. For latency"
        f" {fewer}, for more bandwidth another --kv-queue-depth or more ranks",
    )


def _told(value_ms: float) -> str:
    """Three digits, or as many as there are before the point."""
    return f"{value_ms:,.0f}" if value_ms >= 100 else f"{value_ms:.3g}"  # noqa: PLR2004


def _waits(data: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean wait in our queue and mean service time of reads and writes, ms; None: no operation."""
    waited_ms = data["queue"]["ms"]["mean"]
    sections = [data[kind] for kind in ("read", "write") if data[kind]["count"]]
    count = sum(section["count"] for section in sections)
    served_ms = ratio(sum(s["count"] * s["ms"]["mean"] for s in sections), count)
    return None if waited_ms is None or served_ms is None else (waited_ms, served_ms)


def _in_flight(data: Mapping[str, Any]) -> float:
    """Requests that waited for the storage, on average, in the half that had more."""
    return max((half for half in data["requests"]["half_waiting"] if half is not None), default=0.0)


def _pile(data: Mapping[str, Any], plan: Plan, *, busy: bool, chance: float) -> str | None:
    """Of an open loop: what was left at the end, or that ever more were waiting; None: neither.

    Simulated generation is no waiting; storing what was answered is. What is under way when
    a window ends is no pile: as much was under way before (by Little's law the rate times
    the response time), give or take what chance makes of it.
    """
    requests = data["requests"]
    offered, waiting = requests["offered"], requests["backlog"] - requests["generating"]
    left = requests["dropped"] + waiting + requests["storing"]
    usual = requests["half_waiting"][0] or 0.0
    natural = usual + chance * _cv(plan) * math.sqrt(usual)
    piled = left > max(plan.np, _BACKLOG_SHARE * offered, natural)
    if requests["dropped"] or (piled and (busy or not _users_were_few(left, data, plan))):
        return f"{left} of {offered} requests were dropped, unanswered or not stored at the end"
    if _is_growing(requests, plan):
        first, second = requests["half_waiting"]
        return (
            "the requests that wait for the storage grew from"
            f" {first:.0f} in the first half of the window to {second:.0f} in the second one"
        )
    return None


def _users_were_few(left: int, data: Mapping[str, Any], plan: Plan) -> bool:
    """Whether what is left is at most a request of each user, and the harness was in time.

    Then they wait for each other's blocks: a storage with few operations is not the reason.
    """
    if plan.request_rate is None or left > plan.users * plan.np:
        return False
    late, took = (
        None if data[name] is None else data[name]["ms"]["mean"] for name in ("wakeup", "request")
    )
    return late is None or (took is not None and late < _LATE_SHARE * took)


def _cv(plan: Plan) -> float:
    """Of the times between arrivals."""
    return 1.0 if plan.arrival is None else interval_cv(plan.arrival)


def _is_growing(requests: Mapping[str, Any], plan: Plan) -> bool:
    """Whether more than chance has lengthened the queue from one half to the other.

    A queue that is exactly at its capacity is a random walk: n arrivals lengthen it by
    cv * sqrt(n) (one standard deviation), for cv of the times between them. One below
    its capacity varies less; one above it grows by a share of n.
    """
    first, second = requests["half_waiting"]
    if first is None or second is None:
        return False
    return bool(second - first > _CHANCE * _cv(plan) * math.sqrt(requests["offered"] / 2))


def _faster(plan: Plan) -> str:
    """What an open loop is told that has not come to the storage's limit."""
    option = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
    return f"leave it for that load's response times, raise {option} to find the limit"
