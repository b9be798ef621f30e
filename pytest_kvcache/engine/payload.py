"""What objects contain, and whether what was read is what was written.

Off the timed path on both sides. Rank side: imports neither pytest nor MPI.

The tag of an object is its own (`identity`), XORed with the seed id: a number that stands
for the random base of a rank, trial and run, so that even an equal object of another one
is other content. The first page begins with a head (`identity`).

Normal: an object is a base of random bytes, as long as a chunk and the same in every
chunk, in which every page of 4096 bytes begins with a stamp of two little-endian uint64:
the tag and the page's number. A put rewrites 16 bytes per page. No two pages are equal
and nothing within a chunk compresses, but chunks and objects differ by their stamps only:
whatever looks for what is similar, or for what is equal over more than a chunk, finds it.
A part of a page below the stamp that belongs to another object of the rank is equal to the
right one, so no check can find it, and none has to.

Strict: below the head an object is cut into pieces, and each is the base of the rank XORed
with a 64-bit key of the object and the piece. Wherever the same part of the base is used
again, all bytes of it have changed, so that nothing is found by looking for equal strings,
however far back. The first word of every sector of 512 bytes tells the piece and the place
in it, and serves as its stamp. A put makes every byte anew; the base is short enough to
stay in a core's cache.
"""

from __future__ import annotations

import errno
import mmap
import struct
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.cache.identity import HEAD_BYTES, pack_head, parse_head

if TYPE_CHECKING:
    import numpy.typing as npt

    from pytest_kvcache.cache.identity import Identity

    WordArray = npt.NDArray[np.uint64]

SECTOR_BYTES = 512
_STAMP = struct.Struct("<QQ")
_WORD_BYTES = 8
_PAGE_WORDS = PAGE_BYTES // _WORD_BYTES
_SECTOR_WORDS = SECTOR_BYTES // _WORD_BYTES
_HEAD_WORDS = HEAD_BYTES // _WORD_BYTES
_WORD_MASK = 0xFFFF_FFFF_FFFF_FFFF
# Measured on a core with 512 KiB of second-level cache: longer bases fall out of it, and
# shorter ones cost more calls.
_PIECE_BYTES = 256 * 1024
# So far a piece is looked for in the same object; chance finds one once in 2**33 times.
_LARGEST_OBJECT_BYTES = 1 << 40
# As the first word of a sector: chance puts it there once in 2**64 times.
_POISON = 0xDEAD_BEEF_DEAD_BEEF
# numpy's only number of 16 bytes. Moved and never computed with, so any bits will do.
_STAMPS = np.dtype("<c16")


_HUGE_PAGE_BYTES = 2 << 20
_MAP_HUGETLB = 0x40000  # Linux; Python has no name for it


class Arena:
    """Page-aligned memory for many buffers, of huge pages if they can be had; not touched yet.

    The kernel pins the buffer of a direct transfer page by page. With 1,024 small pages per
    chunk that took more CPU time than all the rest of a read, and cuts a request to the
    device into more pieces. docs/speed.md has the figures.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes >= _HUGE_PAGE_BYTES:
            size_bytes += -size_bytes % _HUGE_PAGE_BYTES
        self._view = memoryview(_memory(size_bytes))
        self._taken = 0

    def take(self, size_bytes: int) -> memoryview:
        """The next so many bytes, a multiple of 4096."""
        begin, self._taken = self._taken, self._taken + size_bytes
        return self._view[begin : self._taken]


def _memory(size_bytes: int) -> mmap.mmap:
    """Reserved huge pages if there are enough, else what the kernel makes huge by itself."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if not size_bytes % _HUGE_PAGE_BYTES:
        try:
            return mmap.mmap(-1, size_bytes, flags=flags | _MAP_HUGETLB)
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL, errno.EPERM):
                raise
    memory = mmap.mmap(-1, size_bytes, flags=flags)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel that was built without them
            raise
    return memory


class Cut:
    """Some bytes of a `ChunkBuffer`, mostly a transfer's: made once, used for each.

    ``length`` is how many. ``view`` is what backends transfer, ``words`` the same memory as
    little-endian uint64, ``stamps`` those of its units, each an item, for stamps lie in cache
    lines that all compete for a few places in the caches: each is touched once. ``head`` are the
    bytes where an object has its head. ``right`` has room for what the stamps should be, and
    ``right_words`` are the words of them, a row per stamp. ``key`` has room for one.
    """

    __slots__ = (
        "begin", "first_page", "head", "key", "length", "right", "right_tags", "right_words",
        "stamps", "tag", "units", "view", "words",
    )  # fmt: skip

    def __init__(
        self,
        buffer: ChunkBuffer,
        length: int,
        unit_bytes: int,
        stamp: np.dtype[Any],
        begin: int = 0,
    ) -> None:
        if length % PAGE_BYTES or not 0 < length <= len(buffer.view) - begin:
            raise ValueError(
                f"length is {length}; it must be a multiple of {PAGE_BYTES},"
                f" at least that and at most {len(buffer.view) - begin}"
            )
        self.units = length // unit_bytes
        self.begin = begin
        self.length = length
        self.view = buffer.view[begin : begin + length]
        self.head = self.view[:HEAD_BYTES]
        self.words = buffer.words[begin // _WORD_BYTES : (begin + length) // _WORD_BYTES]
        self.stamps = self.words.view(stamp)[:: unit_bytes // stamp.itemsize]
        self.right = np.zeros(self.units, stamp)
        self.right_words = self.right.view("<u8").reshape(self.units, -1)
        self.right_tags = self.right_words[:, 0]
        self.tag = -1  # in ``right``; -1: none yet
        self.key = np.zeros(1, "<u8")
        self.first_page = -1  # of the numbers in ``right``; -1: they are not made yet

    def first_wrong(self) -> tuple[int, tuple[int, ...]] | None:
        """The first unit whose stamp is not the right one, and its words; None: all are."""
        found = np.ascontiguousarray(self.stamps).view("<u8").reshape(self.units, -1)
        wrong = (found != self.right_words).any(axis=1)
        if not wrong.any():
            return None
        unit = int(np.argmax(wrong))
        return unit, tuple(found[unit].tolist())


class ChunkBuffer:
    """One chunk of page-aligned memory, touched when it is made.

    ``view`` is the whole of it, ``words`` the same memory as little-endian uint64,
    ``model`` is where a thorough check makes what a read buffer should hold, and
    ``has_head`` tells whether a write buffer's first page holds a head.
    """

    __slots__ = (
        "_cuts", "_pieces", "_stamp", "_unit_bytes", "has_head", "model", "view", "words",
    )  # fmt: skip

    def __init__(
        self,
        chunk_bytes: int,
        unit_bytes: int = PAGE_BYTES,
        stamp: np.dtype[Any] = _STAMPS,
        model: ChunkBuffer | None = None,
        memory: memoryview | None = None,
    ) -> None:
        self.view = Arena(chunk_bytes).take(chunk_bytes) if memory is None else memory
        self.words = np.frombuffer(self.view, "<u8")
        self.model = model
        self.has_head = False
        self.words.fill(0)
        self._unit_bytes = unit_bytes
        self._stamp = stamp
        self._cuts: dict[int, Cut] = {}
        self._pieces: dict[tuple[int, int], Cut] = {}

    def cut(self, length: int) -> Cut:
        """The first ``length`` bytes; ValueError if they are no whole pages of the chunk."""
        cut = self._cuts.get(length)
        if cut is None:
            cut = self._cuts[length] = Cut(self, length, self._unit_bytes, self._stamp)
        return cut

    def piece(self, begin: int, length: int) -> Cut:
        """``length`` bytes from a page on."""
        if not begin:
            return self.cut(length)
        cut = self._pieces.get((begin, length))
        if cut is None:
            cut = Cut(self, length, self._unit_bytes, self._stamp, begin)
            self._pieces[begin, length] = cut
        return cut


class Payload:
    """Makes buffers of ``chunk_bytes``, stamps what is put, verifies what was got.

    ``chunk_bytes`` and every length are multiples of 4096 (else ValueError). Ranks give
    different seeds, or their objects share a base; ``shared``: they do, for each reads what others
    wrote, whoever that is (`origin_of`). ``object_bytes`` is what the head of an
    object says of its length where a call does not; without it, that of a chunk. Page
    numbers count from the object's start: a chunk at byte ``offset`` has
    ``first_page = offset // 4096``. One Payload serves all buffers; a buffer serves one
    operation at a time. Use a buffer for writing or for reading, never for both: a corrupt
    read must not leak into a later
    write.
    """

    _unit_bytes: ClassVar[int] = PAGE_BYTES
    _stamp_type: ClassVar[np.dtype[Any]] = _STAMPS

    def __init__(
        self, seed: int, chunk_bytes: int, object_bytes: int | None = None, *, shared: bool = False
    ) -> None:
        if chunk_bytes < PAGE_BYTES or chunk_bytes % PAGE_BYTES:
            raise ValueError(f"chunk_bytes is {chunk_bytes}; it must be a multiple of 4096")
        self._chunk_bytes = chunk_bytes
        self._object_bytes = chunk_bytes if object_bytes is None else object_bytes
        self._seed_id = _mixed(seed)
        self.is_shared = shared
        self._units_per_page = PAGE_BYTES // self._unit_bytes
        words = np.random.Philox(seed).random_raw(self._base_bytes() // _WORD_BYTES)
        self._base = words.astype("<u8")
        self._ramp = np.arange(chunk_bytes // self._unit_bytes, dtype="<u8")
        self._tag_of: tuple[Identity | None, int] = None, 0  # of the last one that was asked for
        self._poison = np.frombuffer(_STAMP.pack(_POISON, 0), self._stamp_type)[0]

    def _base_bytes(self) -> int:
        return self._chunk_bytes

    def write_buffer(self, memory: memoryview | None = None) -> ChunkBuffer:
        """Return a buffer that holds the base, so that a put needs stamps only.

        In ``memory`` of the length of a chunk, or else in some of its own.
        """
        buffer = self._buffer(memory)
        buffer.words[:] = self._base
        return buffer

    def _buffer(self, memory: memoryview | None, model: ChunkBuffer | None = None) -> ChunkBuffer:
        return ChunkBuffer(self._chunk_bytes, self._unit_bytes, self._stamp_type, model, memory)

    def read_buffer(
        self, model: ChunkBuffer | None = None, memory: memoryview | None = None
    ) -> ChunkBuffer:
        """Return a buffer of zeros for what is read, in ``memory`` or in some of its own.

        ``model`` is a write buffer that nothing is written from, which a thorough check
        fills with what should have been read; without it the buffer gets one of its own.
        """
        return self._buffer(memory, model or self.write_buffer())

    def stamp(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        object_bytes: int | None = None,
    ) -> None:
        """Make the first ``length`` bytes those of the object from ``first_page`` on."""
        self._make(buffer, buffer.cut(length), identity, first_page, object_bytes)

    def mark(self, cut: Cut, tag: int, first_page: int) -> None:
        """Make of some bytes what `holds`."""
        self._compute(cut, tag ^ self._seed_id, first_page)
        cut.stamps[:] = cut.right

    def holds(self, cut: Cut, tag: int, first_page: int) -> bool:
        """Whether all stamps are those of the object with that tag, from ``first_page`` on."""
        self._compute(cut, tag ^ self._seed_id, first_page)
        return cut.stamps.tobytes() == cut.right.tobytes()

    def poison(
        self, buffer: ChunkBuffer, length: int, *, begin: int = 0, thorough: bool = False
    ) -> None:
        """Spoil a read buffer, so that what an earlier read left can't pass for new.

        Every stamp; thorough: the first word of every sector of 512 bytes.
        """
        cut = buffer.piece(begin, length)
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
        object_bytes: int | None = None,
        *,
        thorough: bool = False,
    ) -> str | None:
        """None if ``buffer`` holds what `stamp` made, else a sentence about what is wrong.

        All stamps, which with the head's two first words are those of every page; thorough:
        every byte, of a buffer that begins where one that was put did.
        """
        cut = buffer.cut(length)
        if not self.holds(cut, identity.tag, first_page):
            head = None if first_page else self._head_fault(buffer, identity, object_bytes)
            return head or self._stamp_fault(cut, identity, first_page)
        if not thorough:
            return None
        return self.difference(buffer, length, identity, first_page, object_bytes)

    # --- content: what is particular to a kind of data --------------------------------------

    def _make(
        self,
        buffer: ChunkBuffer,
        cut: Cut,
        identity: Identity,
        first_page: int,
        object_bytes: int | None,
    ) -> None:
        """The bytes of a cut, which begins at ``first_page`` of the object."""
        tag = self._tag(identity)
        self._fill(buffer, cut, tag, first_page)
        if not first_page:
            cut.head[:] = self._head(tag, identity, object_bytes)
            buffer.has_head = True

    def _fill(self, buffer: ChunkBuffer, cut: Cut, tag: int, first_page: int) -> None:
        """All of a buffer that was made by `write_buffer`, but for the head."""
        if buffer.has_head and first_page and not cut.begin:
            buffer.words[:_HEAD_WORDS] = self._base[:_HEAD_WORDS]
            buffer.has_head = False
        self._compute(cut, tag, first_page)
        cut.stamps[:] = cut.right

    def _tag(self, identity: Identity) -> int:
        """The first word of an object's stamps."""
        last, tag = self._tag_of
        if identity is not last:
            tag = identity.tag ^ self._seed_id
            self._tag_of = identity, tag
        return tag

    def _compute(self, cut: Cut, tag: int, first_page: int) -> None:
        """What the stamps of the cut should be, into ``right``."""
        if tag != cut.tag:
            cut.right_tags.fill(tag)
            cut.tag = tag
        if first_page != cut.first_page:
            np.add(self._ramp[: cut.units], np.uint64(first_page), out=cut.right_words[:, 1])
            cut.first_page = first_page

    def _head(self, tag: int, identity: Identity, object_bytes: int | None) -> bytes:
        """The first bytes of the object, as they are stored."""
        return pack_head(tag, identity, object_bytes or self._object_bytes, self._seed_id)

    def _whose_stamp(self, found: tuple[int, ...], unit: int, identity: Identity) -> str:
        """Where a stamp belongs that stands at a unit of ``identity`` where it should not."""
        del unit
        tag, page = found
        wanted = identity.tag ^ self._seed_id
        return f"{self._place(page)} of {self._owner(tag, wanted, identity)}"

    def _owner(self, tag: int, wanted: int, identity: Identity) -> str:
        if tag == wanted:
            return "the same object"
        older = identity.older_of_tag(tag ^ self._seed_id)
        return "another object" if older is None else _whose(identity, older)

    # --- what is wrong ----------------------------------------------------------------------

    def difference(
        self,
        buffer: ChunkBuffer,
        length: int,
        identity: Identity,
        first_page: int,
        object_bytes: int | None = None,
        *,
        begin: int = 0,
    ) -> str | None:
        """Compare every byte of ``length`` from ``begin`` on with those of a model.

        ``first_page`` is that of the buffer; ``begin`` is a multiple of 4096.
        """
        model = buffer.model
        assert model is not None  # as read_buffer made it
        cut, right = buffer.piece(begin, length), model.piece(begin, length)
        first_page += begin // PAGE_BYTES
        if self.is_shared and not first_page:
            identity = self._as_written(cut, identity)
        self._make(model, right, identity, first_page, object_bytes)
        wrong_words = cut.words != right.words
        if not wrong_words.any():
            return None
        if not first_page and (problem := self._head_fault(buffer, identity, object_bytes)):
            return problem
        page = int(np.argmax(wrong_words)) // _PAGE_WORDS
        place = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        wrong = np.frombuffer(cut.view[place], "u1") != np.frombuffer(right.view[place], "u1")
        return (
            f"page {first_page + page} of object {identity} differs in {int(wrong.sum())}"
            f" bytes, the first at byte {int(np.argmax(wrong))} of the page"
        )

    def origin_of(self, cut: Cut) -> int | None:
        """Who wrote the object whose first bytes these are; None: there is no head that says so."""
        head = parse_head(bytes(cut.head))
        return None if head is None else head.identity.origin

    def _as_written(self, cut: Cut, identity: Identity) -> Identity:
        """The identity with the origin that the head tells."""
        origin = self.origin_of(cut)
        return identity if origin is None else identity._replace(origin=origin)

    def _head_fault(
        self, buffer: ChunkBuffer, identity: Identity, object_bytes: int | None
    ) -> str | None:
        """Whose head it is, if it is not the right one."""
        found = bytes(buffer.view[:HEAD_BYTES])
        if self.is_shared:
            identity = self._as_written(buffer.cut(PAGE_BYTES), identity)
        if found == self._head(self._tag(identity), identity, object_bytes):
            return None
        head = parse_head(found)
        if head is None:
            stamp = self._stamp_fault(buffer.cut(PAGE_BYTES), identity, 0)
            return stamp or (
                f"page 0 of object {identity} has a damaged head: its checksum is not that of"
                " what it says"
            )
        other = head.identity
        if head.seed_id != self._seed_id:
            whose = f"object {other} of another rank, trial or run"
        elif other == identity:
            wanted = object_bytes or self._object_bytes
            whose = f"an object of {head.object_bytes} bytes, not {wanted}"
        else:
            whose = _whose(identity, other)
        return f"page 0 of object {identity} has the stamp of page 0 of {whose}"

    def _stamp_fault(self, cut: Cut, identity: Identity, first_page: int) -> str | None:
        """Whose stamp the first wrong one is; None: all are right."""
        self._compute(cut, identity.tag ^ self._seed_id, first_page)
        wrong = cut.first_wrong()
        if wrong is None:
            return None
        index, found = wrong
        unit = first_page * self._units_per_page + index
        wanted = f"{self._place(unit)} of object {identity}"
        if found[0] == _POISON:
            return f"{wanted} was not read: the buffer is as it was before"
        if not any(found):
            return f"{wanted} has no stamp: it is zero"
        return f"{wanted} has the stamp of {self._whose_stamp(found, unit, identity)}"

    def _place(self, unit: int) -> str:
        page, sector = divmod(unit, self._units_per_page)
        return f"page {page}" if self._units_per_page == 1 else f"sector {sector} of page {page}"


class StrictPayload(Payload):
    """A `Payload` with other bytes everywhere in every object: see the module's text.

    The key of piece n of an object with tag t is a bijection of t + n * C modulo 2**64, C
    odd: behind the head all words of two objects differ at equal places, and so do those of
    two pieces of one object.
    """

    _unit_bytes: ClassVar[int] = SECTOR_BYTES
    _stamp_type: ClassVar[np.dtype[Any]] = np.dtype("<u8")
    _SPREAD: ClassVar[int] = 0x9E37_79B9_7F4A_7C15  # C
    _SPREAD_INVERSE: ClassVar[int] = pow(_SPREAD, -1, 1 << 64)

    def __init__(
        self, seed: int, chunk_bytes: int, object_bytes: int | None = None, *, shared: bool = False
    ) -> None:
        super().__init__(seed, chunk_bytes, object_bytes, shared=shared)
        self._sectors = self._base[::_SECTOR_WORDS].copy()
        self._piece_pages = len(self._base) // _PAGE_WORDS

    def _base_bytes(self) -> int:
        return min(self._chunk_bytes, _PIECE_BYTES)

    def write_buffer(self, memory: memoryview | None = None) -> ChunkBuffer:
        """Return a buffer that was touched: a put makes every byte anew."""
        return self._buffer(memory)

    def _fill(self, buffer: ChunkBuffer, cut: Cut, tag: int, first_page: int) -> None:
        del buffer  # nothing in it matters
        self._xor(self._base, cut.words, cut, tag, first_page)

    def _compute(self, cut: Cut, tag: int, first_page: int) -> None:
        self._xor(self._sectors, cut.right, cut, tag, first_page)

    def _xor(self, base: WordArray, out: WordArray, cut: Cut, tag: int, first_page: int) -> None:
        """``base`` under the keys of the pieces, from a page of the object on."""
        if not first_page and len(out) <= len(base):  # a small object: numpy's calls count
            cut.key[0] = _mixed(tag)
            np.bitwise_xor(base[: len(out)], cut.key, out=out)
            return
        whole = len(base)
        piece, begin = divmod(first_page * (whole // self._piece_pages), whole)
        keys = self._keys(tag, piece, -(-(begin + len(out)) // whole))
        done = 0
        if begin:  # in the middle of a piece
            done = min(whole - begin, len(out))
            np.bitwise_xor(base[begin : begin + done], keys[0], out=out[:done])
            keys = keys[1:]
        rows = (len(out) - done) // whole
        if rows:
            table = out[done : done + rows * whole].reshape(rows, whole)
            np.bitwise_xor(base, keys[:rows], out=table)
            done += rows * whole
        if done < len(out):
            np.bitwise_xor(base[: len(out) - done], keys[-1], out=out[done:])

    def _keys(self, tag: int, first: int, count: int) -> WordArray:
        """The keys of so many pieces, a row each."""
        pieces = np.arange(first, first + count, dtype="<u8").reshape(-1, 1)
        keys: WordArray = _all_mixed(pieces * np.uint64(self._SPREAD) + np.uint64(tag))
        return keys

    def _head(self, tag: int, identity: Identity, object_bytes: int | None) -> bytes:
        """The head of an object, with the stamp of its first sector where the tag would be."""
        return super()._head(int(self._sectors[0]) ^ _mixed(tag), identity, object_bytes)

    def _whose_stamp(self, found: tuple[int, ...], unit: int, identity: Identity) -> str:
        wanted = identity.tag ^ self._seed_id
        for sector, word in enumerate(self._sectors.tolist()):
            apart = _unmixed(found[0] ^ word) - wanted
            piece = apart * self._SPREAD_INVERSE & _WORD_MASK
            if piece * self._piece_pages * PAGE_BYTES < _LARGEST_OBJECT_BYTES:
                return f"{self._place(piece * len(self._sectors) + sector)} of the same object"
        piece, sector = divmod(unit, len(self._sectors))
        mixed = _unmixed(found[0] ^ int(self._sectors[sector]))
        owner = self._owner(mixed - piece * self._SPREAD & _WORD_MASK, wanted, identity)
        return owner if owner == "another object" else f"{self._place(unit)} of {owner}"


def make_payload(
    data: str, seed: int, chunk_bytes: int, object_bytes: int, *, shared: bool = False
) -> Payload:
    """The payload of ``--kv-data``: ``normal`` or ``strict``."""
    kind = {"normal": Payload, "strict": StrictPayload}[data]
    return kind(seed, chunk_bytes, object_bytes, shared=shared)


def _whose(wanted: Identity, other: Identity) -> str:
    """What an object of the same rank is to the wanted one."""
    if other.key != wanted.key:
        return f"object {other}: it was swapped for another one"
    if other.part != wanted.part:
        return f"object {other}: it is another part of the block"
    return f"object {other}: it is stale, an older version of the key"


def _mixed(number: int) -> int:
    """A bijection of 64 bits that scatters them: the finalizer of SplitMix64.

    Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    number &= _WORD_MASK
    number = (number ^ number >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD_MASK
    number = (number ^ number >> 27) * 0x94D0_49BB_1331_11EB & _WORD_MASK
    return number ^ number >> 31


def _all_mixed(numbers: WordArray) -> WordArray:
    """`_mixed` of every number."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58_476D_1CE4_E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: WordArray = numbers ^ numbers >> np.uint64(31)
    return mixed


def _unmixed(number: int) -> int:
    """The inverse of `_mixed`."""
    number ^= number >> 31 ^ number >> 62
    number = number * pow(0x94D0_49BB_1331_11EB, -1, 1 << 64) & _WORD_MASK
    number ^= number >> 27 ^ number >> 54
    number = number * pow(0xBF58_476D_1CE4_E5B9, -1, 1 << 64) & _WORD_MASK
    return number ^ number >> 30 ^ number >> 60
