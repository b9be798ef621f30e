"""How many buffers a rank holds, which is all the memory that its transfers take. Pure.

Beside one for each transfer in flight there are spare ones, so that the device gets its next
work before what it has just finished is checked; of big ones fewer, for checking one takes
less time than moving it. Reads and writes have their own.
"""

from __future__ import annotations

from dataclasses import dataclass

_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """How many objects an engine reads and writes at a time, and how many of one request.

    ``lanes`` None: all of a request. With ``tiles`` each lane has an equal part of the request's
    objects, else the next one that is left. With ``batches`` what is under way of a kind is of one
    request, begun together, and nothing follows before all of it has ended; of reads there are up
    to ``read_batches`` at a time, each with its part of the buffers; with a lane the next ones
    that are begun are of the same request. One that ``packs``
    writes a batch by one call.
    """

    readers: int
    writers: int
    lanes: int | None
    tiles: bool = False
    batches: bool = False
    read_batches: int = 1
    packs: bool = False

    @property
    def read_batch(self) -> int:
        """How many objects a batch of reads has at most."""
        return max(1, self.readers // self.read_batches)

    def slot_counts(self, transfer_bytes: int) -> tuple[int, int]:
        """Buffers for reading, with spare ones to check what was read, and for writing."""
        return slot_counts(self.readers, transfer_bytes)[0], self.writers

    @classmethod
    def of_all(cls, depth: int, lanes: int | None, *, tiles: bool = False) -> Workers:
        """So many that read or write, whatever there is."""
        return cls(readers=depth, writers=depth, lanes=lanes, tiles=tiles)

    @classmethod
    def of_batches(cls, objects: int, lanes: int | None) -> Workers:
        """A batch of at most so many objects that are read, and one that are written."""
        most = max(1, objects if lanes is None else min(objects, lanes))
        return cls(readers=most, writers=most, lanes=None, batches=True)


def slot_counts(depth: int, transfer_bytes: int) -> tuple[int, int]:
    """Buffers for reading and for writing, the spare ones included."""
    if transfer_bytes <= _SMALL_BYTES:
        return 2 * depth, 2 * depth
    return depth + (depth + 1) // 2, depth + (depth + 3) // 4


def buffer_bytes(depth: int, transfer_bytes: int, workers: Workers | None = None) -> int:
    """Memory of all of them, of the pattern and of what a thorough check compares with."""
    counts = slot_counts(depth, transfer_bytes)
    if workers is not None:
        counts = workers.slot_counts(transfer_bytes)
    return (sum(counts) + 2) * transfer_bytes
