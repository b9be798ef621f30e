"""Operations in batches: what is to be read, or written, of one request begins and ends together.

Rank-side; imports neither pytest nor MPI. There is one batch of each kind under way at most, and
deletes are written batches. The next one begins before what the last one has read is checked,
as far as there are buffers for all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.jobs import WORKER_OF, JobDispatcher
from pytest_kvcache.ioengines.protocol import READ, WRITE

if TYPE_CHECKING:
    from collections import deque

    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.ioengines.protocol import Completion


class BatchDispatcher(JobDispatcher):
    """Carries operations out in batches; takes what `Dispatcher` takes."""

    def __init__(self, *, settings: TransferSettings, **parts: Any) -> None:
        assert not settings.sync  # no engine syncs
        super().__init__(settings=settings, **parts)

    def _go_on_after(self, completion: Completion) -> None:
        """Go on with nothing: when all of its batch had ended, the next one began."""

    def _reap(self) -> None:
        """Note what of a batch has ended; where that is all of it, begin the next one."""
        ended = self._io.reap()
        for slot, _started_ns, _done_ns, _problem in ended:
            self._free_worker(self._at(slot).kind)
        self._todo.extend(ended)
        self._fill_slots()
        self._staged -= self._io.submit(self._depth - self._io.in_flight)

    def _fill_slots(self) -> None:
        """A batch of each kind, where none is under way."""
        for kind, queue in self._jobs.startable.items():
            if queue and self._idle[WORKER_OF[kind]] == self._most[WORKER_OF[kind]]:
                self._stage_batch(kind, queue)

    def _stage_batch(self, kind: int, queue: deque[Operation]) -> None:
        """All of the first request, up to the most; nothing before there are buffers for it."""
        most, owner, count = self._most[WORKER_OF[kind]], queue[0].owner, 0
        for operation in queue:
            if count == most or operation.owner is not owner:
                break
            count += 1
        free = self._free[kind]
        if len(free) < count:
            return
        self._idle[WORKER_OF[kind]] -= count
        for _ in range(count):
            operation = queue.popleft()
            if kind == READ:
                self._stage_read(operation, free.pop())
            elif kind == WRITE:
                self._stage_write(operation, free.pop())
            else:
                operation.staged_bytes = operation.stored_bytes
                self._stage_call(kind, operation)


def make_dispatcher(*, settings: TransferSettings, **parts: Any) -> Dispatcher:
    """The dispatcher of a storage: as an engine's workers would, where settings name some."""
    if settings.workers is None:
        return Dispatcher(settings=settings, **parts)
    kind = BatchDispatcher if settings.workers.batches else JobDispatcher
    return kind(settings=settings, **parts)
