"""What an I/O engine is: it carries out transfers for one thread, the loop of a rank.

Rank-side; imports neither pytest nor MPI. The loop stages, submits, looks and reaps; all
methods but ``longest_wait_ns`` are called by it alone, so none takes a lock for it.

A *slot* is a number. Slots are of three sorts, which the loop keeps apart: read slots and
write slots, each with a buffer of its own, and call slots without one (deletes, syncs). From
``stage`` until it is reaped or withdrawn a slot belongs to the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from pytest_kvcache.measure.recorder import DELETE, READ, SYNC, WRITE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_kvcache.errors import StorageError

__all__ = ["DELETE", "READ", "SYNC", "WRITE", "Completion", "IoEngine", "IoEngineName"]

IoEngineName = Literal["io_uring", "libaio", "threads", "inline"]

# slot, started_ns, done_ns, what went wrong. A plain tuple: one is made per transfer.
Completion = tuple[int, int, int, "StorageError | None"]


class IoEngine(Protocol):
    """Carries out transfers and calls; at most ``depth`` are in flight at any time.

    ``in_flight`` counts what has begun and was not yet seen to have ended (``look``).
    ``lags_ns`` gets, for each end that a look found, the time since the look before it (or
    since the submit, if that came later): so much earlier than its stamp can the end have
    been. The loop empties it. It stays empty where whoever makes a call stamps its end.
    """

    @property
    def name(self) -> IoEngineName:
        """The name of the engine."""

    @property
    def depth(self) -> int:
        """The most that may be in flight."""

    @property
    def in_flight(self) -> int:
        """What has begun and was not yet seen to have ended."""

    @property
    def lags_ns(self) -> list[int]:
        """How late stamps can have been; appended to by ``look``, emptied by the loop."""

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Name all slots' buffers, once, before anything is staged: slot n has the nth.

        Page-aligned and writable; empty for call slots, and for all where nothing is stored.
        """

    def stage(  # noqa: PLR0917  on the timed path, where keywords cost
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        """Get one transfer (READ, WRITE) or call (DELETE, SYNC) ready; no system call.

        ``view`` is the first bytes of the slot's buffer, as many as are moved; empty for a
        call. ``transfers`` is of how many transfers the operation on the object consists:
        they are staged in the order of their offsets, the first one with offset 0, so that
        an engine that opens a file per object knows when to close it. Several operations of
        one object may be under way at the same time if all of them read it.
        """

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        """Begin at most ``limit`` of those staged, in their order; return how many began.

        What did not begin stays staged. The caller keeps to ``depth - in_flight``. With
        ``wait_until_ns`` (of ``time.monotonic_ns``) sleep, in the same system call if there
        is one, until something ends or that time has come; return at once if something has
        ended already. ``started_ns`` of what begins is read right before that call, and is
        to be seen by ``longest_wait_ns`` during it. A bug in a backend is raised here, in
        ``look`` or in ``reap``.
        """

    def look(self) -> int:
        """Stamp what has ended since the last look, with one clock read; cheap if nothing has.

        Returns how many completions can be reaped now, those of earlier looks included.
        """

    def reap(self) -> Sequence[Completion]:
        """Return all that have been stamped, each once, in the order in which they ended.

        Whole transfers only: a short one is resubmitted inside, with its first start.
        """

    def withdraw(self) -> list[int]:
        """Take back all that is staged and has not begun; return the slots, in their order."""

    def longest_wait_ns(self, now_ns: int) -> int:
        """For how long the oldest call in flight has been waited for; 0: none is.

        Called by another thread; reads plain values.
        """

    def close(self) -> None:
        """Withdraw what is staged, wait for what is in flight, free all; may be called again."""
