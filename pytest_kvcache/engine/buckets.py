"""A store that packs blocks into buckets: what waits in memory for one, and when it is written.

Rank-side; imports neither pytest nor MPI. A block that is stored is put into memory, and with that
its request is through with it. The bucket that it fills up is written by one call, when the data of
all its blocks are there and what makes room for it is deleted; a request that has filled a bucket
is over when that is written. What a run leaves in the open bucket is never written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.cache.buckets import BucketAdmission, BucketEntry, in_memory
from pytest_kvcache.cache.index import unpin
from pytest_kvcache.engine.blocks import OneTier
from pytest_kvcache.ioengines.protocol import DELETE, WRITE
from pytest_kvcache.measure.recorder import STAGED, TRANSFER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.cache.buckets import Bucket, BucketIndex
    from pytest_kvcache.engine.blocks import Requests
    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.measure.recorder import Log


class BucketWrite:
    """A bucket on its way to the storage: who filled it, and how many of its blocks are left.

    ``began_ns`` and ``ended_ns`` are those of the first and the last of its blocks.
    """

    __slots__ = ("began_ns", "bucket", "ended_ns", "failed", "has_room", "left", "request")

    def __init__(self, bucket: Bucket, request: InFlightRequest) -> None:
        self.bucket = bucket
        self.request = request
        self.has_room = False
        self.left = 0
        self.failed = False
        self.began_ns = self.ended_ns = 0


class BucketStore(OneTier):
    """The storage by itself, in buckets; takes what `OneTier` takes, with a `BucketIndex`."""

    def __init__(
        self,
        requests: Requests,
        settings: TransferSettings,
        *,
        index: BucketIndex,
        log: Log,
        **parts: Any,
    ) -> None:
        super().__init__(requests, settings, index=index, log=log, **parts)
        # What is in the open bucket waits as well, and must never be what users wait for.
        assert self.most_stores >= index.bucket_blocks - 1
        self._rows = log
        self._on_their_way: dict[Bucket, BucketWrite] = {}

    # --- decisions ------------------------------------------------------------------------

    def decide(self, inflight: InFlightRequest) -> bool:
        """By the index; what it has in memory is not read from the storage."""
        if not super().decide(inflight):
            return False
        admission: BucketAdmission = inflight.admission
        staged = list(filter(in_memory, admission.hits))
        if staged:
            unpin(staged)  # nothing displaces what is in memory
            there = [entry for entry in admission.hits if entry.present]
            inflight.admission = replace(admission, hits=there)
        for bucket in admission.sealed:
            self._on_their_way[bucket] = BucketWrite(bucket, inflight)
        return True

    def loaded_blocks_of(self, inflight: InFlightRequest) -> int:
        """How many blocks its reads bring: what is in memory is there at once."""
        return len(inflight.admission.hits)

    def release(self, inflight: InFlightRequest) -> None:
        """Unpin its hits, and tell how many were in memory."""
        super().release(inflight)
        if not inflight.failed:
            read = len(inflight.admission.hits)
            self._rows.add(
                STAGED, inflight.hit_blocks - read, inflight.issued_ns, inflight.issued_ns, 0, 0
            )

    # --- stores ---------------------------------------------------------------------------

    def store(self, inflight: InFlightRequest) -> None:
        """Put its blocks into memory, make room, and write the buckets that can be."""
        admission: BucketAdmission = inflight.admission
        self.stores += len(admission.inserts)
        if self._stopping:
            return
        filling: dict[Bucket, None] = {}
        for entry in admission.inserts:
            assert isinstance(entry, BucketEntry)
            entry.put()
            filling[entry.bucket] = None
        oldest = [bucket.entries[0] for bucket in admission.emptied]  # each stands for its bucket
        if oldest:
            inflight.left = self._dispatcher.submit(DELETE, oldest, inflight)
        else:
            self._write(inflight)
        for bucket in filling:  # these data may have been the last that one waited for
            self._write_if_ready(bucket)
        if self._waiting and self.blocked_on is not None and in_memory(self.blocked_on):
            self._requests.pump()

    def _write(self, inflight: InFlightRequest) -> None:
        """There is room for the buckets that it has filled."""
        sealed: Sequence[Bucket] = inflight.admission.sealed
        inflight.left = len(sealed)
        if not sealed:
            self._requests.stored(inflight)
            return
        for bucket in sealed:
            self._on_their_way[bucket].has_room = True
            self._write_if_ready(bucket)

    def _write_if_ready(self, bucket: Bucket) -> None:
        write = self._on_their_way.get(bucket)
        if write is None or bucket.awaited or not write.has_room or self._stopping:
            return
        del self._on_their_way[bucket]
        write.left = self._dispatcher.submit(WRITE, bucket.entries, write)

    # --- ends of operations ---------------------------------------------------------------

    def _note_call(self, write: BucketWrite) -> None:
        """Book the one call that the bucket took."""
        if not write.failed:
            moved = sum(entry.block_bytes for entry in write.bucket.entries)
            self._rows.add(TRANSFER, 0, write.began_ns, write.ended_ns, moved, 0)

    def _complete_write(self, operation: Operation, write: Any) -> None:
        self._note_write(operation, write)
        write.began_ns = min(write.began_ns or operation.started_ns, operation.started_ns)
        write.ended_ns = max(write.ended_ns, operation.done_ns)
        self.stores -= 1
        if not write.left:
            self._note_call(write)
            request: InFlightRequest = write.request
            request.failed = request.failed or write.failed
            request.left -= 1
            if not request.left:
                self._requests.stored(request)
        if self._stalled and self.stores <= self.most_stores:
            self._requests.go_on()
