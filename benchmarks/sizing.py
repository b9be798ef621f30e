"""How long a trace takes to be sized: ``python -m benchmarks.sizing [--small]``.

Two synthetic traces, made from nothing but these statistics: one like Mooncake's
conversation trace (12,031 requests, 290,000 accesses), one like hundreds of sessions of
coding agents, which ask again with their whole context (blocks of 64 tokens, a median of
58,000 tokens, 92 % of the blocks seen before, ids of one session in no other). Printed are
seconds, CPU seconds and the peak of this process' memory so far. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.traces.behind import behind_write_through, count_demoted
from pytest_kvcache.traces.optimum import optimal_hits
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace
from pytest_kvcache.traces.reuse import find_reuses, hit_curve

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.traces.reuse import HitCurve, Reuses

_SHARES_PERCENT = (50, 80, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the sessions of a trace are like; lengths in blocks of ``block_tokens``.

    A session begins with ``start`` blocks, and each of its ``requests`` (on average) asks
    for what the one before it had and about ``more``; one in ten, or where there are
    ``most``, goes back to an earlier point of the conversation.
    """

    block_tokens: int
    sessions: int
    requests: float
    start: tuple[int, int]
    more: float
    most: float


CHATS = Shape(block_tokens=512, sessions=4_000, requests=3.0, start=(8, 32), more=6.0, most=100.0)
AGENTS = Shape(
    block_tokens=64, sessions=692, requests=122.0, start=(300, 800), more=70.0, most=1_750.0
)


def synthetic(shape: Shape) -> Trace:
    """Return a trace of that shape, its sessions interleaved."""
    dice = np.random.default_rng(1)
    turns: list[tuple[float, list[tuple[int, int]], int]] = []
    fresh = 0
    for _ in range(shape.sessions):
        found, fresh = _session(shape, dice, fresh)
        turns += found
    turns.sort(key=lambda turn: turn[0])
    counts = np.array([blocks for *_, blocks in turns])
    ids = np.empty(int(counts.sum()), dtype=np.int32)
    end = 0
    for _, pieces, _ in turns:
        for low, high in pieces:
            ids[end : end + high - low] = np.arange(low, high)
            end += high - low
    return Trace(
        name="synthetic",
        format="synthetic",
        block_tokens=shape.block_tokens,
        arrival_ns=np.array([int(at_s * 1e9) for at_s, *_ in turns]),
        input_tokens=counts * shape.block_tokens,
        output_tokens=np.full(len(turns), 300),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        block_ids=ids,
    )


def _session(
    shape: Shape, dice: np.random.Generator, fresh: int
) -> tuple[list[tuple[float, list[tuple[int, int]], int]], int]:
    """Return (second, ranges of ids, blocks) of each request, and the first id that is left."""
    found: list[tuple[float, list[tuple[int, int]], int]] = []
    path: list[tuple[int, int]] = []
    at_s, most = dice.exponential(600.0), int(shape.most * dice.lognormal(0.0, 0.45))
    wanted = int(dice.integers(*shape.start))
    for _ in range(1 + int(shape.requests * dice.lognormal(-0.5, 1.0))):
        path, fresh = [*path, (fresh, fresh + wanted)], fresh + wanted
        blocks = sum(high - low for low, high in path)
        found.append((at_s, path, blocks))
        at_s += dice.exponential(70.0)
        wanted = 1 + int(dice.exponential(shape.more))
        if blocks + wanted > most:
            path = path[: 1 + len(path) // 4]
        elif dice.random() < 0.1:  # noqa: PLR2004  one in ten
            path = path[: 1 + int(dice.integers(len(path)))]
    return found, fresh


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the agents' sessions")
    given = parser.parse_args()
    agents = replace(AGENTS, sessions=AGENTS.sessions // 10) if given.small else AGENTS
    for name, shape in (("chats", CHATS), ("agents", agents)):
        _measure(name, synthetic(shape))


def _curve_behind(reuses: Reuses, memory_blocks: int) -> HitCurve:
    return behind_write_through(reuses, memory_blocks).rest.curve()


def _measure(name: str, trace: Trace) -> None:
    reuses = find_reuses(trace)
    curve = reuses.curve()
    sizes = [curve.capacity_for_share(percent) for percent in _SHARES_PERCENT]
    median = int(np.median(trace.input_tokens))
    print(
        f"{name}: {len(trace):,} requests, {len(trace.block_ids):,} accesses,"
        f" median {median:,} tokens, {curve.hit_ratio(curve.distinct_blocks):.1%} reuse"
    )
    print(f"  {'':42}{'s':>8}{'CPU s':>8}{'peak MiB':>10}")
    tasks: dict[str, Callable[[], object]] = {
        "hit curve, one pass": lambda: find_reuses(trace).curve(),
        "optimum at 5 capacities": lambda: [optimal_hits(reuses, size) for size in sizes],
        "behind memory, write-through, all capacities": lambda: _curve_behind(
            reuses, sizes[0] // 10
        ),
        "behind memory, demote, one capacity": lambda: count_demoted(
            trace, sizes[0] // 10, sizes[2]
        ),
        "8 ranks with a cache each": lambda: [
            hit_curve(trace, indices=part) for part in partition(trace, 8)
        ],
    }
    for label, task in tasks.items():
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        task()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {label:42}{wall_s:>8.2f}{cpu_s:>8.2f}{peak:>10,.0f}", flush=True)


if __name__ == "__main__":
    main()
