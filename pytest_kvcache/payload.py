"""What objects contain, and whether what was read is what was written.

Off the timed path on both sides. Rank side: imports neither pytest nor MPI.

An object is a base pattern of random bytes, as long as a chunk and the same in every
chunk, in which every unit begins with a stamp of two little-endian uint64, and the first
page with a head (`identity`). The stamp says which object the unit belongs to and its
number within it, so no two units are equal, and nothing compresses. The tag in it is the
object's, XORed with the origin: a number that stands for the base pattern, so that even
an equal object of another rank, trial or run has other stamps.

Normal: a unit is a page of 4096 bytes, and a put rewrites 16 bytes per page. A part of a
page below the stamp that belongs to another object of the rank is equal to the right
one, so no check can find it, and none has to.

Strict: a unit is a sector of 512 bytes, and the whole chunk is XORed with a 64-bit key
of the object and the chunk, so that two objects have no word in common at equal places.
A put rewrites every byte.
"""

from __future__ import annotations

import errno
import mmap
import struct
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.identity import HEAD_BYTES, pack_head, parse_head

if TYPE_CHECKING:
    from pytest_kvcache.identity import Identity

SECTOR_BYTES = 512
_STAMP = struct.Struct("<QQ")
_WORD_BYTES = 8
_PAGE_WORDS = PAGE_BYTES // _WORD_BYTES
_SECTOR_WORDS = SECTOR_BYTES // _WORD_BYTES
_HEAD_WORDS = HEAD_BYTES // _WORD_BYTES
_WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF
# As the first word of a sector: chance puts it there once in 2**64 times.
_POISON = 0xDEAD_BEEF_DEAD_BEEF
# numpy's only number of 16 bytes. Moved and never computed with, so any bits will do.
_STAMPS = np.dtype("<c16")


def _ask_for_huge_pages(memory: mmap.mmap) -> None:
    """Before it is touched: the kernel pins the buffer of a direct transfer page by page.

    With 1,024 small pages per chunk that took more CPU time than all the rest of a read,
    and cuts a request to the device into more pieces. docs/speed.md has the figures.
    """
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that was built without them
            raise


class Cut:
    """The first bytes of a `ChunkBuffer`, as long as a transfer: made once, used for each.

    ``view`` is what backends transfer, ``words`` the same memory as little-endian uint64,
    ``stamps`` those of its units, each an item, for stamps lie in cache lines that all
    compete for a few places in the caches: each is touched once. ``head`` are the bytes
    where an object has its head. ``right`` has room for what the stamps should be, and
    ``right_tags`` and ``right_numbers`` are the two words of them.
    """

    __slots__ = (
        "first_page", "head", "right", "right_numbers", "right_tags", "stamps", "units", "view",
        "words",
    )  # fmt: skip

    def __init__(self, buffer: ChunkBuffer, length: int, unit_bytes: int) -> None:
        if length % PAGE_BYTES or not 0 < length <= len(buffer.view):
            raise ValueError(
                f"length is {length}; it must be a multiple of {PAGE_BYTES},"
                f" at least that and at most {len(buffer.view)}"
            )
        self.units = length // unit_bytes
        self.view = buffer.view[:length]
        self.head = buffer.view[:HEAD_BYTES]
        self.words = buffer.words[: length // _WORD_BYTES]
        self.stamps = self.words.view(_STAMPS)[:: unit_bytes // _STAMP.size]
        self.right = np.zeros(self.units, _STAMPS)
        self.right_tags = self.right.view("<u8")[::2]
        self.right_numbers = self.right.view("<u8")[1::2]
        self.first_page = -1  # of ``right_numbers``; -1: they are not made yet


class ChunkBuffer:
    """One chunk of page-aligned memory, touched when it is made.

    ``view`` is the whole of it, ``words`` the same memory as little-endian uint64,
    ``model`` is where a thorough check makes what a read buffer should hold, and
    ``has_head`` tells whether a write buffer's first page holds a head.
    """

    __slots__ = ("_cuts", "_unit_bytes", "has_head", "model", "view", "words")

    def __init__(
        self, chunk_bytes: int, unit_bytes: int = PAGE_BYTES, model: ChunkBuffer | None = None
    ) -> None:
        memory = mmap.mmap(-1, chunk_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _ask_for_huge_pages(memory)
        self.view = memoryview(memory)
        self.words = np.frombuffer(memory, "<u8")
        self.model = model
        self.has_head = False
        self.words.fill(0)
        self._unit_bytes = unit_bytes
        self._cuts: dict[int, Cut] = {}

    def cut(self, length: int) -> Cut:
        """The first ``length`` bytes; ValueError if they are no whole pages of the chunk."""
        cut = self._cuts.get(length)
        if cut is None:
            cut = self._cuts[length] = Cut(self, length, self._unit_bytes)
        return cut


class Payload:
    """Makes buffers of ``chunk_bytes``, stamps what is put, verifies what was got.

    ``chunk_bytes`` and every length are multiples of 4096 (else ValueError). Ranks give
    different seeds, or their objects share a base. ``object_bytes`` is what an object's
    head says of its length; without it, that of a chunk. Page numbers count from the
    object's start: a chunk at byte ``offset`` has ``first_page = offset // 4096``. One
    Payload serves all threads; a buffer serves one operation at a time. Use a buffer for
    writing or for reading, never for both: a corrupt read must not leak into a later
    write.
    """

    _unit_bytes: ClassVar[int] = PAGE_BYTES

    def __init__(self, seed: int, chunk_bytes: int, object_bytes: int | None = None) -> None:
        if chunk_bytes < PAGE_BYTES or chunk_bytes % PAGE_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be a multiple of 4096")
        self._chunk_bytes = chunk_bytes
        self._object_bytes = chunk_bytes if object_bytes is None else object_bytes
        self._origin = _mixed(seed)
        self._units_per_page = PAGE_BYTES // self._unit_bytes
        words = np.random.Philox(seed).random_raw(chunk_bytes // _WORD_BYTES)
        self._base = words.astype("<u8")
        self._ramp = np.arange(chunk_bytes // self._unit_bytes, dtype="<u8")
        self._poison = np.frombuffer(_STAMP.pack(_POISON, 0), _STAMPS)[0]

    def write_buffer(self) -> ChunkBuffer:
        """Return a buffer that holds the base, so that a put needs stamps only."""
        buffer = ChunkBuffer(self._chunk_bytes, self._unit_bytes)
        buffer.words[:] = self._base
        return buffer

    def read_buffer(self, model: ChunkBuffer | None = None) -> ChunkBuffer:
        """Return a buffer of zeros for what is read.

        ``model`` is a write buffer of the same thread, which a thorough check fills with
        what should have been read; without it the buffer gets one of its own.
        """
        return ChunkBuffer(self._chunk_bytes, self._unit_bytes, model or self.write_buffer())

    def stamp(self, buffer: ChunkBuffer, length: int, identity: Identity, first_page: int) -> None:
        """Make the first ``length`` bytes those of the object from ``first_page`` on."""
        self._make(buffer, buffer.cut(length), identity, first_page)

    def poison(self, buffer: ChunkBuffer, length: int, *, thorough: bool = False) -> None:
        """Spoil a read buffer, so that what an earlier read left can't pass for new.

        Every stamp; thorough: the first word of every sector of 512 bytes.
        """
        cut = buffer.cut(length)
        if thorough:
            cut.words[::_SECTOR_WORDS] = _POISON
        else:
            cut.stamps.fill(self._poison)

    def verify(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        *,
        thorough: bool,
    ) -> str | None:
        """None if ``buffer`` holds what `stamp` made, else a sentence about what is wrong.

        The head, if the first page is there, and all stamps; thorough: every byte, of a
        buffer that begins where one that was put did.
        """
        cut = buffer.cut(length)
        tag = identity.tag ^ self._origin
        if not first_page and cut.head.tobytes() != self._head(tag, identity):
            return self._head_fault(buffer, identity)
        self._compute(cut, tag, first_page)
        if cut.stamps.tobytes() != cut.right.tobytes():
            return self._stamp_fault(buffer, cut, identity, first_page)
        return self._difference(buffer, cut, identity, first_page) if thorough else None

    # --- content: what is particular to a kind of data --------------------------------------

    def _make(self, buffer: ChunkBuffer, cut: Cut, identity: Identity, first_page: int) -> None:
        tag = identity.tag ^ self._origin
        self._fill(buffer, cut, tag, first_page)
        if not first_page:
            cut.head[:] = self._head(tag, identity)
            buffer.has_head = True

    def _fill(self, buffer: ChunkBuffer, cut: Cut, tag: int, first_page: int) -> None:
        """All of a buffer that was made by `write_buffer`, but for the head."""
        if buffer.has_head and first_page:
            buffer.words[:_HEAD_WORDS] = self._base[:_HEAD_WORDS]
            buffer.has_head = False
        self._compute(cut, tag, first_page)
        cut.stamps[:] = cut.right

    def _compute(self, cut: Cut, tag: int, first_page: int) -> None:
        """What the stamps of the cut should be, into ``right``."""
        cut.right_tags.fill(tag)
        if first_page != cut.first_page:
            np.add(self._ramp[: cut.units], np.uint64(first_page), out=cut.right_numbers)
            cut.first_page = first_page

    def _head(self, tag: int, identity: Identity) -> bytes:
        """The first bytes of the object, as they are stored."""
        return pack_head(tag, identity, self._object_bytes, self._origin)

    def _plain_head(self, stored: bytes) -> bytes:
        """What `pack_head` made of what was stored."""
        return stored

    def _stamp_of(self, tag: int, unit: int) -> tuple[int, int]:
        """The stamp of one unit."""
        return tag, unit

    def _tag_and_unit(self, stamp: tuple[int, int]) -> tuple[int, int]:
        """The inverse of `_stamp_of`."""
        return stamp

    # --- what is wrong ----------------------------------------------------------------------

    def _difference(
        self, buffer: ChunkBuffer, cut: Cut, identity: Identity, first_page: int
    ) -> str | None:
        """Compare every byte with those of a model."""
        model = buffer.model
        assert model is not None  # as read_buffer made it
        right = model.cut(len(cut.view))
        self._make(model, right, identity, first_page)
        wrong_words = cut.words != right.words
        if not wrong_words.any():
            return None
        page = int(np.argmax(wrong_words)) // _PAGE_WORDS
        place = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        wrong = np.frombuffer(buffer.view[place], "u1") != np.frombuffer(model.view[place], "u1")
        return (
            f"page {first_page + page} of object {identity} differs in {int(wrong.sum())}"
            f" bytes, the first at byte {int(np.argmax(wrong))} of the page"
        )

    def _head_fault(self, buffer: ChunkBuffer, identity: Identity) -> str:
        """Whose head it is, since it is not the right one."""
        head = parse_head(self._plain_head(bytes(buffer.view[:HEAD_BYTES])))
        if head is None:
            tag = identity.tag ^ self._origin
            if _STAMP.unpack_from(buffer.view) != self._stamp_of(tag, 0):
                return self._stamp_fault(buffer, buffer.cut(PAGE_BYTES), identity, 0)
            return (
                f"page 0 of object {identity} has a damaged head: its checksum is not that of"
                " what it says"
            )
        other = head.identity
        if head.origin != self._origin:
            whose = f"object {other} of another rank, trial or run"
        elif other == identity:
            whose = f"an object of {head.object_bytes} bytes, not {self._object_bytes}"
        else:
            whose = _whose(identity, other)
        return f"page 0 of object {identity} has the stamp of page 0 of {whose}"

    def _stamp_fault(
        self, buffer: ChunkBuffer, cut: Cut, identity: Identity, first_page: int
    ) -> str:
        """Whose stamp the first wrong one is."""
        tag, first = identity.tag ^ self._origin, first_page * self._units_per_page
        for index in range(cut.units):
            found = _STAMP.unpack_from(buffer.view, index * self._unit_bytes)
            if found != self._stamp_of(tag, first + index):
                break
        wanted = f"{self._place(first + index)} of object {identity}"
        if found[0] == _POISON:
            return f"{wanted} was not read: the buffer is as it was before"
        if found == (0, 0):
            return f"{wanted} has no stamp: it is zero"
        found_tag, unit = self._tag_and_unit(found)
        if found_tag == tag:
            return f"{wanted} has the stamp of {self._place(unit)} of the same object"
        older = identity.older_of_tag(found_tag ^ self._origin)
        whose = "another object" if older is None else _whose(identity, older)
        return f"{wanted} has the stamp of {self._place(unit)} of {whose}"

    def _place(self, unit: int) -> str:
        page, sector = divmod(unit, self._units_per_page)
        return f"page {page}" if self._units_per_page == 1 else f"sector {sector} of page {page}"


class StrictPayload(Payload):
    """As `Payload`, with data that nothing can reduce: see the module's text.

    The stamp of unit n of an object with tag t is (a, (a + n) * D) with a = t ^ n * C,
    modulo 2**64 and C and D odd: n and t follow from it, so no two stamps are equal, and
    at equal places both words of two objects differ.
    """

    _unit_bytes: ClassVar[int] = SECTOR_BYTES
    _SPREAD: ClassVar[int] = 0x9E37_79B9_7F4A_7C15  # C
    _SECOND: ClassVar[int] = 0xBF58_476D_1CE4_E5B9  # D
    _SECOND_INVERSE: ClassVar[int] = pow(_SECOND, -1, 1 << 64)
    _REPEATED: ClassVar[int] = sum(1 << 64 * word for word in range(2, _HEAD_WORDS))

    def _fill(self, buffer: ChunkBuffer, cut: Cut, tag: int, first_page: int) -> None:
        del buffer  # every byte is made anew
        key = np.uint64(self._chunk_key(tag, first_page))
        np.bitwise_xor(self._base[: len(cut.words)], key, out=cut.words)
        self._compute(cut, tag, first_page)
        cut.stamps[:] = cut.right

    def _compute(self, cut: Cut, tag: int, first_page: int) -> None:
        tags, numbers = cut.right_tags, cut.right_numbers
        first = np.uint64(first_page * self._units_per_page)
        np.add(self._ramp[: cut.units], first, out=numbers)
        np.multiply(numbers, np.uint64(self._SPREAD), out=tags)
        np.bitwise_xor(tags, np.uint64(tag), out=tags)
        np.add(numbers, tags, out=numbers)
        np.multiply(numbers, np.uint64(self._SECOND), out=numbers)

    def _stamp_of(self, tag: int, unit: int) -> tuple[int, int]:
        first = tag ^ (unit * self._SPREAD & _WORD_MASK)
        return first, (first + unit) * self._SECOND & _WORD_MASK

    def _tag_and_unit(self, stamp: tuple[int, int]) -> tuple[int, int]:
        unit = (stamp[1] * self._SECOND_INVERSE - stamp[0]) & _WORD_MASK
        return stamp[0] ^ (unit * self._SPREAD & _WORD_MASK), unit

    def _head(self, tag: int, identity: Identity) -> bytes:
        plain = int.from_bytes(super()._head(tag, identity), "little")
        return self._masked(plain, tag).to_bytes(HEAD_BYTES, "little")

    def _plain_head(self, stored: bytes) -> bytes:
        tag = _STAMP.unpack_from(stored)[0]
        plain = self._masked(int.from_bytes(stored, "little"), tag)
        return plain.to_bytes(HEAD_BYTES, "little")

    def _masked(self, head: int, tag: int) -> int:
        """The head with its words hidden: the stamp's as in every unit, the others by the key."""
        stamped = self._stamp_of(tag, 0)[1] << 64  # where a plain head has 0
        return head ^ stamped ^ (self._chunk_key(tag, 0) * self._REPEATED)

    def _chunk_key(self, tag: int, first_page: int) -> int:
        """Of the chunk that begins at a page: for one place, other objects have other keys."""
        return _mixed(tag + first_page * self._SPREAD)


def make_payload(data: str, seed: int, chunk_bytes: int, object_bytes: int) -> Payload:
    """The payload of ``--kv-data``: ``normal`` or ``strict``."""
    kind = {"normal": Payload, "strict": StrictPayload}[data]
    return kind(seed, chunk_bytes, object_bytes)


def _whose(wanted: Identity, other: Identity) -> str:
    """What an object of the same rank is to the wanted one."""
    if other.key != wanted.key:
        return f"object {other}: it was swapped for another one"
    if other.part != wanted.part:
        return f"object {other}: it is another part of the block"
    return f"object {other}: it is stale, an older generation of the key"


def _mixed(number: int) -> int:
    """A bijection of 64 bits that scatters them: the finalizer of SplitMix64.

    Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    number &= _WORD_MASK
    number = (number ^ number >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD_MASK
    number = (number ^ number >> 27) * 0x94D0_49BB_1331_11EB & _WORD_MASK
    return number ^ number >> 31
