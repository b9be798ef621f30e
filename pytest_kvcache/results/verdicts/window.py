"""Whether the window holds: its length, who was in it, whether it was steady. Pure."""

from __future__ import annotations

import math
from statistics import median_low
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_kvcache.measure.recorder import widest_slice_s
from pytest_kvcache.measure.series import KINDS
from pytest_kvcache.measure.stalls import EVERY
from pytest_kvcache.measure.steadiness import grouped, largest_change
from pytest_kvcache.results.figures import counted_s
from pytest_kvcache.results.verdictcodes import Verdict
from pytest_kvcache.units import GIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.measure.series import TimeSeries
    from pytest_kvcache.measure.steadiness import Change
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.results.trial import StepFigures, Trial

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
_NOUNS = MappingProxyType({"read": "reads", "write": "writes", "demote": "demotions"})
_SOME = 3  # ranks are named
_LONG_PAUSE_S = 1.0  # between two looks of a rank that looks around every 0.1 s


def check_window(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Too short, not shared by all ranks, or not steady."""
    window_s = trial.window_s
    if window_s < _SHORT_WINDOW_S and not plan.restarts:  # whose length is what is measured
        yield Verdict.of(
            "SHORT_WINDOW",
            f"the window is {window_s:.1f} s; {_SHORT_WINDOW_S:g} s or more"
            f" ({_what_lengthens(window_s, plan)}) let caches and garbage collection of the storage"
            " show",
        )
    yield from _check_skew(trial, plan)
    yield from _check_slow_hosts(trial, plan)
    yield from _check_slow_ranks(trial, plan)
    yield from _check_pauses(trial)
    yield from _check_stalls(trial, plan)
    changes = [*_changes(trial, plan)]
    if changes:
        yield Verdict.of(
            "NOT_STEADY",
            f"{'; '.join(changes)}: figures of the whole window are those of neither part;"
            f" {_what_settles(plan)} caches, credits and garbage collection settle",
        )


def _what_settles(plan: Plan) -> str:
    if plan.requests is not None:
        return "more --kv-requests let"
    return "a longer --kv-ramp or --kv-duration lets"


def _what_lengthens(window_s: float, plan: Plan) -> str:
    """The option: a replay that ended with its trace has no more to do in a longer duration."""
    if plan.requests is not None:
        return "more --kv-requests"
    duration_s = plan.duration_s
    cut = duration_s is not None and window_s >= duration_s - widest_slice_s(duration_s)
    if plan.trace is None or cut:
        return "--kv-duration"
    if plan.trace.limit is not None:
        return "--kv-trace-limit"
    return "a longer recording" if plan.replays_operations else "--kv-trace-cycles"


def _changes(trial: Trial, plan: Plan) -> Iterator[str]:
    """What was not the same throughout the window, or throughout a load step of it."""
    series = trial.series
    if plan.load_steps:
        for number, step in enumerate(trial.load_steps, 1):
            for shown in _changes_within(series, _settled(step, series), plan):
                yield f"in load step {number} {shown}"
        return
    first, second = trial.cache.half_hit_ratios
    if first is not None and second is not None and abs(first - second) > _STEADY_DIFFERENCE:
        yield f"the hit ratio went from {first:.2f} to {second:.2f} within the window"
    yield from _changes_within(series, range(series.points), plan)


def _settled(step: StepFigures, series: TimeSeries) -> range:
    """The whole intervals of a load step but its first one, in which users come or go."""
    first = math.ceil(step.begin_s / series.interval_s) + 1
    end = min(series.points, math.floor(step.end_s / series.interval_s))
    return range(first, max(first, end))


def _changes_within(series: TimeSeries, points: range, plan: Plan) -> Iterator[str]:
    for kind in KINDS:
        if plan.trace is None:  # a replay's load is its trace's
            yield from _changed_bandwidth(series, kind, points)
        yield from _changed_latency(series, kind, points)


def _changed_bandwidth(series: TimeSeries, kind: str, points: range) -> Iterator[str]:
    operations, moved = series.done(kind), series.moved(kind)
    spans = _grouped(operations, _FEW_OPERATIONS, points)
    rates = [sum(moved[a:b]) / (b - a) / series.interval_s / GIB for a, b in spans]
    change = largest_change(rates, _BANDWIDTH_CHANGE, [sum(operations[a:b]) for a, b in spans])
    if change is not None:
        yield f"{_NOUNS[kind]} went from {_when(change, 'GiB/s', spans, series)}"


def _changed_latency(series: TimeSeries, kind: str, points: range) -> Iterator[str]:
    spans = _grouped(series.done(kind), _FEW_FOR_MEDIAN, points)
    seconds = [(point, point + 1) for point in points]
    medians = series.medians_ms(kind, spans)
    p99s = series.p99s_ms(kind)
    for percentile, limit, where, values in (
        ("p50", _LATENCY_CHANGES["p50"], spans, medians),
        ("p99", _LATENCY_CHANGES["p99"], seconds, [p99s[point] for point in points]),
    ):
        known = [(span, v) for span, v in zip(where, values, strict=True) if v is not None]
        change = largest_change([value for _span, value in known], limit)
        if change is not None:
            shown = _when(change, "ms", [span for span, _value in known], series)
            yield f"the {percentile} of {_NOUNS[kind]} went from {shown}"


def _grouped(operations: Sequence[int], few: int, points: range) -> list[tuple[int, int]]:
    """Neighbouring ones of these intervals, taken together until each group has enough."""
    spans = grouped(operations[points.start : points.stop], few)
    return [(points.start + begin, points.start + end) for begin, end in spans]


def _when(change: Change, unit: str, spans: Sequence[tuple[int, int]], series: TimeSeries) -> str:
    """The two medians, and which seconds of the window they are of."""
    first, second = (
        None
        if part is None
        else f"{spans[part[0]][0] * series.interval_s} to"
        f" {spans[part[1] - 1][1] * series.interval_s}"
        for part in (change.first, change.second)
    )
    sizes = f"{change.before:.3g} to {change.after:.3g} {unit}"
    if first is None:
        return f"{sizes} for a while (medians of the others and the seconds {second} of the window)"
    return f"{sizes} (medians of the seconds {first} and {second} of the window)"


def _check_stalls(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """Times in which nothing was completed, though something was in flight."""
    stalls = trial.stalls
    if not stalls.count:
        return
    longest = f"{stalls.longest_s:.1f} s, from {stalls.longest_begin_s:.1f} s into the window"
    how_long = f"for {longest}"
    if stalls.count > 1:
        how_long = f"{stalls.count} times, for {stalls.total_s:.1f} s in all, the longest {longest}"
    what = "operation" if EVERY in stalls.kinds else " and no ".join(stalls.kinds)
    slow = f"at most {plan.queue_depth} operations per rank are slow by that, so percentiles of"
    slow += " reads and writes look no worse for it"
    if plan.in_buckets:
        slow = "each time a bucket that is written, and what is read meanwhile, is slow by that"
    yield Verdict.of(
        "STALL",
        f"the storage stalled {how_long}: no {what}{_of_whom(trial, plan)} was completed while"
        f" some were in flight; {slow}: see load.max_ms, request.p99_ms and the series",
    )


def _of_whom(trial: Trial, plan: Plan) -> str:
    """Which ranks were stalled, where there are several."""
    affected = [rank for rank in trial.ranks if not all(stall.is_a_pause for stall in rank.stalls)]
    if plan.np == 1:
        return ""
    if len(affected) == plan.np:
        return " of any rank" if trial.stalls.all_ranks_s else " of one rank or another"
    names = ", ".join(f"{rank.rank} on {rank.host}" for rank in affected[:_SOME])
    more = f" and {len(affected) - _SOME} more" if len(affected) > _SOME else ""
    return f" of {len(affected)} of {plan.np} ranks (rank {names}{more})"


def _check_skew(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """The common window against the longest rank's, to within the slice it is cut to."""
    late_s = max(0.0, max(rank.start_s for rank in trial.ranks) - plan.ramp_s)
    common_s = max(0.0, trial.window_s - late_s)
    longest_s = _longest_window_s(trial, plan)
    enough_s = _COMMON_SHARE * (longest_s - widest_slice_s(longest_s))
    if common_s >= enough_s:
        return
    shared = f"all ranks were active together for {common_s:.1f} s of {longest_s:.4g} s only"
    if late_s > longest_s - trial.window_s:
        yield Verdict.of("SKEWED", f"{shared}; {_who_began_late(trial, late_s)}")
    elif plan.ends_by_itself:
        yield Verdict.of("UNEVEN", f"{shared}; {_whose_work_was_less(trial, plan)}")
    else:
        yield Verdict.of("SKEWED", f"{shared}; {_who_ended_early(trial, plan)}")


def _whose_work_was_less(trial: Trial, plan: Plan) -> str:
    rank = min(trial.ranks, key=lambda rank: rank.stop_s)
    what = "its requests" if plan.trace is None else "its part of the trace"
    if plan.restarts:
        return (
            f"rank {rank.rank} on host {rank.host} had its index first, and from then on the others"
            " had the storage for themselves: run.s, until the last one is ready, stands"
        )
    stands = "cache.*" if trial.run is None else "run.* and cache.*"
    fix = "fewer ranks"
    if plan.requests is None and not plan.replays_operations:
        fix += ", or a --kv-duration that all of them last,"
    even = "" if plan.requests is not None else f"; {fix} make others comparable"
    return (
        f"rank {rank.rank} on host {rank.host} was done with {what} first, and from then on the"
        f" others had the storage for themselves: {stands} are of the whole work and stand, other"
        f" metrics are absent{even}"
    )


def _who_began_late(trial: Trial, late_s: float) -> str:
    rank = max(trial.ranks, key=lambda rank: rank.start_s)
    return (
        f"rank {rank.rank} on host {rank.host} began {late_s:.1f} s late, look for what"
        " keeps it from beginning with the others"
    )


def _who_ended_early(trial: Trial, plan: Plan) -> str:
    rank = min(trial.ranks, key=lambda rank: rank.stop_s)
    if plan.trace is not None:
        return (
            f"the conversations are uneven, those of rank {rank.rank} were over first: use"
            " fewer ranks, or a --kv-duration that all of them last"
        )
    return (
        f"rank {rank.rank} on host {rank.host} was done first, look for what ended its load"
        " before its time"
    )


def _check_slow_hosts(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """The time that the storage of each host took for an operation, on average.

    Little's law gives it: operations in flight over operations done. A trace gives each
    rank operations of its own, which may differ.
    """
    if plan.trace is not None:
        return
    hosts: dict[str, list[RankResult]] = {}
    for rank in trial.ranks:
        hosts.setdefault(rank.host, []).append(rank)
    times_s = {host: _operation_s(ranks, trial, plan) for host, ranks in hosts.items()}
    known = {host: time_s for host, time_s in times_s.items() if time_s is not None}
    typical_s = median_low(known.values()) if known else 0.0
    if not typical_s:
        return
    for host, ranks in hosts.items():
        took_s = times_s[host] or _at_least_s(ranks, trial, plan, typical_s)
        if took_s is not None and took_s > _SLOW_FACTOR * typical_s:
            yield Verdict.of(
                "SKEWED",
                f"host {host} took {took_s * 1e3:.3g} ms for an operation where a typical one"
                f" takes {typical_s * 1e3:.3g} ms; a result of both is that of neither, look for"
                " what slows that host",
            )
            return


def _check_slow_ranks(trial: Trial, plan: Plan) -> Iterator[Verdict]:
    """The time an operation took on each rank of one host, whose ranks share its storage."""
    if plan.trace is not None:
        return
    hosts: dict[str, list[tuple[float, RankResult]]] = {}
    for rank in trial.ranks:
        took_s = _operation_s([rank], trial, plan)
        stalled = rank.stalls  # which is said by itself, and would be most of the time it took
        if took_s is not None and _done(rank) >= _ENOUGH_OF_A_RANK and not stalled:
            hosts.setdefault(rank.host, []).append((took_s, rank))
    for host, times in hosts.items():
        typical_s = median_low(took_s for took_s, _rank in times)
        took_s, rank = max(times, key=lambda pair: pair[0])
        if took_s > _SLOW_FACTOR * typical_s:
            yield Verdict.of(
                "SKEWED",
                f"rank {rank.rank} took {took_s * 1e3:.3g} ms for an operation where a typical"
                f" rank of its host {host} takes {typical_s * 1e3:.3g} ms; a result of both is that"
                " of neither, look for what slows that rank",
            )
            return


def _done(rank: RankResult) -> int:
    """Operations of a rank's window."""
    return rank.read_count + rank.write_count + rank.delete_count + rank.demote_count


def _check_pauses(trial: Trial) -> Iterator[Verdict]:
    known = [(r.longest_pause_s, r) for r in trial.ranks if r.longest_pause_s is not None]
    if not known:
        return
    longest_s, longest = max(known, key=lambda pair: pair[0])
    stopped = any(stall.is_a_pause for _pause_s, rank in known for stall in rank.stalls)
    if longest_s > _LONG_PAUSE_S or stopped:
        yield Verdict.of(
            "PAUSED",
            f"rank {longest.rank} on host {longest.host} was paused for"
            f" {longest_s:.1f} s in the window: its latencies contain that, look"
            " for what stops it (a debugger, a suspended machine, an overloaded"
            " host, a --kv-results-dir that hangs)",
        )


def _busy_s(ranks: Sequence[RankResult], trial: Trial, plan: Plan) -> float:
    """Seconds that operations of these ranks were in flight, each counted by itself."""
    return sum(
        (rank.average_queue_depth or 0.0) * counted_s(rank, trial.window_s, plan) for rank in ranks
    )


def _at_least_s(
    ranks: Sequence[RankResult], trial: Trial, plan: Plan, typical_s: float
) -> float | None:
    """The least for a host with few operations; None if a typical one would have few as well.

    One that did nothing at all fails its trial as idle.
    """
    busy_s, done = _busy_s(ranks, trial, plan), sum(_done(rank) for rank in ranks)
    if not done or busy_s / typical_s < _SLOW_FACTOR * _ENOUGH_OPERATIONS * len(ranks):
        return None
    return busy_s / done


def _operation_s(ranks: Sequence[RankResult], trial: Trial, plan: Plan) -> float | None:
    """Seconds per operation; None where too few were made to tell a slow host from chance."""
    done = sum(_done(rank) for rank in ranks)
    unknown = any(rank.average_queue_depth is None for rank in ranks)
    if unknown or done < _ENOUGH_OPERATIONS * len(ranks):
        return None
    return _busy_s(ranks, trial, plan) / done


def _longest_window_s(trial: Trial, plan: Plan) -> float:
    """How long all ranks should have been active: only a trace may be over before its time."""
    if plan.trace is None and plan.duration_s is not None:
        return plan.duration_s
    own_s = max(rank.stop_s for rank in trial.ranks) - plan.ramp_s
    return own_s if plan.duration_s is None else min(own_s, plan.duration_s)
