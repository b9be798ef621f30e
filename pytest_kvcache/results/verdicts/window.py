"""Whether the window holds: its length, who was in it, whether it was steady. Pure."""

from __future__ import annotations

from statistics import median_low
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_kvcache.measure.recorder import widest_slice_s
from pytest_kvcache.measure.series import KINDS, Series
from pytest_kvcache.measure.stalls import EVERY, Stall
from pytest_kvcache.measure.steadiness import grouped, largest_change
from pytest_kvcache.results.trial import Verdict
from pytest_kvcache.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.measure.steadiness import Change
    from pytest_kvcache.plan.plan import Plan

_SHORT_WINDOW_S = 30.0
_STEADY_DIFFERENCE = 0.05  # between the hit ratios of the window's halves
_COMMON_SHARE = 0.9  # of the longest rank's window that all ranks must share
_SLOW_FACTOR = 4.0  # between the slowest host's time for an operation and a typical one's
_ENOUGH_OPERATIONS = 30  # of a rank, to tell a slow host from chance
_ENOUGH_OF_A_RANK = 100  # to tell it from the others of its host
_BANDWIDTH_CHANGE = 0.25  # of the larger one: twice what a busy but healthy disk's halves differ
# Likewise. Bins of the series are an eighth wide; a p99 rests on the slowest hundredth, and
# varies by itself.
_LATENCY_CHANGES = MappingProxyType({"p50": 0.33, "p99": 0.5})
# Operations of an interval on average, for its bytes to be a bandwidth; and for most intervals
# to have a median. Neighbouring ones of fewer are taken together.
_FEW_OPERATIONS = 4
_FEW_FOR_MEDIAN = 30
_SOME = 3  # ranks are named
_LONG_PAUSE_S = 1.0  # between two looks of a rank that looks around every 0.1 s


def whether_the_window_holds(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Too short, not shared by all ranks, or not steady."""
    window_s = data["window_s"]
    if window_s < _SHORT_WINDOW_S:
        yield Verdict.of(
            "SHORT_WINDOW",
            f"the window is {window_s:.1f} s; {_SHORT_WINDOW_S:g} s or more"
            f" ({_what_lengthens(window_s, plan)}) let caches and garbage collection of the storage"
            " show",
        )
    yield from _whether_all_were_there(data, plan)
    yield from _whether_a_host_was_slow(data, plan)
    yield from _whether_a_rank_was_slow(data, plan)
    yield from _whether_a_rank_stood_still(data)
    yield from _whether_the_storage_stood_still(data, plan)
    changes = [*_changes(data, plan)]
    if changes:
        yield Verdict.of(
            "NOT_STEADY",
            f"{'; '.join(changes)}: figures of the whole window are those of neither part; a"
            " longer --kv-ramp or --kv-duration lets caches, credits and garbage collection settle",
        )


def _what_lengthens(window_s: float, plan: Plan) -> str:
    """The option: a replay that ended with its trace has no more to do in a longer duration."""
    duration_s = plan.duration_s
    cut = duration_s is not None and window_s >= duration_s - widest_slice_s(duration_s)
    if plan.trace is None or cut:
        return "--kv-duration"
    return "--kv-trace-cycles" if plan.trace.limit is None else "--kv-trace-limit"


def _changes(data: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What was not the same throughout the window."""
    first, second = data["cache"]["half_hit_ratios"]
    if first is not None and second is not None and abs(first - second) > _STEADY_DIFFERENCE:
        yield f"the hit ratio went from {first:.2f} to {second:.2f} within the window"
    for kind in KINDS:
        if plan.trace is None:  # a replay's load is its trace's
            yield from _changed_bandwidth(data["series"], kind)
        yield from _changed_latency(data["series"], kind)


def _changed_bandwidth(series: Mapping[str, Any], kind: str) -> Iterator[str]:
    operations, moved = series[f"{kind}s"], series[f"{kind}_bytes"]
    spans = grouped(operations, _FEW_OPERATIONS)
    rates = [sum(moved[a:b]) / (b - a) / series["interval_s"] / GIB for a, b in spans]
    change = largest_change(rates, _BANDWIDTH_CHANGE, [sum(operations[a:b]) for a, b in spans])
    if change is not None:
        yield f"{kind}s went from {_when(change, 'GiB/s', spans, series)}"


def _changed_latency(series: Mapping[str, Any], kind: str) -> Iterator[str]:
    spans = grouped(series[f"{kind}s"], _FEW_FOR_MEDIAN)
    seconds = [(point, point + 1) for point in range(len(series[f"{kind}s"]))]
    medians = series[f"{kind}_p50_ms"]
    if len(spans) < len(seconds):
        medians = Series.from_json(series).medians_ms(kind, spans)
    for percentile, limit, where, values in (
        ("p50", _LATENCY_CHANGES["p50"], spans, medians),
        ("p99", _LATENCY_CHANGES["p99"], seconds, series[f"{kind}_p99_ms"]),
    ):
        known = [(span, v) for span, v in zip(where, values, strict=True) if v is not None]
        change = largest_change([value for _span, value in known], limit)
        if change is not None:
            told = _when(change, "ms", [span for span, _value in known], series)
            yield f"the {percentile} of {kind}s went from {told}"


def _when(
    change: Change, unit: str, spans: Sequence[tuple[int, int]], series: Mapping[str, Any]
) -> str:
    """The two medians, and which seconds of the window they are of."""
    first, second = (
        None
        if part is None
        else f"{spans[part[0]][0] * series['interval_s']} to"
        f" {spans[part[1] - 1][1] * series['interval_s']}"
        for part in (change.first, change.second)
    )
    sizes = f"{change.before:.3g} to {change.after:.3g} {unit}"
    if first is None:
        return f"{sizes} for a while (medians of the others and the seconds {second} of the window)"
    return f"{sizes} (medians of the seconds {first} and {second} of the window)"


def _whether_the_storage_stood_still(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """Times in which nothing was completed, though something was in flight."""
    stalls = data["stalls"]
    if not stalls["count"]:
        return
    longest = f"{stalls['longest_s']:.1f} s, from {stalls['longest_begin_s']:.1f} s into the window"
    how_long = f"for {longest}"
    if stalls["count"] > 1:
        how_long = (
            f"{stalls['count']} times, for {stalls['total_s']:.1f} s in all, the longest {longest}"
        )
    what = "operation" if EVERY in stalls["kinds"] else " and no ".join(stalls["kinds"])
    yield Verdict.of(
        "STALL",
        f"the storage stood still {how_long}: no {what}{_of_whom(data, plan)} was completed while"
        f" some were in flight; at most {plan.queue_depth} operations per rank are slow by that, so"
        " percentiles of reads and writes look no worse for it: see load.max_ms, request.p99_ms"
        " and the series",
    )


def _of_whom(data: Mapping[str, Any], plan: Plan) -> str:
    """Which ranks stood still, where there are several."""
    affected = [
        rank
        for rank in data["ranks"]
        if not all(Stall.from_json(stall).is_a_pause for stall in rank["stalls"])
    ]
    if plan.np == 1:
        return ""
    if len(affected) == plan.np:
        return " of any rank" if data["stalls"]["all_ranks_s"] else " of one rank or another"
    names = ", ".join(f"{rank['rank']} on {rank['host']}" for rank in affected[:_SOME])
    more = f" and {len(affected) - _SOME} more" if len(affected) > _SOME else ""
    return f" of {len(affected)} of {plan.np} ranks (rank {names}{more})"


def _whether_all_were_there(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """The common window against the longest rank's, to within the slice it is cut to."""
    late_s = max(0.0, max(rank["start_s"] for rank in data["ranks"]) - plan.ramp_s)
    common_s = max(0.0, data["window_s"] - late_s)
    longest_s = _longest_window_s(data, plan)
    enough_s = _COMMON_SHARE * (longest_s - widest_slice_s(longest_s))
    if common_s < enough_s:
        was_late = late_s > longest_s - data["window_s"]
        yield Verdict.of(
            "SKEWED",
            f"all ranks were active together for {common_s:.1f} s of {longest_s:.4g} s only;"
            f" {_who_began_late(data, late_s) if was_late else _who_ended_early(data, plan)}",
        )


def _who_began_late(data: Mapping[str, Any], late_s: float) -> str:
    rank = max(data["ranks"], key=lambda rank: rank["start_s"])
    return (
        f"rank {rank['rank']} on host {rank['host']} began {late_s:.1f} s late, look for what"
        " keeps it from beginning with the others"
    )


def _who_ended_early(data: Mapping[str, Any], plan: Plan) -> str:
    rank = min(data["ranks"], key=lambda rank: rank["stop_s"])
    if plan.trace is not None:
        return (
            f"the conversations are uneven, those of rank {rank['rank']} were over first: use"
            " fewer ranks, or a --kv-duration that all of them last"
        )
    return (
        f"rank {rank['rank']} on host {rank['host']} was done first, look for what ended its load"
        " before its time"
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
    typical_s = median_low(known.values()) if known else 0.0
    if not typical_s:
        return
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


def _whether_a_rank_was_slow(data: Mapping[str, Any], plan: Plan) -> Iterator[Verdict]:
    """The same between the ranks of one host, which share its storage."""
    if plan.trace is not None:
        return
    window_s = data["window_s"]
    hosts: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for rank in data["ranks"]:
        took_s = _operation_s([rank], window_s)
        stood = rank["stalls"]  # which is said by itself, and would be most of the time it took
        if took_s is not None and _done(rank) >= _ENOUGH_OF_A_RANK and not stood:
            hosts.setdefault(rank["host"], []).append((took_s, rank))
    for host, times in hosts.items():
        typical_s = median_low(took_s for took_s, _rank in times)
        took_s, rank = max(times, key=lambda pair: pair[0])
        if took_s > _SLOW_FACTOR * typical_s:
            yield Verdict.of(
                "SKEWED",
                f"rank {rank['rank']} took {took_s * 1e3:.3g} ms for an operation where a typical"
                f" rank of its host {host} takes {typical_s * 1e3:.3g} ms; a result of both is that"
                " of neither, look for what slows that rank",
            )
            return


def _done(rank: Mapping[str, Any]) -> int:
    """Operations of a rank's window."""
    return sum(rank[f"{kind}_count"] for kind in ("read", "write", "delete"))


def _whether_a_rank_stood_still(data: Mapping[str, Any]) -> Iterator[Verdict]:
    known = [rank for rank in data["ranks"] if rank["longest_pause_s"] is not None]
    longest = max(known, key=lambda rank: rank["longest_pause_s"], default=None)
    stopped = any(Stall.from_json(stall).is_a_pause for r in known for stall in r["stalls"])
    if longest is not None and (longest["longest_pause_s"] > _LONG_PAUSE_S or stopped):
        yield Verdict.of(
            "PAUSED",
            f"rank {longest['rank']} on host {longest['host']} stood still for"
            f" {longest['longest_pause_s']:.1f} s in the window: its latencies contain that, look"
            " for what stops it (a debugger, a suspended machine, an overloaded"
            " host, a --kv-results-dir that hangs)",
        )


def _at_least_s(
    ranks: Sequence[Mapping[str, Any]], window_s: float, typical_s: float
) -> float | None:
    """The same for a host with few operations; None if a typical one would have few as well.

    One that did nothing at all fails its trial as idle.
    """
    in_flight: float = sum(rank["mean_depth"] or 0.0 for rank in ranks)
    done: int = sum(_done(rank) for rank in ranks)
    if not done or in_flight * window_s / typical_s < _SLOW_FACTOR * _ENOUGH_OPERATIONS * len(
        ranks
    ):
        return None
    return in_flight * window_s / done


def _operation_s(ranks: Sequence[Mapping[str, Any]], window_s: float) -> float | None:
    """None where too few operations were made to tell a slow host from chance."""
    done = sum(_done(rank) for rank in ranks)
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
