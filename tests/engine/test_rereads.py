"""What a request reads beside its prefix, and reads again once it has stored it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.tiers import TIER_POLICIES, TierPolicy
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.errors import StorageError
from tests.cache.literal import LITERAL, requests_beside
from tests.factories import HOST, PAGE, Bookkeeper, FakeClock, S, Script, ask, key_of
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.cache.index import Beside
    from pytest_kvcache.workloads.protocol import Request


def keys(*names: str) -> tuple[bytes, ...]:
    return tuple(map(key_of, names))


def counted(rig: Rig) -> tuple[int, int, int]:
    """Blocks beside prefixes, those of them that were there, and how many reads were rereads."""
    sums = rig.sums()
    return sums["beside_blocks"], sums["beside_hit_blocks"], rig.recorder.rereads


def settled(rig: Rig) -> None:
    """Nothing is reserved or pinned any more, and nothing is above a capacity."""
    for index in rig.stack.indices if hasattr(rig, "stack") else [rig.index]:
        assert index.used_blocks == index.present_blocks
        assert not any(entry.pins for entry in index._entries.values())
        assert index.capacity_bytes is None or index.used_bytes <= index.capacity_bytes


# --- beside the prefix ------------------------------------------------------------------------


def test_prefix_and_what_is_beside_it_are_loaded_in_one_go_and_counted_apart(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [
        ask(0, "a", "x", "y"),
        ask(0, "a", "b", beside=keys("y", "z", "x"), stores_beside=True),
    ]
    rig = Rig(Script([turns]), stage, clock=clock, queue_depth=9)
    rig.start()
    stage.release(*stage.expect("put a", "put x", "put y"))
    reads = stage.expect("get a", "get y", "get x")
    clock.advance(S)
    stage.release(*reads)
    stage.release(*stage.expect("put b", "put z"))
    rig.finish()
    settled(rig)
    assert counted(rig) == (3, 2, 0)
    sums = rig.sums()
    assert (sums["prompt_blocks"], sums["hit_blocks"]) == (5, 1)
    assert rig.histogram("load").max_ns == S
    assert rig.loop.counters.distinct_read_bytes == 3 * PAGE


def test_the_population_stores_what_a_context_has_beside_it() -> None:
    population = [
        ask(0, "a", beside=keys("x"), stores_beside=True, rereads=3),
        ask(1, "b", beside=keys("y")),
        ask(2, "c", beside=keys("z"), stores_beside=True),
    ]
    storage = Bookkeeper()
    storage.prepare(PAGE)
    rig = Rig(Script([[]], population=population), storage, capacity_blocks=4)
    rig.run()
    assert {entry.key for entry in rig.index.stored()} == set(keys("a", "b", "x"))
    assert storage.counts["get"] == 0
    settled(rig)


# --- what the storage was asked for in all ----------------------------------------------------


class Calls(Bookkeeper):
    """Objects of any size; which were written, and which were read."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[str] = set()
        self.read: set[str] = set()

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        super().put_from(key, offset, buffer)
        self.written.add(key)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        super().get_into(key, offset, buffer)
        self.read.add(key)

    def _is_complete(self, stored: object) -> bool:
        return bool(stored)


@pytest.mark.parametrize("policy", [None, *TIER_POLICIES])
@pytest.mark.parametrize("objects", [1, 3])
def test_every_transfer_of_the_run_is_counted_and_every_object(
    monkeypatch: pytest.MonkeyPatch, policy: TierPolicy | None, objects: int
) -> None:
    pages = {"b": 5, "s": 1, "c": 3, "d": 4, "e": 2}

    def asking(*names: str, **changes: Any) -> Request:
        sizes = tuple(objects * pages[name] * PAGE for name in names)
        return ask(0, *names, sizes=sizes, **changes)

    turns = [
        asking(*"bs", rereads=2), asking(*"bsc", beside=keys("p")), asking("d", "e"),
        asking(*"bscd"), asking(*"de"),
    ]  # fmt: skip
    storage = Calls()
    rig = Rig(
        Script([turns], population=[ask(1, "p")]), storage, objects_per_block=objects,
        transfer_bytes=2 * PAGE, stored_bytes=2 * PAGE, payload=Payload(1, 2 * PAGE),
        memory=None if policy is None else {"cpu": (3, Calls())},
        policy=policy or "write-through", capacity_blocks=99,
    )  # fmt: skip
    rig.populate()
    assert len(storage.written) == storage.counts["put"]
    populated = len(storage.written)
    monkeypatch.setattr(rig.loop, "populate", lambda: None)  # it was
    rig.run()
    counters = rig.loop.counters
    assert counters.requested_transfers == storage.counts["get"] + storage.counts["put"] - populated
    assert counters.requested_writes == len(storage.written) - populated
    assert counters.distinct_reads == len(storage.read)
    assert counters.requested_transfers > counters.requested_writes


# --- read again -------------------------------------------------------------------------------


def test_every_block_that_was_stored_is_read_again_round_by_round_before_the_answer(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [ask(0, "a"), ask(0, "a", "b", "c", rereads=2), ask(0, "a", "b", "c", rereads=2)]
    rig = Rig(Script([turns]), stage, clock=clock, queue_depth=9)
    rig.start()
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("get a"))
    one, other = stage.expect("put b", "put c")
    clock.advance(S)
    stage.release(one)
    stage.expect("put c")  # nothing is read before all is stored
    stage.release(other)
    for _round in range(2):
        one, other = stage.expect("get b", "get c")
        clock.advance(S)
        stage.release(one)
        stage.expect("get c")  # one reading after the other
        assert rig.histogram("request").count <= 1
        stage.release(other)
    stage.release(*stage.expect("get a", "get b", "get c"))  # it stores nothing more
    rig.finish()
    settled(rig)
    assert counted(rig) == (0, 0, 4)
    assert rig.histogram("read").count == 8
    assert rig.histogram("request").max_ns == 3 * S
    assert rig.histogram("load").max_ns == 0
    assert rig.loop.counters.completed == 3
    assert rig.loop.counters.distinct_read_bytes == 3 * PAGE


def test_only_blocks_of_the_prefix_and_the_answer_are_read_again(
    clock: FakeClock, stage: Stage
) -> None:
    turn = ask(0, "a", output=("b",), beside=keys("x"), stores_beside=True, rereads=1)
    rig = Rig(Script([[turn]]), stage, clock=clock, queue_depth=9)
    rig.start()
    stage.release(*stage.expect("put a", "put b", "put x"))
    stage.release(*stage.expect("get a", "get b"))
    rig.finish()
    assert counted(rig) == (1, 0, 2)


def test_a_block_is_not_displaced_before_it_was_read_again(clock: FakeClock, stage: Stage) -> None:
    users = [[ask(0, "a", rereads=1)], [ask(1, "b")]]
    rig = Rig(Script(users), stage, clock=clock, capacity_blocks=1)
    rig.start()
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("get a"))  # and b waits
    stage.release(*stage.expect("delete a"))
    stage.release(*stage.expect("put b"))
    rig.finish()
    settled(rig)


def test_the_generation_of_an_answer_comes_before_its_blocks_are_stored_and_read_again(
    clock: FakeClock, stage: Stage
) -> None:
    turn = ask(0, "a", output_tokens=2, rereads=1)
    rig = Rig(Script([[turn]]), stage, clock=clock, generation_s_per_token=1.0)
    rig.start()
    stage.expect()
    rig.advance(2 * S)
    stage.release(*stage.expect("put a"))
    (read,) = stage.expect("get a")
    clock.advance(S)
    stage.release(read)
    rig.finish()
    assert rig.histogram("request").max_ns == 3 * S


def test_a_request_that_stores_nothing_reads_nothing_again() -> None:
    storage = Bookkeeper()
    storage.prepare(PAGE)
    contexts = [ask(0, "a", rereads=4)]
    rig = Rig(
        Script([contexts], population=contexts), storage, phase="decode", payload=Payload(1, PAGE)
    )
    rig.run()
    assert (storage.counts["get"], rig.recorder.rereads) == (1, 0)
    assert rig.histogram("request").count == 1


# --- the end ----------------------------------------------------------------------------------


def censored(rig: Rig) -> tuple[int, int, int]:
    """Loads and requests that were not seen to end, and requests that were."""
    of = rig.recorder.censored
    return of["load"], of["request"], rig.histogram("request").count


def ending(clock: FakeClock, stage: Stage, queue_depth: int = 2) -> Rig:
    """One request of two blocks that reads twice again; its window is a second."""
    rig = Rig(Script([[ask(0, "a", "b", rereads=2)]]), stage, clock=clock, queue_depth=queue_depth)
    rig.start(window_ns=S, drain_s=5.0)
    return rig


def test_rereads_that_have_begun_go_on_while_draining(clock: FakeClock, stage: Stage) -> None:
    rig = ending(clock, stage)
    stage.release(*stage.expect("put a", "put b"))
    stage.expect("get a", "get b")
    rig.advance(S)
    for _round in range(2):
        stage.release(*stage.expect("get a", "get b"))
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 0, 1)
    assert (rig.loop.counters.backlog, rig.loop.counters.completed) == (1, 0)


def test_rereads_that_have_not_begun_when_the_drain_ends_leave_their_request_unanswered(
    clock: FakeClock, stage: Stage
) -> None:
    rig = ending(clock, stage)
    stage.release(*stage.expect("put a", "put b"))
    reads = stage.expect("get a", "get b")
    rig.advance(S)
    rig.advance(5 * S)
    stage.release(*reads)
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 1, 0)
    assert rig.recorder.rereads == 2


def test_rereads_that_are_queued_when_the_drain_ends_are_no_loads_and_one_request(
    clock: FakeClock, stage: Stage
) -> None:
    rig = ending(clock, stage, queue_depth=1)
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("put b"))
    (read,) = stage.expect("get a")
    rig.advance(S)
    rig.advance(5 * S)
    stage.release(read)
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 1, 0)


def test_a_request_whose_write_failed_is_not_taken_for_one_that_was_cut_off(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [[ask(0, "a", "b", "c", rereads=1)]]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1)
    rig.start()
    stage.release(*stage.expect("put a"), error="no room")
    stage.release(*stage.expect("put b"))  # begun before that was seen; c never is
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 0, 0)


def test_a_request_whose_blocks_were_not_all_stored_is_not_answered(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [[ask(0, "a", "b", "c", rereads=1)]]
    rig = Rig(Script(turns), stage, clock=clock, queue_depth=1, transfer_bytes=PAGE)
    rig.start(window_ns=S, drain_s=5.0)
    (write,) = stage.expect("put a")
    rig.advance(S)
    stage.release(write)
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 1, 0)
    assert {entry.key for entry in rig.index.stored()} == set(keys("a"))


def test_a_request_that_is_loading_when_the_run_is_stopped_is_not_answered_if_it_would_store(
    clock: FakeClock, stage: Stage
) -> None:
    script = Script([[ask(0, "a", "b", rereads=1)]], population=[ask(0, "a")])
    rig = Rig(script, stage, clock=clock)
    rig.start(window_ns=S, drain_s=5.0)
    reads = stage.expect("get a")
    rig.advance(S)
    stage.release(*reads)
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 1, 0)
    assert rig.histogram("load").count == 1


@pytest.mark.parametrize("call", ["put a", "get a"])
def test_a_request_of_which_a_write_or_a_reread_fails_has_no_latency(
    clock: FakeClock, stage: Stage, call: str
) -> None:
    rig = ending(clock, stage)
    writes = stage.expect("put a", "put b")
    if call == "put a":
        stage.release(writes[1])
        stage.release(writes[0], error="no room")
    else:
        stage.release(*writes)
        reads = stage.expect("get a", "get b")
        stage.release(reads[1])
        stage.release(reads[0], error="gone")
    rig.finish()
    settled(rig)
    assert censored(rig) == (0, 0, 0)
    failed = rig.loop.counters
    assert (failed.write_failed, failed.read_failed) == ((1, 0) if call == "put a" else (0, 1))


# --- several tiers ----------------------------------------------------------------------------


def test_a_block_is_read_again_from_the_fastest_tier_that_it_was_stored_in() -> None:
    cpu, storage = Memory(1), Memory(9)
    rig = Rig(
        Script([[ask(0, "a", "b", rereads=2)]]), storage, memory={"cpu": (1, cpu)},
        payload=Payload(1, PAGE), verify="full",
    )  # fmt: skip
    rig.run()
    assert (cpu.counts["get"], storage.counts["get"]) == (2, 2)
    assert (rig.histogram("cpu_read").count, rig.histogram("read").count) == (2, 2)
    assert rig.recorder.rereads == 2
    assert rig.loop.checked == 4
    settled(rig)


def test_what_a_tier_without_bytes_holds_is_read_again_at_once(
    clock: FakeClock, stage: Stage
) -> None:
    turns = [ask(0, "a", rereads=3)]
    rig = Rig(Script([turns]), stage, clock=clock, memory={"cpu": (9, None)})
    rig.start()
    (write,) = stage.expect("put a")
    clock.advance(S)
    stage.release(write)
    rig.finish()
    assert rig.histogram("request").max_ns == S
    assert rig.histogram("read").count == 0
    settled(rig)


# --- laws, in one tier and in several ---------------------------------------------------------


class Memory(Bookkeeper):
    """A backend whose call of this number fails (0: none does)."""

    def __init__(self, limit: int, at: int = 0) -> None:
        super().__init__(limit)
        self.prepare(PAGE)
        self.at = at

    def _fail(self, what: str, key: str) -> None:
        self.at -= 1
        if self.at == 0:
            raise StorageError(f"{HOST}: can't {what} {key}")

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._fail("put", key)
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._fail("get", key)
        super().get_into(key, offset, buffer)

    def delete(self, key: str) -> None:
        self._fail("delete", key)
        super().delete(key)


def named(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """Keys of 16 bytes, as objects have them."""
    return tuple(key_of(key.hex()) for key in chain)


def asked(user: int, request: tuple[list[bytes], int, Beside], rereads: int) -> Request:
    chain, prompt_blocks, beside = request
    return ask(
        user, keys=named(chain), prompt_blocks=prompt_blocks, prompt_tokens=prompt_blocks,
        beside=named(beside.keys), stores_beside=beside.stores, rereads=rereads,
    )  # fmt: skip


streams = st.lists(st.tuples(requests_beside(most_keys=5), st.integers(0, 2)), max_size=12)


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(
    policy=st.sampled_from(TIER_POLICIES),
    capacities=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    stream=streams,
    queue_depth=st.integers(1, 4),
    seed=st.integers(0, 99),
    at=st.one_of(st.just(0), st.integers(1, 40)),
)
def test_tiers_hold_and_serve_what_the_literal_lists_say_and_nothing_half_written_is_read(  # noqa: PLR0917
    policy: TierPolicy,
    capacities: list[int],
    stream: list[tuple[tuple[list[bytes], int, Beside], int]],
    queue_depth: int,
    seed: int,
    at: int,
) -> None:
    literal = LITERAL[policy](capacities)
    for (chain, prompt_blocks, beside), _rereads in stream:
        literal.serve(chain, prompt_blocks, 1, beside)
    backends = [Memory(most, at if number == 0 else 0) for number, most in enumerate(capacities)]
    names = ("gpu", "cpu", "storage")[-len(capacities) :]
    memory = {n: (m, b) for n, m, b in zip(names[:-1], capacities, backends, strict=False)}
    turns = [[asked(user, request, rereads)] for user, (request, rereads) in enumerate(stream)]
    rig = Rig(
        Script(turns or [[]]), backends[-1], memory=memory or None, policy=policy,
        payload=Payload(1, PAGE), verify="full", capacity_blocks=capacities[-1],
        queue_depth=queue_depth, seed=seed,
    )  # fmt: skip
    rig.run()
    settled(rig)
    assert not rig.loop._rereading
    assert all(backend.breaches == [] for backend in backends)
    failed = at > 0 and backends[0].at <= 0
    assert (rig.loop.first_error is not None) == failed
    if failed:
        return
    sums = rig.sums()
    assert sums["hit_blocks"] == sum(literal.hits)
    assert sums["beside_hit_blocks"] == sum(literal.beside_hits)
    assert rig.loop.counters.completed == len(stream) == rig.histogram("request").count
    indices = rig.stack.indices if memory else [rig.index]
    for number, index in enumerate(indices):
        assert tuple(index._entries)[::-1] == named(literal.content(number))
