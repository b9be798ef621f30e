"""What objects contain, and whether what was read is what was written.

Off the timed path on both sides. Rank side: imports neither pytest nor MPI.

Every page of 4096 bytes starts with a stamp of two little-endian uint64: the object's
tag and the page's number within the object. The rest is a base pattern of random bytes,
as long as a chunk and the same in every chunk. So a put rewrites 16 bytes per page, no
two pages are equal, and nothing compresses. Corruption that leaves stamps alone is found
by the thorough check only; a stale part of a page below the stamp, of another object
with the same base, is equal to the right one and can't be found by any check.
"""

from __future__ import annotations

import mmap
import struct

import numpy as np

from pytest_kvcache.backends.protocol import PAGE_BYTES

_STAMP = struct.Struct("<QQ")
_WORD_BYTES = 8
_PAGE_WORDS = PAGE_BYTES // _WORD_BYTES
_STAMP_WORDS = _STAMP.size // _WORD_BYTES
_SECTOR_WORDS = 512 // _WORD_BYTES
# As a page number: of no page that exists. The base avoids it by being random.
_POISON = 0xDEAD_BEEF_DEAD_BEEF


class ChunkBuffer:
    """One chunk of page-aligned memory, touched when it is made.

    ``view`` is what backends transfer (slice it to the length of the transfer), ``words``
    the same memory as little-endian uint64, ``tags`` and ``numbers`` its stamps by page.
    """

    __slots__ = ("numbers", "tags", "view", "words")

    def __init__(self, chunk_bytes: int) -> None:
        memory = mmap.mmap(-1, chunk_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(memory)
        self.words = np.frombuffer(memory, "<u8")
        self.tags = self.words[::_PAGE_WORDS]
        self.numbers = self.words[1::_PAGE_WORDS]
        self.words.fill(0)


class Payload:
    """Makes buffers of ``chunk_bytes``, stamps what is put, verifies what was got.

    ``chunk_bytes`` and every length are multiples of 4096 (else ValueError). Ranks give
    different seeds, or their objects share a base. Page numbers count from the object's
    start: a chunk at byte ``offset`` has ``first_page = offset // 4096``. One Payload
    serves all threads; a buffer serves one operation at a time. Use a buffer for writing
    or for reading, never for both: a corrupt read must not leak into a later write.
    """

    def __init__(self, seed: int, chunk_bytes: int) -> None:
        if chunk_bytes < PAGE_BYTES or chunk_bytes % PAGE_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be a multiple of 4096")
        self._chunk_bytes = chunk_bytes
        words = np.random.Philox(seed).random_raw(chunk_bytes // _WORD_BYTES)
        self._base = words.astype("<u8").reshape(-1, _PAGE_WORDS)
        self._ramp = np.arange(chunk_bytes // PAGE_BYTES, dtype="<u8")

    def write_buffer(self) -> ChunkBuffer:
        """Return a buffer that holds the base, so that a put needs stamps only."""
        buffer = ChunkBuffer(self._chunk_bytes)
        buffer.words[:] = self._base.reshape(-1)
        return buffer

    def read_buffer(self) -> ChunkBuffer:
        """Return a buffer of zeros for what is read."""
        return ChunkBuffer(self._chunk_bytes)

    def stamp(self, buffer: ChunkBuffer, length: int, tag: int, first_page: int) -> None:
        """Make the first ``length`` bytes those of object ``tag`` from ``first_page`` on."""
        pages = self._pages(length)
        buffer.tags[:pages] = tag
        np.add(self._ramp[:pages], np.uint64(first_page), out=buffer.numbers[:pages])

    def poison(self, buffer: ChunkBuffer, length: int, *, thorough: bool = False) -> None:
        """Spoil a read buffer, so that what an earlier read left can't pass for new.

        The first and the last stamp; thorough: also the first word of every 512-byte
        sector, every stamp among them.
        """
        pages = self._pages(length)
        if thorough:
            buffer.words[: pages * _PAGE_WORDS : _SECTOR_WORDS] = _POISON
        _STAMP.pack_into(buffer.view, 0, _POISON, _POISON)
        _STAMP.pack_into(buffer.view, length - PAGE_BYTES, _POISON, _POISON)

    def verify(
        self, buffer: ChunkBuffer, length: int, tag: int, first_page: int, *, thorough: bool
    ) -> str | None:
        """None if ``buffer`` holds what `stamp` made, else a sentence about what is wrong.

        The stamps of the first and the last page (about 1 µs); thorough: every byte.
        """
        pages = self._pages(length)
        if thorough:
            return self._verify_all(buffer, pages, tag, first_page)
        last = pages - 1
        if _STAMP.unpack_from(buffer.view, 0) != (tag, first_page):
            return _stamp_fault(buffer, 0, tag, first_page)
        if _STAMP.unpack_from(buffer.view, last * PAGE_BYTES) != (tag, first_page + last):
            return _stamp_fault(buffer, last, tag, first_page)
        return None

    def _verify_all(self, buffer: ChunkBuffer, pages: int, tag: int, first_page: int) -> str | None:
        numbers = self._ramp[:pages] + np.uint64(first_page)
        stamps_bad = (buffer.tags[:pages] != np.uint64(tag)) | (buffer.numbers[:pages] != numbers)
        found = buffer.words[: pages * _PAGE_WORDS].reshape(-1, _PAGE_WORDS)
        words_bad = found[:, _STAMP_WORDS:] != self._base[:pages, _STAMP_WORDS:]
        if not stamps_bad.any() and not words_bad.any():
            return None
        page = int(np.argmax(stamps_bad | words_bad.any(axis=1)))
        if stamps_bad[page]:
            return _stamp_fault(buffer, page, tag, first_page)
        return self._byte_fault(buffer, page, tag, first_page)

    def _byte_fault(self, buffer: ChunkBuffer, page: int, tag: int, first_page: int) -> str:
        start = page * PAGE_BYTES
        found = np.frombuffer(buffer.view[start : start + PAGE_BYTES], np.uint8)
        wrong = found != self._base[page].view(np.uint8)
        wrong[: _STAMP.size] = False
        return (
            f"page {first_page + page} of object {tag:#018x} differs in {int(wrong.sum())}"
            f" bytes, the first at byte {int(np.argmax(wrong))} of the page"
        )

    def _pages(self, length: int) -> int:
        if length % PAGE_BYTES or not 0 < length <= self._chunk_bytes:
            raise ValueError(
                f"length is {length}; it must be a multiple of {PAGE_BYTES},"
                f" at least that and at most {self._chunk_bytes}"
            )
        return length // PAGE_BYTES


def _stamp_fault(buffer: ChunkBuffer, page: int, tag: int, first_page: int) -> str:
    found_tag, found_page = _STAMP.unpack_from(buffer.view, page * PAGE_BYTES)
    wanted = f"page {first_page + page} of object {tag:#018x}"
    if found_tag == _POISON:
        return f"{wanted} was not read: the buffer is as it was before"
    if (found_tag, found_page) == (0, 0):
        return f"{wanted} has no stamp: it is zero"
    return f"{wanted} has the stamp of page {found_page} of object {found_tag:#018x}"
