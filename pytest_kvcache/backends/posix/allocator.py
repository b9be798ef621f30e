"""Which object owns which extent of the slabs, and how many slabs there are. Pure: no I/O.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLAB_BYTES = 4 * 2**30  # a sync of a file waits for what others have written to it
_FEWEST_SLABS = 8
_MOST_SLABS = 256  # open files: a quarter of the usual limit of 1024; beyond, slabs grow


def slab_count(extents: int, extent_bytes: int) -> int:
    """How many slab files hold that many extents; as many descriptors stay open."""
    wanted = max(_FEWEST_SLABS, -(-extents * extent_bytes // _SLAB_BYTES))
    return min(wanted, _MOST_SLABS, extents)


class Extent:
    """Room for one object: its number among all extents, and how much was written into it.

    ``fd`` and ``begin`` are the descriptor of its slab and the byte where it begins there.
    """

    __slots__ = ("begin", "end_bytes", "fd", "number")

    def __init__(self, number: int, fd: int, begin: int) -> None:
        self.number = number
        self.fd = fd
        self.begin = begin
        self.end_bytes = 0


class SlabAllocator:
    """``total`` extents of one size; at any time ``allocated + free == total``.

    An extent has one owner at most, and an owner one extent. Those never used come first,
    in their order, then those that were freed longest ago: used again at once, the same
    few extents would live in the device's write cache. Safe to call from several threads.
    ``where`` gives an extent's descriptor and first byte.
    """

    def __init__(
        self, total: int, where: Callable[[int], tuple[int, int]] = lambda _number: (-1, 0)
    ) -> None:
        self.total = total
        self._where = where
        self._lock = threading.Lock()
        self._owned: dict[str, Extent] = {}
        self._freed: deque[Extent] = deque()
        self._fresh = 0  # the first extent that was never used
        # Of an owner its extent, None of anybody else: without the lock, and one call.
        self.find = self._owned.get

    @property
    def allocated(self) -> int:
        """How many extents objects own."""
        return len(self._owned)

    @property
    def free(self) -> int:
        """How many extents nobody owns."""
        with self._lock:
            return len(self._freed) + self.total - self._fresh

    def allocate(self, key: str) -> Extent | None:
        """Return the extent of ``key``, which owns one from now on; None: there is none left.

        Of several calls for one key the first allocates.
        """
        with self._lock:
            extent = self._owned.get(key)
            if extent is not None:
                return extent
            extent = self._take()
            if extent is not None:
                self._owned[key] = extent
            return extent

    def extend(self, extent: Extent, end_bytes: int) -> None:
        """Note that the extent was written up to ``end_bytes``."""
        with self._lock:
            extent.end_bytes = max(extent.end_bytes, end_bytes)

    def release(self, key: str) -> bool:
        """Free the extent of ``key``; False: it owns none."""
        with self._lock:
            extent = self._owned.pop(key, None)
            if extent is None:
                return False
            extent.end_bytes = 0
            self._freed.append(extent)
            return True

    def _take(self) -> Extent | None:
        if self._fresh < self.total:
            extent = Extent(self._fresh, *self._where(self._fresh))
            self._fresh += 1
            return extent
        return self._freed.popleft() if self._freed else None
