"""Several tiers of one rank, fastest first: who serves a block, what is written, moved, deleted.

Pure logic: no I/O, no locks, no clock. Each tier is a `CacheIndex` in bytes of its own.

**Hits.** The leading run of a prompt are the blocks before the first one that no tier
has; each is served by the fastest tier that has it.

**write-through** (what engines do). A tier sees what reached it: the keys that no faster
tier served. Those are its own request, decided as `CacheIndex.admit` does: touched or
inserted, last key first, as many leading ones as fit. An insert of a key of the leading
run is a promotion, a copy of what the slower tier serves; any other is written, to every
tier that has it not. What a faster tier serves does not touch the slower one. What a tier
evicts is deleted there.

**demote** (what the reference does). A block is in one tier. Keys that a tier has are
touched there, whoever serves them, and nothing is promoted. New keys enter the fastest
tier: it keeps its own keys and the new ones, as many leading ones as fit, then the others
in their old order, cut once. What overflows (its victims, least recent first, and after
them the new keys that did not fit, last first) arrives in the next tier as its most
recent, which keeps as many of the most recent arrivals as fit, then the request's own
keys, then the others, cut once; and so on. What overflows the slowest tier is gone. A
victim moves, a new key is written where it ends up.

One tier is a `CacheIndex`, with either policy, to the last decision.

**Under way.** What is decided is the content at once; what it takes to get there is room
that is reserved. A block whose write or move has not ended blocks whoever needs it, as
one that is being stored does in `CacheIndex`; so hits and order are independent of how
long anything takes. A block that is read, or copied from, is pinned. A demoted block is no
longer in its old tier, whose copy stays until it was moved: nothing is lost, nothing is
seen half-written, and no tier ever holds more than its capacity (see `TierAdmission`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Literal, get_args

from pytest_kvcache.cache.index import Blocked, CacheIndex, Kept, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TierPolicy = Literal["write-through", "demote"]
TIER_POLICIES: tuple[TierPolicy, ...] = get_args(TierPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier: its name and what its index is made from (see `CacheIndex`)."""

    name: str
    capacity_bytes: int | None
    page_bytes: int
    objects_per_block: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A block on its way: from a slot of one tier to a reserved slot of another.

    ``copies``: it stays where it was (a promotion, whose source is pinned until the move
    ends); else it leaves, and the source's objects are deleted when it was moved.
    """

    source_tier: int
    source: Slot
    target_tier: int
    target: Slot
    copies: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAdmission:
    """What one request reads, writes, moves and deletes; lists of slots are by tier.

    To be carried out in this order: ``reads`` (in prompt order; pinned until
    `TierStack.release`), then, tier by tier from the slowest to the fastest: its
    ``deletes``; `TierStack.left`, for by now all that was to leave it has; the moves into it
    (each: copy, `TierStack.commit` of the target, delete a source that leaves,
    `TierStack.end_move`); its ``writes``, each committed or rolled back.
    """

    reads: tuple[list[Slot], ...]
    writes: tuple[list[Slot], ...]
    moves: list[Move]
    deletes: tuple[list[Slot], ...]
    prompt_blocks: int
    victims: tuple[list[Slot], ...]  # what leaves each tier, deleted or moved

    @property
    def hit_blocks(self) -> int:
        """Blocks of the leading run."""
        return sum(map(len, self.reads))


@dataclass(slots=True)
class TierCounts:
    """What a tier has served and taken since the beginning; take differences.

    ``written``, ``promoted_in`` and ``demoted_in`` are what was decided to be stored in it,
    by where it came from; ``deleted`` is what left it for nowhere.
    """

    hit_blocks: int = 0
    hit_bytes: int = 0
    written_blocks: int = 0
    written_bytes: int = 0
    promoted_in_blocks: int = 0
    promoted_in_bytes: int = 0
    demoted_in_blocks: int = 0
    demoted_in_bytes: int = 0
    deleted_blocks: int = 0
    deleted_bytes: int = 0

    @property
    def stored_blocks(self) -> int:
        """Blocks that came in, from wherever."""
        return self.written_blocks + self.promoted_in_blocks + self.demoted_in_blocks

    def add(self, kind: str, slots: Sequence[Slot]) -> None:
        """Count blocks and the bytes of their data."""
        blocks, total = f"{kind}_blocks", f"{kind}_bytes"
        setattr(self, blocks, getattr(self, blocks) + len(slots))
        setattr(self, total, getattr(self, total) + sum(slot.block_bytes for slot in slots))


@dataclass(slots=True)
class _Arrival:
    """A block that comes into a tier from above: moved from a slot, or new (None)."""

    key: bytes
    block_bytes: int
    source_tier: int
    source: Slot | None


@dataclass(slots=True)
class _Step:
    """What is decided for one tier, before anything changes."""

    kept: Kept
    victims: list[Slot]
    touched: list[bytes] = field(default_factory=list)
    arrivals: list[_Arrival] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request and where it is: ``found`` by tier, then by key; ``served`` by key of the run."""

    keys: Sequence[bytes]
    sizes: Sequence[int]
    prompt_blocks: int
    found: list[list[Slot | None]]
    served: list[int]

    def select(self, places: Iterable[int]) -> tuple[list[bytes], list[int]]:
        """Return the keys and sizes at these places."""
        chosen = list(places)
        return [self.keys[i] for i in chosen], [self.sizes[i] for i in chosen]

    def reads(self, tiers: int) -> tuple[list[Slot], ...]:
        """Return what each tier serves, in prompt order."""
        reads: tuple[list[Slot], ...] = tuple([] for _ in range(tiers))
        for place, tier in enumerate(self.served):
            slot = self.found[tier][place]
            assert slot is not None
            reads[tier].append(slot)
        return reads


class TierStack:
    """The tiers of one rank, fastest first, and what a request does with them.

    ``indices`` are theirs; the counters ``prompt_blocks`` and ``counts`` (by tier) grow
    with every admission.
    """

    def __init__(self, tiers: Sequence[Tier], policy: TierPolicy) -> None:
        if not tiers:
            raise ValueError("a stack has no tiers; it must have one at least")
        if policy not in TIER_POLICIES:
            raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(TIER_POLICIES)}")
        self.tiers = tuple(tiers)
        self.policy = policy
        generations = count(1)
        self.indices = tuple(
            CacheIndex(
                tier.capacity_bytes,
                page_bytes=tier.page_bytes,
                objects_per_block=tier.objects_per_block,
                generations=generations,
            )
            for tier in tiers
        )
        self.prompt_blocks = 0
        self.counts = tuple(TierCounts() for _ in tiers)

    def admit(
        self, keys: Sequence[bytes], prompt_blocks: int, sizes: int | Sequence[int]
    ) -> TierAdmission | Blocked:
        """Decide one request; the arguments are those of `CacheIndex.admit`.

        Changes nothing when it returns `Blocked`.
        """
        asked = self._ask(keys, prompt_blocks, sizes)
        if isinstance(asked, Blocked):
            return asked
        plan = self._plan_through if self.policy == "write-through" else self._plan_demote
        steps = plan(asked)
        if isinstance(steps, Blocked):
            return steps
        through = self.policy == "write-through"
        found = self._through(asked, steps) if through else self._demote(asked, steps)
        self._count(found)
        return found

    def look_up(self, keys: Sequence[bytes], prompt_blocks: int) -> TierAdmission | Blocked:
        """Decide a request that stores nothing: its hits, pinned; nothing is touched or moved."""
        asked = self._ask(keys[:prompt_blocks], prompt_blocks, 1)
        if isinstance(asked, Blocked):
            return asked
        found = self._admission(asked, writes=self._none(), moves=[], steps=[])
        self._count(found)
        return found

    # --- ends of operations -----------------------------------------------------------------

    def commit(self, tier: int, slot: Slot) -> None:
        """Say that an object of a reserved slot is stored (see `CacheIndex.commit`)."""
        self.indices[tier].commit(slot)

    def roll_back(self, tier: int, slot: Slot) -> None:
        """Give up a reserved slot whose write or move failed (see `CacheIndex.roll_back`)."""
        self.indices[tier].roll_back(slot)

    def drop(self, tier: int, slot: Slot) -> None:
        """Forget a stored slot that can't be read (see `CacheIndex.drop`)."""
        self.indices[tier].drop(slot)

    def release(self, admission: TierAdmission) -> None:
        """Unpin what was read, once."""
        for slots in admission.reads:
            for slot in slots:
                _unpin(slot)

    def end_move(self, move: Move) -> None:
        """Unpin the source of a copy, once, when its target is committed or rolled back."""
        if move.copies:
            _unpin(move.source)

    def left(self, tier: int, admission: TierAdmission) -> None:
        """Say that all victims of the tier were deleted, or moved and deleted: room is free."""
        self.indices[tier].gone(admission.victims[tier])

    # --- decisions --------------------------------------------------------------------------

    def _ask(
        self, keys: Sequence[bytes], prompt_blocks: int, sizes: int | Sequence[int]
    ) -> _Asked | Blocked:
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        if len(set(keys)) != len(keys):
            raise ValueError("the keys of a request repeat; prefix-chained keys are distinct")
        each = [sizes] * len(keys) if isinstance(sizes, int) else sizes
        if len(each) != len(keys):
            raise ValueError(f"a request has {len(each)} sizes for its {len(keys)} keys")
        found = [index.find(keys) for index in self.indices]
        served: list[int] = []
        for place in range(prompt_blocks):
            here = [tier for tier, slots in enumerate(found) if slots[place] is not None]
            if not here:
                break
            slot = found[here[0]][place]
            assert slot is not None
            if slot.unwritten:
                return Blocked(slot)
            served.append(here[0])
        return _Asked(keys, each, prompt_blocks, found, served)

    def _plan_through(self, asked: _Asked) -> list[_Step] | Blocked:
        steps: list[_Step] = []
        run = len(asked.served)
        for tier, index in enumerate(self.indices):
            reached = (
                place
                for place in range(len(asked.keys))
                if place >= run or asked.served[place] >= tier
            )
            kept = index.keep(*asked.select(reached))
            victims = index.victims(kept)
            if isinstance(victims, Blocked):
                return victims
            steps.append(_Step(kept, victims))
        return steps

    def _through(self, asked: _Asked, steps: list[_Step]) -> TierAdmission:
        places = {key: place for place, key in enumerate(asked.keys[: len(asked.served)])}
        writes, moves, written = self._none(), list[Move](), dict[bytes, Slot]()
        for tier, (index, step) in enumerate(zip(self.indices, steps, strict=True)):
            index.evict(step.victims, step.kept)
            for slot in index.touch(step.kept):
                place = places.get(slot.key)
                if place is None:
                    slot.hold_what(written.setdefault(slot.key, slot))
                    writes[tier].append(slot)
                else:
                    moves.append(_promotion(asked, place, tier, slot))
        return self._admission(asked, writes=writes, moves=moves, steps=steps)

    def _plan_demote(self, asked: _Asked) -> list[_Step] | Blocked:
        slower = [any(slots) for slots in zip(*asked.found[1:], strict=True)]
        first = self.indices[0]
        own = [place for place in range(len(asked.keys)) if not (slower and slower[place])]
        kept = first.keep(*asked.select(own))
        victims = first.victims(kept)
        if isinstance(victims, Blocked):
            return victims
        beyond = [place for place in own[len(kept.keys) :] if asked.found[0][place] is None]
        new = [_Arrival(asked.keys[place], asked.sizes[place], 0, None) for place in beyond]
        steps = [_Step(kept, victims)]
        arrivals = new + _leaving(0, victims)
        for tier, index in enumerate(self.indices[1:], 1):
            step = self._plan_arrivals(asked, tier, index, arrivals)
            if isinstance(step, Blocked):
                return step
            steps.append(step)
            arrivals = arrivals[len(step.kept.keys) :] + _leaving(tier, step.victims)
        return steps

    def _plan_arrivals(
        self, asked: _Asked, tier: int, index: CacheIndex, arrivals: list[_Arrival]
    ) -> _Step | Blocked:
        """What a slower tier does with what arrives, the most recent first."""
        kept = index.keep([a.key for a in arrivals], [a.block_bytes for a in arrivals])
        own = [slot for slot in asked.found[tier] if slot is not None]
        spared = {slot.key for slot in own}
        victims = index.victims(kept, spared=spared, last=own[::-1])
        if isinstance(victims, Blocked):
            return victims
        gone = spared & {slot.key for slot in victims}
        touched = [slot.key for slot in own if slot.key not in gone]
        return _Step(kept, victims, touched, arrivals[: len(kept.keys)])

    def _demote(self, asked: _Asked, steps: list[_Step]) -> TierAdmission:
        writes, moves = self._none(), list[Move]()
        for tier, (index, step) in enumerate(zip(self.indices, steps, strict=True)):
            index.evict(step.victims, step.kept)
            index.refresh(step.touched)
            inserts = index.touch(step.kept)
            if tier == 0:
                writes[0].extend(inserts)
                continue
            for slot, arrival in zip(inserts, step.arrivals, strict=True):
                if arrival.source is None:
                    writes[tier].append(slot)
                    continue
                slot.hold_what(arrival.source)
                moves.append(
                    Move(
                        source_tier=arrival.source_tier,
                        source=arrival.source,
                        target_tier=tier,
                        target=slot,
                        copies=False,
                    )
                )
        return self._admission(asked, writes=writes, moves=moves, steps=steps)

    def _admission(
        self, asked: _Asked, *, writes: tuple[list[Slot], ...], moves: list[Move],
        steps: list[_Step],
    ) -> TierAdmission:  # fmt: skip
        reads = asked.reads(len(self.tiers))
        for slots in reads:
            for slot in slots:
                slot.pins += 1
        victims = tuple(step.victims for step in steps) if steps else self._none()
        moved = {move.source for move in moves if not move.copies}
        return TierAdmission(
            reads=reads,
            writes=writes,
            moves=moves,
            deletes=tuple([slot for slot in slots if slot not in moved] for slots in victims),
            prompt_blocks=asked.prompt_blocks,
            victims=victims,
        )

    def _none(self) -> tuple[list[Slot], ...]:
        return tuple([] for _ in self.tiers)

    def _count(self, admission: TierAdmission) -> None:
        self.prompt_blocks += admission.prompt_blocks
        for tier, counts in enumerate(self.counts):
            into = [move for move in admission.moves if move.target_tier == tier]
            counts.add("hit", admission.reads[tier])
            counts.add("written", admission.writes[tier])
            counts.add("promoted_in", [move.target for move in into if move.copies])
            counts.add("demoted_in", [move.target for move in into if not move.copies])
            counts.add("deleted", admission.deletes[tier])


def _promotion(asked: _Asked, place: int, tier: int, target: Slot) -> Move:
    """A copy of what the tier serves that has the block; that one is pinned."""
    source_tier = asked.served[place]
    source = asked.found[source_tier][place]
    assert source is not None
    source.pins += 1
    target.hold_what(source)
    return Move(
        source_tier=source_tier, source=source, target_tier=tier, target=target, copies=True
    )


def _leaving(tier: int, victims: list[Slot]) -> list[_Arrival]:
    """Victims as what arrives in the next tier, the most recent first."""
    return [_Arrival(slot.key, slot.block_bytes, tier, slot) for slot in reversed(victims)]


def _unpin(slot: Slot) -> None:
    if not slot.pins:
        raise ValueError(f"{slot!r} is released; it is not pinned")
    slot.pins -= 1
