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


def filling(blocks: int, population: Iterable[Request], identity: str) -> Iterator[Request]:
    """Requests that store what the population leaves of so many blocks; ``identity`` names them."""
    left = blocks - len({key for request in population for key in request.stored_keys})
    for begin in range(0, left, _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, left))
        yield Request(
            user=0,
            keys=tuple(content_key(f"fill/{identity}/{number}".encode()) for number in numbers),
            prompt_blocks=0,
            prompt_tokens=0,
            output_tokens=0,
        )
