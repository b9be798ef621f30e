"""Whether the load was right: too little for the storage, or more than it takes. Pure.

At most one of three is said of a trial. ``OVERLOADED``: requests of an open loop pile up.
``UNSATURATED``: the storage had fewer operations than it may have at a time. ``SATURATED``:
it had all it may have, and more waited in our own queue than were served. Where operations move
in batches of one request, however many others wait, all it may have is one of these.

Apart from these, ``LATE_REPLAY``: what came was not the recorded load, for the harness was late.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.units import format_short, ratio
from pytest_kvcache.workloads.openloop import interval_cv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial

_SATURATED_SHARE = 0.5  # of the queue depth in flight on average
_BATCHES_WAIT_SHARE = 0.5  # of a service time: as in a queue of one server that is half busy
_BACKLOG_SHARE = 0.05  # of the offered requests that may wait for the storage at the end
_CHANCE = 3.0  # standard deviations that chance may make
_CHANCE_WHEN_FULL = 2.0  # likewise, where the storage has all it may have, and more waits
_LATE_SHARE = 0.5  # of the response times that the harness may make by itself
_ON_TIME_PERCENT = 95.0  # of a replay's requests come in time where the load is the recorded one
_LATE_MS = 10.0  # in time: an engine admits requests between two steps, which take as long


def check_load(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Queues of an open loop, depths below the storage's limit, and our own queue."""
    depth = trial.counters.average_queue_depth
    waits = _waits(trial)
    busy = depth is None or depth >= _SATURATED_SHARE * plan.most_in_flight
    if waits is not None and _in_batches(plan):
        busy = busy or waits[0] >= _BATCHES_WAIT_SHARE * waits[1]
    busy = busy or _writes_all_the_time(trial, plan)
    waited_for_room = waits is not None and waits[0] > waits[1]
    full = busy and waited_for_room
    piled = None
    if plan.open_loop or trial.scheduling_lag is not None:
        piled = _pile(trial, plan, busy=busy, chance=_CHANCE_WHEN_FULL if full else _CHANCE)
    if piled is not None:
        yield _overloaded(piled, plan, busy=busy or waited_for_room)
    elif not busy and depth is not None:
        yield _unsaturated(depth, trial, plan)
    elif waits is not None and full:
        yield _saturated(*waits, trial, plan)


def check_arrivals(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Whether the requests of a replay came when they were recorded to come.

    One that is later than the next one's turn has lost its place in the recorded order; but
    below the time between two steps of an engine that makes no difference to it. What
    ``scheduling_lag`` counts came after the ramp, and until the rank's own stop or the trace's
    last request: a rank that has got them all stops when it has answered them.
    """
    lag = trial.scheduling_lag
    if plan.trace is None or lag is None or not lag.count:
        return
    over_s = plan.trace.cycles * plan.trace.span_s / plan.trace.speedup if plan.open_loop else 0.0
    spans_s = (min(rank.stop_s, over_s) - plan.ramp_s for rank in trial.ranks)
    between_ms = 1e3 * sum(max(0.0, span_s) for span_s in spans_s) / lag.count
    late_ns = lag.histogram.percentile_ns(_ON_TIME_PERCENT)
    limit_ms = max(_LATE_MS, between_ms)
    if late_ns is None or late_ns <= limit_ms * 1e6:
        return
    yield Verdict.of(
        "LATE_REPLAY",
        f"one in 20 requests came {format_short(late_ns / 1e6)} ms or more after its recorded"
        f" time, for the harness was late, and a rank has one every {format_short(between_ms)} ms:"
        " the load was not the recorded one; more ranks (--kv-np), a lower --kv-trace-speedup, or"
        " cores that nothing else uses",
    )


def _overloaded(piled: str, plan: Plan, *, busy: bool) -> Verdict:
    slower = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
    why = f"the storage can't follow, and response times are those of a queue: lower {slower}, or"
    why = f"{why} take faster storage (or more ranks, where scheduling_lag is as long: the harness)"
    if not busy:
        users = "more --kv-num-users, " if plan.trace is None else ""
        why = (
            "not for the storage, which had few of them at a time, but for each other's blocks or"
            f" for the harness: {users}a lower {slower}, or where scheduling_lag is as long as"
            " request, more ranks"
        )
    return Verdict.of("OVERLOADED", f"{piled}; {why}")


def _unsaturated(depth: float, trial: Trial, plan: Plan) -> Verdict:
    speed = "this is the load's speed, at most what the users ask for, not the storage's limit"
    if plan.open_loop:
        speed = f"an open loop below the storage's limit has the load's speed: {_faster(plan)}"
        if plan.request_rate is not None and _in_flight(trial) > plan.users * plan.np / 2:
            speed = (
                f"{speed}; {plan.users} users per rank are so few that their requests wait for"
                " each other: more --kv-num-users"
            )
    waits = _waits(trial)
    if waits is not None and waits[0] > waits[1]:
        ahead, knob = "that were asked for at the same moment", "--kv-queue-depth"
        if plan.request_depth is not None or plan.in_buckets:
            ahead = "of the same request that went before, or for a worker"
            knob = "--kv-engine" if plan.in_buckets else "--kv-request-depth and --kv-queue-depth"
        speed = (
            f"{speed}; operations still waited {format_short(waits[0])} ms on average, for those"
            f" {ahead}: load.* is as long with this {knob} only"
        )
    most = plan.most_in_flight
    text = f"{depth:.1f} of {most} transfers were in flight per rank on average; {speed}"
    return Verdict.of("UNSATURATED", text)


def _saturated(waited_ms: float, served_ms: float, trial: Trial, plan: Plan) -> Verdict:
    p95_ms = trial.queue.ms.p95
    tail = "" if p95_ms is None else f" (p95 {format_short(p95_ms)} ms)"
    fewer = "fewer --kv-num-users"
    if plan.open_loop:
        fewer = f"a lower {'--kv-request-rate' if plan.trace is None else '--kv-trace-speedup'}"
    at_a_time, more = f"{plan.most_in_flight} at a time", "another --kv-queue-depth or more ranks"
    limit = "the limit, at it, of the storage and of whatever else the verdicts name"
    if plan.in_buckets:
        more = "more ranks"
    if _in_batches(plan):
        at_a_time, more = "a batch of one request at a time", "more ranks"
        if (depth := trial.counters.average_queue_depth) is not None:
            at_a_time = f"{at_a_time} ({depth:.1f} transfers in flight)"
        limit = "the limit of one batch at a time, and the storage may do more"
    if _writes_all_the_time(trial, plan):
        at_a_time = "a bucket that is written at a time"
        limit = "the limit of one bucket at a time, and the storage may do more"
    return Verdict.of(
        "SATURATED",
        f"operations waited {format_short(waited_ms)} ms{tail} in the rank's own queue and were"
        f" served in {format_short(served_ms)} ms on average, {at_a_time}: load.* and request.* are"
        " mostly queueing, read.* and write.* are service times at this depth; this is"
        f" {limit}. For latency {fewer}, for more bandwidth {more}",
    )


def _in_batches(plan: Plan) -> bool:
    """Whether a request's operations wait for the whole batch of another one."""
    return plan.batch_submits is not None


def _writes_all_the_time(trial: Trial, plan: Plan) -> bool:
    """Whether there mostly is a bucket that is written: there is never more than one of a rank."""
    if not plan.in_buckets or trial.write.ms.mean is None:
        return False
    buckets = trial.write.count / plan.bucket_blocks
    busy_s = buckets * trial.write.ms.mean / 1e3
    return busy_s >= _SATURATED_SHARE * plan.np * trial.window_s


def _waits(trial: Trial) -> tuple[float, float] | None:
    """Mean wait in our queue and mean service time of reads and writes, ms; None: no operation."""
    waited_ms = trial.queue.ms.mean
    moving = [section for section in (trial.read, trial.write, trial.demote) if section is not None]
    served = [(s.count, s.ms.mean) for s in moving if s.ms.mean is not None]
    served_ms = ratio(sum(count * ms for count, ms in served), sum(count for count, _ms in served))
    return None if waited_ms is None or served_ms is None else (waited_ms, served_ms)


def _in_flight(trial: Trial) -> float:
    """Requests that waited for the storage, on average, in the half that had more."""
    return max((half for half in trial.requests.half_waiting if half is not None), default=0.0)


def _pile(trial: Trial, plan: Plan, *, busy: bool, chance: float) -> str | None:
    """What an open loop left at the end, or that ever more were waiting; None: neither.

    Simulated generation is no waiting; storing what was answered is. What is under way when
    a window ends is no pile: as much was under way before (by Little's law the rate times
    the response time), give or take what chance makes of it.
    """
    counted = trial.counters
    offered, waiting = counted.offered, counted.backlog - counted.generating
    left = counted.dropped + waiting + counted.storing
    usual = trial.requests.half_waiting[0] or 0.0
    natural = usual + chance * _cv(plan) * math.sqrt(usual)
    piled = left > max(plan.np, _BACKLOG_SHARE * offered, natural)
    if counted.dropped or (piled and (busy or not _users_were_few(left, trial, plan))):
        counts = {"dropped": counted.dropped, "unanswered": waiting, "unstored": counted.storing}
        listed = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        undone = f"of {offered:,} requests {left:,} were not done with"
        return f"{undone} when the last one had come ({listed})"
    first, second = trial.requests.half_waiting
    if first is not None and second is not None and _is_growing(first, second, offered, plan):
        return (
            "the requests that wait for the storage grew from"
            f" {first:.0f} in the first half of the window to {second:.0f} in the second one"
        )
    return None


def _users_were_few(left: int, trial: Trial, plan: Plan) -> bool:
    """Whether what is left is at most a request of each user, and the harness was in time.

    Then they wait for each other's blocks: a storage with few operations is not the reason.
    """
    if plan.request_rate is None or left > plan.users * plan.np:
        return False
    late, took = (
        None if section is None else section.ms.mean
        for section in (trial.scheduling_lag, trial.request)
    )
    return late is None or (took is not None and late < _LATE_SHARE * took)


def _cv(plan: Plan) -> float:
    """The coefficient of variation of the times between arrivals."""
    return 1.0 if plan.arrival is None else interval_cv(plan.arrival)


def _is_growing(first: float, second: float, offered: int, plan: Plan) -> bool:
    """Whether more than chance has lengthened the queue from one half to the other.

    A queue that is exactly at its capacity is a random walk: n arrivals lengthen it by
    cv * sqrt(n) (one standard deviation), for cv of the times between them. One below
    its capacity varies less; one above it grows by a share of n.
    """
    return second - first > _CHANCE * _cv(plan) * math.sqrt(offered / 2)


def _faster(plan: Plan) -> str:
    """What an open loop is told that has not come to the storage's limit."""
    option = "--kv-request-rate" if plan.trace is None else "--kv-trace-speedup"
    return f"leave it for that load's response times, raise {option} to find the limit"
