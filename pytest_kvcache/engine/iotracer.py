"""Notes every operation on the storage for an I/O trace, where its end is noted.

Rank-side; imports neither pytest nor MPI. What it costs is in the run: about a microsecond
of the loop per operation, and the bytes that the spool writes beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from pytest_kvcache.measure.iospool import (
    AFTER_ANSWER,
    AFTER_ARRIVAL,
    AFTER_DELETES,
    AFTER_WRITES,
    RECORD,
    RECORDS_PER_BUFFER,
)
from pytest_kvcache.measure.recorder import DELETE, READ, REREAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_kvcache.engine.operations import Operation
    from pytest_kvcache.engine.requests import InFlightRequest
    from pytest_kvcache.measure.iospool import Spool


Complete: TypeAlias = "Callable[[Operation], None]"
Traced: TypeAlias = "Callable[[Complete], Complete]"
"""What an end of an operation leads to, with it noted first."""


def untraced(complete: Complete) -> Complete:
    """Return it as it is: no trace is written, and nothing is paid for one."""
    return complete


class IoTracer:
    """Packs what ended into buffers, and hands full ones to the spool.

    An operation that failed is not noted: it ends its trial, of which no trace is kept.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._buffer = bytearray(RECORD.size * RECORDS_PER_BUFFER)
        self._offset = 0

    def traced(self, complete: Complete) -> Complete:
        """Return what notes an operation of the storage, then goes on as ``complete`` does."""

        def note_and_complete(operation: Operation) -> None:
            if not operation.failed:
                self._note(operation)
            complete(operation)

        return note_and_complete

    def _note(self, operation: Operation) -> None:
        owner: InFlightRequest = operation.owner
        kind = operation.row
        if kind == READ:
            after = AFTER_ARRIVAL
        elif kind == REREAD:
            after = AFTER_WRITES
        elif kind == DELETE:
            after, owner.has_deleted = AFTER_ANSWER, True
        else:
            after = AFTER_DELETES if owner.has_deleted else AFTER_ANSWER
        entry, offset = operation.entry, self._offset
        RECORD.pack_into(
            self._buffer, offset, kind, after, operation.identity.part, owner.request.user,
            owner.number, entry.key, entry.object_version, operation.object_bytes,
            operation.submitted_ns, operation.started_ns, operation.done_ns,
        )  # fmt: skip
        offset += RECORD.size
        if offset == len(self._buffer):
            self._spool.write(self._buffer)
            self._buffer = bytearray(offset)
            offset = 0
        self._offset = offset

    def finish(self) -> None:
        """Hand the rest over, when no operation ends any more."""
        self._spool.write(self._buffer[: self._offset])
        self._offset = 0
