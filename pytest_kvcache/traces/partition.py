"""Dealing a trace to ranks: whole conversations, equal loads, few hits lost.

Pure functions of a trace's columns; imports numpy and the reuse analysis.

The first block alone is no key: in Mooncake's conversation trace nearly all requests
share it. So requests are grouped by their first block, and a group that is too heavy
is split where its prompts part.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pytest_kvcache.traces.read import Trace

    IntArray = npt.NDArray[np.int64]

# Groups a rank should at least get: the last one dealt decides how unequal loads are.
_GROUPS_PER_RANK = 4


def deal(trace: Trace, ranks: int) -> list[IntArray]:
    """Return per rank the ascending indices of its requests; every request exactly once.

    A request weighs its blocks, at least 1 (where it has no ids, the full blocks of its
    prompt). Groups go, heaviest first, to the rank with the least so far (longest
    processing time first: Graham, Bounds on multiprocessing timing anomalies, SIAM J.
    Appl. Math. 17(2), 1969); ties go to the earlier request and the lower rank.
    """
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}; it must be at least 1")
    weights = _weights(trace)
    groups = [(sum(weights[i] for i in g), g) for g in _groups(trace, weights, ranks)]
    groups.sort(key=lambda group: (-group[0], min(group[1])))
    loads = [(0, rank) for rank in range(ranks)]
    parts: list[list[int]] = [[] for _ in range(ranks)]
    for weight, group in groups:
        load, rank = loads[0]
        parts[rank].extend(group)
        heapq.heapreplace(loads, (load + weight, rank))
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


def _weights(trace: Trace) -> list[int]:
    ids = np.diff(trace.offsets)
    blocks = np.where(ids > 0, ids, trace.input_tokens // trace.block_tokens)
    weights: list[int] = np.maximum(1, blocks).tolist()
    return weights


def _groups(trace: Trace, weights: list[int], ranks: int) -> Iterator[list[int]]:
    """Yield groups of requests with a common prefix, light enough to balance the ranks.

    A group that is heavier than that is split where its prompts part; requests that end
    there stay with the earliest of the branches. One conversation that only grows is
    torn only if it is heavier than a rank's whole share. A request without ids shares
    nothing: it is a group of its own.
    """
    share = sum(weights) / ranks
    starts, ids = trace.offsets.tolist(), trace.block_ids.tolist()
    pending = [(0, list(range(len(trace))))]  # (blocks in common, requests)
    while pending:
        depth, group = pending.pop()
        branches: dict[int, list[int]] = defaultdict(list)
        ended = [i for i in group if starts[i] + depth >= starts[i + 1]]
        for i in group:
            if starts[i] + depth < starts[i + 1]:
                branches[ids[starts[i] + depth]].append(i)
        if depth == 0:
            yield from ([i] for i in ended)
        elif branches:
            next(iter(branches.values())).extend(ended)
        else:
            yield from _torn(ended, weights, share)
        for branch in branches.values():
            weight = sum(weights[i] for i in branch)
            if len(branch) == 1 or weight <= share / _GROUPS_PER_RANK:
                yield branch
            elif _only_grows(branch, starts, ids):
                yield from _torn(branch, weights, share)
            else:
                pending.append((depth + 1, branch))


def _only_grows(group: list[int], starts: list[int], ids: list[int]) -> bool:
    """Whether every prompt is a prefix of the longest: equal ids mean equal prefixes."""
    longest = max(group, key=lambda i: starts[i + 1] - starts[i])
    return all(
        ids[starts[i + 1] - 1] == ids[starts[longest] + starts[i + 1] - starts[i] - 1]
        for i in group
    )


def _torn(group: list[int], weights: list[int], share: float) -> Iterator[list[int]]:
    """Yield the group, in file order, cut where it would outweigh a rank's share."""
    piece: list[int] = []
    load = 0
    for i in sorted(group):
        if piece and load + weights[i] > share:
            yield piece
            piece, load = [], 0
        piece.append(i)
        load += weights[i]
    if piece:
        yield piece
