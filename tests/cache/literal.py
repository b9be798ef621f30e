"""The literal cache of the traces' README, and streams of requests to try a law with."""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING
from zlib import crc32

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence


class LiteralCache:
    """The loop of the traces' README, word by word, in bytes; slow, and obviously right."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.sizes: OrderedDict[bytes, int] = OrderedDict()

    def serve(self, keys: Sequence[bytes], prompt_blocks: int, sizes: Sequence[int]) -> int:
        hits = 0
        for key in keys[:prompt_blocks]:
            if key not in self.sizes:
                break
            hits += 1
        while sum(sizes) > self.capacity_bytes:
            keys, sizes = keys[:-1], sizes[:-1]
        for key, size in zip(reversed(keys), reversed(sizes), strict=True):
            if key in self.sizes:
                self.sizes.move_to_end(key)
                continue
            while sum(self.sizes.values()) + size > self.capacity_bytes:
                self.sizes.popitem(last=False)
            self.sizes[key] = size
        return hits


def chained(path: Sequence[int]) -> list[bytes]:
    """Return the keys of a path in a prefix tree: equal keys mean equal whole prefixes."""
    return [bytes(path[: depth + 1]) for depth in range(len(path))]


prefix_tree = st.lists(st.integers(0, 2), max_size=9).map(chained)
no_tree = st.lists(st.integers(0, 15).map(lambda i: bytes([i])), max_size=9, unique=True)


@st.composite
def requests(draw: st.DrawFn, most_keys: int = 9) -> tuple[list[bytes], int]:
    keys = draw(st.one_of(prefix_tree, no_tree))[:most_keys]
    return keys, draw(st.one_of(st.just(len(keys)), st.integers(0, len(keys))))


def size_of(key: bytes, most: int) -> int:
    """Return the size of a key's block, always the same: 1 to ``most``."""
    return crc32(key) % most + 1


def fitting(keys: Sequence[bytes], capacity_bytes: int, most: int) -> list[bytes]:
    """Return the leading keys that fit."""
    sums = accumulate(size_of(key, most) for key in keys)
    return [key for key, total in zip(keys, sums, strict=True) if total <= capacity_bytes]
