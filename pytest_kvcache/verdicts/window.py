"""Whether the window holds: its length, who was in it, whether it was steady. Pure."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING, Any

from pytest_kvcache.recorder import widest_slice_s
from pytest_kvcache.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.plan import Plan

_SHORT_WINDOW_S = 30.0
_STEADY_DIFFERENCE = 0.05  # between the hit ratios of the window's halves
_COMMON_SHARE = 0.9  # of the longest rank's window that all ranks must share
_SLOW_FACTOR = 4.0  # between the slowest host's time for an operation and a typical one's
_ENOUGH_OPERATIONS = 30  # of a rank, to tell a slow host from chance
_LONG_PAUSE_S = 1.0  # between two looks of a rank that looks around every 0.1 s


def whether_the_window_holds(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Too short, not shared by all ranks, or not steady."""
    window_s = data["window_s"]
    if window_s < _SHORT_WINDOW_S:
        yield Verdict.of(
            "SHORT_WINDOW",
            f"the window is {window_s:.1f} s; {_SHORT_WINDOW_S:g} s or more (--kv-duration)"
            " let caches and garbage collection of the storage show",
        )
    yield from _whether_all_were_there(data, plan)
    yield from _whether_a_host_was_slow(data, plan)
    yield from _whether_a_rank_stood_still(data)
    first, second = data["cache"]["half_hit_ratios"]
    if first is not None and second is not None and abs(first - second) > _STEADY_DIFFERENCE:
        yield Verdict.of(
            "NOT_STEADY",
            f"the hit ratio went from {first:.2f} to {second:.2f} within the window; a"
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
        yield Verdict.of(
            "SKEWED",
            f"all ranks were active together for {common_s:.1f} s of {longest_s:.4g} s only;"
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
            yield Verdict.of(
                "SKEWED",
                f"host {host} took {took_s * 1e3:.3g} ms for an operation where a typical one"
                f" takes {typical_s * 1e3:.3g} ms; a result of both is that of neither, look for"
                " what slows that host",
            )
            return


def _whether_a_rank_stood_still(data: Mapping[str, Any]) -> Iterator[Verdict]:
    known = [rank for rank in data["ranks"] if rank["longest_pause_s"] is not None]
    longest = max(known, key=lambda rank: rank["longest_pause_s"], default=None)
    if longest is not None and longest["longest_pause_s"] > _LONG_PAUSE_S:
        yield Verdict.of(
            "PAUSED",
            f"rank {longest['rank']} on host {longest['host']} stood still for"
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
