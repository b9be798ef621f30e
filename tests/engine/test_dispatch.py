from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.buffers import buffer_bytes, slot_counts
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.cache.index import Admission, BlockEntry
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.payload import ChunkBuffer, Payload
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.inline import InlineEngine
from pytest_kvcache.measure.recorder import DELETE, READ, WRITE, Recorder, Window
from tests.factories import HOST, PAGE, Bookkeeper, FakeClock, S, extremes, key_of
from tests.rig import Shuffled, Stage, index_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.identity import Identity
    from pytest_kvcache.engine.operations import Operation
    from pytest_kvcache.ioengines.protocol import Completion, IoEngine

MIB = 1 << 20


class Desk:
    """A dispatcher, its log and the operations that it completed, in order."""

    def __init__(
        self,
        storage: Backend | Stage | Shuffled,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        payload: Payload | None = None,
        **changes: Any,
    ) -> None:
        self.settings = settings_of(**{"queue_depth": 1, "verify": "full"} | changes)
        depth = self.settings.queue_depth
        if isinstance(storage, (Stage, Shuffled)):
            storage.depth = depth
            io: IoEngine = storage
        else:
            io = InlineEngine(storage, depth, clock)
        self.recorder = Recorder()
        self.recorder.open_window(Window(0, None))
        self.done: list[Operation] = []
        self.dispatcher = Dispatcher(
            settings=self.settings,
            io=io,
            payload=payload,
            log=self.recorder.log,
            clock=clock,
            on_complete=self.done.append,
        )
        self._index = index_of(None, self.settings)

    def entries(self, *names: object) -> list[BlockEntry]:
        admission = self._index.admit(
            [key_of(name) for name in names], 0, self.settings.object_bytes
        )
        assert isinstance(admission, Admission)  # nothing blocks without a limit
        return admission.inserts

    def submit(self, kind: int, *entries: BlockEntry) -> None:
        self.dispatcher.submit(kind, entries, None)
        self.turn()

    def turn(self, times: int = 3) -> None:
        """Nothing is waited for."""
        for _ in range(times):
            self.dispatcher.turn(0)

    def carry_out(self, kind: int, *entries: BlockEntry) -> list[Operation]:
        """Submit, and work until nothing is left; return the new operations."""
        before = len(self.done)
        self.dispatcher.submit(kind, entries, None)
        while self.dispatcher.busy:
            self.dispatcher.turn(0)
        return self.done[before:]

    def close(self) -> None:
        self.dispatcher.close()
        self.recorder.finish()

    def histogram(self, section: str) -> tuple[int, int | None, int | None, int]:
        self.recorder.absorb(0)
        return extremes(self.recorder.histograms[section])


@pytest.fixture
def stage(clock: FakeClock) -> Stage:
    return Stage(clock, parks=False)


# -- times ---------------------------------------------------------------------------------


class SlowPayload(Payload):
    """Stamps, spoils and verifies in a second each."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(1, PAGE)
        self._clock = clock

    def stamp(self, buffer: ChunkBuffer, length: int, *rest: Any) -> None:
        self._clock.advance(S)
        super().stamp(buffer, length, *rest)

    def poison(self, buffer: ChunkBuffer, length: int, **how: Any) -> None:
        self._clock.advance(S)
        super().poison(buffer, length, **how)

    def verify(self, buffer: ChunkBuffer, length: int, *rest: Any, **how: Any) -> str | None:
        self._clock.advance(S)
        return super().verify(buffer, length, *rest, **how)


def test_making_and_checking_data_is_in_no_time_of_an_operation(clock: FakeClock) -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE)
    desk = Desk(backend, clock=clock, payload=SlowPayload(clock), verify="sample")
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    assert desk.histogram("queue") == (1, 0, 0, 0)
    desk.carry_out(READ, *entries)
    assert clock() == FakeClock()() + 3 * S
    for section in ("read", "write"):
        assert desk.histogram(section) == (1, 0, 0, 0), section
    assert desk.histogram("device") == (2, 0, 0, 0)


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
    desk = Desk(backend, clock=clock, payload=Payload(1, PAGE), sync=True,
                stored_bytes=2 * PAGE, object_bytes=2 * PAGE)  # fmt: skip
    (operation,) = desk.carry_out(WRITE, *desk.entries("a"))
    assert operation.done_ns == clock()
    assert desk.histogram("write") == (1, 7 * S, 7 * S, 7 * S)
    assert backend.breaches == []


@pytest.mark.parametrize("transfers", [1, 2])
def test_no_transfer_includes_the_sync_and_the_depth_does(clock: FakeClock, transfers: int) -> None:
    backend = SlowlySynced(clock)
    backend.prepare(transfers * PAGE, syncs=True)
    desk = Desk(
        backend, clock=clock, payload=Payload(1, PAGE), sync=True,
        stored_bytes=transfers * PAGE, object_bytes=transfers * PAGE,
    )  # fmt: skip
    desk.carry_out(WRITE, *desk.entries("a"))
    assert desk.histogram("device") == (transfers, 2 * S, 2 * S, transfers * 2 * S)
    assert desk.recorder.section_bytes["device"] == transfers * PAGE
    assert desk.recorder.in_flight_ns == (transfers * 2 + 3) * S


def test_a_read_beside_synced_writes_is_one_transfer(clock: FakeClock) -> None:
    backend = SlowlySynced(clock)
    backend.prepare(PAGE, syncs=True)
    desk = Desk(backend, clock=clock, payload=Payload(1, PAGE), sync=True)
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    desk.carry_out(READ, *entries)
    assert desk.histogram("device")[0] == 2


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
    desk = Desk(backend, clock=clock, payload=Payload(1, PAGE))
    entries = desk.entries("a", "b", "c")
    desk.carry_out(WRITE, *entries)
    desk.carry_out(DELETE, *entries)
    assert desk.histogram("delete") == (3, 1 * S, 3 * S, 6 * S)
    assert desk.recorder.in_flight_ns == 6 * S
    assert desk.histogram("queue")[0] == desk.histogram("device")[0] == 3  # the writes


def test_a_failed_delete_has_no_time_and_fails_no_other(clock: FakeClock) -> None:
    backend = SlowlyDeleted(clock, fails_at=2)
    backend.prepare(PAGE)
    desk = Desk(backend, clock=clock, payload=Payload(1, PAGE))
    entries = desk.entries("a", "b", "c")
    desk.carry_out(WRITE, *entries)
    assert [delete.failed for delete in desk.carry_out(DELETE, *entries)] == [False, True, False]
    assert desk.histogram("delete") == (2, 1 * S, 3 * S, 4 * S)


def test_reads_and_deletes_are_not_synced() -> None:
    backend = Bookkeeper()
    backend.prepare(PAGE, syncs=True)
    desk = Desk(backend, payload=Payload(1, PAGE), sync=True)
    entries = desk.entries("a")
    for kind in (WRITE, READ, DELETE):
        (operation,) = desk.carry_out(kind, *entries)
        assert not operation.failed
    assert backend.counts == {"put": 1, "sync": 1, "get": 1, "delete": 1}
    assert backend.breaches == []


def test_service_lasts_from_the_first_transfer_to_the_end_of_the_last_one(
    clock: FakeClock, stage: Stage
) -> None:
    desk = Desk(stage, clock=clock, queue_depth=2, stored_bytes=3 * PAGE, object_bytes=3 * PAGE)
    desk.submit(READ, *desk.entries("a"))
    first, second = stage.expect("get a", "get a @4096")
    clock.advance(2 * S)
    stage.release(second)
    desk.turn()
    (_, third) = stage.expect("get a", "get a @8192")
    clock.advance(3 * S)
    stage.release(third)
    desk.turn()
    clock.advance(4 * S)
    stage.release(first)
    desk.turn()
    assert desk.histogram("read") == (1, 9 * S, 9 * S, 9 * S)
    assert desk.histogram("queue") == (1, 0, 0, 0)
    assert desk.histogram("device") == (3, 2 * S, 9 * S, 14 * S)


def test_every_transfer_counts_the_bytes_it_moved_and_padding_is_none(
    clock: FakeClock, stage: Stage
) -> None:
    desk = Desk(
        stage, clock=clock, queue_depth=2, object_bytes=4 * PAGE + 1, stored_bytes=5 * PAGE,
        transfer_bytes=2 * PAGE,
    )  # fmt: skip
    stage.open_ended = True
    desk.carry_out(READ, *desk.entries("a", "b"))
    assert desk.settings.transfers == 3
    assert desk.histogram("device")[0] == 6
    assert desk.recorder.section_bytes["read"] == 2 * (4 * PAGE + 1)
    assert desk.recorder.section_bytes["device"] == 2 * (4 * PAGE + 1)


def test_bytes_are_logical_and_transfers_are_whole_pages() -> None:
    lengths: list[int] = []

    class Measured(Bookkeeper):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            lengths.append(len(buffer))
            super().put_from(key, offset, buffer)

    backend = Measured()
    backend.prepare(3 * PAGE)
    desk = Desk(
        backend, payload=Payload(1, 2 * PAGE), object_bytes=2 * PAGE + 1, stored_bytes=3 * PAGE,
        transfer_bytes=2 * PAGE,
    )  # fmt: skip
    desk.carry_out(WRITE, *desk.entries("a"))
    assert lengths == [2 * PAGE, PAGE]
    desk.recorder.absorb(0)
    assert desk.recorder.section_bytes["write"] == 2 * PAGE + 1


def test_a_log_row_holds_all_times(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock)
    desk.submit(READ, *desk.entries("a", "b"))
    (first,) = stage.expect("get a")
    clock.advance(S)
    stage.release(first)
    desk.turn()
    (second,) = stage.expect("get b")
    clock.advance(2 * S)
    stage.release(second)
    desk.turn()
    origin_ns = FakeClock()()
    times = [(o.submitted_ns, o.started_ns, o.done_ns) for o in desk.done]
    assert [[at - origin_ns for at in row] for row in times] == [[0, 0, S], [0, S, 3 * S]]


# -- verification --------------------------------------------------------------------------


def stored_desk(verify: str, pages: int = 2) -> tuple[Desk, Bookkeeper, list[BlockEntry]]:
    """A desk whose backend holds one object."""
    backend = Bookkeeper()
    backend.prepare(pages * PAGE)
    size = pages * PAGE
    desk = Desk(backend, payload=Payload(1, size), stored_bytes=size, transfer_bytes=size,
                verify=verify)  # fmt: skip
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    return desk, backend, entries


def damage(backend: Bookkeeper, at: int) -> None:
    (stored,) = backend.objects.values()
    content = bytearray(stored.parts[0])
    content[at] ^= 1
    stored.parts[0] = bytes(content)


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, PAGE - 1, PAGE, PAGE + 16, 2 * PAGE - 1])
def test_full_verification_finds_a_flipped_bit_anywhere(at: int) -> None:
    desk, backend, entries = stored_desk("full")
    damage(backend, at)
    (operation,) = desk.carry_out(READ, *entries)
    assert operation.failed
    assert desk.dispatcher.first_error is not None
    assert "read back wrong at byte 0" in desk.dispatcher.first_error
    assert (desk.dispatcher.checked, desk.dispatcher.corrupt) == (1, 1)
    assert desk.histogram("read")[0] == desk.histogram("device")[0] - 1 == 0


def test_sampled_verification_sees_every_stamp_and_one_transfer_in_64_whole() -> None:
    desk, backend, entries = stored_desk("sample")
    damage(backend, 100)
    failed = [operation.failed for _ in range(640) for operation in desk.carry_out(READ, *entries)]
    assert failed[0]
    assert sum(failed) == 10
    damage(backend, 100)
    for at in (0, 8, PAGE, PAGE + 8):
        damage(backend, at)
        assert [operation.failed for operation in desk.carry_out(READ, *entries)] == [True]
        damage(backend, at)
    assert (desk.dispatcher.checked, desk.dispatcher.corrupt) == (644, 14)
    assert desk.histogram("read")[0] == 630


class Counting(Payload):
    """Counts the bytes that are compared, by the place in the object."""

    def __init__(self, chunk_bytes: int) -> None:
        super().__init__(1, chunk_bytes)
        self.compared: Counter[int] = Counter()

    def difference(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        object_bytes: int | None = None,
        *,
        begin: int = 0,
    ) -> str | None:
        self.compared[first_page * PAGE + begin] += length
        return super().difference(buffer, length, identity, first_page, object_bytes, begin=begin)


@pytest.mark.thorough
@pytest.mark.parametrize("transfers", [1, 2, 3, 16, 61, 64])
def test_every_transfer_of_an_object_has_its_share_of_the_thorough_checks(transfers: int) -> None:
    backend, payload = Bookkeeper(), Counting(PAGE)
    backend.prepare(transfers * PAGE)
    desk = Desk(backend, payload=payload, stored_bytes=transfers * PAGE, verify="sample")
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    for _ in range(512):
        desk.carry_out(READ, *entries)
    assert payload.compared.keys() == {PAGE * number for number in range(transfers)}
    assert all(1 <= count <= 24 * PAGE for count in payload.compared.values())


@pytest.mark.thorough
def test_of_big_transfers_a_piece_in_64_is_compared_wherever_it_lies() -> None:
    size = 3 * MIB // 2
    backend, payload = Bookkeeper(), Counting(MIB)
    backend.prepare(size)
    desk = Desk(backend, payload=payload, stored_bytes=size, object_bytes=size,
                transfer_bytes=MIB, verify="sample")  # fmt: skip
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    for _ in range(256):
        desk.carry_out(READ, *entries)
    assert sum(payload.compared.values()) == 256 * size // 64
    assert len(payload.compared) > 20  # of 24 places
    assert desk.dispatcher.corrupt == 0


@pytest.mark.parametrize("at", [0, 65536 - 1, 65536 + 20, 10 * 65536 + 77, MIB - 1])
def test_a_flipped_bit_of_a_big_transfer_is_found_when_its_piece_is_compared(at: int) -> None:
    backend = Bookkeeper()
    backend.prepare(MIB)
    desk = Desk(backend, payload=Payload(1, MIB), stored_bytes=MIB, transfer_bytes=MIB,
                verify="sample")  # fmt: skip
    entries = desk.entries("a")
    desk.carry_out(WRITE, *entries)
    damage(backend, at)
    failed = [operation.failed for _ in range(640) for operation in desk.carry_out(READ, *entries)]
    if at:  # not in a stamp
        assert 1 <= sum(failed) < 40
        assert f"page {at // PAGE} of object" in str(desk.dispatcher.first_error)
    else:
        assert all(failed)


def test_without_verification_nothing_is_checked() -> None:
    desk, backend, entries = stored_desk("off")
    damage(backend, 0)
    assert [operation.failed for operation in desk.carry_out(READ, *entries)] == [False]
    assert (desk.dispatcher.checked, desk.dispatcher.corrupt) == (0, 0)


def test_a_backend_without_data_gets_no_buffer_and_no_verification() -> None:
    seen: list[int] = []

    class Seen(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset
            seen.append(len(buffer))

    desk = Desk(Seen())
    assert [op.failed for op in desk.carry_out(READ, *desk.entries("a"))] == [False]
    assert seen == [0]
    assert desk.dispatcher.checked == 0


# -- failures ------------------------------------------------------------------------------


def test_the_first_error_is_kept(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock, queue_depth=2)
    desk.submit(READ, *desk.entries("a", "b"))
    first, second = stage.expect("get a", "get b")
    stage.release(second, error="the first one")
    desk.turn()
    stage.release(first, error="the second one")
    desk.turn()
    assert [operation.failed for operation in desk.done] == [True, True]
    assert desk.dispatcher.first_error == f"{HOST}: the first one"
    assert desk.histogram("read")[0] == desk.histogram("queue")[0] == 0


def test_a_failed_sync_fails_the_write(clock: FakeClock) -> None:
    class Unsynced(Bookkeeper):
        def sync(self, key: str) -> None:
            raise StorageError(f"{HOST}: can't sync {key}")

    backend = Unsynced()
    backend.prepare(PAGE, syncs=True)
    desk = Desk(backend, clock=clock, payload=Payload(1, PAGE), sync=True)
    (operation,) = desk.carry_out(WRITE, *desk.entries("a"))
    assert operation.failed
    assert desk.histogram("write")[0] == 0
    assert desk.recorder.section_bytes["write"] == 0


def test_an_object_that_could_not_be_written_is_not_synced(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock, queue_depth=2, stored_bytes=2 * PAGE, sync=True)
    desk.submit(WRITE, *desk.entries("a"))
    bad, good = stage.expect("put a", "put a @4096")
    stage.release(bad, error="can't write")
    desk.turn()
    stage.release(good)
    desk.turn()
    assert [operation.failed for operation in desk.done] == [True]
    assert stage.synced == []


def test_a_bug_in_a_backend_is_raised_out_of_the_turn() -> None:
    class Broken(NullBackend):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            del key, offset, buffer
            raise RuntimeError("a bug in a backend")

    desk = Desk(Broken())
    with pytest.raises(RuntimeError, match="a bug in a backend"):
        desk.submit(READ, *desk.entries("a"))


# -- the queue -----------------------------------------------------------------------------


def test_transfers_begin_in_the_order_of_their_submission(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock, stored_bytes=2 * PAGE)
    a, b = desk.entries("a", "b")
    for kind, entry in ((WRITE, a), (DELETE, b), (READ, b)):
        desk.submit(kind, entry)
    for shown in ("put a", "put a @4096", "delete b", "get b", "get b @4096"):
        stage.release(*stage.expect(shown))
        desk.turn()
    assert [operation.kind for operation in desk.done] == [WRITE, DELETE, READ]


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_no_more_transfers_are_in_flight_than_the_queue_depth(
    clock: FakeClock, stage: Stage, depth: int
) -> None:
    desk = Desk(stage, clock=clock, queue_depth=depth)
    desk.submit(READ, *desk.entries(*range(20)))
    stage.expect(*(f"get {number}" for number in range(depth)))
    while desk.dispatcher.busy:
        assert len(stage.pending) <= depth
        stage.release(stage.pending[-1])
        desk.turn()
    assert len(desk.done) == 20


class Unseen(Stage):
    """What has ended is in flight until it was looked at, as with a ring."""

    _seen = 0

    @property
    def in_flight(self) -> int:
        return len(self.pending) + len(self._ended) - self._seen

    def look(self) -> int:
        self._seen = super().look()
        return self._seen

    def reap(self) -> Sequence[Completion]:
        self._seen = 0
        return super().reap()


def test_the_device_gets_its_next_work_before_what_it_finished_is_checked(
    clock: FakeClock,
) -> None:
    stage = Unseen(clock, parks=False)
    begun: list[list[str]] = []

    class Watching(Payload):
        def verify(self, *_args: Any, **_how: Any) -> str | None:
            begun.append([str(call) for call in stage.pending])
            return None

    desk = Desk(stage, clock=clock, payload=Watching(1, PAGE), queue_depth=2, verify="sample")
    desk.submit(READ, *desk.entries(*range(4)))
    stage.release(*stage.expect("get 0", "get 1"))
    desk.turn(1)
    assert begun[0] == ["get 2", "get 3"]


def test_what_ends_during_a_check_is_stamped_before_the_next_one(clock: FakeClock) -> None:
    looks: list[str] = []

    class Looking(Stage):
        def look(self) -> int:
            looks.append("look")
            return super().look()

    class Noting(Payload):
        def verify(self, *_args: Any, **_how: Any) -> str | None:
            looks.append("check")
            return None

    stage = Looking(clock, parks=False)
    desk = Desk(stage, clock=clock, payload=Noting(1, PAGE), queue_depth=3, verify="sample")
    desk.submit(READ, *desk.entries(*range(3)))
    looks.clear()
    stage.release(*stage.pending)
    desk.turn(1)
    assert looks == ["look", *(["check", "look"] * 3)]


def test_what_is_kept_is_of_that_kind_or_has_begun(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock, stored_bytes=2 * PAGE)
    a, b, c = desk.entries("a", "b", "c")
    desk.submit(WRITE, a, b)
    desk.submit(READ, c)
    (first,) = stage.expect("put a")
    assert [operation.entry for operation in desk.dispatcher.keep_only(READ)] == [b]
    stage.release(first)
    desk.turn()
    for shown in ("put a @4096", "get c", "get c @4096"):
        stage.release(*stage.expect(shown))
        desk.turn()
    assert [operation.entry for operation in desk.done] == [a, c]
    assert not desk.dispatcher.busy


def test_a_staged_sync_is_kept_whatever_else_is_forgotten(clock: FakeClock) -> None:
    class Late(Stage):
        """Nothing but the first transfer begins until it may."""

        held = False

        def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
            return super().submit(0 if self.held else limit, wait_until_ns)

    stage = Late(clock, parks=False)
    desk = Desk(stage, clock=clock, sync=True)
    desk.submit(WRITE, *desk.entries("a"))
    stage.held = True
    stage.release(*stage.expect("put a"))
    desk.turn()
    assert desk.dispatcher.keep_only(None) == []
    stage.held = False
    desk.turn()
    assert [operation.failed for operation in desk.done] == [False]
    assert stage.synced == ["a"]


@pytest.mark.thorough
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_forgotten_never_happens_and_all_else_happens_once(data: st.DataObject) -> None:
    calls: dict[str, list[int]] = defaultdict(list)

    class Noting(NullBackend):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            calls[key].append(offset)
            assert len(buffer) == 0

        get_into = put_from

        def delete(self, key: str) -> None:
            calls[key].append(0)

    depth, pages = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    io = Shuffled(Noting(), depth, random.Random(data.draw(st.integers(0, 999))))
    desk = Desk(io, queue_depth=depth, stored_bytes=pages * PAGE)
    dispatcher, asked, forgotten = desk.dispatcher, 0, []
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from([READ, WRITE, DELETE]))
        entries = desk.entries(*range(asked, asked + data.draw(st.integers(0, 5))))
        asked += len(entries)
        dispatcher.submit(kind, entries, None)
        for _ in range(data.draw(st.integers(0, 4))):
            dispatcher.turn(0)
        if data.draw(st.booleans()):
            forgotten += dispatcher.keep_only(data.draw(st.sampled_from([READ, None])))
    while dispatcher.busy:
        dispatcher.turn(0)
    assert len(desk.done) + len(forgotten) == asked
    assert not {operation.object_key for operation in forgotten} & calls.keys()
    for operation in desk.done:
        offsets = range(0, 1 if operation.kind == DELETE else pages * PAGE, PAGE)
        assert sorted(calls.pop(operation.object_key)) == list(offsets)
    assert not calls


def test_closing_forgets_what_has_not_begun(clock: FakeClock, stage: Stage) -> None:
    desk = Desk(stage, clock=clock)
    desk.submit(READ, *desk.entries("a", "b"))
    desk.close()
    assert stage.closed
    assert [str(call) for call in stage.calls] == ["get a"]


# -- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transfer_bytes", "reads", "writes"), [(PAGE, 32, 32), (MIB, 32, 32), (4 * MIB, 24, 20)]
)
def test_spare_buffers_are_many_where_they_are_small(
    transfer_bytes: int, reads: int, writes: int
) -> None:
    assert slot_counts(16, transfer_bytes) == (reads, writes)
    assert buffer_bytes(16, transfer_bytes) == (reads + writes + 2) * transfer_bytes


@pytest.mark.parametrize("transfer_bytes", [PAGE, 4 * MIB])
def test_every_slot_has_memory_of_its_own(clock: FakeClock, transfer_bytes: int) -> None:
    stage = Stage(clock, parks=False)
    Desk(
        stage, clock=clock, payload=Payload(1, transfer_bytes), queue_depth=3,
        transfer_bytes=transfer_bytes,
    )  # fmt: skip
    views = [view for view in stage.buffers if view]
    assert len(views) == sum(slot_counts(3, transfer_bytes))
    assert len(stage.buffers) == len(views) + 3  # calls have none
    for number, view in enumerate(views):
        assert len(view) == transfer_bytes
        view[:4] = number.to_bytes(4, "little")
    assert [int.from_bytes(view[:4], "little") for view in views] == list(range(len(views)))
