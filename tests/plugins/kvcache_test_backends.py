"""Backends that go wrong on purpose, as a plugin: ``--kv-plugin kvcache_test_backends``."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest_kvcache
from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_kvcache.backends.protocol import Backend, BackendPlan


class SlowBackend(MemoryBackend):
    """Every transfer takes ``KVCACHE_TEST_SLEEP_S`` longer."""

    def _sleep(self) -> None:
        time.sleep(float(os.environ.get("KVCACHE_TEST_SLEEP_S", "0.001")))

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._sleep()
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._sleep()
        super().get_into(key, offset, buffer)


class _OnRankOne(MemoryBackend):
    """Misbehaves on rank 1, once it has served some reads."""

    _served = 0
    _lock = threading.Lock()

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        super().get_into(key, offset, buffer)
        if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) != "2":
            return
        with self._lock:
            self._served += 1
            if self._served == 100:
                self.misbehave(buffer)

    def misbehave(self, buffer: memoryview) -> None:
        """What goes wrong."""
        raise NotImplementedError


class RaisingBackend(_OnRankOne):
    def misbehave(self, buffer: memoryview) -> None:
        raise RuntimeError("a bug in a backend")


class FailingBackend(_OnRankOne):
    def misbehave(self, buffer: memoryview) -> None:
        raise StorageError("host h: reading object x: Input/output error")


class CorruptBackend(_OnRankOne):
    def misbehave(self, buffer: memoryview) -> None:
        buffer[0] ^= 1


class FlippedBitBackend(_OnRankOne):
    """A bit of the content, in the middle of a page: only a check of every byte sees it."""

    def misbehave(self, buffer: memoryview) -> None:
        buffer[-1000] ^= 1


class KilledBackend(_OnRankOne):
    def misbehave(self, buffer: memoryview) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class LeavingBackend(_OnRankOne):
    def misbehave(self, buffer: memoryview) -> None:
        os._exit(0)


class HangingBackend(_OnRankOne):
    """Hangs in a read; the rank's main thread goes on reporting."""

    def misbehave(self, buffer: memoryview) -> None:
        time.sleep(600)


class LingeringBackend(_OnRankOne):
    """Hangs in a read for ``KVCACHE_TEST_LINGER_S``; the reads behind it wait as well."""

    def misbehave(self, buffer: memoryview) -> None:
        time.sleep(float(os.environ["KVCACHE_TEST_LINGER_S"]))


class StallingBackend(MemoryBackend):
    """Every transfer takes 5 ms; some kinds of calls stall between two moments.

    ``KVCACHE_TEST_STALL`` is ``kinds from to [rank]``, such as ``get,put 2.5 4.5 1``; several
    of them are separated by semicolons. The moments are seconds after the first read or
    delete: populating the cache makes none. ``KVCACHE_TEST_DRIFT`` is ``more_s from``: from
    that moment on every transfer takes so much longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._began: float | None = None
        rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "1"))) - 1
        parts = [part.split() for part in os.environ.get("KVCACHE_TEST_STALL", "").split(";")]
        self._stalls = [
            (kinds.split(","), float(begin), float(end))
            for kinds, begin, end, *ranks in filter(None, parts)
            if not ranks or int(ranks[0]) == rank
        ]
        self._more_s, self._from_s = map(
            float, os.environ.get("KVCACHE_TEST_DRIFT", "0 1e9").split()
        )

    def _wait(self, kind: str) -> None:
        if self._began is None and kind != "put":
            self._began = time.monotonic()
        time.sleep(0.005)
        if self._began is None:
            return
        since_s = time.monotonic() - self._began
        if since_s > self._from_s:
            time.sleep(self._more_s)
        for kinds, begin_s, end_s in self._stalls:
            if kind in kinds and begin_s <= since_s < end_s:
                time.sleep(end_s - since_s)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._wait("put")
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._wait("get")
        super().get_into(key, offset, buffer)

    def delete(self, key: str) -> None:
        self._wait("delete")
        super().delete(key)


class EarlyExitBackend(MemoryBackend):
    def open(self, plan: BackendPlan) -> None:  # type: ignore[override]  # it never returns
        os._exit(0)


@pytest_kvcache.hookimpl
def kvcache_backends() -> Mapping[str, Callable[[], Backend]]:
    return {
        "slow": SlowBackend,
        "raising": RaisingBackend,
        "failing": FailingBackend,
        "corrupt": CorruptBackend,
        "flipped-bit": FlippedBitBackend,
        "killed": KilledBackend,
        "leaving": LeavingBackend,
        "hanging": HangingBackend,
        "lingering": LingeringBackend,
        "stalling": StallingBackend,
        "early-exit": EarlyExitBackend,
    }
