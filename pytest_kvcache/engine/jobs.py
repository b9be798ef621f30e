"""Operations as engines make them: a request's one after the other, by so many workers.

Rank-side; imports neither pytest nor MPI. A *job* is what is read, or written, for one request
at a time. It has lanes, as many as objects of it may be under way; each lane's next object is
begun when its last one has ended, before other jobs have their turn: the worker stays with it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from pytest_kvcache.backends.buffers import Workers
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.ioengines.protocol import Completion


_Lane = deque["Operation"]  # what follows there, one after the other


class JobQueue:
    """What has not begun: of each job, the first objects of its lanes can be.

    A queue as the dispatcher has it, in any order, from which ``startable`` of each kind are
    taken. What was appended is cut into lanes by ``arrange``.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.startable: dict[int, deque[Operation]] = {k: deque() for k in (READ, DELETE, WRITE)}
        self._came: dict[tuple[int, Any], list[Operation]] = {}
        self._lane_of: dict[Operation, _Lane] = {}  # of those under way, and of the startable
        self._held = 0

    def __len__(self) -> int:
        return self._held + sum(map(len, self.startable.values()))

    def __iter__(self) -> Iterator[Operation]:
        """Everything that has not begun."""
        for queue in self.startable.values():
            yield from queue
        for came in self._came.values():
            yield from came
        for lane in {id(lane): lane for lane in self._lane_of.values()}.values():
            yield from lane

    def append(self, operation: Operation) -> None:
        """Take an operation; a delete is no part of a job."""
        if operation.kind == DELETE or self._workers.lanes is None:
            self.startable[operation.kind].append(operation)
            return
        self._came.setdefault((operation.kind, operation.owner), []).append(operation)
        self._held += 1

    def forget(self, operations: Container[Operation]) -> None:
        """Forget some that have not begun: of a job all, or all but the first of its lanes."""
        lanes = {id(lane): lane for lane in self._lane_of.values()}.values()
        for queue in (*self.startable.values(), *lanes):
            kept = [operation for operation in queue if operation not in operations]
            queue.clear()
            queue.extend(kept)
        self._came = {
            job: [operation for operation in came if operation not in operations]
            for job, came in self._came.items()
        }
        self._came = {job: came for job, came in self._came.items() if came}
        self._held = sum(map(len, lanes)) + sum(map(len, self._came.values()))

    def clear(self) -> None:
        """Forget everything."""
        for queue in self.startable.values():
            queue.clear()
        self._came.clear()
        self._lane_of.clear()
        self._held = 0

    def arrange(self) -> None:
        """Make lanes of what has come."""
        if not self._came:
            return
        came, self._came = self._came, {}
        for (kind, _owner), operations in came.items():
            for first, following in self._lanes(operations):
                self._lane_of[first] = following
                self.startable[kind].append(first)
                self._held -= 1

    def size_of_batch(self, kind: int, most: int) -> int:
        """How many objects of the first job can begin together, up to so many."""
        queue = self.startable[kind]
        first = queue[0]
        lane = self._lane_of.get(first)
        if lane is not None:
            return min(most, 1 + len(lane))
        same = takewhile(lambda operation: operation.owner is first.owner, islice(queue, most))
        return sum(1 for _operation in same)

    def take_batch(self, kind: int, count: int) -> list[Operation]:
        """Take so many of them; what follows in their lane can begin when the last has ended."""
        queue = self.startable[kind]
        taken = [queue.popleft()]
        lane = self._lane_of.pop(taken[0], None)
        source = queue if lane is None else lane
        taken += [source.popleft() for _ in range(count - 1)]
        if lane is not None:
            self._held -= count - 1
            self._lane_of[taken[-1]] = lane
        return taken

    def _lanes(self, operations: list[Operation]) -> Iterator[tuple[Operation, _Lane]]:
        """The first object of each lane, and what follows it there."""
        count = min(self._workers.lanes or len(operations), len(operations))
        if not self._workers.tiles:
            following = deque(operations[count:])
            yield from ((first, following) for first in operations[:count])
            return
        begin = 0
        for number in range(count):
            end = begin + (len(operations) - begin) // (count - number)
            yield operations[begin], deque(operations[begin + 1 : end])
            begin = end

    def ended(self, operation: Operation) -> None:
        """The next one of its lane can begin, before others."""
        lane = self._lane_of.pop(operation, None)
        if lane:
            following = lane.popleft()
            self._held -= 1
            self._lane_of[following] = lane
            self.startable[operation.kind].appendleft(following)


class JobDispatcher(Dispatcher):
    """Carries operations out as the settings' workers would; takes what `Dispatcher` takes.

    A worker goes on with its next object as soon as it has moved one: what was read is checked
    afterwards, for which there are spare buffers. Deletes are the writers' work.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        on_complete: Callable[[Operation], None],
        **parts: Any,
    ) -> None:
        assert settings.workers is not None
        self._jobs = JobQueue(settings.workers)
        self._tell = on_complete
        self._most = {READ: settings.workers.readers, WRITE: settings.workers.writers}
        self._idle = dict(self._most)
        super().__init__(settings=settings, on_complete=self._ended, **parts)
        self._ready = self._jobs

    def _ended(self, operation: Operation) -> None:
        self._jobs.ended(operation)
        self._tell(operation)

    def _forget(self, operations: Container[Operation]) -> None:
        self._jobs.forget(operations)

    def _give_up(self, slot: int, kind: int) -> None:
        self._free_worker(kind)
        super()._give_up(slot, kind)

    def _free_worker(self, kind: int) -> None:
        if kind != SYNC:
            self._idle[WORKER_OF[kind]] += 1

    def _end(self, completion: Completion) -> None:
        """Let the worker go on, and then look at what it has moved."""
        self._go_on_after(completion)
        super()._end(completion)

    def _go_on_after(self, completion: Completion) -> None:
        slot, _started_ns, _done_ns, problem = completion
        operation = self._at(slot)
        is_sync = operation.kind == WRITE and not self._lengths[slot]
        self._free_worker(SYNC if is_sync else operation.kind)
        if operation.kind == READ and operation.left == 1 and problem is None:
            self._jobs.ended(operation)
            self._fill_slots()
            self._staged -= self._io.submit(self._depth - self._io.in_flight)

    def _submit_batch(self) -> None:
        """Nothing ahead of its turn: what is staged is what the workers have."""

    def _fill_slots(self) -> None:
        """Reads, writes and deletes: each as there are workers for them, and buffers."""
        while self._to_sync and self._free_calls:
            self._stage_call(SYNC, self._to_sync.popleft())
        jobs, idle = self._jobs, self._idle
        jobs.arrange()
        for kind, queue in jobs.startable.items():
            free, worker = self._free[kind], WORKER_OF[kind]
            while queue and free and idle[worker]:
                operation = queue[0]
                idle[worker] -= 1
                self._stage_one(operation)
                if operation.staged_bytes >= operation.stored_bytes:
                    queue.popleft()

    def _stage_one(self, operation: Operation) -> None:
        """Stage what an operation has next, in the last free slot of its kind."""
        kind = operation.kind
        if kind == READ:
            self._stage_read(operation, self._free_reads.pop())
        elif kind == WRITE:
            self._stage_write(operation, self._free_writes.pop())
        else:
            operation.staged_bytes = operation.stored_bytes
            self._stage_call(kind, operation)


WORKER_OF = {READ: READ, WRITE: WRITE, DELETE: WRITE}
