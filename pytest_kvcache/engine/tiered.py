"""Memory tiers in front of the storage: what is read from which, written and moved where.

Rank-side; imports neither pytest nor MPI. `TierStack` decides, this carries out. A memory
tier that holds bytes has a dispatcher of its own, whose calls the loop makes itself, one in a
turn and after the storage was given its work: between two looks at what the storage has
finished lies one copy of one transfer. A tier that is only an index holds nothing: what is
to be stored in it is there at once.

To store, a request goes from the slowest tier to the fastest: what leaves the tier for
nowhere is deleted, then what moves into it and what is new is written. A move is a write
of the same content under the source's identity; its source, if it leaves, is deleted when
the target is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import Blocked
from pytest_kvcache.engine.batches import make_dispatcher
from pytest_kvcache.engine.blocks import Blocks
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.engine.iotracer import untraced
from pytest_kvcache.ioengines.inline import PacedEngine
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE
from pytest_kvcache.measure.counters import Tally
from pytest_kvcache.measure.recorder import DEMOTE, MEMORY_ROWS, REREAD, TIER_HITS
from pytest_kvcache.measure.sections import TIERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import BlockEntry, CacheIndex
    from pytest_kvcache.cache.tiers import Move, TierAdmission, TierStack
    from pytest_kvcache.engine.blocks import Requests
    from pytest_kvcache.engine.iotracer import Traced
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.measure.recorder import Log
    from pytest_kvcache.workloads.protocol import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """The tiers of a rank, the storage last; ``memories`` are the backends of the others.

    None of them: the tier is only an index. ``payload`` is what memory holds, whatever the
    storage keeps.
    """

    stack: TierStack
    memories: tuple[Backend | None, ...]
    payload: Payload | None


class _MemoryLog:
    """Only of whole operations there are rows: a memory tier is no device."""

    def __init__(self, log: Log) -> None:
        self._add = log.add

    def add(  # noqa: PLR0917  as the log has it
        self, kind: int, a: int, start_ns: int, end_ns: int, b: int, c: int
    ) -> None:
        if kind in _MEMORY_KINDS:
            self._add(kind, a, start_ns, end_ns, b, c)


_MEMORY_KINDS = frozenset(MEMORY_ROWS.values())


class _Level:
    """One tier as the loop sees it; ``dispatcher`` None: it holds no bytes."""

    def __init__(self, number: int, name: str, index: CacheIndex) -> None:
        self.number = number
        self.name = name
        self.index = index
        self.dispatcher: Dispatcher | None = None
        self.pace: PacedEngine | None = None
        self.is_storage = name == "storage"
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.failed = 0
        self.demoted_in_bytes = self.promoted_in_bytes = 0
        self._committed_before = self.index.committed_blocks

    def row(self, what: str) -> int:
        """The kind of row that notes an operation here; ``what`` ends the section's name."""
        if self.is_storage:
            return {"read": READ, "reread": REREAD, "write": WRITE, "demote": DEMOTE}[what]
        what = "read" if what == "reread" else what
        return MEMORY_ROWS[f"{self.name}_{what}"]

    def counted(self) -> dict[str, int | None]:
        """Its counters, by their names in the table."""
        counted: dict[str, int | None] = {
            "stored_blocks": self.index.committed_blocks - self._committed_before,
            "demoted_in_bytes": self.demoted_in_bytes,
        }
        if not self.is_storage:
            counted |= {
                "promoted_in_bytes": self.promoted_in_bytes,
                "blocks": self.index.present_blocks,
                "bytes": self.index.present_bytes,
                "failed": None if self.dispatcher is None else self.failed,
            }
        return {f"{self.name}_{what}": value for what, value in counted.items()}


class SeveralTiers(Blocks):
    """The blocks of a rank whose storage has memory in front of it."""

    def __init__(
        self,
        requests: Requests,
        settings: TransferSettings,
        *,
        stores: bool,
        tiers: Tiers,
        io: IoEngine,
        payload: Payload | None,
        log: Log,
        clock: Callable[[], int],
        traced: Traced = untraced,
    ) -> None:
        super().__init__(requests, settings, stores=stores)
        self._stack = tiers.stack
        self._log = log
        self._clock = clock
        self._memory_ns = 0
        self._levels = [
            _Level(number, tier.name, index)
            for number, (tier, index) in enumerate(
                zip(self._stack.tiers, self._stack.indices, strict=True)
            )
        ]
        *memories, storage = self._levels
        self._storage = storage
        self._storage_dispatcher = storage.dispatcher = make_dispatcher(
            settings=settings,
            io=io,
            payload=payload,
            log=log,
            clock=clock,
            on_complete=traced(partial(self._complete, storage)),
        )
        alone = replace(settings, queue_depth=1, sync=False, workers=None)
        for level, backend in zip(memories, tiers.memories, strict=True):
            if backend is not None:
                level.pace = PacedEngine(backend, clock)
                level.dispatcher = Dispatcher(
                    settings=alone,
                    io=level.pace,
                    payload=tiers.payload,
                    log=_MemoryLog(log),
                    clock=clock,
                    on_complete=partial(self._complete, level),
                )
        self._memories = [level for level in memories if level.dispatcher is not None]
        self._moves: dict[BlockEntry, Move] = {}  # by target, from the decision until its end
        self.io_engines = (io, *(level.pace for level in self._memories if level.pace is not None))
        self.turn = self._take_turn

    @property
    def dispatchers(self) -> Sequence[Dispatcher]:
        """Of all tiers that hold bytes, the fastest first."""
        return [level.dispatcher for level in self._levels if level.dispatcher is not None]

    @property
    def looked_up(self) -> tuple[int, int]:
        """As the stack has counted."""
        return self._stack.prompt_blocks, sum(each.hit_blocks for each in self._stack.counts)

    def counted(self) -> dict[str, float | None]:
        """What each tier was given, what a memory tier holds, and how long all of that took."""
        counted: dict[str, float | None] = {}
        for level in self._levels:
            counted |= level.counted()
        return {**counted, "memory_tiers_s": self._memory_ns / 1e9 if self._memories else None}

    def begin(self) -> None:
        """Blocks are stored from here on for requests."""
        self.counters = Tally()
        self.populating = False
        self._memory_ns = 0
        for level in self._levels:
            level.begin()

    def _take_turn(self, wait_until_ns: int) -> None:
        """The storage first, then one copy; sleep only if there is none to make."""
        copying = [level for level in self._memories if level.dispatcher and level.dispatcher.busy]
        if not copying:
            self._storage_dispatcher.turn(wait_until_ns)
            return
        if self._storage_dispatcher.busy:
            self._storage_dispatcher.turn(0)
        level = copying[0]
        self._memories.remove(level)  # another one is first the next time
        self._memories.append(level)
        assert level.pace is not None
        assert level.dispatcher is not None
        began_ns = self._clock()
        level.pace.allow()
        level.dispatcher.turn(0)
        self._memory_ns += self._clock() - began_ns

    # --- the phases of a request ----------------------------------------------------------

    def has_room_for(self, request: Request) -> bool:
        """As the stack sees it."""
        return self._stack.has_room_for(*self._all_of(request))

    def decide(self, inflight: InFlightRequest) -> bool:
        """By the stack; what is to be moved is remembered by where it goes."""
        request = inflight.request
        if request.deletes:
            raise ValueError("a request deletes blocks; that is not done behind memory tiers")
        beside = self.beside_of(request) if request.beside else None
        if self._writes or self.populating:
            sizes = self.sizes_of(request)
            found = self._stack.admit(request.keys, request.prompt_blocks, sizes, beside)
        else:
            found = self._stack.look_up(request.keys, request.prompt_blocks, beside)
        if isinstance(found, Blocked):
            self.blocked_on = found.entry
            return False
        self.blocked_on = None
        self._moves.update((move.target, move) for move in found.moves)
        inflight.admission = found
        inflight.hit_blocks = found.hit_blocks
        inflight.beside_hit_blocks = found.beside_hit_blocks
        if request.rereads and not self.populating:
            self._will_read_again(inflight, _fastest(found.writes))
        return True

    def storage_hits_of(self, inflight: InFlightRequest) -> list[BlockEntry]:
        """Those that no tier before the storage serves."""
        admission: TierAdmission = inflight.admission
        beside = admission.beside_reads[self._storage.number] if admission.beside_reads else ()
        return [*admission.reads[self._storage.number], *beside]

    def load(self, inflight: InFlightRequest) -> bool:
        """Get each hit from the tier that serves it."""
        admission: TierAdmission = inflight.admission
        self._read(admission.reads, inflight, "read")
        if admission.beside_reads:
            self._read(admission.beside_reads, inflight, "read")
        return inflight.left > 0

    def loaded_blocks_of(self, inflight: InFlightRequest) -> int:
        """How many blocks its reads bring: what an index serves is there at once."""
        admission: TierAdmission = inflight.admission
        return sum(
            len(reads[level.number])
            for level in self._levels
            if level.dispatcher is not None
            for reads in (admission.reads, admission.beside_reads)
            if reads
        )

    def beside_hits_of(self, inflight: InFlightRequest) -> Iterable[BlockEntry]:
        """As it was admitted, of all tiers."""
        admission: TierAdmission = inflight.admission
        return chain.from_iterable(admission.beside_reads)

    def read_again(self, inflight: InFlightRequest) -> bool:
        """Get each block from the fastest tier that it was stored in."""
        self._read(inflight.again, inflight, "reread")
        return inflight.left > 0

    def _read(
        self, by_tier: Sequence[Sequence[BlockEntry]], inflight: InFlightRequest, what: str
    ) -> None:
        for level in reversed(self._levels):  # the storage takes longest
            self._submit(level, READ, by_tier[level.number], inflight, what)
        self._note_first_reads(by_tier[self._storage.number])

    def release(self, inflight: InFlightRequest) -> None:
        """Unpin its hits, and tell which tier had how many of them."""
        admission: TierAdmission = inflight.admission
        self._stack.release(admission)
        if not inflight.failed:
            hits = dict.fromkeys(TIERS, 0)
            hits |= {level.name: len(admission.reads[level.number]) for level in self._levels}
            gpu, cpu, storage = (hits[name] for name in TIERS)
            self._log.add(TIER_HITS, gpu, inflight.issued_ns, inflight.issued_ns, cpu, storage)

    def store(self, inflight: InFlightRequest) -> None:
        """Tier by tier, one step after another."""
        admission: TierAdmission = inflight.admission
        for level in self._levels:
            if level.dispatcher is not None:
                moves = sum(move.target_tier == level.number for move in admission.moves)
                self.stores += (len(admission.writes[level.number]) + moves) * self._parts
        if not self._stopping:
            inflight.steps = self._steps(inflight)
            self._advance(inflight)

    def _advance(self, inflight: InFlightRequest) -> None:
        """Take steps until one has operations to wait for."""
        if self._stopping:
            return
        for _step in inflight.steps:
            if inflight.left:
                return
        self._requests.stored(inflight)

    def _steps(self, inflight: InFlightRequest) -> Iterator[None]:
        """Submit what can be done at the same time; go on when all of it has ended."""
        admission: TierAdmission = inflight.admission
        for level in reversed(self._levels):
            tier = level.number
            self._submit(level, DELETE, admission.deletes[tier], inflight)
            yield
            self._stack.left(tier, admission)
            moves = [move for move in admission.moves if move.target_tier == tier]
            for what, copies in (("demote", False), ("promote", True)):
                targets = [move.target for move in moves if move.copies == copies]
                self._submit(level, WRITE, targets, inflight, what)
            self._submit(level, WRITE, admission.writes[tier], inflight, "write")
            yield

    def _submit(
        self,
        level: _Level,
        kind: int,
        entries: Sequence[BlockEntry],
        inflight: InFlightRequest,
        what: str = "",
    ) -> None:
        """Hand operations on; where nothing is held, the blocks are there, or gone, at once."""
        if not entries:
            return
        if level.dispatcher is not None:
            row = level.row(what) if what else kind
            inflight.left += level.dispatcher.submit(kind, entries, inflight, row)
        elif kind == WRITE:
            for entry in entries:
                for _part in range(self._parts):
                    self._stack.commit(level.number, entry)
                self._end_move(level, entry, inflight)

    # --- when it is over ------------------------------------------------------------------

    def stop(self) -> None:
        """Only reads begin any more."""
        self._stopping = True
        for dispatcher in self.dispatchers:
            dispatcher.keep_only(READ)

    def leave(self) -> list[InFlightRequest]:
        """Not even reads do."""
        left = [op.owner for each in self.dispatchers for op in each.keep_only(None)]
        return list(dict.fromkeys(left))

    def settle(self) -> None:
        """Of reservations and moves, those that failed included, nothing is left."""
        for index in self._stack.indices:
            index.give_up_reserved()
        for move in self._moves.values():
            self._stack.end_move(move)
        self._moves.clear()

    def close(self) -> None:
        """Wait for the storage."""
        for dispatcher in self.dispatchers:
            dispatcher.close()

    # --- ends of operations ---------------------------------------------------------------

    def _complete(self, level: _Level, operation: Operation) -> None:
        inflight: InFlightRequest = operation.owner
        inflight.left -= 1
        if operation.failed:
            level.failed += 1
            self._requests.stop()  # at once: what follows would be another workload
        if operation.kind == READ:
            self._complete_read(level, operation, inflight)
        else:
            if operation.kind == WRITE:
                self._complete_write(level, operation, inflight)
            elif level.is_storage:
                self.counters.delete_failed += operation.failed
            if not inflight.left:
                self._advance(inflight)
        if self._waiting:
            self._ask_again(operation)

    def _ask_again(self, operation: Operation) -> None:
        """The first one that waits, if what it waits for can have changed."""
        blocker = self.blocked_on
        own = blocker is operation.entry and (blocker.present or operation.failed)
        if blocker is None or own or (blocker.present and not blocker.pins):
            self._requests.pump()

    def _complete_read(
        self, level: _Level, operation: Operation, inflight: InFlightRequest
    ) -> None:
        if operation.failed:
            self.counters.read_failed += level.is_storage
            inflight.failed = True
            self._stack.drop(level.number, operation.entry)
        else:
            if level.is_storage:
                self.counters.requested_read_bytes += operation.stored_bytes
                self.counters.requested_transfers += operation.transfers
            inflight.loaded_ns = max(inflight.loaded_ns, operation.done_ns)
        if not inflight.left:
            self._requests.loaded(inflight)

    def _complete_write(
        self, level: _Level, operation: Operation, inflight: InFlightRequest
    ) -> None:
        entry = operation.entry
        if operation.failed:
            inflight.failed = True
            if operation.row == DEMOTE:
                self.counters.demote_failed += 1
            elif level.is_storage:
                self.counters.write_failed += 1
        else:
            if level.is_storage:
                self.counters.requested_write_bytes += operation.stored_bytes
                self.counters.requested_transfers += operation.transfers
                self.counters.requested_writes += 1
            self._stack.commit(level.number, entry)
            if entry.present:
                self._end_move(level, entry, inflight)
        self.stores -= 1
        if self._stalled and self.stores <= self.most_stores:
            self._requests.go_on()

    def _end_move(self, level: _Level, entry: BlockEntry, inflight: InFlightRequest) -> None:
        """A block that has come from another tier is there: if it has left that, delete it."""
        move = self._moves.pop(entry, None)
        if move is None:
            return
        if move.copies:
            level.promoted_in_bytes += entry.block_bytes
        else:
            level.demoted_in_bytes += entry.block_bytes
            if not self._stopping:
                self._submit(self._levels[move.source_tier], DELETE, [move.source], inflight)
        self._stack.end_move(move)


def _fastest(writes: Sequence[Sequence[BlockEntry]]) -> list[list[BlockEntry]]:
    """Of what is written into each tier, what is written into no faster one."""
    seen: set[bytes] = set()
    found = []
    for entries in writes:
        found.append([entry for entry in entries if entry.key not in seen])
        seen.update(entry.key for entry in entries)
    return found
