"""The engines that have the kernel move bytes by itself: io_uring and libaio, behind one face.

Rank side: imports neither pytest nor MPI. A transfer is one or several calls of its slot, one
after the other: open the file, move, move what was missing, drop from the page cache, close.
Which calls those are depends on where objects lie: `SlabEngine` finds files open,
`FileEngine` opens one per object, which the object's transfers share. What a call begins by its
end is begun in `look`, for the storage should not wait for the loop's other work.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from pytest_kvcache.backends.posix.infiles import InFiles, ObjectFiles, Slabs
from pytest_kvcache.backends.posix.openfiles import MAX_IDLE_FILES
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import Completion, IoEngineName

_ACTIONS = {READ: "read", WRITE: "write", SYNC: "sync", DELETE: "delete"}
_MOVES = {READ: kernel.READ, WRITE: kernel.WRITE}
_INTERRUPTED = (-errno.EINTR, -errno.EAGAIN)
# A kernel that has no memory for a call now may have some a moment later.
_PATIENCE_S, _MOST_REFUSALS = 0.001, 10_000
_A_SECOND_NS = 1_000_000_000
_NOTHING = -1  # no answer of the kernel: an ended call was not all of its transfer

Files = TypeVar("Files", bound=InFiles)


class RingEngine(Generic[Files]):
    """Slots, their calls, stamps and ends; a subclass says which calls a slot makes.

    ``open_queue(slots)`` makes the kernel's queue as soon as their number is known.
    """

    def __init__(
        self,
        name: IoEngineName,
        files: Files,
        depth: int,
        open_queue: Callable[[int], Queue],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.name = name
        self.depth = depth
        self.in_flight = 0
        self.lags_ns: list[int] = []
        self._files = files
        self._open_queue = open_queue
        self._clock = clock
        self._queue: Queue | None = None
        self._staged: deque[int] = deque()
        self._more: list[int] = []  # next calls of slots in flight
        self._ended: list[Completion] = []
        self._looked_ns = 0
        self._refusals = 0
        self._make_slots(0)

    def _make_slots(self, count: int) -> None:
        self._kind = [0] * count
        self._key = [""] * count
        self._offset = [0] * count
        self._length = [0] * count
        self._moved = [0] * count
        self._ready = [False] * count  # the first call is prepared
        self._whole = [_NOTHING] * count  # the answer with which all is done
        self._call = [0] * count  # what the kernel is at
        self._fd = [-1] * count
        self._position = [0] * count
        self._started = [0] * count
        self._waits_since = [0] * count  # 0: the slot is not in flight

    @property
    def notes(self) -> Sequence[str]:
        """What people should know about the kernel's queue."""
        return () if self._queue is None else tuple(self._queue.notes)

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Open the queue for as many slots; slot n has the nth buffer."""
        self._make_slots(len(buffers))
        try:
            self._queue = self._open_queue(len(buffers))
        except OSError as error:
            raise self._refusal(error) from error
        self._queue.register(buffers)

    # --- what the loop calls --------------------------------------------------------------------

    def stage(  # noqa: PLR0917 - on the timed path, where keywords cost
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        """Remember what the slot is to do, and get its first call ready where that is known."""
        self._kind[slot] = kind
        self._key[slot] = key
        self._offset[slot] = offset
        self._length[slot] = len(view)
        self._moved[slot] = 0
        self._ready[slot] = False
        self._whole[slot] = _NOTHING
        self._arrive(slot, transfers)
        self._staged.append(slot)

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        """Begin the first of those staged; with a time, sleep until something ends."""
        staged, ready, since, started = self._staged, self._ready, self._waits_since, self._started
        count = min(limit, len(staged), self.depth - self.in_flight)
        self.in_flight += count
        now = self._clock()
        if self.in_flight == count:
            self._looked_ns = now  # nothing flew before: nothing can have ended
        calls, self._more = self._more, []
        first = len(calls)  # before that: next calls of slots that have begun long ago
        for _ in range(count):
            slot = staged.popleft()
            started[slot] = since[slot] = now
            if ready[slot] or self._first_call(slot):
                calls.append(slot)
        timeout_ns = None
        if wait_until_ns is not None and not self._ended and not self._peek():
            timeout_ns = max(0, wait_until_ns - now)
        if calls or timeout_ns is not None:
            begun = self._enter(calls, timeout_ns)
            if begun != len(calls):
                self._more = calls[begun:first] + self._more
                count -= self._put_back(calls[max(begun, first) :])
                self._wait_after_refusal(begun, timeout_ns)
            if timeout_ns is not None:
                self._looked_ns = self._clock()
        return count

    def look(self) -> int:
        """Stamp what has ended, and begin what follows in the slots that are not through."""
        if self._peek():
            assert self._queue is not None
            now = self._clock()
            self.lags_ns.append(now - self._looked_ns)
            whole, since = self._whole, self._waits_since
            for slot, answer in self._queue.harvest():
                if answer == whole[slot]:
                    since[slot] = 0
                    self.in_flight -= 1
                    self._ended.append((slot, self._started[slot], now, None))
                else:
                    self._follow(slot, answer, now)
            if self._more:
                self._more = self._more[self._enter(self._more, None) :]
            self._looked_ns = now
        else:
            self._looked_ns = self._clock()
        return len(self._ended)

    def reap(self) -> Sequence[Completion]:
        """Return what has ended, in that order."""
        ended, self._ended = self._ended, []
        return ended

    def withdraw(self) -> list[int]:
        """Take back what has not begun."""
        taken = list(self._staged)
        self._staged.clear()
        for slot in taken:
            self._take_back(slot)
        return taken

    def longest_wait_ns(self, now_ns: int) -> int:
        """How long the oldest transfer in flight has been waited for."""
        oldest = min((since for since in self._waits_since if since), default=now_ns)
        return max(0, now_ns - oldest)

    def close(self) -> None:
        """Withdraw what is staged, wait for what is in flight, give everything back."""
        if self._queue is None:
            return
        try:
            self.withdraw()
            while self.in_flight:
                self.submit(0, self._clock() + _A_SECOND_NS)
                self.look()
        finally:
            queue, self._queue = self._queue, None
            queue.close()
            self._let_go()

    # --- what the kernel is asked ---------------------------------------------------------------

    def _peek(self) -> bool:
        assert self._queue is not None
        try:
            return self._queue.peek()
        except OSError as error:
            raise self._refusal(error) from error

    def _enter(self, calls: Sequence[int], timeout_ns: int | None) -> int:
        assert self._queue is not None
        try:
            return self._queue.enter(calls, timeout_ns)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> StorageError:
        return StorageError(f"{self._files.host}: {self.name} failed: {error.strerror}")

    def _put_back(self, slots: Sequence[int]) -> int:
        """What the kernel did not take has not begun; returns how many that is."""
        for slot in reversed(slots):
            self._waits_since[slot] = 0
            self._ready[slot] = True
            self._staged.appendleft(slot)
        self.in_flight -= len(slots)
        return len(slots)

    def _wait_after_refusal(self, begun: int, timeout_ns: int | None) -> None:
        """The kernel did not take all and did not wait: wait for an end, or else a moment."""
        self._refusals = 0 if begun or self.in_flight else self._refusals + 1
        if self._refusals > _MOST_REFUSALS:
            raise StorageError(
                f"{self._files.host}: {self.name} failed: the kernel has had no memory for a call"
                f" for {_MOST_REFUSALS * _PATIENCE_S:.0f} s"
            )
        if timeout_ns is not None and self.in_flight > len(self._more):
            self._enter((), timeout_ns)
        elif not begun:
            time.sleep(_PATIENCE_S)

    # --- the calls of a slot --------------------------------------------------------------------

    def _arrive(self, slot: int, transfers: int) -> None:
        """Get ready what can be, when the slot is staged."""
        raise NotImplementedError

    def _first_call(self, slot: int) -> bool:
        """Prepare the first call of a slot that begins; False: there is none, or not yet."""
        raise NotImplementedError

    def _moved_all(self, slot: int, now: int) -> None:
        """Go on after all bytes have been moved."""
        raise NotImplementedError

    def _answered(self, slot: int, answer: int, now: int) -> None:
        """Go on after another call than one that moves bytes."""
        raise NotImplementedError

    def _take_back(self, slot: int) -> None:
        """Forget a slot that was staged and has not begun."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close what is open, at the end."""
        raise NotImplementedError

    def _follow(self, slot: int, answer: int, now: int) -> None:
        call = self._call[slot]
        if answer in _INTERRUPTED and call != kernel.CLOSE:
            self._more.append(slot)  # the same again
        elif call > kernel.WRITE:
            self._answered(slot, answer, now)
        elif answer < 0:
            self._fail(slot, answer, now)
        else:
            self._moved_some(slot, answer, now)

    def _moved_some(self, slot: int, answer: int, now: int) -> None:
        self._moved[slot] = moved = self._moved[slot] + answer
        missing = self._length[slot] - moved
        if not missing:
            self._moved_all(slot, now)
        elif answer:
            self._whole[slot] = _NOTHING
            self._prepare(
                slot, self._call[slot], self._fd[slot], self._position[slot] + moved, missing, moved
            )
            self._more.append(slot)
        else:
            error = self._files.short(
                _ACTIONS[self._kind[slot]], self._key[slot], self._offset[slot],
                self._length[slot], moved,
            )  # fmt: skip
            self._end(slot, now, error)

    def _move(self, slot: int, fd: int, position: int) -> None:
        """Prepare the slot's transfer."""
        self._fd[slot] = fd
        self._position[slot] = position
        self._prepare(slot, _MOVES[self._kind[slot]], fd, position, self._length[slot])

    def _prepare(  # noqa: PLR0917 - keywords cost
        self, slot: int, call: int, fd: int, position: int = 0, length: int = 0, skip: int = 0
    ) -> None:
        assert self._queue is not None
        self._call[slot] = call
        self._queue.prepare(slot, call, fd, position, length, skip)

    def _proceed(self, slot: int, call: int, fd: int, position: int = 0, length: int = 0) -> None:
        """Prepare the next call of a slot in flight, and have it begun."""
        self._prepare(slot, call, fd, position, length)
        self._more.append(slot)

    def _fail(self, slot: int, answer: int, now: int) -> None:
        error = OSError(-answer, os.strerror(-answer))
        problem = self._files.failure(_ACTIONS[self._kind[slot]], self._key[slot], error)
        problem.__cause__ = error
        self._end(slot, now, problem)

    def _end(self, slot: int, now: int, error: StorageError | None) -> None:
        self._waits_since[slot] = 0
        self.in_flight -= 1
        self._ended.append((slot, self._started[slot], now, error))


class SlabEngine(RingEngine[Slabs]):
    """Objects in files that stay open: a transfer is one call."""

    def _arrive(self, slot: int, transfers: int) -> None:  # noqa: ARG002 - all files are open
        if self._kind[slot] == READ:
            with suppress(StorageError):  # found again, and told, when it begins
                self._locate(slot)
                self._ready[slot] = True

    def _locate(self, slot: int) -> None:
        length, writes = self._length[slot], self._kind[slot] == WRITE
        fd, position = self._files.locate(self._key[slot], self._offset[slot], length, write=writes)
        if not writes and not self._files.buffered:
            self._whole[slot] = length
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

    def _let_go(self) -> None:
        """The slabs are the backend's."""


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
        if kind in _MOVES and not self._offset[slot]:
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
        if kind not in _MOVES:
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

    def _let_go(self) -> None:
        for files in self._open:
            for file in files.values():
                _close(file)
            files.clear()


def _close(file: _OpenFile | None) -> None:
    """Close it here and now, which few are: those of operations that were not carried through."""
    if file is not None and file.fd >= 0:
        os.close(file.fd)
        file.fd = -1
