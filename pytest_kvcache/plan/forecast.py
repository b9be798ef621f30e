"""What a case is going to do, as far as its plan tells: bytes, seconds, hit ratio. Pure.

Imports neither pytest nor MPI. A replay is counted exactly. The dialogues
of synthetic users are rehearsed with a storage that takes no time: what they write and read
within a window is the most that they can ask for, and a slower storage is asked for less.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.cache.index import Blocked, CacheIndex
from pytest_kvcache.phases import PHASES
from pytest_kvcache.traces.partition import deal
from pytest_kvcache.traces.reuse import hit_curve
from pytest_kvcache.units import format_bytes
from pytest_kvcache.workloads.phases import build_workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Request, Workload, WorkloadFamily

# Of one rank, rehearsed; others are like them, and the rest of the window like its start.
_MOST_USERS = 500
_MOST_REQUESTS = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One trial of a case, all ranks together; None: it can't be told before the run.

    ``population_bytes`` are stored before the clock starts; ``written_bytes`` and
    ``read_bytes`` in ramp and window: of a replay exactly those (``exact``), elsewhere the
    most that the users can ask for. ``window_s`` is what ramp and window last; None: as long
    as the storage takes. ``hit_ratio`` is that of this capacity, ``why_no_hit_ratio`` says
    what it depends on where there is none; ``best_hit_ratio`` that of a cache which never
    evicts, and takes ``need_bytes``.
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
    need_bytes: int

    def least_written_bytes(self) -> int:
        """What a trial writes at least: the window of synthetic users may write less."""
        return self.population_bytes + (self.written_bytes or 0 if self.exact else 0)


def forecast(plan: Plan, trace: Trace | None, family: WorkloadFamily) -> Forecast:
    """What one trial does; ``trace`` is the whole one, ``family`` that of the scenario."""
    if trace is not None:
        return _of_replay(plan, trace)
    return _of_dialogues(plan, family)


def describe_forecast(found: Forecast, plan: Plan, trials: int) -> Iterator[str]:
    """Sentences: how much all trials write, and what the cache will hit."""
    if plan.needs_directory:
        yield _writes(found, plan, trials)
    yield _hits(found)


def _writes(found: Forecast, plan: Plan, trials: int) -> str:
    least = found.least_written_bytes() * trials
    most = (found.population_bytes + (found.written_bytes or 0)) * trials
    if found.written_bytes is None:
        amount = f"at least {format_bytes(least)}"
    elif found.exact:
        amount = format_bytes(most)
    else:
        amount = f"about {format_bytes(least)} to {format_bytes(most)}"
    return (
        f"writes {amount} in all to {plan.cache_dir}, of which at most"
        f" {format_bytes(min(found.capacity_bytes, found.need_bytes))} are there at a time"
    )


def _hits(found: Forecast) -> str:
    capacity, need = format_bytes(found.capacity_bytes), format_bytes(found.need_bytes)
    best = ""
    if found.best_hit_ratio is not None and found.capacity_bytes < found.need_bytes:
        best = f"; {need} would give {found.best_hit_ratio:.4f}"
    if found.hit_ratio is None:
        return f"hit ratio: can't be told, {found.why_no_hit_ratio}{best}"
    about = "" if found.exact else "about "
    return f"hit ratio {about}{found.hit_ratio:.4f} with a capacity of {capacity}{best}"


# --- replays --------------------------------------------------------------------------------


def _of_replay(plan: Plan, trace: Trace) -> Forecast:
    assert plan.trace is not None
    cycles, block_bytes = plan.trace.cycles, plan.stored_bytes
    parts = [trace.select(indices) for indices in deal(trace, plan.np)]
    capacity = plan.capacity_blocks * plan.np
    need = sum(len(np.unique(part.block_ids)) for part in parts)
    why, window_s = "", plan.duration_s
    if plan.duration_s is not None:
        window_s = plan.ramp_s + plan.duration_s
        served = _served(plan, parts)
        why = "the window may end before the trace does" if served is None else ""
        parts, cycles = (parts, cycles) if served is None else (served, 1)
    elif plan.trace.speedup:
        window_s = _span_s(trace, cycles, plan.trace.speedup)
    counted = [_counted(part, plan.capacity_blocks, cycles) for part in parts]
    blocks = sum(each.blocks for each in counted)
    hits, stored = (sum(getattr(each, name) for each in counted) for name in ("hits", "stored"))
    best = sum(each.best for each in counted) / blocks if blocks else None
    population = 0
    phase = PHASES[plan.phase]
    if not phase.stores:
        population = sum(min(plan.capacity_blocks, len(np.unique(p.block_ids))) for p in parts)
        best = 1.0 if blocks else None
        hits, stored = blocks, 0
        if plan.capacity_blocks < max(len(np.unique(part.block_ids)) for part in parts):
            why = "the cache holds only a part of what is asked for"
    told = not why and blocks > 0
    if not blocks:
        why = "the trace has no block ids"
    reads = hits if phase.loads else 0
    return Forecast(
        exact=told,
        population_bytes=population * block_bytes,
        written_bytes=stored * block_bytes if told or not phase.stores else None,
        read_bytes=reads * block_bytes if told else None,
        window_s=window_s,
        hit_ratio=hits / blocks if told else None,
        why_no_hit_ratio=why,
        best_hit_ratio=best if told else None,
        capacity_bytes=capacity * block_bytes,
        need_bytes=need * block_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """Blocks of one rank's prompts: all, hits, those stored, hits of an endless cache."""

    blocks: int
    hits: int
    stored: int
    best: int


def _counted(part: Trace, capacity_blocks: int, cycles: int) -> _Counted:
    """What an exact LRU-prefix cache of one rank does with its part.

    Heads are always touched after tails, so what is present of a prompt is a leading run:
    all the rest that fits into the cache is stored.
    """
    curve = hit_curve(part, cycles)
    kept = int(np.minimum(np.diff(part.offsets), capacity_blocks).sum()) * cycles
    hits = curve.hit_blocks(capacity_blocks)
    return _Counted(
        blocks=curve.prompt_blocks,
        hits=hits,
        stored=kept - hits,
        best=curve.hit_blocks(curve.distinct_blocks),
    )


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


def _of_dialogues(plan: Plan, family: WorkloadFamily) -> Forecast:
    users = min(plan.users, _MOST_USERS)
    context = replace(plan.context(0, None), users=users)
    workload = build_workload(family, context, plan.phase)
    rehearsal = _Rehearsal(plan, workload)
    ranks, block_bytes = plan.np, plan.stored_bytes
    population = min(plan.capacity_blocks, rehearsal.populate() * plan.users // users)
    need = plan.need_blocks
    span_s = plan.ramp_s + (plan.duration_s or 0.0)
    stored, read = rehearsal.run(span_s)
    fits = need <= plan.capacity_blocks
    # With evictions there are fewer hits: more is written then, and less read.
    at_least_hits = fits or not PHASES[plan.phase].stores
    scale = plan.users / users * ranks if plan.request_rate is None else ranks
    return Forecast(
        exact=False,
        population_bytes=population * block_bytes * ranks,
        written_bytes=int(stored * scale) * block_bytes if at_least_hits else None,
        read_bytes=int(read * scale) * block_bytes,
        window_s=span_s,
        hit_ratio=rehearsal.hit_ratio if fits else None,
        why_no_hit_ratio=""
        if fits
        else "the working set is larger than the capacity, and what is evicted depends on how"
        " many turns the storage lets the users take",
        best_hit_ratio=rehearsal.hit_ratio,
        capacity_bytes=plan.capacity_blocks * block_bytes * ranks,
        need_bytes=need * block_bytes * ranks,
    )


class _Rehearsal:
    """One rank's requests against an endless cache on a storage that takes no time."""

    def __init__(self, plan: Plan, workload: Workload) -> None:
        self._plan = plan
        self._workload = workload
        self._phase = PHASES[plan.phase]
        self._index = CacheIndex(None, page_bytes=1)  # counts blocks
        self._prompt_blocks = self._hits = 0

    @property
    def hit_ratio(self) -> float | None:
        """Of ramp and window, as rehearsed."""
        return self._hits / self._prompt_blocks if self._prompt_blocks else None

    def populate(self) -> int:
        """Blocks that all the users' contexts take."""
        for request in self._workload.population():
            self._serve(request, stores=True)
        return self._index.used_blocks

    def run(self, span_s: float) -> tuple[float, float]:
        """Blocks that are stored, and read, in so many seconds."""
        before = self._index.used_blocks
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
        reads = self._hits if self._phase.loads else 0
        return (self._index.used_blocks - before) * more, reads * more

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
        """Every user in its turn, for turns are dealt evenly whatever the times are."""
        wanted = min(_MOST_REQUESTS, max(1, round(per_s * span_s)))
        for number in range(wanted):
            request = self._workload.next_request(number % self._workload.users)
            if request is not None:
                self._serve(request, stores=self._phase.stores)
        return wanted, wanted / per_s

    def _serve(self, request: Request, *, stores: bool) -> None:
        asked = request.keys, request.prompt_blocks
        admission = self._index.admit(*asked, 1) if stores else self._index.look_up(*asked)
        assert not isinstance(admission, Blocked)  # nothing is ever under way
        for slot in admission.inserts:
            self._index.commit(slot)
        self._index.release(admission)
        self._prompt_blocks += request.prompt_blocks
        self._hits += len(admission.hits)
