"""What is stored and read of a model whose groups of layers keep different things."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.cache.index import CacheIndex
from pytest_kvcache.engine.payload import Payload
from pytest_kvcache.measure.service import Limits, ServiceBook
from pytest_kvcache.models import BlockPart, LayerGroup, ModelSpec, block_parts, read_bytes
from tests.factories import PAGE, Bookkeeper, Script, ask, key_of, name_of
from tests.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

FULL = LayerGroup(kind="full", layers=1, kv_heads=2, head_dim=1024)
SLIDING = LayerGroup(kind="sliding", layers=1, kv_heads=1, head_dim=1024, window_tokens=2)
STATE = LayerGroup(kind="state", layers=1, state_bytes=2 * PAGE + 1, state_heads=1)
HYBRID = ModelSpec(name="hybrid", layers=3, dtype="int8", groups=(FULL, SLIDING, STATE))
BLOCK_TOKENS = 2
PAGES = {0: 2, 1: 1, 2: 3}  # of each object: 2·2·1024·2, 2·1·1024·2 and 2·4096 + 1 bytes


class Kept(Bookkeeper):
    """Objects of several sizes, and what was read and written of each; one transfer each."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.written: dict[str, int] = {}

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        assert offset == 0
        self.written[name_of(key)] = len(buffer)
        self.object_bytes = len(buffer)
        super().put_from(key, offset, buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        self.reads[name_of(key)] += 1
        self.object_bytes = len(buffer)
        super().get_into(key, offset, buffer)

    def delete(self, key: str) -> None:
        self.object_bytes = self.written[name_of(key)]
        super().delete(key)


def parts() -> tuple[BlockPart, ...]:
    return block_parts(HYBRID, "block", BLOCK_TOKENS, 1, PAGE)


def rig_of(*turns: Sequence[str], capacity_blocks: int | None = None) -> tuple[Rig, Kept]:
    backend = Kept()
    script = Script([[ask(0, *blocks) for blocks in turns]])
    rig = Rig(
        script, backend, parts=parts(), objects_per_block=3, transfer_bytes=4 * PAGE,
        stored_bytes=3 * PAGE, capacity_blocks=capacity_blocks, block_tokens=BLOCK_TOKENS,
        payload=Payload(1, 4 * PAGE), verify="full",
    )  # fmt: skip
    rig.run()
    assert rig.loop.blocks.dispatchers[0].first_error is None
    assert backend.breaches == []
    return rig, backend


def test_a_block_is_stored_as_one_object_of_each_group_in_a_size_of_its_own() -> None:
    _rig, backend = rig_of("ab")
    assert backend.written == {
        f"{block}/{part}": pages * PAGE for block in "ab" for part, pages in PAGES.items()
    }


def test_all_of_full_attention_is_read_the_window_of_the_last_blocks_and_the_last_state() -> None:
    rig, backend = rig_of("abcd", "abcde")
    assert backend.reads == Counter(["a/0", "b/0", "c/0", "d/0", "d/1", "d/2"])
    counters = rig.loop.blocks.counters
    assert counters.requested_read_bytes == (4 * 2 + 1 + 3) * PAGE == read_bytes(parts(), 4)
    assert counters.requested_write_bytes == 5 * 6 * PAGE
    assert counters.requested_writes == 5 * 3
    assert counters.requested_transfers == 5 * 3 + (4 + 1 + 1)
    assert counters.distinct_reads == 4 + 1 + 1


def test_what_was_read_before_is_distinct_once_object_by_object() -> None:
    rig, backend = rig_of("ab", "abc", "abc", "abc", "a")
    # The state and the window of b, then of c, and at last of a; full attention of all three.
    assert backend.reads == Counter(
        {"a/0": 4, "b/0": 3, "c/0": 2, "b/1": 1, "b/2": 1, "c/1": 2, "c/2": 2, "a/1": 1, "a/2": 1}
    )
    assert rig.loop.blocks.counters.distinct_read_bytes == 3 * 6 * PAGE
    assert rig.loop.blocks.counters.distinct_reads == 3 * 3 == len(backend.reads)


def test_what_is_read_again_or_beside_the_prefix_is_read_with_all_its_objects() -> None:
    backend = Kept()
    chunk: dict[str, Any] = {"beside": (key_of("x"),), "stores_beside": True}
    turns = [ask(0, *"ab", rereads=1, **chunk), ask(0, *"abc", **chunk)]
    rig = Rig(
        Script([turns]), backend, parts=parts(), objects_per_block=3, transfer_bytes=4 * PAGE,
        stored_bytes=3 * PAGE, block_tokens=BLOCK_TOKENS,
        payload=Payload(1, 4 * PAGE), verify="full",
    )  # fmt: skip
    rig.run()
    assert backend.breaches == []
    again = {f"{block}/{part}": 1 for block in "ab" for part in PAGES}
    later = {"a/0": 1, "b/0": 1, "b/1": 1, "b/2": 1, "x/0": 1, "x/1": 1, "x/2": 1}
    assert backend.reads == Counter(again) + Counter(later)
    assert rig.loop.blocks.counters.distinct_read_bytes == 3 * 6 * PAGE


class Asked(ServiceBook):
    """Objectives, with the bytes that each answered request was given time for."""

    def __init__(self) -> None:
        super().__init__(Limits(of_class={"all": (1.0,) * 4}, ns_per_byte=1.0, unclassed="all"))
        self.read_bytes: list[int] = []

    def book(self, every: NDArray[np.void], *, began_inside: NDArray[np.bool_]) -> None:
        self.read_bytes += every["bytes"].tolist()
        super().book(every, began_inside=began_inside)


CHUNKED = LayerGroup(kind="chunked", layers=1, kv_heads=1, head_dim=1024, window_tokens=4)


@pytest.mark.parametrize(
    "groups", [[FULL], [SLIDING], [CHUNKED], [STATE], [FULL, SLIDING, CHUNKED, STATE]]
)
def test_an_objective_gives_time_for_the_bytes_that_are_read(groups: list[LayerGroup]) -> None:
    model = ModelSpec(name="any", layers=len(groups), dtype="int8", groups=tuple(groups))
    found, asked, backend = block_parts(model, "block", BLOCK_TOKENS, 1, PAGE), Asked(), Kept()
    turns = [
        ask(0, *"abc", beside=(key_of("x"),), stores_beside=True, rereads=2),
        ask(0, *"abcd", beside=(key_of("x"),)),
        ask(0, *"abcd"),
    ]
    rig = Rig(
        Script([turns]), backend, parts=found, objects_per_block=len(found),
        stored_bytes=3 * PAGE, transfer_bytes=4 * PAGE, block_tokens=BLOCK_TOKENS, service=asked,
        payload=Payload(1, 4 * PAGE), verify="full",
    )  # fmt: skip
    rig.run()
    assert len(asked.read_bytes) == 3
    assert sum(asked.read_bytes) == rig.sums()["read_bytes"] > 0


def test_a_block_is_evicted_with_all_its_objects() -> None:
    _rig, backend = rig_of("ab", "cd", capacity_blocks=2)
    assert {name_of(key) for key in backend.objects} == {f"{b}/{p}" for b in "cd" for p in PAGES}
    assert backend.counts["delete"] == 6


def test_a_model_with_a_window_alone_stores_one_object_and_reads_the_last_ones() -> None:
    backend = Kept()
    model = ModelSpec(name="slides", layers=1, dtype="int8", groups=(SLIDING,))
    rig = Rig(
        Script([[ask(0, *"abcd"), ask(0, *"abcd")]]), backend,
        parts=block_parts(model, "block", 1, 1, PAGE), transfer_bytes=PAGE, stored_bytes=PAGE,
        payload=Payload(1, PAGE), verify="full",
    )  # fmt: skip
    rig.run()
    assert backend.reads == Counter("cd")
    assert rig.loop.blocks.counters.requested_read_bytes == 2 * PAGE


def test_a_block_of_another_size_than_its_objects_have_is_refused() -> None:
    index = CacheIndex(None, page_bytes=PAGE, part_bytes=[part.object_bytes for part in parts()])
    assert index.padded_bytes(HYBRID.block_bytes(BLOCK_TOKENS, 1)) == 6 * PAGE
    with pytest.raises(ValueError, match="a block has 8192 bytes; it must have 20481"):
        index.padded_bytes(2 * PAGE)


@given(st.integers(0, 40), st.integers(1, 9))
def test_no_more_is_read_than_all_and_full_attention_is_read_whole(
    hit_blocks: int, block_tokens: int
) -> None:
    found = block_parts(HYBRID, "block", block_tokens, 1, PAGE)
    read = [part.read_blocks(hit_blocks) for part in found]
    assert read[0] == hit_blocks
    assert all(0 <= blocks <= hit_blocks for blocks in read)
    kept = min(hit_blocks * block_tokens, 2)
    assert kept <= read[1] * block_tokens < kept + block_tokens or not hit_blocks
    assert read[2] == (hit_blocks > 0)
