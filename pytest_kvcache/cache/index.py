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
from dataclasses import dataclass
from itertools import accumulate, chain, compress, count
from operator import not_
from typing import TYPE_CHECKING, NamedTuple

from pytest_kvcache.cache.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Added to what is unwritten of a slot that was rolled back: it is never present any more.
_GIVEN_UP = 1 << 40


class Slot:
    """One block of the tier: the place of one stored object, or of one per layer.

    ``block_bytes`` is the block's data, ``stored_bytes`` what its objects take of the
    capacity, each padded. ``unwritten`` counts the objects that are not stored yet,
    ``pins`` the admissions that read it now. ``version`` is the generation under which
    its data was first written, another one's where it is a copy (see ``hold_what``). Only
    `CacheIndex` changes a slot, but for ``was_read``, which is its user's.
    """

    __slots__ = (
        "_identity", "_object_key", "block_bytes", "generation", "key", "pins",
        "stored_bytes", "unwritten", "version", "was_read",
    )  # fmt: skip

    _identity: Identity
    _object_key: str

    def __init__(
        self, key: bytes, generation: int, objects: int, block_bytes: int, stored_bytes: int
    ) -> None:
        self.key = key
        self.generation = self.version = generation
        self.unwritten = objects
        self.block_bytes = block_bytes
        self.stored_bytes = stored_bytes
        self.pins = 0
        self.was_read = False

    # Made at first use, once: a block that is only counted needs none of them.

    @property
    def object_key(self) -> str:
        """What a backend stores under: the key in hex, a dot, and the generation.

        No other block of the index ever had that generation; objects of a layer have
        the layer's number added.
        """
        try:
            return self._object_key
        except AttributeError:
            self._object_key = made = f"{self.key.hex()}.{self.generation}"
            return made

    @property
    def identity(self) -> Identity:
        """What the object says of itself; that of a layer, with its part."""
        try:
            return self._identity
        except AttributeError:
            self._identity = made = Identity(self.key, self.version)
            return made

    def hold_what(self, other: Slot) -> None:
        """Be another copy of the same data: what it says of itself is the other's identity."""
        self.version = other.version

    @property
    def present(self) -> bool:
        """Whether all its objects are stored."""
        return not self.unwritten

    def __repr__(self) -> str:
        state = "present" if self.present else "pending"
        return f"Slot({self.object_key}, {state}, pins={self.pins})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What one request reads, writes and displaces; all lists in prompt order but victims.

    ``hits``: the leading run of the prompt, committed, pinned until `CacheIndex.release`.
    ``inserts``: reserved for this request, which must commit or roll back every one.
    ``victims``: gone from the index, least recent first; the caller deletes ALL their
    objects before it writes or rolls back the first insert.
    ``prompt_blocks``: blocks of the prompt, those beyond the capacity included.
    """

    hits: list[Slot]
    inserts: list[Slot]
    victims: list[Slot]
    prompt_blocks: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """The request can't be decided before ``slot`` is committed, released, gone or deleted."""

    slot: Slot


class Kept(NamedTuple):
    """The leading keys of a request that fit into a tier, and what is there of them.

    ``sizes`` are their blocks' bytes, ``stored`` what these take of the capacity;
    ``head`` are the slots before the first key that is missing, ``rest`` what is there
    (or None) of that key and those behind it.
    """

    keys: Sequence[bytes]
    own: set[bytes]
    sizes: Sequence[int]
    stored: Sequence[int]
    head: list[Slot]
    rest: list[Slot | None]

    @property
    def missing_bytes(self) -> int:
        """What the blocks that are not there would take of the capacity."""
        return sum(compress(self.stored[len(self.head) :], map(not_, self.rest)))


class CacheIndex:
    """Slots of one tier in LRU order, at most ``capacity_bytes`` (None: without limit).

    ``objects_per_block``: how many objects of equal size a block is stored as, each of
    them committed; ``page_bytes``: each of them takes whole pages of so many bytes of the
    capacity. Sizes of blocks (``sizes``) are the bytes of their data, never padded: one
    int where all blocks of a request are equal, else one for each key; a key's block
    always has the same size. ``generations``: where several indices share theirs, so that
    no two slots of them have the same. The counters ``prompt_blocks``, ``hit_blocks`` and
    ``evictions`` grow with every admission and are never reset; take differences.
    """

    def __init__(
        self,
        capacity_bytes: int | None,
        *,
        page_bytes: int,
        objects_per_block: int = 1,
        generations: Iterator[int] | None = None,
    ) -> None:
        if capacity_bytes is not None and capacity_bytes < 0:
            raise ValueError(f"capacity_bytes is {capacity_bytes}; it must be at least 0")
        self.capacity_bytes = capacity_bytes
        self.page_bytes = page_bytes
        self.objects_per_block = objects_per_block
        self.prompt_blocks = 0
        self.hit_blocks = 0
        self.evictions = 0
        self._slots: OrderedDict[bytes, Slot] = OrderedDict()  # least recently used first
        self._used_bytes = 0
        self._present_blocks = self._present_bytes = 0
        self._generations = generations or count(1)
        self._generation = 0
        # By last victims: what the victims of an admission take beyond its inserts, until deleted.
        self._leaving: dict[Slot, int] = {}
        self._leaving_bytes = 0
        self._only_size: int | None = None  # of all blocks there have ever been; 0: they differ

    @property
    def used_blocks(self) -> int:
        """Blocks stored or reserved."""
        return len(self._slots)

    @property
    def used_bytes(self) -> int:
        """What they take of the capacity; never more than that."""
        return self._used_bytes

    @property
    def generation(self) -> int:
        """That of the youngest slot there has been; 0: there was none."""
        return self._generation

    def stored(self) -> list[Slot]:
        """All slots that are completely stored, least recently used first."""
        return [slot for slot in self._slots.values() if not slot.unwritten]

    @property
    def present_blocks(self) -> int:
        """Blocks that are completely stored."""
        return self._present_blocks

    @property
    def present_bytes(self) -> int:
        """What those take of the capacity."""
        return self._present_bytes

    def admit(
        self, keys: Sequence[bytes], prompt_blocks: int, sizes: int | Sequence[int]
    ) -> Admission | Blocked:
        """Decide one request: count its hits, touch its keys, reserve what is missing.

        ``keys`` are distinct: the prompt's ``prompt_blocks`` keys, then those of the
        output's blocks, which are stored but never hits. Only as many leading ones as
        fit into the capacity are kept. Present keys after the leading run are touched,
        not read. Changes nothing when it returns `Blocked`: that is when the next key of
        the leading run, or a victim that LRU order demands, is still being stored (or, a
        victim, read), or when room that is needed is still being deleted; waiting keeps
        the content independent of the storage's speed.
        Raises ValueError for repeated keys, and for sizes that are none.
        """
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        kept = self.keep(keys, sizes)
        hits = kept.head[:prompt_blocks]
        if (pending := first_pending(hits)) is not None:
            return Blocked(pending)
        victims = self.victims(kept)
        if isinstance(victims, Blocked):
            return victims
        self.evict(victims, kept)
        inserts = self.touch(kept)
        self._pin(hits, prompt_blocks)
        return Admission(hits=hits, inserts=inserts, victims=victims, prompt_blocks=prompt_blocks)

    def look_up(self, keys: Sequence[bytes], prompt_blocks: int) -> Admission | Blocked:
        """Decide a request that stores nothing: its hits, pinned; nothing is touched.

        ``keys`` and the answer as in ``admit``.
        """
        hits = self.leading_run(keys[:prompt_blocks])
        if (pending := first_pending(hits)) is not None:
            return Blocked(pending)
        self._pin(hits, prompt_blocks)
        return Admission(hits=hits, inserts=[], victims=[], prompt_blocks=prompt_blocks)

    def has_room_for(self, keys: Sequence[bytes], sizes: int | Sequence[int]) -> bool:
        """Return whether all these distinct keys could be stored without a victim."""
        if self.capacity_bytes is None:
            return True
        kept = self.keep(keys, sizes)
        whole = len(kept.keys) == len(keys)
        taken_bytes = self._used_bytes + self._leaving_bytes
        return whole and taken_bytes + kept.missing_bytes <= self.capacity_bytes

    def commit(self, slot: Slot) -> None:
        """Say that an object of a reserved slot is completely stored; the last makes it present.

        Of a slot that was rolled back, objects that were under way may still be committed:
        the one that failed never is, so it does not become present.
        """
        left = slot.unwritten - 1
        if left < 0 or left == _GIVEN_UP:
            raise ValueError(f"{slot!r} is committed; only a reserved slot can be")
        slot.unwritten = left
        if not left:
            self._present_blocks += 1
            self._present_bytes += slot.stored_bytes

    def roll_back(self, slot: Slot) -> None:
        """Give up a reserved slot whose store failed; delete what was written first.

        Once more for another object of it that failed does nothing.
        """
        if not slot.unwritten:
            raise ValueError(f"{slot!r} is rolled back; only a reserved slot can be")
        if slot.unwritten < _GIVEN_UP:
            slot.unwritten += _GIVEN_UP
            del self._slots[slot.key]
            self._used_bytes -= slot.stored_bytes

    def deleted(self, admission: Admission) -> None:
        """Say that the objects of all its victims are deleted: all they took is free now."""
        self.gone(admission.victims)

    def gone(self, victims: Sequence[Slot]) -> None:
        """Say so of the victims, all those of one decision."""
        if victims:
            self._leaving_bytes -= self._leaving.pop(victims[-1], 0)

    def release(self, admission: Admission) -> None:
        """Unpin the hits of an admission, once, when they were read."""
        for slot in admission.hits:
            if not slot.pins:
                raise ValueError(f"{slot!r} is released; it is not pinned")
            slot.pins -= 1

    def drop(self, slot: Slot) -> None:
        """Forget a stored slot whose object can't be read; delete the object first.

        Others that have it pinned still release it. A second drop does nothing.
        """
        if slot.present and self._slots.get(slot.key) is slot:
            del self._slots[slot.key]
            self._used_bytes -= slot.stored_bytes
            self._present_blocks -= 1
            self._present_bytes -= slot.stored_bytes

    # --- the steps of an admission, for whoever decides several tiers at once --------------

    def keep(self, keys: Sequence[bytes], sizes: int | Sequence[int]) -> Kept:
        """Return the leading keys that fit into the capacity, and what is there of them."""
        own = set(keys)
        if len(own) != len(keys):
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
            keys = keys[:fitting]
            own = set(keys)
        head = self.leading_run(keys)
        rest = self.find(keys[len(head) :])
        if sizes != self._only_size:
            self._check_sizes(sizes, each, [*head, *rest])
        return Kept(keys, own, each, stored, head, rest)

    def leading_run(self, keys: Iterable[bytes]) -> list[Slot]:
        """Return the slots, stored or reserved, of the keys before the first missing one."""
        run: list[Slot] = []
        try:
            run.extend(map(self._slots.__getitem__, keys))  # a loop in C
        except KeyError:
            return run  # with what came before it
        return run

    def victims(
        self, kept: Kept, *, spared: set[bytes] | None = None, last: Sequence[Slot] = ()
    ) -> list[Slot] | Blocked:
        """Return the least recent slots of others that make room for what is missing.

        Others are those outside ``kept``, or outside ``spared`` if that is given; after
        them go those in ``last``, which are of the request itself.
        """
        victims: list[Slot] = []
        if self.capacity_bytes is None:
            return victims
        left_bytes = self.capacity_bytes - self._used_bytes - kept.missing_bytes
        if left_bytes < 0:
            own = kept.own if spared is None else spared
            others = (slot for slot in self._slots.values() if slot.key not in own)
            for slot in chain(others, last):
                if slot.pins or slot.unwritten:
                    return Blocked(slot)
                victims.append(slot)
                left_bytes += slot.stored_bytes
                if left_bytes >= 0:
                    break
        if self._leaving_bytes > left_bytes:
            return Blocked(next(iter(self._leaving)))
        return victims

    def evict(self, victims: list[Slot], kept: Kept) -> None:
        """Forget them in favour of what is missing; the caller deletes their objects."""
        slots, freed_bytes = self._slots, 0
        for slot in victims:
            del slots[slot.key]
            freed_bytes += slot.stored_bytes
        self._used_bytes -= freed_bytes
        self._present_blocks -= len(victims)
        self._present_bytes -= freed_bytes
        self.evictions += len(victims)
        if (surplus_bytes := freed_bytes - kept.missing_bytes) > 0:
            self._leaving[victims[-1]] = surplus_bytes
            self._leaving_bytes += surplus_bytes

    def touch(self, kept: Kept) -> list[Slot]:
        """Move or insert the keys, last key first; return the new slots in prompt order."""
        slots, objects, head = self._slots, self.objects_per_block, len(kept.head)
        generations, used_bytes = self._generations, self._used_bytes
        inserts: list[Slot] = []
        rows = zip(kept.keys[head:], kept.sizes[head:], kept.stored[head:], kept.rest, strict=True)
        for key, size, stored, slot in reversed(list(rows)):
            if slot is None:
                used_bytes += stored
                slots[key] = fresh = Slot(key, next(generations), objects, size, stored)
                inserts.append(fresh)
            else:
                slots.move_to_end(key)
        self._used_bytes = used_bytes
        if inserts:
            self._generation = inserts[-1].generation
        deque(map(slots.move_to_end, reversed(kept.keys[:head])), maxlen=0)  # likewise
        inserts.reverse()
        return inserts

    def refresh(self, keys: Sequence[bytes]) -> None:
        """Touch keys that are there, the last one first."""
        deque(map(self._slots.move_to_end, reversed(keys)), maxlen=0)

    def find(self, keys: Iterable[bytes]) -> list[Slot | None]:
        """Return the slots, stored or reserved, of the keys."""
        return list(map(self._slots.get, keys))

    def padded_bytes(self, block_bytes: int) -> int:
        """What a block of so many bytes takes of the capacity."""
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
        self, sizes: int | Sequence[int], each: Sequence[int], found: Sequence[Slot | None]
    ) -> None:
        """Raise ValueError if a block is said to have another size than when it was stored."""
        first = self._only_size is None and isinstance(sizes, int)
        self._only_size = sizes if first and isinstance(sizes, int) else 0
        for size, slot in zip(each, found, strict=True):
            if slot is not None and slot.block_bytes != size:
                raise ValueError(
                    f"{slot!r} has {slot.block_bytes} bytes, and is asked for as {size}"
                )

    def _pin(self, hits: list[Slot], prompt_blocks: int) -> None:
        for slot in hits:
            slot.pins += 1
        self.prompt_blocks += prompt_blocks
        self.hit_blocks += len(hits)


def first_pending(slots: Iterable[Slot]) -> Slot | None:
    """Return the first one that is still being stored."""
    for slot in slots:
        if slot.unwritten:
            return slot
    return None
