"""Memory in front of the storage, by the loop: what is done where, in which order, and booked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.tiers import TIER_POLICIES, TierPolicy
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.errors import StorageError
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, TIERS
from tests.cache.literal import LITERAL, requests
from tests.factories import HOST, PAGE, Bookkeeper, FakeClock, S, Script, ask, key_of, name_of
from tests.rig import Rig, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.workloads.protocol import Request

both_policies = st.sampled_from(TIER_POLICIES)


class Memory(Bookkeeper):
    """A memory tier that fails a call on a block, or returns other bytes, if it is told so."""

    def __init__(
        self, limit: int | None = None, *, fails: str = "", after: int = 0, spoils: str = ""
    ) -> None:
        super().__init__(limit)
        self.prepare(PAGE)
        self._fails = fails  # such as "get a"
        self._after = after  # calls like that which don't fail
        self._spoils = spoils

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        self._fail("put", key)
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self._fail("get", key)
        super().get_into(key, offset, buffer)
        if name_of(key) == self._spoils:
            buffer[len(buffer) // 2] ^= 1

    def delete(self, key: str) -> None:
        self._fail("delete", key)
        super().delete(key)

    def _fail(self, what: str, key: str) -> None:
        if f"{what} {name_of(key)}" != self._fails:
            return
        self._after -= 1
        if self._after < 0:
            raise StorageError(f"{HOST}: can't {what} {name_of(key)}")

    @property
    def names(self) -> list[str]:
        """What is in it."""
        return sorted(map(name_of, self.objects))


def tiered(
    script: Script, storage: Stage | Bookkeeper, memory: dict[str, tuple[int, Any]], **changes: Any
) -> Rig:
    """A rig whose objects are pages with real content."""
    verify = "off" if isinstance(storage, Stage) else "full"  # a stage has no content to read
    payload = Payload(1, PAGE)
    return Rig(script, storage, memory=memory, payload=payload, verify=verify, **changes)


def counts(rig: Rig) -> dict[str, int]:
    """How many operations each section has that has any."""
    names = ("read", "write", "demote", "delete", *MEMORY_SECTIONS)
    return {name: count for name in names if (count := rig.histogram(name).count)}


def hits(rig: Rig) -> dict[str, int]:
    """Which tier has served how many blocks."""
    sums = rig.sums()
    return {tier: count for tier in TIERS if (count := sums[f"{tier}_hit_blocks"])}


def keys_in(rig: Rig, tier: int) -> list[str]:
    """The blocks of a tier, most recently used first."""
    return [key.decode().lstrip(".") for key in list(rig.stack.indices[tier]._entries)[::-1]]


# -- which tier serves, and what it is booked as -------------------------------------------


def test_what_memory_has_is_read_there_and_never_from_the_storage() -> None:
    cpu, storage = Memory(), Memory()
    rig = tiered(Script([[ask(0, "a", "b"), ask(0, "a", "b")]]), storage, {"cpu": (9, cpu)})
    rig.run()
    assert counts(rig) == {"write": 2, "cpu_write": 2, "cpu_read": 2}
    assert hits(rig) == {"cpu": 2}
    assert (storage.counts["get"], cpu.counts["get"]) == (0, 2)
    assert rig.loop.counters.requested_read_bytes == 0
    assert rig.histogram("load").count == 1
    assert rig.loop.checked == 2


def test_memory_is_in_no_section_of_the_storage() -> None:
    cpu, storage = Memory(), Memory()
    cpu.prepare(2 * PAGE)
    storage.prepare(2 * PAGE)
    turns = [ask(0, "a"), ask(0, "b"), ask(0, "b")]  # memory deletes a
    rig = tiered(Script([turns]), storage, {"cpu": (1, cpu)}, stored_bytes=2 * PAGE, queue_depth=1)
    rig.run()
    assert counts(rig) == {"write": 2, "cpu_write": 2, "cpu_read": 1}
    assert cpu.counts == {"put": 4, "get": 2, "delete": 1}
    assert (rig.histogram("queue").count, rig.histogram("device").count) == (2, 4)
    sums = rig.sums()
    assert (sums["operations"], sums["read_bytes"], sums["write_bytes"]) == (2, 0, 4 * PAGE)
    assert rig.recorder.in_flight_ns == rig.histogram("device").sum_ns
    moved = rig.recorder.section_bytes
    assert (moved["cpu_read"], moved["cpu_write"], moved["device"]) == tuple(
        pages * PAGE for pages in (2, 4, 4)
    )


def test_what_a_slower_tier_serves_is_copied_when_it_was_read(
    clock: FakeClock, stage: Stage
) -> None:
    cpu = Memory(1)
    turns = [ask(0, "a"), ask(0, "b"), ask(0, "a")]
    rig = tiered(Script([turns]), stage, {"cpu": (1, cpu)}, clock=clock)
    rig.start()
    stage.release(*stage.expect("put a"))
    stage.release(*stage.expect("put b"))
    (read,) = stage.expect("get a")
    assert cpu.names == ["b"]
    stage.release(read)
    rig.finish()
    assert cpu.names == ["a"]
    assert (cpu.counts["get"], cpu.breaches) == (0, [])


def test_promotions_have_a_section_and_bytes_of_their_own() -> None:
    cpu, storage = Memory(1), Memory()
    turns = [ask(0, "a"), ask(0, "b"), ask(0, "a"), ask(0, "a")]
    rig = tiered(Script([turns]), storage, {"cpu": (1, cpu)})
    rig.run()
    assert counts(rig) == {
        "read": 1, "write": 2, "cpu_write": 2, "cpu_promote": 1, "cpu_read": 1,
    }  # fmt: skip
    assert hits(rig) == {"cpu": 1, "storage": 1}
    reported = rig.loop.blocks.counted()
    assert (reported["cpu_stored_blocks"], reported["cpu_promoted_in_bytes"]) == (3, PAGE)
    assert (reported["storage_stored_blocks"], reported["storage_demoted_in_bytes"]) == (2, 0)
    assert cpu.names == ["a"]
    assert cpu.breaches == storage.breaches == []


def test_what_leaves_memory_is_demoted_and_no_write_of_a_request(
    clock: FakeClock, stage: Stage
) -> None:
    cpu = Memory(1)
    rig = tiered(
        Script([[ask(0, "a"), ask(0, "b")]]), stage, {"cpu": (1, cpu)}, policy="demote", clock=clock
    )
    rig.start()
    (demotion,) = stage.expect("put a")
    clock.advance(S)
    assert cpu.names == ["a"]  # there until it was moved; what follows has to wait for its room
    stage.release(demotion)
    rig.finish()
    assert cpu.names == ["b"]
    assert counts(rig) == {"demote": 1, "cpu_write": 2}
    assert rig.histogram("demote").max_ns == rig.histogram("device").max_ns == S
    assert rig.recorder.section_bytes["demote"] == rig.sums()["demote_bytes"] == PAGE
    assert rig.loop.counters.requested_write_bytes == PAGE
    assert rig.recorder.in_flight_ns == S
    reported = rig.loop.blocks.counted()
    assert (reported["storage_stored_blocks"], reported["storage_demoted_in_bytes"]) == (1, PAGE)


def test_a_block_falls_from_tier_to_tier() -> None:
    gpu, cpu, storage = Memory(1), Memory(1), Memory(1)
    turns = [ask(0, name) for name in "abcd"]
    rig = tiered(
        Script([turns]), storage, {"gpu": (1, gpu), "cpu": (1, cpu)}, policy="demote",
        capacity_blocks=1,
    )  # fmt: skip
    rig.run()
    assert (gpu.names, cpu.names, storage.names) == (["d"], ["c"], ["b"])
    assert counts(rig) == {"gpu_write": 4, "cpu_demote": 3, "demote": 2, "delete": 1}
    assert gpu.breaches == cpu.breaches == storage.breaches == []
    again = tiered(Script([[]]), Memory(), {"cpu": (1, None)})
    assert again.loop.blocks.counted()["cpu_failed"] is None


def test_a_tier_that_is_an_index_only_decides_what_the_storage_sees() -> None:
    storage = Memory()
    turns = [ask(0, "a"), ask(0, "b"), ask(0, "b"), ask(0, "a")]
    rig = tiered(Script([turns]), storage, {"cpu": (1, None)})
    rig.run()
    assert counts(rig) == {"write": 2, "read": 1}
    assert hits(rig) == {"cpu": 1, "storage": 1}
    reported = rig.loop.blocks.counted()
    names = ("cpu_stored_blocks", "cpu_blocks", "cpu_promoted_in_bytes")
    assert [reported[name] for name in names] == [3, 1, PAGE]
    assert rig.histogram("load").count == 1  # nothing was read for what the index served


def test_a_load_ends_with_the_last_read_of_whichever_tier(clock: FakeClock, stage: Stage) -> None:
    class Slow(Memory):
        def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
            (other,) = stage.pending
            stage._end(other, None)  # the storage is done; it is seen when this is
            clock.advance(3 * S)
            super().get_into(key, offset, buffer)

    rig = tiered(
        Script([[ask(0, "a", "b")], [ask(1, "a", "b")]]), stage, {"cpu": (1, Slow())}, clock=clock
    )
    rig.start()
    stage.release(*stage.expect("put a", "put b"))
    rig.finish()
    assert counts(rig) == {"write": 2, "read": 1, "cpu_write": 1, "cpu_read": 1}
    assert rig.histogram("read").max_ns == 0
    assert rig.histogram("load").max_ns == 3 * S


def test_between_two_copies_the_storage_is_given_its_turn() -> None:
    done: list[str] = []

    class Reporting(Memory):
        def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
            done.append("copy")
            super().put_from(key, offset, buffer)

    users = [[ask(user, *(f"{user}{block}" for block in range(6)))] for user in range(4)]
    rig = tiered(
        Script(users), Memory(), {"gpu": (24, Reporting()), "cpu": (24, Reporting())}, queue_depth=4
    )
    blocks = rig.loop.blocks
    turn, (*_memories, storage) = blocks.turn, blocks.dispatchers
    storage_turn = storage.turn

    def take_turn(wait_until_ns: int) -> None:
        done.append("turn, storage busy" if storage.busy else "turn")
        turn(wait_until_ns)

    def serve(wait_until_ns: int) -> None:
        done.append("storage")
        storage_turn(wait_until_ns)

    blocks.turn, storage.turn = take_turn, serve  # type: ignore[method-assign]
    rig.run()
    turns = " ".join(done).split("turn")[1:]
    assert sum(what.count("copy") for what in turns) == 48
    assert max(what.count("copy") for what in turns) == 1
    under_way = [what for what in turns if what.startswith(", storage busy")]
    assert any("copy" in what for what in under_way)
    assert all(what.startswith(", storage busy storage") for what in under_way)


# -- the population ------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "blocks"), [("write-through", 4), ("demote", 6)])
def test_the_population_fills_the_storage_or_where_blocks_are_demoted_all_tiers(
    policy: TierPolicy, blocks: int
) -> None:
    cpu, storage = Memory(2), Memory(4)
    contexts = [ask(0, f"{number}") for number in range(9)]
    rig = tiered(
        Script([[]], population=contexts), storage, {"cpu": (2, cpu)}, capacity_blocks=4,
        policy=policy,
    )  # fmt: skip
    rig.run()
    there = {name_of(key) for key in (*cpu.objects, *storage.objects)}
    assert there == {f"{number}" for number in range(blocks)}
    assert rig.index.evictions == 0
    assert counts(rig) == {}
    assert set(rig.loop.blocks.counted().values()) <= {0, 2, 2 * PAGE}  # cpu_blocks, cpu_bytes


# -- what goes wrong -----------------------------------------------------------------------


def settled(rig: Rig) -> None:
    """Nothing is reserved or pinned any more, and nothing is above a capacity."""
    for index in rig.stack.indices:
        assert index.used_blocks == index.present_blocks
        assert all(not entry.pins for entry in index._entries.values())
        assert index.capacity_bytes is None or index.used_bytes <= index.capacity_bytes


def failing(policy: TierPolicy, where: str, call: str, turns: Sequence[Request]) -> Rig:
    """One user's turns, with cpu for one block; the first such call there fails."""
    tiers = {name: Memory(fails=call if name == where else "") for name in ("cpu", "storage")}
    rig = tiered(Script([turns]), tiers["storage"], {"cpu": (1, tiers["cpu"])}, policy=policy)
    rig.run()
    assert rig.loop.first_error == f"{HOST}: can't {call}"
    settled(rig)
    assert tiers["cpu"].breaches == tiers["storage"].breaches == []
    return rig


def failures(rig: Rig) -> dict[str, int]:
    """What is counted as failed, by its counter."""
    reported = {**rig.loop.counters.counted(), **rig.loop.blocks.counted()}
    return {name: count for name, count in reported.items() if name.endswith("_failed") and count}


A_THEN_B = (ask(0, "a"), ask(0, "b"))


def test_a_write_that_fails_in_memory_leaves_the_storage_s_block() -> None:
    rig = failing("write-through", "cpu", "put a", A_THEN_B)
    assert failures(rig) == {"cpu_failed": 1}
    assert (keys_in(rig, 0), keys_in(rig, 1)) == ([], ["a"])
    assert counts(rig) == {"write": 1}


def test_a_read_that_fails_in_memory_has_no_load_and_is_forgotten_there() -> None:
    rig = failing("write-through", "cpu", "get a", (ask(0, "a"), ask(0, "a")))
    assert failures(rig) == {"cpu_failed": 1}
    assert (keys_in(rig, 0), keys_in(rig, 1)) == ([], ["a"])
    assert hits(rig) == {}
    assert rig.histogram("load").count == 0


def test_a_read_that_fails_on_the_storage_is_not_copied_into_memory() -> None:
    rig = failing("write-through", "storage", "get a", (*A_THEN_B, ask(0, "a")))
    assert failures(rig) == {"read_failed": 1}
    assert (keys_in(rig, 0), keys_in(rig, 1)) == ([], ["b"])
    assert "cpu_promote" not in counts(rig)


def test_a_demotion_that_fails_is_no_failed_write() -> None:
    rig = failing("demote", "storage", "put a", (*A_THEN_B, ask(0, "c")))
    assert failures(rig) == {"demote_failed": 1}
    assert (keys_in(rig, 0), keys_in(rig, 1)) == ([], [])
    assert rig.histogram("demote").count == rig.loop.counters.requested_write_bytes == 0


def test_a_write_behind_memory_that_fails_is_no_failed_demotion() -> None:
    rig = failing("demote", "storage", "put b", (ask(0, "a", "b"),))
    assert failures(rig) == {"write_failed": 1}


def test_a_source_that_can_not_be_deleted_fails_where_it_is() -> None:
    rig = failing("demote", "cpu", "delete a", A_THEN_B)
    assert failures(rig) == {"cpu_failed": 1}
    assert (keys_in(rig, 0), keys_in(rig, 1)) == ([], ["a"])


def test_a_copy_that_fails_unpins_what_it_was_made_of() -> None:
    cpu = Memory(fails="put a", after=1)
    rig = tiered(Script([[*A_THEN_B, ask(0, "a")]]), Memory(), {"cpu": (1, cpu)})
    rig.run()
    assert failures(rig) == {"cpu_failed": 1}
    settled(rig)
    assert keys_in(rig, 1) == ["a", "b"]


def test_wrong_data_in_memory_is_found() -> None:
    cpu = Memory(spoils="a")
    rig = tiered(Script([[ask(0, "a"), ask(0, "a")]]), Memory(), {"cpu": (9, cpu)})
    rig.run()
    assert rig.loop.first_error is not None
    assert "read back wrong" in rig.loop.first_error
    assert (rig.loop.checked, rig.loop.corrupt) == (1, 1)
    assert failures(rig) == {"cpu_failed": 1}
    assert keys_in(rig, 0) == []


def test_what_is_under_way_at_the_end_is_finished_and_the_rest_given_up(
    clock: FakeClock, stage: Stage
) -> None:
    cpu = Memory(2)
    turns = [[ask(0, "a", "b")], [ask(1, "c", "d")], [ask(2, "e", "f")]]
    rig = tiered(
        Script(turns), stage, {"cpu": (2, cpu)}, policy="demote", clock=clock, queue_depth=1,
    )  # fmt: skip
    rig.start(window_ns=S)
    (demotion,) = stage.expect("put a")  # and b's waits for it
    rig.advance(2 * S)
    stage.release(demotion)
    rig.finish()
    settled(rig)
    assert (cpu.names, keys_in(rig, 1)) == (["a", "b"], ["a"])  # a's source was left


# -- laws ----------------------------------------------------------------------------------


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(
    policy=both_policies,
    capacities=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    stream=st.lists(requests(6), max_size=12),
    indexed=st.booleans(),
    queue_depth=st.integers(1, 4),
    parts=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_every_tier_holds_and_serves_what_the_literal_lists_say(  # noqa: PLR0917
    policy: TierPolicy,
    capacities: list[int],
    stream: list[tuple[list[bytes], int]],
    queue_depth: int,
    parts: int,
    seed: int,
    *,
    indexed: bool,
) -> None:
    names = ("gpu", "cpu", "storage")[-len(capacities) :]
    literal = LITERAL[policy](capacities)
    for keys, prompt_blocks in stream:
        literal.serve(keys, prompt_blocks, 1)
    backends = [Memory(most * parts) for most in capacities]
    memory = {
        name: (most, None if indexed and name == "cpu" else backend)
        for name, most, backend in zip(names[:-1], capacities, backends, strict=False)
    }
    turns = [
        [ask(user, *keys[:prompt], output=keys[prompt:], keys=named(keys))]
        for user, (keys, prompt) in enumerate(stream)
    ]
    rig = tiered(
        Script(turns or [[]]), backends[-1], memory, policy=policy, capacity_blocks=capacities[-1],
        queue_depth=queue_depth, objects_per_block=parts, seed=seed,
    )  # fmt: skip
    rig.run()
    assert rig.loop.first_error is None
    settled(rig)
    sums, reported = rig.sums(), rig.loop.blocks.counted()
    for number, name in enumerate(names):
        index = rig.stack.indices[number]
        assert list(index._entries)[::-1] == named(literal.content(number))
        assert sums[f"{name}_hit_blocks"] == literal.hits[number]
        assert reported[f"{name}_stored_blocks"] == literal.stored[number]
        if name not in memory or memory[name][1] is not None:
            assert backends[number].breaches == []
            assert sorted(backends[number].objects) == sorted(objects_of(index, parts))
    assert sums["hit_blocks"] == sum(literal.hits)


def named(keys: Sequence[bytes]) -> list[bytes]:
    """Keys of 16 bytes, as objects have them."""
    return [key_of(key.hex()) for key in keys]


def objects_of(index: Any, parts: int) -> list[str]:
    """The objects of all that a tier has."""
    each = [""] if parts == 1 else [f".{part}" for part in range(parts)]
    return [entry.object_key + part for entry in index._entries.values() for part in each]


class Unlucky(Memory):
    """Its call of this number fails."""

    def __init__(self, limit: int, at: int) -> None:
        super().__init__(limit)
        self._at = at

    def _fail(self, what: str, key: str) -> None:
        self._at -= 1
        if self._at == 0:
            raise StorageError(f"{HOST}: can't {what} {key}")


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(
    policy=both_policies,
    capacities=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    stream=st.lists(requests(5), min_size=1, max_size=12),
    where=st.integers(0, 2),
    at=st.integers(1, 30),
    queue_depth=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_wherever_a_call_fails_nothing_stays_reserved_and_nothing_is_half_there(  # noqa: PLR0917
    policy: TierPolicy,
    capacities: list[int],
    stream: list[tuple[list[bytes], int]],
    where: int,
    at: int,
    queue_depth: int,
    seed: int,
) -> None:
    names = ("gpu", "cpu", "storage")[-len(capacities) :]
    backends = [
        Unlucky(most, at if number == where % len(capacities) else 0)
        for number, most in enumerate(capacities)
    ]
    memory = dict(zip(names[:-1], zip(capacities, backends, strict=False), strict=False))
    turns = [
        [ask(user, *keys[:prompt], output=keys[prompt:], keys=named(keys))]
        for user, (keys, prompt) in enumerate(stream)
    ]
    rig = tiered(
        Script(turns), backends[-1], memory, policy=policy, capacity_blocks=capacities[-1],
        queue_depth=queue_depth, seed=seed,
    )  # fmt: skip
    rig.run()
    settled(rig)
    failed = backends[where % len(capacities)]._at <= 0
    assert (rig.loop.first_error is not None) == failed
    assert sum(failures(rig).values()) == failed
    for index, backend in zip(rig.stack.indices, backends, strict=True):
        assert backend.breaches == []  # of a capacity, or a read or delete of what is half there
        assert set(objects_of(index, 1)) <= set(backend.objects)
