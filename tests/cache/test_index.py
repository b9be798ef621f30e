from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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
from tests.cache.literal import LiteralCache, fitting, requests, size_of
from tests.recordings import AGENTS, MOONCAKE, REFERENCE, SHAREGPT, real_trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

A, B, C, D, E = (bytes([letter]) for letter in b"abcde")


def index_of(capacity_blocks: int | None, objects_per_block: int = 1) -> CacheIndex:
    """Return an index of blocks whose objects have a byte each."""
    capacity = None if capacity_blocks is None else capacity_blocks * objects_per_block
    return CacheIndex(capacity, page_bytes=1, objects_per_block=objects_per_block)


def admit(
    index: CacheIndex,
    keys: Sequence[bytes],
    prompt_blocks: int | None = None,
    sizes: int | Sequence[int] | None = None,
) -> Admission:
    if sizes is None:
        sizes = index.objects_per_block
    admission = index.admit(keys, len(keys) if prompt_blocks is None else prompt_blocks, sizes)
    assert isinstance(admission, Admission)
    return admission


def serve(
    index: CacheIndex,
    keys: Sequence[bytes],
    prompt_blocks: int | None = None,
    sizes: int | Sequence[int] | None = None,
) -> Admission:
    """Admit one request and finish it at once."""
    admission = admit(index, keys, prompt_blocks, sizes)
    index.deleted(admission)
    for entry in admission.inserts:
        for _ in range(index.objects_per_block):
            index.commit(entry)
    index.release(admission)
    return admission


def keys_of(entries: Sequence[BlockEntry]) -> list[bytes]:
    return [entry.key for entry in entries]


def content(index: CacheIndex) -> list[bytes]:
    """Return the keys, least recently used first."""
    return list(index._entries)


@pytest.mark.thorough
@settings(deadline=None)
@given(st.integers(0, 12), st.lists(requests(), max_size=40), st.integers(1, 7), st.integers(1, 3))
def test_hits_content_and_order_are_those_of_the_literal_loop(
    capacity_pages: int, stream: list[tuple[list[bytes], int]], most: int, page_bytes: int
) -> None:
    capacity_bytes = capacity_pages * page_bytes
    index = CacheIndex(capacity_bytes, page_bytes=page_bytes)
    literal = LiteralCache(capacity_bytes)
    for keys, prompt_blocks in stream:
        sizes = [size_of(key, most) for key in keys]
        padded = [-(-size // page_bytes) * page_bytes for size in sizes]
        admission = serve(index, keys, prompt_blocks, 1 if most == 1 else sizes)
        assert len(admission.hits) == literal.serve(keys, prompt_blocks, padded)
        assert content(index) == list(literal.sizes)
        assert not set(keys_of(admission.victims)) & set(content(index))
        assert index.used_blocks == index.present_blocks == len(literal.sizes)
        assert index.used_bytes == index.present_bytes == sum(literal.sizes.values())
        assert index.used_bytes <= capacity_bytes
        assert all(s.block_bytes == size_of(s.key, most) for s in index.stored())


@settings(deadline=None)
@given(st.integers(0, 30), st.lists(requests(), max_size=40), st.integers(1, 7))
def test_after_a_request_come_its_own_keys_and_then_the_others_in_their_old_order_cut_once(
    capacity_bytes: int, stream: list[tuple[list[bytes], int]], most: int
) -> None:
    index = CacheIndex(capacity_bytes, page_bytes=1)
    for keys, prompt_blocks in stream:
        before = content(index)[::-1]
        serve(index, keys, prompt_blocks, [size_of(key, most) for key in keys])
        own = fitting(keys, capacity_bytes, most)
        others = [key for key in before if key not in own]
        assert content(index)[::-1] == fitting(own + others, capacity_bytes, most)


@settings(deadline=None)
@given(st.integers(0, 12), st.lists(requests(), max_size=40))
def test_counters_are_the_sums_over_admissions(
    capacity_blocks: int, stream: list[tuple[list[bytes], int]]
) -> None:
    index = index_of(capacity_blocks)
    admissions = [serve(index, *request) for request in stream]
    assert index.prompt_blocks == sum(a.prompt_blocks for a in admissions)
    assert index.prompt_blocks == sum(prompt_blocks for _, prompt_blocks in stream)
    assert index.hit_blocks == sum(len(a.hits) for a in admissions)
    assert index.evictions == sum(len(a.victims) for a in admissions)


@pytest.fixture(scope="module", params=[MOONCAKE, SHAREGPT, AGENTS])
def recorded(request: pytest.FixtureRequest) -> tuple[str, list[list[bytes]], list[int]]:
    trace = real_trace(request.param)
    ids = [block.to_bytes(16, "big") for block in trace.block_ids.tolist()]
    bounds = trace.offsets.tolist()
    prompts = [ids[a:b] for a, b in pairwise(bounds)]
    return request.param, prompts, trace.input_tokens.tolist()


@pytest.mark.thorough
def test_replayed_traces_hit_exactly_as_their_reference_says(
    recorded: tuple[str, list[list[bytes]], list[int]],
) -> None:
    name, prompts, input_tokens = recorded
    reference = REFERENCE[name]
    for capacity_blocks, block_ratio, token_ratio in reference.lru[::3]:  # the curve has them all
        index = index_of(capacity_blocks)
        hit_tokens = 0
        for keys, tokens in zip(prompts, input_tokens, strict=True):
            hits = len(serve(index, keys).hits)
            hit_tokens += min(hits * reference.block_tokens, tokens)
        assert index.prompt_blocks == reference.prompt_blocks
        assert f"{index.hit_blocks / index.prompt_blocks:.6f}" == block_ratio
        assert f"{hit_tokens / reference.input_tokens:.6f}" == token_ratio


@pytest.mark.thorough
def test_a_cache_without_limit_hits_as_an_infinite_one(
    recorded: tuple[str, list[list[bytes]], list[int]],
) -> None:
    name, prompts, _ = recorded
    index = index_of(None)
    for keys in prompts:
        serve(index, keys)
    assert index.hit_blocks == REFERENCE[name].infinite_hit_blocks
    assert index.used_blocks == REFERENCE[name].distinct_blocks
    assert index.evictions == 0


def test_a_request_reads_its_leading_run_and_stores_the_rest_in_prompt_order() -> None:
    index = index_of(10)
    serve(index, [A, B])
    admission = admit(index, [A, B, C, D])
    assert keys_of(admission.hits) == [A, B]
    assert keys_of(admission.inserts) == [C, D]
    assert (admission.victims, admission.prompt_blocks) == ([], 4)


def test_blocks_after_a_gap_are_touched_but_not_read() -> None:
    index = index_of(3)
    serve(index, [A, B, C])
    index.drop(index._entries[B])
    admission = serve(index, [A, B, C])
    assert keys_of(admission.hits) == [A]
    assert keys_of(admission.inserts) == [B]
    assert content(index) == [C, B, A]


def test_blocks_of_the_output_are_stored_but_are_never_hits() -> None:
    index = index_of(10)
    serve(index, [A, B, C], 2)
    assert keys_of(serve(index, [A, B, C], 2).hits) == [A, B]
    assert keys_of(serve(index, [A, B, C], 3).hits) == [A, B, C]


def test_a_request_longer_than_the_cache_keeps_its_head() -> None:
    index = index_of(2)
    serve(index, [D, E])
    admission = serve(index, [A, B, C])
    assert keys_of(admission.inserts) == [A, B]
    assert keys_of(admission.victims) == [E, D]
    assert admission.prompt_blocks == 3
    assert keys_of(serve(index, [A, B, C]).hits) == [A, B]


def test_a_cache_of_no_blocks_stores_nothing_and_counts_prompts() -> None:
    index = index_of(0)
    assert serve(index, [A, B]).inserts == []
    assert (index.prompt_blocks, index.used_blocks) == (2, 0)


def test_no_hit_of_the_request_is_evicted_for_its_own_blocks() -> None:
    index = index_of(3)
    serve(index, [A, B])  # the literal loop would evict B here and write it again
    serve(index, [E])
    admission = serve(index, [A, B, C])
    assert keys_of(admission.hits) == [A, B]
    assert keys_of(admission.victims) == [E]


def test_hits_stay_pinned_until_they_are_released() -> None:
    index = index_of(2)
    serve(index, [A])
    first, second = admit(index, [A]), admit(index, [A])
    assert first.hits[0].pins == 2
    index.release(first)
    index.release(second)
    assert first.hits[0].pins == 0
    with pytest.raises(ValueError, match="not pinned"):
        index.release(first)


def test_a_block_that_is_being_stored_blocks_the_request_that_would_read_it() -> None:
    index = index_of(4)
    storing = admit(index, [A])
    assert index.admit([A, B], 2, 1) == Blocked(storing.inserts[0])
    assert (index.prompt_blocks, content(index)) == (1, [A])
    index.commit(storing.inserts[0])
    assert keys_of(admit(index, [A, B]).hits) == [A]


def test_a_block_that_is_being_stored_after_a_gap_does_not_block() -> None:
    index = index_of(4)
    serve(index, [A])
    pending = admit(index, [A, B, C])
    index.roll_back(pending.inserts[0])
    admission = admit(index, [A, B, C])
    assert keys_of(admission.inserts) == [B]


def test_a_victim_that_is_being_read_blocks_until_it_is_released() -> None:
    index = index_of(2)
    serve(index, [A])
    serve(index, [B])
    reading = admit(index, [A])
    serve(index, [B])  # A is the least recent one again, and is being read
    assert index.admit([C], 1, 1) == Blocked(reading.hits[0])
    assert content(index) == [A, B]
    index.release(reading)
    assert keys_of(admit(index, [C]).victims) == [A]


def test_a_victim_that_is_being_stored_blocks_until_it_is_committed() -> None:
    index = index_of(2)
    storing = admit(index, [A])
    serve(index, [B])
    assert index.admit([C], 1, 1) == Blocked(storing.inserts[0])
    index.commit(storing.inserts[0])
    assert keys_of(admit(index, [C]).victims) == [A]


def test_a_block_of_several_objects_is_present_when_the_last_of_them_is_stored() -> None:
    index = index_of(2, objects_per_block=3)
    admission = admit(index, [A])
    (entry,) = admission.inserts
    for left in (2, 1, 0):
        assert not entry.present
        assert index.present_blocks == 0
        index.commit(entry)
        assert entry.unwritten == left
    assert entry.present
    with pytest.raises(ValueError, match="only a reserved entry can be"):
        index.commit(entry)


def test_a_block_that_lost_one_object_is_never_present() -> None:
    index = index_of(2, objects_per_block=3)
    admission = admit(index, [A])
    (entry,) = admission.inserts
    index.commit(entry)
    index.roll_back(entry)
    index.commit(entry)  # the other one was under way
    index.roll_back(entry)
    assert not entry.present
    assert (index.used_blocks, index.present_blocks, index.present_bytes) == (0, 0, 0)


def test_a_failed_store_gives_its_room_back() -> None:
    index = index_of(1)
    failed = admit(index, [A]).inserts[0]
    index.roll_back(failed)
    assert index.used_blocks == 0
    again = admit(index, [A]).inserts[0]
    index.roll_back(failed)  # the new reservation is not the failed one's to give up
    assert content(index) == [A]
    index.commit(again)
    assert index.present_blocks == 1


def test_an_unreadable_object_leaves_once_and_its_readers_still_release_it() -> None:
    index = index_of(1)
    serve(index, [A])
    first, second = admit(index, [A]), admit(index, [A])
    index.drop(first.hits[0])
    assert (index.used_blocks, index.present_blocks, index.present_bytes) == (0, 0, 0)
    fresh = admit(index, [A]).inserts[0]
    index.commit(fresh)
    index.drop(second.hits[0])  # not the object that is stored now
    assert (index.used_blocks, index.present_blocks) == (1, 1)
    index.release(first)
    index.release(second)
    assert fresh.pins == 0


def test_a_slot_is_committed_or_rolled_back_only_while_it_is_reserved() -> None:
    index = index_of(2)
    stored, given_up = admit(index, [A, B]).inserts
    index.commit(stored)
    index.roll_back(given_up)
    with pytest.raises(ValueError, match="only a reserved entry"):
        index.commit(stored)
    with pytest.raises(ValueError, match="only a reserved entry"):
        index.commit(given_up)
    with pytest.raises(ValueError, match="only a reserved entry"):
        index.roll_back(stored)
    assert (index.used_blocks, index.present_blocks) == (1, 1)


def test_every_stored_object_has_a_name_and_a_tag_of_its_own() -> None:
    index = index_of(1)
    keys = [number.to_bytes(16, "big") for number in (0, 1, 2, 2**64, 2**127)] * 50
    entries = [serve(index, [key]).inserts[0] for key in keys]
    assert len({entry.object_key for entry in entries}) == len(entries)
    assert len({entry.identity.tag for entry in entries}) == len(entries)
    assert all(0 <= entry.identity.tag < 2**64 for entry in entries)
    assert all(
        entry.object_key.startswith(key.hex() + ".")
        for entry, key in zip(entries, keys, strict=True)
    )


def test_equal_streams_name_their_objects_equally() -> None:
    def names() -> list[tuple[str, int]]:
        index = index_of(2)
        streams = [[A, B], [C], [A, D]]
        return [
            (s.object_key, s.identity.tag) for keys in streams for s in serve(index, keys).inserts
        ]

    assert names() == names()


def test_room_is_what_needs_no_victim() -> None:
    index = index_of(3)
    serve(index, [A, B])
    assert index.has_room_for([A, B, C], 1)
    assert not index.has_room_for([A, C, D], 1)
    assert not index_of(1).has_room_for([A, B], 1)
    assert index_of(None).has_room_for([A, B, C, D], 1)


def test_room_of_victims_beyond_the_inserts_is_free_only_when_they_are_deleted() -> None:
    index = CacheIndex(10, page_bytes=1)
    serve(index, [A], sizes=6)
    serve(index, [B], sizes=4)
    first = admit(index, [C], sizes=1)
    assert keys_of(first.victims) == [A]
    assert index.admit([D], 1, 5) == Blocked(first.victims[0])
    index.deleted(first)
    index.deleted(first)  # once is enough
    assert keys_of(admit(index, [D], sizes=5).inserts) == [D]
    assert (index.used_bytes, content(index)) == (10, [B, C, D])


def test_sizes_of_equal_blocks_are_one_number_or_one_for_each() -> None:
    one, each = CacheIndex(40, page_bytes=4), CacheIndex(40, page_bytes=4)
    for keys in ([A, B], [C, D, E], [A, B]):
        found = serve(one, keys, sizes=9), serve(each, keys, sizes=[9] * len(keys))
        assert keys_of(found[0].inserts) == keys_of(found[1].inserts)
        assert content(one) == content(each)
    assert one.used_bytes == each.used_bytes == 3 * 12
    assert {entry.block_bytes for entry in one.stored()} == {9}


def test_a_block_that_is_asked_for_in_another_size_is_refused() -> None:
    index = CacheIndex(40, page_bytes=4)
    serve(index, [A], sizes=9)
    with pytest.raises(ValueError, match="has 9 bytes, and is asked for as 8"):
        index.admit([A, B], 2, 8)
    with pytest.raises(ValueError, match="has 9 bytes, and is asked for as 8"):
        index.admit([A, B], 2, [8, 9])
    assert keys_of(admit(index, [A, B], sizes=[9, 8]).inserts) == [B]


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        ([2], "1 sizes for its 2 keys"),
        ([2, 0], "a block has 0 bytes"),
        (0, "a block has 0 bytes"),
        (3, "a block has 3 bytes; it must have some, and as many in each of its 2 objects"),
    ],
)
def test_sizes_that_are_none_are_refused(sizes: int | list[int], why: str) -> None:
    index = CacheIndex(40, page_bytes=4, objects_per_block=2)
    with pytest.raises(ValueError, match=why):
        index.admit([A, B], 2, sizes)
    assert index.used_bytes == 0


def test_a_slot_names_its_objects_once() -> None:
    (entry,) = serve(index_of(1), [A]).inserts
    assert entry.object_key is entry.object_key == f"{A.hex()}.1"
    assert entry.identity is entry.identity == Identity(A, 1)


def test_repeated_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="repeat"):
        index_of(9).admit([A, B, A], 3, 1)


@pytest.mark.parametrize("prompt_blocks", [-1, 3])
def test_a_prompt_longer_than_its_keys_is_refused(prompt_blocks: int) -> None:
    with pytest.raises(ValueError, match="prompt_blocks is"):
        index_of(9).admit([A, B], prompt_blocks, 1)


def test_a_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity_bytes is -1"):
        CacheIndex(-1, page_bytes=1)


@dataclass
class InFlightRequest:
    """One request under way, and how far it is; ``unwritten``: entries and parts of them."""

    admission: Admission
    unwritten: list[tuple[BlockEntry, int]]
    reading: bool = True
    deleted: bool = False


@dataclass
class Storage:
    """What a backend holds: objects and what they take, padded."""

    objects: dict[tuple[str, int], int] = field(default_factory=dict)


class RequestsInFlight(RuleBasedStateMachine):
    """Many requests at once, in any order of deletes, stores, failures and releases."""

    def __init__(self) -> None:
        super().__init__()
        self.storage = Storage()
        self.in_flight: list[InFlightRequest] = []

    @initialize(capacity_bytes=st.integers(1, 40), parts=st.integers(1, 2), most=st.integers(1, 12))
    def start(self, capacity_bytes: int, parts: int, most: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.most = most  # bytes of an object
        self.parts = range(parts)
        self.index = CacheIndex(capacity_bytes, page_bytes=2, objects_per_block=parts)

    def objects_of(self, entries: Iterable[BlockEntry]) -> set[tuple[str, int]]:
        return {(entry.object_key, part) for entry in entries for part in self.parts}

    def delete(self, entries: Iterable[BlockEntry]) -> None:
        for name in self.objects_of(entries):
            self.storage.objects.pop(name, None)

    def state(self) -> tuple[Any, ...]:
        index = self.index
        entries = [(s.object_key, s.present, s.pins) for s in index._entries.values()]
        return entries, index.prompt_blocks, index.hit_blocks, index.evictions, index.used_bytes

    def undeleted(self) -> list[BlockEntry]:
        return [entry for f in self.in_flight if not f.deleted for entry in f.admission.victims]

    @rule(request=st.one_of(requests(), requests(2)))
    def arrive(self, request: tuple[list[bytes], int]) -> None:
        before = self.state()
        sizes = [len(self.parts) * size_of(key, self.most) for key in request[0]]
        admission = self.index.admit(*request, sizes)
        if isinstance(admission, Blocked):
            entry = admission.entry
            assert self.state() == before
            assert entry.pins or not entry.present or entry in self.undeleted()
            return
        assert self.objects_of(admission.hits) <= self.storage.objects.keys()
        assert all(entry.pins > 0 for entry in admission.hits)
        unwritten = [(entry, part) for entry in admission.inserts for part in self.parts]
        self.in_flight.append(InFlightRequest(admission, unwritten, deleted=not admission.victims))

    @precondition(lambda self: self.index.used_blocks)
    @rule(request=st.one_of(requests(), requests(2)), data=st.data())
    def arrive_after_deletes(self, request: tuple[list[bytes], int], data: st.DataObject) -> None:
        names = sorted(self.index._entries)
        deletes = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        before, there = self.state(), self.index.find(deletes)
        sizes = [len(self.parts) * size_of(key, self.most) for key in request[0]]
        admission = self.index.admit_after_deletes(deletes, *request, sizes)
        if isinstance(admission, Blocked):
            entries, *counts = self.state()
            assert (sorted(entries), *counts) == (sorted(before[0]), *before[1:])
            return
        assert set(there) <= set(admission.victims)
        assert not set(admission.victims) & set(self.index._entries.values())
        assert len(set(admission.victims)) == self.index.evictions - before[3]
        unwritten = [(entry, part) for entry in admission.inserts for part in self.parts]
        self.in_flight.append(InFlightRequest(admission, unwritten, deleted=False))

    @precondition(lambda self: any(not f.deleted for f in self.in_flight))
    @rule(data=st.data())
    def delete_victims(self, data: st.DataObject) -> None:
        inflight = data.draw(st.sampled_from([f for f in self.in_flight if not f.deleted]))
        self.delete(inflight.admission.victims)
        self.index.deleted(inflight.admission)
        inflight.deleted = True

    @precondition(lambda self: any(f.deleted and f.unwritten for f in self.in_flight))
    @rule(data=st.data(), fails=st.booleans())
    def write(self, data: st.DataObject, fails: bool) -> None:  # noqa: FBT001 - drawn
        ready = [f for f in self.in_flight if f.deleted and f.unwritten]
        inflight = data.draw(st.sampled_from(ready))
        entry, part = data.draw(st.sampled_from(inflight.unwritten))
        if fails:  # the engine stops, and nothing else of the block is written
            inflight.unwritten = [other for other in inflight.unwritten if other[0] is not entry]
            self.delete([entry])
            self.index.roll_back(entry)
        else:
            self.write_one(inflight, entry, part)

    def write_one(self, inflight: InFlightRequest, entry: BlockEntry, part: int) -> None:
        inflight.unwritten.remove((entry, part))
        padded = -(-size_of(entry.key, self.most) // 2) * 2
        self.storage.objects[entry.object_key, part] = padded
        self.index.commit(entry)

    @precondition(lambda self: any(f.deleted and f.unwritten for f in self.in_flight))
    @rule()
    def write_all_that_may_be(self) -> None:
        for inflight in self.in_flight:
            while inflight.deleted and inflight.unwritten:
                self.write_one(inflight, *inflight.unwritten[0])

    @precondition(lambda self: any(f.reading and f.admission.hits for f in self.in_flight))
    @rule(data=st.data())
    def fail_to_read(self, data: st.DataObject) -> None:
        readers = [f for f in self.in_flight if f.reading and f.admission.hits]
        inflight = data.draw(st.sampled_from(readers))
        entry = data.draw(st.sampled_from(inflight.admission.hits))
        self.delete([entry])
        self.index.drop(entry)

    @precondition(lambda self: any(f.reading for f in self.in_flight))
    @rule(data=st.data())
    def finish_reading(self, data: st.DataObject) -> None:
        inflight = data.draw(st.sampled_from([f for f in self.in_flight if f.reading]))
        self.index.release(inflight.admission)
        inflight.reading = False

    @invariant()
    def storage_never_holds_more_than_the_capacity(self) -> None:
        if hasattr(self, "index"):
            assert sum(self.storage.objects.values()) <= self.capacity_bytes
            entries = self.index._entries.values()
            assert self.index.used_bytes == sum(entry.stored_bytes for entry in entries)
            assert self.index.used_bytes <= self.capacity_bytes

    @invariant()
    def what_the_index_calls_present_is_stored(self) -> None:
        if hasattr(self, "index"):
            present = [s for s in self.index._entries.values() if s.present]
            assert self.objects_of(present) <= self.storage.objects.keys()
            assert self.index.present_blocks == len(present)

    @invariant()
    def pins_are_the_readers(self) -> None:
        for inflight in self.in_flight:
            for entry in inflight.admission.hits:
                readers = [f for f in self.in_flight if f.reading and entry in f.admission.hits]
                assert entry.pins == len(readers)

    def teardown(self) -> None:
        for inflight in self.in_flight:
            if not inflight.deleted:
                self.index.deleted(inflight.admission)
            for entry, _part in inflight.unwritten:
                self.index.roll_back(entry)
            if inflight.reading:
                self.index.release(inflight.admission)
        if hasattr(self, "index"):
            assert isinstance(self.index.admit([b"last"], 1, len(self.parts)), Admission)


TestRequestsInFlight = pytest.mark.thorough(RequestsInFlight.TestCase)
TestRequestsInFlight.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_a_look_up_pins_its_hits_and_changes_nothing_else() -> None:
    index = index_of(4)
    for entry in admit(index, [A, B, C]).inserts:
        index.commit(entry)
    found = index.look_up([A, B, D], 3)
    assert isinstance(found, Admission)
    assert [entry.key for entry in found.hits] == [A, B]
    assert found.inserts == found.victims == []
    assert [entry.pins for entry in found.hits] == [1, 1]
    assert (index.prompt_blocks, index.hit_blocks) == (3 + 3, 2)
    assert index.used_blocks == index.present_blocks == 3
    index.release(found)
    assert [entry.pins for entry in found.hits] == [0, 0]


def test_a_look_up_reads_no_blocks_of_the_output_and_none_that_are_being_stored() -> None:
    index = index_of(None)
    first = admit(index, [A, B])
    assert isinstance(index.look_up([A, B], 2), Blocked)
    for entry in first.inserts:
        index.commit(entry)
    found = index.look_up([A, B], 1)
    assert isinstance(found, Admission)
    assert [entry.key for entry in found.hits] == [A]
