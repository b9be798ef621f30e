"""What a case is going to do, as far as its plan tells: bytes, seconds, hit ratio. Pure.

Imports neither pytest nor MPI. A replay is counted exactly. The dialogues
of synthetic users are rehearsed with a storage that takes no time: what they write and read
within a window is the most that they can ask for, and a slower storage is asked for less.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.cache.buckets import BucketAdmission, BucketEntry, BucketIndex
from pytest_kvcache.cache.index import Beside, Blocked, CacheIndex
from pytest_kvcache.cache.tiers import Tier, TierStack
from pytest_kvcache.phases import PHASES
from pytest_kvcache.traces.operations import OVERWRITE, READ, WRITE
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.reuse import distinct_blocks, hit_curve
from pytest_kvcache.units import format_bytes
from pytest_kvcache.workloads.fixedwork import FixedWork
from pytest_kvcache.workloads.phases import build_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.cache.tiers import TierCounts
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.operations import Operations
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Request, Workload, WorkloadFamily

# Of one rank, rehearsed; others are like them, and the rest of the window like its start.
_MOST_USERS = 500
_MOST_REQUESTS = 4_000
# Of a replay through tiers or into buckets, which is carried out: about 10 s of work.
_MOST_BLOCKS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One trial of a case, all ranks together; None: it is not known before the run.

    ``population_bytes`` are stored before the clock starts; ``written_bytes`` and
    ``read_bytes`` in ramp and window: of a replay exactly those (``exact``), elsewhere the
    most that the users can ask for. ``window_s`` is what ramp and window last; None: as long
    as the storage takes. ``hit_ratio`` is that of this capacity, ``why_no_hit_ratio`` says
    what it depends on where there is none; ``best_hit_ratio`` that of a cache which never
    evicts, and takes ``need_bytes``, of them ``rank_need_bytes`` by the one of the ``ranks`` that
    needs most; all have as much room. ``capacity_bytes`` are the storage's, and ``room_bytes``
    those in which different blocks lie. Where there are memory tiers, the written and read
    bytes are the storage's alone, and ``tier_hit_ratios`` are what each one has of the hit
    ratio, the storage last; empty: there are none, or it can't be told.
    """

    exact: bool
    population_bytes: int
    written_bytes: int | None
    read_bytes: int | None
    window_s: float | None
    hit_ratio: float | None
    why_no_hit_ratio: str
    best_hit_ratio: float | None
    capacity_bytes: int
    room_bytes: int
    need_bytes: int
    ranks: int
    rank_need_bytes: int
    tier_hit_ratios: tuple[tuple[str, float], ...] = ()

    def least_written_bytes(self) -> int:
        """What a trial writes at least: the window of synthetic users may write less."""
        return self.population_bytes + (self.written_bytes or 0 if self.exact else 0)


def forecast(plan: Plan, trace: Trace | None, family: WorkloadFamily) -> Forecast:
    """What one trial does; ``trace`` is the whole one, ``family`` that of the scenario."""
    if trace is not None:
        return _of_replay(plan, trace)
    return _of_dialogues(plan, family)


def describe_forecast(found: Forecast, plan: Plan, trials: int) -> Iterator[str]:
    """Sentences: how much all trials write, and what the cache will hit.

    A search has loads beside them, each of fewer users than the plan's, or of as many.
    """
    if plan.needs_directory:
        yield _writes(found, plan, trials)
    if plan.restarts:  # nothing is asked for
        return
    yield describe_hits(found)
    for tier, room in zip(plan.tiers, plan.tier_blocks, strict=True):
        if room >= plan.need_blocks:
            yield (
                f"the {tier.name} tier holds all that a rank needs, so that the storage is read"
                " seldom, if at all"
            )
            return


def _writes(found: Forecast, plan: Plan, trials: int) -> str:
    before = preconditioned_bytes(plan)
    launches = trials + plan.most_search_steps
    alone = found.population_bytes + before if plan.interference is not None else 0
    least = (found.least_written_bytes() + before + alone) * trials
    most = (found.population_bytes + (found.written_bytes or 0) + before + alone) * launches
    if plan.search_mode is not None:
        return (
            f"writes up to {format_bytes(most)} in all to {plan.cache_dir}: as many users as there"
            f" may be, in each of {launches} launches"
        )
    if found.written_bytes is None:
        amount = f"at least {format_bytes(least)}"
    elif found.exact:
        amount = format_bytes(most)
    else:
        amount = f"about {format_bytes(least)} to {format_bytes(most)}"
    preconditioned = format_bytes(before * trials * plan.launches_per_trial)
    first = f", {preconditioned} of it to precondition" if before else ""
    filled = plan.fill_blocks * plan.stored_bytes * plan.np
    there = min(found.capacity_bytes, max(found.need_bytes + filled, before))
    return (
        f"writes {amount} in all to {plan.cache_dir}{first}, of which at most"
        f" {format_bytes(there)} are there at a time"
    )


def preconditioned_bytes(plan: Plan) -> int:
    """What all ranks write in a trial before they fill the cache: whole blocks of each."""
    return -(-plan.precondition_bytes // plan.stored_bytes) * plan.stored_bytes * plan.np


def describe_hits(found: Forecast) -> str:
    """What the cache hits, in which tier, and what more room would; or why it can't be told.

    The room is per rank, as the options have it; each rank must have what the neediest needs.
    """
    room_bytes = found.room_bytes // found.ranks
    best = ""
    more = None if found.best_hit_ratio == found.hit_ratio else found.best_hit_ratio
    if more is not None and room_bytes < found.rank_need_bytes:
        best = f"; {_per_rank(found.rank_need_bytes, found)} would give {more:.4f}"
    if found.hit_ratio is None:
        return f"hit ratio: can't be told, {found.why_no_hit_ratio}{best}"
    capacity = _per_rank(room_bytes, found)
    about = "" if found.exact else "about "
    parts = ", ".join(f"{name} {ratio:.4f}" for name, ratio in found.tier_hit_ratios)
    parts = f" ({parts})" if parts else ""
    return f"hit ratio {about}{found.hit_ratio:.4f}{parts} with a capacity of {capacity}{best}"


def _per_rank(size_bytes: int, found: Forecast) -> str:
    """Bytes of one rank; of several, with those of all."""
    if found.ranks == 1:
        return format_bytes(size_bytes)
    return f"{format_bytes(size_bytes)} per rank ({format_bytes(size_bytes * found.ranks)} in all)"


# --- replays --------------------------------------------------------------------------------


def _of_replay(plan: Plan, trace: Trace) -> Forecast:
    assert plan.trace is not None
    if trace.operations is not None:
        return _of_operations(plan, trace, trace.operations)
    cycles, block_bytes = plan.trace.cycles, plan.stored_bytes
    parts = [trace.select(indices) for indices in partition(trace, plan.np)]
    capacity = plan.capacity_blocks * plan.np
    needs = [distinct_blocks(part) for part in parts]
    why, window_s = "", plan.duration_s
    if plan.duration_s is not None:
        window_s = plan.ramp_s + plan.duration_s
        served = _served(plan, parts)
        why = "the window may end before the trace does" if served is None else ""
        parts, cycles = (parts, cycles) if served is None else (served, 1)
    elif plan.trace.speedup:
        window_s = _span_s(trace, cycles, plan.trace.speedup)
    phase = PHASES[plan.phase]
    is_long = sum(len(part.block_ids) for part in parts) * cycles > _MOST_BLOCKS
    if (plan.tiers or plan.in_buckets) and phase.stores and is_long:
        where = "tiers" if plan.tiers else "buckets"
        why = why or f"of more than {_MOST_BLOCKS:,} blocks in {where} it is not counted beforehand"
    counted = [] if why else [_counted(plan, part, cycles) for part in parts]
    blocks = sum(each.blocks for each in counted)
    by_tier = [sum(hits) for hits in zip(*(each.hits for each in counted), strict=True)]
    hits, stored = sum(by_tier), sum(each.stored for each in counted)
    best = sum(each.best for each in counted) / blocks if blocks else None
    population = plan.fill_blocks * plan.np
    if not phase.stores:
        population = sum(max(plan.fill_blocks, _populated(plan, part)) for part in parts)
        best = 1.0 if blocks else None
        hits, stored = blocks, 0
        if plan.room_blocks < max(map(distinct_blocks, parts)):
            why = "the cache holds only a part of what is asked for"
    is_known = not why and blocks > 0
    if not why and not blocks:
        why = "the trace has no block ids"
    is_split = is_known and phase.stores and bool(plan.tiers)
    again = plan.reread_factor * sum(each.stored_alone for each in counted)
    reads = 0 if not phase.loads else again + (by_tier[-1] if is_split else hits)
    reads_told = is_known and (is_split or not plan.tiers or not phase.loads)
    reads_told = reads_told and not plan.unlike_parts  # windows and states are read in part
    if plan.in_buckets and phase.loads:
        reads_told = False  # what is in memory when it is asked for, the storage decides
    names = [*(tier.name for tier in plan.tiers), "storage"] if is_split else []
    return Forecast(
        exact=is_known,
        population_bytes=population * block_bytes,
        written_bytes=stored * block_bytes if is_known or not phase.stores else None,
        read_bytes=reads * block_bytes if reads_told else None,
        window_s=window_s,
        hit_ratio=hits / blocks if is_known else None,
        why_no_hit_ratio=why,
        best_hit_ratio=best if is_known else None,
        capacity_bytes=capacity * block_bytes,
        room_bytes=plan.room_blocks * plan.np * block_bytes,
        need_bytes=sum(needs) * block_bytes,
        ranks=plan.np,
        rank_need_bytes=max(needs) * block_bytes,
        tier_hit_ratios=tuple((n, part / blocks) for n, part in zip(names, by_tier, strict=False)),
    )


def _of_operations(plan: Plan, trace: Trace, operations: Operations) -> Forecast:
    """An I/O trace is replayed to the byte, unless the window ends before it does."""
    assert plan.trace is not None
    whole = plan.duration_s is None
    stores = (operations.kind == WRITE) | (operations.kind == OVERWRITE)
    reads = operations.kind == READ
    speedup = plan.trace.speedup
    return Forecast(
        exact=whole,
        population_bytes=int(operations.there_sizes.sum()),
        written_bytes=int(operations.sizes[stores].sum()) if whole else None,
        read_bytes=int(operations.sizes[reads].sum()) if whole else None,
        window_s=plan.duration_s if not whole else _span_s(trace, 1, speedup) if speedup else None,
        hit_ratio=1.0 if reads.any() else None,
        why_no_hit_ratio="" if reads.any() else "the I/O trace has no reads",
        best_hit_ratio=None,
        capacity_bytes=plan.capacity_bytes * plan.np,
        room_bytes=plan.capacity_bytes * plan.np,
        need_bytes=plan.need_blocks * plan.stored_bytes * plan.np,
        ranks=plan.np,
        rank_need_bytes=plan.need_blocks * plan.stored_bytes,
        tier_hit_ratios=(),
    )


def _populated(plan: Plan, part: Trace) -> int:
    """Blocks of one rank that come to its storage before the clock starts."""
    blocks = distinct_blocks(part)
    if plan.tier_policy == "demote":
        blocks = max(0, blocks - sum(plan.tier_blocks))
    return min(plan.capacity_blocks, blocks)


@dataclass(frozen=True, slots=True)
class _Counted:
    """Blocks of one rank's prompts: all, hits by tier, those stored, hits of an endless cache.

    ``hits`` end with the storage's, and ``stored`` are those that came to the storage,
    ``stored_alone`` those that requests wrote there and into no faster tier.
    """

    blocks: int
    hits: tuple[int, ...]
    stored: int
    stored_alone: int
    best: int


def _counted(plan: Plan, part: Trace, cycles: int) -> _Counted:
    """What the cache of one rank does with its part: an exact LRU-prefix one, or one of buckets.

    Heads are always touched after tails, so what is present of a prompt is a leading run:
    all the rest that fits into the cache is stored. Several tiers decide request by request.
    """
    curve, capacity_blocks = hit_curve(part, cycles), plan.capacity_blocks
    best = curve.hit_blocks(curve.distinct_blocks)
    if plan.tiers and PHASES[plan.phase].stores:
        (*before, storage), alone = _replayed(plan, part, cycles)
        by_tier = (*(counts.hit_blocks for counts in before), storage.hit_blocks)
        return _Counted(curve.prompt_blocks, by_tier, storage.stored_blocks, alone, best)
    if plan.in_buckets and PHASES[plan.phase].stores:
        hits, stored = _bucketed(plan, part, cycles)
        return _Counted(curve.prompt_blocks, (hits,), stored, stored, best)
    kept = int(np.minimum(np.diff(part.offsets), capacity_blocks).sum()) * cycles
    hits = curve.hit_blocks(capacity_blocks)
    return _Counted(curve.prompt_blocks, (hits,), kept - hits, kept - hits, best)


def _replayed(plan: Plan, part: Trace, cycles: int) -> tuple[tuple[TierCounts, ...], int]:
    """What each tier of a rank has served and taken when its part is over.

    And how many blocks were written to the storage and into no faster tier.
    """
    rooms = {tier.name: room for tier, room in zip(plan.tiers, plan.tier_blocks, strict=True)}
    tiers = [
        Tier(name=name, capacity_bytes=room, page_bytes=1)  # a block is a byte
        for name, room in (*rooms.items(), ("storage", plan.capacity_blocks))
    ]
    stack = TierStack(tiers, plan.tier_policy, promotes=PHASES[plan.phase].loads)
    alone = 0
    for keys in _prompts(part, cycles):
        admission = stack.admit(keys, len(keys), 1)
        assert not isinstance(admission, Blocked)  # nothing is ever under way
        stack.settle(admission)
        *faster, last = admission.writes
        there = {entry.key for entries in faster for entry in entries}
        alone += sum(entry.key not in there for entry in last)
    return stack.counts, alone


def _bucketed(plan: Plan, part: Trace, cycles: int) -> tuple[int, int]:
    """What a rank that packs blocks into buckets finds of its part, and what it writes."""
    index = BucketIndex(  # a block is a byte
        plan.capacity_blocks, page_bytes=1, block_bytes=1, bucket_blocks=plan.bucket_blocks
    )
    for keys in _prompts(part, cycles):
        admission = index.admit(keys, len(keys), 1)
        assert isinstance(admission, BucketAdmission)  # nothing is ever under way
        for entry in admission.inserts:
            assert isinstance(entry, BucketEntry)
            entry.put()
        index.release(admission)
        for entry in chain.from_iterable(bucket.entries for bucket in admission.sealed):
            index.commit(entry)
    return index.hit_blocks, index.committed_blocks


def _prompts(part: Trace, cycles: int) -> Iterator[list[bytes]]:
    """The keys of its requests, again and again."""
    ids = [block.to_bytes(16, "big", signed=True) for block in part.block_ids.tolist()]
    prompts = [ids[begin:end] for begin, end in pairwise(part.offsets.tolist())]
    return chain.from_iterable(repeat(prompts, cycles))


def _served(plan: Plan, parts: list[Trace]) -> list[Trace] | None:
    """What arrives within ramp and window, in order of arrival; None: the storage decides."""
    assert plan.trace is not None
    assert plan.duration_s is not None
    if not plan.trace.speedup or plan.trace.cycles > 1:
        return None
    end_ns = (plan.ramp_s + plan.duration_s) * 1e9 * plan.trace.speedup
    return [
        part.select(order[: np.searchsorted(arrivals[order], end_ns)])
        for part in parts
        for arrivals in (part.arrival_ns - part.timeline_ns[0],)
        for order in (np.argsort(arrivals, kind="stable"),)
    ]


def _span_s(trace: Trace, cycles: int, speedup: float) -> float:
    origin_ns, cycle_ns = trace.timeline_ns
    last_ns = int(trace.arrival_ns.max(initial=origin_ns)) + (cycles - 1) * cycle_ns
    return (last_ns - origin_ns) / 1e9 / speedup


# --- dialogues of synthetic users -----------------------------------------------------------


def _why_evictions(plan: Plan, stored_blocks: float) -> str:
    """Why what is still used may go, of what one rank stores in all; empty: it does not."""
    if plan.need_blocks > plan.room_blocks:
        return (
            "the working set is larger than the capacity, and what is evicted depends on how"
            " many turns the storage lets the users take"
        )
    bucket = plan.bucket_blocks
    if plan.in_buckets and stored_blocks > plan.room_blocks // bucket * bucket:
        return (
            "all that is stored is more than the capacity, and buckets go whole, with what is"
            " still used of them"
        )
    return ""


def _of_dialogues(plan: Plan, family: WorkloadFamily) -> Forecast:
    users = min(plan.users, _MOST_USERS)
    context = replace(plan.context(0, None), users=users)
    workload = build_workload(
        family,
        context,
        plan.phase,
        plan.reread_factor,
        stores_beside=plan.interference == "with-stores",
    )
    rehearsal = _Rehearsal(plan, workload)
    ranks, block_bytes = plan.np, plan.stored_bytes
    population = rehearsal.populate() * plan.users // users
    if plan.tier_policy == "demote":  # what the tiers keep does not come to the storage
        population = max(0, population - sum(plan.tier_blocks))
    population = max(plan.fill_blocks, min(plan.capacity_blocks, population))
    need = plan.need_blocks
    span_s = None if plan.requests is not None else plan.ramp_s + (plan.duration_s or 0.0)
    if plan.restarts:
        stored = read = 0.0
        span_s = None
    else:
        stored, read = rehearsal.work() if span_s is None else rehearsal.run(span_s)
    # With evictions there are fewer hits: more is written then, and less read. Where nothing is
    # ever hit, as much is written whatever is evicted.
    is_by_users = plan.request_rate is None and plan.requests is None
    scale = _active_users(plan) / users * ranks if is_by_users else ranks
    why = _why_evictions(plan, population + stored * scale / ranks / block_bytes)
    fits = not why or rehearsal.hit_ratio == 0
    at_least_hits = fits or not PHASES[plan.phase].stores
    return Forecast(
        exact=plan.restarts,
        population_bytes=population * block_bytes * ranks,
        written_bytes=int(stored * scale) if at_least_hits else None,
        read_bytes=int(read * scale) if not plan.unlike_parts else None,
        window_s=span_s,
        hit_ratio=rehearsal.hit_ratio if fits else None,
        why_no_hit_ratio="" if fits else why,
        best_hit_ratio=rehearsal.hit_ratio,
        capacity_bytes=plan.capacity_blocks * block_bytes * ranks,
        room_bytes=plan.room_blocks * block_bytes * ranks,
        need_bytes=need * block_bytes * ranks,
        ranks=plan.np,
        rank_need_bytes=plan.need_blocks * plan.stored_bytes,
    )


def _active_users(plan: Plan) -> float:
    """How many users of a rank are active, on average over ramp and window."""
    if not plan.load_steps:
        return plan.users
    in_steps = sum((step.end_ns - step.begin_ns) / 1e9 * step.users for step in plan.load_schedule)
    in_ramp = plan.ramp_s * plan.load_steps[0]
    return (in_ramp + in_steps) / (plan.ramp_s + (plan.duration_s or 0.0))


class _Rehearsal:
    """One rank's requests against an endless cache on a storage that takes no time."""

    def __init__(self, plan: Plan, workload: Workload) -> None:
        self._plan = plan
        self._workload = workload
        self._phase = PHASES[plan.phase]
        self._index = CacheIndex(None, page_bytes=1)  # counts blocks
        self._prompt_blocks = self._hits = 0
        self._stored_bytes = self._read_bytes = 0

    @property
    def hit_ratio(self) -> float | None:
        """The hit ratio of ramp and window, as rehearsed."""
        return self._hits / self._prompt_blocks if self._prompt_blocks else None

    def populate(self) -> int:
        """Blocks that all the users' contexts take."""
        for request in self._workload.population():
            self._serve(request, stores=True)
        return self._index.used_blocks

    def work(self) -> tuple[float, float]:
        """Bytes that are stored, and read, by the plan's number of requests, in its order."""
        wanted = self._plan.requests or 0
        self._stored_bytes = self._read_bytes = 0
        self._prompt_blocks = self._hits = 0
        of_these = wanted * self._workload.users / self._plan.users
        fixed = FixedWork(self._workload, min(_MOST_REQUESTS, max(1, round(of_these))))
        done = 0
        while (request := fixed.next_request(0)) is not None:
            self._serve(request, stores=self._phase.stores)
            done += 1
        reads = self._read_bytes if self._phase.loads else 0
        more = wanted / max(1, done)
        return self._stored_bytes * more, reads * more

    def run(self, span_s: float) -> tuple[float, float]:
        """Bytes that are stored, and read, in so many seconds."""
        self._stored_bytes = self._read_bytes = 0
        self._prompt_blocks = self._hits = 0
        per_s = self._plan.request_rate
        done, reached_s = (
            self._in_a_closed_loop(span_s)
            if per_s is None
            else self._at_a_rate(span_s, per_s / self._plan.np)
        )
        if not done or reached_s <= 0:
            return 0.0, 0.0
        more = max(1.0, span_s / reached_s)
        reads = self._read_bytes if self._phase.loads else 0
        return self._stored_bytes * more, reads * more

    def _in_a_closed_loop(self, span_s: float) -> tuple[int, float]:
        """Requests served, and the time they come to."""
        turns: list[tuple[float, int, Request]] = []
        for user in range(self._workload.users):
            self._push(turns, 0.0, user)
        done, now_s = 0, 0.0
        while turns and done < _MOST_REQUESTS:
            at_s, user, request = heapq.heappop(turns)
            if at_s >= span_s:
                return done, span_s
            now_s = at_s
            self._serve(request, stores=self._phase.stores)
            done += 1
            generated_s = request.output_tokens * self._plan.generation_s_per_token
            self._push(turns, now_s + generated_s, user)
        return done, now_s

    def _push(self, turns: list[tuple[float, int, Request]], free_s: float, user: int) -> None:
        request = self._workload.next_request(user)
        if request is not None:
            heapq.heappush(turns, (free_s + request.think_s, user, request))

    def _at_a_rate(self, span_s: float, per_s: float) -> tuple[int, float]:
        """Every user in its turn, for turns are taken evenly whatever the times are."""
        wanted = min(_MOST_REQUESTS, max(1, round(per_s * span_s)))
        for number in range(wanted):
            request = self._workload.next_request(number % self._workload.users)
            if request is not None:
                self._serve(request, stores=self._phase.stores)
        return wanted, wanted / per_s

    def _serve(self, request: Request, *, stores: bool) -> None:
        keys, prompt_blocks = request.keys, request.prompt_blocks
        beside = Beside(request.beside, 1, request.stores_beside) if request.beside else None
        admission = (
            self._index.admit(keys, prompt_blocks, 1, beside)
            if stores
            else self._index.look_up(keys, prompt_blocks, beside)
        )
        assert not isinstance(admission, Blocked)  # nothing is ever under way
        for entry in admission.inserts:
            self._index.commit(entry)
        self._index.release(admission)
        self._prompt_blocks += prompt_blocks
        self._hits += len(admission.hits)
        self._stored_bytes += self._bytes_of(request, admission.inserts)
        self._read_bytes += self._bytes_of(request, (*admission.hits, *admission.beside_hits))
        if request.rereads:
            own = set(keys)
            again = [entry for entry in admission.inserts if entry.key in own]
            self._read_bytes += request.rereads * self._bytes_of(request, again)

    def _bytes_of(self, request: Request, entries: Sequence[BlockEntry]) -> int:
        """What these blocks of a request take on the storage."""
        if request.sizes is None and request.beside_sizes is None:
            return len(entries) * self._plan.stored_bytes
        usual, page = self._plan.block_bytes, self._plan.page_bytes
        sizes = dict(zip(request.beside, request.beside_sizes or repeat(usual), strict=False))
        sizes |= zip(request.keys, request.sizes or repeat(usual), strict=False)
        return sum(-(-sizes[entry.key] // page) * page for entry in entries)
