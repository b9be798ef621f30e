"""A store that other ranks store in as well: what it has is asked of it, and it may be gone again.

Rank-side; imports neither pytest nor MPI. A block is stored under its content's name, whoever
stores it. Each rank keeps account, by an index, of what it has stored itself: of that it holds no
more than its capacity, and of nothing else does it delete anything.

A request is decided when the storage has told how many of its leading blocks are there. What is
this rank's own of them, the index knows; the rest is others', which can be deleted between answer
and read: then the prefix ends there. What is missing is stored, unless another one was faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.cache.index import Admission, ContentEntry, content_name, first_pending
from pytest_kvcache.engine.blocks import OneTier
from pytest_kvcache.engine.lookups import PrefixQuestion
from pytest_kvcache.measure.sharing import DELETED, FOUND, GIVEN_UP, LOST, MISSED, STORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.cache.index import Blocked, BlockEntry, CacheIndex
    from pytest_kvcache.engine.blocks import Requests
    from pytest_kvcache.engine.lookups import Answer
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.measure.sharing import SharingLog


_LONG_NS = 60_000_000_000  # no question is open for so long


@dataclass(frozen=True, slots=True)
class SharedCache:
    """One rank's part of a shared store: the index of its own blocks, and what it notes.

    ``origin`` is what its blocks' heads say of who wrote them; ``trusts_heads``: whoever a head
    names is whose block it is, for no two write into one temporary file.
    """

    index: CacheIndex
    log: SharingLog
    origin: int
    to_first_miss: bool
    trusts_heads: bool


class SharedStore(OneTier):
    """The storage by itself, and not this rank's alone."""

    def __init__(
        self, requests: Requests, settings: TransferSettings, *, cache: SharedCache, **parts: Any
    ) -> None:
        super().__init__(requests, settings, index=cache.index, **parts)
        self._noted = cache.log
        self._origin = cache.origin
        self._to_first_miss = cache.to_first_miss
        self._others: dict[bytes, BlockEntry] = {}  # by key, what others had stored
        self._stored_ns: dict[bytes, int] = {}  # by key, when this rank's own was there
        self._going: dict[bytes, int] = {}  # victims that are not deleted yet: stored when
        self._gone_ns: dict[bytes, int] = {}  # by key, when it last was, in this order
        self._seen_ns: dict[bytes, int] = {}  # by key, when another's was last found
        self._trusts_heads = cache.trusts_heads
        self._asked_blocks = self._found_blocks = 0
        self._unasked = requests.unasked
        self._held_by: BlockEntry | None = None  # what the first of them waits for

    @property
    def looked_up(self) -> tuple[int, int]:
        """As the storage has answered."""
        return self._asked_blocks, self._found_blocks

    # --- what is there --------------------------------------------------------------------

    def may_ask(self, inflight: InFlightRequest) -> bool:
        """Not while this rank itself is still storing something of it, as a rank alone waits."""
        own = filter(None, self._index.find(self._asked_keys(inflight)))
        self._held_by = first_pending(own)
        return self._held_by is None

    def prefix_question_of(self, inflight: InFlightRequest) -> PrefixQuestion:
        """Which leading blocks are there: of its prompt, or of all that is populated."""
        names = list(map(content_name, self._asked_keys(inflight)))
        return PrefixQuestion(inflight, names, self._to_first_miss)

    def _asked_keys(self, inflight: InFlightRequest) -> Sequence[bytes]:
        request = inflight.request
        return request.keys if self.populating else request.keys[: request.prompt_blocks]

    def note_answer(self, answer: Answer) -> None:
        """Keep what the storage has told of a request's blocks."""
        inflight = answer.inflight
        inflight.found_blocks = answer.leading
        inflight.asked_ns, inflight.answered_ns = answer.started_ns, answer.done_ns
        keys = self._asked_keys(inflight)
        if answer.leading == len(keys):
            return
        missed = keys[answer.leading]
        (own,) = self._index.find([missed])
        there_ns = self._stored_ns.get(missed)
        if own is not None and there_ns is not None and there_ns < answer.started_ns:
            self._lose(own, there_ns, answer.done_ns)
        elif (seen_ns := self._seen_ns.pop(missed, None)) is not None:  # it was visible before
            self._others.pop(missed, None)
            self._noted.note(LOST, missed, seen_ns, answer.done_ns)
        else:
            self._noted.note(MISSED, missed, answer.started_ns, answer.done_ns)

    def _lose(self, entry: BlockEntry, there_ns: int, gone_ns: int) -> None:
        """A block was there, and is not there any more."""
        self._noted.note(LOST, entry.key, there_ns, gone_ns)
        self._forget_own(entry)

    def _forget_own(self, entry: BlockEntry) -> None:
        if self._stored_ns.pop(entry.key, None) is not None:
            self._index.drop(entry)

    def _give_away(self, entry: BlockEntry) -> None:
        """Another rank has written over it: from now on it is that one's, to count and delete."""
        self._forget_own(entry)
        entry.object_version = 0
        self._others.setdefault(entry.key, entry)

    # --- decisions ------------------------------------------------------------------------

    def decide(self, inflight: InFlightRequest) -> bool:
        """Hits are what the storage has told; the index decides what is stored and displaced."""
        keys, self.blocked_on = inflight.request.keys, None
        there = self._still_there(inflight)
        self._noted.displaced += inflight.found_blocks - there
        inflight.found_blocks = there
        if self.may_store and not self._going.keys().isdisjoint(keys[there:]):
            return False  # of one name, a write must not come before a delete
        found = keys[: inflight.found_blocks]
        own = self._index.find(found)
        admission = self._admission(inflight, [entry is not None for entry in own])
        if not isinstance(admission, Admission):
            self.blocked_on = admission.entry
            return False
        if self.drops_stores and not (self._stopping or self.may_store):
            missing = self._index.find(keys[inflight.found_blocks :])
            self.counters.dropped_blocks += missing.count(None)
            self._index.refresh([entry.key for entry in admission.hits])
        hits = [
            self._entry_of_other(inflight, at) if entry is None else entry
            for at, entry in enumerate(own)
        ]
        for entry in admission.victims:
            self._going[entry.key] = self._stored_ns.pop(entry.key, inflight.asked_ns)
        inflight.admission = replace(admission, hits=hits)
        inflight.hit_blocks = len(hits)
        inflight.beside_hit_blocks = 0
        self._asked_blocks += len(self._asked_keys(inflight))
        self._found_blocks += len(hits)
        return True

    def _still_there(self, inflight: InFlightRequest) -> int:
        """How many of the leading blocks that were found this rank has not displaced since."""
        going, gone_ns = self._going, self._gone_ns
        while gone_ns and gone_ns[next(iter(gone_ns))] < inflight.asked_ns - _LONG_NS:
            del gone_ns[next(iter(gone_ns))]
        for at, key in enumerate(inflight.request.keys[: inflight.found_blocks]):
            if key in going or gone_ns.get(key, -1) >= inflight.asked_ns:
                return at
        return inflight.found_blocks

    def _admission(self, inflight: InFlightRequest, is_own: Sequence[bool]) -> Admission | Blocked:
        """Of this rank's own blocks that were found, and of all that was not."""
        request, found = inflight.request, inflight.found_blocks
        mine = [at for at, own in enumerate(is_own) if own]
        kept = [*mine, *range(found, len(request.keys))]
        keys = [request.keys[at] for at in kept]
        if not self.may_store:
            return self._index.look_up(keys[: len(mine)], len(mine))
        sizes = request.sizes
        of_kept = self._block_bytes if sizes is None else [sizes[at] for at in kept]
        return self._index.admit(keys, len(mine), of_kept)

    def _entry_of_other(self, inflight: InFlightRequest, at: int) -> BlockEntry:
        """A block that another rank has stored; pinned, as those of the index are."""
        request = inflight.request
        key = request.keys[at]
        entry = self._others.get(key)
        if entry is None:
            size = self._block_bytes if request.sizes is None else request.sizes[at]
            padded = self._index.padded_bytes(size)
            entry = self._others[key] = ContentEntry(self._origin, key, 0, 0, size, padded)
            self._noted.note(FOUND, key, inflight.asked_ns, inflight.answered_ns)
        self._seen_ns[key] = inflight.answered_ns
        entry.pins += 1
        return entry

    def own_hits_of(self, inflight: InFlightRequest) -> int:
        """How many of its hits this rank has stored itself."""
        hits: Sequence[BlockEntry] = inflight.admission.hits[: inflight.hit_blocks]
        return sum(entry.object_version > 0 for entry in hits)

    # --- ends of operations ---------------------------------------------------------------

    def _complete(self, operation: Operation) -> None:
        super()._complete(operation)
        holder = self._held_by
        if self._unasked and (holder is None or holder is operation.entry or holder.present):
            self._requests.pump()

    def _note_read(self, operation: Operation, inflight: InFlightRequest) -> None:
        if not operation.raced:
            super()._note_read(operation, inflight)
            if self._trusts_heads and operation.is_others and operation.entry.object_version:
                self._give_away(operation.entry)
            return
        self._noted.vanished += 1
        at = inflight.admission.hits.index(operation.entry)
        inflight.hit_blocks = min(inflight.hit_blocks, at)
        inflight.loaded_ns = max(inflight.loaded_ns, operation.done_ns)
        key = operation.entry.key
        self._noted.note(LOST, key, inflight.answered_ns, operation.done_ns)
        self._seen_ns.pop(key, None)
        self._others.pop(key, None)
        if operation.entry.object_version:
            self._forget_own(operation.entry)

    def _note_write(self, operation: Operation, inflight: InFlightRequest) -> None:
        entry = operation.entry
        if operation.raced:
            self._noted.note(GIVEN_UP, entry.key, inflight.asked_ns, operation.done_ns)
            self._index.roll_back(entry)
            return
        super()._note_write(operation, inflight)
        if not operation.failed:
            self._stored_ns[entry.key] = operation.done_ns
            self._noted.note(STORED, entry.key, inflight.asked_ns, operation.done_ns)

    def _note_delete(self, operation: Operation) -> None:
        super()._note_delete(operation)
        key, done_ns = operation.entry.key, operation.done_ns
        stored_ns = self._going.pop(key)
        self._gone_ns.pop(key, None)
        self._gone_ns[key] = done_ns
        if operation.raced:  # nothing was deleted
            self._noted.note(LOST, key, stored_ns, done_ns)
        elif not operation.failed:
            self._noted.note(DELETED, key, operation.submitted_ns, done_ns)
