"""Engines on a real directory, and a backend that goes through one, for tests of I/O engines.

Not a test module.
"""

from __future__ import annotations

import mmap
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_kvcache.backends.posix.backend import StoreBackend
from pytest_kvcache.backends.posix.file import FileBackend
from pytest_kvcache.backends.posix.slab import SlabBackend
from pytest_kvcache.ioengines.libaio import Context
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.ioengines.ringfiles import FileEngine
from pytest_kvcache.ioengines.ringslabs import SlabEngine
from pytest_kvcache.ioengines.uring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import Completion
    from pytest_kvcache.ioengines.ring import RingEngine
    from pytest_kvcache.system.kernelqueues import KernelEngine

DEPTH = 8
SECOND_NS = 1_000_000_000


def queue_of(name: str, depth: int = DEPTH) -> Callable[[int], Queue]:
    return Ring if name == "io_uring" else lambda slots: Context(slots, depth)


def buffers(count: int, size: int) -> list[memoryview]:
    memory = memoryview(mmap.mmap(-1, count * size))
    return [memory[number * size : (number + 1) * size] for number in range(count)]


def engine_of(
    name: KernelEngine,
    backend: StoreBackend,
    depth: int = DEPTH,
    queue: Callable[[int], Queue] | None = None,
) -> RingEngine[Any]:
    store = backend.in_files
    opened = queue or queue_of(name, depth)
    if isinstance(store, SlabBackend):
        return SlabEngine(name, store, depth, opened)
    assert isinstance(store, FileBackend)
    return FileEngine(name, store, depth, opened)


def finish(engine: RingEngine[Any], within_s: float = 20) -> list[Completion]:
    """All completions of what is in flight and staged."""
    found: list[Completion] = []
    until = time.monotonic() + within_s
    while True:
        begun = engine.submit(engine.depth)
        if not begun and not engine._staged and not engine.in_flight and not engine.look():
            return found
        engine.submit(0, time.monotonic_ns() + SECOND_NS // 10)
        engine.look()
        found += engine.reap()
        assert time.monotonic() < until


class ThroughEngine:
    """A backend whose transfers an engine carries out, one at a time, for the contract."""

    traits: ClassVar[BackendTraits] = StoreBackend.traits

    def __init__(self, name: KernelEngine, chunk_bytes: int) -> None:
        self._name = name
        self._chunk_bytes = chunk_bytes
        self._store = StoreBackend()
        self._lock = threading.Lock()
        self.engine: RingEngine[Any] | None = None

    def open(self, plan: BackendPlan) -> BackendFacts:
        facts = self._store.open(plan)
        self._object_bytes = plan.object_bytes
        self.engine = engine_of(self._name, self._store)
        self._buffers = buffers(4, self._chunk_bytes)
        self.engine.register([*self._buffers, memoryview(b"")])
        return facts

    def _call(self, kind: int, key: str, offset: int, length: int) -> None:
        engine, slot = self.engine, 4 if kind in (SYNC, DELETE) else 0
        assert engine is not None
        # Each call is one operation of one transfer, whichever part it is of.
        view = memoryview(b"") if slot else self._buffers[0][:length]
        engine.stage(slot, kind, key, offset, view, 1)
        ((answered, _, _, error),) = finish(engine)
        assert answered == slot
        if error is not None:
            raise error

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        with self._lock:
            self._buffers[0][: len(buffer)] = buffer
            self._call(WRITE, key, offset, len(buffer))

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        with self._lock:
            self._call(READ, key, offset, len(buffer))
            buffer[:] = self._buffers[0][: len(buffer)]

    def delete(self, key: str) -> None:
        with self._lock:
            self._call(DELETE, key, 0, 0)

    def sync(self, key: str) -> None:
        with self._lock:
            self._call(SYNC, key, 0, 0)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self._store.close()
