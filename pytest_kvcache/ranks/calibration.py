"""How fast a rank's engine is when the storage takes no time.

Rank-side; imports neither pytest nor MPI. The same requests run once against a backend
that does nothing and once against memory, without thinking and without an open loop's
schedule, and with everything that a measured run does in between: stamping, verifying,
booking. Only what verification finds is discarded, for what is read was never stored
(``TransferSettings.discards_findings``).
"""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import MAX_CHUNK_BYTES, PAGE_BYTES
from pytest_kvcache.measure.recorder import Window
from pytest_kvcache.workloads.wrapped import WrappedWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pytest_kvcache.engine.engine import Engine
    from pytest_kvcache.measure.recorder import Recorder
    from pytest_kvcache.workloads.protocol import Request, Workload, WorkloadContext

_FILL_NS = 250_000_000  # what filling the cache may take
# What is measured: parts, of which the fastest counts. What else a machine does can only slow
# an engine down, so that the whole span is at the mercy of a moment; a part is two periods of a
# CPU quota, so that a quota is in every one.
_PART_NS = 200_000_000
_PARTS = 3
_ENOUGH_OPERATIONS = 30  # in each part, to tell one from another
_DRAIN_S = 1.0
_ARENA_CHUNKS = 8  # 32 MiB, more than most caches of a core


class ArenaBackend(NullBackend):
    """Copies to and from a small piece of memory, whatever the object.

    Transfers have at most ``chunk_bytes``.
    """

    traits = replace(NullBackend.traits, never_waits=False)  # a copy of 4 MiB takes its time

    def __init__(self, chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        self._arena = np.zeros(max(_ARENA_CHUNKS * MAX_CHUNK_BYTES, chunk_bytes), np.uint8)
        self._arena[::PAGE_BYTES] = 1  # touched: a first touch costs more than the copy

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy ``buffer`` somewhere."""
        self._place(key, offset, len(buffer))[:] = np.frombuffer(buffer, np.uint8)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy something into ``buffer``."""
        np.frombuffer(buffer, np.uint8)[:] = self._place(key, offset, len(buffer))

    def _place(self, key: str, offset: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        pages = (len(self._arena) - length) // PAGE_BYTES + 1
        begin = (zlib.crc32(key.encode()) + offset // PAGE_BYTES) % pages * PAGE_BYTES
        return self._arena[begin : begin + length]


class _Unthinking(WrappedWorkload):
    """A workload's requests, each as soon as the last one is answered."""

    open_loop = False

    def next_request(self, user: int) -> Request | None:
        request = self._workload.next_request(user)
        return None if request is None else request._replace(think_s=0.0, arrival_ns=None)


def closed_loop(
    build: Callable[[WorkloadContext], Workload], context: WorkloadContext
) -> Workload | None:
    """The workload of ``context`` without pauses; None if it has a schedule of its own."""
    workload = build(replace(context, trace_speedup=0.0))
    return None if workload.open_loop else _Unthinking(workload)


def operations_per_s(engine: Engine, recorder: Recorder, tick: Callable[[], bool]) -> float | None:
    """Operations per second of a fresh engine, which is closed; None: it made none."""
    filled_ns = time.monotonic_ns() + _FILL_NS
    try:
        engine.populate(lambda: tick() or time.monotonic_ns() > filled_ns)
        start_ns = time.monotonic_ns()
        end_ns = start_ns + _PARTS * _PART_NS
        recorder.open_window(Window(start_ns, end_ns))
        stopped_ns = engine.run(start_ns=start_ns, end_ns=end_ns, drain_s=_DRAIN_S, tick=tick)
    finally:
        engine.close()
    recorder.finish()
    span_s = (stopped_ns - engine.began_ns) / 1e9
    return fastest_per_s(_operations_by_part(recorder), _PART_NS / 1e9, span_s)


def _operations_by_part(recorder: Recorder) -> list[int]:
    sums = recorder.ledger.sums
    return [sums(part * _PART_NS, (part + 1) * _PART_NS)["operations"] for part in range(_PARTS)]


def fastest_per_s(parts: Sequence[int], part_s: float, span_s: float) -> float | None:
    """The most in equal parts of a span; the mean where they are too few to compare."""
    if min(parts) >= _ENOUGH_OPERATIONS:
        return max(parts) / part_s
    return sum(parts) / span_s if sum(parts) and span_s > 0 else None
