"""The hits that no cache of a given size can exceed: Belady's MIN for prefix-chained requests.

Pure functions of a trace's columns; imports numpy and the reuse analysis.

A cache may keep, from one request to the next, whatever it likes of what it has and of
what the request brought, up to its capacity, and may decline the rest. A block hits at a
request only if it was kept ever since the request that asked for it before. So each pair
of successive uses of a block is an interval of time, and the most hits are the most
intervals of which at no time more than the capacity overlap: whenever there are too many,
drop those that end last (Belady, A study of replacement algorithms for a virtual-storage
computer, IBM Systems Journal 5(2), 1966; Faigle and Nawijn, Note on scheduling intervals
on-line, Discrete Applied Mathematics 58(1), 1995).

That is the optimum for hits of single blocks, hence a bound for prefix hits, whoever
decides. It is reached: where equal ids stand for equal whole prefixes, a block's head is
used again whenever the block is, so its interval never ends later; of those that end
together the deeper block goes first. What is kept is then always a leading run.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pytest_kvcache.traces.reuse import Reuses


def optimal_hits(reuses: Reuses, capacity_blocks: int) -> int:
    """Return the most prefix-hit blocks of any cache of that size that knows the future.

    ``reuses`` of requests whose ids are prefix-chained, none of them skipped.
    """
    if capacity_blocks < 0:
        raise ValueError(f"capacity_blocks is {capacity_blocks}; it must be at least 0")
    begins = np.argsort(reuses.last, kind="stable").tolist()
    last: list[int] = reuses.last.tolist()
    turn: list[int] = reuses.turn.tolist()
    kept: list[int] = reuses.blocks.tolist()
    held, hits, ended = 0, 0, 0
    farthest: list[tuple[int, int]] = []
    for place, run in enumerate(begins):
        now = last[run]
        while ended < len(turn) and turn[ended] <= now:  # runs are in the order of their ends
            held -= kept[ended]
            hits += kept[ended]
            ended += 1
        held += kept[run]
        heapq.heappush(farthest, (-turn[run], run))
        if place + 1 < len(begins) and last[begins[place + 1]] == now:
            continue  # what begins at the same time counts first
        while held > capacity_blocks:
            _, least = farthest[0]
            dropped = min(kept[least], held - capacity_blocks)
            kept[least] -= dropped
            held -= dropped
            if not kept[least]:
                heapq.heappop(farthest)
    return hits + sum(kept[ended:])
