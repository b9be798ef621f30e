"""The threads that do a rank's I/O: each pulls its own transfers from one queue.

Rank-side; imports neither pytest nor MPI. An operation is one get, put or delete of an
object; it is cut into transfers of at most ``chunk_bytes``, so that a rank's memory does
not grow with the object and a big object keeps several transfers in flight. The number
of threads is the queue depth.

Times of an operation: submitted (put into the queue), started (its first transfer was
issued), done (its last one ended, after the sync if there is one). Of a delete: its call,
after those that its thread was given with it. Stamping before a
write and verification after a read are outside all of them; the thread that does them
is not transferring meanwhile.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import StorageError
from pytest_kvcache.measure.recorder import DELETE, READ, SYNC, TRANSFER, WRITE, Log, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import Slot
    from pytest_kvcache.engine.payload import Payload

PAGE_BYTES = 4096
# With sampled verification, one in so many transfers of a thread is checked whole: at a
# random place among them, for each 64th would always be the same chunk of an object.
_THOROUGH_EVERY = 64
# Backend calls shorter than this are over before another thread is awake (a wake-up was
# measured at 5 to 50 µs), so one thread carries them out faster than several.
_QUICK_CALL_NS = 5_000
_CALLS_REMEMBERED = 16
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How operations are carried out.

    ``object_bytes`` is the logical size of every object, ``stored_bytes`` the same
    padded to whole pages; results count logical bytes. A block is stored as
    ``objects_per_block`` of them: one, or one per layer. ``blind``: the backend stores
    nothing, so what is read is stamped as if it had been stored, then verified as ever,
    and what that finds is not heard.
    """

    queue_depth: int
    object_bytes: int
    stored_bytes: int
    chunk_bytes: int
    sync: bool
    verify: str
    blind: bool = False
    objects_per_block: int = 1

    @property
    def transfers(self) -> int:
        """Transfers per object."""
        return -(-self.stored_bytes // self.chunk_bytes)


def object_key_of(slot: Slot, part: int | None) -> str:
    """What a backend stores an object of a block under; None: the only one."""
    return slot.object_key if part is None else f"{slot.object_key}.{part}"


class Operation:
    """One get or put of an object; ``owner`` is whoever submitted it.

    ``part`` is which object of the slot's block; None where it is the only one.
    """

    __slots__ = (
        "done_ns",
        "failed",
        "identity",
        "kind",
        "left",
        "object_key",
        "owner",
        "slot",
        "stamping_ns",
        "started_ns",
        "submitted_ns",
    )

    def __init__(
        self, kind: int, slot: Slot, owner: Any, submitted_ns: int, left: int,
        *, part: int | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.slot = slot
        self.object_key = slot.object_key
        self.identity = slot.identity
        if part is not None:
            self.object_key = object_key_of(slot, part)
            self.identity = slot.identity._replace(part=part)
        self.owner = owner
        self.submitted_ns = submitted_ns
        self.stamping_ns = 0
        self.started_ns = 0
        self.done_ns = 0
        self.left = left
        self.failed = False


class Deletion(Operation):
    """The deletes of some objects, one after the other; ``slot`` is that of the first."""

    __slots__ = ("object_keys",)

    def __init__(self, slot: Slot, object_keys: list[str], owner: Any, submitted_ns: int) -> None:
        super().__init__(DELETE, slot, owner, submitted_ns, 1)
        self.object_keys = object_keys


class _Worker:
    """What one thread owns: its log, its buffers and its verification counts."""

    __slots__ = (
        "_blind", "_payload", "_random", "_read", "_thorough_at", "_thorough_every", "_write",
        "busy_since_ns", "checked", "corrupt", "log",
    )  # fmt: skip

    def __init__(
        self, payload: Payload | None, log: Log, settings: TransferSettings, seed: int
    ) -> None:
        self.log = log
        self.busy_since_ns = 0  # of the call that is under way; 0: none is
        self.checked = 0
        self.corrupt = 0
        self._payload = payload
        self._blind = settings.blind
        self._thorough_every = {"off": 0, "sample": _THOROUGH_EVERY, "full": 1}[settings.verify]
        self._thorough_at = 0  # the first one; then one in every so many
        self._random = random.Random(seed)
        if payload is not None:
            self._write = payload.write_buffer()
            self._read = payload.read_buffer(self._write)

    def _choose_next(self) -> None:
        every = self._thorough_every
        begin = (self.checked // every + 1) * every
        self._thorough_at = begin + self._random.randrange(every)

    def prepare(self, operation: Operation, offset: int, length: int) -> memoryview:
        """The buffer to read into (poisoned, so that stale content can't pass) or to write."""
        payload = self._payload
        if payload is None:
            return _NOTHING
        if operation.kind == WRITE:
            payload.stamp(self._write, length, operation.identity, offset // PAGE_BYTES)
            return self._write.cut(length).view
        if self._thorough_every:
            payload.poison(self._read, length, thorough=self.checked == self._thorough_at)
        return self._read.cut(length).view

    def verify(self, operation: Operation, offset: int, length: int) -> str | None:
        """What is wrong with the data just read; None: nothing, or not looked at."""
        payload = self._payload
        if payload is None or not self._thorough_every:
            return None
        page = offset // PAGE_BYTES
        if self._blind:  # make the buffer what is checked, as if the object had been read
            payload.mark(self._read, length, operation.identity, page)
        thorough = self.checked == self._thorough_at
        if thorough:
            self._choose_next()
        self.checked += 1
        problem = payload.verify(self._read, length, operation.identity, page, thorough=thorough)
        if problem is None:
            return None
        self.corrupt += 1
        if self._blind:
            return None
        return f"object {operation.object_key} read back wrong at byte {offset}: {problem}"


class TransferPool:
    """The queue and its threads. Methods that change it need ``lock`` held.

    ``on_complete(operation)`` is called under the lock by the thread that ended an
    operation's last transfer, ``on_idle()`` when nothing is queued or in flight.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        backend: Backend,
        payload: Payload | None,
        recorder: Recorder,
        lock: threading.Lock,
        clock: Callable[[], int],
        on_complete: Callable[[Operation], None],
        on_idle: Callable[[], None],
    ) -> None:
        self.first_error: str | None = None
        self.crash: BaseException | None = None
        self._settings = settings
        self._backend = backend
        self._get_into = backend.get_into
        self._put_from = backend.put_from
        self._lock = lock
        self._clock = clock
        self._on_complete = on_complete
        self._on_idle = on_idle
        self._work = threading.Condition(lock)
        self._ready: deque[tuple[Operation, int]] = deque()
        self._idle = 0
        self._spare = 0  # threads that are awake and about to look for their next transfer
        self._closed = False
        self._call_ns = 10.0 * _QUICK_CALL_NS  # recent mean; slow until dozens of calls were quick
        self._offsets = range(0, settings.stored_bytes, settings.chunk_bytes)
        self._calls = len(self._offsets) + settings.sync  # 1: an operation is one call
        self._last_bytes = settings.stored_bytes - self._offsets[-1]
        several = settings.objects_per_block > 1
        self._parts = tuple(range(settings.objects_per_block)) if several else (None,)
        self._workers = [
            _Worker(payload, recorder.new_log(), settings, number)
            for number in range(settings.queue_depth)
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name="kvcache-io", daemon=True)
            for worker in self._workers
        ]

    @property
    def checked(self) -> int:
        """Transfers whose content was verified."""
        return sum(worker.checked for worker in self._workers)

    @property
    def corrupt(self) -> int:
        """Transfers whose content was wrong."""
        return sum(worker.corrupt for worker in self._workers)

    def longest_wait_ns(self) -> int:
        """How long the oldest call under way has been waiting for the storage; 0: none is."""
        now = self._clock()
        begun = [since for worker in self._workers if (since := worker.busy_since_ns)]
        return max(0, now - min(begun)) if begun else 0

    @property
    def busy(self) -> bool:
        """Whether anything is queued or in flight."""
        return bool(self._ready) or self._idle < len(self._threads)

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, kind: int, slots: Sequence[Slot], owner: Any) -> int:
        """Queue a get or put of each object of the slots, or their deletes, for ``owner``.

        Returns how many operations that are: deletes are dealt to as many threads as there
        are, each of which does its own one after the other.
        """
        if kind == DELETE:
            return self._submit_deletes(slots, owner)
        now = self._clock()
        offsets, transfers = self._offsets, len(self._offsets)
        ready, parts = self._ready, self._parts
        for slot in slots:
            for part in parts:
                operation = Operation(kind, slot, owner, now, transfers, part=part)
                for offset in offsets:
                    ready.append((operation, offset))
        self._wake()
        return len(slots) * len(parts)

    def _submit_deletes(self, slots: Sequence[Slot], owner: Any) -> int:
        now = self._clock()
        keys = [object_key_of(slot, part) for slot in slots for part in self._parts]
        share = -(-len(keys) // len(self._threads))
        begins = range(0, len(keys), share)
        for begin in begins:
            batch = Deletion(slots[0], keys[begin : begin + share], owner, now)
            self._ready.append((batch, 0))
        self._wake()
        return len(begins)

    def _wake(self) -> None:
        """Wake threads for what is queued; where calls are quick, one at a time serves.

        All that is queued, not what has just come: when calls become slow, the queue may
        be long, and only one thread at work.
        """
        if self._call_ns >= _QUICK_CALL_NS:
            wanted, self._spare = len(self._ready) - self._spare, 0
            if wanted > 0 and self._idle:
                self._work.notify(min(self._idle, wanted))
        elif self._idle == len(self._threads):
            self._work.notify()

    def keep_only(self, kind: int | None) -> list[Operation]:
        """Forget queued operations of other kinds (None: of all) that have not begun.

        Returns what was forgotten.
        """
        ready, kept = self._ready, []
        forgotten: dict[Operation, None] = {}
        with suppress(IndexError):  # threads go on taking items, so no iteration
            while True:
                item = ready.popleft()
                if item[0].kind == kind or item[0].started_ns:
                    kept.append(item)
                else:
                    forgotten[item[0]] = None
        ready.extend(kept)
        return list(forgotten)

    def close(self) -> None:
        """Forget what is queued, let transfers in flight end, end the threads."""
        with self._lock:
            self._closed = True
            self._ready.clear()
            self._work.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self, worker: _Worker) -> None:
        ready = self._ready
        try:
            while True:
                try:
                    operation, offset = ready.popleft()
                except IndexError:
                    item = self._wait()
                    if item is None:
                        return
                    operation, offset = item
                if isinstance(operation, Deletion):
                    self._delete(worker, operation)
                else:
                    self._transfer(worker, operation, offset)
        except BaseException as error:  # noqa: BLE001  the main thread raises it again
            with self._lock:
                self.crash = error
                self._on_idle()

    def _wait(self) -> tuple[Operation, int] | None:
        """The next transfer, when there is one; None: the pool is closed."""
        with self._lock:
            self._idle += 1
            try:
                while not self._closed:
                    with suppress(IndexError):  # a busy thread may have been faster
                        return self._ready.popleft()
                    if self._idle == len(self._threads):
                        self._on_idle()
                    self._work.wait()
            finally:
                self._idle -= 1
        return None

    # One function, for every call more on this path is time that the storage does not take.
    def _transfer(self, worker: _Worker, operation: Operation, offset: int) -> None:  # noqa: C901
        clock, kind, settings = self._clock, operation.kind, self._settings
        length = settings.chunk_bytes if offset != self._offsets[-1] else self._last_bytes
        picked = clock()
        view = worker.prepare(operation, offset, length)
        started = clock()
        if not operation.started_ns:
            operation.started_ns = started  # it has begun; the lock below finds the earliest
        worker.busy_since_ns = started
        error = None
        try:
            if kind == READ:
                self._get_into(operation.object_key, offset, view)
            else:
                self._put_from(operation.object_key, offset, view)
        except StorageError as problem:
            error = str(problem)
        done = clock()
        worker.busy_since_ns = 0
        if kind == READ and error is None:
            error = worker.verify(operation, offset, length)
        syncs = kind == WRITE and settings.sync
        transferred = done
        with self._lock:
            if error is not None:
                self._fail(operation, error)
            if started <= operation.started_ns:
                operation.started_ns = started
                operation.stamping_ns = started - picked
            operation.done_ns = max(operation.done_ns, done)
            self._call_ns += (done - started - self._call_ns) / _CALLS_REMEMBERED
            operation.left -= 1
            last = not operation.left
            if last and not syncs:
                self._complete(operation)
        if last and syncs:
            worker.busy_since_ns = done
            done = self._sync(operation)
            worker.busy_since_ns = 0
        if not operation.failed:
            if self._calls > 1:
                logged_bytes = min(length, settings.object_bytes)
                worker.log.add(TRANSFER, 0, started, transferred, logged_bytes, 0)
            if last:
                self._write_log(worker.log, operation, transferred, done)

    def _delete(self, worker: _Worker, deletion: Deletion) -> None:
        """Each delete is an operation by itself, which has waited for those before it."""
        error = None
        began = done = deletion.started_ns = self._clock()
        submitted = deletion.submitted_ns
        try:
            for object_key in deletion.object_keys:
                started = worker.busy_since_ns = done
                self._backend.delete(object_key)
                done = self._clock()
                worker.log.add(DELETE, submitted, started, done, 0, 0)
        except StorageError as problem:
            error = str(problem)
            done = self._clock()
        deletion.done_ns = done
        worker.busy_since_ns = 0
        deletion.left = 0
        with self._lock:
            if error is not None:
                self._fail(deletion, error)
            self._note_call((deletion.done_ns - began) / len(deletion.object_keys))
            self._complete(deletion)

    def _sync(self, operation: Operation) -> int:
        """Make the object durable, unless a transfer of it failed; then it is complete."""
        error = None
        began = self._clock()
        try:
            if not operation.failed:
                self._backend.sync(operation.object_key)
        except StorageError as problem:
            error = str(problem)
        done = self._clock()
        with self._lock:
            self._note_call(done - began)
            if error is not None:
                self._fail(operation, error)
            operation.done_ns = done
            self._complete(operation)
        return done

    def _complete(self, operation: Operation) -> None:
        """Tell the owner; of what that queues this thread takes one itself, in a moment."""
        self._spare = 1
        self._on_complete(operation)
        self._spare = 0

    def _note_call(self, elapsed_ns: float) -> None:
        self._call_ns += (elapsed_ns - self._call_ns) / _CALLS_REMEMBERED

    def _fail(self, operation: Operation, error: str) -> None:
        operation.failed = True
        if self.first_error is None:
            self.first_error = error

    def _write_log(self, log: Log, operation: Operation, transferred: int, done: int) -> None:
        """One row per operation; queueing excludes the stamping of its first transfer."""
        if done > transferred:
            log.add(SYNC, 0, transferred, done, 0, 0)
        log.add(
            operation.kind, operation.submitted_ns + operation.stamping_ns,
            operation.started_ns, operation.done_ns,
            self._settings.object_bytes, self._calls,
        )  # fmt: skip
