"""The ring engine of objects that lie in files which stay open.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.infiles import Slabs
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.ioengines.ring import RingEngine

if TYPE_CHECKING:
    from collections.abc import Sequence


class SlabEngine(RingEngine[Slabs]):
    """Objects in files that stay open: a transfer is one call."""

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Open the queue; what is asked per transfer is looked up once."""
        super().register(buffers)
        assert self._queue is not None
        self._fill = self._queue.prepare
        self._find = self._files.locate
        self._direct = not self._files.buffered

    def _arrive(self, slot: int, transfers: int) -> None:  # noqa: ARG002 - all files are open
        if self._kind[slot] != READ:
            return
        length = self._length[slot]
        try:
            fd, position = self._find(self._key[slot], self._offset[slot], length, write=False)
        except StorageError:  # found again, and reported, when it begins
            return
        if self._direct:
            self._whole[slot] = length
        self._fd[slot] = fd
        self._position[slot] = position
        self._call[slot] = kernel.READ
        self._fill(slot, kernel.READ, fd, position, length)
        self._ready[slot] = True

    def _locate(self, slot: int) -> None:
        """Find where a write goes, or say why a read can't be made."""
        length, writes = self._length[slot], self._kind[slot] == WRITE
        fd, position = self._find(self._key[slot], self._offset[slot], length, write=writes)
        self._move(slot, fd, position)

    def _first_call(self, slot: int) -> bool:
        kind, key = self._kind[slot], self._key[slot]
        try:
            if kind == DELETE:
                self._files.delete(key)
                self._end(slot, self._clock(), None)
                return False
            if kind == SYNC:
                fd, *room = self._files.locate_object("sync", key)
                self._fd[slot] = fd
                self._position[slot], self._length[slot] = room
                self._prepare(slot, kernel.DATASYNC, fd)
            else:
                self._locate(slot)
        except StorageError as error:
            self._end(slot, self._clock(), error)
            return False
        return True

    def _moved_all(self, slot: int, now: int) -> None:
        if self._kind[slot] == WRITE:
            self._files.wrote(self._key[slot], self._offset[slot], self._length[slot])
            self._end(slot, now, None)
        elif self._files.buffered:
            self._drop(slot)
        else:
            self._end(slot, now, None)

    def _answered(self, slot: int, answer: int, now: int) -> None:
        if answer < 0:
            self._fail(slot, answer, now)
        elif self._call[slot] == kernel.DATASYNC and self._files.buffered:
            self._drop(slot)
        else:
            self._end(slot, now, None)

    def _drop(self, slot: int) -> None:
        self._proceed(
            slot, kernel.DROP_CACHE, self._fd[slot], self._position[slot], self._length[slot]
        )

    def _take_back(self, slot: int) -> None:
        """A write takes its room when it begins."""

    def _close_files(self) -> None:
        """Close nothing: the slabs are the backend's."""
