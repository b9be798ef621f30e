from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pytest_kvcache.backends.posix.allocator import SlabAllocator, slab_count

GIB = 1 << 30
KEYS = st.sampled_from("abcdefgh")


class Owners(RuleBasedStateMachine):
    """An allocator beside the dict that it must agree with."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = SlabAllocator(0)
        self.owners: dict[str, int] = {}

    @initialize(total=st.integers(0, 6))
    def begin(self, total: int) -> None:
        self.allocator = SlabAllocator(total)

    @rule(key=KEYS)
    def allocate(self, key: str) -> None:
        extent = self.allocator.allocate(key)
        if key in self.owners:
            assert extent is not None
            assert extent.number == self.owners[key]
        elif len(self.owners) == self.allocator.total:
            assert extent is None
        else:
            assert extent is not None
            assert extent.number not in self.owners.values()
            assert extent.end_bytes == 0
            self.allocator.extend(extent, 7)
            self.owners[key] = extent.number

    @rule(key=KEYS)
    def release(self, key: str) -> None:
        assert self.allocator.release(key) == (key in self.owners)
        self.owners.pop(key, None)

    @invariant()
    def nothing_is_lost_or_owned_twice(self) -> None:
        allocator = self.allocator
        assert allocator.allocated == len(self.owners)
        assert allocator.allocated + allocator.free == allocator.total
        assert all(0 <= number < allocator.total for number in self.owners.values())
        assert len(set(self.owners.values())) == len(self.owners)
        for key, number in self.owners.items():
            found = allocator.find(key)
            assert found is not None
            assert (found.number, found.end_bytes) == (number, 7)


Owners.TestCase.settings = settings(deadline=None)
TestOwners = Owners.TestCase


def test_chunks_of_a_new_object_that_arrive_at_once_get_one_extent() -> None:
    for _ in range(50):
        allocator, barrier = SlabAllocator(8), threading.Barrier(8)

        def work(allocator: SlabAllocator = allocator, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            extent = allocator.allocate("ab")
            assert extent is not None
            return extent.number

        with ThreadPoolExecutor(8) as threads:
            numbers = [threads.submit(work) for _ in range(8)]
            assert {number.result() for number in numbers} == {0}
        assert (allocator.allocated, allocator.free) == (1, 7)


def test_threads_never_own_one_extent_together() -> None:
    allocator = SlabAllocator(12)

    def work(name: int) -> None:
        for number in range(2_000):
            key = f"{name}.{number}"
            extent = allocator.allocate(key)
            assert extent is not None
            allocator.extend(extent, name + 1)
            assert extent.end_bytes == name + 1  # somebody else's would be another
            assert allocator.release(key)

    with ThreadPoolExecutor(12) as threads:
        for done in [threads.submit(work, name) for name in range(12)]:
            done.result()
    assert (allocator.allocated, allocator.free) == (0, 12)


def test_what_was_freed_longest_ago_is_used_first() -> None:
    allocator = SlabAllocator(4)
    for key in ("a", "b", "c"):
        allocator.allocate(key)
    allocator.release("b")
    allocator.release("a")
    numbers = [extent.number for key in "defg" if (extent := allocator.allocate(key))]
    assert numbers == [3, 1, 0]


def test_an_extent_is_written_up_to_its_furthest_chunk() -> None:
    allocator = SlabAllocator(1)
    extent = allocator.allocate("a")
    assert extent is not None
    allocator.extend(extent, 300)
    allocator.extend(extent, 200)
    assert extent.end_bytes == 300


@pytest.mark.parametrize(
    ("extents", "extent_bytes", "count"),
    [
        (1, 4096, 1),
        (7, 4096, 7),
        (1_000_000, 4096, 8),
        (32 * 1024, 1 << 20, 8),
        (32 * 1024 + 1, 1 << 20, 9),
        (1 << 20, 1 << 20, 256),
        (1 << 30, 1 << 20, 256),
    ],
)
def test_slabs_are_several_and_bounded_as_long_as_files_suffice(
    extents: int, extent_bytes: int, count: int
) -> None:
    assert slab_count(extents, extent_bytes) == count
