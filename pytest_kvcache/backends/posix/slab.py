"""The slab store: objects in extents of a few big files that exist before the run.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, NoReturn

from pytest_kvcache.backends.posix.allocator import SlabAllocator, slab_count
from pytest_kvcache.backends.posix.fileio import (
    IN_FILES,
    StoreDirectory,
    direct_refusal,
    facts_of,
    move,
)
from pytest_kvcache.backends.posix.slabfile import (
    create_slab,
    reserve,
    slab_path,
    slabs_in,
)
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.backends.posix.allocator import Extent
    from pytest_kvcache.backends.posix.fileio import Transfer
    from pytest_kvcache.backends.protocol import BackendFacts, BackendPlan
    from pytest_kvcache.backends.traits import BackendTraits


class SlabBackend:
    """Objects in preallocated extents, which go round all slabs: neighbours are in others.

    ``probe`` tells why direct I/O is refused at a path, None if it works; ``reserver``
    sets space aside, False where the filesystem can't.
    """

    traits: ClassVar[BackendTraits] = IN_FILES

    def __init__(
        self,
        *,
        probe: Callable[[str], str | None] = direct_refusal,
        reserver: Callable[[int, int, int], bool] = reserve,
    ) -> None:
        self._probe = probe
        self._reserver = reserver
        self._place = StoreDirectory(host="", directory="")
        self._direct = False
        self._object_bytes = self._extent_bytes = 0
        self._fds: list[int] = []
        self._slabs = 0
        self.allocator = SlabAllocator(0)
        self._find = self.allocator.find

    def open(self, plan: BackendPlan) -> BackendFacts:
        """Create the slabs for all objects there will ever be, and reserve their space."""
        if plan.capacity_objects is None:
            raise StorageError(f"{plan.host}: slabs need the number of objects, got none")
        self._place = StoreDirectory.of(plan)
        self._object_bytes = plan.object_bytes
        self._extent_bytes = -(-plan.object_bytes // PAGE_BYTES) * PAGE_BYTES
        self._slabs = slab_count(plan.capacity_objects, self._extent_bytes)
        self.allocator = SlabAllocator(plan.capacity_objects, self._where)
        self._find = self.allocator.find
        try:
            self._direct, notes = self._place.choose_io(plan, self._probe)
            notes += self._create_slabs()
        except OSError as error:
            self.close()
            raise self._place.failure("prepare slabs in", self._place.directory, error) from error
        return facts_of(direct=self._direct, notes=notes)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        """Write ``buffer`` into the object's extent, which its first chunk allocates."""
        wanted = len(buffer)
        fd, begin = self.locate(key, offset, wanted, write=True)
        try:
            moved = self._move(os.pwritev, fd, begin, buffer)
        except OSError as error:
            raise self.failure("write", key, error) from error
        if moved != wanted:
            raise self.short("write", key, offset, wanted, moved)
        self.wrote(key, offset, wanted)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Read a part of the object into ``buffer``; what was not put is not there."""
        wanted = len(buffer)
        fd, begin = self.locate(key, offset, wanted, write=False)
        try:
            moved = self._move(os.preadv, fd, begin, buffer)
        except OSError as error:
            raise self.failure("read", key, error) from error
        if moved != wanted:
            raise self.short("read", key, offset, wanted, moved)

    def delete(self, key: str) -> None:
        """Free the object's extent; nothing is written."""
        if not self.allocator.release(key):
            self._absent("delete", key)

    def sync(self, key: str) -> None:
        """Call fdatasync on the object's slab; buffered, drop the object from the page cache."""
        fd, begin, length = self.locate_object("sync", key)
        try:
            os.fdatasync(fd)
            if not self._direct:
                os.posix_fadvise(fd, begin, length, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self.failure("sync", key, error) from error

    # --- where it is: posix/infiles.py ---------------------------------------------------

    @property
    def host(self) -> str:
        """This machine, for messages."""
        return self._place.host

    @property
    def buffered(self) -> bool:
        """Whether the slabs are not opened direct."""
        return not self._direct

    def locate(self, key: str, offset: int, length: int, *, write: bool) -> tuple[int, int]:
        """Return a part's slab and its position there; the first write takes an extent."""
        end = offset + length
        if write:
            if end > self._object_bytes:
                raise StorageError(
                    f"{self._place.host}: can't write bytes {offset} to {end} of object {key} in"
                    f" the slabs of {self._place.directory}; an object has"
                    f" {self._object_bytes} bytes"
                )
            extent = self._find(key) or self._allocate(key)
        else:
            extent = self._find(key) or self._absent("read", key)
            if end > extent.end_bytes:
                raise self.short("read", key, offset, length, max(0, extent.end_bytes - offset))
        return extent.fd, extent.begin + offset

    def locate_object(self, action: str, key: str) -> tuple[int, int, int]:
        """Return an object's slab, where its extent begins there, and its length."""
        extent = self._find(key) or self._absent(action, key)
        return extent.fd, extent.begin, self._extent_bytes

    def wrote(self, key: str, offset: int, length: int) -> None:
        """Note up to where an object was written."""
        extent = self._find(key) or self._absent("write", key)
        if length == self._object_bytes:
            extent.end_bytes = length  # in one transfer: there is no other one to race with
        else:
            self.allocator.extend(extent, offset + length)

    def failure(self, action: str, key: str, error: OSError) -> StorageError:
        """What the system said of an object, with the slab that holds it."""
        return self._place.failure(action, self._name(key), error)

    def short(self, action: str, key: str, offset: int, wanted: int, got: int) -> StorageError:
        """A part that is not all there."""
        return self._place.short(action, self._name(key), offset, wanted, got)

    def close(self) -> None:
        """Close the slabs; they stay where they are."""
        try:
            while self._fds:
                os.close(self._fds.pop())
        except OSError as error:
            raise self._place.failure("close a slab of", self._place.directory, error) from error

    def _create_slabs(self) -> list[str]:
        """Make all slabs anew; the answer is what people should know about them."""
        for path in slabs_in(self._place.directory):  # direct I/O may have been refused before
            path.unlink()
        directory, total = self._place.directory, self.allocator.total
        reserves = True
        for number in range(self._slabs):
            length = len(range(number, total, self._slabs)) * self._extent_bytes
            flags = os.O_DIRECT if self._direct else 0
            fd, reserved = create_slab(slab_path(directory, number), length, flags, self._reserver)
            self._fds.append(fd)
            reserves = reserves and reserved
            if not self._direct:
                # Read ahead, the next object would be in memory before anyone asks for it.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        note = (
            f"the filesystem of {directory} on {self._place.host} can't reserve space"
            " (fallocate): slabs get theirs when they are first written"
        )
        return [] if reserves else [note]

    def _move(self, call: Transfer, fd: int, begin: int, buffer: memoryview) -> int:
        if self._direct:
            moved = call(fd, (buffer,), begin)
            if moved == len(buffer):
                return moved  # as ever; the rest is for what comes in pieces
        return move(call, fd, begin, buffer, buffered=not self._direct)

    def _where(self, number: int) -> tuple[int, int]:
        """The slab's descriptor, and the byte in it at which an extent begins."""
        place, slab = divmod(number, self._slabs)
        return self._fds[slab], place * self._extent_bytes

    def _name(self, key: str) -> str:
        """The file that holds an object, and the object, for messages."""
        extent = self._find(key) or self._absent("find", key)
        path = slab_path(self._place.directory, extent.number % self._slabs)
        return f"{path} (object {key})"

    def _allocate(self, key: str) -> Extent:
        extent = self.allocator.allocate(key)
        if extent is None:
            raise StorageError(
                f"{self._place.host}: no room for object {key} in the slabs of"
                f" {self._place.directory}: all {self.allocator.total} extents hold an object;"
                " delete one first"
            )
        return extent

    def _absent(self, action: str, key: str) -> NoReturn:
        raise StorageError(
            f"{self._place.host}: can't {action} object {key}: the slabs of"
            f" {self._place.directory} hold no such object"
        )
