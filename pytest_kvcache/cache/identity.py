"""What a stored object is: its key, version and part, and the head that says so.

Rank side; imports nothing but the standard library.

The first page of an object begins with a head of 64 bytes, little-endian:

    0 tag (uint64)       16 key (16 bytes)       40 length of the object, bytes (uint64)
    8 page: 0 (uint64)   32 version (uint64)     48 seed id (uint64)
                          56 part, 58 origin (uint16 each), 60 CRC-32 of bytes 0 to 59

The first two words are the page's stamp (`payload`). The seed id names the base pattern
of the rank, trial and run that wrote the object; in a store that ranks share it is that of all of
them, and the origin tells which one wrote.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

# The largest prime below 2**64 and the odd 64-bit number next to 2**64 / golden ratio:
# modulo a prime, versions of one key never share a tag, and the golden ratio keeps
# multiples of small versions far apart (Knuth, The Art of Computer Programming,
# vol. 3, section 6.4, Fibonacci hashing).
_TAG_MODULUS = 0xFFFF_FFFF_FFFF_FFC5
_TAG_STEP = 0x9E37_79B9_7F4A_7C15
_STEP_INVERSE = pow(_TAG_STEP, -1, _TAG_MODULUS)
# Where the part begins in the number that is hashed: versions below 2**48 and parts
# below 2**15 of one key all have tags of their own.
_PART_SHIFT = 48
MAX_PARTS = 1 << 15
MAX_ORIGINS = (1 << 16) - 1

_FIELDS = struct.Struct("<QQ16sQQQHH")
_CHECKSUM = struct.Struct("<I")
HEAD_BYTES = _FIELDS.size + _CHECKSUM.size


class Identity(NamedTuple):
    """One object of a rank: the 16 bytes of its key, which writing of it, which part.

    ``part`` numbers the objects that one block is cut into, at most `MAX_PARTS`; 0 where
    it is a single one. ``origin`` is who wrote it, of those that share a store: the rank plus 1, at
    most `MAX_ORIGINS`; 0 where a rank has a store of its own.
    """

    key: bytes
    version: int
    part: int = 0
    origin: int = 0

    @property
    def tag(self) -> int:
        """The 64-bit value that stands for it in stamps: its own among those of its key."""
        key, version, part, _origin = self
        number = int.from_bytes(key, "little") + (version + (part << _PART_SHIFT)) * _TAG_STEP
        return number % _TAG_MODULUS

    def older_of_tag(self, tag: int) -> Identity | None:
        """The earlier version of the same key and part whose tag this is, if any."""
        number = (tag - int.from_bytes(self.key, "little")) * _STEP_INVERSE % _TAG_MODULUS
        version = number - (self.part << _PART_SHIFT)
        if 0 <= version < self.version:
            return self._replace(version=version)
        return None

    def __str__(self) -> str:
        part = f" (part {self.part})" if self.part else ""
        return f"{self.key.hex()}.{self.version}{part}"


class Head(NamedTuple):
    """What the head of an object says; ``seed_id`` and ``tag`` are those of the writer."""

    tag: int
    identity: Identity
    object_bytes: int
    seed_id: int


def pack_head(tag: int, identity: Identity, object_bytes: int, seed_id: int) -> bytes:
    """The 64 bytes at the start of an object."""
    fields = _FIELDS.pack(
        tag, 0, identity.key, identity.version, object_bytes, seed_id, identity.part,
        identity.origin,
    )  # fmt: skip
    return fields + _CHECKSUM.pack(zlib.crc32(fields))


def parse_head(head: bytes) -> Head | None:
    """The inverse; None if the checksum is wrong or it is no head of a first page."""
    if _CHECKSUM.unpack_from(head, _FIELDS.size) != (zlib.crc32(head[: _FIELDS.size]),):
        return None
    tag, page, key, version, object_bytes, seed_id, part, origin = _FIELDS.unpack_from(head)
    if page:
        return None
    return Head(tag, Identity(key, version, part, origin), object_bytes, seed_id)
