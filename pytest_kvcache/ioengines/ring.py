"""The engines that have the kernel move bytes by itself: io_uring and libaio, behind one face.

Rank side: imports neither pytest nor MPI. A transfer is one or several calls of its slot, one
after the other: open the file, move, move what was missing, drop from the page cache, close.
Which calls those are depends on where objects lie (``ringslabs``, ``ringfiles``). What a call
begins by its end is begun in `look`, for the storage should not wait for the loop's other work.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from pytest_kvcache.backends.posix.infiles import InFiles
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import Completion, IoEngineName

_ACTIONS = {READ: "read", WRITE: "write", SYNC: "sync", DELETE: "delete"}
MOVES = {READ: kernel.READ, WRITE: kernel.WRITE}
_INTERRUPTED = (-errno.EINTR, -errno.EAGAIN)
# A kernel that has no memory for a call now may have some a moment later.
_PATIENCE_S, _MOST_REFUSALS = 0.001, 10_000
_FEW = 4  # calls that are begun in so short a time that nobody need look meanwhile
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
            many = timeout_ns is not None and len(calls) > _FEW
            begun = self._enter(calls, None if many else timeout_ns)
            if begun != len(calls):
                self._more = calls[begun:first] + self._more
                count -= self._put_back(calls[max(begun, first) :])
                self._wait_after_refusal(begun, timeout_ns)
            elif many:
                if self._peek():
                    return count  # it ended while others were begun: seen late, by all of that
                self._looked_ns = self._clock()
                assert wait_until_ns is not None
                self._enter((), max(0, wait_until_ns - self._looked_ns))
            if timeout_ns is not None:
                self._looked_ns = self._clock()
        return count

    def look(self) -> int:
        """Stamp what has ended, and begin what follows in the slots that are not through."""
        queue = self._queue
        assert queue is not None
        try:
            some = queue.peek()
        except OSError as error:
            raise self._refusal(error) from error
        if some:
            now = self._clock()
            whole, since = self._whole, self._waits_since
            answers = queue.harvest()
            self.lags_ns += [now - self._looked_ns] * len(answers)
            for slot, answer in answers:
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
            self._close_files()

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

    def _close_files(self) -> None:
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
        self._prepare(slot, MOVES[self._kind[slot]], fd, position, self._length[slot])

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
