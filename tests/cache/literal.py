"""The literal caches of the traces' README, and streams of requests to try a law with."""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING
from zlib import crc32

from hypothesis import strategies as st

from pytest_kvcache.cache.index import Beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.cache.tiers import TierPolicy


class LiteralCache:
    """The loop of the traces' README, word by word, in bytes; slow, and obviously right."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.sizes: OrderedDict[bytes, int] = OrderedDict()

    def serve_beside(
        self, keys: Sequence[bytes], prompt_blocks: int, beside: Beside, most: int
    ) -> tuple[int, list[bytes]]:
        """Return the hits of the prefix, and what is there beside it: looked up before all."""
        there = [key for key in beside.keys if key in self.sizes]
        asked = [*keys, *(beside.keys if beside.stores else there)]
        return self.serve(asked, prompt_blocks, [size_of(key, most) for key in asked]), there

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


NOTHING = Beside((), 1, stores=False)


@st.composite
def requests_beside(
    draw: st.DrawFn, most: int = 1, most_keys: int = 9
) -> tuple[list[bytes], int, Beside]:
    """Requests some of which have blocks beside their prefix, of sizes up to ``most``."""
    keys, prompt_blocks = draw(requests(most_keys))
    others = draw(st.one_of(st.just([]), no_tree, prefix_tree))[:most_keys]
    beside = [key for key in others if key not in keys]
    sizes = [size_of(key, most) for key in beside]
    return keys, prompt_blocks, Beside(beside, sizes, stores=draw(st.booleans()))


class LiteralThrough:
    """write-through by the words of the README: every tier its own literal LRU."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.tiers = [LiteralCache(capacity) for capacity in capacities]
        self.hits = [0] * len(capacities)
        self.beside_hits = [0] * len(capacities)
        self.stored = [0] * len(capacities)

    def content(self, tier: int) -> list[bytes]:
        return list(self.tiers[tier].sizes)[::-1]

    def having(self, key: bytes) -> int | None:
        return next((n for n, tier in enumerate(self.tiers) if key in tier.sizes), None)

    def serve(
        self, keys: Sequence[bytes], prompt_blocks: int, most: int, beside: Beside = NOTHING
    ) -> None:
        served: dict[bytes, int] = {}
        for key in keys[:prompt_blocks]:
            if (tier := self.having(key)) is None:
                break
            served[key] = tier
            self.hits[tier] += 1
        for key in beside.keys:
            if (tier := self.having(key)) is not None:
                served[key] = tier
                self.beside_hits[tier] += 1
        asked = [*keys, *(key for key in beside.keys if beside.stores or key in served)]
        for number, cache in enumerate(self.tiers):
            reached = [key for key in asked if served.get(key, number) >= number]
            own = fitting(reached, cache.capacity_bytes, most)
            self.stored[number] += sum(key not in cache.sizes for key in own)
            cache.serve(own, 0, [size_of(key, most) for key in own])


class LiteralDemote:
    """demote as stacks of keys, the most recent first, each cut once."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = capacities
        self.tiers: list[list[bytes]] = [[] for _ in capacities]
        self.hits = [0] * len(capacities)
        self.beside_hits = [0] * len(capacities)
        self.stored = [0] * len(capacities)

    def content(self, tier: int) -> list[bytes]:
        return self.tiers[tier]

    def serve(
        self, keys: Sequence[bytes], prompt_blocks: int, most: int, beside: Beside = NOTHING
    ) -> None:
        everywhere = {key: number for number, tier in enumerate(self.tiers) for key in tier}
        for key in keys[:prompt_blocks]:
            if key not in everywhere:
                break
            self.hits[everywhere[key]] += 1
        for key in beside.keys:
            if key in everywhere:
                self.beside_hits[everywhere[key]] += 1
        keys = [*keys, *(key for key in beside.keys if beside.stores or key in everywhere)]
        arriving = [key for key in keys if everywhere.get(key, 0) == 0]
        for number, old in enumerate(self.tiers):
            taken = fitting(arriving, self.capacities[number], most)
            self.stored[number] += sum(key not in old for key in taken)
            beyond = [key for key in arriving[len(taken) :] if key not in old]
            own = [key for key in keys if number and key in old]
            stack = taken + own + [key for key in old if key not in (*taken, *own)]
            self.tiers[number] = fitting(stack, self.capacities[number], most)
            arriving = beyond + stack[len(self.tiers[number]) :]


LITERAL: dict[TierPolicy, type[LiteralThrough | LiteralDemote]] = {
    "write-through": LiteralThrough,
    "demote": LiteralDemote,
}
