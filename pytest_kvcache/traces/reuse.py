"""What a trace's prompts share: hits at infinite cache, and at every LRU capacity.

Pure functions of a trace's columns; imports numpy and nothing of this package at run
time.

LRU is a stack algorithm (Mattson et al., Evaluation techniques for storage
hierarchies, IBM Systems Journal 9(2), 1970): whatever the capacity C, the cache holds
the C keys on top of one stack ordered by last use. So a block's depth in that stack at
the request's arrival says at which capacities it is present, and a request's hits at C
are the blocks before the first one at depth C or below. A request touches its blocks
last one first, so its own first C blocks end up on top: cutting a request that is
longer than the cache is the same rule, not another one.

Blocks that one request touched lie together in the stack, head on top, until another
touches some of them. So a prompt is made of a few runs, each of blocks that the same
request touched last, at consecutive depths; a request costs a few numbers for each run,
not for each block.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pytest_kvcache.traces.read import Trace

    IntArray = npt.NDArray[np.int64]
    Ids = npt.NDArray[np.int32]
    Interval = list[int]  # of places: begin, end

PLACE_BITS = 32
PLACE_MASK = (1 << PLACE_BITS) - 1
_BEYOND = 1 << 62  # deeper than any stack
NEVER = -2  # no stamp, and not just below one
_SPARSE = 4  # ids that leave more gaps than this are numbered anew


def distinct_blocks(trace: Trace) -> int:
    """Return how many different blocks these requests have."""
    ids, span = numbered(trace)
    seen = np.zeros(span, dtype=bool)
    seen[ids] = True
    return int(np.count_nonzero(seen))


def infinite_hits(trace: Trace, indices: IntArray | None = None) -> int:
    """Return the prefix-hit blocks of these requests if nothing is ever evicted.

    ``indices`` are ascending request indices, None for all. A request never hits on
    itself.
    """
    ids, span = numbered(trace)
    seen = np.zeros(span, dtype=bool)
    hits = 0
    for _, begin, end in prompts(trace, indices):
        path = ids[begin:end]
        there = seen[path]
        run = int(there.argmin())
        hits += len(path) if there[run] else run
        seen[path] = True
    return hits


def numbered(trace: Trace) -> tuple[Ids, int]:
    """Return ids to index arrays by, and how long these must be; the trace's own where small."""
    ids = trace.block_ids
    span = int(ids.max(initial=-1)) + 1
    if span <= _SPARSE * len(ids) + 1:
        return ids, span
    names, numbers = np.unique(ids, return_inverse=True)
    return numbers.astype(np.int32, copy=False), len(names)


def prompts(trace: Trace, indices: IntArray | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield (request, begin, end) of those that have blocks, in the order of ``indices``."""
    begins, ends = trace.offsets[:-1], trace.offsets[1:]
    chosen = np.flatnonzero(ends > begins) if indices is None else indices
    for request in chosen.tolist():
        begin, end = int(begins[request]), int(ends[request])
        if begin < end:
            yield request, begin, end


# --- runs of blocks -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reuses:
    """Every run of blocks that a request asks for again and one earlier request touched last.

    int64 columns of equal length, in the order of the requests and of their prompts:
    ``turn`` counts the requests as they were served, ``last`` is the turn of the touch
    before, ``place`` that of the run's first block in its prompt, ``blocks`` how many,
    ``depth`` where the first one lies in the LRU stack at the arrival (0 is the top; the
    others follow one by one), ``floor`` how deep the deepest block before it in the
    prompt lies (-1: there is none; enormous: one of them was never touched, so that
    nothing here is a prefix hit). ``requests``, ``lengths`` and ``skipped`` are by turn:
    the index in the trace, its blocks, and how many leading ones do not come here.
    ``distinct`` is what the stack holds in the end.
    """

    trace: Trace
    requests: IntArray
    lengths: IntArray
    skipped: IntArray
    distinct: int
    turn: IntArray
    last: IntArray
    place: IntArray
    blocks: IntArray
    depth: IntArray
    floor: IntArray

    def hits_by_turn(self, capacity_blocks: int) -> IntArray:
        """Return how many prefix hits each request has in a cache of that many blocks."""
        hits = np.where(
            self.floor < capacity_blocks, np.clip(capacity_blocks - self.depth, 0, self.blocks), 0
        )
        return _sums(self.turn, hits, len(self.requests))

    def stored_blocks(self, capacity_blocks: int) -> int:
        """Return how many blocks such a cache stores: of what fits, what it does not have."""
        place = self.place - self.skipped[self.turn]
        there = np.clip(capacity_blocks - np.maximum(self.depth, place), 0, self.blocks)
        kept = np.minimum(self.lengths - self.skipped, capacity_blocks)
        return int(kept.sum() - there.sum())

    def curve(self) -> HitCurve:
        """Return the hits of every capacity."""
        trace = self.trace
        whole = trace.input_tokens[self.requests] // trace.block_tokens
        rest = trace.input_tokens[self.requests] - whole * trace.block_tokens
        full, part = whole[self.turn] - self.place, rest[self.turn]
        blocks_at = self._by_depth(self.blocks)
        tokens_at = self._by_depth(np.clip(full, 0, self.blocks)) * trace.block_tokens
        cut = (full >= 0) & (full < self.blocks) & (part > 0)
        deepest = np.maximum(self.depth + full, self.floor)
        cut &= deepest < self.distinct
        np.add.at(tokens_at, deepest[cut] + 1, part[cut])
        return HitCurve(
            prompt_blocks=int(self.lengths.sum()),
            input_tokens=int(trace.input_tokens[self.requests].sum()),
            blocks_at=np.cumsum(blocks_at),
            tokens_at=np.cumsum(tokens_at),
        )

    def _by_depth(self, blocks: IntArray) -> IntArray:
        """Count by the capacity from which on they hit: the first ``blocks`` of each run."""
        chosen = (blocks > 0) & (self.floor < self.distinct)
        depth, floor, blocks = self.depth[chosen], self.floor[chosen], blocks[chosen]
        covered = np.clip(floor - depth + 1, 0, blocks)  # a block before them is deeper
        steps = np.zeros(self.distinct + 2, dtype=np.int64)
        np.add.at(steps, depth + covered + 1, 1)
        np.add.at(steps, depth + blocks + 1, -1)
        found: IntArray = np.cumsum(steps)[:-1]
        np.add.at(found, floor[covered > 0] + 1, covered[covered > 0])
        return found


def _sums(groups: IntArray, amounts: IntArray, count: int) -> IntArray:
    sums = np.zeros(count, dtype=np.int64)
    np.add.at(sums, groups, amounts)
    return sums


def find_reuses(
    trace: Trace, indices: IntArray | None = None, skipped: IntArray | None = None
) -> Reuses:
    """Return what an LRU stack sees of these requests, in this order; None: all of them.

    ``skipped``, by turn, are leading blocks that another cache serves: they do not come
    here. One pass: O(accesses) of numpy, and O(log requests) for each run.
    """
    chosen = np.arange(len(trace)) if indices is None else np.asarray(indices, dtype=np.int64)
    lengths = np.diff(trace.offsets)[chosen]
    before = np.zeros_like(chosen) if skipped is None else skipped
    ids, span = numbered(trace)
    stack = _Stack(len(chosen), span)
    for turn in np.flatnonzero(lengths > before).tolist():
        begin, end = trace.offsets[chosen[turn]], trace.offsets[chosen[turn] + 1]
        stack.serve(turn, ids[begin + before[turn] : end], int(before[turn]))
    return Reuses(
        trace=trace,
        requests=chosen,
        lengths=lengths,
        skipped=before,
        distinct=stack.live_blocks,
        **stack.columns(),
    )


@dataclass(slots=True)
class _Rows:
    """The columns of `Reuses`, growing."""

    turn: array[int]
    last: array[int]
    place: array[int]
    blocks: array[int]
    depth: array[int]
    floor: array[int]


class _Stack:
    """An LRU stack of blocks, kept as runs: what of each turn's touches is the latest."""

    def __init__(self, turns: int, span: int) -> None:
        self.live_blocks = 0
        self._stamps = np.full(span, NEVER, dtype=np.int64)  # of each block: turn and place
        self._places = np.arange(1024, dtype=np.int64)
        self._live: dict[int, list[Interval]] = {}
        self._sums = _Sums(turns)
        self._rows = _Rows(*(array("q") for _ in range(6)))

    def columns(self) -> dict[str, IntArray]:
        """Return what was found, by the names of `Reuses`."""
        found = {field.name: getattr(self._rows, field.name) for field in fields(_Rows)}
        return {name: np.array(column, dtype=np.int64) for name, column in found.items()}

    def serve(self, turn: int, path: Ids, skipped: int) -> None:
        """Note where the blocks lie, then touch them, last one first."""
        stamps = self._stamps[path]
        known = stamps >= 0
        count = int(np.count_nonzero(known))
        if count:
            run = count if known[:count].all() else int(known.argmin())
            leading = stamps if run < count else stamps[:count]
            found = [*runs_of(leading)]
            self._note(turn, found, skipped, run)
            for last, place, begin, end in found:
                cut(self._live, last, place, place + end - begin)
                self._sums.add(last, begin - end)
        length = len(path)
        if skipped + length > len(self._places):
            self._places = np.arange(2 * (skipped + length), dtype=np.int64)
        self._stamps[path] = self._places[skipped : skipped + length] + (turn << PLACE_BITS)
        self._live[turn] = [[skipped, skipped + length]]
        self._sums.add(turn, length)
        self.live_blocks += length - count

    def _note(
        self, turn: int, found: list[tuple[int, int, int, int]], skipped: int, run: int
    ) -> None:
        rows, floor = self._rows, -1
        for last, place, begin, end in found:
            depth = self._sums.after(last)
            for low, high in self._live[last]:
                if low >= place:
                    break
                depth += min(high, place) - low
            rows.turn.append(turn)
            rows.last.append(last)
            rows.place.append(skipped + begin)
            rows.blocks.append(end - begin)
            rows.depth.append(depth)
            rows.floor.append(floor if begin < run else _BEYOND)
            floor = max(floor, depth + end - begin - 1)


def runs_of(stamps: IntArray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (turn, place, begin, end) of runs with consecutive stamps; `NEVER` has none."""
    steps = np.diff(stamps)
    cuts = (np.flatnonzero((steps != 1) & ((steps != 0) | (stamps[1:] != NEVER))) + 1).tolist()
    begin = 0
    for end in (*cuts, len(stamps)):
        stamp = int(stamps[begin])
        if stamp >= 0:
            yield stamp >> PLACE_BITS, stamp & PLACE_MASK, begin, end
        begin = end


def cut(live: dict[int, list[Interval]], key: int, begin: int, end: int) -> None:
    """Take places from the intervals of ``key``, all of one of them, or a piece."""
    intervals = live[key]
    number = 0
    if len(intervals) > 1:
        number = bisect_right(intervals, begin, key=lambda interval: interval[0]) - 1
    low, high = intervals[number]
    left = [[low, begin]] if low < begin else []
    right = [[end, high]] if end < high else []
    intervals[number : number + 1] = left + right
    if not intervals:
        del live[key]


class _Sums:
    """Numbers by index, and their sums (Fenwick, Software: Practice and Experience 24(3), 1994)."""

    def __init__(self, count: int) -> None:
        self._tree = [0] * (count + 1)
        self._total = 0

    def add(self, index: int, amount: int) -> None:
        tree, size = self._tree, len(self._tree)
        self._total += amount
        index += 1
        while index < size:
            tree[index] += amount
            index += index & -index

    def after(self, index: int) -> int:
        """Return the sum of all beyond ``index``."""
        tree, total = self._tree, self._total
        index += 1
        while index:
            total -= tree[index]
            index &= index - 1
        return total


# --- curves ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HitCurve:
    """Exact LRU-prefix hits of a whole trace, served in file order, for every capacity.

    ``blocks_at`` and ``tokens_at``: int64[distinct_blocks + 1], hits by capacity in
    blocks; beyond that capacity they are those of an infinite cache. ``prompt_blocks``
    and ``input_tokens`` are what they are out of.
    """

    prompt_blocks: int
    input_tokens: int
    blocks_at: IntArray
    tokens_at: IntArray

    @property
    def distinct_blocks(self) -> int:
        """Blocks that an infinite cache would hold at the end."""
        return len(self.blocks_at) - 1

    def hit_blocks(self, capacity_blocks: int) -> int:
        """Return the hit blocks of a cache of that many blocks."""
        return int(self.blocks_at[self._index(capacity_blocks)])

    def hit_tokens(self, capacity_blocks: int) -> int:
        """Return the tokens of the hit blocks; a partial last block counts its true ones."""
        return int(self.tokens_at[self._index(capacity_blocks)])

    def hit_ratio(self, capacity_blocks: int) -> float:
        """Return hit blocks / prompt blocks; 0 for a trace without blocks."""
        return self.hit_blocks(capacity_blocks) / max(1, self.prompt_blocks)

    def hit_token_ratio(self, capacity_blocks: int) -> float:
        """Return hit tokens / input tokens; 0 for a trace without requests."""
        return self.hit_tokens(capacity_blocks) / max(1, self.input_tokens)

    def capacity_for(self, ratio: float) -> int | None:
        """Return the fewest blocks whose hit ratio is at least ``ratio``; None if none are."""
        ratios = self.blocks_at / max(1, self.prompt_blocks)
        capacity_blocks = int(np.searchsorted(ratios, ratio, side="left"))
        return capacity_blocks if capacity_blocks <= self.distinct_blocks else None

    def capacity_for_share(self, percent: int) -> int:
        """Return the fewest blocks that hit so many percent of what an infinite cache hits."""
        wanted = -(-int(self.blocks_at[-1]) * percent // 100)  # whole blocks, rounded up
        return int(np.searchsorted(self.blocks_at, wanted, side="left"))

    def _index(self, capacity_blocks: int) -> int:
        if capacity_blocks < 0:
            raise ValueError(f"capacity_blocks is {capacity_blocks}; it must be at least 0")
        return min(capacity_blocks, self.distinct_blocks)


def hit_curve(trace: Trace, cycles: int = 1, indices: IntArray | None = None) -> HitCurve:
    """Return the hit curve of a trace that is replayed ``cycles`` times over.

    Before every cycle but the first lies the same whole trace, so they all hit as the
    second one does. ``indices``: of these requests alone.
    """
    if cycles < 1:
        raise ValueError(f"cycles is {cycles}; it must be at least 1")
    chosen = np.arange(len(trace)) if indices is None else indices
    first = find_reuses(trace, chosen).curve()
    if cycles == 1:
        return first
    both = find_reuses(trace, np.tile(chosen, 2)).curve()
    return HitCurve(
        prompt_blocks=first.prompt_blocks * cycles,
        input_tokens=first.input_tokens * cycles,
        blocks_at=_repeated(first.blocks_at, both.blocks_at, cycles),
        tokens_at=_repeated(first.tokens_at, both.tokens_at, cycles),
    )


def _repeated(first: IntArray, both: IntArray, cycles: int) -> IntArray:
    """Return the hits of all cycles, from those of the first and of the first two."""
    hits: IntArray = first + (cycles - 1) * (both - first)
    return hits
