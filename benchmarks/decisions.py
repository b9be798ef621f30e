"""Block decisions per second without I/O: ``python -m benchmarks.decisions``.

Requests as coding agents make them: each of some sessions asks again with its whole
context of about 2,000 blocks and a few more, as many of the sessions as fit into the
capacity. Every request is admitted, its inserts committed, its hits released. Keys are
new objects in each request, as a trace gives them, or the ones that were seen before.
"""

from __future__ import annotations

import gc
import random
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import Admission, CacheIndex
from pytest_kvcache.cache.tiers import TIER_POLICIES, Tier, TierAdmission, TierPolicy, TierStack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Requests = Sequence[Sequence[bytes]]

_SESSIONS = 20
_REQUESTS = 200
_START_BLOCKS, _MORE_BLOCKS = 1_500, 50
_BLOCK_BYTES = 1 << 20
_ROUNDS = 3


def agent_requests(*, fresh: bool) -> list[tuple[bytes, ...]]:
    """The keys of each request; ``fresh``: no two requests share an object."""
    dice = random.Random(42)
    lengths = [_START_BLOCKS] * _SESSIONS
    seen: dict[bytes, bytes] = {}
    found = []
    for _ in range(_REQUESTS):
        session = dice.randrange(_SESSIONS)
        lengths[session] += dice.randrange(2 * _MORE_BLOCKS)
        keys = [b"%08d%08d" % (session, block) for block in range(lengths[session])]
        found.append(tuple(keys if fresh else [seen.setdefault(key, key) for key in keys]))
    return found


def serve_in_one(capacity_bytes: int, requests: Requests) -> None:
    """Serve all requests with the storage alone."""
    index = CacheIndex(capacity_bytes, page_bytes=4096)
    for keys in requests:
        found = index.admit(keys, len(keys), _BLOCK_BYTES)
        assert isinstance(found, Admission)
        index.deleted(found)
        for entry in found.inserts:
            index.commit(entry)
        index.release(found)


def serve_in_two(policy: TierPolicy, capacity_bytes: int, requests: Requests) -> None:
    """Serve them with memory, a quarter of the storage, before it; moves included."""
    memory = Tier(name="cpu", capacity_bytes=capacity_bytes // 4, page_bytes=1)
    storage = Tier(name="storage", capacity_bytes=capacity_bytes, page_bytes=4096)
    stack = TierStack([memory, storage], policy)
    for keys in requests:
        found = stack.admit(keys, len(keys), _BLOCK_BYTES)
        assert isinstance(found, TierAdmission)
        stack.settle(found)


def ns_per_block(serve: Callable[[Requests], None], *, fresh: bool) -> float:
    """CPU time, the median of some rounds; each has a cache and keys of its own."""
    found = []
    for _ in range(_ROUNDS):
        requests = agent_requests(fresh=fresh)
        gc.collect()
        gc.disable()
        began_ns = time.process_time_ns()
        serve(requests)
        found.append((time.process_time_ns() - began_ns) / sum(map(len, requests)))
        gc.enable()
    return median(found)


def main() -> None:
    """Print the table."""
    whole = _SESSIONS * _START_BLOCKS + _REQUESTS * _MORE_BLOCKS
    print(f"{'':42}{'fresh keys':>12}{'shared keys':>13}   ns per block")
    for share in (1.0, 0.5):
        capacity = int(share * whole) * _BLOCK_BYTES
        rows: dict[str, Callable[[Requests], None]] = {
            "one tier": partial(serve_in_one, capacity),
            **{f"two tiers, {p}": partial(serve_in_two, p, capacity) for p in TIER_POLICIES},
        }
        for name, serve in rows.items():
            fresh, shared = (ns_per_block(serve, fresh=fresh) for fresh in (True, False))
            print(f"{name + f', room for {share:.0%}':42}{fresh:>12.0f}{shared:>13.0f}", flush=True)


if __name__ == "__main__":
    main()
