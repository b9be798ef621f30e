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

**Beside the prefix** (`Beside`). Each block is served by the fastest tier that has it. In
everything else these are keys of the request behind its own: all of them where what no tier
has is to be stored, else those that a tier has.

One tier is a `CacheIndex`, with either policy, to the last decision.

**Under way.** What is decided is the content at once; what it takes to get there is room
that is reserved. A block whose write or move has not ended blocks whoever needs it, as
one that is being stored does in `CacheIndex`; so hits and order are independent of how
long anything takes. A block that is read, or copied from, is pinned. A demoted block is no
longer in its old tier, whose copy stays until it was moved: nothing is lost, nothing is
seen half-written, and no tier ever holds more than its capacity (see `TierAdmission`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, count, filterfalse, islice, repeat
from operator import not_
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

from pytest_kvcache.cache.index import (
    Beside,
    Blocked,
    BlockEntry,
    CacheIndex,
    Kept,
    first_pending,
    last_pending,
    unpin,
)

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


class Move(NamedTuple):
    """A block on its way: from an entry of one tier to a reserved entry of another.

    ``copies``: it stays where it was (a promotion, whose source is pinned until the move
    ends); else it leaves, and the source's objects are deleted when it was moved.
    """

    source_tier: int
    source: BlockEntry
    target_tier: int
    target: BlockEntry
    copies: bool


_new_move = partial(tuple.__new__, Move)  # as Move._make, in C: there is one for each block


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAdmission:
    """What one request reads, writes, moves and deletes; lists of entries are by tier.

    To be carried out in this order: ``reads`` (in prompt order) and ``beside_reads``, all
    pinned until `TierStack.release`, then, tier by tier from the slowest to the fastest: its
    ``deletes``; `TierStack.left`, for by now all that was to leave it has; the moves into it
    (each: copy, `TierStack.commit` of the target, delete a source that leaves,
    `TierStack.end_move`); its ``writes``, each committed or rolled back.
    """

    reads: tuple[list[BlockEntry], ...]
    writes: tuple[list[BlockEntry], ...]
    moves: list[Move]
    deletes: tuple[list[BlockEntry], ...]
    prompt_blocks: int
    victims: tuple[list[BlockEntry], ...]  # what leaves each tier, deleted or moved
    beside_reads: tuple[list[BlockEntry], ...] = ()  # empty: there are none

    @property
    def hit_blocks(self) -> int:
        """Blocks of the leading run."""
        return sum(map(len, self.reads))

    @property
    def beside_hit_blocks(self) -> int:
        """Blocks that are read beside it."""
        return sum(map(len, self.beside_reads))


@dataclass(slots=True)
class TierCounts:
    """What a tier has served and taken since the beginning; take differences.

    ``written``, ``promoted_in`` and ``demoted_in`` are what was decided to be stored in it,
    by where it came from.
    """

    hit_blocks: int = 0
    written_blocks: int = 0
    written_bytes: int = 0
    promoted_in_blocks: int = 0
    demoted_in_blocks: int = 0
    demoted_in_bytes: int = 0

    @property
    def stored_blocks(self) -> int:
        """Blocks that came in, from wherever."""
        return self.written_blocks + self.promoted_in_blocks + self.demoted_in_blocks

    def add(
        self,
        hits: Sequence[BlockEntry],
        written: Sequence[BlockEntry],
        moved_in: Sequence[BlockEntry],
        policy: TierPolicy,
    ) -> None:
        """Count one request's blocks."""
        self.hit_blocks += len(hits)
        self.written_blocks += len(written)
        self.written_bytes += sum([entry.block_bytes for entry in written])
        if policy == "write-through":
            self.promoted_in_blocks += len(moved_in)
        else:
            self.demoted_in_blocks += len(moved_in)
            self.demoted_in_bytes += sum([entry.block_bytes for entry in moved_in])


# Where a block is moved from: the tier and its entry, or None for the entry where it is written.
_Source: TypeAlias = "tuple[int, BlockEntry | None]"
# What comes into a tier from above: key, bytes, and where from.
_Arrival: TypeAlias = "tuple[bytes, int, _Source]"


@dataclass(slots=True)
class _Step:
    """What is decided for one tier, before anything changes.

    ``sources`` has for each insert the tier and the entry that it is moved from, or None for
    the entry: it is written. ``touched`` are keys that are there and that ``kept`` has not.
    """

    kept: Kept
    victims: list[BlockEntry]
    sources: Iterable[_Source]
    touched: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, what each tier has of it, and what serves it.

    All by place, those of keys beside the prefix last: ``found``, by tier too; ``fastest`` is the
    first tier that has the key, a number that no tier has where none does; ``served`` is the tier
    that serves it, likewise, and ``serving`` its entry there, or None.
    ``reads`` and ``beside_reads`` are what each tier serves.
    """

    keys: Sequence[bytes]
    sizes: int | Sequence[int]
    prompt_blocks: int
    found: list[list[BlockEntry | None]]
    fastest: list[int]
    served: list[int]
    serving: list[BlockEntry | None]
    reads: tuple[list[BlockEntry], ...]
    beside_reads: tuple[list[BlockEntry], ...]

    def sizes_of(self, chosen: Iterable[bool]) -> int | Sequence[int]:
        """Return the sizes of the chosen places."""
        return self.sizes if isinstance(self.sizes, int) else list(compress(self.sizes, chosen))


class TierStack:
    """The tiers of one rank, fastest first, and what a request does with them.

    ``indices`` are theirs; the counters ``prompt_blocks`` and ``counts`` (by tier) grow
    with every admission. ``promotes`` False, for requests that load nothing: what a slower
    tier has stays there alone, for nobody reads it.
    """

    def __init__(self, tiers: Sequence[Tier], policy: TierPolicy, *, promotes: bool = True) -> None:
        if not tiers:
            raise ValueError("a stack has no tiers; it must have one at least")
        if policy not in TIER_POLICIES:
            raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(TIER_POLICIES)}")
        self.tiers = tuple(tiers)
        self.policy = policy
        self._promotes = promotes
        versions = count(1)
        self.indices = tuple(
            CacheIndex(
                tier.capacity_bytes,
                page_bytes=tier.page_bytes,
                objects_per_block=tier.objects_per_block,
                versions=versions,
            )
            for tier in tiers
        )
        self.prompt_blocks = 0
        self.counts = tuple(TierCounts() for _ in tiers)

    def admit(
        self,
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
        beside: Beside | None = None,
    ) -> TierAdmission | Blocked:
        """Decide one request; the arguments are those of `CacheIndex.admit`.

        Changes nothing when it returns `Blocked`.
        """
        asked = self._ask(keys, prompt_blocks, sizes, beside)
        if isinstance(asked, Blocked):
            return asked
        through = self.policy == "write-through"
        steps = self._plan_through(asked) if through else self._plan_demote(asked)
        return steps if isinstance(steps, Blocked) else self._carry_out(asked, steps)

    def look_up(
        self, keys: Sequence[bytes], prompt_blocks: int, beside: Beside | None = None
    ) -> TierAdmission | Blocked:
        """Decide a request that stores nothing: its hits, pinned; nothing is touched or moved."""
        if beside is not None:
            beside = Beside(beside.keys, 1, stores=False)
        asked = self._ask(keys[:prompt_blocks], prompt_blocks, 1, beside)
        if isinstance(asked, Blocked):
            return asked
        return self._admission(asked, writes=self._none(), moves=[], victims=self._none())

    def has_room_for(self, keys: Sequence[bytes], sizes: int | Sequence[int]) -> bool:
        """Return whether all these distinct keys could be stored without losing a block.

        Through to the slowest tier, or, where blocks are demoted, in all of them together.
        """
        if self.policy == "write-through":
            return self.indices[-1].has_room_for(keys, sizes)
        each = [sizes] * len(keys) if isinstance(sizes, int) else sizes
        there = zip(*(index.find(keys) for index in self.indices), strict=True)
        new = [size for size, entries in zip(each, there, strict=True) if not any(entries)]
        for index in self.indices:
            new = new[index.fitting_beside(new) :]
        return not new

    # --- ends of operations -----------------------------------------------------------------

    def commit(self, tier: int, entry: BlockEntry) -> None:
        """Say that an object of a reserved entry is stored (see `CacheIndex.commit`)."""
        self.indices[tier].commit(entry)

    def roll_back(self, tier: int, entry: BlockEntry) -> None:
        """Give up a reserved entry whose write or move failed (see `CacheIndex.roll_back`)."""
        self.indices[tier].roll_back(entry)

    def drop(self, tier: int, entry: BlockEntry) -> None:
        """Forget a stored entry that can't be read (see `CacheIndex.drop`)."""
        self.indices[tier].drop(entry)

    def release(self, admission: TierAdmission) -> None:
        """Unpin what was read, once."""
        for entries in (*admission.reads, *admission.beside_reads):
            unpin(entries)

    def end_move(self, move: Move) -> None:
        """Unpin the source of a copy, once, when its target is committed or rolled back."""
        if move.copies:
            unpin((move.source,))

    def left(self, tier: int, admission: TierAdmission) -> None:
        """Say that all victims of the tier were deleted, or moved and deleted: room is free."""
        self.indices[tier].gone(admission.victims[tier])

    def settle(self, admission: TierAdmission) -> None:
        """Say that all of it was carried out, as where nothing takes any time."""
        self.release(admission)
        for tier in reversed(range(len(self.tiers))):
            self.left(tier, admission)
            for move in admission.moves:
                if move.target_tier == tier:
                    self.commit(tier, move.target)
                    self.end_move(move)
            for entry in admission.writes[tier]:
                self.commit(tier, entry)

    # --- decisions --------------------------------------------------------------------------

    def _ask(
        self,
        keys: Sequence[bytes],
        prompt_blocks: int,
        sizes: int | Sequence[int],
        beside: Beside | None,
    ) -> _Asked | Blocked:
        if not 0 <= prompt_blocks <= len(keys):
            raise ValueError(f"prompt_blocks is {prompt_blocks}; it must be 0 to {len(keys)}")
        beside_from = None
        if beside is not None:
            beside_from = len(keys)
            everywhere = (index.find(beside.keys) for index in self.indices)
            there = [any(entries) for entries in zip(*everywhere, strict=True)]
            keys, sizes = beside.after(keys, sizes, there)
        if len(set(keys)) != len(keys):
            raise ValueError("the keys of a request repeat; prefix-chained keys are distinct")
        if not isinstance(sizes, int) and len(sizes) != len(keys):
            raise ValueError(f"a request has {len(sizes)} sizes for its {len(keys)} keys")
        found = [index.find(keys) for index in self.indices]
        nowhere, end = len(found), len(keys) if beside_from is None else beside_from
        fastest, serving = [nowhere - (entry is not None) for entry in found[-1]], found[-1][:]
        for tier, here in reversed(list(enumerate(found[:-1]))):
            fastest = [n if e is None else tier for e, n in zip(here, fastest, strict=True)]
            serving = [s if e is None else e for e, s in zip(here, serving, strict=True)]
        run = [*serving[:prompt_blocks], None].index(None)
        leading, beyond = list(filter(None, serving[:run])), list(filter(None, serving[end:]))
        if (pending := last_pending(leading) or first_pending(beyond)) is not None:
            return Blocked(pending)
        serving[run:end] = [None] * (end - run)
        return _Asked(
            keys=keys,
            sizes=sizes,
            prompt_blocks=prompt_blocks,
            found=found,
            fastest=fastest,
            served=[*fastest[:run], *[nowhere] * (end - run), *fastest[end:]],
            serving=serving,
            reads=self._by_tier(serving[:run], fastest[:run]),
            beside_reads=() if beside is None else self._by_tier(serving[end:], fastest[end:]),
        )

    def _by_tier(
        self, serving: Sequence[BlockEntry | None], tiers: Sequence[int]
    ) -> tuple[list[BlockEntry], ...]:
        return tuple(
            list(filter(None, compress(serving, [at == tier for at in tiers])))
            for tier in range(len(self.tiers))
        )

    def _plan_through(self, asked: _Asked) -> list[_Step] | Blocked:
        steps: list[_Step] = []
        for tier, index in enumerate(self.indices):
            slower = tier if self._promotes else len(self.tiers) - 1  # what is copied, or nowhere
            reached = [at == tier or at > slower for at in asked.served]
            keys = list(compress(asked.keys, reached))
            there = list(compress(asked.found[tier], reached))
            kept = index.keep(keys, asked.sizes_of(reached), there)
            victims = index.victims(kept)
            if isinstance(victims, Blocked):
                return victims
            sources = compress(zip(asked.served, asked.serving, strict=True), reached)
            missing = map(not_, kept.rest)
            steps.append(
                _Step(kept, victims, compress(islice(sources, len(kept.head), None), missing))
            )
        return steps

    def _plan_demote(self, asked: _Asked) -> list[_Step] | Blocked:
        own = [not 0 < at < len(self.tiers) for at in asked.fastest]
        keys, there = list(compress(asked.keys, own)), list(compress(asked.found[0], own))
        sizes = asked.sizes_of(own)
        kept = self.indices[0].keep(keys, sizes, there)
        victims = self.indices[0].victims(kept)
        if isinstance(victims, Blocked):
            return victims
        behind = slice(len(kept.keys), None)
        each = repeat(sizes) if isinstance(sizes, int) else sizes[behind]
        arrivals: list[_Arrival] = [
            (key, size, (0, None))
            for key, size, entry in zip(keys[behind], each, there[behind], strict=False)
            if entry is None
        ]
        steps = [_Step(kept, victims, [(0, None)] * kept.rest.count(None))]
        for tier in range(1, len(self.tiers)):
            arrivals += _leaving(tier - 1, victims)
            step = self._plan_arrivals(asked, tier, arrivals)
            if isinstance(step, Blocked):
                return step
            steps.append(step)
            arrivals, victims = arrivals[len(step.kept.keys) :], step.victims
        return steps

    def _plan_arrivals(self, asked: _Asked, tier: int, arrivals: list[_Arrival]) -> _Step | Blocked:
        """What a slower tier does with what arrives, the most recent first."""
        index = self.indices[tier]
        nothing = [None] * len(arrivals)  # a block is in one tier, and these are in a faster one
        kept = index.keep([a[0] for a in arrivals], [a[1] for a in arrivals], nothing)
        own = list(filter(None, asked.found[tier]))
        victims = index.victims(kept, last=own[::-1])
        if isinstance(victims, Blocked):
            return victims
        gone = set(victims)
        touched = [entry.key for entry in own if entry not in gone]
        return _Step(kept, victims, [a[2] for a in arrivals[: len(kept.keys)]], touched)

    def _carry_out(self, asked: _Asked, steps: list[_Step]) -> TierAdmission:
        copies = self.policy == "write-through"
        writes, written = self._none(), dict[bytes, BlockEntry]()
        moves: list[tuple[int, BlockEntry, int, BlockEntry, bool]] = []
        for tier, (index, step) in enumerate(zip(self.indices, steps, strict=True)):
            index.evict(step.victims, step.kept)
            index.refresh(step.touched)
            inserts = index.touch(step.kept)
            for entry, (source_tier, source) in zip(inserts, step.sources, strict=True):
                if source is None:
                    entry.hold_what(written.setdefault(entry.key, entry))
                    writes[tier].append(entry)
                else:
                    source.pins += copies
                    entry.hold_what(source)
                    moves.append((source_tier, source, tier, entry, copies))
        made = list(map(_new_move, moves))
        victims = tuple(step.victims for step in steps)
        return self._admission(asked, writes=writes, moves=made, victims=victims)

    def _admission(
        self, asked: _Asked, *, writes: tuple[list[BlockEntry], ...], moves: list[Move],
        victims: tuple[list[BlockEntry], ...],
    ) -> TierAdmission:  # fmt: skip
        for entry in chain(*asked.reads, *asked.beside_reads):
            entry.pins += 1
        moved = {move.source for move in moves if not move.copies}
        self.prompt_blocks += asked.prompt_blocks
        for tier, counts in enumerate(self.counts):
            into = [move.target for move in moves if move.target_tier == tier]
            counts.add(asked.reads[tier], writes[tier], into, self.policy)
        return TierAdmission(
            reads=asked.reads,
            writes=writes,
            moves=moves,
            deletes=tuple(list(filterfalse(moved.__contains__, each)) for each in victims),
            prompt_blocks=asked.prompt_blocks,
            victims=victims,
            beside_reads=asked.beside_reads,
        )

    def _none(self) -> tuple[list[BlockEntry], ...]:
        return tuple([] for _ in self.tiers)


def _leaving(tier: int, victims: list[BlockEntry]) -> list[_Arrival]:
    """Victims as what arrives in the next tier, the most recent first."""
    return [(entry.key, entry.block_bytes, (tier, entry)) for entry in reversed(victims)]
