"""What is done with the blocks of a request: decided, read, made room for, stored.

Rank-side; imports neither pytest nor MPI. The loop keeps requests, users and timers, and hands
a request's blocks on to one of these: `OneTier`, the storage by itself, or `SeveralTiers`
(tiered.py), memory in front of it. What a finished operation leads to is decided where its end
is noted.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol

from pytest_kvcache.backends.protocol import absent_name
from pytest_kvcache.cache.index import Admission, Beside, CacheIndex, unpin
from pytest_kvcache.engine.batches import make_dispatcher
from pytest_kvcache.engine.iotracer import untraced
from pytest_kvcache.engine.lookups import Question
from pytest_kvcache.engine.operations import all_parts, object_key_of, parts_of_prefix
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE
from pytest_kvcache.measure.counters import Tally
from pytest_kvcache.measure.recorder import REREAD

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Sequence

    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.engine.dispatch import Dispatcher
    from pytest_kvcache.engine.iotracer import Traced
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.measure.recorder import Log
    from pytest_kvcache.workloads.protocol import Request

_STORES_PER_DEPTH = 4  # blocks waiting to be stored per queue depth, before users wait


class Requests(Protocol):
    """The loop, as it hears what has become of blocks.

    Requests that are ``waiting`` to be decided (or ``unasked``, where the storage is asked before),
    and users that are ``stalled`` by a full store queue, are its own; it is told when it may go on
    with them.
    """

    waiting: deque[InFlightRequest]
    unasked: deque[InFlightRequest]
    stalled: deque[tuple[int, int]]

    def loaded(self, inflight: InFlightRequest) -> None:
        """All that was to be read for a request, this time, has been read, or has failed."""

    def stored(self, inflight: InFlightRequest) -> None:
        """All that was to be stored for a request has been stored, or has failed."""

    def go_on(self) -> None:
        """The store queue is not full any more."""

    def pump(self) -> None:
        """The first of those that wait can perhaps be decided."""

    def stop(self) -> None:
        """An operation has failed."""


class Blocks:
    """The blocks of one rank; what all implementations have in common.

    ``stores`` objects wait to be stored; users wait while they are more than ``most_stores``.
    With ``drops_stores`` none waits, and a request that comes then stores nothing.
    ``blocked_on`` is what the first request that waits can't be decided before.
    """

    io_engines: Sequence[IoEngine]
    """What carries out the calls of each tier that holds bytes."""
    turn: Callable[[int], None]
    """Carry operations out until there is nothing to do, then sleep until that moment at most."""

    def __init__(self, requests: Requests, settings: TransferSettings, *, stores: bool) -> None:
        self.counters = Tally()
        self.stores = 0
        usual = _STORES_PER_DEPTH * settings.queue_depth * settings.objects_per_block
        self.most_stores = usual if settings.most_stores is None else settings.most_stores
        self.blocked_on: BlockEntry | None = None
        self.populating = True
        self._requests = requests
        self._waiting = requests.waiting
        self._stalled = requests.stalled
        self._block_bytes = settings.block_bytes
        self._parts = settings.objects_per_block
        self._writes = stores
        self.drops_stores = settings.drops_stores
        self._stopping = False

    @property
    def may_store(self) -> bool:
        """Whether a request that is decided now stores what is missing."""
        if self.populating:
            return True
        if self._stopping:
            return False
        return self._writes and not (self.drops_stores and self.stores > self.most_stores)

    def sizes_of(self, request: Request) -> int | Sequence[int]:
        """The bytes of its blocks: all as large as the plan says, unless it says itself."""
        return self._block_bytes if request.sizes is None else request.sizes

    def read_bytes_of(self, inflight: InFlightRequest) -> int:
        """The bytes that it reads of what it found, in whatever tier, and of what it stored."""
        request, found = inflight.request, self._prefix_bytes_of(inflight)
        if inflight.beside_hit_blocks:
            found += sum(entry.block_bytes for entry in self.beside_hits_of(inflight))
        if request.rereads:
            again = sum(entry.block_bytes for entry in chain.from_iterable(inflight.again))
            found += request.rereads * again
        return found

    def loaded_blocks_of(self, inflight: InFlightRequest) -> int:
        """How many blocks its reads bring: of the prefix, and beside it."""
        return inflight.hit_blocks + inflight.beside_hit_blocks

    def _prefix_bytes_of(self, inflight: InFlightRequest) -> int:
        """Those of its prefix: of blocks that are read whole."""
        sizes, hits = inflight.request.sizes, inflight.hit_blocks
        return hits * self._block_bytes if sizes is None else sum(sizes[:hits])

    def beside_of(self, request: Request) -> Beside:
        """What it has beside its prefix; what is absent is stored in the population, too."""
        sizes = self._block_bytes if request.beside_sizes is None else request.beside_sizes
        return Beside(request.beside, sizes, request.stores_beside)

    def _all_of(self, request: Request) -> tuple[Sequence[bytes], int | Sequence[int]]:
        """The keys and sizes of everything that it stores where it is absent."""
        keys, sizes = request.keys, self.sizes_of(request)
        if request.beside and request.stores_beside:
            return self.beside_of(request).after(keys, sizes, request.beside)
        return keys, sizes

    def _will_read_again(
        self, inflight: InFlightRequest, written: Sequence[Sequence[BlockEntry]]
    ) -> None:
        """Pin what it stores for its own keys (by tier), until it was read again."""
        request = inflight.request
        if request.beside:
            own = set(request.keys)
            written = [[entry for entry in entries if entry.key in own] for entries in written]
        inflight.again = written
        if any(written):
            inflight.rereads = request.rereads
            for entry in chain.from_iterable(written):
                entry.pins += 1

    def end_rereads(self, inflight: InFlightRequest) -> None:
        """What it was to read again was read, or will not be: unpin it."""
        unpin(chain.from_iterable(inflight.again))

    def _names_of(self, entries: Iterable[BlockEntry]) -> list[str]:
        """Under which names blocks are stored, all their objects."""
        parts = range(self._parts) if self._parts > 1 else (None,)
        return [object_key_of(entry, part) for entry in entries for part in parts]

    def _absent_names(self, keys: Iterable[bytes]) -> list[str]:
        """Names that the objects of blocks which are not there could have."""
        parts = range(self._parts) if self._parts > 1 else (None,)
        return [absent_name(key.hex(), part) for key in keys for part in parts]

    def _note_first_reads(self, entries: Iterable[BlockEntry]) -> None:
        """Count the bytes of those that are read for the first time."""
        for entry in entries:
            if not entry.was_read:
                entry.was_read = 1
                self.counters.distinct_read_bytes += entry.stored_bytes
                self.counters.distinct_reads += self._parts

    # --- what an implementation does ------------------------------------------------------

    def begin(self) -> None:
        """The population is over: count anew from here."""
        raise NotImplementedError

    def has_room_for(self, request: Request) -> bool:
        """Whether all its blocks could be stored without losing others."""
        raise NotImplementedError

    def decide(self, inflight: InFlightRequest) -> bool:
        """Decide what is read, written and displaced for a request; false: not yet."""
        raise NotImplementedError

    def storage_hits_of(self, inflight: InFlightRequest) -> list[BlockEntry]:
        """What it found on the storage: of its prefix, then beside it."""
        raise NotImplementedError

    def question_of(self, inflight: InFlightRequest, *, to_first_miss: bool) -> Question:
        """What it asks the storage for: what no memory tier has, up to the first miss, or all."""
        request = inflight.request
        missing = request.keys[inflight.hit_blocks : request.prompt_blocks]
        absent = self._absent_names(missing[:1] if to_first_miss else missing)
        if to_first_miss:
            del absent[1:]  # of a block in several objects, the first one that is missing ends it
        if request.beside:
            there = {entry.key for entry in self.beside_hits_of(inflight)}
            absent += self._absent_names(key for key in request.beside if key not in there)
        return Question(inflight, self._names_of(self.storage_hits_of(inflight)), absent)

    def load(self, inflight: InFlightRequest) -> bool:
        """Read its hits; false: there is nothing to be read."""
        raise NotImplementedError

    def release(self, inflight: InFlightRequest) -> None:
        """Its hits were read, or are not to be."""
        raise NotImplementedError

    def beside_hits_of(self, inflight: InFlightRequest) -> Iterable[BlockEntry]:
        """What it found beside its prefix, in whatever tier."""
        raise NotImplementedError

    def store(self, inflight: InFlightRequest) -> None:
        """Make room and store what is missing."""
        raise NotImplementedError

    def read_again(self, inflight: InFlightRequest) -> bool:
        """Read what it has stored once more; false: where that is, nothing is to be read."""
        raise NotImplementedError

    def stop(self) -> None:
        """Nothing new: reads are finished, of the rest what has begun."""
        raise NotImplementedError

    def leave(self) -> list[InFlightRequest]:
        """Forget what has not begun; return the requests whose reads those were."""
        raise NotImplementedError

    def settle(self) -> None:
        """Give up what was reserved and will not be stored any more."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait for what is in flight."""
        raise NotImplementedError

    @property
    def dispatchers(self) -> Sequence[Dispatcher]:
        """Those of all tiers that hold bytes."""
        raise NotImplementedError

    @property
    def looked_up(self) -> tuple[int, int]:
        """Blocks that were looked up, and those of them that were found, since the beginning."""
        raise NotImplementedError

    def counted(self) -> dict[str, float | None]:
        """Counters of the tiers, by their names in the table."""
        raise NotImplementedError


class OneTier(Blocks):
    """The storage by itself."""

    def __init__(
        self,
        requests: Requests,
        settings: TransferSettings,
        *,
        stores: bool,
        index: CacheIndex,
        io: IoEngine,
        payload: Payload | None,
        log: Log,
        clock: Callable[[], int],
        traced: Traced = untraced,
    ) -> None:
        super().__init__(requests, settings, stores=stores)
        self._index = index
        self._dispatcher = make_dispatcher(
            settings=settings,
            io=io,
            payload=payload,
            log=log,
            clock=clock,
            on_complete=traced(self._complete),
        )
        self._unlike = settings.parts
        self.io_engines = (io,)
        self.turn = self._dispatcher.turn
        self._committed_before = 0

    @property
    def dispatchers(self) -> Sequence[Dispatcher]:
        """The storage's."""
        return (self._dispatcher,)

    @property
    def looked_up(self) -> tuple[int, int]:
        """As the index has counted."""
        return self._index.prompt_blocks, self._index.hit_blocks

    def counted(self) -> dict[str, float | None]:
        """What the storage was given."""
        return {
            "storage_stored_blocks": self._index.committed_blocks - self._committed_before,
            "storage_demoted_in_bytes": 0,
            "memory_tiers_s": None,
        }

    def begin(self) -> None:
        """Blocks are stored from here on for requests."""
        self.counters = Tally()
        self.populating = False
        self._committed_before = self._index.committed_blocks

    def has_room_for(self, request: Request) -> bool:
        """Whether nothing would be evicted."""
        return self._index.has_room_for(*self._all_of(request))

    def decide(self, inflight: InFlightRequest) -> bool:
        """By the index alone."""
        request = inflight.request
        beside = self.beside_of(request) if request.beside else None
        stores = self.may_store
        if stores:
            sizes = self._block_bytes if request.sizes is None else request.sizes
            admission = (
                self._index.admit_after_deletes(
                    request.deletes, request.keys, request.prompt_blocks, sizes
                )
                if request.deletes
                else self._index.admit(request.keys, request.prompt_blocks, sizes, beside)
            )
        else:
            admission = self._index.look_up(request.keys, request.prompt_blocks, beside)
        if not isinstance(admission, Admission):
            self.blocked_on = admission.entry
            return False
        self.blocked_on = None
        if self.drops_stores and not stores:
            self._note_dropped(request, admission)
        inflight.admission = admission
        inflight.hit_blocks = len(admission.hits)
        inflight.beside_hit_blocks = len(admission.beside_hits)
        if request.rereads and not self.populating:
            self._will_read_again(inflight, [admission.inserts])
        return True

    def _note_dropped(self, request: Request, admission: Admission) -> None:
        """Count what it would have stored; what it has found was used all the same."""
        kept, _sizes = self._all_of(request)
        self.counters.dropped_blocks += self._index.find(kept).count(None)
        self._index.refresh([entry.key for entry in admission.hits])

    def storage_hits_of(self, inflight: InFlightRequest) -> list[BlockEntry]:
        """All its hits."""
        return [*inflight.admission.hits, *inflight.admission.beside_hits]

    def load(self, inflight: InFlightRequest) -> bool:
        """Get each hit from the storage."""
        hits, beside_hits = inflight.admission.hits, inflight.admission.beside_hits
        if self._unlike:
            return self._load_unlike(hits, beside_hits, inflight)
        if beside_hits:
            hits = [*hits, *beside_hits]
        if not hits:
            return False
        inflight.left = self._dispatcher.submit(READ, hits, inflight)
        self._note_first_reads(hits)
        return True

    def _load_unlike(
        self,
        hits: Sequence[BlockEntry],
        beside_hits: Sequence[BlockEntry],
        inflight: InFlightRequest,
    ) -> bool:
        """Get what is needed of the prefix, and all of what is read beside it."""
        objects = [*parts_of_prefix(hits, self._unlike), *all_parts(beside_hits, self._unlike)]
        inflight.left = self._dispatcher.submit_objects(READ, objects, inflight)
        self._note_first_reads_of(objects)
        return inflight.left > 0

    def _prefix_bytes_of(self, inflight: InFlightRequest) -> int:
        """Those of its prefix: of each object as many last ones as are read."""
        if not self._unlike:
            return super()._prefix_bytes_of(inflight)
        hits = inflight.hit_blocks
        return sum(part.object_bytes * part.read_blocks(hits) for part in self._unlike)

    def read_again(self, inflight: InFlightRequest) -> bool:
        """Get each block that it has stored from the storage."""
        (stored,) = inflight.again
        inflight.left = self._dispatcher.submit(READ, stored, inflight, REREAD)
        if self._unlike:
            self._note_first_reads_of(all_parts(stored, self._unlike))
        else:
            self._note_first_reads(stored)
        return True

    def _note_first_reads_of(self, objects: Iterable[tuple[BlockEntry, int]]) -> None:
        """Count the objects that are read for the first time, each by a bit of its own."""
        for entry, number in objects:
            if not entry.was_read >> number & 1:
                entry.was_read |= 1 << number
                self.counters.distinct_read_bytes += self._unlike[number].stored_bytes
                self.counters.distinct_reads += 1

    def release(self, inflight: InFlightRequest) -> None:
        """Unpin its hits."""
        self._index.release(inflight.admission)

    def beside_hits_of(self, inflight: InFlightRequest) -> Iterable[BlockEntry]:
        """As it was admitted."""
        hits: Sequence[BlockEntry] = inflight.admission.beside_hits
        return hits

    def store(self, inflight: InFlightRequest) -> None:
        """Victims are deleted before anything is written: it never holds more than it may."""
        admission = inflight.admission
        self.stores += len(admission.inserts) * self._parts
        if self._stopping:
            return
        if admission.victims:
            inflight.left = self._dispatcher.submit(DELETE, admission.victims, inflight)
        else:
            self._write(inflight)

    def _write(self, inflight: InFlightRequest) -> None:
        inserts = inflight.admission.inserts
        if not inserts:
            self._requests.stored(inflight)
        elif not self._stopping:
            inflight.left = self._dispatcher.submit(WRITE, inserts, inflight)

    def stop(self) -> None:
        """Only reads begin any more."""
        self._stopping = True
        self._dispatcher.keep_only(READ)

    def leave(self) -> list[InFlightRequest]:
        """Not even reads do."""
        return list(dict.fromkeys(op.owner for op in self._dispatcher.keep_only(None)))

    def settle(self) -> None:
        """Of the reservations nothing is left."""
        self._index.give_up_reserved()

    def close(self) -> None:
        """Wait for the storage."""
        self._dispatcher.close()

    # --- ends of operations ---------------------------------------------------------------

    def _complete(self, operation: Operation) -> None:
        inflight: InFlightRequest = operation.owner
        inflight.left -= 1
        if operation.failed:
            self._requests.stop()  # at once: what follows would be another workload
        if operation.kind == READ:
            self._complete_read(operation, inflight)
        elif operation.kind == WRITE:
            self._complete_write(operation, inflight)
        else:
            self._note_delete(operation)
            if not inflight.left:
                self._index.deleted(inflight.admission)
                self._write(inflight)
        if self._waiting:
            blocker = self.blocked_on  # admission is asked again only when it can have changed
            own = blocker is operation.entry and (blocker.present or operation.failed)
            if blocker is None or own or (blocker.present and not blocker.pins):
                self._requests.pump()

    def _complete_read(self, operation: Operation, inflight: InFlightRequest) -> None:
        self._note_read(operation, inflight)
        if not inflight.left:
            self._requests.loaded(inflight)

    def _note_read(self, operation: Operation, inflight: InFlightRequest) -> None:
        if operation.failed:
            self.counters.read_failed += 1
            inflight.failed = True
            self._index.drop(operation.entry)
        else:
            counters = self.counters
            counters.requested_read_bytes += operation.stored_bytes
            counters.requested_transfers += operation.transfers
            if operation.done_ns > inflight.loaded_ns:  # noqa: PLR1730  a call less, per read
                inflight.loaded_ns = operation.done_ns

    def _complete_write(self, operation: Operation, inflight: InFlightRequest) -> None:
        self._note_write(operation, inflight)
        self.stores -= 1
        if not inflight.left:
            self._requests.stored(inflight)
        if self._stalled and self.stores <= self.most_stores:
            self._requests.go_on()

    def _note_write(self, operation: Operation, inflight: InFlightRequest) -> None:
        if operation.failed:
            self.counters.write_failed += 1
            inflight.failed = True
            self._index.roll_back(operation.entry)
        else:
            counters = self.counters
            counters.requested_write_bytes += operation.stored_bytes
            counters.requested_transfers += operation.transfers
            counters.requested_writes += 1
            self._index.commit(operation.entry)

    def _note_delete(self, operation: Operation) -> None:
        self.counters.delete_failed += operation.failed
