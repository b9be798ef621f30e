"""How many buffers a rank holds, which is all the memory that its transfers take. Pure.

Beside one for each transfer in flight there are spare ones, so that the device gets its next
work before what it has just finished is checked; of big ones fewer, for checking one takes
less time than moving it. Reads and writes have their own.
"""

from __future__ import annotations

_SMALL_BYTES = 1 << 20


def slot_counts(depth: int, transfer_bytes: int) -> tuple[int, int]:
    """Buffers for reading and for writing, the spare ones included."""
    if transfer_bytes <= _SMALL_BYTES:
        return 2 * depth, 2 * depth
    return depth + (depth + 1) // 2, depth + (depth + 3) // 4


def buffer_bytes(depth: int, transfer_bytes: int) -> int:
    """Memory of all of them, of the pattern and of what a thorough check compares with."""
    return (sum(slot_counts(depth, transfer_bytes)) + 2) * transfer_bytes
