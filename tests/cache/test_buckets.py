"""The index of buckets: what is sealed, what goes, what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.cache.buckets import (
    Bucket,
    BucketAdmission,
    BucketEntry,
    BucketIndex,
    in_memory,
)
from pytest_kvcache.cache.index import Beside, Blocked
from tests.cache.literal import no_tree, prefix_tree
from tests.factories import PAGE, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def index(buckets: int = 2, blocks: int = 2) -> BucketIndex:
    return BucketIndex(
        buckets * blocks * PAGE, page_bytes=PAGE, block_bytes=PAGE, bucket_blocks=blocks
    )


def admitted(of: BucketIndex, names: str, prompt: int | None = None) -> BucketAdmission:
    found = of.admit([*map(key_of, names)], len(names) if prompt is None else prompt, PAGE)
    assert isinstance(found, BucketAdmission)
    return found


def stored(of: BucketIndex, names: str) -> BucketAdmission:
    """Admit, put, and write what is full."""
    found = admitted(of, names)
    for entry in found.inserts:
        assert isinstance(entry, BucketEntry)
        entry.put()
    of.release(found)
    of.deleted(found)
    for bucket in found.sealed:
        written(of, bucket)
    return found


def written(of: BucketIndex, bucket: Bucket) -> None:
    assert not bucket.awaited
    for entry in bucket.entries:
        of.commit(entry)


def names_of(buckets: Sequence[Bucket]) -> list[str]:
    return ["".join(e.key.decode()[-1] for e in bucket.entries) for bucket in buckets]


def test_a_bucket_is_sealed_by_the_block_that_fills_it() -> None:
    of = index()
    assert names_of(admitted(of, "a").sealed) == []
    assert names_of(admitted(of, "bcd").sealed) == ["ab", "cd"]
    assert of.used_bytes == 4 * PAGE


def test_the_oldest_bucket_makes_room_with_all_that_is_in_it_whatever_was_used() -> None:
    of = index()
    stored(of, "abcd")
    assert len(stored(of, "a").hits) == 1
    found = stored(of, "ef")
    assert (names_of(found.emptied), names_of(found.sealed)) == (["ab"], ["ef"])
    assert of.evictions == 2
    assert of.find([key_of("a"), key_of("c")])[0] is None


def test_what_a_request_finds_of_a_bucket_that_it_displaces_is_a_hit_all_the_same() -> None:
    of = index()
    stored(of, "abcd")
    found = admitted(of, "abef")
    assert [entry.key for entry in found.hits] == [key_of("a"), key_of("b")]
    assert names_of(found.emptied) == ["ab"]


def test_a_block_in_memory_is_a_hit_and_one_whose_data_are_awaited_is_waited_for() -> None:
    of = index()
    first = admitted(of, "a")
    (entry,) = first.inserts
    blocked = of.admit([key_of("a"), key_of("b")], 2, PAGE)
    assert isinstance(blocked, Blocked)
    assert blocked.entry is entry
    assert of.look_up([key_of("a")], 1) == blocked
    assert isinstance(entry, BucketEntry)
    entry.put()
    assert admitted(of, "ab").hits == [entry]
    assert in_memory(entry)


def test_a_bucket_that_is_read_or_not_written_yet_is_waited_for() -> None:
    of = index(buckets=1)
    first = admitted(of, "ab")
    for entry in first.inserts:
        assert isinstance(entry, BucketEntry)
        entry.put()
    assert isinstance(of.admit([key_of("c"), key_of("d")], 2, PAGE), Blocked)
    written(of, first.sealed[0])
    reader = of.look_up([key_of("b")], 1)
    assert isinstance(reader, BucketAdmission)
    blocked = of.admit([key_of("c"), key_of("d")], 2, PAGE)
    assert isinstance(blocked, Blocked)
    assert blocked.entry.key == key_of("b")
    of.release(reader)
    assert names_of(admitted(of, "cd").emptied) == ["ab"]


def test_a_request_stores_what_fits_and_no_more() -> None:
    of = index(buckets=2, blocks=2)
    found = admitted(of, "abcdefgh")
    assert names_of(found.sealed) == ["ab", "cd"]
    assert len(found.inserts) == 5  # one more is in memory
    assert of.used_bytes == 4 * PAGE


def test_what_was_not_written_is_given_up_and_takes_nothing() -> None:
    of = index()
    stored(of, "ab")
    admitted(of, "cde")
    of.give_up_reserved()
    assert (of.used_bytes, of.present_blocks) == (2 * PAGE, 2)


@pytest.mark.parametrize(
    ("keys", "prompt_blocks", "sizes", "beside", "said"),
    [
        ("aa", 2, PAGE, None, "repeat"),
        ("ab", 3, PAGE, None, "prompt_blocks is 3"),
        ("ab", 2, [PAGE, PAGE], None, "all blocks of buckets have"),
        ("ab", 2, PAGE + 1, None, "all blocks of buckets have"),
        ("ab", 2, PAGE, Beside([b"c"], PAGE, stores=False), "buckets hold none"),
    ],
)
def test_what_no_bucket_can_hold_is_refused(
    keys: str, prompt_blocks: int, sizes: int | list[int], beside: Beside | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        index().admit([*map(key_of, keys)], prompt_blocks, sizes, beside)


def test_a_capacity_without_room_for_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="it must hold a bucket of 2 blocks"):
        BucketIndex(PAGE, page_bytes=PAGE, block_bytes=PAGE, bucket_blocks=2)


def test_data_come_once() -> None:
    (entry,) = admitted(index(), "a").inserts
    assert isinstance(entry, BucketEntry)
    entry.put()
    with pytest.raises(ValueError, match="is put twice"):
        entry.put()


class LiteralBuckets:
    """The law, word by word: a list of lists."""

    def __init__(self, buckets: int, blocks: int) -> None:
        self.most, self.blocks = buckets, blocks
        self.open: list[bytes] = []
        self.sealed: list[list[bytes]] = []

    def serve(self, keys: Sequence[bytes], prompt_blocks: int) -> tuple[int, int]:
        """Return the hits, and the blocks that went."""
        there = {key for bucket in (self.open, *self.sealed) for key in bucket}
        hits, gone = 0, 0
        for key in keys[:prompt_blocks]:
            if key not in there:
                break
            hits += 1
        room = (self.most + 1) * self.blocks - 1 - len(self.open)
        for key in [key for key in keys if key not in there][:room]:
            self.open.append(key)
            if len(self.open) == self.blocks:
                if len(self.sealed) == self.most:
                    gone += len(self.sealed.pop(0))
                self.sealed.append(self.open)
                self.open = []
        return hits, gone


@given(
    requests=st.lists(st.tuples(prefix_tree | no_tree, st.integers(0, 9)), max_size=30),
    buckets=st.integers(1, 4),
    blocks=st.integers(1, 4),
)
def test_the_index_does_what_the_law_says(
    requests: list[tuple[list[bytes], int]], buckets: int, blocks: int
) -> None:
    of, literal = index(buckets, blocks), LiteralBuckets(buckets, blocks)
    for keys, most in requests:
        prompt_blocks = min(most, len(keys))
        found = of.admit(keys, prompt_blocks, PAGE)
        assert isinstance(found, BucketAdmission)
        hits, gone = literal.serve(keys, prompt_blocks)
        assert (len(found.hits), len(found.victims)) == (hits, gone)
        for entry in found.inserts:
            assert isinstance(entry, BucketEntry)
            entry.put()
        of.release(found)
        for bucket in found.sealed:
            written(of, bucket)
        assert of.used_bytes == sum(map(len, literal.sealed)) * PAGE <= buckets * blocks * PAGE
        assert of.present_bytes == of.used_bytes
        held = [key for bucket in (*literal.sealed, literal.open) for key in bucket]
        assert [entry is None for entry in of.find(held)] == [False] * of.used_blocks
    assert of.committed_blocks == of.present_blocks + of.evictions


@given(first=no_tree, second=no_tree)
def test_there_is_room_where_nothing_would_go(first: list[bytes], second: list[bytes]) -> None:
    of = index(buckets=2, blocks=3)
    for keys in (first, second):
        room, missing = of.has_room_for(keys, PAGE), of.find(keys).count(None)
        found = of.admit(keys, 0, PAGE)
        assert isinstance(found, BucketAdmission)
        if room:
            assert not found.victims
            assert len(found.inserts) == missing
        for entry in found.inserts:
            assert isinstance(entry, BucketEntry)
            entry.put()
        for bucket in found.sealed:
            written(of, bucket)
