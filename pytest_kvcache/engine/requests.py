"""Requests in flight, and what is due when.

Rank-side; imports neither pytest nor MPI. Pure: no clock.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.workloads.protocol import Request


class InFlightRequest:
    """A request under way; ``left`` operations of its present phase are not done yet.

    ``number`` counts the requests of a rank in the order of their coming. ``admission`` is what
    was decided for it, ``steps`` what is left to do to store it. ``loaded_ns`` is when the last
    of its reads ended. It is not answered before all of ``again`` (by tier) was stored, which
    ``is_stored`` says, and then read ``rereads`` times more. ``has_deleted``, which an I/O trace
    looks at: something was deleted for it on the storage. In a store that ranks share it asked
    between ``asked_ns`` and ``answered_ns``, and ``found_blocks`` of its leading ones were there.
    """

    __slots__ = (
        "admission", "again", "answered_ns", "asked_ns", "beside_hit_blocks", "failed",
        "found_blocks", "has_deleted", "hit_blocks", "intended_ns", "is_stored", "issued_ns",
        "left", "loaded_ns", "loads", "number", "request", "rereads", "steps",
    )  # fmt: skip

    admission: Any  # Admission, or TierAdmission
    again: Sequence[Sequence[BlockEntry]]
    beside_hit_blocks: int
    steps: Iterator[None]

    def __init__(self, request: Request, intended_ns: int, number: int = 0) -> None:
        self.request = request
        self.number = number
        self.has_deleted = False
        self.intended_ns = intended_ns
        self.issued_ns = 0
        self.loaded_ns = 0
        self.left = 0
        self.hit_blocks = 0
        self.found_blocks = 0
        self.asked_ns = 0
        self.answered_ns = 0
        self.loads = False
        self.failed = False
        self.rereads = 0
        self.is_stored = False


class Timer(NamedTuple):
    """At ``due_ns`` the answer of ``inflight`` is generated, or ``request`` comes: one of them."""

    due_ns: int
    order: int
    inflight: InFlightRequest | None
    request: Request | None


class Timers:
    """Timers in the order of their times; of equal ones, in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Timer]:
        """The timers: the first one first, the others in any order."""
        return iter(self._heap)

    @property
    def first_ns(self) -> int | None:
        """When the first timer is due; None: there is none."""
        return self._heap[0].due_ns if self._heap else None

    def add(
        self,
        due_ns: int,
        *,
        inflight: InFlightRequest | None = None,
        request: Request | None = None,
    ) -> None:
        """Set a timer."""
        heapq.heappush(self._heap, Timer(due_ns, next(self._order), inflight, request))

    def pop_due(self, now_ns: int) -> Timer | None:
        """Take the first timer if it is due."""
        if not self._heap or self._heap[0].due_ns > now_ns:
            return None
        return heapq.heappop(self._heap)

    def keep_answers(self) -> None:
        """Forget the requests that are to come, and keep the answers."""
        self._heap = [timer for timer in self._heap if timer.inflight is not None]
        heapq.heapify(self._heap)

    def clear(self) -> None:
        """Forget every timer."""
        self._heap.clear()
