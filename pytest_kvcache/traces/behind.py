"""What is left for a storage behind a memory tier: hits in both, and what is stored.

Pure functions of a trace's columns; imports numpy and the reuse analysis. Both policies
are those of the runs (``cache/tiers.py``), for one tier of memory and prefix-chained ids.

**write-through.** Memory is an LRU cache of its own, so a request's hits there are its
leading blocks above some depth of memory's stack. What reaches the storage is the rest of
the prompt, whatever the storage's capacity; so the storage is an LRU stack too, and one
pass gives the hits of every capacity.

**demote.** Which blocks enter memory depends on what the storage has, so that there is no
stack: each pair of capacities is counted through, run by run.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.traces.reuse import (
    NEVER,
    PLACE_BITS,
    cut,
    find_reuses,
    numbered,
    prompts,
    runs_of,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.traces.reuse import Ids, IntArray, Interval, Reuses


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoTierCounts:
    """Blocks of all requests: hits in memory and in the storage, and those that came to it.

    ``stored_blocks`` were written to the storage by requests, or moved there from memory.
    """

    memory_blocks: int
    storage_blocks: int
    stored_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BehindMemory:
    """A storage behind ``memory_blocks`` of write-through memory, at every capacity.

    ``memory_hit_blocks`` are memory's hits, ``rest`` is what the storage's stack sees.
    """

    memory_hit_blocks: int
    rest: Reuses

    def counts(self, storage_blocks: int) -> TwoTierCounts:
        """Return what a storage of that many blocks serves and is given."""
        return TwoTierCounts(
            memory_blocks=self.memory_hit_blocks,
            storage_blocks=int(self.rest.hits_by_turn(storage_blocks).sum()),
            stored_blocks=self.rest.stored_blocks(storage_blocks),
        )


def behind_write_through(reuses: Reuses, memory_blocks: int) -> BehindMemory:
    """Return the storage's part of the requests of ``reuses``, of which none are skipped."""
    served = reuses.hits_by_turn(memory_blocks)
    return BehindMemory(
        memory_hit_blocks=int(served.sum()),
        rest=find_reuses(reuses.trace, reuses.requests, served),
    )


def count_demoted(
    trace: Trace, memory_blocks: int, storage_blocks: int, indices: IntArray | None = None
) -> TwoTierCounts:
    """Return what memory and a storage behind it serve where memory's victims move there."""
    ids, span = numbered(trace)
    memory, storage = _Recency(span, memory_blocks), _Recency(span, storage_blocks)
    hits = [0, 0]
    moved = 0
    for _, begin, end in prompts(trace, indices):
        path = ids[begin:end]
        in_memory, in_storage = memory.has(path), storage.has(path)
        there = in_memory | in_storage
        run = len(path) if there.all() else int(there.argmin())
        for tier, found in enumerate((in_memory, in_storage)):
            hits[tier] += int(np.count_nonzero(found[:run]))
        own = path[~in_storage] if in_storage.any() else path
        kept, beyond = own[:memory_blocks], own[memory_blocks:]
        victims = memory.push(kept)
        if len(beyond):
            # All of memory is new: what it had beyond is among its victims.
            beyond = beyond[~in_memory[~in_storage][memory_blocks:]]
        arrivals = np.concatenate((beyond, victims)) if len(beyond) else victims
        storage.push(path[in_storage])
        storage.push(arrivals[:storage_blocks])
        moved += min(len(arrivals), storage_blocks)
    return TwoTierCounts(memory_blocks=hits[0], storage_blocks=hits[1], stored_blocks=moved)


class _Recency:
    """Blocks by last use, at most ``capacity``, kept as runs of those touched together."""

    def __init__(self, span: int, capacity: int) -> None:
        self._stamps = np.full(span, NEVER, dtype=np.int64)
        self._capacity = capacity
        self._groups: OrderedDict[int, list[Interval]] = OrderedDict()
        self._blocks: dict[int, Ids] = {}
        self._pushed = self._held = 0

    def has(self, blocks: Ids) -> npt.NDArray[np.bool_]:
        """Return for each whether it is here."""
        found: npt.NDArray[np.bool_] = self._stamps[blocks] >= 0
        return found

    def push(self, blocks: Ids) -> Ids:
        """Make these, at most the capacity, the most recent; return what has no more room.

        Both have the most recent first.
        """
        if not len(blocks):
            return blocks
        stamps = self._stamps[blocks]
        for group, place, begin, end in runs_of(stamps):
            cut(self._groups, group, place, place + end - begin)
            self._held -= end - begin
            self._tidy(group)
        group = self._pushed
        self._pushed += 1
        self._stamps[blocks] = np.arange(len(blocks)) + (group << PLACE_BITS)
        self._groups[group] = [[0, len(blocks)]]
        self._blocks[group] = blocks
        self._held += len(blocks)
        return self._overflow()

    def _overflow(self) -> Ids:
        gone: list[Ids] = []
        while self._held > self._capacity:
            group = next(iter(self._groups))
            intervals, blocks = self._groups[group], self._blocks[group]
            low, high = intervals[-1]
            begin = max(low, high - (self._held - self._capacity))
            gone.append(blocks[begin:high])
            cut(self._groups, group, begin, high)
            self._held -= high - begin
            self._tidy(group)
        if not gone:
            return np.empty(0, dtype=np.int64)
        victims = gone[0] if len(gone) == 1 else np.concatenate(gone[::-1])
        self._stamps[victims] = NEVER
        return victims

    def _tidy(self, group: int) -> None:
        if group not in self._groups:
            del self._blocks[group]
