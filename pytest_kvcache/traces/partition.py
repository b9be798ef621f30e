"""Partitioning of a trace for ranks: whole conversations, equal loads, few hits lost.

Pure functions of a trace's columns; imports numpy and the reuse analysis.

Where the format names conversations, each is a group, and stays on one rank however heavy.
Elsewhere the first block alone is no key: in Mooncake's conversation trace nearly all
requests share it. So requests are grouped by their first block, and a group that is too heavy
is split where its prompts part.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pytest_kvcache.traces.operations import Operations
    from pytest_kvcache.traces.read import Trace

    IntArray = npt.NDArray[np.int64]

# Groups a rank should at least get: the last one placed decides how unequal loads are.
_GROUPS_PER_RANK = 4


def partition(trace: Trace, ranks: int) -> list[IntArray]:
    """Return per rank the ascending indices of its requests; every request exactly once.

    A request weighs its blocks, at least 1 (where it has no ids, the full blocks of its
    prompt). Groups go, heaviest first, to the rank with the least so far (longest
    processing time first: Graham, Bounds on multiprocessing timing anomalies, SIAM J.
    Appl. Math. 17(2), 1969); ties go to the earlier request and the lower rank.
    """
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}; it must be at least 1")
    if ranks == 1:
        return [np.arange(len(trace))]
    if trace.operations is not None and trace.operations.has_ranks:
        return _by_recorded_rank(trace.operations, ranks)
    weights = _weights(trace)
    if trace.conversations is not None:
        alone, groups = _by(trace.conversations, np.arange(len(trace)))
    else:
        alone, groups = _grouped(trace, weights, ranks)
    loads = np.concatenate((weights[alone], [weights[group].sum() for group in groups]))
    firsts = np.concatenate((alone, [group[0] for group in groups]))
    owners = _dealt(loads.astype(np.int64), firsts.astype(np.int64), ranks)
    owner_of = np.empty(len(trace), dtype=np.int64)
    owner_of[alone] = owners[: len(alone)]
    for group, owner in zip(groups, owners[len(alone) :].tolist(), strict=True):
        owner_of[group] = owner
    return [np.flatnonzero(owner_of == rank) for rank in range(ranks)]


def _by_recorded_rank(operations: Operations, ranks: int) -> list[IntArray]:
    """Return the requests of each recorded rank together, on ranks in turn."""
    _known, numbers = np.unique(operations.rank, return_inverse=True)
    return [np.flatnonzero(numbers % ranks == rank).astype(np.int64) for rank in range(ranks)]


def _dealt(loads: IntArray, firsts: IntArray, ranks: int) -> IntArray:
    """The rank of each group; ``firsts`` are the groups' earliest requests."""
    order = np.lexsort((firsts, -loads))
    owners = np.empty(len(loads), dtype=np.int64)
    least = [(0, rank) for rank in range(ranks)]
    for group, load in zip(order.tolist(), loads[order].tolist(), strict=True):
        so_far, rank = least[0]
        owners[group] = rank
        heapq.heapreplace(least, (so_far + load, rank))
    return owners


def _by(keys: npt.NDArray[np.integer[Any]], requests: IntArray) -> tuple[IntArray, list[IntArray]]:
    """The requests that have a key in common, ascending; apart those that have their own.

    There may be millions of the latter, so they are one array.
    """
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] - 1))
    sizes = np.diff(starts, append=len(order))
    several = zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True)
    groups = [requests[order[start : start + size]] for start, size in several]
    return requests[order[starts[sizes == 1]]], groups


def _grouped(trace: Trace, weights: IntArray, ranks: int) -> tuple[IntArray, list[IntArray]]:
    """The groups of a trace without conversations, as of `_by`."""
    has_ids = np.diff(trace.offsets) > 0
    longer = np.flatnonzero(has_ids)
    alone, groups = _by(trace.block_ids[trace.offsets[longer]], longer)
    alone = np.concatenate((np.flatnonzero(~has_ids), alone))
    return alone, list(_split(groups, trace, weights, ranks))


def _weights(trace: Trace) -> IntArray:
    ids = np.diff(trace.offsets)
    blocks = np.where(ids > 0, ids, trace.input_tokens // trace.block_tokens)
    weights: IntArray = np.maximum(1, blocks)
    return weights


def _split(
    groups: list[IntArray], trace: Trace, weights: IntArray, ranks: int
) -> Iterator[IntArray]:
    """Yield groups of requests with a common prefix, light enough to balance the ranks.

    A group that is heavier than that is split where its prompts part; requests that end
    there stay with the earliest of the branches. One conversation that only grows is
    torn only if it is heavier than a rank's whole share. A request without ids shares
    nothing: it is a group of its own.
    """
    share = int(weights.sum()) / ranks
    counts = np.diff(trace.offsets)
    pending = [(1, group) for group in groups]  # (blocks in common, requests)
    while pending:
        depth, group = pending.pop()
        if len(group) == 1 or weights[group].sum() <= share / _GROUPS_PER_RANK:
            yield group
            continue
        if _only_grows(group, trace, counts):
            yield from _torn(group, weights, share)
            continue
        goes_on = counts[group] > depth
        longer = group[goes_on]
        alone, several = _by(trace.block_ids[trace.offsets[longer] + depth], longer)
        branches = sorted([*alone.reshape(-1, 1), *several], key=lambda each: int(each[0]))
        branches[0] = np.sort(np.concatenate((branches[0], group[~goes_on])))
        pending += [(depth + 1, branch) for branch in branches]


def _only_grows(group: IntArray, trace: Trace, counts: IntArray) -> bool:
    """Whether every prompt is a prefix of the longest: equal ids mean equal prefixes."""
    ids = trace.block_ids
    longest = group[np.argmax(counts[group])]
    ends = trace.offsets[group] + counts[group] - 1
    return bool((ids[ends] == ids[trace.offsets[longest] + counts[group] - 1]).all())


def _torn(group: IntArray, weights: IntArray, share: float) -> Iterator[IntArray]:
    """Yield the group, in file order, cut where it would outweigh a rank's share."""
    piece: list[int] = []
    load = 0
    for i, weight in zip(group.tolist(), weights[group].tolist(), strict=True):
        if piece and load + weight > share:
            yield np.array(piece, dtype=np.int64)
            piece, load = [], 0
        piece.append(i)
        load += weight
    if piece:
        yield np.array(piece, dtype=np.int64)
