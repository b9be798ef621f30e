"""Replay of an I/O trace: the recorded operations, against another storage.

Rank-side; imports neither pytest nor MPI. At recorded times each operation is a request of its
own. As fast as the storage allows they are put together again as they depended on each other:
what one request read, then what it deleted and stored, and its user's next one after its answer;
and operations on one object keep their order, whoever asks for them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.traces.operations import DELETE, OVERWRITE, READ, Operations, mixed
from pytest_kvcache.workloads.protocol import Request, at_speed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from pytest_kvcache.traces.read import Trace

    IntArray = npt.NDArray[np.int64]


class _Objects:
    """The keys of a part's objects: the recorded ones, where no other object has the same."""

    def __init__(self, operations: Operations) -> None:
        self._ids = operations.key_ids
        keys = operations.keys.copy()
        _known, first = np.unique(keys, axis=0, return_index=True)
        again = np.ones(len(keys), dtype=bool)
        again[first] = False
        keys[again, 1] ^= mixed(operations.key_ids[again].astype(np.uint64) + np.uint64(1))
        self._keys = keys.astype(">u8").tobytes()

    def places(self, ids: IntArray) -> IntArray:
        """Where each object's key is."""
        return np.searchsorted(self._ids, ids)

    def key(self, place: int) -> bytes:
        """The 16 bytes of a key."""
        return self._keys[16 * place : 16 * place + 16]


class IoReplayWorkload:
    """The operations of an I/O trace as requests (implements ``Workload``).

    ``users`` take turns where the trace has no users of its own, each operation's request in
    its recorded order; ``speedup`` 0 is that closed loop.
    """

    def __init__(self, trace: Trace, operations: Operations, *, users: int, speedup: float) -> None:
        self._speedup = speedup
        self._operations = operations
        self._objects = _Objects(operations)
        self._origin_ns = trace.timeline_ns[0]
        ids = np.asarray(trace.block_ids, dtype=np.int64)
        if speedup:
            order = np.argsort(trace.arrival_ns, kind="stable")
        else:
            order = np.lexsort((np.arange(len(trace)), operations.request, operations.rank))
            if not operations.has_users:
                order = _by_first_time(order, operations, trace.arrival_ns)
        self._arrivals = trace.arrival_ns[order]
        self._kinds: list[int] = operations.kind[order].tolist()
        self._sizes: list[int] = operations.sizes[order].tolist()
        self._places: list[int] = self._objects.places(ids[order]).tolist()
        self._waits: list[int] = _waits(self._kinds, self._places)
        self._issued: dict[int, int] = defaultdict(int)  # operations, by the object's place
        self._bounds = self._groups(order)
        self._next = 0
        self._of_user: list[list[int]] = []
        self.holds_users = not speedup and operations.has_users
        if self.holds_users:
            self._of_user = [[] for _ in range(operations.users)]
            numbers = operations.user_numbers()[order]
            for group in range(len(self._bounds) - 2, -1, -1):
                self._of_user[numbers[self._bounds[group]]].append(group)  # the first one last
        self._users = operations.users or users

    @property
    def users(self) -> int:
        """Those of the trace, else as many as asked for (closed loop)."""
        return self._users

    @property
    def open_loop(self) -> bool:
        """Whether operations come at their recorded times."""
        return self._speedup > 0

    def population(self) -> Iterator[Request]:
        """What was there before the first operation, or must have been, for it was read."""
        operations = self._operations
        places = self._objects.places(operations.there_ids).tolist()
        for place, size in zip(places, operations.there_sizes.tolist(), strict=True):
            yield Request(
                user=0,
                keys=(self._objects.key(place),),
                prompt_blocks=0,
                prompt_tokens=0,
                output_tokens=0,
                sizes=(size,),
            )

    def next_request(self, user: int) -> Request | None:
        """The next one of the user, or of all; None too while it waits for another user's."""
        if not self.holds_users:
            if self._next >= len(self._bounds) - 1:
                return None
            self._next += 1
            return self._request(self._next - 1, user)
        groups = self._of_user[user]
        if not groups or not self._may_come(groups[-1]):
            return None
        return self._request(groups.pop(), user)

    def _may_come(self, group: int) -> bool:
        """Whether all that comes before it on its objects has been asked for."""
        return all(
            self._issued[self._places[at]] >= self._waits[at]
            for at in range(self._bounds[group], self._bounds[group + 1])
        )

    def _request(self, group: int, user: int) -> Request:
        reads: list[tuple[bytes, int]] = []
        writes: list[tuple[bytes, int]] = []
        deletes: list[bytes] = []
        came_ns = int(self._arrivals[self._bounds[group]]) - self._origin_ns
        for at in range(self._bounds[group], self._bounds[group + 1]):
            place, kind = self._places[at], self._kinds[at]
            key = self._objects.key(place)
            self._issued[place] += 1
            if kind == READ:
                reads.append((key, self._sizes[at]))
                continue
            if kind in (DELETE, OVERWRITE):
                deletes.append(key)
            if kind != DELETE:
                writes.append((key, self._sizes[at]))
        return Request(
            user=user,
            keys=tuple(key for key, _size in (*reads, *writes)),
            prompt_blocks=len(reads),
            prompt_tokens=0,
            output_tokens=0,
            arrival_ns=at_speed(came_ns, self._speedup),
            sizes=tuple(size for _key, size in (*reads, *writes)),
            deletes=tuple(deletes),
        )

    def _groups(self, order: IntArray) -> list[int]:
        """Where each request begins, and the end: of one recorded request, one or several.

        A new one begins where an object comes again, and with a read behind what was stored or
        deleted: that read waited for it.
        """
        if self.open_loop or not self._operations.has_ranks:
            return list(range(len(order) + 1))
        requests = (self._operations.rank[order] << 40 | self._operations.request[order]).tolist()
        bounds, seen, has_changed, before = [], set[int](), False, None
        for at, (request, kind, place) in enumerate(
            zip(requests, self._kinds, self._places, strict=True)
        ):
            if request != before or place in seen or (kind == READ and has_changed):
                bounds.append(at)
                seen, has_changed, before = set(), False, request
            seen.add(place)
            has_changed |= kind != READ
        return [*bounds, len(requests)]


def _by_first_time(order: IntArray, operations: Operations, arrival_ns: IntArray) -> IntArray:
    """Put requests that wait for nobody in the order in which their first operations came."""
    requests = operations.rank[order] << 40 | operations.request[order]
    begins = np.flatnonzero(np.concatenate(([True], requests[1:] != requests[:-1])))
    counts = np.diff(np.append(begins, len(order)))
    first_ns = np.repeat(np.minimum.reduceat(arrival_ns[order], begins), counts)
    return order[np.argsort(first_ns, kind="stable")]


def _waits(kinds: Sequence[int], places: Sequence[int]) -> list[int]:
    """How many operations on its object must have been asked for before each.

    A read waits for what changed the object last, a change for all that is before it.
    """
    seen: dict[int, int] = defaultdict(int)
    changed: dict[int, int] = defaultdict(int)
    waits = []
    for kind, place in zip(kinds, places, strict=True):
        if kind == READ:
            waits.append(changed[place])
        else:
            waits.append(seen[place])
            changed[place] = seen[place] + 1
        seen[place] += 1
    return waits
