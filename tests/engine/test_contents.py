"""What must not pass for read: each of the ways in which a buffer may hold the right bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.index import BlockEntry
from pytest_kvcache.engine.contents import Contents
from pytest_kvcache.engine.operations import Operation
from pytest_kvcache.engine.payload import Payload, make_payload
from pytest_kvcache.ioengines.protocol import READ
from tests.factories import PAGE, key_of
from tests.rig import settings_of

PAGES = 8
SIZE = PAGES * PAGE
DATA = pytest.mark.parametrize("data", ["normal", "strict"])
EVERY_CHECK = pytest.mark.parametrize("verify", ["sample", "full"])


class Bench:
    """One read buffer and one for writing, and a device that transfers what the test says."""

    def __init__(self, data: str = "normal", verify: str = "sample") -> None:
        self.payload = make_payload(data, 1, SIZE, SIZE)
        self.contents = Contents(
            self.payload, settings_of(verify=verify, transfer_bytes=SIZE), reads=1, writes=1
        )

    def read(
        self, name: object, pages: int = PAGES, *, transferred: slice = slice(None), first: int = 0
    ) -> str | None:
        """Read an object's pages, of which only some bytes are really transferred."""
        operation = operation_of(name)
        view = self.contents.to_read(0, operation, first * PAGE, pages * PAGE)
        assert len(view) == pages * PAGE
        view[transferred] = self.stored(name, pages, first)[transferred]
        return self.contents.fault(0, operation, first * PAGE, pages * PAGE)

    def stored(self, name: object, pages: int, first: int = 0) -> bytes:
        buffer = self.payload.write_buffer()
        operation = operation_of(name)
        self.payload.stamp(buffer, pages * PAGE, operation.identity, first, SIZE)
        return bytes(buffer.view[: pages * PAGE])

    def skip_the_thorough_one(self) -> None:
        assert self.read("skipped") is None


def operation_of(name: object) -> Operation:
    entry = BlockEntry(key_of(name), 1, 1, SIZE, SIZE)
    return Operation(READ, entry, None, None, 0, SIZE, SIZE, 1, READ)


NOTHING = slice(0, 0)


@DATA
@EVERY_CHECK
def test_what_was_read_passes_again_and_again(data: str, verify: str) -> None:
    bench = Bench(data, verify)
    assert [bench.read(name) for name in "aabbaba"] == [None] * 7
    assert (bench.contents.checked, bench.contents.corrupt) == (7, 0)


@DATA
@EVERY_CHECK
def test_the_same_object_does_not_pass_unread(data: str, verify: str) -> None:
    bench = Bench(data, verify)
    bench.skip_the_thorough_one()
    assert bench.read("a") is None
    assert "was not read" in str(bench.read("a", transferred=NOTHING))


@DATA
def test_a_copy_of_the_object_under_another_key_does_not_pass_unread(data: str) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    first, copy = operation_of("a").entry, BlockEntry(key_of("a"), 2, 1, SIZE, SIZE)
    copy.hold_what(first)
    assert copy.object_key != first.object_key
    assert bench.read("a") is None
    operation = Operation(READ, copy, None, None, 0, SIZE, SIZE, 1, READ)
    bench.contents.to_read(0, operation, 0, SIZE)
    assert "was not read" in str(bench.contents.fault(0, operation, 0, SIZE))


@DATA
@pytest.mark.parametrize("between", [1, 2, 7])
def test_the_rest_of_a_longer_read_does_not_pass_behind_a_shorter_one(
    data: str, between: int
) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    assert bench.read("a") is None
    for shorter in range(between, 0, -1):
        assert bench.read("b", shorter) is None
    assert bench.read("a", transferred=slice(0, between * PAGE)) is not None


@DATA
def test_a_read_of_another_length_does_not_pass_unread(data: str) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    assert bench.read("a", 4) is None
    assert bench.read("a", 8, transferred=slice(4 * PAGE, None)) is not None
    assert bench.read("a", 8) is None
    assert bench.read("a", 2, transferred=NOTHING) is not None


@DATA
def test_what_is_written_is_in_no_buffer_that_is_read_into(data: str) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    bench.contents.to_write(1, operation_of("a"), 0, SIZE)
    assert bench.read("a", transferred=NOTHING) is not None


@DATA
@pytest.mark.parametrize("how", ["failed", "corrupt"])
def test_a_read_that_did_not_end_well_hides_nothing(data: str, how: str) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    assert bench.read("a") is None
    if how == "failed":  # or was taken back before it began
        bench.contents.to_read(0, operation_of("b"), 0, SIZE)
        bench.contents.failed(0)
    else:
        assert bench.read("b", transferred=NOTHING) is not None
        assert bench.read("b", 1) is None
    assert bench.read("a", transferred=slice(0, PAGE if how == "corrupt" else 0)) is not None


@DATA
@EVERY_CHECK
def test_a_sector_that_was_not_read_is_found_where_bytes_are_compared(
    data: str, verify: str
) -> None:
    # The first read is compared. Normal data of all objects differ in stamps only.
    bench = Bench(data, verify)
    operation = operation_of("a")
    bench.contents._buffers[0].view[:] = bench.stored("b", PAGES)
    view = bench.contents.to_read(0, operation, 0, SIZE)
    right = bench.stored("a", PAGES)
    view[: 5 * 512], view[6 * 512 :] = right[: 5 * 512], right[6 * 512 :]
    assert bench.contents.fault(0, operation, 0, SIZE) is not None


@DATA
def test_the_same_page_of_the_object_elsewhere_is_another_transfer(data: str) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    assert bench.read("a", 4, first=0) is None
    assert bench.read("a", 4, first=4, transferred=NOTHING) is not None


def test_a_buffer_is_spoiled_only_where_it_may_hold_what_is_asked_for() -> None:
    spoiled: list[int] = []

    class Spying(Payload):
        def poison(self, buffer: object, length: int, **how: object) -> None:
            if not how.get("thorough"):
                spoiled.append(length)
            super().poison(buffer, length, **how)  # type: ignore[arg-type]  # as it comes

    bench = Bench()
    bench.contents._payload = Spying(1, SIZE, SIZE)
    bench.skip_the_thorough_one()
    for name in "abcabcc":
        assert bench.read(name) is None
    assert spoiled == [SIZE]


READS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, PAGES), st.integers(0, PAGES)), max_size=30
)


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(reads=READS, data=st.sampled_from(["normal", "strict"]))
def test_whatever_was_read_before_a_page_that_was_not_transferred_is_found(
    reads: list[tuple[str, int, int]], data: str
) -> None:
    bench = Bench(data)
    bench.skip_the_thorough_one()
    for name, pages, transferred in reads:
        found = bench.read(name, pages, transferred=slice(0, transferred * PAGE))
        assert (found is None) == (transferred >= pages)
