"""Operations in batches: what is to be read, or written, of one request begins and ends together.

Rank-side; imports neither pytest nor MPI. There are so many batches of each kind under way at most,
and deletes are written batches. The next one begins before what the last one has read is checked,
as far as there are buffers for all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.jobs import WORKER_OF, JobDispatcher
from pytest_kvcache.ioengines.protocol import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.ioengines.protocol import Completion


class _Batch:
    """So many operations of a kind are ``left``; the ``last`` one was begun last."""

    __slots__ = ("last", "left", "worker")

    def __init__(self, worker: int, operations: Sequence[Operation]) -> None:
        self.worker = worker
        self.left = len(operations)
        self.last = operations[-1]


class BatchDispatcher(JobDispatcher):
    """Carries operations out in batches; takes what `Dispatcher` takes.

    Each batch is submitted by itself. All of them together have no more objects than there are
    workers.
    """

    def __init__(self, *, settings: TransferSettings, **parts: Any) -> None:
        assert not settings.sync  # no engine syncs
        assert settings.workers is not None
        self._most_batches = {READ: settings.workers.read_batches, WRITE: 1}
        self._most_of_batch = {READ: settings.workers.read_batch, WRITE: settings.workers.writers}
        self._packs = settings.workers.packs
        self._under_way = {READ: 0, WRITE: 0}
        self._batch_at: dict[int, _Batch] = {}  # by slot
        super().__init__(settings=settings, **parts)

    def _go_on_after(self, completion: Completion) -> None:
        """Go on with nothing: when all of its batch had ended, the next one began."""

    def _note(self, operation: Operation, calls: int) -> None:
        """What is packed has no call of its own."""
        super()._note(operation, 0 if self._packs and operation.kind == WRITE else calls)

    def _reap(self) -> None:
        """Note what of a batch has ended; where that is all of it, begin the next one."""
        ended = self._io.reap()
        for slot, _started_ns, _done_ns, _problem in ended:
            self._free_worker(self._at(slot).kind)
            self._leave(slot)
        self._todo.extend(ended)
        self._fill_slots()
        self._staged -= self._io.submit(self._depth - self._io.in_flight)

    def _give_up(self, slot: int, kind: int) -> None:
        self._leave(slot)
        super()._give_up(slot, kind)

    def _leave(self, slot: int) -> None:
        """One of a batch has ended, or will not begin; after the last one another batch can."""
        batch = self._batch_at.pop(slot)
        batch.left -= 1
        if not batch.left:
            self._under_way[batch.worker] -= 1
            self._jobs.ended(batch.last)

    def _fill_slots(self) -> None:
        """Batches of each kind, as many as there may be."""
        self._jobs.arrange()
        for kind, queue in self._jobs.startable.items():
            worker = WORKER_OF[kind]
            while queue and self._under_way[worker] < self._most_batches[worker]:
                if not self._stage_batch(kind):
                    break

    def _stage_batch(self, kind: int) -> bool:
        """All of the first request, up to the most; nothing before there are buffers for it."""
        worker, free = WORKER_OF[kind], self._free[kind]
        count = self._jobs.size_of_batch(kind, self._most_of_batch[worker])
        if len(free) < count or self._idle[worker] < count:
            return False
        self._idle[worker] -= count
        self._under_way[worker] += 1
        operations = self._jobs.take_batch(kind, count)
        batch = _Batch(worker, operations)
        for operation in operations:
            self._batch_at[free[-1]] = batch
            self._stage_one(operation)
        self._staged -= self._io.submit(self._depth - self._io.in_flight)
        return True


def make_dispatcher(*, settings: TransferSettings, **parts: Any) -> Dispatcher:
    """The dispatcher of a storage: as an engine's workers would, where settings name some."""
    if settings.workers is None:
        return Dispatcher(settings=settings, **parts)
    kind = BatchDispatcher if settings.workers.batches else JobDispatcher
    return kind(settings=settings, **parts)
