"""Blocks that nobody asks for, stored before a run so that its storage is as full as it gets.

Pure. They are older than everything that users have, so that they go first when room is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.workloads.keys import content_key
from pytest_kvcache.workloads.protocol import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_AT_ONCE = 16  # blocks of a request: as large as a prompt of engines


def filling(
    blocks: int, population: Iterable[Request], identity: str, capacity_blocks: int
) -> Iterator[Request]:
    """Requests that store what the population leaves of so many blocks; ``identity`` names them.

    Of a population that does not fit into the capacity, only what comes before is stored.
    """
    left = blocks - _stored(population, capacity_blocks)
    for begin in range(0, left, _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, left))
        yield Request(
            user=0,
            keys=tuple(content_key(f"fill/{identity}/{number}".encode()) for number in numbers),
            prompt_blocks=0,
            prompt_tokens=0,
            output_tokens=0,
        )


def _stored(population: Iterable[Request], capacity_blocks: int) -> int:
    """Different blocks of the leading requests that fit, one after the other."""
    keys: set[bytes] = set()
    for request in population:
        more = keys.union(request.stored_keys)
        if len(more) > capacity_blocks:
            break
        keys = more
    return len(keys)
