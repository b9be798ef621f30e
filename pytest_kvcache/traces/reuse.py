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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_kvcache.traces.read import Trace

    IntArray = npt.NDArray[np.int64]


def infinite_hits(trace: Trace, indices: IntArray | None = None) -> int:
    """Return the prefix-hit blocks of these requests if nothing is ever evicted.

    ``indices`` are ascending request indices, None for all. A request never hits on
    itself.
    """
    part = trace if indices is None else trace.select(indices)
    return int(_leading_runs(part.offsets, _Touches(part).last >= 0).sum())


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

    def _index(self, capacity_blocks: int) -> int:
        if capacity_blocks < 0:
            raise ValueError(f"capacity_blocks is {capacity_blocks}; it must be at least 0")
        return min(capacity_blocks, self.distinct_blocks)


def hit_curve(trace: Trace, cycles: int = 1) -> HitCurve:
    """Return the hit curve of a trace that is replayed ``cycles`` times over.

    O(n log n) time, O(n) memory, however many cycles: before every cycle but the first
    lies the same whole trace, so they all hit as the second one does.
    """
    if cycles < 1:
        raise ValueError(f"cycles is {cycles}; it must be at least 1")
    first = _one_pass(trace)
    if cycles == 1:
        return first
    both = _one_pass(trace.select(np.tile(np.arange(len(trace)), 2)))
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


def _one_pass(trace: Trace) -> HitCurve:
    touches = _Touches(trace)
    runs = _leading_runs(trace.offsets, touches.last >= 0)
    inside = touches.position < runs[touches.request]
    request = touches.request[inside]
    # The deepest block so far, per request: a request's step is larger than any depth.
    step = (len(trace.block_ids) + 1) * request
    deepest = np.maximum.accumulate(touches.depths(inside) + step) - step
    left = trace.input_tokens[request] - touches.position[inside] * trace.block_tokens
    tokens = np.clip(left, 0, trace.block_tokens)
    return HitCurve(
        prompt_blocks=len(trace.block_ids),
        input_tokens=int(trace.input_tokens.sum()),
        blocks_at=_hits_at(deepest, np.ones_like(deepest), touches.distinct),
        tokens_at=_hits_at(deepest, tokens, touches.distinct),
    )


class _Touches:
    """When the accesses of a trace happen, and when each id was touched before.

    Accesses are counted in the order in which a cache touches them, so the requests'
    bounds in that order are ``offsets`` too. Arrays are parallel to ``block_ids``:
    ``request`` its index, ``position`` in the request, ``last`` the touch before
    (-1: none).
    """

    def __init__(self, trace: Trace) -> None:
        offsets = trace.offsets
        counts = np.diff(offsets)
        total = len(trace.block_ids)
        self.request = np.repeat(np.arange(len(counts)), counts)
        self.arrival = offsets[self.request]
        self.position = np.arange(total) - self.arrival
        time = self.arrival + offsets[self.request + 1] - 1 - np.arange(total)
        # Turning a request's part round twice gives it back, so `time` also maps back.
        self._previous = _previous_same(trace.block_ids[time])
        self.last = self._previous[time]
        self.distinct = int(np.count_nonzero(self.last < 0))

    def depths(self, wanted: npt.NDArray[np.bool_]) -> IntArray:
        """Return how many other ids were touched since, for accesses that have a last touch.

        All touches between the last one and the arrival, minus those that another touch
        of the same id before the arrival makes obsolete.
        """
        last, arrival = self.last[wanted], self.arrival[wanted]
        obsolete = _count_greater(self._previous + 1, arrival, last + 1)
        depths: IntArray = arrival - 1 - last - obsolete
        return depths


def _previous_same(ids: IntArray) -> IntArray:
    """Return for each place the place of the same id before it, -1 where there is none."""
    order = np.argsort(ids, kind="stable")
    again = ids[order[1:]] == ids[order[:-1]]
    previous = np.full(len(ids), -1, dtype=np.int64)
    previous[order[1:][again]] = order[:-1][again]
    return previous


def _leading_runs(offsets: IntArray, seen: npt.NDArray[np.bool_]) -> IntArray:
    """Return per request how many of its blocks come before the first one not seen."""
    starts, stops = offsets[:-1], offsets[1:]
    gaps = np.append(np.flatnonzero(~seen), len(seen))
    runs: IntArray = np.minimum(gaps[np.searchsorted(gaps, starts)], stops) - starts
    return runs


def _count_greater(values: IntArray, ends: IntArray, thresholds: IntArray) -> IntArray:
    """Return for each query how many of ``values[:end]`` exceed its threshold.

    A wavelet matrix (Claude and Navarro, SPIRE 2012) built and queried one bit at a
    time, highest first, for all queries together: the range [start, end) follows the
    values that share the threshold's higher bits.
    """
    count = np.zeros(len(ends), dtype=np.int64)
    start = np.zeros(len(ends), dtype=np.int64)
    end = ends
    bits = int(values.max(initial=0) | thresholds.max(initial=0)).bit_length()
    for bit in reversed(range(bits)):
        is_one = (values >> bit & 1).astype(bool)
        zeros = np.concatenate(([0], np.cumsum(~is_one)))
        start_zeros, end_zeros = zeros[start], zeros[end]
        follow_ones = (thresholds >> bit & 1).astype(bool)
        ones_inside = (end - start) - (end_zeros - start_zeros)
        count += np.where(follow_ones, 0, ones_inside)
        start = np.where(follow_ones, zeros[-1] + start - start_zeros, start_zeros)
        end = np.where(follow_ones, zeros[-1] + end - end_zeros, end_zeros)
        values = np.concatenate((values[~is_one], values[is_one]))
    return count


def _hits_at(deepest: IntArray, amounts: IntArray, distinct: int) -> IntArray:
    """Return the amounts of the blocks that are present, for capacities 0 to distinct."""
    at_depth = np.zeros(distinct + 1, dtype=np.int64)
    np.add.at(at_depth, deepest + 1, amounts)
    return np.cumsum(at_depth)
