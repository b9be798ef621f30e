"""Objects in slots of one file, by the calls that an engine makes: one for each object.

Rank side: imports neither pytest nor MPI. Which slots are free is known in memory alone, as it
is in the engines that keep their objects so; the file does not outlive the rank.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.fileio import StoreDirectory, direct_refusal, facts_of
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.calls import SlotCalls
    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan

_NAME = "slots"


class EngineSlots:
    """Stores and loads whole objects, each in a slot as large as the largest one.

    ``probe`` tells why direct I/O is refused at a path, None if it works.
    """

    def __init__(
        self, calls: SlotCalls, *, probe: Callable[[str], str | None] = direct_refusal
    ) -> None:
        self._calls = calls
        self._probe = probe
        self._place = StoreDirectory(host="", directory="")
        self._path = ""
        self._fd = -1
        self._header_bytes = calls.header_room_bytes
        self._slot_bytes = 0
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._lock = threading.Lock()  # of the two before: several threads store and delete

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Make the file; StorageError where the plan does not say for how many objects."""
        self._place = StoreDirectory.of(plan)
        self._path = f"{self._place.directory}/{_NAME}"
        if plan.capacity_objects is None:
            raise StorageError(
                f"{plan.host}: slots are made for a number of objects, and the plan names none"
            )
        self._slot_bytes = self._header_bytes + plan.object_bytes
        self._free = list(range(plan.capacity_objects - 1, -1, -1))
        try:
            direct, notes = self._place.choose_io(plan, self._probe)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags | (os.O_DIRECT if direct else 0), 0o600)
            if not self._make_room(plan.capacity_objects * self._slot_bytes):
                notes.append(
                    f"the filesystem of {self._place.directory} on {plan.host} allocates nothing"
                    " ahead: the file of slots is sparse"
                )
        except OSError as error:
            self.close()
            raise self._place.failure("prepare", self._path, error) from error
        return facts_of(direct=direct, notes=notes)

    def _make_room(self, size_bytes: int) -> bool:
        """Whether there is as much room as was to be allocated, if any was."""
        allocated = not self._calls.allocates or _allocate(self._fd, size_bytes)
        os.ftruncate(self._fd, size_bytes)
        if self._calls.unlinked:
            Path(self._path).unlink()
        return allocated

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Write a whole object into a free slot, with what lies before it."""
        with self._lock:
            if key not in self._slots:
                self._slots[key] = self._free.pop()
            slot = self._slots[key]
        parts = self._parts(buffer)
        wanted = len(buffer) + self._header_bytes
        try:
            moved = os.pwritev(self._fd, parts, slot * self._slot_bytes)
        except OSError as error:
            raise self._failure("write", key, error) from error
        if moved != wanted:
            raise self._place.short("write", f"{key} in {self._path}", offset, wanted, moved)

    def _parts(self, buffer: memoryview) -> list[memoryview | bytes]:
        calls = self._calls
        if not calls.header:
            return _cut(buffer, calls.vectors)
        fill = PAGE_BYTES - sum(calls.header)
        return [*map(bytes, calls.header), *_cut(buffer, calls.vectors), bytes(fill)]

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read a whole object, and what lies before it by calls of its own."""
        slot = self._slot("read", key)
        at = slot * self._slot_bytes
        try:
            for size in self._calls.header:
                os.preadv(self._fd, (bytearray(size),), at)
                at += size
            moved = os.preadv(self._fd, _cut(buffer, self._calls.vectors), at + offset)
        except OSError as error:
            raise self._failure("read", key, error) from error
        if moved != len(buffer):
            raise self._place.short("read", f"{key} in {self._path}", offset, len(buffer), moved)

    def delete(self, key: str) -> None:
        """Free the object's slot, which no call tells the system."""
        slot = self._slot("delete", key)
        with self._lock:
            del self._slots[key]
            self._free.append(slot)

    def sync(self, key: str) -> None:
        """Refuse: no engine syncs, and a plan that asks for it is refused before."""
        raise NotImplementedError(f"object {key} is to be synced, which no engine's calls do")

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _slot(self, action: str, key: str) -> int:
        slot = self._slots.get(key)
        if slot is None:
            raise StorageError(f"{self._place.host}: can't {action} {key}: it is not stored")
        return slot

    def _failure(self, action: str, key: str, error: OSError) -> StorageError:
        return self._place.failure(action, f"{key} in {self._path}", error)


def _allocate(fd: int, size_bytes: int) -> bool:
    """Whether fallocate(2) works here; glibc's posix_fallocate would write zeros where it does not.

    Raises OSError for any other reason, a full disk for one.
    """
    call = ctypes.CDLL(None, use_errno=True).fallocate
    if not call(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
        return True
    problem = ctypes.get_errno()
    if problem not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(problem, os.strerror(problem))
    return False


def _cut(buffer: memoryview, pieces: int) -> list[memoryview | bytes]:
    """A buffer in equal pieces of whole pages, as many as there can be."""
    pages = -(-len(buffer) // PAGE_BYTES)
    each = -(-pages // min(pieces, pages)) * PAGE_BYTES
    return [buffer[begin : begin + each] for begin in range(0, len(buffer), each)]
