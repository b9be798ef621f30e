"""From the record that the ranks of a trial left to what they measured together. Pure.

Nothing else is looked at: whoever has the record, or the run file, computes the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from pytest_kvcache.measure.counters import merged
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.metrics import METRICS, has_answers
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, tier_sections
from pytest_kvcache.measure.service import PERCENTILES
from pytest_kvcache.measure.stalls import stalls_of
from pytest_kvcache.measure.steps import SUMMED
from pytest_kvcache.options.rules import parse_slo
from pytest_kvcache.results.devicegroups import device_groups
from pytest_kvcache.results.trial import (
    Cache,
    Harness,
    HostSurroundings,
    Moved,
    Proof,
    Requests,
    RestartFigures,
    RunFigures,
    Section,
    ServiceFigures,
    Sharing,
    StepFigures,
    StepMoved,
    TierFigures,
    TierSet,
    Tokens,
    Trial,
    Users,
)
from pytest_kvcache.results.verdicts.directions import directions_of, worst_of
from pytest_kvcache.results.worth import worth_of
from pytest_kvcache.units import GIB, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.measure.service import ServiceCounts
    from pytest_kvcache.measure.steps import StepCounts, StepHistograms
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord

_Number = TypeVar("_Number", int, float)
LEAST_HEADROOM: Final = 2.0
"""Operations the harness can make to those it made; below, it is the limit."""
_ANSWERS: Final = ("answered", "answered_users", "answered_later")


def trial_of(record: TrialRecord, plan: Plan) -> Trial:
    """What a trial of this plan measured, from the ranks' record alone."""
    trial = _measured(record, plan)
    kept = (
        bool(plan.search)
        and not (plan.search_step and plan.search_mode != "qos")
        and all(rule.keeps(METRICS[rule.metric].of(trial)) for rule in map(parse_slo, plan.search))
    )
    users = Users(per_rank=plan.users, in_all=plan.users * plan.np) if kept else _NO_USERS
    return replace(trial, users=users)


_NO_USERS: Final = Users(per_rank=None, in_all=None)


def _measured(record: TrialRecord, plan: Plan) -> Trial:
    """All but what follows from the figures themselves."""
    ranks, window_s, histograms = record.ranks, record.window_s, record.histograms
    counted = merged(ranks)
    scheduling_lag = histograms["scheduling_lag"]
    request = Section.of(histograms["request"], counted.request_censored)
    tiered = tier_sections(plan.tiers, plan.tier_policy)
    classes = _service_classes(record, plan)
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
        demote=_moved(record, "demote", counted.demote_bytes) if "demote" in tiered else None,
        device=Section.of(histograms["device"]),
        lookup=Section.of(histograms["lookup"]) if plan.asks_storage else None,
        restart=_restart(record, counted, plan),
        load=Section.of(histograms["load"], counted.load_censored),
        request=request if has_answers(plan.phase) else None,
        visibility=Section.of(histograms["visibility"]) if plan.shares_between_hosts else None,
        scheduling_lag=Section.of(scheduling_lag)
        if scheduling_lag.count
        else None,  # a closed loop has none
        **{
            name: Section.of(histograms[name]) if name in tiered else None
            for name in MEMORY_SECTIONS
        },
        run=_run(ranks, counted, plan),
        requests=Requests(
            half_waiting=(counted.first_half_waiting, counted.second_half_waiting),
            per_s=_per_s(counted.completed_in_window, window_s),
            goodput_per_s=None
            if counted.good_in_window is None
            else ratio(counted.good_in_window, window_s),
            compliance_ratio=min(
                (each.p95_ratio for each in classes if each.p95_ratio is not None), default=None
            ),
        ),
        service_classes=classes,
        tokens=Tokens(per_s=_per_s(counted.prompt_tokens + counted.generated_tokens, window_s)),
        worth=worth_of(
            ranks,
            [counted_s(rank, window_s, plan) for rank in ranks],
            counted,
            histograms["load"],
            plan,
        ),
        sharing=Sharing(other_hit_ratio=ratio(counted.other_hit_blocks or 0, counted.hit_blocks))
        if plan.shares
        else None,
        users=_NO_USERS,
        cache=_cache(counted, plan),
        proof=_proof(ranks, plan),
        harness=_harness(record, counted, plan),
        stalls=stalls_of([rank.stalls for rank in ranks]),
        series=record.series,
        load_steps=_load_steps(record, plan),
        clock=record.clock,
        surroundings=_surroundings(ranks),
        ranks=ranks,
    )


def _run(ranks: Sequence[RankResult], counted: Counters, plan: Plan) -> RunFigures | None:
    """Of work that was done to its end, all of it within the window: bytes are those of it all."""
    whole = not (counted.backlog or counted.dropped or any(rank.error for rank in ranks))
    took_s = max(rank.stop_s for rank in ranks) - min(rank.start_s for rank in ranks)
    if plan.duration_s is not None or plan.ramp_s or not whole or took_s <= 0:
        return None
    return RunFigures(
        s=took_s,
        read_gib_per_s=_per_s(counted.read_op_bytes / GIB, took_s),
        write_gib_per_s=_per_s(counted.write_op_bytes / GIB, took_s),
    )


def _restart(record: TrialRecord, counted: Counters, plan: Plan) -> RestartFigures | None:
    """What was found again until the last rank was ready."""
    if plan.restart_by is None:
        return None
    histogram, run = record.histograms["restart"], _run(record.ranks, counted, plan)
    objects = counted.restart_objects or 0
    return RestartFigures(
        ms=Latencies.of(histogram),
        histogram=histogram,
        by=plan.restart_by,
        dropped_caches=plan.drop_caches,
        objects_per_s=None if run is None else _per_s(objects, run.s),
    )


def _service_classes(record: TrialRecord, plan: Plan) -> tuple[ServiceFigures, ...]:
    """Each class of all ranks together."""
    if plan.service is None:
        return ()
    target = plan.service.compliance_ratio
    return tuple(
        _service_class([r.service_classes[at] for r in record.ranks], target, record.window_s)
        for at in range(min(len(rank.service_classes) for rank in record.ranks))
    )


def _service_class(
    ranks: Sequence[ServiceCounts], target_ratio: float, window_s: float
) -> ServiceFigures:
    judged = sum(rank.judged for rank in ranks)
    good = sum(rank.good_in_window for rank in ranks)
    ratios = {
        f"{name}_ratio": ratio(sum(getattr(rank, f"within_{name}") for rank in ranks), judged)
        for name in PERCENTILES
    }
    first = ratios["p95_ratio"]
    return ServiceFigures(
        name=ranks[0].name,
        judged=judged,
        **ratios,
        target_ratio=target_ratio,
        keeps=None if first is None else first >= target_ratio,
        completed_in_window=sum(rank.completed_in_window for rank in ranks),
        good_in_window=good,
        goodput_per_s=ratio(good, window_s),
    )


def _per_s(count: float, window_s: float) -> float | None:
    """A rate; None where nothing was done: 0 would look like a speed."""
    return ratio(count, window_s) if count else None


def _moved(record: TrialRecord, name: str, moved_bytes: int) -> Moved:
    histogram = record.histograms[name]
    return Moved(
        ms=Latencies.of(histogram),
        histogram=histogram,
        gib_per_s=_per_s(moved_bytes / GIB, record.window_s),
    )


def _load_steps(record: TrialRecord, plan: Plan) -> tuple[StepFigures, ...]:
    """Of each part of the window in which the load was constant, until the first rank stopped."""
    stopped_s = min(rank.stop_s for rank in record.ranks) - plan.ramp_s
    window_s = stopped_s if plan.duration_s is None else min(stopped_s, plan.duration_s)
    by_step = [
        [steps[number] for steps in (r.load_steps for r in record.ranks) if number < len(steps)]
        for number in range(max(len(rank.load_steps) for rank in record.ranks))
    ]
    begins_s = [ranks[0].begin_s for ranks in by_step]
    ends_s = [min(begin_s, window_s) for begin_s in (*begins_s[1:], window_s)]
    return tuple(
        _step(ranks, histograms, begin_s, max(begin_s, end_s), plan)
        for ranks, histograms, begin_s, end_s in zip(
            by_step, record.load_steps, begins_s, ends_s, strict=False
        )
    )


def _step(
    ranks: Sequence[StepCounts],
    histograms: StepHistograms,
    begin_s: float,
    end_s: float,
    plan: Plan,
) -> StepFigures:
    counted = {name: sum(getattr(rank, name) for rank in ranks) for name in (*SUMMED, *_ANSWERS)}

    def moved(kind: str) -> StepMoved:
        histogram, moved_bytes = histograms[kind], counted[f"{kind}_op_bytes"]
        return StepMoved(
            ms=Latencies.of(histogram),
            histogram=histogram,
            bytes=moved_bytes,
            gib_per_s=_per_s(moved_bytes / GIB, end_s - begin_s),
        )

    request = Section.of(histograms["request"], counted["request_censored"])
    return StepFigures(
        begin_s=begin_s,
        end_s=end_s,
        users=ranks[0].users,
        users_in_all=sum(rank.users for rank in ranks),
        late_s=max(0.0, *(rank.obeyed_s - begin_s for rank in ranks)),
        answered_users=counted["answered_users"],
        answered_later=counted["answered_later"],
        read=moved("read"),
        write=moved("write"),
        demote=moved("demote") if "demote" in tier_sections(plan.tiers, plan.tier_policy) else None,
        load=Section.of(histograms["load"], counted["load_censored"]),
        request=request if has_answers(plan.phase) else None,
        requests_per_s=_per_s(counted["answered"], end_s - begin_s),
        prompt_blocks=counted["prompt_blocks"],
        hit_blocks=counted["hit_blocks"],
        hit_ratio=ratio(counted["hit_blocks"], counted["prompt_blocks"]),
    )


def _cache(counted: Counters, plan: Plan) -> Cache:
    return Cache(
        hit_ratio=ratio(counted.hit_blocks, counted.prompt_blocks),
        hit_token_ratio=ratio(counted.hit_tokens, counted.arrived_tokens),
        half_hit_ratios=(
            ratio(counted.first_half_hits, counted.first_half_blocks),
            ratio(counted.second_half_hits, counted.second_half_blocks),
        ),
        tiers=_tiers(counted, plan),
    )


def _tiers(counted: Counters, plan: Plan) -> TierSet:
    """Whose share of all prompt blocks is which; the sum over tiers is that of the hits."""
    made: dict[str, tuple[str, int]] = {
        **{tier.name: (tier.kind, tier.capacity_bytes) for tier in plan.tiers},
        "storage": (plan.backend, plan.capacity_bytes),
    }
    hits = {name: getattr(counted, f"{name}_hit_blocks") for name in made}
    found = {
        name: TierFigures(
            kind=kind,
            capacity_bytes=capacity_bytes * plan.np,
            hit_ratio=None if hits[name] is None else ratio(hits[name], counted.prompt_blocks),
        )
        for name, (kind, capacity_bytes) in made.items()
    }
    return TierSet(gpu=found.get("gpu"), cpu=found.get("cpu"), storage=found["storage"])


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


def counted_s(rank: RankResult, window_s: float, plan: Plan) -> float:
    """The span that a rank's operations are counted in: all of a work that ends by itself."""
    return max(window_s, rank.stop_s - plan.ramp_s) if plan.ends_by_itself else window_s


def headroom_of(rank: RankResult, window_s: float) -> float | None:
    """How many times as many operations the rank could have made without the storage.

    In the time that memory tiers left it: what they take is not in the calibration.
    """
    done_per_s = ratio(rank.read_count + rank.write_count + rank.demote_count, window_s)
    if rank.null_ops_per_s is None or not done_per_s:
        return None
    taken = ratio(rank.memory_tiers_s or 0.0, rank.drained_s - rank.start_s) or 0.0
    return rank.null_ops_per_s * max(0.0, 1.0 - taken) / done_per_s


def _harness(record: TrialRecord, counted: Counters, plan: Plan) -> Harness:
    """Of the rank with the least headroom: each counts until it stops, and may outlast others."""
    ranks, window_s = record.ranks, record.window_s
    headrooms = [headroom_of(rank, counted_s(rank, window_s, plan)) for rank in ranks]
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
    """A host's figure; None where no rank of it knows."""
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
