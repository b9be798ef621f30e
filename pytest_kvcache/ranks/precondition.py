"""A storage that was written to before: objects are overwritten in place until it is enough.

Rank-side; imports neither pytest nor MPI. A new disk is faster than one that has been written
to. Nothing here is measured but how many bytes were written and how long it took; before the
cache is filled, all of it is deleted again.
"""

from __future__ import annotations

import time
from itertools import cycle
from typing import TYPE_CHECKING

from pytest_kvcache.cache.index import BlockEntry
from pytest_kvcache.engine.dispatch import Dispatcher
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.protocol import DELETE, WRITE
from pytest_kvcache.measure.recorder import Log
from pytest_kvcache.system.filesystem import sample_io
from pytest_kvcache.units import format_bytes
from pytest_kvcache.workloads.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_kvcache.engine.operations import Operation, TransferSettings
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import IoEngine

_TURN_NS = 50_000_000  # slept at most, between two ticks
_ARRIVED_SHARE = 0.9  # of what was written, that the kernel must have given to devices


class Precondition:
    """Writes at least ``size_bytes``, over and over the same ``blocks`` objects of a block.

    ``written_bytes`` are padded to pages; ``arrived_bytes`` is what the kernel wrote for this
    process meanwhile, None: it does not count it.
    """

    def __init__(self, size_bytes: int, most_blocks: int, settings: TransferSettings) -> None:
        self._size_bytes = size_bytes
        self._settings = settings
        self.blocks = min(most_blocks, -(-size_bytes // settings.stored_block_bytes))
        self._entries = [self._entry(number) for number in range(self.blocks)]
        self.written_bytes = 0
        self.arrived_bytes: int | None = None
        self.span_s = 0.0
        self._under_way = 0

    def _entry(self, number: int) -> BlockEntry:
        settings = self._settings
        return BlockEntry(
            content_key(b"precondition/%d" % number),
            0,
            settings.objects_per_block,
            settings.block_bytes,
            settings.stored_block_bytes,
        )

    def run(
        self,
        io: IoEngine,
        payload: Payload,
        tick: Callable[[], bool],
        *,
        must_arrive: bool,
    ) -> None:
        """Write, then delete; closes ``io``.

        Raises StorageError with the first operation that failed, and, where it ``must_arrive``,
        if the kernel has not given to devices what was written.
        """
        log = Log()
        dispatcher = Dispatcher(
            settings=self._settings, io=io, payload=payload, log=log, on_complete=self._complete
        )
        began_s, before = time.monotonic(), sample_io()
        try:
            self._carry_out(dispatcher, log, tick, WRITE, self._to_write())
            self.span_s = time.monotonic() - began_s
            self.arrived_bytes = sample_io().since(before).write_bytes
            self._carry_out(dispatcher, log, tick, DELETE, self._entries)
        finally:
            dispatcher.close()
        if must_arrive and self.arrived_bytes is not None:
            self._check_arrival(self.arrived_bytes)

    def _check_arrival(self, arrived_bytes: int) -> None:
        if arrived_bytes < _ARRIVED_SHARE * self.written_bytes:
            raise StorageError(
                f"--kv-precondition wrote {format_bytes(self.written_bytes)}, of which the kernel"
                f" gave {format_bytes(arrived_bytes)} to a device; look for a cache between (a"
                " preloaded library, a filesystem in memory), or leave it out"
            )

    def _to_write(self) -> Iterable[BlockEntry]:
        """The entries round by round, each time with other contents."""
        asked_bytes = 0
        for number, entry in enumerate(cycle(self._entries)):
            if asked_bytes >= self._size_bytes:
                return
            written = self._entry(number % self.blocks)
            written.data_version = number // self.blocks
            asked_bytes += entry.stored_bytes
            yield written

    def _carry_out(
        self,
        dispatcher: Dispatcher,
        log: Log,
        tick: Callable[[], bool],
        kind: int,
        entries: Iterable[BlockEntry],
    ) -> None:
        """No object is under way twice: a round ends before the next one begins."""
        most = 2 * self._settings.queue_depth * self._settings.objects_per_block
        for number, entry in enumerate(entries, 1):
            self._under_way += dispatcher.submit(kind, [entry], None)
            self._turn_while(dispatcher, log, tick, most if number % self.blocks else 1)
        self._turn_while(dispatcher, log, tick, 1)

    def _turn_while(
        self, dispatcher: Dispatcher, log: Log, tick: Callable[[], bool], most: int
    ) -> None:
        while self._under_way >= most:
            dispatcher.turn(time.monotonic_ns() + _TURN_NS)
            log.take()
            if dispatcher.first_error is not None:
                raise StorageError(f"--kv-precondition failed: {dispatcher.first_error}")
            if tick():
                raise StorageError("--kv-precondition was told to stop, as another rank failed")

    def _complete(self, operation: Operation) -> None:
        self._under_way -= 1
        if operation.kind == WRITE and not operation.failed:
            self.written_bytes += operation.stored_bytes
