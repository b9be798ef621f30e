"""The ring engine of objects that have a file each, which their transfers share.

Rank side: imports neither pytest nor MPI.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.infiles import ObjectFiles
from pytest_kvcache.backends.posix.openfiles import MAX_IDLE_FILES
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.ioengines.ring import MOVES, RingEngine

if TYPE_CHECKING:
    from pytest_kvcache.errors import StorageError


class _OpenFile:
    """A file that transfers of one object share; ``left`` are those that have not ended."""

    __slots__ = ("fd", "left", "opening", "parked", "users")

    def __init__(self) -> None:
        self.fd = -1
        self.left = 0
        self.users = 0
        self.opening = False
        self.parked: list[int] = []


class FileEngine(RingEngine[ObjectFiles]):
    """A file per object, opened by its first transfer and closed by its last.

    Or by its sync, if there will be one. A failed transfer, or one that never comes, leaves
    the file open: at most `MAX_IDLE_FILES` of those, then the oldest is closed.
    """

    def _make_slots(self, count: int) -> None:
        super()._make_slots(count)
        self._open: tuple[dict[str, _OpenFile], dict[str, _OpenFile]] = ({}, {})
        self._used: list[_OpenFile | None] = [None] * count  # by the slot's transfer

    def _files_of(self, kind: int) -> dict[str, _OpenFile]:
        return self._open[kind == WRITE]

    def _arrive(self, slot: int, transfers: int) -> None:
        kind, key = self._kind[slot], self._key[slot]
        if kind in MOVES and not self._offset[slot]:
            self._files_of(kind).setdefault(key, _OpenFile()).left += transfers

    def _first_call(self, slot: int) -> bool:
        kind, key = self._kind[slot], self._key[slot]
        if kind == DELETE:
            for files in self._open:
                _close(files.pop(key, None))
            self._ask_path(slot, kernel.UNLINK, key)
        elif kind == SYNC:
            file = self._files_of(WRITE).pop(key, None)
            if file is None or file.fd < 0:
                self._ask_path(slot, kernel.OPEN, key, os.O_RDWR)
            else:
                self._fd[slot] = file.fd
                self._prepare(slot, kernel.DATASYNC, file.fd)
        else:
            return self._use(slot, self._files_of(kind).setdefault(key, _OpenFile()))
        return True

    def _use(self, slot: int, file: _OpenFile) -> bool:
        """Begin a transfer of an open file, or open it, or wait for whoever opens it."""
        file.users += 1
        self._used[slot] = file
        if file.fd >= 0:
            self._move(slot, file.fd, self._offset[slot])
        elif file.opening:
            file.parked.append(slot)
            return False
        else:
            self._open_for(slot, file)
        return True

    def _open_for(self, slot: int, file: _OpenFile) -> None:
        file.opening = True
        kind = self._kind[slot]
        self._make_room(self._files_of(kind))
        flags = self._files.write_flags if kind == WRITE else self._files.read_flags
        self._ask_path(slot, kernel.OPEN, self._key[slot], flags)

    def _ask_path(self, slot: int, call: int, key: str, flags: int = 0) -> None:
        assert self._queue is not None
        self._call[slot] = call
        self._queue.prepare_path(slot, call, os.fsencode(self._files.path(key)), flags)

    def _answered(self, slot: int, answer: int, now: int) -> None:
        call, kind = self._call[slot], self._kind[slot]
        if call == kernel.OPEN and kind != SYNC:
            self._opened(slot, answer, now)
        elif answer < 0:
            if kind == SYNC and call in (kernel.DATASYNC, kernel.DROP_CACHE):
                os.close(self._fd[slot])
            self._fail(slot, answer, now)
        elif call == kernel.OPEN:
            self._fd[slot] = answer
            self._proceed(slot, kernel.DATASYNC, answer)
        elif call == kernel.DATASYNC and self._files.buffered:
            self._proceed(slot, kernel.DROP_CACHE, self._fd[slot])
        elif call == kernel.DATASYNC or (call == kernel.DROP_CACHE and kind == SYNC):
            self._proceed(slot, kernel.CLOSE, self._fd[slot])
        elif call == kernel.DROP_CACHE:
            self._leave(slot, now)
        else:
            self._end(slot, now, None)

    def _opened(self, slot: int, answer: int, now: int) -> None:
        file = self._used[slot]
        assert file is not None
        waiting, file.parked, file.opening = [slot, *file.parked], [], False
        file.fd = max(answer, -1)
        for each in waiting:
            if answer < 0:
                self._fail(each, answer, now)
            else:
                self._move(each, answer, self._offset[each])
                self._more.append(each)

    def _moved_all(self, slot: int, now: int) -> None:
        if self._kind[slot] == READ and self._files.buffered:
            self._proceed(
                slot, kernel.DROP_CACHE, self._fd[slot], self._offset[slot], self._length[slot]
            )
        else:
            self._leave(slot, now)

    def _leave(self, slot: int, now: int) -> None:
        """End a transfer that went well; the object's last one closes the file first."""
        file = self._leave_file(slot)
        if file is None or file.fd < 0:
            self._end(slot, now, None)
        else:
            self._proceed(slot, kernel.CLOSE, file.fd)

    def _end(self, slot: int, now: int, error: StorageError | None) -> None:
        if self._used[slot] is not None:  # it went wrong
            _close(self._leave_file(slot))
        super()._end(slot, now, error)

    def _leave_file(self, slot: int) -> _OpenFile | None:
        """The slot's transfer is over; returns the file if it is to be closed now."""
        file, self._used[slot] = self._used[slot], None
        assert file is not None
        file.users -= 1
        file.left -= 1
        return self._retired(slot, file)

    def _retired(self, slot: int, file: _OpenFile) -> _OpenFile | None:
        kind = self._kind[slot]
        if file.left > 0 or file.users or (kind == WRITE and self._files.holds_for_sync):
            return None
        self._files_of(kind).pop(self._key[slot], None)
        return file

    def _take_back(self, slot: int) -> None:
        kind = self._kind[slot]
        if kind == SYNC and self._ready[slot] and self._call[slot] == kernel.DATASYNC:
            os.close(self._fd[slot])  # of its object it was the only call
        if kind not in MOVES:
            return
        file = self._used[slot]
        if file is None:
            file = self._files_of(kind).get(self._key[slot])
            if file is not None:
                file.left -= 1
                _close(self._retired(slot, file))
            return
        if file.opening and self._call[slot] == kernel.OPEN:
            self._hand_on(file)
        _close(self._leave_file(slot))

    def _hand_on(self, file: _OpenFile) -> None:
        """Whoever was to open the file does not: the first of those that wait does."""
        file.opening = False
        if file.parked:
            slot = file.parked.pop(0)
            self._open_for(slot, file)
            self._more.append(slot)

    def _make_room(self, files: dict[str, _OpenFile]) -> None:
        """Close the file that has been idle for longest if there are too many of them."""
        if len(files) <= MAX_IDLE_FILES:
            return
        idle = [file for file in files.values() if file.fd >= 0 and not file.users]
        if len(idle) >= MAX_IDLE_FILES:
            _close(idle[0])

    def _close_files(self) -> None:
        for files in self._open:
            for file in files.values():
                _close(file)
            files.clear()


def _close(file: _OpenFile | None) -> None:
    """Close it here and now, which few are: those of operations that were not carried through."""
    if file is not None and file.fd >= 0:
        os.close(file.fd)
        file.fd = -1
