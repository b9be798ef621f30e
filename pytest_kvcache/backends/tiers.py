"""Backends of memory tiers: a fixed piece of memory that holds as much as it has, and no more.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from pytest_kvcache.backends.arenas import (
    CupyArena,
    FreePages,
    HostArena,
    TorchArena,
)
from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendFacts, BackendPlan
from pytest_kvcache.errors import StorageError
from pytest_kvcache.system.gpus import LIBRARIES, device_count
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_kvcache.backends.arenas import Arena, Run
    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.backends.traits import BackendTraits

TierKind: TypeAlias = Literal["memory", "index", "simulated", "torch", "cupy"]
MakeArena: TypeAlias = "Callable[[int], Arena]"


def open_tier(
    kind: TierKind,
    *,
    capacity_bytes: int,
    object_bytes: int,
    chunk_bytes: int,
    host: str,
    local_index: int,
) -> Backend | None:
    """Return an open backend whose memory is touched; None for ``index``, which holds nothing.

    ``object_bytes`` is what the largest object has; ``local_index``, the rank's number among
    those of its host, chooses the device. StorageError where it can't be had.
    """
    if kind == "index":
        return None
    backend = TierBackend(capacity_bytes, _arenas(kind, local_index, host), kind=kind)
    backend.open(
        BackendPlan(
            directory=None,
            object_bytes=object_bytes,
            chunk_bytes=chunk_bytes,
            io="buffered",
            sync="none",
            host=host,
            namespace="",
        )
    )
    return backend


def _arenas(kind: TierKind, local_index: int, host: str) -> MakeArena:
    """What makes the memory: ranks of a host take its devices in turn."""
    if kind not in LIBRARIES:
        return HostArena
    library = LIBRARIES[kind]
    try:
        devices = device_count(kind)
    except (ImportError, RuntimeError, OSError) as error:
        raise StorageError(f"{host}: no gpu tier by {library}: {_said(error)}") from error
    if not devices:
        raise StorageError(f"{host}: no gpu tier by {library}, which finds no device")
    number = local_index % devices
    if kind == "torch":
        return partial(TorchArena, device=f"cuda:{number}")
    return partial(CupyArena, device=number)


class TierBackend:
    """Keeps objects in pages of one arena, each part of an object in whole pages of its own.

    Never more than ``capacity_bytes`` of them, all of which it has from when it is opened
    until it is closed; what is known of a part takes some hundred bytes beside it.
    """

    traits: ClassVar[BackendTraits] = MemoryBackend.traits

    def __init__(
        self, capacity_bytes: int, make_arena: MakeArena = HostArena, *, kind: TierKind = "memory"
    ) -> None:
        pages = capacity_bytes // PAGE_BYTES
        self._kind = kind
        self._capacity_bytes = pages * PAGE_BYTES
        self._make_arena = make_arena
        self._arena: Arena | None = None
        self._lock = threading.Lock()
        self._pages = FreePages(pages)
        self._objects: dict[str, dict[int, _Part]] = {}  # key → offset → part
        self._object_bytes = 0
        self._host = ""

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Take the memory, all of it."""
        self._host, self._object_bytes = plan.host, plan.object_bytes
        try:
            self._arena = self._make_arena(self._capacity_bytes)
        except (ImportError, MemoryError, RuntimeError) as error:
            size = format_bytes(self._capacity_bytes)
            tier, fix = "gpu", "lower --kv-gpu-mem-gb, or run fewer ranks on each host"
            if self._kind == "memory":
                tier, fix = "cpu", "lower --kv-cpu-mem-gb, or take --kv-cpu-tier=index"
            raise StorageError(
                f"{self._host}: the {size} of a rank's {tier} tier can't be had"
                f" ({_said(error)}); {fix}"
            ) from error
        return BackendFacts(io_mode="none", io_note=None)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy ``buffer`` into pages that are the object's from now on."""
        source = np.frombuffer(buffer, np.uint8)
        part = self._take(key, offset, source.size)
        try:
            with self._copying(key, "write") as arena:
                done = 0
                for begin, size in part.places(0, source.size):
                    arena.put(begin, source[done : done + size])
                    done += size
        except StorageError:
            with self._lock:
                self._pages.give_back(part.runs)
            raise
        with self._lock:
            self._objects.setdefault(key, {})[offset] = part

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy what lies there of the object into ``buffer``."""
        target = np.frombuffer(buffer, np.uint8)
        done = 0
        with self._copying(key, "read") as arena:
            for begin, size in self._places(key, offset, offset + target.size):
                arena.get(begin, target[done : done + size])
                done += size
        if done < target.size:
            raise StorageError(
                f"{self._host}: short read of object {key} of a tier at offset {offset}:"
                f" wanted {target.size} bytes, got {done}"
            )

    def delete(self, key: str) -> None:
        """Free the object's pages."""
        with self._lock:
            parts = self._objects.pop(key, None)
            for part in (parts or {}).values():
                self._pages.give_back(part.runs)
        if parts is None:
            raise self._absent(key, "delete")

    def sync(self, key: str) -> None:
        """Do nothing: memory is not durable; an absent object is an error."""
        self._find(key, "sync")

    def close(self) -> None:
        """Give the memory back, and all objects with it."""
        with self._lock:
            self._objects.clear()
            self._arena = None

    @contextmanager
    def _copying(self, key: str, action: str) -> Iterator[Arena]:
        """A device fails with RuntimeError, whatever it is."""
        if self._arena is None:
            raise StorageError(f"{self._host}: can't {action} object {key} of a tier: it is closed")
        try:
            yield self._arena
        except RuntimeError as error:
            raise StorageError(
                f"{self._host}: can't {action} object {key} of a tier: {_said(error)}"
            ) from error

    def _take(self, key: str, offset: int, size: int) -> _Part:
        end = offset + size
        if end > self._object_bytes:
            raise StorageError(
                f"{self._host}: can't write bytes {offset} to {end} of object {key} of a tier;"
                f" an object has {self._object_bytes} bytes"
            )
        with self._lock:
            runs = self._pages.take(-(-size // PAGE_BYTES))
            free = self._pages.free
        if runs is None:
            raise StorageError(
                f"{self._host}: no room for {size} bytes of object {key} of a tier, which has"
                f" {self._capacity_bytes} bytes and {free * PAGE_BYTES} free"
            )
        return _Part(runs, size)

    def _places(self, key: str, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Byte of the arena and bytes, piece by piece; it ends where the object has none."""
        parts = self._find(key, "read")
        while offset < end:
            first = offset if offset in parts else _last_before(parts, offset)
            if first is None or offset >= first + parts[first].size:
                return
            upto = min(end, first + parts[first].size)
            yield from parts[first].places(offset - first, upto - first)
            offset = upto

    def _find(self, key: str, action: str) -> dict[int, _Part]:
        parts = self._objects.get(key)
        if parts is None:
            raise self._absent(key, action)
        return parts

    def _absent(self, key: str, action: str) -> StorageError:
        return StorageError(
            f"{self._host}: can't {action} object {key} of a tier: there is no such object"
        )


class _Part:
    """What one call has put of an object: its size, and the pages it is in."""

    __slots__ = ("runs", "size")

    def __init__(self, runs: list[Run], size: int) -> None:
        self.runs = runs
        self.size = size

    def places(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Byte of the arena and bytes of what lies between two bytes of the part."""
        at = 0  # of the part, where the run begins
        for first, pages in self.runs:
            low, high = max(begin, at), min(end, at + pages * PAGE_BYTES)
            if low < high:
                yield first * PAGE_BYTES + low - at, high - low
            at += pages * PAGE_BYTES


def _last_before(offsets: Sequence[int] | dict[int, _Part], offset: int) -> int | None:
    return max((each for each in offsets if each < offset), default=None)


def _said(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]
