"""Reasons to distrust a trial, from its data and its plan. Pure.

Severities are fixed by the run file's documentation: ``invalid`` fails the trial unless
``--kv-allow-invalid`` is given, ``warning`` is shown.
"""

from __future__ import annotations

import math
from statistics import median_low
from typing import TYPE_CHECKING, Any

from pytest_kvcache.recorder import widest_slice_s
from pytest_kvcache.results import Verdict, trial_data
from pytest_kvcache.workloads.openloop import interval_cv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.plan import Plan
    from pytest_kvcache.trialrecord import RankResult, TrialRecord

_MOVED_SHARE = 0.9  # of the bytes asked for that the device must have moved
_SHORT_WINDOW_S = 30.0
_STEADY_DIFFERENCE = 0.05  # between the hit ratios of the window's halves
_COMMON_SHARE = 0.9  # of the longest rank's window that all ranks must share
_SLOW_FACTOR = 4.0  # between the slowest host's time for an operation and a typical one's
_ENOUGH_OPERATIONS = 30  # of a rank, to tell a slow host from chance
_LONG_PAUSE_S = 1.0  # between two looks of a rank that looks around every 0.1 s
_SATURATED_SHARE = 0.5  # of the queue depth in flight on average
_BACKLOG_SHARE = 0.05  # of the offered requests that may wait for the storage at the end
_CHANCE = 3.0  # standard deviations that chance may make


_NO_STORAGE_CODES = ("TMPFS", "NOT_STORAGE")  # stand against it whatever was read
_READ_CODES = ("CACHED_READS", "UNPROVEN")


def evaluate_trial(record: TrialRecord, plan: Plan) -> tuple[dict[str, Any], tuple[Verdict, ...]]:
    """A trial's part of the run file and all verdicts on it, from the ranks' records alone."""
    data = trial_data(record, plan)
    verdicts = _judge(data, plan)
    codes = {verdict.code for verdict in verdicts}
    data["proof"]["verdict"] = _proof_verdict(codes, data["proof"]["requested_read_bytes"])
    return data, verdicts


def _proof_verdict(codes: set[str], read_bytes: int) -> str | None:
    """What stands against the reads, else PROVEN; None: there was no read to prove."""
    against = _NO_STORAGE_CODES + _READ_CODES if read_bytes else _NO_STORAGE_CODES
    otherwise = "PROVEN" if read_bytes else None
    return next((code for code in against if code in codes), otherwise)


def idle_error(ranks: Sequence[RankResult]) -> str | None:
    """Why a trial fails whose storage did nothing for a rank, None if it worked for all.

    Those that worked can't stand for one that did not: a result of two ranks would be
    one of one.
    """
    idle = [rank for rank in ranks if not rank.read_count + rank.write_count]
    if not idle:
        return None
    if len(idle) == len(ranks):
        return (
            "the storage tier completed no operation in the window; lengthen --kv-duration, add"
            " --kv-num-users or raise --kv-request-rate, or use shorter blocks (--kv-block-tokens)"
        )
    more = f" (and {len(idle) - 1} more)" if len(idle) > 1 else ""
    return (
        f"rank {idle[0].rank} on host {idle[0].host}{more} completed no operation in the window,"
        " which others did; lengthen --kv-duration, use fewer ranks, or shorter blocks"
        " (--kv-block-tokens)"
    )


def _judge(data: Mapping[str, Any], plan: Plan) -> tuple[Verdict, ...]:
    found = [
        *_where_the_bytes_went(data, plan),
        *_whether_reads_were_real(data),
        *_whether_the_window_holds(data, plan),
        *_whether_the_load_was_right(data, plan),
        *_whether_the_harness_was_fast(data),
    ]
    return tuple(found)


def _filesystems(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [facts for facts in data["proof"]["filesystem"].values() if facts is not None]


def _is_storage(data: Mapping[str, Any]) -> bool:
    return all(rank["is_storage"] for rank in data["ranks"])


def _where_the_bytes_went(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    if not _is_storage(data):
        yield Verdict(
            code="NOT_STORAGE",
            severity="warning",
            text=f"the backend {plan.backend} is no storage; this measures the harness, use"
            " --kv-backend=file for a result",
        )
    filesystems = _filesystems(data)
    memory = [facts for facts in filesystems if facts["is_tmpfs"]]
    if memory:
        yield Verdict(
            code="TMPFS",
            severity="invalid",
            text=f"{plan.cache_dir} on {_hosts(memory)} is {memory[0]['type']}, which is memory;"
            " choose a --kv-cache-dir on the storage",
        )
    virtual = [facts for facts in filesystems if facts["virtual"] and not facts["is_tmpfs"]]
    if virtual:
        yield Verdict(
            code="VIRTUAL_DISK",
            severity="warning",
            text=f"the disk of {_hosts(virtual)} is virtual; a cache below this machine can't"
            " be excluded from inside",
        )


def _hosts(filesystems: Sequence[Mapping[str, Any]]) -> str:
    """Whose filesystems they are, in few words."""
    first, more = filesystems[0]["host"], len(filesystems) - 1
    return f"{first} and {more} more" if more else str(first)


def _whether_reads_were_real(data: Mapping[str, Any]) -> Iterator[Verdict]:
    """Rank by rank: one that reads ahead must not stand in for one that reads a cache."""
    if not _is_storage(data):
        return
    ranks = [r for r in data["ranks"] if not (r["filesystem"] and r["filesystem"]["is_tmpfs"])]
    counted = [rank for rank in ranks if _is_counted(rank)]
    if len(counted) < len(ranks):
        yield Verdict(
            code="UNPROVEN",
            severity="warning",
            text="the kernel keeps no byte counter for this storage; whether reads reached the"
            " device is not proven",
        )
    shares = [
        rank["device_read_bytes"] / rank["requested_read_bytes"]
        for rank in counted
        if rank["requested_read_bytes"]
    ]
    if shares and min(shares) < _MOVED_SHARE:
        yield Verdict(
            code="CACHED_READS",
            severity="invalid",
            text=f"the device moved {min(shares):.0%} of the bytes that a rank read; the rest"
            " came out of a cache, use --kv-io=direct or more data than memory",
        )


def _is_counted(rank: Mapping[str, Any]) -> bool:
    facts = rank["filesystem"]
    return bool(facts) and facts["counts_io"] and rank["device_read_bytes"] is not None


def _whether_the_window_holds(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    window_s = data["window_s"]
    if window_s < _SHORT_WINDOW_S:
        yield Verdict(
            code="SHORT_WINDOW",
            severity="warning",
            text=f"the window is {window_s:.1f} s; {_SHORT_WINDOW_S:g} s or more (--kv-duration)"
            " let caches and garbage collection of the storage show",
        )
    yield from _whether_all_were_there(data, plan)
    yield from _whether_a_host_was_slow(data, plan)
    yield from _whether_a_rank_stood_still(data)
    first, second = data["cache"]["half_hit_ratios"]
    if first is not None and second is not None and abs(first - second) > _STEADY_DIFFERENCE:
        yield Verdict(
            code="NOT_STEADY",
            severity="warning",
            text=f"the hit ratio went from {first:.2f} to {second:.2f} within the window; a"
            " longer --kv-ramp or --kv-duration lets it settle",
        )


def _whether_all_were_there(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """The common window against the longest rank's, to within the slice it is cut to."""
    late_s = max(0.0, max(rank["start_s"] for rank in data["ranks"]) - plan.ramp_s)
    common_s = max(0.0, data["window_s"] - late_s)
    longest_s = _longest_window_s(data, plan)
    enough_s = _COMMON_SHARE * (longest_s - widest_slice_s(longest_s))
    if common_s < enough_s:
        advice = "look for a slow or late host"
        if plan.trace is not None and data["window_s"] < enough_s:
            advice = (
                "the conversations are uneven, use fewer ranks, or a --kv-duration that all of"
                " them last"
            )
        yield Verdict(
            code="SKEWED",
            severity="invalid",
            text=f"all ranks were active together for {common_s:.1f} s of {longest_s:.4g} s only;"
            f" {advice}",
        )


def _whether_a_host_was_slow(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """The time that the storage of each host took for an operation, on average.

    Little's law gives it: operations in flight over operations done. A trace gives each
    rank operations of its own, which may differ.
    """
    if plan.trace is not None:
        return
    hosts: dict[str, list[Mapping[str, Any]]] = {}
    for rank in data["ranks"]:
        hosts.setdefault(rank["host"], []).append(rank)
    times_s = {host: _operation_s(ranks, data["window_s"]) for host, ranks in hosts.items()}
    known = {host: time_s for host, time_s in times_s.items() if time_s is not None}
    if not known:
        return
    typical_s = median_low(known.values())
    for host, ranks in hosts.items():
        took_s = times_s[host] or _at_least_s(ranks, data["window_s"], typical_s)
        if took_s is not None and took_s > _SLOW_FACTOR * typical_s:
            yield Verdict(
                code="SKEWED",
                severity="invalid",
                text=f"host {host} took {took_s * 1e3:.3g} ms for an operation where a typical one"
                f" takes {typical_s * 1e3:.3g} ms; a result of both is that of neither, look for"
                " what slows that host",
            )
            return


def _whether_a_rank_stood_still(data: Mapping[str, Any]) -> Iterator[Verdict]:
    known = [rank for rank in data["ranks"] if rank["longest_pause_s"] is not None]
    longest = max(known, key=lambda rank: rank["longest_pause_s"], default=None)
    if longest is not None and longest["longest_pause_s"] > _LONG_PAUSE_S:
        yield Verdict(
            code="PAUSED",
            severity="warning",
            text=f"rank {longest['rank']} on host {longest['host']} stood still for"
            f" {longest['longest_pause_s']:.1f} s in the window: its latencies contain that, look"
            " for what stops it (a debugger, a suspended machine, an overloaded host)",
        )


def _at_least_s(
    ranks: Sequence[Mapping[str, Any]], window_s: float, typical_s: float
) -> float | None:
    """The same for a host with few operations; None if a typical one would have few as well.

    One that did nothing at all fails its trial as idle.
    """
    in_flight: float = sum(rank["mean_depth"] or 0.0 for rank in ranks)
    done: int = sum(rank["read_count"] + rank["write_count"] for rank in ranks)
    if not done or in_flight * window_s / typical_s < _SLOW_FACTOR * _ENOUGH_OPERATIONS * len(
        ranks
    ):
        return None
    return in_flight * window_s / done


def _operation_s(ranks: Sequence[Mapping[str, Any]], window_s: float) -> float | None:
    """None where too few operations were made to tell a slow host from chance."""
    done = sum(rank["read_count"] + rank["write_count"] for rank in ranks)
    depths = [rank["mean_depth"] for rank in ranks]
    if None in depths or done < _ENOUGH_OPERATIONS * len(ranks):
        return None
    return float(sum(depths) * window_s / done)


def _longest_window_s(data: Mapping[str, Any], plan: Plan) -> float:
    """How long all ranks should have been active: only a trace may be over before its time."""
    if plan.trace is None and plan.duration_s is not None:
        return plan.duration_s
    own_s: float = max(rank["stop_s"] for rank in data["ranks"]) - plan.ramp_s
    return own_s if plan.duration_s is None else min(own_s, plan.duration_s)


def _whether_the_load_was_right(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    if plan.open_loop or data["wakeup"] is not None:
        yield from _whether_requests_piled_up(data["requests"], plan)
    depths = [rank["mean_depth"] for rank in data["ranks"]]
    known = [depth for depth in depths if depth is not None]
    if known and sum(known) / len(known) < _SATURATED_SHARE * plan.queue_depth:
        speed = "this is the load's speed, not the storage's limit"
        if plan.open_loop:
            speed = f"an open loop below the storage's limit has the load's speed: {_faster(plan)}"
        yield Verdict(
            code="UNSATURATED",
            severity="warning",
            text=f"{sum(known) / len(known):.1f} of {plan.queue_depth} transfers were in flight"
            f" per rank on average; {speed}",
        )


def _whether_the_harness_was_fast(data: Mapping[str, Any]) -> Iterator[Verdict]:
    harness = data["harness"]
    if harness["client_bound"]:
        yield Verdict(
            code="CLIENT_BOUND",
            severity="invalid",
            text=f"a rank could make only {harness['headroom']:.1f} times as many operations"
            " without the storage; this measures the harness as well, use more ranks (--kv-np) or"
            " larger blocks (--kv-block-tokens)",
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
        yield Verdict(
            code="OVERLOADED",
            severity="invalid",
            text=f"{why}; the storage can't follow, and response times are those of a queue: lower"
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
