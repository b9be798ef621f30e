"""Files of a batch: all opened, moved by the kernel's asynchronous I/O, and all closed.

As an engine does that hands a whole request to a library of transfers. Rank side: imports neither
pytest nor MPI. A batch is what is staged of one kind when it is submitted; a thread carries it
out, and has the kernel's queue for as long. An object takes from its own open to its own close.
"""

from __future__ import annotations

import errno
import os
import time
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines import kernel
from pytest_kvcache.ioengines.libaio import Context
from pytest_kvcache.ioengines.protocol import READ, WRITE
from pytest_kvcache.ioengines.threads import ThreadsEngine
from pytest_kvcache.system.kernelqueues import explained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_kvcache.backends.posix.infiles import ObjectFiles
    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.ioengines.kernel import Queue
    from pytest_kvcache.ioengines.protocol import Completion
    from pytest_kvcache.ioengines.threads import Staged

_MODE = 0o644
_THREADS = 2  # a batch that is read, and one that is written or deleted
_POLL_S = 0.0001
_PATIENCE_POLLS = 10_000  # of a kernel that has no memory for a call, before that is an error
_ACTIONS = {READ: "read", WRITE: "write"}
_CALLS = {READ: kernel.READ, WRITE: kernel.WRITE}


class BatchEngine(ThreadsEngine):
    """Carries out reads and writes in batches, one of each at a time (implements ``IoEngine``).

    ``files`` None: a backend without files, whose calls are made one after the other. The kernel
    is told of ``submits`` files at a time. ``open_queue(slots)`` makes its queue.
    """

    def __init__(  # noqa: PLR0917
        self,
        backend: Backend,
        depth: int,
        files: ObjectFiles | None,
        submits: int,
        open_queue: Callable[[int], Queue] = lambda slots: Context(slots, slots),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(backend, depth, clock, threads=_THREADS)
        self._files = files
        self._submits = submits
        self._open_queue = open_queue
        self._queues: dict[int, Queue] = {}

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Open a queue of the kernel for batches of each kind; StorageError if it refuses."""
        del buffers  # each batch brings its own
        if self._files is None:
            return
        try:
            for kind in _CALLS:
                self._queues[kind] = self._open_queue(self.depth)
        except OSError as error:
            self.close()
            raise StorageError(
                f"{self._files.host}: the kernel refuses what moves batches of files:"
                f" {explained('libaio', error)}"
            ) from error

    def close(self) -> None:
        """Let the batches under way end; give the queues back."""
        super().close()
        while self._queues:
            self._queues.popitem()[1].close()

    def _hand_over(self, now: list[Staged]) -> None:
        """All of a kind to one thread."""
        for _kind, items in groupby(now, key=itemgetter(1)):
            self._todo.put(list(items))

    def _all_carried_out(self, number: int, items: list[Staged]) -> Iterable[Completion]:
        kind = items[0][1]
        if self._files is None or kind not in _CALLS:
            return super()._all_carried_out(number, items)
        self._began_ns[number] = self._clock()
        try:
            batch = Batch(self._files, kind, items, self._clock)
            batch.carry_out(self._queues[kind], self._submits)
            return batch.completions()
        finally:
            self._began_ns[number] = 0


class Batch:
    """Objects that are read, or written, together."""

    def __init__(
        self, files: ObjectFiles, kind: int, items: Sequence[Staged], clock: Callable[[], int]
    ) -> None:
        self._files = files
        self._kind = kind
        self._items = items
        self._clock = clock
        self._began_ns = [0] * len(items)
        self._done_ns = [0] * len(items)
        self._fds = [-1] * len(items)
        self._errors: list[StorageError | None] = [None] * len(items)

    def carry_out(self, queue: Queue, submits: int) -> None:
        """Open all, move those that could be opened, close them."""
        queue.register([item[4] for item in self._items])
        self._open_all()
        opened = [place for place, fd in enumerate(self._fds) if fd >= 0]
        try:
            self._move(queue, opened, submits)
        finally:
            for place in opened:
                self._close(place)

    def completions(self) -> list[Completion]:
        """What came of each, in their order."""
        slots = [item[0] for item in self._items]
        return list(zip(slots, self._began_ns, self._done_ns, self._errors, strict=True))

    def _open_all(self) -> None:
        files = self._files
        flags = files.read_flags if self._kind == READ else files.write_flags
        for place, (_slot, _kind, key, _offset, _view) in enumerate(self._items):
            self._began_ns[place] = self._clock()
            try:
                self._fds[place] = os.open(files.path(key), flags, _MODE)
            except OSError as error:
                self._done_ns[place] = self._clock()
                self._fail(place, error)

    def _move(self, queue: Queue, places: Sequence[int], submits: int) -> None:
        """Begin so many; then look for answers, begin as many more, and sleep, until all ended."""
        for place in places:
            _slot, _kind, _key, offset, view = self._items[place]
            queue.prepare(place, _CALLS[self._kind], self._fds[place], offset, len(view))
        waiting = list(places)
        flying, refusals = _begin(queue, waiting, submits), 0
        while waiting or flying:
            if queue.peek():
                for place, answer in queue.harvest():
                    flying -= 1
                    self._answered(place, answer)
            flying += _begin(queue, waiting, submits)
            refusals = 0 if flying else refusals + 1
            if refusals > _PATIENCE_POLLS:
                self._give_up(waiting)
                return
            time.sleep(_POLL_S)

    def _give_up(self, places: Iterable[int]) -> None:
        for place in places:
            self._fail(place, BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)))

    def _answered(self, place: int, answer: int) -> None:
        _slot, _kind, key, offset, view = self._items[place]
        if answer < 0:
            self._fail(place, OSError(-answer, os.strerror(-answer)))
        elif answer != len(view):
            action = _ACTIONS[self._kind]
            self._errors[place] = self._files.short(action, key, offset, len(view), answer)

    def _close(self, place: int) -> None:
        try:
            os.close(self._fds[place])
        except OSError as error:
            self._fail(place, error)
        self._done_ns[place] = self._clock()

    def _fail(self, place: int, error: OSError) -> None:
        if self._errors[place] is None:
            problem = self._files.failure(_ACTIONS[self._kind], self._items[place][2], error)
            problem.__cause__ = error
            self._errors[place] = problem


def _begin(queue: Queue, waiting: list[int], submits: int) -> int:
    """Begin so many of those that wait, or as many as the kernel takes; return how many."""
    if not waiting:
        return 0
    begun = queue.enter(waiting[:submits], None)
    del waiting[:begun]
    return begun
