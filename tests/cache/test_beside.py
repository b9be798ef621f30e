"""Blocks beside the prefix: what is read, touched and stored of them, in one tier or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.index import Admission, Beside, Blocked, BlockEntry, CacheIndex
from pytest_kvcache.cache.tiers import TIER_POLICIES, Tier, TierAdmission, TierPolicy, TierStack
from tests.cache.literal import LITERAL, LiteralCache, requests_beside, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B, C, D, E = (bytes([letter]) for letter in b"abcde")
Asked = tuple[list[bytes], int, Beside]


def keys_of(entries: Sequence[BlockEntry]) -> list[bytes]:
    return [entry.key for entry in entries]


def content(index: CacheIndex) -> list[bytes]:
    """Return the keys, most recently used first."""
    return list(index._entries)[::-1]


def finish(index: CacheIndex, admission: Admission | Blocked) -> Admission:
    assert isinstance(admission, Admission)
    index.release(admission)
    index.deleted(admission)
    for entry in admission.inserts:
        index.commit(entry)
    return admission


def serve(
    index: CacheIndex, keys: list[bytes], beside: Sequence[bytes] = (), *, stores: bool = False
) -> Admission:
    found = index.admit(keys, len(keys), 1, Beside(beside, 1, stores))
    return finish(index, found)


def test_each_block_beside_the_prefix_is_read_where_it_is_there_whatever_stands_before_it() -> None:
    index = CacheIndex(9, page_bytes=1)
    serve(index, [A, C, D])
    found = serve(index, [E], [A, B, D])
    assert (keys_of(found.hits), keys_of(found.beside_hits)) == ([], [A, D])
    assert keys_of(found.inserts) == [E]
    assert content(index) == [E, A, D, C]
    assert (index.prompt_blocks, index.hit_blocks) == (4, 0)


def test_those_that_are_absent_are_stored_where_the_request_says_so() -> None:
    index = CacheIndex(9, page_bytes=1)
    serve(index, [A])
    found = serve(index, [E], [B, A], stores=True)
    assert (keys_of(found.beside_hits), keys_of(found.inserts)) == ([A], [E, B])
    assert content(index) == [E, B, A]


def test_a_block_beside_the_prefix_that_loses_its_place_is_read_first() -> None:
    index = CacheIndex(2, page_bytes=1)
    serve(index, [A, B])
    found = index.admit([C, D], 2, 1, Beside([A], 1, stores=False))
    assert isinstance(found, Admission)
    assert keys_of(found.victims) == [B, A]
    assert keys_of(found.beside_hits) == [A]
    assert found.beside_hits[0].pins == 1
    assert finish(index, found).beside_hits[0].pins == 0
    assert content(index) == [C, D]


@pytest.mark.parametrize("stores", [True, False])
def test_a_block_beside_the_prefix_that_is_being_stored_is_waited_for(*, stores: bool) -> None:
    index = CacheIndex(9, page_bytes=1)
    storing = index.admit([A], 1, 1)
    assert isinstance(storing, Admission)
    beside = Beside([A], 1, stores)
    assert index.admit([B], 1, 1, beside) == Blocked(storing.inserts[0])
    assert index.look_up([B], 1, beside) == Blocked(storing.inserts[0])
    finish(index, storing)
    assert keys_of(finish(index, index.admit([B], 1, 1, beside)).beside_hits) == [A]


def test_a_request_that_stores_nothing_reads_what_is_beside_it_and_touches_nothing() -> None:
    index = CacheIndex(9, page_bytes=1)
    serve(index, [A, B])
    found = index.look_up([C], 1, Beside([D, A], 1, stores=True))
    assert isinstance(found, Admission)
    assert (keys_of(found.beside_hits), found.inserts) == ([A], [])
    assert content(index) == [A, B]
    index.release(found)
    assert found.beside_hits[0].pins == 0


@pytest.mark.parametrize("beside", [[A, A], [B]])
def test_keys_beside_the_prefix_are_distinct_and_none_of_its_own(beside: list[bytes]) -> None:
    with pytest.raises(ValueError, match="repeat"):
        CacheIndex(9, page_bytes=1).admit([B], 1, 1, Beside(beside, 1, stores=False))
    with pytest.raises(ValueError, match="2 sizes for 1 keys"):
        CacheIndex(9, page_bytes=1).admit([B], 1, 1, Beside([C], [1, 1], stores=False))


@settings(deadline=None)
@given(st.integers(0, 30), st.data(), st.integers(1, 7))
def test_hits_content_and_order_are_those_of_the_literal_loop_with_blocks_beside_the_prefix(
    capacity_bytes: int, data: st.DataObject, most: int
) -> None:
    index, literal = CacheIndex(capacity_bytes, page_bytes=1), LiteralCache(capacity_bytes)
    for keys, prompt_blocks, beside in data.draw(st.lists(requests_beside(most), max_size=25)):
        sizes = [size_of(key, most) for key in keys]
        found = finish(index, index.admit(keys, prompt_blocks, sizes, beside))
        hits, there = literal.serve_beside(keys, prompt_blocks, beside, most)
        assert (len(found.hits), keys_of(found.beside_hits)) == (hits, there)
        assert content(index) == list(literal.sizes)[::-1]
        assert index.used_bytes == index.present_bytes == sum(literal.sizes.values())
        assert index.used_bytes <= capacity_bytes


def stack_of(policy: TierPolicy, capacities: Sequence[int], *, promotes: bool = True) -> TierStack:
    tiers = [
        Tier(name=f"tier {number}", capacity_bytes=capacity, page_bytes=1)
        for number, capacity in enumerate(capacities)
    ]
    return TierStack(tiers, policy, promotes=promotes)


@settings(deadline=None)
@given(
    st.sampled_from(TIER_POLICIES),
    st.lists(st.integers(0, 15), min_size=1, max_size=3),
    st.data(),
    st.integers(1, 5),
)
def test_every_tier_holds_and_serves_what_the_literal_lists_say_with_blocks_beside_the_prefix(
    policy: TierPolicy, capacities: list[int], data: st.DataObject, most: int
) -> None:
    stack, literal = stack_of(policy, capacities), LITERAL[policy](capacities)
    beside_hits = [0] * len(capacities)
    for keys, prompt_blocks, beside in data.draw(st.lists(requests_beside(most), max_size=20)):
        sizes = [size_of(key, most) for key in keys]
        found = stack.admit(keys, prompt_blocks, sizes, beside)
        assert isinstance(found, TierAdmission)
        assert all(entry.pins and entry.present for tier in found.beside_reads for entry in tier)
        stack.settle(found)
        assert not any(entry.pins for tier in found.beside_reads for entry in tier)
        literal.serve(keys, prompt_blocks, most, beside)
        more = map(len, found.beside_reads)
        beside_hits = [sum(pair) for pair in zip(beside_hits, more, strict=True)]
        for number, index in enumerate(stack.indices):
            assert content(index) == literal.content(number)
            assert stack.counts[number].hit_blocks == literal.hits[number]
            assert stack.counts[number].stored_blocks == literal.stored[number]
            assert index.used_bytes <= capacities[number]
    assert beside_hits == literal.beside_hits


def test_what_a_slower_tier_serves_beside_the_prefix_is_promoted_as_a_hit_is() -> None:
    stack = stack_of("write-through", (2, 9))
    for key in (A, B, C):
        found = stack.admit([key], 1, 1)
        assert isinstance(found, TierAdmission)
        stack.settle(found)
    found = stack.admit([D], 1, 1, Beside([A], 1, stores=False))
    assert isinstance(found, TierAdmission)
    assert [keys_of(entries) for entries in found.beside_reads] == [[], [A]]
    assert [(move.target.key, move.copies) for move in found.moves] == [(A, True)]
    stack.settle(found)
    assert (content(stack.indices[0]), content(stack.indices[1])) == ([D, A], [D, A, C, B])


@pytest.mark.parametrize("policy", TIER_POLICIES)
def test_in_every_tier_a_block_beside_the_prefix_that_is_being_stored_is_waited_for(
    policy: TierPolicy,
) -> None:
    stack = stack_of(policy, (2, 9))
    storing = stack.admit([A], 1, 1)
    assert isinstance(storing, TierAdmission)
    beside = Beside([A], 1, stores=True)
    assert stack.admit([B], 1, 1, beside) == Blocked(storing.writes[0][0])
    assert stack.look_up([B], 1, beside) == Blocked(storing.writes[0][0])
    stack.settle(storing)
    assert isinstance(stack.admit([B], 1, 1, beside), TierAdmission)


def test_a_request_that_stores_nothing_reads_beside_its_prefix_from_the_fastest_tier() -> None:
    stack = stack_of("demote", (1, 9))
    for key in (A, B):
        stored = stack.admit([key], 1, 1)
        assert isinstance(stored, TierAdmission)
        stack.settle(stored)
    found = stack.look_up([C], 1, Beside([D, A, B], 1, stores=True))
    assert isinstance(found, TierAdmission)
    assert [keys_of(entries) for entries in found.beside_reads] == [[B], [A]]
    assert found.moves == []
    stack.release(found)


@dataclass
class UnderWay:
    admission: Admission
    undeleted: bool
    unwritten: list[BlockEntry]
    reading: bool = True

    def take_step(self, index: CacheIndex, stored: dict[str, int]) -> bool:
        """Read, delete, or write one block of what a backend holds; false: it is over."""
        if self.reading:
            hits = (*self.admission.hits, *self.admission.beside_hits)
            assert {entry.object_key for entry in hits} <= stored.keys()
            index.release(self.admission)
            self.reading = False
        elif self.undeleted:
            for entry in self.admission.victims:
                del stored[entry.object_key]
            index.deleted(self.admission)
            self.undeleted = False
        elif self.unwritten:
            entry = self.unwritten.pop()
            stored[entry.object_key] = entry.stored_bytes
            index.commit(entry)
        else:
            return False
        return True


@pytest.mark.thorough
@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.data())
def test_whatever_is_under_way_nothing_half_written_is_read_and_all_pins_are_released(
    capacity_bytes: int, most: int, data: st.DataObject
) -> None:
    index = CacheIndex(capacity_bytes, page_bytes=1)
    stored: dict[str, int] = {}  # what a backend holds
    under_way: list[UnderWay] = []

    def end(each: UnderWay) -> None:
        if not each.take_step(index, stored):
            under_way.remove(each)
        assert sum(stored.values()) <= capacity_bytes

    for keys, prompt_blocks, beside in data.draw(st.lists(requests_beside(most), max_size=20)):
        sizes = [size_of(key, most) for key in keys]
        while isinstance(found := index.admit(keys, prompt_blocks, sizes, beside), Blocked):
            end(data.draw(st.sampled_from(under_way)))
        assert all(entry.present and entry.pins for entry in found.beside_hits)
        under_way.append(UnderWay(found, bool(found.victims), list(found.inserts)))
        for _ in range(data.draw(st.integers(0, 3))):
            if under_way:
                end(data.draw(st.sampled_from(under_way)))
    while under_way:
        end(under_way[0])
    assert stored.keys() == {entry.object_key for entry in index.stored()}
    assert not any(entry.pins for entry in index.stored())
