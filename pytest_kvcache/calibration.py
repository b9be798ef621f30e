"""How fast a rank's engine is when the storage takes no time.

Rank-side; imports neither pytest nor MPI. The same requests run once against a backend
that does nothing and once against memory, without thinking and without an open loop's
schedule, and with everything that a measured run does in between: stamping, verifying,
booking. Only what verification says is not heard, for what is read was never stored
(``TransferSettings.blind``).
"""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import MAX_CHUNK_BYTES, PAGE_BYTES
from pytest_kvcache.recorder import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pytest_kvcache.engine import Engine
    from pytest_kvcache.recorder import Recorder
    from pytest_kvcache.workloads.protocol import Request, Workload, WorkloadContext

_FILL_NS = 500_000_000  # what filling the cache may take
_SPAN_NS = 400_000_000  # what is measured
_DRAIN_S = 1.0
_ARENA_CHUNKS = 8  # 32 MiB, more than most caches of a core


class ArenaBackend(NullBackend):
    """Copies to and from a small piece of memory, whatever the object."""

    def __init__(self) -> None:
        self._arena = np.zeros(_ARENA_CHUNKS * MAX_CHUNK_BYTES, np.uint8)
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


class _Unthinking:
    """The same requests, each as soon as the last one is answered (implements ``Workload``)."""

    open_loop = False

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    @property
    def users(self) -> int:
        return self._workload.users

    def population(self) -> Iterator[Request]:
        return self._workload.population()

    def next_request(self, user: int) -> Request | None:
        request = self._workload.next_request(user)
        return None if request is None else request._replace(think_s=0.0, arrival_ns=None)


def closed_loop(
    build: Callable[[WorkloadContext], Workload], context: WorkloadContext
) -> Workload | None:
    """The workload of ``context`` without pauses; None if it has a schedule of its own."""
    workload = build(replace(context, trace_speedup=0.0))
    return None if workload.open_loop else _Unthinking(workload)


def operations_per_s(
    engine: Engine, recorder: Recorder, object_bytes: int, tick: Callable[[], bool]
) -> float | None:
    """Operations per second of a fresh engine, which is closed; None: it was stopped.

    ``object_bytes`` is what the engine counts for an operation.
    """
    filled_ns = time.monotonic_ns() + _FILL_NS
    try:
        engine.populate(lambda: tick() or time.monotonic_ns() > filled_ns)
        start_ns = time.monotonic_ns()
        end_ns = start_ns + _SPAN_NS
        recorder.open_window(Window(start_ns, end_ns))
        stopped_ns = engine.run(start_ns=start_ns, end_ns=end_ns, drain_s=_DRAIN_S, tick=tick)
    finally:
        engine.close()
    operations = (engine.counters.read_bytes + engine.counters.write_bytes) // object_bytes
    span_s = (stopped_ns - engine.began_ns) / 1e9
    return operations / span_s if operations and span_s > 0 else None
