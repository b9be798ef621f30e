from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pytest_kvcache.cache.identity import Identity
from pytest_kvcache.cache.index import Admission, Blocked, CacheIndex, Slot
from pytest_kvcache.cache.tiers import TIER_POLICIES, Tier, TierAdmission, TierPolicy, TierStack
from tests.cache.literal import LiteralCache, fitting, requests, size_of
from tests.recordings import AGENTS, MOONCAKE, real_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

A, B, C, D = (bytes([letter]) for letter in b"abcd")
both_policies = st.sampled_from(TIER_POLICIES)


def stack_of(
    policy: TierPolicy, *capacities: int | None, page_bytes: int = 1, objects: int = 1
) -> TierStack:
    return TierStack(
        [
            Tier(
                name=f"tier {number}",
                capacity_bytes=capacity,
                page_bytes=page_bytes,
                objects_per_block=objects,
            )
            for number, capacity in enumerate(capacities)
        ],
        policy,
    )


def admit(
    stack: TierStack,
    keys: Sequence[bytes],
    prompt_blocks: int | None = None,
    sizes: int | Sequence[int] = 1,
) -> TierAdmission:
    found = stack.admit(keys, len(keys) if prompt_blocks is None else prompt_blocks, sizes)
    assert isinstance(found, TierAdmission)
    return found


def finish(stack: TierStack, found: TierAdmission) -> TierAdmission:
    """Carry it out at once."""
    stack.release(found)
    for tier in reversed(range(len(stack.tiers))):
        stack.left(tier, found)
        for move in found.moves:
            if move.target_tier == tier:
                stack.commit(tier, move.target)
                stack.end_move(move)
        for slot in found.writes[tier]:
            stack.commit(tier, slot)
    return found


def content(index: CacheIndex) -> list[bytes]:
    """Return the keys, most recently used first."""
    return list(index._slots)[::-1]


def keys_of(slots: Sequence[Slot]) -> list[bytes]:
    return [slot.key for slot in slots]


# --- the tables of the traces' README -------------------------------------------------------

WRITE_THROUGH, DEMOTE = TIER_POLICIES
TABLE: tuple[tuple[str, tuple[int, int | None], TierPolicy, tuple[int, int], int], ...] = (
    (MOONCAKE, (439, 4_392), WRITE_THROUGH, (4_644, 27_343), 89_890),
    (MOONCAKE, (439, 4_392), DEMOTE, (4_083, 29_623), 87_732),
    (MOONCAKE, (1_000, 10_000), WRITE_THROUGH, (10_252, 41_412), 70_213),
    (MOONCAKE, (1_000, 10_000), DEMOTE, (6_488, 47_380), 67_008),
    (MOONCAKE, (2_196, 21_962), WRITE_THROUGH, (19_087, 52_677), 50_113),
    (MOONCAKE, (2_196, 21_962), DEMOTE, (8_553, 64_369), 46_759),
    (MOONCAKE, (439, None), WRITE_THROUGH, (4_644, 73_309), 43_924),
    (MOONCAKE, (439, None), DEMOTE, (1_548, 76_405), 43_485),
    (MOONCAKE, (4_392, 4_392), WRITE_THROUGH, (31_973, 1_535), 88_369),
    (MOONCAKE, (4_392, 4_392), DEMOTE, (24_631, 22_593), 70_260),
    (AGENTS, (1_000, 5_000), WRITE_THROUGH, (119_973, 145_861), 50_070),
    (AGENTS, (1_000, 5_000), DEMOTE, (105_401, 170_375), 39_979),
    (AGENTS, (3_000, 10_000), WRITE_THROUGH, (234_176, 48_199), 36_050),
    (AGENTS, (3_000, 10_000), DEMOTE, (190_371, 94_599), 29_894),
    (AGENTS, (1_000, None), WRITE_THROUGH, (119_973, 171_989), 26_463),
    (AGENTS, (1_000, None), DEMOTE, (100_576, 191_386), 25_463),
    (AGENTS, (5_000, 20_000), WRITE_THROUGH, (268_621, 19_508), 30_296),
    (AGENTS, (5_000, 20_000), DEMOTE, (195_204, 96_758), 21_463),
)


def prompts_of(name: str) -> list[list[bytes]]:
    trace = real_trace(name)
    ids = [block.to_bytes(16, "big") for block in trace.block_ids.tolist()]
    return [ids[a:b] for a, b in pairwise(trace.offsets.tolist())]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "capacities", "policy", "hits", "stored"), TABLE)
def test_a_recorded_trace_hits_and_stores_in_two_tiers_what_its_table_says(
    name: str,
    capacities: tuple[int, int | None],
    policy: TierPolicy,
    hits: tuple[int, int],
    stored: int,
) -> None:
    memory, storage = capacities
    block_bytes, page_bytes = 5_000, 4_096
    tiers = [
        Tier(name="cpu", capacity_bytes=memory * block_bytes, page_bytes=1),
        Tier(
            name="storage",
            capacity_bytes=None if storage is None else storage * 2 * page_bytes,
            page_bytes=page_bytes,
        ),
    ]
    stack = TierStack(tiers, policy)
    for keys in prompts_of(name):
        finish(stack, admit(stack, keys, sizes=block_bytes))
    cpu, below = stack.counts
    assert (cpu.hit_blocks, below.hit_blocks) == hits
    assert below.stored_blocks == stored
    assert below.written_bytes + below.demoted_in_bytes == stored * block_bytes
    if policy == DEMOTE:
        assert (cpu.promoted_in_blocks, below.promoted_in_blocks) == (0, 0)
    else:
        assert 0 < cpu.promoted_in_blocks <= below.hit_blocks  # no more than there is room for


# --- the laws, against lists ----------------------------------------------------------------


class LiteralThrough:
    """write-through by the words of the README: every tier its own literal LRU."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.tiers = [LiteralCache(capacity) for capacity in capacities]
        self.hits = [0] * len(capacities)
        self.stored = [0] * len(capacities)

    def content(self, tier: int) -> list[bytes]:
        return list(self.tiers[tier].sizes)[::-1]

    def serve(self, keys: Sequence[bytes], prompt_blocks: int, most: int) -> None:
        served: list[int] = []
        for key in keys[:prompt_blocks]:
            having = [number for number, tier in enumerate(self.tiers) if key in tier.sizes]
            if not having:
                break
            served.append(having[0])
            self.hits[having[0]] += 1
        for number, tier in enumerate(self.tiers):
            reached = [
                key
                for place, key in enumerate(keys)
                if place >= len(served) or served[place] >= number
            ]
            own = fitting(reached, tier.capacity_bytes, most)
            self.stored[number] += sum(key not in tier.sizes for key in own)
            tier.serve(own, 0, [size_of(key, most) for key in own])


class LiteralDemote:
    """demote as stacks of keys, the most recent first, each cut once."""

    def __init__(self, capacities: Sequence[int]) -> None:
        self.capacities = capacities
        self.tiers: list[list[bytes]] = [[] for _ in capacities]
        self.hits = [0] * len(capacities)
        self.stored = [0] * len(capacities)

    def content(self, tier: int) -> list[bytes]:
        return self.tiers[tier]

    def serve(self, keys: Sequence[bytes], prompt_blocks: int, most: int) -> None:
        everywhere = {key: number for number, tier in enumerate(self.tiers) for key in tier}
        for key in keys[:prompt_blocks]:
            if key not in everywhere:
                break
            self.hits[everywhere[key]] += 1
        arriving = [key for key in keys if everywhere.get(key, 0) == 0]
        for number, old in enumerate(self.tiers):
            taken = fitting(arriving, self.capacities[number], most)
            self.stored[number] += sum(key not in old for key in taken)
            beyond = [key for key in arriving[len(taken) :] if key not in old]
            own = [key for key in keys if number and key in old]
            stack = taken + own + [key for key in old if key not in (*taken, *own)]
            self.tiers[number] = fitting(stack, self.capacities[number], most)
            arriving = beyond + stack[len(self.tiers[number]) :]


LITERAL: dict[TierPolicy, type[LiteralThrough | LiteralDemote]] = {
    WRITE_THROUGH: LiteralThrough,
    DEMOTE: LiteralDemote,
}


@pytest.mark.thorough
@settings(deadline=None)
@given(
    both_policies,
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.lists(requests(), max_size=30),
    st.integers(1, 6),
)
def test_hits_content_order_and_stores_of_every_tier_are_those_of_the_literal_lists(
    policy: TierPolicy,
    capacities: list[int],
    stream: list[tuple[list[bytes], int]],
    most: int,
) -> None:
    stack, literal = stack_of(policy, *capacities), LITERAL[policy](capacities)
    for keys, prompt_blocks in stream:
        sizes = [size_of(key, most) for key in keys]
        finish(stack, admit(stack, keys, prompt_blocks, sizes))
        literal.serve(keys, prompt_blocks, most)
        for number, (index, counts) in enumerate(zip(stack.indices, stack.counts, strict=True)):
            assert content(index) == literal.content(number)
            assert counts.hit_blocks == literal.hits[number]
            assert counts.stored_blocks == literal.stored[number]
            assert index.used_bytes <= capacities[number]
            assert index.used_blocks == index.present_blocks


@settings(deadline=None)
@given(
    both_policies,
    st.integers(0, 20),
    st.lists(requests(), max_size=30),
    st.integers(1, 6),
    st.data(),
)
def test_one_tier_decides_as_an_index_does_to_the_last_decision(
    policy: TierPolicy,
    capacity: int,
    stream: list[tuple[list[bytes], int]],
    most: int,
    data: st.DataObject,
) -> None:
    stack, index = stack_of(policy, capacity), CacheIndex(capacity, page_bytes=1)
    under_way: list[tuple[TierAdmission, Admission]] = []
    for keys, prompt_blocks in stream:
        sizes = [size_of(key, most) for key in keys]
        one, other = (
            stack.admit(keys, prompt_blocks, sizes),
            index.admit(keys, prompt_blocks, sizes),
        )
        if isinstance(one, Blocked) or isinstance(other, Blocked):
            assert isinstance(one, Blocked)
            assert isinstance(other, Blocked)
            assert one.slot.object_key == other.slot.object_key
        else:
            assert same(one.reads[0], other.hits)
            assert same(one.writes[0], other.inserts)
            assert same(one.deletes[0], other.victims)
            assert one.moves == []
            under_way.append((one, other))
        ending = data.draw(st.integers(0, len(under_way)))
        for _ in range(ending):
            tiered, plain = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            finish(stack, tiered)
            index.release(plain)
            index.deleted(plain)
            for slot in plain.inserts:
                index.commit(slot)
        assert content(stack.indices[0]) == content(index)


def same(one: Sequence[Slot], other: Sequence[Slot]) -> bool:
    return [slot.object_key for slot in one] == [slot.object_key for slot in other]


# --- what a reader of the docs would try ----------------------------------------------------


def test_write_through_promotes_what_is_served_below_and_spares_what_is_served_above() -> None:
    stack = stack_of(WRITE_THROUGH, 2, 10)
    first = finish(stack, admit(stack, [A, B]))
    assert [keys_of(slots) for slots in first.writes] == [[A, B], [A, B]]
    finish(stack, admit(stack, [C]))
    found = finish(stack, admit(stack, [A, B]))
    assert [keys_of(slots) for slots in found.reads] == [[A], [B]]
    ((move),) = found.moves
    assert (move.source_tier, move.target_tier, move.target.key, move.copies) == (1, 0, B, True)
    assert move.target.identity == move.source.identity
    assert keys_of(found.deletes[0]) == [C]
    assert content(stack.indices[1]) == [B, C, A]


def test_a_block_that_is_written_to_several_tiers_says_the_same_of_itself_in_each() -> None:
    stack = stack_of(WRITE_THROUGH, 2, 2, 2)
    found = admit(stack, [A])
    slots = [slots[0] for slots in found.writes]
    assert len({slot.identity for slot in slots}) == 1
    assert len({slot.object_key for slot in slots}) == 3


def test_demote_moves_what_overflows_and_promotes_nothing() -> None:
    stack = stack_of(DEMOTE, 1, 1)
    finish(stack, admit(stack, [A]))
    found = finish(stack, admit(stack, [B]))
    ((move),) = found.moves
    assert (move.source_tier, move.target_tier, move.target.key, move.copies) == (0, 1, A, False)
    assert move.target.identity == move.source.identity == Identity(A, 1)
    assert found.deletes == ([], [])
    again = finish(stack, admit(stack, [A]))
    assert [keys_of(slots) for slots in again.reads] == [[], [A]]
    assert again.moves == []
    last = finish(stack, admit(stack, [C]))
    assert [keys_of(slots) for slots in last.deletes] == [[], [A]]
    assert keys_of([move.target for move in last.moves]) == [B]


def test_new_blocks_beyond_the_fastest_tier_are_written_where_they_end_up() -> None:
    stack = stack_of(DEMOTE, 1, 1, 1)
    found = finish(stack, admit(stack, [A, B, C, D]))
    assert [keys_of(slots) for slots in found.writes] == [[A], [B], [C]]
    assert found.moves == []


def test_a_block_on_its_way_blocks_who_needs_it_until_it_has_arrived() -> None:
    stack = stack_of(DEMOTE, 1, 5)
    finish(stack, admit(stack, [A]))
    moving = admit(stack, [B])
    (move,) = moving.moves
    assert stack.admit([A], 1, 1) == Blocked(move.target)
    assert stack.look_up([A], 1) == Blocked(move.target)
    stack.commit(1, move.target)
    assert isinstance(stack.look_up([A], 1), TierAdmission)


def test_what_is_promoted_from_stays_until_the_promotion_has_ended() -> None:
    stack = stack_of(WRITE_THROUGH, 1, 1)
    finish(stack, admit(stack, [A]))
    stack.drop(0, stack.indices[0]._slots[A])
    found = admit(stack, [A])
    stack.release(found)
    (move,) = found.moves
    blocked = stack.admit([B], 1, 1)
    assert isinstance(blocked, Blocked)
    stack.commit(0, move.target)
    assert stack.admit([B], 1, 1) == Blocked(move.source)
    stack.end_move(move)
    with pytest.raises(ValueError, match="it is not pinned"):
        stack.end_move(move)
    assert isinstance(stack.admit([B], 1, 1), TierAdmission)


def test_a_look_up_reads_from_the_fastest_tier_that_has_it_and_changes_nothing() -> None:
    stack = stack_of(WRITE_THROUGH, 1, 2)
    finish(stack, admit(stack, [A, B]))
    before = [content(index) for index in stack.indices]
    found = stack.look_up([A, B, C], 3)
    assert isinstance(found, TierAdmission)
    assert [keys_of(slots) for slots in found.reads] == [[A], [B]]
    assert (found.hit_blocks, found.moves, found.victims) == (2, [], ([], []))
    stack.release(found)
    assert [content(index) for index in stack.indices] == before
    assert stack.prompt_blocks == 2 + 3


def test_a_stack_without_tiers_or_with_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="a stack has no tiers"):
        TierStack([], DEMOTE)
    with pytest.raises(ValueError, match="policy is 'fifo'; it must be one of write-through, dem"):
        stack_of("fifo", 1)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("keys", "prompt_blocks", "sizes", "why"),
    [
        ([A, A], 2, 1, "repeat"),
        ([A], 2, 1, "prompt_blocks is 2"),
        ([A], 1, [1, 1], "2 sizes for its 1 keys"),
        ([A], 1, 0, "a block has 0 bytes"),
    ],
)
def test_a_request_that_is_none_is_refused_and_changes_nothing(
    keys: list[bytes], prompt_blocks: int, sizes: int | list[int], why: str
) -> None:
    stack = stack_of(DEMOTE, 1, 1)
    with pytest.raises(ValueError, match=why):
        stack.admit(keys, prompt_blocks, sizes)
    assert (stack.prompt_blocks, [index.used_blocks for index in stack.indices]) == (0, [0, 0])


# --- many at once ---------------------------------------------------------------------------


@dataclass
class Flight:
    """A decision that is carried out step by step, in the documented order."""

    found: TierAdmission
    steps: Iterator[None]
    done: bool = False


@dataclass
class Storage:
    """What a tier really holds: by name, what the object says of itself and what it takes."""

    objects: dict[str, tuple[Identity, int]] = field(default_factory=dict)


class ManyInTiers(RuleBasedStateMachine):
    """Requests whose reads, moves, deletes and writes go on in any order between them."""

    def __init__(self) -> None:
        super().__init__()
        self.flights: list[Flight] = []

    @initialize(
        policy=both_policies,
        capacities=st.lists(st.integers(1, 12), min_size=1, max_size=3),
        most=st.integers(1, 6),
    )
    def start(self, policy: TierPolicy, capacities: list[int], most: int) -> None:
        self.most = most
        self.stack = stack_of(policy, *capacities)
        self.storage = [Storage() for _ in capacities]

    def store(self, tier: int, slot: Slot) -> None:
        self.storage[tier].objects[slot.object_key] = (slot.identity, slot.stored_bytes)

    def carry_out(self, found: TierAdmission, failing: Sequence[bytes]) -> Iterator[None]:
        stack, storage = self.stack, self.storage
        for tier, slots in enumerate(found.reads):
            for slot in slots:
                assert storage[tier].objects[slot.object_key][0] == slot.identity
        yield
        stack.release(found)
        for tier in reversed(range(len(storage))):
            for slot in found.deletes[tier]:
                del storage[tier].objects[slot.object_key]
                yield
            stack.left(tier, found)
            for move in (move for move in found.moves if move.target_tier == tier):
                yield
                source = storage[move.source_tier].objects[move.source.object_key]
                assert source[0] == move.source.identity == move.target.identity
                if move.target.key in failing:
                    stack.roll_back(tier, move.target)
                else:
                    self.store(tier, move.target)
                    stack.commit(tier, move.target)
                if not move.copies:
                    del storage[move.source_tier].objects[move.source.object_key]
                stack.end_move(move)
            for slot in found.writes[tier]:
                yield
                if slot.key in failing:
                    stack.roll_back(tier, slot)
                else:
                    self.store(tier, slot)
                    stack.commit(tier, slot)

    @rule(request=st.one_of(requests(), requests(2)), fails=st.booleans())
    def arrive(self, request: tuple[list[bytes], int], fails: bool) -> None:  # noqa: FBT001 - drawn
        before = self.state()
        keys, prompt_blocks = request
        found = self.stack.admit(keys, prompt_blocks, [size_of(key, self.most) for key in keys])
        if isinstance(found, Blocked):
            assert self.state() == before
            assert any(not flight.done for flight in self.flights)
            return
        steps = self.carry_out(found, keys[-1:] if fails else ())
        self.flights.append(Flight(found, steps))

    def state(self) -> tuple[object, ...]:
        slots = [
            [(s.object_key, s.present, s.pins) for s in index._slots.values()]
            for index in self.stack.indices
        ]
        used = [index.used_bytes for index in self.stack.indices]
        return slots, used, self.stack.prompt_blocks, repr(self.stack.counts)

    @precondition(lambda self: any(not flight.done for flight in self.flights))
    @rule(data=st.data(), steps=st.integers(1, 30))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        flight = data.draw(st.sampled_from([f for f in self.flights if not f.done]))
        for _ in range(steps):
            self.no_tier_holds_more_than_its_capacity()
            if next(flight.steps, flight) is flight:
                flight.done = True
                return

    @invariant()
    def no_tier_holds_more_than_its_capacity(self) -> None:
        if hasattr(self, "stack"):
            for index, storage in zip(self.stack.indices, self.storage, strict=True):
                assert index.capacity_bytes is not None
                assert sum(size for _, size in storage.objects.values()) <= index.capacity_bytes
                assert index.used_bytes <= index.capacity_bytes

    @invariant()
    def what_a_tier_calls_present_is_there_as_a_whole(self) -> None:
        if hasattr(self, "stack"):
            for index, storage in zip(self.stack.indices, self.storage, strict=True):
                for slot in index.stored():
                    assert storage.objects[slot.object_key][0] == slot.identity

    @invariant()
    def a_demoted_block_is_in_one_tier(self) -> None:
        if hasattr(self, "stack") and self.stack.policy == DEMOTE:
            keys = [key for index in self.stack.indices for key in index._slots]
            assert len(keys) == len(set(keys))

    def teardown(self) -> None:
        for flight in self.flights:
            for _ in flight.steps:
                self.no_tier_holds_more_than_its_capacity()
        if hasattr(self, "stack"):
            for index, storage in zip(self.stack.indices, self.storage, strict=True):
                assert {slot.object_key for slot in index.stored()} == set(storage.objects)
                assert all(slot.pins == 0 and slot.present for slot in index._slots.values())


TestManyInTiers = ManyInTiers.TestCase
TestManyInTiers.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
