"""The index of a store that packs blocks into buckets: which go together, and which go next.

Pure logic on the request path: no I/O, no locks, no clock. Imports nothing but the standard library
and the index that keeps blocks one by one.

The law: blocks that are missing go, in the order of decisions, into the bucket that is open. When
it has as many as a bucket takes it is sealed, to be written by one call, and another one is open.
The storage holds sealed buckets alone, as many as fit into its capacity; what is sealed makes room
by the oldest ones, each with all that is in it. Use moves nothing. What is hit of a bucket that is
not written yet is there, in memory: the data of a block is from the moment it is put.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import Admission, Blocked, BlockEntry, CacheIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.cache.index import Beside


class Bucket:
    """Blocks that are written together and go together.

    ``awaited`` counts those whose data are not there yet.
    """

    __slots__ = ("awaited", "entries")

    def __init__(self) -> None:
        self.entries: list[BucketEntry] = []
        self.awaited = 0


class BucketEntry(BlockEntry):
    """A block of a bucket; ``is_put``: its data are there, in memory at least."""

    __slots__ = ("bucket", "is_put")

    def __init__(self, bucket: Bucket, key: bytes, version: int, size: int, padded: int) -> None:
        super().__init__(key, version, 1, size, padded)
        self.bucket = bucket
        self.is_put = False
        bucket.entries.append(self)
        bucket.awaited += 1

    def put(self) -> None:
        """Say, once, that its data are there."""
        if self.is_put:
            raise ValueError(f"{self!r} is put twice; its data come once")
        self.is_put = True
        self.bucket.awaited -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAdmission(Admission):
    """What one request reads, puts, and moves with it.

    ``hits`` that are not present are in memory. ``sealed`` are the buckets that its inserts have
    filled, ``emptied`` those that make room for them: the caller deletes these before it writes the
    first of the former, and writes each when nothing of it is awaited any more. ``victims`` is what
    the emptied ones had.
    """

    sealed: Sequence[Bucket]
    emptied: Sequence[Bucket]


class BucketIndex(CacheIndex):
    """Blocks of ``block_bytes`` each, ``bucket_blocks`` of them in each bucket.

    ``capacity_bytes`` is that of the storage, which holds whole buckets, at least one, and
    ``used_bytes`` what the sealed ones take of it. The rest as in `CacheIndex`.
    """

    def __init__(
        self, capacity_bytes: int, *, page_bytes: int, block_bytes: int, bucket_blocks: int
    ) -> None:
        super().__init__(capacity_bytes, page_bytes=page_bytes)
        self.bucket_blocks = bucket_blocks
        self._block_bytes = block_bytes
        self._padded_bytes = self.padded_bytes(block_bytes)
        self._capacity_buckets = capacity_bytes // (self._padded_bytes * bucket_blocks)
        if self._capacity_buckets < 1:
            raise ValueError(
                f"capacity_bytes is {capacity_bytes}; it must hold a bucket of {bucket_blocks}"
                f" blocks of {self._padded_bytes} bytes"
            )
        self._open = Bucket()
        self._sealed: deque[Bucket] = deque()  # oldest first

    def admit(
        self,
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
        beside: Beside | None = None,
    ) -> BucketAdmission | Blocked:
        """Decide one request: count its hits, put what is missing into buckets.

        As `CacheIndex.admit` does, but the order of use decides nothing. `Blocked` where data of
        its hits are still awaited, or something of a bucket that has to go is read or written.
        """
        self._check(keys, prompt_blocks, sizes, beside)
        hits = self.leading_run(keys[:prompt_blocks])
        missing = [key for key in keys if key not in self._entries]
        held = len(self._open.entries)
        del missing[(self._capacity_buckets + 1) * self.bucket_blocks - 1 - held :]
        sealing = (held + len(missing)) // self.bucket_blocks
        surplus = max(0, len(self._sealed) + sealing - self._capacity_buckets)
        emptied = [self._sealed[at] for at in range(surplus)]
        if (blocker := _last_awaited(hits) or _in_use(emptied)) is not None:
            return Blocked(blocker)
        self._pin(hits, prompt_blocks)
        victims = self._empty(emptied)
        inserts, sealed = self._fill(missing)
        return BucketAdmission(
            hits=hits, inserts=inserts, victims=victims, prompt_blocks=prompt_blocks,
            sealed=sealed, emptied=emptied,
        )  # fmt: skip

    def look_up(
        self, keys: Sequence[bytes], prompt_blocks: int, beside: Beside | None = None
    ) -> BucketAdmission | Blocked:
        """Decide a request that stores nothing: its hits, pinned."""
        self._check(keys, prompt_blocks, self._block_bytes, beside)
        hits = self.leading_run(keys[:prompt_blocks])
        if (blocker := _last_awaited(hits)) is not None:
            return Blocked(blocker)
        self._pin(hits, prompt_blocks)
        return BucketAdmission(
            hits=hits, inserts=[], victims=[], prompt_blocks=prompt_blocks, sealed=(), emptied=()
        )

    def has_room_for(self, keys: Sequence[bytes], sizes: int | Sequence[int]) -> bool:
        """Return whether all these distinct keys could be stored without a victim."""
        self._check(keys, len(keys), sizes, None)
        missing = sum(key not in self._entries for key in keys)
        held = len(self._sealed) * self.bucket_blocks + len(self._open.entries)
        return held + missing <= self._capacity_buckets * self.bucket_blocks

    def roll_back(self, entry: BlockEntry) -> None:
        """Give up a reserved entry; one of the open bucket took nothing of the capacity yet."""
        was_there = self._entries.get(entry.key) is entry
        super().roll_back(entry)
        if was_there and isinstance(entry, BucketEntry) and entry.bucket is self._open:
            self._used_bytes += entry.stored_bytes

    def _check(
        self,
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
        beside: Beside | None,
    ) -> None:
        """Raise ValueError for what no bucket can hold."""
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        if len(set(keys)) != len(keys):
            raise ValueError("the keys of a request repeat; prefix-chained keys are distinct")
        if beside is not None:
            raise ValueError("a request has blocks beside its prefix; buckets hold none")
        if sizes != self._block_bytes:
            raise ValueError(
                f"a request has sizes {sizes}; all blocks of buckets have {self._block_bytes} bytes"
            )

    def _empty(self, buckets: Sequence[Bucket]) -> list[BlockEntry]:
        """Forget the oldest buckets; the caller deletes them."""
        victims: list[BlockEntry] = [
            entry
            for bucket in buckets
            for entry in bucket.entries
            if self._entries.get(entry.key) is entry  # else it could not be read, and is dropped
        ]
        for entry in victims:
            del self._entries[entry.key]
        for _bucket in buckets:
            self._sealed.popleft()
        self._used_bytes -= len(victims) * self._padded_bytes
        self._present_bytes -= len(victims) * self._padded_bytes
        self._present_blocks -= len(victims)
        self.evictions += len(victims)
        return victims

    def _fill(self, keys: Sequence[bytes]) -> tuple[list[BlockEntry], list[Bucket]]:
        """Put blocks into the open bucket; return them, and the buckets that are full now."""
        inserts: list[BlockEntry] = []
        sealed: list[Bucket] = []
        for key in keys:
            self._last_version = version = next(self._versions)
            bucket = self._open
            entry = BucketEntry(bucket, key, version, self._block_bytes, self._padded_bytes)
            self._entries[key] = entry
            inserts.append(entry)
            if len(bucket.entries) == self.bucket_blocks:
                self._used_bytes += self.bucket_blocks * self._padded_bytes
                self._sealed.append(bucket)
                sealed.append(bucket)
                self._open = Bucket()
        return inserts, sealed


def in_memory(entry: BlockEntry) -> bool:
    """Whether a block's data are there, and its bucket is not written yet."""
    return isinstance(entry, BucketEntry) and entry.is_put and not entry.present


def _last_awaited(hits: Sequence[BlockEntry]) -> BlockEntry | None:
    """The last one whose data are not there yet: it comes last, as a rule."""
    return next((e for e in reversed(hits) if not (e.present or in_memory(e))), None)


def _in_use(buckets: Sequence[Bucket]) -> BucketEntry | None:
    """The last block of them that is read, or not written yet."""
    for bucket in reversed(buckets):
        for entry in reversed(bucket.entries):
            if entry.pins or entry.unwritten:
                return entry
    return None
