"""The memory backend: objects in this process, for calibration and for tests.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pytest_kvcache.backends.protocol import BackendFacts
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pytest_kvcache.backends.protocol import BackendPlan


class _Stored:
    """One object's memory and the end of what was put into it so far."""

    __slots__ = ("content", "end_bytes")

    def __init__(self, content: NDArray[np.uint8]) -> None:
        self.content = content
        self.end_bytes = 0


class MemoryBackend:
    """Copies objects into memory of their own, allocated at their first chunk.

    Memory of deleted objects is used again: a page's first touch costs more than the
    copy. numpy copies because it releases the GIL, which a memoryview does not.
    """

    traits: ClassVar[BackendTraits] = BackendTraits(
        unit="range",
        directory=False,
        bounded_by="memory",
        smallest_part_bytes=1,
        largest_part_bytes=None,
        alignment_bytes=1,
        kernel_counts=False,
        is_storage=False,
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, _Stored] = {}
        self._spare: list[NDArray[np.uint8]] = []
        self._object_bytes = 0
        self._host = ""

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Take the object size; ``plan.directory`` may be None."""
        self._object_bytes = plan.object_bytes
        self._host = plan.host
        return BackendFacts(io_mode="none", io_note=None)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy ``buffer`` into the object; it must lie within the planned object size."""
        end = offset + len(buffer)
        if end > self._object_bytes:
            raise StorageError(
                f"{self._host}: can't write bytes {offset} to {end} of memory object {key};"
                f" an object has {self._object_bytes} bytes"
            )
        stored = self._objects.get(key) or self._allocate(key)
        stored.content[offset:end] = np.frombuffer(buffer, np.uint8)
        with self._lock:
            stored.end_bytes = max(stored.end_bytes, end)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Copy a part of the object into ``buffer``."""
        stored = self._find(key, "read")
        end = offset + len(buffer)
        if end > stored.end_bytes:
            got = max(0, stored.end_bytes - offset)
            raise StorageError(
                f"{self._host}: short read of memory object {key} at offset {offset}:"
                f" wanted {len(buffer)} bytes, got {got}"
            )
        np.frombuffer(buffer, np.uint8)[:] = stored.content[offset:end]

    def delete(self, key: str) -> None:
        """Forget the object and keep its memory for the next one."""
        with self._lock:
            stored = self._objects.pop(key, None)
            if stored is None:
                raise self._absent(key, "delete")
            self._spare.append(stored.content)

    def sync(self, key: str) -> None:
        """Do nothing: memory is not durable; an absent object is an error."""
        self._find(key, "sync")

    def close(self) -> None:
        """Free every object."""
        with self._lock:
            self._objects.clear()
            self._spare.clear()

    def _allocate(self, key: str) -> _Stored:
        with self._lock:
            stored = self._objects.get(key)
            if stored is None:
                stored = self._objects[key] = _Stored(self._room(key))
            return stored

    def _room(self, key: str) -> NDArray[np.uint8]:
        if self._spare:
            return self._spare.pop()
        try:
            return np.zeros(self._object_bytes, np.uint8)
        except MemoryError as error:
            raise StorageError(
                f"{self._host}: no memory for the {self._object_bytes} bytes of memory object"
                f" {key}; lower --kv-storage-capacity-gb"
            ) from error

    def _find(self, key: str, action: str) -> _Stored:
        stored = self._objects.get(key)
        if stored is None:
            raise self._absent(key, action)
        return stored

    def _absent(self, key: str, action: str) -> StorageError:
        return StorageError(
            f"{self._host}: can't {action} memory object {key}: there is no such object"
        )
