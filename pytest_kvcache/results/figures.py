"""From the record that the ranks of a trial left to what they measured together. Pure.

Nothing else is looked at: whoever has the record, or the run file, computes the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from pytest_kvcache.measure.counters import merged
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.metrics import has_answers
from pytest_kvcache.measure.stalls import stalls_of
from pytest_kvcache.results.devicegroups import device_groups
from pytest_kvcache.results.trial import (
    Cache,
    Harness,
    HostSurroundings,
    Moved,
    Proof,
    Requests,
    Section,
    StorageTier,
    Tokens,
    Trial,
)
from pytest_kvcache.results.verdicts.directions import directions_of, worst_of
from pytest_kvcache.units import GIB, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord

_Number = TypeVar("_Number", int, float)
LEAST_HEADROOM: Final = 2.0
"""Operations the harness can make to those it made; below, it is the limit."""


def trial_of(record: TrialRecord, plan: Plan) -> Trial:
    """What a trial of this plan measured, from the ranks' record alone."""
    ranks, window_s, histograms = record.ranks, record.window_s, record.histograms
    counted = merged(ranks)
    wakeup = histograms["wakeup"]
    request = Section.of(histograms["request"], counted.request_censored)
    return Trial(
        window_s=window_s,
        ramp_s=plan.ramp_s,
        start_skew_s=max(r.start_s for r in ranks) - min(r.start_s for r in ranks),
        first_done_s=min(r.drained_s for r in ranks),
        last_done_s=max(r.drained_s for r in ranks),
        counters=counted,
        read=_moved(record, "read", counted.read_bytes),
        write=_moved(record, "write", counted.write_bytes),
        delete=Section.of(histograms["delete"]),
        queue=Section.of(histograms["queue"]),
        device=Section.of(histograms["device"]),
        load=Section.of(histograms["load"], counted.load_censored),
        request=request if has_answers(plan.phase) else None,
        wakeup=Section.of(wakeup) if wakeup.count else None,  # a closed loop has none
        requests=Requests(
            half_waiting=(counted.first_half_waiting, counted.second_half_waiting),
            per_s=_per_s(counted.completed_in_window, window_s),
        ),
        tokens=Tokens(per_s=_per_s(counted.prompt_tokens + counted.generated_tokens, window_s)),
        cache=_cache(counted, plan),
        proof=_proof(ranks, plan),
        harness=_harness(ranks, counted, window_s),
        stalls=stalls_of([rank.stalls for rank in ranks]),
        series=record.series,
        clock=record.clock,
        surroundings=_surroundings(ranks),
        ranks=ranks,
    )


def _per_s(count: float, window_s: float) -> float | None:
    """None where nothing was done: 0 would look like a speed."""
    return ratio(count, window_s) if count else None


def _moved(record: TrialRecord, name: str, moved_bytes: int) -> Moved:
    histogram = record.histograms[name]
    return Moved(
        ms=Latencies.of(histogram),
        histogram=histogram,
        gib_per_s=_per_s(moved_bytes / GIB, record.window_s),
    )


def _cache(counted: Counters, plan: Plan) -> Cache:
    return Cache(
        hit_ratio=ratio(counted.hit_blocks, counted.prompt_blocks),
        hit_token_ratio=ratio(counted.hit_tokens, counted.arrived_tokens),
        half_hit_ratios=(
            ratio(counted.first_half_hits, counted.first_half_blocks),
            ratio(counted.second_half_hits, counted.second_half_blocks),
        ),
        storage=StorageTier(
            capacity_bytes=plan.capacity_bytes * plan.np,
        ),
    )


def _proof(ranks: Sequence[RankResult], plan: Plan) -> Proof:
    """What was asked for and what moved, and whether that proves anything."""
    groups = device_groups(ranks, plan)
    watched = {host for group in groups for host in group.hosts} >= {rank.host for rank in ranks}
    reads, writes = directions_of(ranks, groups)
    return Proof(
        io_mode="+".join(sorted({rank.io_mode for rank in ranks})),
        sync="+".join(sorted({rank.sync for rank in ranks})),
        device_write_bytes=sum(g.moved.write_bytes for g in groups) if watched else None,
        devices=groups,
        sync_probes={
            rank.host: rank.device.sync_probe for rank in ranks if rank.device is not None
        },
        filesystem={rank.host: rank.filesystem for rank in ranks},
        reads=reads,
        writes=writes,
        verdict=worst_of(ranks, reads, writes),
    )


def headroom_of(rank: RankResult, window_s: float) -> float | None:
    """How many times as many operations the rank could have made without the storage."""
    done_per_s = ratio(rank.read_count + rank.write_count, window_s)
    if rank.null_ops_per_s is None or not done_per_s:
        return None
    return rank.null_ops_per_s / done_per_s


def _harness(ranks: Sequence[RankResult], counted: Counters, window_s: float) -> Harness:
    headrooms = [headroom_of(rank, window_s) for rank in ranks]
    known = [headroom for headroom in headrooms if headroom is not None]
    least = min(known) if len(known) == len(ranks) else None
    moved_bytes = counted.requested_read_bytes + counted.requested_write_bytes
    return Harness(
        cpu_s_per_gib=ratio(counted.cpu_s, moved_bytes / GIB),
        headroom=least,
        client_bound=None if least is None else least < LEAST_HEADROOM,
    )


def _surroundings(ranks: Sequence[RankResult]) -> tuple[HostSurroundings, ...]:
    """Host by host what held its ranks up: of the rank that it held up most."""
    hosts: dict[str, list[RankResult]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank)
    return tuple(_host_surroundings(host, of_host) for host, of_host in hosts.items())


def _host_surroundings(host: str, ranks: Sequence[RankResult]) -> HostSurroundings:
    """None where no rank of the host was told."""
    found = [rank.surroundings for rank in ranks]
    worst = max(found, key=lambda around: around.throttled_s or 0.0)
    pressures = [
        (waited_s, a.span_s)
        for a in found
        for waited_s in (a.memory_pressure_s, a.group_memory_pressure_s)
    ]
    return HostSurroundings(
        host=host,
        cpu_quota_cores=_known(min, [around.cpu_quota_cores for around in found]),
        cpu_periods=worst.cpu_periods,
        throttled_periods=worst.throttled_periods,
        throttled_ratio=_largest([(a.throttled_s, a.span_s) for a in found]),
        steal_ratio=_largest(
            [(a.steal_s, a.span_s * rank.cores) for a, rank in zip(found, ranks, strict=True)]
        ),
        memory_limit_bytes=_known(min, [around.memory_limit_bytes for around in found]),
        memory_limit_hits_per_s=_largest([(a.memory_limit_hits, a.span_s) for a in found]),
        memory_pressure_ratio=_largest(pressures),
        io_limits=tuple(dict.fromkeys(limit for around in found for limit in around.io_limits)),
    )


def _largest(parts: Sequence[tuple[float | None, float]]) -> float | None:
    """The largest of these parts of their wholes; None if no part is known."""
    return _known(max, [ratio(part, whole) for part, whole in parts if part is not None])


def _known(
    of: Callable[[list[_Number]], _Number], values: Iterable[_Number | None]
) -> _Number | None:
    """The least or the largest of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return of(known) if known else None
