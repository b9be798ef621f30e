from __future__ import annotations

import mmap
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.identity import HEAD_BYTES, Identity
from pytest_kvcache.engine.payload import (
    ChunkBuffer,
    Payload,
    StrictPayload,
    _all_mixed,
    _mixed,
    _unmixed,
    make_payload,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

PAGE, SECTOR = 4096, 512
CHUNK = 8 * PAGE
OBJECT_BYTES = 4 * CHUNK
NORMAL = Payload(42, CHUNK, OBJECT_BYTES)
STRICT = StrictPayload(42, CHUNK, OBJECT_BYTES)
BOTH = pytest.mark.parametrize("payload", [NORMAL, STRICT], ids=["normal", "strict"])
EITHER = pytest.mark.parametrize("thorough", [True, False], ids=["thorough", "stamps"])

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
OBJECT = Identity(KEY, 5)

identities = st.builds(
    Identity,
    key=st.binary(min_size=16, max_size=16),
    version=st.integers(0, 2**40),
    part=st.integers(0, 200),
    origin=st.just(0),
)
first_pages = st.one_of(st.just(0), st.integers(0, 2**30))
page_counts = st.integers(1, CHUNK // PAGE)


def stamped(
    payload: Payload, identity: Identity = OBJECT, first_page: int = 0, length: int = CHUNK
) -> bytes:
    buffer = payload.write_buffer()
    payload.stamp(buffer, length, identity, first_page)
    return bytes(buffer.view[:length])


def verdict(
    payload: Payload,
    content: bytes,
    *,
    thorough: bool,
    identity: Identity = OBJECT,
    first_page: int = 0,
) -> str:
    """What is said of a content that was read; empty: it is right."""
    buffer = payload.read_buffer()
    payload.poison(buffer, CHUNK, thorough=thorough)
    buffer.view[: len(content)] = content
    return payload.verify(buffer, len(content), identity, first_page, thorough=thorough) or ""


# -- what is right -------------------------------------------------------------------------


@pytest.mark.thorough
@BOTH
@EITHER
@given(identity=identities, first_page=first_pages, pages=page_counts)
def test_what_was_stamped_verifies(
    payload: Payload, identity: Identity, first_page: int, pages: int, *, thorough: bool
) -> None:
    content = stamped(payload, identity, first_page, pages * PAGE)
    assert not verdict(
        payload, content, identity=identity, first_page=first_page, thorough=thorough
    )


@pytest.mark.thorough
@BOTH
@given(
    puts=st.lists(
        st.tuples(identities, st.sampled_from([0, 8, 16, 24]), page_counts), min_size=1, max_size=6
    )
)
def test_a_write_buffer_serves_one_transfer_after_another(
    payload: Payload, puts: list[tuple[Identity, int, int]]
) -> None:
    buffer = payload.write_buffer()
    for identity, first_page, pages in puts:
        length = pages * PAGE
        payload.stamp(buffer, length, identity, first_page)
        assert bytes(buffer.view[:length]) == stamped(payload, identity, first_page, length)


# As halves of numpy's 16-byte number these are NaNs, signalling ones too, and infinities.
ODD_TAGS = (0x7FF0_0000_0000_0001, 0xFFF7_FFFF_FFFF_FFFF, 0x7FF8_0000_0000_0001, 0x7FF0 << 48, 0)


@pytest.mark.parametrize("tag", ODD_TAGS, ids=hex)
def test_a_stamp_is_stored_bit_by_bit_whatever_number_it_looks_like(tag: int) -> None:
    first = NORMAL.write_buffer()
    NORMAL.stamp(first, PAGE, Identity(bytes(16), 0), 0)
    seed_tag = int(first.words[0])  # of the tag 0: the seed id
    wanted = Identity((tag ^ seed_tag).to_bytes(16, "little"), 0)
    assert wanted.tag == tag ^ seed_tag
    buffer = NORMAL.write_buffer()
    NORMAL.stamp(buffer, CHUNK, wanted, 8)
    assert buffer.words[:: PAGE // 8].tolist() == [tag] * 8
    assert buffer.words[1 :: PAGE // 8].tolist() == list(range(8, 16))
    assert NORMAL.verify(buffer, CHUNK, wanted, 8, thorough=False) is None


@BOTH
def test_a_part_of_a_chunk_has_its_stamps(payload: Payload) -> None:
    content = stamped(payload, first_page=8)
    part = content[2 * PAGE : 5 * PAGE]
    assert not verdict(payload, part, first_page=10, thorough=False)


@BOTH
def test_a_corrupt_read_can_not_leak_into_a_write(payload: Payload) -> None:
    write = payload.write_buffer()
    got = payload.read_buffer(write)
    got.view[:] = b"\xff" * CHUNK
    assert payload.verify(got, CHUNK, Identity(OTHER_KEY, 1), 8, thorough=True)
    payload.stamp(write, CHUNK, OBJECT, 0)
    assert bytes(write.view) == stamped(payload)


# -- what is wrong -------------------------------------------------------------------------


@BOTH
@settings(max_examples=300)
@given(bit=st.integers(0, CHUNK * 8 - 1), first_page=st.sampled_from([0, 32]))
def test_one_flipped_bit_anywhere_is_found(payload: Payload, bit: int, first_page: int) -> None:
    content = bytearray(stamped(payload, first_page=first_page))
    content[bit // 8] ^= 1 << bit % 8
    problem = verdict(payload, bytes(content), thorough=True, first_page=first_page)
    page, byte = divmod(bit // 8, PAGE)
    assert f"page {first_page + page} of object {OBJECT}" in problem
    stamp_or_head = byte % PAGE < 16 if payload is NORMAL else byte % SECTOR < 8
    stamp_or_head |= not first_page and not page and byte < HEAD_BYTES
    if not stamp_or_head:
        assert f"differs in 1 bytes, the first at byte {byte} of the page" in problem


@BOTH
@given(bit=st.integers(128, HEAD_BYTES * 8 - 1))
def test_a_flipped_bit_of_the_head_is_found_where_all_bytes_are_compared(
    payload: Payload, bit: int
) -> None:
    content = bytearray(stamped(payload, length=PAGE))
    content[bit // 8] ^= 1 << bit % 8
    assert verdict(payload, bytes(content), thorough=True) == (
        f"page 0 of object {OBJECT} has a damaged head: its checksum is not that of what it says"
    )


@BOTH
@EITHER
@pytest.mark.parametrize("pages", [1, 4, 5, 8])
@pytest.mark.parametrize("first_page", [0, 8])
def test_one_wrong_stamp_is_always_found(
    payload: Payload, pages: int, first_page: int, *, thorough: bool
) -> None:
    unit = PAGE if payload is NORMAL else SECTOR
    right = stamped(payload, first_page=first_page, length=pages * PAGE)
    for at in range(0, pages * PAGE, unit):
        for byte in (at, at + 8) if payload is NORMAL else (at, at + 7):
            content = bytearray(right)
            content[byte] ^= 1
            problem = verdict(payload, bytes(content), first_page=first_page, thorough=thorough)
            assert f"page {first_page + at // PAGE} of object {OBJECT}" in problem


@BOTH
@EITHER
@given(identity=identities, other=identities, first_page=st.sampled_from([0, 8]))
def test_a_swapped_object_is_found(
    payload: Payload, identity: Identity, other: Identity, first_page: int, *, thorough: bool
) -> None:
    content = stamped(payload, other, first_page)
    problem = verdict(payload, content, identity=identity, first_page=first_page, thorough=thorough)
    assert bool(problem) == (identity != other)


STALE = Identity(KEY, 3)
WHOSE = [
    (STALE, f"object {STALE}: it is stale, an older version of the key"),
    (Identity(OTHER_KEY, 5), f"object {OTHER_KEY.hex()}.5: it was swapped for another one"),
    (Identity(KEY, 5, 2), f"object {KEY.hex()}.5 (part 2): it is another part of the block"),
]


@BOTH
@EITHER
@pytest.mark.parametrize(("other", "whose"), WHOSE, ids=["stale", "swapped", "part"])
def test_the_head_tells_whose_object_was_read(
    payload: Payload, other: Identity, whose: str, *, thorough: bool
) -> None:
    problem = verdict(payload, stamped(payload, other), thorough=thorough)
    assert problem == f"page 0 of object {OBJECT} has the stamp of page 0 of {whose}"


@BOTH
@EITHER
@pytest.mark.parametrize("pages", [1, 8])
def test_the_same_object_of_another_rank_trial_or_run_is_found(
    payload: Payload, pages: int, *, thorough: bool
) -> None:
    foreign = type(payload)(43, CHUNK, OBJECT_BYTES)
    problem = verdict(payload, stamped(foreign, length=pages * PAGE), thorough=thorough)
    whose = f"object {OBJECT} of another rank, trial or run"
    assert problem == f"page 0 of object {OBJECT} has the stamp of page 0 of {whose}"
    content = stamped(foreign, first_page=8, length=pages * PAGE)
    problem = verdict(payload, content, first_page=8, thorough=thorough)
    assert problem.endswith("of another object")


@BOTH
def test_an_object_of_another_length_is_found_where_all_bytes_are_compared(
    payload: Payload,
) -> None:
    shorter = type(payload)(42, CHUNK, CHUNK)
    problem = verdict(payload, stamped(shorter), thorough=True)
    assert problem.endswith(f"of an object of {CHUNK} bytes, not {OBJECT_BYTES}")


@EITHER
def test_a_later_chunk_tells_a_stale_object_too(*, thorough: bool) -> None:
    content = stamped(NORMAL, STALE, first_page=8)
    problem = verdict(NORMAL, content, first_page=8, thorough=thorough)
    assert problem == f"page 8 of object {OBJECT} has the stamp of page 8 of {WHOSE[0][1]}"
    content = stamped(STRICT, STALE, first_page=8)
    problem = verdict(STRICT, content, first_page=8, thorough=thorough)
    place = "sector 0 of page 8 of"
    assert problem == f"{place} object {OBJECT} has the stamp of {place} {WHOSE[0][1]}"


@BOTH
@EITHER
def test_another_chunk_of_the_same_object_is_found(payload: Payload, *, thorough: bool) -> None:
    problem = verdict(payload, stamped(payload, first_page=8), thorough=thorough)
    assert problem.endswith("page 8 of the same object")


@BOTH
@EITHER
@pytest.mark.parametrize("page", range(1, 8))
def test_an_object_whose_tail_is_zero_is_found(
    payload: Payload, page: int, *, thorough: bool
) -> None:
    content = stamped(payload)[: page * PAGE] + bytes(CHUNK - page * PAGE)
    problem = verdict(payload, content, thorough=thorough)
    assert problem.endswith(f"page {page} of object {OBJECT} has no stamp: it is zero")


@BOTH
@EITHER
@pytest.mark.parametrize("page", range(1, 8))
def test_an_object_whose_tail_is_older_is_found(
    payload: Payload, page: int, *, thorough: bool
) -> None:
    at = page * PAGE
    content = stamped(payload)[:at] + stamped(payload, STALE)[at:]
    problem = verdict(payload, content, thorough=thorough)
    assert f"page {page} of object {OBJECT} has the stamp of " in problem
    assert "it is stale" in problem


@EITHER
@pytest.mark.parametrize("sector", range(1, 64))
def test_strict_data_that_is_torn_at_a_sector_is_always_found(
    sector: int, *, thorough: bool
) -> None:
    at = sector * SECTOR
    for tail in (bytes(CHUNK - at), stamped(STRICT, STALE)[at:]):
        problem = verdict(STRICT, stamped(STRICT)[:at] + tail, thorough=thorough)
        assert f"sector {sector % 8} of page {sector // 8} of object {OBJECT} has" in problem


def test_normal_data_that_is_torn_within_a_page_is_found_by_the_thorough_check_only() -> None:
    content = stamped(NORMAL)[: -PAGE + SECTOR] + bytes(PAGE - SECTOR)
    assert not verdict(NORMAL, content, thorough=False)
    assert "the first at byte 512 of the page" in verdict(NORMAL, content, thorough=True)


# -- what an earlier read left -------------------------------------------------------------


@BOTH
@EITHER
@pytest.mark.parametrize("missing", range(8))
def test_what_an_earlier_read_left_does_not_pass(
    payload: Payload, missing: int, *, thorough: bool
) -> None:
    buffer, content = payload.read_buffer(), stamped(payload)
    buffer.view[:] = content
    payload.poison(buffer, CHUNK, thorough=thorough)
    for page in range(8):
        if page != missing:
            start = page * PAGE
            buffer.view[start : start + PAGE] = content[start : start + PAGE]
    problem = payload.verify(buffer, CHUNK, OBJECT, 0, thorough=thorough)
    assert problem is not None
    assert f"page {missing} of object {OBJECT} was not read" in problem


@BOTH
def test_thorough_poison_spoils_every_sector(payload: Payload) -> None:
    buffer, content = payload.read_buffer(), stamped(payload)
    buffer.view[:] = content
    payload.poison(buffer, CHUNK, thorough=True)
    for sector in range(0, CHUNK, SECTOR):
        assert bytes(buffer.view[sector : sector + SECTOR]) != content[sector : sector + SECTOR]


@BOTH
@given(pages=page_counts)
def test_poison_and_verify_leave_the_rest_of_the_buffer_alone(payload: Payload, pages: int) -> None:
    buffer = payload.read_buffer()
    payload.poison(buffer, pages * PAGE, thorough=True)
    assert not any(buffer.view[pages * PAGE :])
    buffer.view[: pages * PAGE] = stamped(payload, length=pages * PAGE)
    for thorough in (True, False):
        assert payload.verify(buffer, pages * PAGE, OBJECT, 0, thorough=thorough) is None


# -- what storage could save ---------------------------------------------------------------


def units(content: bytes, size: int) -> Iterator[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))


@BOTH
def test_data_does_not_compress(payload: Payload) -> None:
    content = b"".join(
        stamped(payload, Identity(KEY, number), page) for number in (1, 2) for page in (0, 8)
    )
    for size in (CHUNK, PAGE):
        for part in units(content, size):
            assert len(zlib.compress(part, 9)) / size > 0.99


def test_many_objects_of_strict_data_do_not_compress_together() -> None:
    small = StrictPayload(1, PAGE)  # several fit into zlib's window
    content = b"".join(stamped(small, Identity(KEY, n), length=PAGE) for n in range(64))
    heads = 1 - HEAD_BYTES / PAGE  # what identifies an object is in the clear
    assert len(zlib.compress(content, 9)) / len(content) > heads - 0.001


@pytest.mark.parametrize(
    ("payload", "unit"), [(NORMAL, PAGE), (STRICT, SECTOR)], ids=["normal", "strict"]
)
def test_no_two_units_of_many_objects_are_equal(payload: Payload, unit: int) -> None:
    seen = {
        part
        for number in range(60)
        for chunk in range(4)
        for part in units(stamped(payload, Identity(KEY, number), chunk * 8), unit)
    }
    assert len(seen) == 60 * 4 * CHUNK // unit


ONE_MIB = 1 << 20
PIECES = StrictPayload(42, ONE_MIB, 32 * ONE_MIB)  # four pieces a chunk


def words(content: bytes) -> npt.NDArray[np.uint64]:
    return np.frombuffer(content, "<u8")


@given(st.integers(0, 2**64 - 1))
def test_a_key_leads_back_to_what_it_was_made_of(number: int) -> None:
    assert _unmixed(_mixed(number)) == number
    assert int(_all_mixed(np.array([number], "<u8"))[0]) == _mixed(number)


@given(one=identities, other=identities, first_page=st.sampled_from([0, 8, 16, 8000]))
def test_strict_data_of_two_objects_shares_no_word_at_equal_places(
    one: Identity, other: Identity, first_page: int
) -> None:
    below = HEAD_BYTES // 8 if first_page == 0 else 0
    first, second = (words(stamped(STRICT, each, first_page))[below:] for each in (one, other))
    assert bool((first == second).any()) == (one.tag == other.tag)


@given(identity=identities)
def test_strict_data_of_two_chunks_of_an_object_shares_no_word_at_equal_places(
    identity: Identity,
) -> None:
    first, second = (words(stamped(STRICT, identity, page)) for page in (0, 8))
    assert not (first == second).any()


@settings(deadline=None, max_examples=20)
@given(one=identities, other=identities)
def test_no_two_pieces_of_strict_data_share_a_word_at_equal_places(
    one: Identity, other: Identity
) -> None:
    parts = [
        piece[HEAD_BYTES // 8 :]
        for identity in {one, other}
        for page in (0, 256)
        for piece in words(stamped(PIECES, identity, page, ONE_MIB)).reshape(4, -1)
    ]
    for at, first in enumerate(parts):
        assert not any((first == second).any() for second in parts[:at])


@settings(deadline=None, max_examples=30)
@given(identity=identities, begin=st.integers(0, 255), pages=st.integers(1, 256))
def test_a_page_of_strict_data_is_the_same_in_every_transfer_that_holds_it(
    identity: Identity, begin: int, pages: int
) -> None:
    pages = min(pages, 256 - begin)
    whole = stamped(PIECES, identity, 256, ONE_MIB)
    part = stamped(PIECES, identity, 256 + begin, pages * PAGE)
    assert part == whole[begin * PAGE : (begin + pages) * PAGE]
    assert not verdict(PIECES, part, identity=identity, first_page=256 + begin, thorough=False)


def test_a_strict_sector_of_another_place_of_the_object_is_told_from_which() -> None:
    content = bytearray(stamped(PIECES, OBJECT, 256, ONE_MIB))
    content[5 * SECTOR : 6 * SECTOR] = stamped(PIECES, OBJECT, 512 + 70, PAGE)[:SECTOR]
    assert verdict(PIECES, bytes(content), first_page=256, thorough=False) == (
        f"sector 5 of page 256 of object {OBJECT} has the stamp of sector 0 of page 582 of the"
        " same object"
    )


def reduced(content: bytes, *command: str) -> float:
    """What is left of the content, by a compressor of this machine."""
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], input=content, capture_output=True, check=True)
    return len(done.stdout) / len(content)


COMPRESSORS = (
    ("zstd", "-3", "--long=27", "-c"),
    ("zstd", "-9", "--long=27", "-c"),
    ("xz", "-1", "-c"),
    ("lz4", "-9", "-c"),
)


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMPRESSORS, ids=lambda command: "".join(command[:2]))
@pytest.mark.parametrize("size", [64 << 10, 512 << 10, 3 * ONE_MIB], ids=["64K", "512K", "3M"])
def test_no_window_however_long_reduces_objects_of_strict_data(
    size: int, command: tuple[str, ...]
) -> None:
    payload = make_payload("strict", 42, min(size, ONE_MIB), size)
    content = b"".join(
        stamped(payload, Identity(KEY, number), at // PAGE, min(size, ONE_MIB))
        for number in range(4)
        for at in range(0, size, ONE_MIB)
    )
    assert len(content) == 4 * size
    assert reduced(content, *command) > 0.999


def test_a_long_window_reduces_objects_of_normal_data() -> None:
    payload = make_payload("normal", 42, ONE_MIB, ONE_MIB)
    content = b"".join(stamped(payload, Identity(KEY, n), 0, ONE_MIB) for n in range(4))
    assert reduced(content, "zstd", "-3", "--long=27", "-c") < 0.35


@BOTH
def test_the_seed_decides_the_content(payload: Payload) -> None:
    same, other = (type(payload)(seed, CHUNK, OBJECT_BYTES) for seed in (42, 43))
    assert stamped(same) == stamped(payload)
    assert stamped(other) != stamped(payload)


@pytest.mark.parametrize(
    ("data", "checksum"), [("normal", 0x1A3B1F5D), ("strict", 0x42513CBB)], ids=["normal", "strict"]
)
def test_the_content_of_a_seed_is_the_same_on_every_machine(data: str, checksum: int) -> None:
    payload = make_payload(data, 42, PAGE, PAGE)
    content = stamped(payload, length=PAGE) + stamped(payload, first_page=1, length=PAGE)
    assert zlib.crc32(content) == checksum


# -- buffers and lengths -------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["write_buffer", "read_buffer"])
def test_buffers_are_aligned_for_direct_io(payload: Payload, kind: str) -> None:
    buffer: ChunkBuffer = getattr(payload, kind)()
    address = np.frombuffer(buffer.view, np.uint8).__array_interface__["data"][0]
    assert address % mmap.PAGESIZE == 0
    assert len(buffer.view) == CHUNK


@BOTH
@pytest.mark.parametrize("length", [0, -PAGE, PAGE - 1, PAGE + 512, CHUNK + PAGE])
def test_a_length_that_is_not_whole_pages_is_refused(payload: Payload, length: int) -> None:
    buffer = payload.write_buffer()
    with pytest.raises(ValueError, match=f"length is {length}; it must be a multiple of 4096"):
        payload.stamp(buffer, length, OBJECT, 0)
    with pytest.raises(ValueError, match="length is"):
        payload.poison(buffer, length)
    with pytest.raises(ValueError, match="length is"):
        payload.verify(buffer, length, OBJECT, 0, thorough=False)


@pytest.mark.parametrize("chunk_bytes", [0, 1000, PAGE + 1])
def test_a_chunk_that_is_not_whole_pages_is_refused(chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"chunk_bytes is {chunk_bytes}; it must be a multiple"):
        Payload(1, chunk_bytes)


def _flags_of(address: int) -> list[str]:
    """What the kernel says of the mapping that holds ``address``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
def test_buffers_are_of_huge_pages_where_there_are_any() -> None:
    buffer = ChunkBuffer(4 << 20)
    flags = _flags_of(buffer.words.ctypes.data)
    assert {"hg", "ht"} & {*flags}  # made by the kernel, or of those in reserve
