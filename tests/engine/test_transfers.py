from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.backends.memory import MemoryBackend
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import BackendPlan
from pytest_kvcache.cache.index import Admission, CacheIndex, Slot
from pytest_kvcache.engine.payload import ChunkBuffer, Payload
from pytest_kvcache.engine.transfers import (
    _QUICK_CALL_NS,
    Operation,
    TransferPool,
    TransferSettings,
)
from pytest_kvcache.errors import StorageError
from pytest_kvcache.measure.recorder import DELETE, READ, WRITE, Recorder, Window
from tests.factories import (
    HOST,
    PAGE,
    PATIENCE_S,
    Bookkeeper,
    FakeClock,
    S,
    Stage,
    extremes,
    key_of,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.identity import Identity


class Pool:
    """A pool with its lock, its log and the operations that it completed, in order."""

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        payload: Payload | None = None,
        **changes: Any,
    ) -> None:
        values: dict[str, Any] = {
            "queue_depth": 1,
            "object_bytes": PAGE,
            "stored_bytes": PAGE,
            "chunk_bytes": PAGE,
            "sync": False,
            "verify": "full",
        }
        self.settings = TransferSettings(**values | changes)
        self.lock = threading.Lock()
        self.recorder = Recorder()
        self.recorder.open_window(Window(0, None))
        self.done: list[Operation] = []
        self.idle = threading.Event()
        self._ended = threading.Condition(self.lock)
        self.pool = TransferPool(
            settings=self.settings,
            backend=backend,
            payload=payload,
            recorder=self.recorder,
            lock=self.lock,
            clock=clock,
            on_complete=self._complete,
            on_idle=self.idle.set,
        )
        self._index = CacheIndex(None)

    def _complete(self, operation: Operation) -> None:
        self.done.append(operation)
        self._ended.notify_all()

    def slots(self, *names: object) -> list[Slot]:
        admission = self._index.admit([key_of(name) for name in names], 0)
        assert isinstance(admission, Admission)  # nothing blocks without a limit
        return admission.inserts

    def submit(self, kind: int, *slots: Slot) -> None:
        with self.lock:
            self.pool.submit(kind, slots, None)

    def wait(self, count: int) -> list[Operation]:
        """Wait until so many operations are complete."""
        with self.lock:
            assert self._ended.wait_for(lambda: len(self.done) >= count, PATIENCE_S)
            return self.done

    def carry_out(self, kind: int, *slots: Slot) -> list[Operation]:
        """Submit, and wait until all is complete; return the new operations."""
        before = len(self.done)
        self.submit(kind, *slots)
        return self.wait(before + len(slots))[before:]

    def close(self) -> None:
        self.pool.close()
        self.recorder.finish()

    def histogram(self, section: str) -> tuple[int, int | None, int | None, int]:
        return extremes(self.recorder.histograms[section])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stage(clock: FakeClock) -> Iterator[Stage]:
    held = Stage(clock)
    yield held
    held.release_all()


# -- times ---------------------------------------------------------------------------------


class SlowPayload(Payload):
    """Stamps, spoils and verifies in a second each."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(1, PAGE)
        self._clock = clock

    def stamp(self, buffer: ChunkBuffer, length: int, identity: Identity, first_page: int) -> None:
        self._clock.advance(S)
        super().stamp(buffer, length, identity, first_page)

    def poison(self, buffer: ChunkBuffer, length: int, *, thorough: bool = False) -> None:
        self._clock.advance(S)
        super().poison(buffer, length, thorough=thorough)

    def verify(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        *,
        thorough: bool,
    ) -> str | None:
        self._clock.advance(S)
        return super().verify(buffer, length, identity, first_page, thorough=thorough)


def test_making_and_checking_data_is_in_no_time_of_an_operation(clock: FakeClock) -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE)
    pool = Pool(backend, clock=clock, payload=SlowPayload(clock))
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    pool.carry_out(READ, *slots)
    pool.close()
    assert clock() == FakeClock()() + 3 * S
    for section in ("read", "write"):
        assert pool.histogram(section) == (1, 0, 0, 0), section
    for section in ("queue", "device"):
        assert pool.histogram(section) == (2, 0, 0, 0), section


class SlowlySynced(Bookkeeper):
    """Puts take 2 s, syncs take 3 s."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._clock.advance(2 * S)
        super().put_from(key, offset, buffer)

    def sync(self, key: str) -> None:
        self._clock.advance(3 * S)
        super().sync(key)


def test_the_sync_belongs_to_the_write(clock: FakeClock) -> None:
    backend = SlowlySynced(clock)
    backend.prepare(2 * PAGE, syncs=True)
    pool = Pool(backend, clock=clock, payload=Payload(1, PAGE), sync=True, stored_bytes=2 * PAGE)
    pool.pool.start()
    (operation,) = pool.carry_out(WRITE, *pool.slots("a"))
    pool.close()
    assert operation.done_ns == clock()
    assert pool.histogram("write") == (1, 7 * S, 7 * S, 7 * S)
    assert backend.breaches == []


@pytest.mark.parametrize("transfers", [1, 2])
def test_no_transfer_includes_the_sync_and_the_depth_does(clock: FakeClock, transfers: int) -> None:
    backend = SlowlySynced(clock)
    backend.prepare(transfers * PAGE, syncs=True)
    pool = Pool(
        backend, clock=clock, payload=Payload(1, PAGE), sync=True, stored_bytes=transfers * PAGE
    )
    pool.pool.start()
    pool.carry_out(WRITE, *pool.slots("a"))
    pool.close()
    assert pool.histogram("device") == (transfers, 2 * S, 2 * S, transfers * 2 * S)
    assert pool.recorder.section_bytes["device"] == transfers * PAGE
    assert pool.recorder.in_flight_ns == (transfers * 2 + 3) * S


def test_a_read_beside_synced_writes_is_one_transfer(clock: FakeClock) -> None:
    backend = SlowlySynced(clock)
    backend.prepare(PAGE, syncs=True)
    pool = Pool(backend, clock=clock, payload=Payload(1, PAGE), sync=True)
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    pool.carry_out(READ, *slots)
    pool.close()
    assert pool.histogram("device")[0] == 2


class SlowlyDeleted(Bookkeeper):
    """Deletes take 1 s, 2 s, 3 s …; one of them fails where it is told so."""

    def __init__(self, clock: FakeClock, fails_at: int = 0) -> None:
        super().__init__()
        self._clock = clock
        self._fails_at = fails_at
        self._made = 0

    def delete(self, key: str) -> None:
        self._made += 1
        self._clock.advance(self._made * S)
        if self._made == self._fails_at:
            raise StorageError(f"{HOST}: can't delete {key}")
        super().delete(key)


def test_each_delete_is_an_operation_with_a_time_of_its_own(clock: FakeClock) -> None:
    backend = SlowlyDeleted(clock)
    backend.prepare(PAGE)
    pool = Pool(backend, clock=clock, payload=Payload(1, PAGE))
    pool.pool.start()
    slots = pool.slots("a", "b", "c")
    pool.carry_out(WRITE, *slots)
    pool.submit(DELETE, *slots)
    pool.wait(4)
    pool.close()
    assert pool.histogram("delete") == (3, 1 * S, 3 * S, 6 * S)
    assert pool.recorder.in_flight_ns == 6 * S
    assert pool.histogram("queue")[0] == pool.histogram("device")[0] == 3  # the writes


def test_a_failed_delete_has_no_time(clock: FakeClock) -> None:
    backend = SlowlyDeleted(clock, fails_at=2)
    backend.prepare(PAGE)
    pool = Pool(backend, clock=clock, payload=Payload(1, PAGE))
    pool.pool.start()
    slots = pool.slots("a", "b", "c")
    pool.carry_out(WRITE, *slots)
    pool.submit(DELETE, *slots)
    assert pool.wait(4)[-1].failed
    pool.close()
    assert pool.histogram("delete") == (1, 1 * S, 1 * S, 1 * S)


def test_reads_and_deletes_are_not_synced() -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE, syncs=True)
    pool = Pool(backend, payload=Payload(1, PAGE), sync=True)
    pool.pool.start()
    slots = pool.slots("a")
    for kind in (WRITE, READ, DELETE):
        (operation,) = pool.carry_out(kind, *slots)
        assert not operation.failed
    pool.close()
    assert backend.counts == {"put": 1, "sync": 1, "get": 1, "delete": 1}
    assert backend.breaches == []


def test_service_lasts_from_the_first_transfer_to_the_end_of_the_last_one(
    clock: FakeClock, stage: Stage
) -> None:
    pool = Pool(stage, clock=clock, queue_depth=2, stored_bytes=3 * PAGE)
    pool.pool.start()
    pool.submit(READ, *pool.slots("a"))
    first, second = stage.expect("get a", "get a @4096")
    clock.advance(2 * S)
    stage.release(second)
    (_, third) = stage.expect("get a", "get a @8192")
    clock.advance(3 * S)
    stage.release(third)
    wait_for(lambda: pool.pool._idle == 1)
    clock.advance(4 * S)
    stage.release(first)
    pool.wait(1)
    pool.close()
    assert pool.histogram("read") == (1, 9 * S, 9 * S, 9 * S)
    assert pool.histogram("queue") == (1, 0, 0, 0)
    assert pool.histogram("device") == (3, 2 * S, 9 * S, 14 * S)


def test_an_operation_ends_with_its_last_byte_whichever_is_verified_last(
    clock: FakeClock, stage: Stage
) -> None:
    verifying, verified = threading.Event(), threading.Event()

    class Slow(Payload):
        def verify(
            self,
            buffer: ChunkBuffer,
            length: int,
            identity: Identity,
            first_page: int,
            *,
            thorough: bool,
        ) -> None:
            del buffer, length, identity, thorough
            if not first_page:
                verifying.set()
                assert verified.wait(PATIENCE_S)

    pool = Pool(stage, clock=clock, payload=Slow(1, PAGE), queue_depth=2, stored_bytes=2 * PAGE)
    pool.pool.start()
    pool.submit(READ, *pool.slots("a"))
    first, second = stage.expect("get a", "get a @4096")
    clock.advance(2 * S)
    stage.release(first)
    assert verifying.wait(PATIENCE_S)
    clock.advance(3 * S)
    stage.release(second)
    wait_for(lambda: pool.pool._idle == 1)
    clock.advance(10 * S)
    verified.set()
    pool.wait(1)
    pool.close()
    assert pool.histogram("read") == (1, 5 * S, 5 * S, 5 * S)
    assert pool.histogram("device") == (2, 2 * S, 5 * S, 7 * S)


def test_an_operation_starts_with_its_first_transfer_whichever_that_is(
    clock: FakeClock, stage: Stage
) -> None:
    # The thread that took the object's first chunk is late; another one is not.
    late = threading.Event()

    class Late(Payload):
        def stamp(
            self, buffer: ChunkBuffer, length: int, identity: Identity, first_page: int
        ) -> None:
            if not first_page:
                assert late.wait(PATIENCE_S)
            super().stamp(buffer, length, identity, first_page)

    pool = Pool(stage, clock=clock, payload=Late(1, PAGE), queue_depth=2, stored_bytes=2 * PAGE)
    pool.pool.start()
    pool.submit(WRITE, *pool.slots("a"))
    (second,) = stage.expect("put a @4096")
    clock.advance(5 * S)
    late.set()
    first, _ = stage.expect("put a", "put a @4096")
    clock.advance(S)
    stage.release(first, second)
    pool.wait(1)
    pool.close()
    assert pool.histogram("write") == (1, 6 * S, 6 * S, 6 * S)


def test_every_transfer_counts_the_bytes_it_moved(clock: FakeClock, stage: Stage) -> None:
    pool = Pool(
        stage,
        clock=clock,
        queue_depth=2,
        object_bytes=5 * PAGE,
        stored_bytes=5 * PAGE,
        chunk_bytes=2 * PAGE,
    )
    pool.pool.start()
    stage.release_all()
    pool.carry_out(READ, *pool.slots("a", "b"))
    pool.close()
    assert pool.settings.transfers == 3
    assert pool.recorder.section_bytes["read"] == 2 * 5 * PAGE
    assert pool.histogram("device")[0] == 6
    assert pool.recorder.section_bytes["device"] == 2 * 5 * PAGE


def test_bytes_are_logical_and_transfers_are_whole_pages() -> None:
    lengths: list[int] = []

    class Measured(Bookkeeper):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            lengths.append(len(buffer))
            super().put_from(key, offset, buffer)

    backend = Measured()
    backend.prepare(3 * PAGE)
    pool = Pool(
        backend,
        payload=Payload(1, 2 * PAGE),
        object_bytes=2 * PAGE + 1,
        stored_bytes=3 * PAGE,
        chunk_bytes=2 * PAGE,
    )
    pool.pool.start()
    pool.carry_out(WRITE, *pool.slots("a"))
    pool.close()
    assert lengths == [2 * PAGE, PAGE]
    assert pool.recorder.section_bytes["write"] == 2 * PAGE + 1


# -- verification --------------------------------------------------------------------------


def stored_pool(verify: str, pages: int = 2) -> tuple[Pool, Bookkeeper, list[Slot]]:
    """A pool whose backend holds one object."""
    backend = Bookkeeper()
    backend.prepare(pages * PAGE)
    pool = Pool(
        backend,
        payload=Payload(1, pages * PAGE),
        stored_bytes=pages * PAGE,
        chunk_bytes=pages * PAGE,
        verify=verify,
    )
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    return pool, backend, slots


def damage(backend: Bookkeeper, at: int) -> None:
    (stored,) = backend.objects.values()
    content = bytearray(stored.parts[0])
    content[at] ^= 1
    stored.parts[0] = bytes(content)


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, PAGE - 1, PAGE, PAGE + 16, 2 * PAGE - 1])
def test_full_verification_finds_a_flipped_bit_anywhere(at: int) -> None:
    pool, backend, slots = stored_pool("full")
    damage(backend, at)
    (operation,) = pool.carry_out(READ, *slots)
    pool.close()
    assert operation.failed
    assert pool.pool.first_error is not None
    assert "read back wrong at byte 0" in pool.pool.first_error
    assert (pool.pool.checked, pool.pool.corrupt) == (1, 1)
    assert pool.histogram("read")[0] == pool.histogram("device")[0] - 1 == 0


def test_sampled_verification_sees_every_stamp_and_one_transfer_in_64_whole() -> None:
    pool, backend, slots = stored_pool("sample")
    damage(backend, 100)
    failed = [operation.failed for _ in range(640) for operation in pool.carry_out(READ, *slots)]
    assert failed[0]
    assert sum(failed) == 10
    damage(backend, 100)
    for at in (0, 8, PAGE, PAGE + 8):
        damage(backend, at)
        assert [operation.failed for operation in pool.carry_out(READ, *slots)] == [True]
        damage(backend, at)
    pool.close()
    assert (pool.pool.checked, pool.pool.corrupt) == (644, 14)
    assert pool.histogram("read")[0] == 630


class Counting(Payload):
    """Counts the thorough checks by page."""

    def __init__(self) -> None:
        super().__init__(1, PAGE)
        self.thorough: Counter[int] = Counter()

    def verify(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        *,
        thorough: bool,
    ) -> str | None:
        self.thorough[first_page] += thorough
        return super().verify(buffer, length, identity, first_page, thorough=thorough)


@pytest.mark.thorough
@pytest.mark.parametrize("transfers", [1, 2, 3, 16, 61, 64])
def test_every_chunk_of_an_object_has_its_share_of_the_thorough_checks(transfers: int) -> None:
    backend, payload = Bookkeeper(), Counting()
    backend.prepare(transfers * PAGE)
    pool = Pool(backend, payload=payload, stored_bytes=transfers * PAGE, verify="sample")
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    for _ in range(512):
        pool.carry_out(READ, *slots)
    pool.close()
    assert payload.thorough.keys() == set(range(transfers))
    assert all(1 <= count <= 24 for count in payload.thorough.values())


def test_without_verification_nothing_is_checked() -> None:
    pool, backend, slots = stored_pool("off")
    damage(backend, 0)
    assert [operation.failed for operation in pool.carry_out(READ, *slots)] == [False]
    pool.close()
    assert (pool.pool.checked, pool.pool.corrupt) == (0, 0)


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_what_an_earlier_read_left_in_the_buffer_does_not_pass(verify: str) -> None:
    class Lazy(Bookkeeper):
        reads = 0

        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            self.reads += 1
            if self.reads == 1:
                super().get_into(key, offset, buffer)

    backend = Lazy()
    backend.prepare(PAGE)
    pool = Pool(backend, payload=Payload(1, PAGE), verify=verify)
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    assert [op.failed for op in pool.carry_out(READ, *slots, *slots)] == [False, True]
    pool.close()


def test_a_backend_without_data_gets_no_buffer_and_no_verification() -> None:
    seen: list[int] = []

    class Seen(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset
            seen.append(len(buffer))

    pool = Pool(Seen())
    pool.pool.start()
    assert [op.failed for op in pool.carry_out(READ, *pool.slots("a"))] == [False]
    pool.close()
    assert seen == [0]
    assert pool.pool.checked == 0


# -- failures ------------------------------------------------------------------------------


def test_the_first_error_is_kept(clock: FakeClock, stage: Stage) -> None:
    pool = Pool(stage, clock=clock, queue_depth=2)
    pool.pool.start()
    pool.submit(READ, *pool.slots("a", "b"))
    first, second = stage.expect("get a", "get b")
    stage.release(second, error="the first one")
    pool.wait(1)
    stage.release(first, error="the second one")
    assert [operation.failed for operation in pool.wait(2)] == [True, True]
    pool.close()
    assert pool.pool.first_error == f"{HOST}: the first one"
    assert pool.histogram("read")[0] == pool.histogram("queue")[0] == 0


def test_a_failed_sync_fails_the_write(clock: FakeClock) -> None:
    class Unsynced(Bookkeeper):
        def sync(self, key: str) -> None:
            raise StorageError(f"{HOST}: can't sync {key}")

    backend = Unsynced()
    backend.prepare(PAGE, syncs=True)
    pool = Pool(backend, clock=clock, payload=Payload(1, PAGE), sync=True)
    pool.pool.start()
    (operation,) = pool.carry_out(WRITE, *pool.slots("a"))
    pool.close()
    assert operation.failed
    assert pool.histogram("write")[0] == 0
    assert pool.recorder.section_bytes["write"] == 0


def test_an_object_that_could_not_be_written_is_not_synced(
    clock: FakeClock, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(stage, "sync", synced.append)
    pool = Pool(stage, clock=clock, queue_depth=2, stored_bytes=2 * PAGE, sync=True)
    pool.pool.start()
    pool.submit(WRITE, *pool.slots("a"))
    bad, good = stage.expect("put a", "put a @4096")
    stage.release(bad, error="can't write")
    wait_for(lambda: pool.pool.first_error)
    stage.release(good)
    (operation,) = pool.wait(1)
    pool.close()
    assert operation.failed
    assert synced == []


def test_a_thread_that_dies_tells_what_of() -> None:
    class Broken(MemoryBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            raise RuntimeError("a bug in a backend")

    pool = Pool(Broken())
    pool.pool.start()
    pool.idle.clear()
    pool.submit(READ, *pool.slots("a"))
    assert pool.idle.wait(PATIENCE_S)
    wait_for(lambda: pool.pool.crash)
    assert isinstance(pool.pool.crash, RuntimeError)
    assert pool.pool.busy
    pool.close()


# -- the queue -----------------------------------------------------------------------------


def test_transfers_begin_in_the_order_of_their_submission(clock: FakeClock, stage: Stage) -> None:
    pool = Pool(stage, clock=clock, stored_bytes=2 * PAGE)
    pool.pool.start()
    a, b = pool.slots("a", "b")
    pool.submit(WRITE, a)
    pool.submit(DELETE, b)
    pool.submit(READ, b)
    for shown in ("put a", "put a @4096", "delete b", "get b", "get b @4096"):
        stage.release(*stage.expect(shown))
    assert [operation.kind for operation in pool.wait(3)] == [WRITE, DELETE, READ]
    pool.close()


def test_no_more_transfers_are_in_flight_than_the_queue_depth(
    clock: FakeClock, stage: Stage
) -> None:
    pool = Pool(stage, clock=clock, queue_depth=3)
    pool.pool.start()
    pool.submit(READ, *pool.slots(*range(9)))
    stage.expect("get 0", "get 1", "get 2")
    assert pool.pool.busy
    stage.release_all()
    pool.wait(9)
    wait_for(lambda: not pool.pool.busy)
    pool.close()


class Timed(NullBackend):
    """Every call and every sync takes so long on the fake clock; who made calls is noted."""

    def __init__(self, clock: FakeClock, call_ns: int, sync_ns: int = 0) -> None:
        self._clock = clock
        self._call_ns = call_ns
        self._sync_ns = sync_ns
        self.held = threading.Event()
        self.held.set()
        self.inside: set[int] = set()

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        super().put_from(key, offset, buffer)
        self._clock.advance(self._call_ns)
        self.inside.add(threading.get_ident())
        assert self.held.wait(PATIENCE_S)

    def sync(self, key: str) -> None:
        super().sync(key)
        self._clock.advance(self._sync_ns)


def check_threads_of_a_burst(
    clock: FakeClock, threads: int, *, call_ns: int, sync_ns: int = 0
) -> None:
    """So many of 4 threads take up 8 puts, after many that took as long as told."""
    backend = Timed(clock, call_ns, sync_ns)
    pool = Pool(backend, clock=clock, queue_depth=4, sync=sync_ns > 0)
    pool.pool.start()
    for slot in pool.slots(*range(200)):  # one by one: all threads share the clock
        pool.carry_out(WRITE, slot)
    wait_for(lambda: asleep(pool) == 4)
    backend.inside.clear()
    backend.held.clear()
    pool.submit(WRITE, *pool.slots(*range(200, 208)))
    wait_for(lambda: len(backend.inside) == threads)
    with pool.lock:  # a thread too many would have been woken by now, though not be here
        assert asleep(pool) == 4 - threads
    backend.held.set()
    pool.wait(208)
    pool.close()


def asleep(pool: Pool) -> int:
    """How many threads nobody has woken."""
    return len(vars(pool.pool._work)["_waiters"])


def test_calls_that_take_their_time_are_made_by_all_threads(clock: FakeClock) -> None:
    check_threads_of_a_burst(clock, 4, call_ns=20_000)


def test_calls_that_are_over_at_once_are_made_by_one_thread(clock: FakeClock) -> None:
    check_threads_of_a_burst(clock, 1, call_ns=500)


def test_a_slow_sync_behind_quick_puts_keeps_all_threads_at_work(clock: FakeClock) -> None:
    check_threads_of_a_burst(clock, 4, call_ns=500, sync_ns=1_000_000)


def test_calls_that_become_slow_bring_all_threads_to_work_on_what_is_queued(
    clock: FakeClock,
) -> None:
    backend = Timed(clock, 500)
    pool = Pool(backend, clock=clock, queue_depth=4)
    pool.pool.start()
    for slot in pool.slots(*range(200)):
        pool.carry_out(WRITE, slot)
    wait_for(lambda: asleep(pool) == 4)
    backend._call_ns = 20_000
    more = iter(pool.slots(*range(300, 5_300)))

    def one_for_one(operation: Operation) -> None:  # as users do, who ask again at once
        pool._complete(operation)
        if backend.held.is_set() and pool.pool._call_ns >= _QUICK_CALL_NS:
            backend.inside.clear()
            backend.held.clear()  # whoever makes a call from now on stays in it
        pool.pool.submit(WRITE, [next(more)], None)

    pool.pool._on_complete = one_for_one
    pool.submit(WRITE, *pool.slots(*range(200, 208)))
    wait_for(lambda: len(backend.inside) == 4)
    pool.pool._on_complete = pool._complete
    backend.held.set()
    wait_for(lambda: not pool.pool.busy)
    pool.close()


def test_a_queue_that_no_thread_has_looked_at_yet_is_busy() -> None:
    pool = Pool(NullBackend())
    pool.pool.start()
    wait_for(lambda: not pool.pool.busy)
    with pool.lock:  # the thread can't wake up
        pool.pool.submit(READ, pool.slots("a"), None)
        assert pool.pool._idle == 1
        assert pool.pool.busy
    pool.wait(1)
    pool.close()


def test_deletes_are_carried_out_and_not_measured() -> None:
    backend = MemoryBackend()
    backend.open(
        BackendPlan(
            directory=None,
            object_bytes=PAGE,
            chunk_bytes=PAGE,
            io="direct",
            sync="none",
            host=HOST,
            namespace="kvcache-run/trial-1/rank-0",
        )
    )
    pool = Pool(backend, payload=Payload(1, PAGE))
    pool.pool.start()
    slots = pool.slots("a")
    pool.carry_out(WRITE, *slots)
    assert [operation.failed for operation in pool.carry_out(DELETE, *slots)] == [False]
    assert [operation.failed for operation in pool.carry_out(DELETE, *slots)] == [True]
    pool.close()
    assert pool.histogram("device")[0] == pool.histogram("queue")[0] == 1
    assert pool.pool.first_error is not None


def test_what_is_kept_is_of_that_kind_or_has_begun(clock: FakeClock, stage: Stage) -> None:
    pool = Pool(stage, clock=clock, stored_bytes=2 * PAGE)
    pool.pool.start()
    a, b, c = pool.slots("a", "b", "c")
    pool.submit(WRITE, a, b)
    pool.submit(READ, c)
    (first,) = stage.expect("put a")
    with pool.lock:
        pool.pool.keep_only(READ)
    stage.release(first)
    for shown in ("put a @4096", "get c", "get c @4096"):
        stage.release(*stage.expect(shown))
    assert [operation.slot for operation in pool.wait(2)] == [a, c]
    pool.close()


class Intruding(Operation):
    """While somebody looks at its kind, another thread takes the next transfer."""

    __slots__ = ("_kind", "queue", "taken")

    _kind: int
    queue: deque[tuple[Operation, int]]
    taken: list[tuple[Operation, int]]

    @property
    def kind(self) -> int:
        if not self.taken:
            self.taken.append(self.queue.popleft())
        return self._kind

    @kind.setter
    def kind(self, value: int) -> None:
        self._kind = value


def test_sorting_out_the_queue_does_not_disturb_threads_that_take_from_it() -> None:
    # Threads take transfers without the lock, so also in the middle of this.
    pool = Pool(NullBackend())
    slots = pool.slots("a", "b", "c")
    pool.submit(READ, *slots)
    queue = pool.pool._ready
    intruding = Intruding(READ, slots[0], None, 0, 1)
    intruding.queue, intruding.taken = queue, []
    queue.appendleft((intruding, 0))
    first = queue[0]
    with pool.lock:
        pool.pool.keep_only(READ)
    items = [*intruding.taken, *queue]
    assert len(items) == 4, "a transfer is lost, or will be carried out twice"
    assert len({id(operation) for operation, _ in items}) == 4
    assert first in items


def test_a_thread_that_finds_the_queue_emptied_by_another_waits_again() -> None:
    stolen: list[tuple[Operation, int]] = []

    class Contended(deque[tuple[Operation, int]]):
        """The first transfer is taken by another thread, just before it would be ours."""

        def popleft(self) -> tuple[Operation, int]:
            item = super().popleft()
            if not stolen:
                stolen.append(item)
                raise IndexError("pop from an empty deque")
            return item

    pool = Pool(NullBackend())
    pool.pool._ready = Contended()
    pool.pool.start()
    wait_for(lambda: pool.pool._idle == 1)
    slots = pool.slots("a", "b")
    pool.submit(READ, slots[0])
    wait_for(lambda: stolen)
    pool.submit(READ, slots[1])
    wait_for(lambda: pool.done or pool.pool.crash)
    assert pool.pool.crash is None
    assert [operation.slot for operation in pool.done] == [slots[1]]
    wait_for(lambda: not pool.pool.busy)
    pool.close()


def test_many_threads_carry_out_every_operation_once() -> None:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        pool = Pool(NullBackend(), queue_depth=8, stored_bytes=3 * PAGE)
        pool.pool.start()
        submitted = []
        for number in range(300):
            slots = pool.slots(f"{number}x", f"{number}y")
            submitted += slots
            pool.submit(READ, *slots)
            with pool.lock:
                pool.pool.keep_only(READ)
        wait_for(lambda: pool.pool.crash or len(pool.done) == len(submitted))
        wait_for(lambda: pool.pool.crash or not pool.pool.busy)
        pool.close()
    finally:
        sys.setswitchinterval(interval_s)
    assert pool.pool.crash is None
    assert {id(operation.slot) for operation in pool.done} == {id(slot) for slot in submitted}
    assert all(operation.left == 0 for operation in pool.done)
    assert pool.histogram("read")[0] == len(submitted)
    assert pool.histogram("device")[0] == 3 * len(submitted)


def test_closing_lets_what_is_in_flight_end_and_forgets_the_rest(
    clock: FakeClock, stage: Stage
) -> None:
    pool = Pool(stage, clock=clock)
    pool.pool.start()
    pool.submit(READ, *pool.slots("a", "b"))
    (call,) = stage.expect("get a")
    closing = threading.Thread(target=pool.pool.close, daemon=True)
    closing.start()
    wait_for(lambda: pool.pool._closed)
    stage.release(call)
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert [str(call) for call in stage.calls] == ["get a"]
    assert len(pool.done) == 1


def test_a_pool_that_never_started_can_be_closed() -> None:
    Pool(NullBackend()).close()


def test_idle_is_told_when_nothing_is_left() -> None:
    pool = Pool(NullBackend(), queue_depth=4)
    pool.pool.start()
    assert pool.idle.wait(PATIENCE_S)
    pool.idle.clear()
    pool.carry_out(READ, *pool.slots(*range(50)))
    assert pool.idle.wait(PATIENCE_S)
    assert not pool.pool.busy
    pool.close()


def test_a_log_row_holds_all_times(clock: FakeClock, stage: Stage) -> None:
    pool = Pool(stage, clock=clock)
    pool.pool.start()
    pool.submit(READ, *pool.slots("a", "b"))
    (first,) = stage.expect("get a")
    clock.advance(S)
    stage.release(first)
    (second,) = stage.expect("get b")
    clock.advance(2 * S)
    stage.release(second)
    operations = pool.wait(2)
    origin_ns = FakeClock()()
    times = np.array([(o.submitted_ns, o.started_ns, o.done_ns) for o in operations]) - origin_ns
    assert times.tolist() == [[0, 0, S], [0, S, 3 * S]]
    pool.close()


# --- how long the storage has not answered --------------------------------------------------


def test_the_longest_wait_is_that_of_the_oldest_call_under_way(
    clock: FakeClock, stage: Stage
) -> None:
    pool = Pool(stage, clock=clock, queue_depth=2)
    pool.pool.start()
    assert pool.pool.longest_wait_ns() == 0
    pool.submit(WRITE, *pool.slots("a"))
    (first,) = stage.expect("put a")
    clock.advance(3 * S)
    pool.submit(WRITE, *pool.slots("b"))
    (_, second) = stage.expect("put a", "put b")
    clock.advance(2 * S)
    assert pool.pool.longest_wait_ns() == 5 * S
    stage.release(first)
    pool.wait(1)
    assert pool.pool.longest_wait_ns() == 2 * S
    stage.release(second)
    pool.wait(2)
    assert pool.pool.longest_wait_ns() == 0
    pool.close()


def test_waiting_for_a_sync_is_waiting_for_the_storage(clock: FakeClock) -> None:
    syncing, over = threading.Event(), threading.Event()

    class HangsInSync(Bookkeeper):
        def sync(self, key: str) -> None:
            syncing.set()
            over.wait(PATIENCE_S)
            super().sync(key)

    backend = HangsInSync()
    backend.prepare(PAGE, syncs=True)
    pool = Pool(backend, clock=clock, sync=True)
    pool.pool.start()
    pool.submit(WRITE, *pool.slots("a"))
    assert syncing.wait(PATIENCE_S)
    clock.advance(4 * S)
    assert pool.pool.longest_wait_ns() == 4 * S
    over.set()
    pool.wait(1)
    wait_for(lambda: pool.pool.longest_wait_ns() == 0)
    pool.close()
