"""The exact LRU-prefix index of one tier: what is stored, what goes, who reads it.

Pure logic on the request path: no I/O, no locks (the engine calls it under its own),
no clock. Imports nothing but the standard library and what an object is.

Why it is exact: an LRU cache of C blocks always holds the C most recently used keys,
so its content after a request is the request's own keys followed by the others in
their old order, cut at C. Choosing victims among the others first therefore leaves
the content that the literal loop leaves (touch or insert the keys one by one, last
key first, evicting the least recent), and deletes no block only to write it again.

Why the storage holds no more than the capacity: an admission has at most as many
victims as inserts, an insert can't be evicted before it is committed, and the caller
deletes objects before their room is used again (see `Admission`, `CacheIndex.roll_back`
and `CacheIndex.drop`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.cache.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Sequence


class Slot:
    """One block of the tier: the place of one stored object, or of one per layer.

    ``object_key`` is what a backend stores under: the key in hex, a dot, and the
    generation, which no other block of the index ever had (objects of a layer have the
    layer's number added); ``identity`` is what the object says of itself, likewise.
    ``unwritten`` counts the objects that are not stored yet, ``present`` is true once
    there are none; ``pins`` counts the admissions that read it now. Only `CacheIndex`
    changes a slot, but for ``was_read``, which is its user's.
    """

    __slots__ = (
        "identity", "key", "object_key", "pins", "present", "unwritten", "was_read",
    )  # fmt: skip

    def __init__(self, key: bytes, generation: int, objects: int = 1) -> None:
        self.key = key
        self.object_key = f"{key.hex()}.{generation}"
        self.identity = Identity(key, generation)
        self.present = False
        self.unwritten = objects
        self.pins = 0
        self.was_read = False

    @property
    def generation(self) -> int:
        """Of slots of one index, the younger one has the higher one."""
        return self.identity.generation

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
    """The request can't be decided before ``slot`` is committed, released or gone."""

    slot: Slot


class CacheIndex:
    """Slots of one tier in LRU order, at most ``capacity_blocks`` (None: without limit).

    ``objects_per_block``: how many objects a block is stored as, each of them committed.
    The counters ``prompt_blocks``, ``hit_blocks`` and ``evictions`` grow with every
    admission and are never reset; take differences.
    """

    def __init__(self, capacity_blocks: int | None, objects_per_block: int = 1) -> None:
        if capacity_blocks is not None and capacity_blocks < 0:
            raise ValueError(f"capacity_blocks is {capacity_blocks}; it must be at least 0")
        self.capacity_blocks = capacity_blocks
        self.objects_per_block = objects_per_block
        self.prompt_blocks = 0
        self.hit_blocks = 0
        self.evictions = 0
        self._slots: OrderedDict[bytes, Slot] = OrderedDict()  # least recently used first
        self._present_blocks = 0
        self._generation = 0

    @property
    def used_blocks(self) -> int:
        """Blocks stored or reserved; never more than the capacity."""
        return len(self._slots)

    @property
    def generation(self) -> int:
        """How many slots there have ever been: the generation of the youngest one."""
        return self._generation

    def stored(self) -> list[Slot]:
        """All slots that are completely stored, least recently used first."""
        return [slot for slot in self._slots.values() if slot.present]

    @property
    def present_blocks(self) -> int:
        """Blocks that are completely stored."""
        return self._present_blocks

    def admit(self, keys: Sequence[bytes], prompt_blocks: int) -> Admission | Blocked:
        """Decide one request: count its hits, touch its keys, reserve what is missing.

        ``keys`` are distinct: the prompt's ``prompt_blocks`` keys, then those of the
        output's blocks, which are stored but never hits. Only the first
        ``capacity_blocks`` of them are kept. Present keys after the leading run are
        touched, not read. Changes nothing when it returns `Blocked`: that is when the
        next key of the leading run, or a victim that LRU order demands, is still being
        stored (or, a victim, read); waiting keeps the content independent of the
        storage's speed. Raises ValueError for repeated keys.
        """
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        own = set(keys)
        if len(own) != len(keys):
            raise ValueError("the keys of a request repeat; prefix-chained keys are distinct")
        if self.capacity_blocks is not None and len(keys) > self.capacity_blocks:
            keys = keys[: self.capacity_blocks]
            own = set(keys)
        found = list(map(self._slots.get, keys))
        hits = _leading_run(found[:prompt_blocks])
        if isinstance(hits, Blocked):
            return hits
        victims = self._victims(own, found.count(None))
        if isinstance(victims, Blocked):
            return victims
        self._evict(victims)
        inserts = self._touch(keys, found)
        for slot in hits:
            slot.pins += 1
        self.prompt_blocks += prompt_blocks
        self.hit_blocks += len(hits)
        return Admission(hits=hits, inserts=inserts, victims=victims, prompt_blocks=prompt_blocks)

    def look_up(self, keys: Sequence[bytes], prompt_blocks: int) -> Admission | Blocked:
        """Decide a request that stores nothing: its hits, pinned; nothing is touched.

        ``keys`` and the answer as in ``admit``.
        """
        keys = keys[:prompt_blocks]
        if self.capacity_blocks is not None:
            keys = keys[: self.capacity_blocks]
        hits = _leading_run(list(map(self._slots.get, keys)))
        if isinstance(hits, Blocked):
            return hits
        for slot in hits:
            slot.pins += 1
        self.prompt_blocks += prompt_blocks
        self.hit_blocks += len(hits)
        return Admission(hits=hits, inserts=[], victims=[], prompt_blocks=prompt_blocks)

    def has_room_for(self, keys: Sequence[bytes]) -> bool:
        """Return whether all these distinct keys could be stored without a victim."""
        if self.capacity_blocks is None:
            return True
        missing = sum(key not in self._slots for key in keys)
        return len(self._slots) + missing <= self.capacity_blocks

    def commit(self, slot: Slot) -> None:
        """Say that an object of a reserved slot is completely stored; the last makes it present.

        Of a slot that was rolled back, objects that were under way may still be committed:
        the one that failed never is, so it does not become present.
        """
        left = slot.unwritten - 1
        if left < 0 or (not left and self._slots.get(slot.key) is not slot):
            raise ValueError(f"{slot!r} is committed; only a reserved slot can be")
        slot.unwritten = left
        if left:
            return
        slot.present = True
        self._present_blocks += 1

    def roll_back(self, slot: Slot) -> None:
        """Give up a reserved slot whose store failed; delete what was written first.

        Once more for another object of it that failed does nothing.
        """
        if slot.present:
            raise ValueError(f"{slot!r} is rolled back; only a reserved slot can be")
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]

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
            self._present_blocks -= 1

    def _victims(self, own: set[bytes], missing: int) -> list[Slot] | Blocked:
        """Return the least recent slots outside ``own`` that make room for ``missing``."""
        victims: list[Slot] = []
        if self.capacity_blocks is None:
            return victims
        count = len(self._slots) + missing - self.capacity_blocks
        if count <= 0:
            return victims
        for slot in self._slots.values():
            if slot.key in own:
                continue
            if slot.pins or not slot.present:
                return Blocked(slot)
            victims.append(slot)
            if len(victims) == count:
                break
        return victims

    def _evict(self, victims: list[Slot]) -> None:
        for slot in victims:
            del self._slots[slot.key]
        self._present_blocks -= len(victims)
        self.evictions += len(victims)

    def _touch(self, keys: Sequence[bytes], found: list[Slot | None]) -> list[Slot]:
        """Move or insert the keys, last key first; return the new slots in prompt order."""
        slots = self._slots
        move_to_end = slots.move_to_end
        generation, objects = self._generation, self.objects_per_block
        inserts: list[Slot] = []
        for key, slot in zip(reversed(keys), reversed(found), strict=True):
            if slot is None:
                generation += 1
                slots[key] = fresh = Slot(key, generation, objects)
                inserts.append(fresh)
            else:
                move_to_end(key)
        self._generation = generation
        inserts.reverse()
        return inserts


def _leading_run(found: list[Slot | None]) -> list[Slot] | Blocked:
    """Return the slots before the first gap, or the first of them that is still stored."""
    run: list[Slot] = []
    for slot in found:
        if slot is None:
            break
        if not slot.present:
            return Blocked(slot)
        run.append(slot)
    return run
