"""What a trace needs of a cache: hits by capacity, behind memory, and for ranks of their own.

Controller side; imports neither pytest nor MPI. Values, of which ``report/datasize.py``
makes text and JSON. All of it follows from the trace alone, and counts as a replay does:
requests in the order of their recorded arrivals, or of the file where a replay goes as
fast as the storage allows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.phases import PHASES
from pytest_kvcache.traces.behind import TwoTierCounts, behind_write_through, count_demoted
from pytest_kvcache.traces.optimum import optimal_hits
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.reuse import HitCurve, find_reuses, hit_curve
from pytest_kvcache.units import ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.traces.reuse import IntArray, Reuses

_ALL_PERCENT = 100
SHARES_PERCENT = (50, 80, 90, 95, 99, _ALL_PERCENT)  # of what an infinite cache would hit
RANKS = (1, 2, 4, 8, 16, 32, 64)
_EVERY = 4  # points of a picture have an optimum
_MANY_CYCLES = 1_000_000  # with more of them, no digit that is printed changes any more


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One capacity of a cache, and what it hits.

    ``of_reachable_percent`` is the share of an infinite cache's hits that this is the least
    capacity for, None for a capacity that was asked for. ``optimal_hit_ratio`` is the most
    that any cache of this size can hit, None where it is not calculated (several cycles).
    """

    of_reachable_percent: int | None
    capacity_blocks: int
    capacity_bytes: int
    hit_ratio: float | None
    token_hit_ratio: float | None
    optimal_hit_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BehindPoint:
    """One capacity of the storage behind a memory tier; ratios are of all prompts' blocks.

    ``of_reachable_percent`` is of the hits that memory leaves to an infinite storage, None
    where the capacity is another one; ``is_own``: it is the plan's. ``stored_bytes`` came to
    the storage.
    """

    of_reachable_percent: int | None
    is_own: bool
    capacity_blocks: int
    capacity_bytes: int
    memory_hit_ratio: float | None
    storage_hit_ratio: float | None
    stored_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What one memory tier leaves to the storage."""

    memory_name: str
    memory_blocks: int
    memory_bytes: int
    policy: str
    points: tuple[BehindPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPart:
    """The trace divided among ranks, each with a cache of its own.

    ``hit_ratios`` are by capacity, in the order of the curve's points: what all ranks hit
    if they have that capacity together, the same each. ``largest_blocks`` is the most that
    a rank would store if nothing were evicted, ``all_blocks`` the sum.
    """

    ranks: int
    largest_blocks: int
    all_blocks: int
    hit_ratios: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPoint:
    """Hit ratios at one capacity; ``optimal_hit_ratio`` None: not calculated."""

    capacity_blocks: int
    hit_ratio: float
    optimal_hit_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSizes:
    """All of it. ``stored_blocks`` come to a storage of the plan's capacity without tiers.

    ``fill_s``: how long recorded times, at the plan's speed, take until as many different
    blocks were asked for as the storage holds; None: they never are, or times play no part.
    """

    requests: int
    prompt_blocks: int
    distinct_blocks: int
    cycles: int
    stored_blocks: int
    fill_s: float | None
    curve: tuple[CurvePoint, ...]
    plot: tuple[PlotPoint, ...]
    behind: Behind | None
    why_not_behind: str
    parts: tuple[RankPart, ...]

    @property
    def reachable_hit_ratio(self) -> float | None:
        """What an infinite cache hits."""
        return self.whole.hit_ratio

    @property
    def whole(self) -> CurvePoint:
        """The least capacity that hits as an infinite cache does."""
        return next(point for point in self.curve if point.of_reachable_percent == _ALL_PERCENT)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return {**asdict(self), "reachable_hit_ratio": self.reachable_hit_ratio}


def sizes_of(trace: Trace, plan: Plan, plot_columns: int) -> TraceSizes:
    """Return what the trace of a plan of one rank needs, which has one."""
    assert plan.trace is not None
    cycles = plan.trace.cycles
    order = _order(trace, plan.trace.speedup)
    reuses = find_reuses(trace, order)
    curve = reuses.curve() if cycles == 1 else hit_curve(trace, min(cycles, _MANY_CYCLES), order)
    points = tuple(_curve_points(curve, reuses, plan))
    behind, why_not = _behind(reuses, plan)
    return TraceSizes(
        requests=len(trace) * cycles,
        prompt_blocks=len(trace.block_ids) * cycles,
        distinct_blocks=curve.distinct_blocks,
        cycles=cycles,
        stored_blocks=_stored(trace, curve, plan.capacity_blocks, cycles),
        fill_s=_fill_s(trace, reuses, plan),
        curve=points,
        plot=tuple(_plot_points(curve, reuses, plot_columns, cycles)),
        behind=behind,
        why_not_behind=why_not,
        parts=tuple(_parts(trace, order, points, cycles)),
    )


def _order(trace: Trace, speedup: float) -> IntArray:
    """The order in which a replay decides."""
    return np.argsort(trace.arrival_ns, kind="stable") if speedup > 0 else np.arange(len(trace))


def _stored(trace: Trace, curve: HitCurve, capacity_blocks: int, cycles: int) -> int:
    """All that fits of what is no hit: what is present of a prompt is a leading run."""
    kept = int(np.minimum(np.diff(trace.offsets), capacity_blocks).sum()) * cycles
    return kept - curve.hit_blocks(capacity_blocks)


def _fill_s(trace: Trace, reuses: Reuses, plan: Plan) -> float | None:
    assert plan.trace is not None
    if not plan.trace.speedup or not plan.trace.span_s:
        return None  # nobody recorded when
    new = reuses.lengths.copy()
    np.subtract.at(new, reuses.turn, reuses.blocks)
    turn = int(np.searchsorted(np.cumsum(new), plan.capacity_blocks, side="left"))
    if turn >= len(new):
        return None
    arrival_ns = int(trace.arrival_ns[reuses.requests[turn]]) - trace.timeline_ns[0]
    return arrival_ns / 1e9 / plan.trace.speedup


# --- the curve ------------------------------------------------------------------------------


def _curve_points(curve: HitCurve, reuses: Reuses, plan: Plan) -> list[CurvePoint]:
    """The listed shares; the plan's own capacity where the storage is the only tier."""
    wanted = [(percent, curve.capacity_for_share(percent)) for percent in SHARES_PERCENT]
    assert plan.trace is not None
    own = [] if plan.tiers else [(None, plan.capacity_blocks)]
    rows = sorted([*wanted, *own], key=lambda row: (row[1], row[0] or _ALL_PERCENT + 1))
    return [
        CurvePoint(
            of_reachable_percent=percent,
            capacity_blocks=blocks,
            capacity_bytes=blocks * plan.stored_bytes,
            hit_ratio=ratio(curve.hit_blocks(blocks), curve.prompt_blocks),
            token_hit_ratio=ratio(curve.hit_tokens(blocks), curve.input_tokens),
            optimal_hit_ratio=_optimum(reuses, blocks, plan.trace.cycles),
        )
        for percent, blocks in rows
    ]


def _optimum(reuses: Reuses, capacity_blocks: int, cycles: int) -> float | None:
    if cycles > 1:
        return None
    return ratio(optimal_hits(reuses, capacity_blocks), int(reuses.lengths.sum()))


def _plot_points(curve: HitCurve, reuses: Reuses, columns: int, cycles: int) -> list[PlotPoint]:
    """Capacities evenly from the first column's to the one that reaches all."""
    most = curve.capacity_for_share(_ALL_PERCENT)
    capacities = sorted({-(-most * column // columns) for column in range(1, columns + 1)})
    return [
        PlotPoint(
            capacity_blocks=blocks,
            hit_ratio=curve.hit_ratio(blocks),
            optimal_hit_ratio=None if number % _EVERY else _optimum(reuses, blocks, cycles),
        )
        for number, blocks in enumerate(capacities)
        if blocks
    ]


# --- behind memory --------------------------------------------------------------------------


def _behind(reuses: Reuses, plan: Plan) -> tuple[Behind | None, str]:
    """What the storage has left; or why that is not calculated, empty without tiers."""
    assert plan.trace is not None
    if not plan.tiers:
        return None, ""
    if len(plan.tiers) > 1:
        return None, "behind two memory tiers only your own capacity is counted"
    if plan.trace.cycles > 1:
        return None, "for several cycles only your own capacity is counted behind memory"
    if not PHASES[plan.phase].is_whole:
        return None, f"with --kv-phase={plan.phase} only your own capacity is counted behind memory"
    (tier,), (memory_blocks,) = plan.tiers, plan.tier_blocks
    count = _through if plan.tier_policy == "write-through" else _demoted
    behind = Behind(
        memory_name=tier.name,
        memory_blocks=memory_blocks,
        memory_bytes=tier.capacity_bytes,
        policy=plan.tier_policy,
        points=tuple(count(reuses, memory_blocks, plan)),
    )
    return behind, ""


def _through(reuses: Reuses, memory_blocks: int, plan: Plan) -> list[BehindPoint]:
    behind = behind_write_through(reuses, memory_blocks)
    curve = behind.rest.curve()
    rows: list[tuple[int | None, int]] = [
        (percent, max(1, curve.capacity_for_share(percent))) for percent in SHARES_PERCENT
    ]
    rows.append((None, plan.capacity_blocks))
    rows.sort(key=lambda row: (row[1], row[0] or _ALL_PERCENT + 1))
    return [_point(percent, n, behind.counts(n), reuses, plan) for percent, n in rows]


def _demoted(reuses: Reuses, memory_blocks: int, plan: Plan) -> list[BehindPoint]:
    """No curve: the capacities that a cache without memory would need, and the plan's own."""
    curve = reuses.curve()
    listed = {max(1, curve.capacity_for_share(percent)) for percent in SHARES_PERCENT}
    return [
        _point(
            None, n, count_demoted(reuses.trace, memory_blocks, n, reuses.requests), reuses, plan
        )
        for n in sorted(listed | {plan.capacity_blocks})
    ]


def _point(
    percent: int | None, blocks: int, counts: TwoTierCounts, reuses: Reuses, plan: Plan
) -> BehindPoint:
    prompt_blocks = int(reuses.lengths.sum())
    return BehindPoint(
        of_reachable_percent=percent,
        is_own=blocks == plan.capacity_blocks,
        capacity_blocks=blocks,
        capacity_bytes=blocks * plan.stored_bytes,
        memory_hit_ratio=ratio(counts.memory_blocks, prompt_blocks),
        storage_hit_ratio=ratio(counts.storage_blocks, prompt_blocks),
        stored_bytes=counts.stored_blocks * plan.stored_bytes,
    )


# --- ranks ----------------------------------------------------------------------------------


def _parts(
    trace: Trace, order: IntArray, points: Sequence[CurvePoint], cycles: int
) -> list[RankPart]:
    """Every number of ranks that the trace has conversations for."""
    place = np.empty(len(trace), dtype=np.int64)
    place[order] = np.arange(len(trace))
    found = []
    for ranks in RANKS:
        shards = partition(trace, ranks)
        if not all(map(len, shards)):
            break
        curves = [
            hit_curve(trace, min(cycles, _MANY_CYCLES), shard[np.argsort(place[shard])])
            for shard in shards
        ]
        found.append(_part(curves, [point.capacity_blocks for point in points]))
    return found


def _part(curves: Sequence[HitCurve], capacities: Sequence[int]) -> RankPart:
    blocks = sum(curve.prompt_blocks for curve in curves)
    needs = [curve.distinct_blocks for curve in curves]
    hits = [
        sum(curve.hit_blocks(capacity // len(curves)) for curve in curves)
        for capacity in capacities
    ]
    return RankPart(
        ranks=len(curves),
        largest_blocks=max(needs),
        all_blocks=sum(needs),
        hit_ratios=tuple(ratio(each, blocks) for each in hits),
    )
