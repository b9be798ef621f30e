"""Operations on their way to the storage and back: queued, cut, staged, checked, noted.

Rank-side; imports neither pytest nor MPI. One thread does all of it. An operation is one
get, put or delete of an object; it is cut into transfers of at most ``transfer_bytes``, so
that a rank's memory does not grow with the object and a big object keeps several transfers
in flight. There are more slots than transfers in flight: the device gets its next work
before what it has just finished is checked.

Times of an operation: submitted (put into the queue), started (its first transfer began),
done (its last one ended, after the sync if there is one). Stamping before a write and
verification after a read are outside all of them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from pytest_kvcache.engine.contents import Contents
from pytest_kvcache.engine.operations import Operation, all_parts, was_raced
from pytest_kvcache.ioengines.protocol import DELETE, READ, SYNC, WRITE
from pytest_kvcache.measure.recorder import TRANSFER

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.engine.operations import TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.errors import StorageError
    from pytest_kvcache.ioengines.protocol import Completion, IoEngine
    from pytest_kvcache.measure.recorder import TakesRows

_NOTHING = memoryview(b"")


class ReadyQueue(Protocol):
    """Operations that have not begun; a deque is one."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[Operation]:
        """All of them."""

    def append(self, operation: Operation, /) -> None:
        """Take one more."""

    def clear(self) -> None:
        """Forget all."""


class Dispatcher:
    """Carries operations out through an I/O engine; ``turn`` by ``turn``.

    ``on_complete(operation)`` is called when all of an operation is done. ``payload`` None:
    the backend stores nothing, and nothing is stamped or verified.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        io: IoEngine,
        payload: Payload | None,
        log: TakesRows,
        clock: Callable[[], int] = time.monotonic_ns,
        on_complete: Callable[[Operation], None],
    ) -> None:
        self.first_error: str | None = None
        self._settings = settings
        self._io = io
        self._stage = io.stage
        self._look = io.look
        self._add = log.add
        self._clock = clock
        self._on_complete = on_complete
        self._depth = settings.queue_depth
        reads, writes = settings.slot_counts
        self._contents = None if payload is None else Contents(payload, settings, reads, writes)
        views = [_NOTHING] * (reads + writes) if self._contents is None else self._contents.views
        io.register([*views, *([_NOTHING] * settings.queue_depth)])
        slots = reads + writes + settings.queue_depth
        self._free_reads = list(range(reads))
        self._free_writes = list(range(reads, reads + writes))
        self._free_calls = list(range(reads + writes, slots))
        self._free = {
            READ: self._free_reads,
            WRITE: self._free_writes,
            DELETE: self._free_calls,
            SYNC: self._free_calls,
        }
        self._slots = slots
        self._syncs = settings.sync
        self._shared = settings.shared
        self._transfer_bytes = settings.transfer_bytes
        self._reads = reads
        self._operations: list[Operation | None] = [None] * slots
        self._offsets = [0] * slots
        self._lengths = [0] * slots
        self._in_order: deque[Operation] = deque()
        self._ready: ReadyQueue = self._in_order
        self._to_sync: deque[Operation] = deque()
        self._staged = 0
        self._todo: deque[Completion] = deque()
        several = settings.objects_per_block > 1
        self._parts = tuple(range(settings.objects_per_block)) if several else (None,)
        self._unlike = settings.parts

    @property
    def checked(self) -> int:
        """Transfers whose content was verified."""
        return 0 if self._contents is None else self._contents.checked

    @property
    def corrupt(self) -> int:
        """Transfers whose content was wrong."""
        return 0 if self._contents is None else self._contents.corrupt

    @property
    def others_objects(self) -> int:
        """Verified objects whose head names another rank."""
        return 0 if self._contents is None else self._contents.others_objects

    @property
    def busy(self) -> bool:
        """Whether anything is queued, staged, in flight or not yet dealt with."""
        held = len(self._free_reads) + len(self._free_writes) + len(self._free_calls)
        return bool(self._ready or self._to_sync or held < self._slots)

    def submit(
        self, kind: int, entries: Sequence[BlockEntry], owner: Any, row: int | None = None
    ) -> int:
        """Queue a get, put or delete of each object of the entries; return how many those are.

        Each is noted by a row of its kind, or of the kind ``row``.
        """
        if self._unlike:
            return self.submit_objects(kind, all_parts(entries, self._unlike), owner, row)
        if row is None:
            row = kind
        now, ready, parts, largest = self._clock(), self._ready, self._parts, self._transfer_bytes
        count, transfers = len(parts), 1
        for entry in entries:
            object_bytes, stored_bytes = entry.block_bytes // count, entry.stored_bytes // count
            if kind != DELETE:
                transfers = -(-stored_bytes // largest)
            for part in parts:
                ready.append(
                    Operation(
                        kind, entry, part, owner, now, object_bytes, stored_bytes, transfers, row
                    )
                )
        return len(entries) * len(parts)

    def submit_objects(
        self,
        kind: int,
        objects: Iterable[tuple[BlockEntry, int]],
        owner: Any,
        row: int | None = None,
    ) -> int:
        """Queue an operation of each object, an entry's by number; return how many those are.

        Where objects are unlike each other: all those of an entry need not be asked for.
        """
        if row is None:
            row = kind
        now, ready, before = self._clock(), self._ready, len(self._ready)
        several = len(self._unlike) > 1
        for entry, number in objects:
            part = self._unlike[number]
            transfers = 1 if kind == DELETE else -(-part.stored_bytes // self._transfer_bytes)
            ready.append(
                Operation(
                    kind, entry, number if several else None, owner, now, part.object_bytes,
                    part.stored_bytes, transfers, row,
                )
            )  # fmt: skip
        return len(ready) - before

    def keep_only(self, kind: int | None) -> list[Operation]:
        """Forget operations of other kinds (None: of all) that have not begun; return them."""
        withdrawn, self._staged = self._io.withdraw(), 0
        waiting: dict[Operation, int] = {}  # transfers of each that are staged and no more
        for slot in withdrawn:
            waiting[self._at(slot)] = waiting.get(self._at(slot), 0) + 1
        forgotten = {
            operation: None
            for operation in (*waiting, *self._ready)
            if operation.kind != kind and not self._has_begun(operation, waiting.get(operation, 0))
        }
        for slot in withdrawn:
            operation = self._at(slot)
            if operation in forgotten:
                self._give_up(slot, operation.kind)
            else:
                self._stage_again(slot, operation)
        self._forget(forgotten)
        return list(forgotten)

    def _forget(self, operations: Container[Operation]) -> None:
        """Take what has not begun out of the queue."""
        kept = [operation for operation in self._in_order if operation not in operations]
        self._in_order.clear()
        self._in_order.extend(kept)

    def _at(self, slot: int) -> Operation:
        operation = self._operations[slot]
        assert operation is not None  # a slot that is not free has one
        return operation

    def _has_begun(self, operation: Operation, waiting: int) -> bool:
        """Whether more of it was staged than is still waiting; a sync comes after transfers."""
        if operation.kind == DELETE:
            return not waiting and operation.staged_bytes > 0
        staged = -(-operation.staged_bytes // self._transfer_bytes)
        return staged > waiting or not operation.left

    def _stage_again(self, slot: int, operation: Operation) -> None:
        """Stage a transfer again, with all that was prepared for it."""
        length, kind, view = self._lengths[slot], operation.kind, _NOTHING
        if not length and kind == WRITE:
            kind = SYNC
        elif self._contents is not None and length:
            view = self._contents.view(slot, length)
        self._staged += 1
        self._stage(
            slot, kind, operation.object_key, self._offsets[slot], view, operation.transfers
        )

    def _give_up(self, slot: int, kind: int) -> None:
        self._operations[slot] = None
        self._free[kind].append(slot)
        if kind == READ and self._contents is not None:
            self._contents.failed(slot)

    # --- one turn of the loop ---------------------------------------------------------------

    def turn(self, wait_until_ns: int) -> None:
        """Stage what there is room for, submit, check what has ended; sleep if that is nothing.

        When the device is through with all it had while some of it are still to be checked, it
        gets as many again as soon as there are slots for them: else it would be idle meanwhile.
        Not fewer: a system call costs as much as a third of checking 64 KiB.
        """
        io, todo, depth = self._io, self._todo, self._depth
        if self._ready or self._to_sync:
            self._fill_slots()
        if todo:
            if self._staged:
                self._staged -= io.submit(depth - io.in_flight)
        else:
            self._staged -= io.submit(depth - io.in_flight, wait_until_ns)
        if self._look():
            self._reap()
            if self._staged:  # before anything is checked
                self._staged -= io.submit(depth - io.in_flight)
        look, end = self._look, self._end
        for _ in range(len(todo)):
            end(todo.popleft())
            if look():
                self._reap()
            if not io.in_flight:
                self._submit_batch()

    def _reap(self) -> None:
        """Take what has ended, to be dealt with one after the other."""
        self._todo.extend(self._io.reap())

    def _submit_batch(self) -> None:
        """Submit as much as may be in flight, if there is so much, and room for it."""
        if self._in_order and len(self._free[self._in_order[0].kind]) >= self._depth:
            self._fill_slots()
        if self._staged >= self._depth:
            self._staged -= self._io.submit(self._depth)

    def _fill_slots(self) -> None:
        """Get as many transfers ready as there are free slots, in the order of their coming."""
        while self._to_sync and self._free_calls:
            operation = self._to_sync.popleft()
            self._stage_call(SYNC, operation)
        ready, reads = self._in_order, self._free_reads
        while ready:
            operation = ready[0]
            kind = operation.kind
            if kind == READ:
                if not reads:
                    return
                self._stage_read(operation, reads.pop())
                if operation.staged_bytes >= operation.stored_bytes:
                    ready.popleft()
                continue
            if kind == WRITE:
                if not self._free_writes:
                    return
                self._stage_write(operation, self._free_writes.pop())
            else:
                if not self._free_calls:
                    return
                operation.staged_bytes = operation.stored_bytes
                self._stage_call(DELETE, operation)
            if operation.staged_bytes >= operation.stored_bytes:
                ready.popleft()

    def _stage_read(self, operation: Operation, slot: int) -> None:
        offset = operation.staged_bytes
        length = operation.stored_bytes - offset
        if length > self._transfer_bytes:  # noqa: PLR1730  a call less, per transfer
            length = self._transfer_bytes
        contents = self._contents
        view = _NOTHING if contents is None else contents.to_read(slot, operation, offset, length)
        operation.staged_bytes = offset + length
        self._operations[slot] = operation
        self._offsets[slot] = offset
        self._lengths[slot] = length
        self._staged += 1
        self._stage(slot, READ, operation.object_key, offset, view, operation.transfers)

    def _stage_write(self, operation: Operation, slot: int) -> None:
        offset = operation.staged_bytes
        length = min(operation.stored_bytes - offset, self._transfer_bytes)
        view = _NOTHING
        if self._contents is not None:
            began_ns = self._clock()
            view = self._contents.to_write(slot, operation, offset, length)
            if not offset:
                operation.stamping_ns = self._clock() - began_ns
        operation.staged_bytes = offset + length
        self._operations[slot] = operation
        self._offsets[slot] = offset
        self._lengths[slot] = length
        self._staged += 1
        self._stage(slot, WRITE, operation.object_key, offset, view, operation.transfers)

    def _stage_call(self, kind: int, operation: Operation) -> None:
        slot = self._free_calls.pop()
        self._operations[slot] = operation
        self._offsets[slot] = self._lengths[slot] = 0
        self._staged += 1
        self._stage(slot, kind, operation.object_key, 0, _NOTHING, operation.transfers)

    # --- what has ended ---------------------------------------------------------------------

    def _end(self, completion: Completion) -> None:
        """Check and note one transfer or call; free its slot; go on with its operation."""
        slot, started_ns, done_ns, problem = completion
        operation = self._operations[slot]
        assert operation is not None  # a slot that is in flight has one
        length = self._lengths[slot]
        if not length:
            self._free_calls.append(slot)
            self._end_call(operation, started_ns, done_ns, problem)
            return
        kind = operation.kind
        self._free[kind].append(slot)
        if problem is not None:
            self._note_problem(operation, problem)
            if self._contents is not None:
                self._contents.failed(slot)
        elif kind == READ and self._contents is not None:
            fault = self._contents.fault(slot, operation, self._offsets[slot], length)
            if fault is not None:
                self._fail(operation, fault)
        if started_ns < operation.started_ns or not operation.started_ns:
            operation.started_ns = started_ns
        if done_ns > operation.done_ns:  # noqa: PLR1730  a call less, per transfer
            operation.done_ns = done_ns
        operation.left -= 1
        if (operation.transfers > 1 or self._syncs) and problem is None and not operation.failed:
            self._note_transfer(operation, self._offsets[slot], length, started_ns, done_ns)
        if not operation.left:
            self._end_transfers(operation)

    def _note_transfer(
        self, operation: Operation, offset: int, length: int, started_ns: int, done_ns: int
    ) -> None:
        """Book a transfer that is not its operation's only call."""
        if operation.transfers > 1 or operation.kind == WRITE:
            moved = min(length, operation.object_bytes - offset)
            self._add(TRANSFER, 0, started_ns, done_ns, moved, 0)

    def _end_transfers(self, operation: Operation) -> None:
        """Sync what is to be synced first; note it, and say that it is done."""
        if not (operation.failed or operation.raced):
            if self._syncs and operation.kind == WRITE:
                self._to_sync.append(operation)
                return
            self._note(operation, operation.transfers)
        self._on_complete(operation)

    def _end_call(
        self, operation: Operation, started_ns: int, done_ns: int, problem: StorageError | None
    ) -> None:
        operation.done_ns = done_ns
        if problem is not None:
            self._note_problem(operation, problem)
        elif operation.kind == DELETE:
            operation.started_ns = started_ns
            self._add(DELETE, operation.submitted_ns, started_ns, done_ns, 0, 0)
        else:
            self._add(SYNC, 0, started_ns, done_ns, 0, 0)
            self._note(operation, operation.transfers + 1)
        self._on_complete(operation)

    def _note(self, operation: Operation, calls: int) -> None:
        """One row per operation; queueing excludes the stamping of its first transfer."""
        self._add(
            operation.row, operation.submitted_ns + operation.stamping_ns,
            operation.started_ns, operation.done_ns, operation.object_bytes, calls,
        )  # fmt: skip

    def _note_problem(self, operation: Operation, problem: StorageError) -> None:
        """It came to nothing, because another rank was faster, or has failed."""
        if self._shared and was_raced(operation.kind, problem):
            operation.raced = True
        else:
            self._fail(operation, str(problem))

    def _fail(self, operation: Operation, error: str) -> None:
        operation.failed = True
        if self.first_error is None:
            self.first_error = error

    def close(self) -> None:
        """Forget what has not begun; wait for what has."""
        self._ready.clear()
        self._io.close()
