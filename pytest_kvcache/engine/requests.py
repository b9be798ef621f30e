"""Requests in flight, and what is due when.

Rank-side; imports neither pytest nor MPI. Pure: no clock.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.cache.index import Admission
    from pytest_kvcache.workloads.protocol import Request


class Flight:
    """A request under way; ``left`` operations of its present phase are not done yet."""

    __slots__ = (
        "admission", "failed", "intended_ns", "issued_ns", "left", "loaded_ns", "request",
    )  # fmt: skip

    admission: Admission

    def __init__(self, request: Request, intended_ns: int) -> None:
        self.request = request
        self.intended_ns = intended_ns
        self.issued_ns = 0
        self.loaded_ns = 0
        self.left = 0
        self.failed = False


class Timer(NamedTuple):
    """At ``due_ns`` the answer of ``flight`` is generated, or ``request`` comes: one of them."""

    due_ns: int
    order: int
    flight: Flight | None
    request: Request | None


class Timers:
    """Timers in the order of their times; of equal ones, in the order in which they came."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Timer]:
        """The first one first, the others in any order."""
        return iter(self._heap)

    @property
    def first_ns(self) -> int | None:
        """When the first one is due; None: there is none."""
        return self._heap[0].due_ns if self._heap else None

    def add(
        self, due_ns: int, *, flight: Flight | None = None, request: Request | None = None
    ) -> None:
        """Set one."""
        heapq.heappush(self._heap, Timer(due_ns, next(self._order), flight, request))

    def pop_due(self, now_ns: int) -> Timer | None:
        """Take the first one if it is due."""
        if not self._heap or self._heap[0].due_ns > now_ns:
            return None
        return heapq.heappop(self._heap)

    def keep_answers(self) -> None:
        """Forget what is to come."""
        self._heap = [timer for timer in self._heap if timer.flight is not None]
        heapq.heapify(self._heap)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
