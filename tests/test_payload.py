from __future__ import annotations

import mmap
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.payload import ChunkBuffer, Payload

PAGE = 4096
CHUNK = 8 * PAGE
TAG = 0xFEED_0001
PAYLOAD = Payload(42, CHUNK)

tags = st.integers(0, 2**64 - 1)
first_pages = st.integers(0, 2**40)
page_counts = st.integers(1, CHUNK // PAGE)


def stamped(tag: int = TAG, first_page: int = 0, length: int = CHUNK) -> bytes:
    buffer = PAYLOAD.write_buffer()
    PAYLOAD.stamp(buffer, length, tag, first_page)
    return bytes(buffer.view[:length])


def read(content: bytes, *, thorough: bool = True) -> ChunkBuffer:
    buffer = PAYLOAD.read_buffer()
    PAYLOAD.poison(buffer, CHUNK, thorough=thorough)
    buffer.view[: len(content)] = content
    return buffer


def verdict(content: bytes, *, thorough: bool, tag: int = TAG, first_page: int = 0) -> str:
    buffer = read(content)
    problem = PAYLOAD.verify(buffer, len(content), tag, first_page, thorough=thorough)
    return problem or ""


@given(tag=tags, first_page=first_pages, pages=page_counts, thorough=st.booleans())
def test_what_was_stamped_verifies(
    tag: int, first_page: int, pages: int, *, thorough: bool
) -> None:
    content = stamped(tag, first_page, pages * PAGE)
    assert not verdict(content, tag=tag, first_page=first_page, thorough=thorough)


@settings(max_examples=300)
@given(bit=st.integers(0, CHUNK * 8 - 1))
def test_one_flipped_bit_anywhere_is_found(bit: int) -> None:
    content = bytearray(stamped(first_page=32))
    content[bit // 8] ^= 1 << bit % 8
    problem = verdict(bytes(content), thorough=True, first_page=32)
    page, byte = divmod(bit // 8, PAGE)
    assert f"page {32 + page} of" in problem
    if byte >= 16:
        assert f"differs in 1 bytes, the first at byte {byte} of the page" in problem
    else:
        assert "has the stamp of" in problem


def test_every_bit_of_a_page_counts() -> None:
    page = stamped(length=PAGE)
    for byte in range(0, PAGE, 7):
        content = bytearray(page)
        content[byte] ^= 0x10
        assert verdict(bytes(content), thorough=True)


@pytest.mark.parametrize("thorough", [True, False])
@given(tag=tags, other=tags)
def test_a_swapped_object_is_found(tag: int, other: int, *, thorough: bool) -> None:
    problem = verdict(stamped(other), tag=tag, thorough=thorough)
    if tag == other:
        assert not problem
    else:
        assert f"page 0 of object {tag:#018x}" in problem


@pytest.mark.parametrize("thorough", [True, False])
def test_a_stale_object_is_named(*, thorough: bool) -> None:
    problem = verdict(stamped(0xBAD), thorough=thorough)
    assert problem == (
        "page 0 of object 0x00000000feed0001 has the stamp of page 0 of object 0x0000000000000bad"
    )


@pytest.mark.parametrize("thorough", [True, False])
def test_another_chunk_of_the_same_object_is_found(*, thorough: bool) -> None:
    problem = verdict(stamped(first_page=8), thorough=thorough)
    assert "has the stamp of page 8 of object 0x00000000feed0001" in problem


@pytest.mark.parametrize("thorough", [True, False])
def test_an_object_whose_second_half_is_zero_is_found(*, thorough: bool) -> None:
    content = stamped()[: CHUNK // 2] + bytes(CHUNK // 2)
    problem = verdict(content, thorough=thorough)
    assert problem.endswith("has no stamp: it is zero")
    assert problem.startswith("page 4 of" if thorough else "page 7 of")


@pytest.mark.parametrize("thorough", [True, False])
def test_an_object_whose_second_half_is_older_is_found(*, thorough: bool) -> None:
    content = stamped()[: CHUNK // 2] + stamped(0xBAD)[CHUNK // 2 :]
    assert "of object 0x0000000000000bad" in verdict(content, thorough=thorough)


def test_a_page_torn_below_its_stamp_is_found() -> None:
    content = bytearray(stamped())
    content[PAGE + 512 : 2 * PAGE] = bytes(PAGE - 512)
    assert "page 1 of object" in verdict(bytes(content), thorough=True)
    assert "the first at byte 512 of the page" in verdict(bytes(content), thorough=True)


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("missing", [0, 7])
def test_what_an_earlier_read_left_does_not_pass(missing: int, *, thorough: bool) -> None:
    buffer = PAYLOAD.read_buffer()
    buffer.view[:] = stamped()
    PAYLOAD.poison(buffer, CHUNK, thorough=thorough)
    for page in range(8):
        if page != missing:
            start = page * PAGE
            buffer.view[start : start + PAGE] = stamped()[start : start + PAGE]
    problem = PAYLOAD.verify(buffer, CHUNK, TAG, 0, thorough=thorough)
    assert problem is not None
    assert f"page {missing} of" in problem
    assert "was not read" in problem


def test_thorough_poison_spoils_every_sector() -> None:
    buffer = PAYLOAD.read_buffer()
    buffer.view[:] = stamped()
    PAYLOAD.poison(buffer, CHUNK, thorough=True)
    content = stamped()
    for sector in range(0, CHUNK, 512):
        assert bytes(buffer.view[sector : sector + 512]) != content[sector : sector + 512]


@given(pages=page_counts)
def test_poison_and_verify_leave_the_rest_of_the_buffer_alone(pages: int) -> None:
    buffer = PAYLOAD.read_buffer()
    PAYLOAD.poison(buffer, pages * PAGE, thorough=True)
    assert not any(buffer.view[pages * PAGE :])
    buffer.view[: pages * PAGE] = stamped(length=pages * PAGE)
    for thorough in (True, False):
        assert PAYLOAD.verify(buffer, pages * PAGE, TAG, 0, thorough=thorough) is None


def test_a_corrupt_read_can_not_leak_into_a_write() -> None:
    write, got = PAYLOAD.write_buffer(), PAYLOAD.read_buffer()
    got.view[:] = b"\xff" * CHUNK
    PAYLOAD.stamp(write, CHUNK, TAG, 0)
    assert bytes(write.view) == stamped()


def test_a_write_buffer_serves_one_object_after_another() -> None:
    buffer = PAYLOAD.write_buffer()
    PAYLOAD.stamp(buffer, CHUNK, 1, 1000)
    PAYLOAD.stamp(buffer, 2 * PAGE, 2, 5)
    assert bytes(buffer.view[: 2 * PAGE]) == stamped(2, 5, 2 * PAGE)


def test_data_does_not_compress() -> None:
    content = b"".join(stamped(tag, page, CHUNK) for tag in (1, 2) for page in (0, 8))
    assert len(zlib.compress(content[:CHUNK], 9)) / CHUNK > 0.99
    for start in range(0, len(content), PAGE):
        page = content[start : start + PAGE]
        assert len(zlib.compress(page, 9)) / PAGE > 0.99


def test_no_two_pages_of_many_objects_are_equal() -> None:
    seen = {
        hash(stamped(tag, chunk * 8)[start : start + PAGE])
        for tag in range(300)
        for chunk in range(4)
        for start in range(0, CHUNK, PAGE)
    }
    assert len(seen) == 300 * 4 * 8


def test_the_seed_decides_the_content() -> None:
    same, other = Payload(42, CHUNK), Payload(43, CHUNK)
    assert bytes(same.write_buffer().view) == bytes(PAYLOAD.write_buffer().view)
    assert bytes(other.write_buffer().view) != bytes(PAYLOAD.write_buffer().view)


def test_the_content_of_a_seed_is_the_same_on_every_machine() -> None:
    base = bytes(Payload(42, PAGE).write_buffer().view)
    assert zlib.crc32(base) == 0xCE7175E6


@pytest.mark.parametrize("kind", ["write_buffer", "read_buffer"])
def test_buffers_are_aligned_for_direct_io(kind: str) -> None:
    buffer = PAYLOAD.write_buffer() if kind == "write_buffer" else PAYLOAD.read_buffer()
    address = np.frombuffer(buffer.view, np.uint8).__array_interface__["data"][0]
    assert address % mmap.PAGESIZE == 0
    assert len(buffer.view) == CHUNK


@pytest.mark.parametrize("length", [0, -PAGE, PAGE - 1, PAGE + 512, CHUNK + PAGE])
def test_a_length_that_is_not_whole_pages_is_refused(length: int) -> None:
    buffer = PAYLOAD.write_buffer()
    with pytest.raises(ValueError, match=f"length is {length}; it must be a multiple of 4096"):
        PAYLOAD.stamp(buffer, length, TAG, 0)
    with pytest.raises(ValueError, match="length is"):
        PAYLOAD.poison(buffer, length)
    with pytest.raises(ValueError, match="length is"):
        PAYLOAD.verify(buffer, length, TAG, 0, thorough=False)


@pytest.mark.parametrize("chunk_bytes", [0, 1000, PAGE + 1])
def test_a_chunk_that_is_not_whole_pages_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_bytes is {chunk_bytes}; it must be a multiple"):
        Payload(1, chunk_bytes)
