from __future__ import annotations

import functools
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
from pytest_kvcache.cache.index import Admission, Blocked, BlockEntry, CacheIndex
from pytest_kvcache.cache.tiers import TIER_POLICIES, Tier, TierAdmission, TierPolicy, TierStack
from tests.cache.literal import LITERAL, requests, size_of
from tests.recordings import TWO_TIERS, real_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

A, B, C, D = (bytes([letter]) for letter in b"abcd")
WRITE_THROUGH, DEMOTE = TIER_POLICIES
both_policies = st.sampled_from(TIER_POLICIES)


def stack_of(
    policy: TierPolicy,
    *capacities: int | None,
    page_bytes: int = 1,
    objects: int = 1,
    promotes: bool = True,
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
        promotes=promotes,
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
    stack.settle(found)
    return found


def content(index: CacheIndex) -> list[bytes]:
    """Return the keys, most recently used first."""
    return list(index._entries)[::-1]


def keys_of(entries: Sequence[BlockEntry]) -> list[bytes]:
    return [entry.key for entry in entries]


# --- the tables of the traces' README -------------------------------------------------------


@functools.cache
def prompts_of(name: str) -> list[list[bytes]]:
    trace = real_trace(name)
    ids = [block.to_bytes(16, "big") for block in trace.block_ids.tolist()]
    return [ids[a:b] for a, b in pairwise(trace.offsets.tolist())]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "capacities", "policy", "hits", "stored"), TWO_TIERS)
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
            assert one.entry.object_key == other.entry.object_key
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
            for entry in plain.inserts:
                index.commit(entry)
        assert content(stack.indices[0]) == content(index)


def same(one: Sequence[BlockEntry], other: Sequence[BlockEntry]) -> bool:
    return [entry.object_key for entry in one] == [entry.object_key for entry in other]


# --- what a reader of the docs would try ----------------------------------------------------


def test_write_through_promotes_what_is_served_below_and_spares_what_is_served_above() -> None:
    stack = stack_of(WRITE_THROUGH, 2, 10)
    first = finish(stack, admit(stack, [A, B]))
    assert [keys_of(entries) for entries in first.writes] == [[A, B], [A, B]]
    finish(stack, admit(stack, [C]))
    found = finish(stack, admit(stack, [A, B]))
    assert [keys_of(entries) for entries in found.reads] == [[A], [B]]
    ((move),) = found.moves
    assert (move.source_tier, move.target_tier, move.target.key, move.copies) == (1, 0, B, True)
    assert move.target.identity == move.source.identity
    assert keys_of(found.deletes[0]) == [C]
    assert content(stack.indices[1]) == [B, C, A]


def test_where_nothing_is_loaded_nothing_is_promoted() -> None:
    stack = stack_of(WRITE_THROUGH, 2, 10, promotes=False)
    finish(stack, admit(stack, [A, B]))
    finish(stack, admit(stack, [C]))
    found = finish(stack, admit(stack, [A, B, D]))
    assert [keys_of(entries) for entries in found.reads] == [[A], [B]]
    assert found.moves == []
    assert [keys_of(entries) for entries in found.writes] == [[D], [D]]
    assert content(stack.indices[0]) == [A, D]


def test_a_block_that_is_written_to_several_tiers_says_the_same_of_itself_in_each() -> None:
    stack = stack_of(WRITE_THROUGH, 2, 2, 2)
    found = admit(stack, [A])
    entries = [entries[0] for entries in found.writes]
    assert len({entry.identity for entry in entries}) == 1
    assert len({entry.object_key for entry in entries}) == 3


def test_there_is_room_in_the_storage_or_where_blocks_are_demoted_in_all_tiers() -> None:
    keys = [bytes([number]) for number in range(9)]
    through, demoting = stack_of(WRITE_THROUGH, 2, 4), stack_of(DEMOTE, 2, 4)
    assert [through.has_room_for(keys[:count], 1) for count in (4, 5)] == [True, False]
    assert [demoting.has_room_for(keys[:count], 1) for count in (6, 7)] == [True, False]
    finish(demoting, admit(demoting, keys[:5]))
    assert demoting.has_room_for(keys[:6], 1)  # five of them are there
    assert not demoting.has_room_for(keys[3:7], 1)
    assert stack_of(DEMOTE, 2, None).has_room_for(keys, 100)


def test_demote_moves_what_overflows_and_promotes_nothing() -> None:
    stack = stack_of(DEMOTE, 1, 1)
    finish(stack, admit(stack, [A]))
    found = finish(stack, admit(stack, [B]))
    ((move),) = found.moves
    assert (move.source_tier, move.target_tier, move.target.key, move.copies) == (0, 1, A, False)
    assert move.target.identity == move.source.identity == Identity(A, 1)
    assert found.deletes == ([], [])
    again = finish(stack, admit(stack, [A]))
    assert [keys_of(entries) for entries in again.reads] == [[], [A]]
    assert again.moves == []
    last = finish(stack, admit(stack, [C]))
    assert [keys_of(entries) for entries in last.deletes] == [[], [A]]
    assert keys_of([move.target for move in last.moves]) == [B]


def test_new_blocks_beyond_the_fastest_tier_are_written_where_they_end_up() -> None:
    stack = stack_of(DEMOTE, 1, 1, 1)
    found = finish(stack, admit(stack, [A, B, C, D]))
    assert [keys_of(entries) for entries in found.writes] == [[A], [B], [C]]
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
    stack.drop(0, stack.indices[0]._entries[A])
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
    assert [keys_of(entries) for entries in found.reads] == [[A], [B]]
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
class InFlightRequest:
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
        self.in_flight: list[InFlightRequest] = []

    @initialize(
        policy=both_policies,
        capacities=st.lists(st.integers(1, 12), min_size=1, max_size=3),
        most=st.integers(1, 6),
    )
    def start(self, policy: TierPolicy, capacities: list[int], most: int) -> None:
        self.most = most
        self.stack = stack_of(policy, *capacities)
        self.storage = [Storage() for _ in capacities]

    def store(self, tier: int, entry: BlockEntry) -> None:
        self.storage[tier].objects[entry.object_key] = (entry.identity, entry.stored_bytes)

    def carry_out(self, found: TierAdmission, failing: Sequence[bytes]) -> Iterator[None]:
        stack, storage = self.stack, self.storage
        for tier, entries in enumerate(found.reads):
            for entry in entries:
                assert storage[tier].objects[entry.object_key][0] == entry.identity
        yield
        stack.release(found)
        for tier in reversed(range(len(storage))):
            for entry in found.deletes[tier]:
                del storage[tier].objects[entry.object_key]
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
            for entry in found.writes[tier]:
                yield
                if entry.key in failing:
                    stack.roll_back(tier, entry)
                else:
                    self.store(tier, entry)
                    stack.commit(tier, entry)

    @rule(request=st.one_of(requests(), requests(2)), fails=st.booleans())
    def arrive(self, request: tuple[list[bytes], int], fails: bool) -> None:  # noqa: FBT001 - drawn
        before = self.state()
        keys, prompt_blocks = request
        found = self.stack.admit(keys, prompt_blocks, [size_of(key, self.most) for key in keys])
        if isinstance(found, Blocked):
            assert self.state() == before
            assert any(not inflight.done for inflight in self.in_flight)
            return
        steps = self.carry_out(found, keys[-1:] if fails else ())
        self.in_flight.append(InFlightRequest(found, steps))

    def state(self) -> tuple[object, ...]:
        entries = [
            [(s.object_key, s.present, s.pins) for s in index._entries.values()]
            for index in self.stack.indices
        ]
        used = [index.used_bytes for index in self.stack.indices]
        return entries, used, self.stack.prompt_blocks, repr(self.stack.counts)

    @precondition(lambda self: any(not inflight.done for inflight in self.in_flight))
    @rule(data=st.data(), steps=st.integers(1, 30))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        inflight = data.draw(st.sampled_from([f for f in self.in_flight if not f.done]))
        for _ in range(steps):
            self.no_tier_holds_more_than_its_capacity()
            if next(inflight.steps, inflight) is inflight:
                inflight.done = True
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
                for entry in index.stored():
                    assert storage.objects[entry.object_key][0] == entry.identity

    @invariant()
    def a_demoted_block_is_in_one_tier(self) -> None:
        if hasattr(self, "stack") and self.stack.policy == DEMOTE:
            keys = [key for index in self.stack.indices for key in index._entries]
            assert len(keys) == len(set(keys))

    def teardown(self) -> None:
        for inflight in self.in_flight:
            for _ in inflight.steps:
                self.no_tier_holds_more_than_its_capacity()
        if hasattr(self, "stack"):
            for index, storage in zip(self.stack.indices, self.storage, strict=True):
                assert {entry.object_key for entry in index.stored()} == set(storage.objects)
                assert all(entry.pins == 0 and entry.present for entry in index._entries.values())


TestManyInTiers = pytest.mark.thorough(ManyInTiers.TestCase)
TestManyInTiers.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
