"""The exact LRU-prefix index of one tier: what is stored, what goes, who reads it.

Pure logic on the request path: no I/O, no locks, no clock. Imports nothing but the
standard library and what an object is.

The law, whatever the sizes: after a request the tier holds the request's own keys, as
many leading ones as fit into the capacity, followed by the others in their old order,
cut before the first one that no longer fits. (Nothing smaller behind that one stays:
what is kept never depends on anything but the order of use and the sizes before it.)

Why that is exact LRU: the literal loop (touch or insert the keys one by one, last key
first, evicting the least recent block until the next one fits) evicts from the end of
the order only. Another's block that survives by the law is never evicted there, since
at each step what lies above it, and so the sum, is a part of what the law adds up;
and one that the loop keeps has all above it kept, so that the sum fits by the law too.
Choosing victims among the others first therefore leaves the content that the loop
leaves, and deletes no block only to write it again.

What a request has beside its prefix (`Beside`) follows its own keys, as if they were one
list: all of it where what is absent is to be stored, else what is there. Each that is there
when the request is decided is read, the victims among them before they are deleted.

Why the storage holds no more than the capacity: what is stored and what is reserved
are counted together and never exceed it, an insert can't be evicted before it is
committed, and the caller deletes objects before their room is used again (see
`Admission`, `CacheIndex.roll_back` and `CacheIndex.drop`). Where sizes differ, victims
may take more than the inserts they make room for: the rest of their room is nobody's
until `CacheIndex.deleted`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress, count, filterfalse, repeat
from operator import not_
from typing import TYPE_CHECKING, NamedTuple

from pytest_kvcache.cache.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Added to what is unwritten of an entry that was rolled back: it is never present any more.
_GIVEN_UP = 1 << 40


class BlockEntry:
    """The entry of one block in a tier: one stored object, or one per layer.

    ``block_bytes`` is the block's data, ``stored_bytes`` what its objects take of the
    capacity, each padded. ``unwritten`` counts the objects that are not stored yet,
    ``pins`` the admissions that read it now. ``data_version`` is the version under
    which its data was first written, another one's where it is a copy (see ``hold_what``). Only
    `CacheIndex` changes an entry, but for ``was_read``, which is its user's.
    """

    __slots__ = (
        "_identity", "_object_key", "_tag", "block_bytes", "data_version", "key", "object_version",
        "pins", "stored_bytes", "unwritten", "was_read",
    )  # fmt: skip

    _identity: Identity
    _tag: int
    _object_key: str

    def __init__(
        self, key: bytes, object_version: int, objects: int, block_bytes: int, stored_bytes: int
    ) -> None:
        self.key = key
        self.object_version = self.data_version = object_version
        self.unwritten = objects
        self.block_bytes = block_bytes
        self.stored_bytes = stored_bytes
        self.pins = 0
        self.was_read = 0  # a bit for each object that was, the lowest one where all are

    # Made at first use, once: a block that is only counted needs none of them.

    @property
    def object_key(self) -> str:
        """What a backend stores under: the key in hex, a dot, and the version.

        No other block of the index ever had that version; objects of a layer have
        the layer's number added.
        """
        try:
            return self._object_key
        except AttributeError:
            self._object_key = made = f"{self.key.hex()}.{self.object_version}"
            return made

    @property
    def identity(self) -> Identity:
        """What the object says of itself; that of a layer, with its part."""
        try:
            return self._identity
        except AttributeError:
            self._identity = made = Identity(self.key, self.data_version)
            return made

    @property
    def tag(self) -> int:
        """That of its identity."""
        try:
            return self._tag
        except AttributeError:
            self._tag = made = self.identity.tag
            return made

    def hold_what(self, other: BlockEntry) -> None:
        """Be another copy of the same data: what it says of itself is the other's identity."""
        self.data_version = other.data_version

    @property
    def present(self) -> bool:
        """Whether all its objects are stored."""
        return not self.unwritten

    def __repr__(self) -> str:
        state = "present" if self.present else "pending"
        return f"BlockEntry({self.object_key}, {state}, pins={self.pins})"


class ContentEntry(BlockEntry):
    """A block that everybody stores under the same name, for it is the same data: its content's.

    ``origin`` is that of what is written by this entry (see `Identity`). The version is the index's
    own, and in no name.
    """

    __slots__ = ()

    def __init__(  # noqa: PLR0917  as the index makes entries
        self, origin: int, key: bytes, object_version: int, objects: int, block_bytes: int,
        stored_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(key, object_version, objects, block_bytes, stored_bytes)
        self._object_key = content_name(key)
        self._identity = Identity(key, 0, 0, origin)


def content_name(key: bytes) -> str:
    """What a block is stored under in a store that ranks share."""
    return f"{key.hex()}.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What one request reads, writes and displaces; all lists in prompt order but victims.

    ``hits``: the leading run of the prompt, committed, pinned until `CacheIndex.release`.
    ``inserts``: reserved for this request, which must commit or roll back every one.
    ``beside_hits``: those of what it has beside its prefix, committed and pinned likewise.
    ``victims``: gone from the index, least recent first; the caller deletes ALL their
    objects before it writes or rolls back the first insert.
    ``prompt_blocks``: blocks of the prompt, those beyond the capacity included.
    """

    hits: list[BlockEntry]
    inserts: list[BlockEntry]
    victims: list[BlockEntry]
    prompt_blocks: int
    beside_hits: Sequence[BlockEntry] = ()


class Beside(NamedTuple):
    """Blocks that a request reads beside its prefix, each where it is there.

    ``sizes`` as in `CacheIndex.admit`; with ``stores`` those that are absent are stored.
    """

    keys: Sequence[bytes]
    sizes: int | Sequence[int]
    stores: bool

    def after(
        self, keys: Sequence[bytes], sizes: int | Sequence[int], there: Sequence[object]
    ) -> tuple[list[bytes], int | list[int]]:
        """Return all that a request keeps, and the sizes: its keys, then these.

        ``there`` has something true for each of these keys that is there. Raises ValueError for
        sizes that are none, and for keys that repeat.
        """
        if len({*keys, *self.keys}) != len(keys) + len(self.keys):
            raise ValueError(
                "the keys of a request repeat; those beside its prefix are distinct, and others"
            )
        own, beside = _each(sizes, keys), _each(self.sizes, self.keys)
        kept = [bool(self.stores or entry) for entry in there]
        each = [*own, *compress(beside, kept)]
        same = each[0] if len(set(each)) == 1 else each
        return [*keys, *compress(self.keys, kept)], same


def _each(sizes: int | Sequence[int], keys: Sequence[bytes]) -> Sequence[int]:
    if isinstance(sizes, int):
        return [sizes] * len(keys)
    if len(sizes) != len(keys):
        raise ValueError(f"a request has {len(sizes)} sizes for {len(keys)} keys")
    return sizes


@dataclass(frozen=True, slots=True)
class Blocked:
    """The request can't be decided before ``entry`` is committed, released, gone or deleted."""

    entry: BlockEntry


class Kept(NamedTuple):
    """The leading keys of a request that fit into a tier, and what is there of them.

    ``own`` is their set, where it was made; ``sizes`` are their blocks' bytes, ``stored`` what
    these take of the capacity; ``head`` are the entries before the first key that is missing,
    ``rest`` what is there (or None) of that key and those behind it; ``missing_bytes`` is what
    the blocks that are not there would take of the capacity.
    """

    keys: Sequence[bytes]
    own: set[bytes] | None
    sizes: Sequence[int]
    stored: Sequence[int]
    head: list[BlockEntry]
    rest: list[BlockEntry | None]
    missing_bytes: int


class CacheIndex:
    """Entries of one tier in LRU order, at most ``capacity_bytes`` (None: without limit).

    ``objects_per_block``: how many objects of equal size a block is stored as, each of
    them committed, or ``part_bytes``, the data of each where they differ and all blocks are
    alike; ``page_bytes``: each of them takes whole pages of so many bytes of the capacity.
    Sizes of blocks (``sizes``) are the bytes of their data, never padded: one int where all
    blocks of a request are equal, else one for each key; a key's block always has the same
    size. ``versions``: where several indices share theirs, so that no two entries of them have
    the same. ``entry`` makes entries. The counters ``prompt_blocks``, ``hit_blocks`` and
    ``evictions`` grow with every admission and are never reset; take differences.
    """

    def __init__(
        self,
        capacity_bytes: int | None,
        *,
        page_bytes: int,
        objects_per_block: int = 1,
        part_bytes: Sequence[int] = (),
        versions: Iterator[int] | None = None,
        entry: Callable[[bytes, int, int, int, int], BlockEntry] = BlockEntry,
    ) -> None:
        if capacity_bytes is not None and capacity_bytes < 0:
            raise ValueError(f"capacity_bytes is {capacity_bytes}; it must be at least 0")
        self.capacity_bytes = capacity_bytes
        self.page_bytes = page_bytes
        self.objects_per_block = len(part_bytes) or objects_per_block
        self._part_bytes = tuple(part_bytes)
        self.prompt_blocks = 0
        self.hit_blocks = 0
        self.evictions = 0
        self._entries: OrderedDict[bytes, BlockEntry] = OrderedDict()  # least recently used first
        self._used_bytes = 0
        self._present_blocks = self._present_bytes = self._dropped_blocks = 0
        self._versions = versions or count(1)
        self._make_entry = entry
        self._last_version = 0
        # By last victims: what the victims of an admission take beyond its inserts, until deleted.
        self._leaving: dict[BlockEntry, int] = {}
        self._leaving_bytes = 0
        self._only_size: int | None = None  # of all blocks there have ever been; 0: they differ

    @property
    def used_blocks(self) -> int:
        """Blocks stored or reserved."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """What stored and reserved blocks take of the capacity, never more than that."""
        return self._used_bytes

    @property
    def last_version(self) -> int:
        """The version of the youngest entry there has been; 0: there was none."""
        return self._last_version

    def stored(self) -> list[BlockEntry]:
        """All entries that are completely stored, least recently used first."""
        return [entry for entry in self._entries.values() if not entry.unwritten]

    @property
    def present_blocks(self) -> int:
        """Blocks that are completely stored."""
        return self._present_blocks

    @property
    def present_bytes(self) -> int:
        """What the completely stored blocks take of the capacity."""
        return self._present_bytes

    @property
    def committed_blocks(self) -> int:
        """Blocks that have ever been completely stored; take differences."""
        return self._present_blocks + self.evictions + self._dropped_blocks

    def admit(
        self,
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
        beside: Beside | None = None,
    ) -> Admission | Blocked:
        """Decide one request: count its hits, touch its keys, reserve what is missing.

        ``keys`` are distinct: the prompt's ``prompt_blocks`` keys, then those of the
        output's blocks, which are stored but never hits. Only as many leading ones as
        fit into the capacity are kept. Present keys after the leading run are touched,
        not read; those ``beside`` are read. Changes nothing when it returns `Blocked`: that is
        when the next key of the leading run, one of those beside, or a victim that LRU order
        demands, is still being stored (or, a
        victim, read), or when room that is needed is still being deleted; waiting keeps
        the content independent of the storage's speed.
        Raises ValueError for repeated keys, and for sizes that are none.
        """
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        beside_hits: Sequence[BlockEntry] = ()
        if beside is not None:
            there = self.find(beside.keys)
            keys, sizes = beside.after(keys, sizes, there)
            beside_hits = list(filter(None, there))
        kept = self.keep(keys, sizes)
        hits = kept.head[:prompt_blocks]
        if (pending := last_pending(hits) or first_pending(beside_hits)) is not None:
            return Blocked(pending)
        victims = self.victims(kept)
        if isinstance(victims, Blocked):
            return victims
        self.evict(victims, kept)
        inserts = self.touch(kept)
        self._pin(hits, prompt_blocks)
        for entry in beside_hits:
            entry.pins += 1
        return Admission(
            hits=hits, inserts=inserts, victims=victims, prompt_blocks=prompt_blocks,
            beside_hits=beside_hits,
        )  # fmt: skip

    def admit_after_deletes(
        self,
        deletes: Sequence[bytes],
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
    ) -> Admission | Blocked:
        """Decide a request before whose inserts the blocks of ``deletes`` go, where they are there.

        They are victims of the admission, whatever the order of use; those that ``keys`` name are
        inserted anew. The rest as in ``admit``; `Blocked` too while one of them is stored or read,
        which changes nothing but that they have been used last.
        """
        gone = list(filter(None, self.find(deletes)))
        for entry in gone:
            if entry.pins or entry.unwritten:
                return Blocked(entry)
        self._take(gone, 1)
        found = self.admit(keys, prompt_blocks, sizes)
        if isinstance(found, Blocked):
            self._take(gone, -1)
            self._entries.update((entry.key, entry) for entry in gone)
            return found
        if not gone:
            return found
        self.evictions += len(gone)
        victims = [*found.victims, *gone]
        self.gone(found.victims)  # what they left over is counted with the others'
        freed_bytes = sum(entry.stored_bytes for entry in victims)
        surplus_bytes = freed_bytes - sum(entry.stored_bytes for entry in found.inserts)
        if surplus_bytes > 0:
            self._leaving[victims[-1]] = surplus_bytes
            self._leaving_bytes += surplus_bytes
        return replace(found, victims=victims)

    def _take(self, entries: Sequence[BlockEntry], times: int) -> None:
        """Take stored entries out of the counts, or put them in again (-1)."""
        if times > 0:
            for entry in entries:
                del self._entries[entry.key]
        stored_bytes = times * sum(entry.stored_bytes for entry in entries)
        self._used_bytes -= stored_bytes
        self._present_bytes -= stored_bytes
        self._present_blocks -= times * len(entries)

    def look_up(
        self, keys: Sequence[bytes], prompt_blocks: int, beside: Beside | None = None
    ) -> Admission | Blocked:
        """Decide a request that stores nothing: its hits, pinned; nothing is touched.

        ``keys``, ``beside`` and the answer as in ``admit``.
        """
        hits = self.leading_run(keys[:prompt_blocks])
        beside_hits = [] if beside is None else list(filter(None, self.find(beside.keys)))
        if (pending := last_pending(hits) or first_pending(beside_hits)) is not None:
            return Blocked(pending)
        self._pin(hits, prompt_blocks)
        for entry in beside_hits:
            entry.pins += 1
        return Admission(
            hits=hits, inserts=[], victims=[], prompt_blocks=prompt_blocks, beside_hits=beside_hits
        )

    def has_room_for(self, keys: Sequence[bytes], sizes: int | Sequence[int]) -> bool:
        """Return whether all these distinct keys could be stored without a victim."""
        if self.capacity_bytes is None:
            return True
        kept = self.keep(keys, sizes)
        whole = len(kept.keys) == len(keys)
        taken_bytes = self._used_bytes + self._leaving_bytes
        return whole and taken_bytes + kept.missing_bytes <= self.capacity_bytes

    def fitting_beside(self, sizes: Sequence[int]) -> int:
        """Return how many leading blocks of these sizes fit beside what is there."""
        if self.capacity_bytes is None:
            return len(sizes)
        left_bytes = self.capacity_bytes - self._used_bytes - self._leaving_bytes
        return bisect_right(list(accumulate(map(self.padded_bytes, sizes))), left_bytes)

    def commit(self, entry: BlockEntry) -> None:
        """Say that an object of a reserved entry is completely stored; the last makes it present.

        Of an entry that was rolled back, objects that were under way may still be committed:
        the one that failed never is, so it does not become present.
        """
        left = entry.unwritten - 1
        if left < 0 or left == _GIVEN_UP:
            raise ValueError(f"{entry!r} is committed; only a reserved entry can be")
        entry.unwritten = left
        if not left:
            self._present_blocks += 1
            self._present_bytes += entry.stored_bytes

    def roll_back(self, entry: BlockEntry) -> None:
        """Give up a reserved entry whose store failed; delete what was written first.

        Once more for another object of it that failed does nothing.
        """
        if not entry.unwritten:
            raise ValueError(f"{entry!r} is rolled back; only a reserved entry can be")
        if entry.unwritten < _GIVEN_UP:
            entry.unwritten += _GIVEN_UP
            del self._entries[entry.key]
            self._used_bytes -= entry.stored_bytes

    def deleted(self, admission: Admission) -> None:
        """Say that the objects of all its victims are deleted: all they took is free now."""
        self.gone(admission.victims)

    def gone(self, victims: Sequence[BlockEntry]) -> None:
        """Say so of the victims, all those of one decision."""
        if victims:
            self._leaving_bytes -= self._leaving.pop(victims[-1], 0)

    def release(self, admission: Admission) -> None:
        """Unpin the hits of an admission, once, when they were read."""
        unpin(admission.hits)
        if admission.beside_hits:
            unpin(admission.beside_hits)

    def drop(self, entry: BlockEntry) -> None:
        """Forget a stored entry whose object can't be read; delete the object first.

        Others that have it pinned still release it. A second drop does nothing.
        """
        if entry.present and self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            self._used_bytes -= entry.stored_bytes
            self._present_blocks -= 1
            self._present_bytes -= entry.stored_bytes
            self._dropped_blocks += 1

    def give_up_reserved(self) -> None:
        """Roll back all that is reserved: nothing is stored any more."""
        for entry in [entry for entry in self._entries.values() if entry.unwritten]:
            self.roll_back(entry)

    # --- the steps of an admission, for whoever decides several tiers at once --------------

    def keep(
        self,
        keys: Sequence[bytes],
        sizes: int | Sequence[int],
        there: Sequence[BlockEntry | None] | None = None,
    ) -> Kept:
        """Return the leading keys that fit into the capacity, and what is there of them.

        ``there``: what ``find`` returns for the keys, where their user has asked for that, and
        has seen that they are distinct.
        """
        own = set(keys) if there is None else None
        if own is not None and len(own) != len(keys):
            raise ValueError("the keys of a request repeat; prefix-chained keys are distinct")
        if not isinstance(sizes, int):
            if len(sizes) != len(keys):
                raise ValueError(f"a request has {len(sizes)} sizes for its {len(keys)} keys")
            if len(set(sizes)) == 1:
                sizes = sizes[0]
        if isinstance(sizes, int):
            fitting = self._fitting(sizes, len(keys))
            each, stored = [sizes] * fitting, [self.padded_bytes(sizes)] * fitting
        else:
            stored = list(map(self.padded_bytes, sizes))
            fitting = len(keys)
            if self.capacity_bytes is not None:
                fitting = bisect_right(list(accumulate(stored)), self.capacity_bytes)
            each, stored = list(sizes[:fitting]), stored[:fitting]
        if fitting < len(keys):
            keys, own = keys[:fitting], None
        if there is None:
            head = self.leading_run(keys)
            rest = self.find(keys[len(head) :])
        else:
            missing = [*there[:fitting], None].index(None)
            head, rest = list(filter(None, there[:missing])), list(there[missing:fitting])
        if keys and sizes != self._only_size:
            self._check_sizes(sizes, each, [*head, *rest])
        missing_bytes = sum(compress(stored[len(head) :], map(not_, rest)))
        return Kept(keys, own, each, stored, head, rest, missing_bytes)

    def leading_run(self, keys: Iterable[bytes]) -> list[BlockEntry]:
        """Return the entries, stored or reserved, of the keys before the first missing one."""
        run: list[BlockEntry] = []
        try:
            run.extend(map(self._entries.__getitem__, keys))  # a loop in C
        except KeyError:
            return run  # with what came before it
        return run

    def victims(
        self, kept: Kept, *, last: Sequence[BlockEntry] | None = None
    ) -> list[BlockEntry] | Blocked:
        """Return the least recent entries of others that make room for what is missing.

        Others are those outside ``kept``, or outside ``last`` if that is given: entries of the
        request itself, which go after them.
        """
        victims: list[BlockEntry] = []
        if self.capacity_bytes is None:
            return victims
        left_bytes = self.capacity_bytes - self._used_bytes - kept.missing_bytes
        if left_bytes < 0:
            own = kept.own or set(kept.keys) if last is None else {entry.key for entry in last}
            others = filterfalse(own.__contains__, self._entries)
            for entry in chain(map(self._entries.__getitem__, others), last or ()):
                if entry.pins or entry.unwritten:
                    return Blocked(entry)
                victims.append(entry)
                left_bytes += entry.stored_bytes
                if left_bytes >= 0:
                    break
        if self._leaving_bytes > left_bytes:
            return Blocked(next(iter(self._leaving)))
        return victims

    def evict(self, victims: list[BlockEntry], kept: Kept) -> None:
        """Forget them in favour of what is missing; the caller deletes their objects."""
        entries, freed_bytes = self._entries, 0
        for entry in victims:
            del entries[entry.key]
            freed_bytes += entry.stored_bytes
        self._used_bytes -= freed_bytes
        self._present_blocks -= len(victims)
        self._present_bytes -= freed_bytes
        self.evictions += len(victims)
        if (surplus_bytes := freed_bytes - kept.missing_bytes) > 0:
            self._leaving[victims[-1]] = surplus_bytes
            self._leaving_bytes += surplus_bytes

    def touch(self, kept: Kept) -> list[BlockEntry]:
        """Move or insert the keys, last key first; return the new entries in prompt order."""
        entries, head = self._entries, len(kept.head)
        missing = list(map(not_, reversed(kept.rest)))
        keys, sizes, stored = kept.keys[head:], kept.sizes[head:], kept.stored[head:]
        inserts = list(
            map(
                self._make_entry,
                compress(reversed(keys), missing),
                self._versions,
                repeat(self.objects_per_block),
                compress(reversed(sizes), missing),
                compress(reversed(stored), missing),
            )
        )
        for entry in inserts:
            entries[entry.key] = entry
        self._used_bytes += kept.missing_bytes
        if inserts:
            self._last_version = inserts[-1].object_version
        touched = kept.keys if len(inserts) < len(missing) else kept.keys[:head]
        deque(map(entries.move_to_end, reversed(touched)), maxlen=0)  # a loop in C
        inserts.reverse()
        return inserts

    def refresh(self, keys: Sequence[bytes]) -> None:
        """Touch keys that are there, the last one first."""
        deque(map(self._entries.move_to_end, reversed(keys)), maxlen=0)

    def find(self, keys: Iterable[bytes]) -> list[BlockEntry | None]:
        """Return the entries, stored or reserved, of the keys."""
        return list(map(self._entries.get, keys))

    def padded_bytes(self, block_bytes: int) -> int:
        """What a block of so many bytes takes of the capacity."""
        if self._part_bytes:
            if block_bytes != sum(self._part_bytes):
                raise ValueError(
                    f"a block has {block_bytes} bytes; it must have {sum(self._part_bytes)}, for"
                    " the model's layers keep different things; take one whose do not"
                )
            return sum(-(-size // self.page_bytes) * self.page_bytes for size in self._part_bytes)
        object_bytes, rest = divmod(block_bytes, self.objects_per_block)
        if object_bytes < 1 or rest:
            raise ValueError(
                f"a block has {block_bytes} bytes; it must have some, and as many in each of its"
                f" {self.objects_per_block} objects"
            )
        return -(-object_bytes // self.page_bytes) * self.page_bytes * self.objects_per_block

    def _fitting(self, block_bytes: int, count: int) -> int:
        """How many of so many equal blocks fit."""
        if self.capacity_bytes is None:
            return count
        return min(count, self.capacity_bytes // self.padded_bytes(block_bytes))

    def _check_sizes(
        self, sizes: int | Sequence[int], each: Sequence[int], found: Sequence[BlockEntry | None]
    ) -> None:
        """Raise ValueError if a block is said to have another size than when it was stored."""
        first = self._only_size is None and isinstance(sizes, int)
        self._only_size = sizes if first and isinstance(sizes, int) else 0
        for size, entry in zip(each, found, strict=True):
            if entry is not None and entry.block_bytes != size:
                raise ValueError(
                    f"{entry!r} has {entry.block_bytes} bytes, and is asked for as {size}"
                )

    def _pin(self, hits: list[BlockEntry], prompt_blocks: int) -> None:
        for entry in hits:
            entry.pins += 1
        self.prompt_blocks += prompt_blocks
        self.hit_blocks += len(hits)


def unpin(entries: Iterable[BlockEntry]) -> None:
    """Take one pin of each; raises ValueError for one that has none."""
    for entry in entries:
        if not entry.pins:
            raise ValueError(f"{entry!r} is released; it is not pinned")
        entry.pins -= 1


def first_pending(entries: Iterable[BlockEntry]) -> BlockEntry | None:
    """Return the first one that is still being stored."""
    for entry in entries:
        if entry.unwritten:
            return entry
    return None


def last_pending(run: Sequence[BlockEntry]) -> BlockEntry | None:
    """Return the last one of a leading run that is still being stored: it ends last, as a rule.

    Whoever waited for the first would ask again at the end of each.
    """
    return first_pending(reversed(run))
