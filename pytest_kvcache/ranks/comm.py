"""Talking to the other ranks; the only module that imports ``mpi4py.MPI``.

Rank-side; never imported by the pytest process. Long waits poll and sleep, so that a
waiting rank burns no core; every wait has a deadline.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.errors import StalledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mpi4py import MPI
    from numpy.typing import NDArray

    from pytest_kvcache.engine.load import LoadChange

COORDINATOR = 0  # the world rank that does no I/O; worker ranks of the results start behind it
PROGRESS_TAG = 11
ORDER_TAG = 12
CLOCK_TAG = 13
PART_TAG = 14
TRACE_TAG = 15
_POLL_S = 0.002
_PINGS = 64
_LAST_WORDS_NS = 300_000_000


def clock_ns() -> int:
    """The clock of all measurements; its zero differs from host to host."""
    return time.monotonic_ns()


class Comm:
    """One process's view of the world of ranks."""

    def __init__(self) -> None:
        from mpi4py import MPI  # noqa: PLC0415  importing it initialises MPI

        self._mpi: Any = MPI
        self._world: MPI.Intracomm = MPI.COMM_WORLD
        self._sending: list[MPI.Request] = []
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.host = socket.gethostname()
        self.library: str = MPI.Get_library_version().splitlines()[0].strip(" \0")

    def wait_all(self, *, what: str, deadline_s: float, tick: Callable[[], None]) -> None:
        """A barrier that sleeps, ticks and gives up.

        Raises StalledError, naming ``what`` was waited for, after ``deadline_s``.
        """
        request = self._world.Ibarrier()
        until = clock_ns() + int(deadline_s * 1e9)
        while not request.Test():
            tick()
            if clock_ns() > until:
                raise StalledError(
                    f"not all ranks were there {deadline_s:g} s after this one ({what});"
                    " look for a rank that hangs, or raise --kv-deadline"
                )
            time.sleep(_POLL_S)

    def broadcast(self, value: Any) -> Any:
        """The coordinator's value on every rank."""
        return self._world.bcast(value, root=COORDINATOR)

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's value, in world order, on the coordinator; None elsewhere."""
        return self._world.gather(value, root=COORDINATOR)

    def scatter(self, values: list[Any] | None) -> Any:
        """One of the coordinator's values to each rank."""
        return self._world.scatter(values, root=COORDINATOR)

    def exchange(self, values: Mapping[int, bytes]) -> list[bytes]:
        """Some bytes to each rank, by world rank, and what each has for this one; all ranks."""
        return self._world.alltoall([values.get(rank, b"") for rank in range(self.size)])

    def sum_arrays(self, array: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Element-wise sum over all ranks on the coordinator (tree reduction), None elsewhere."""
        total = np.zeros_like(array) if self.rank == COORDINATOR else None
        self._world.Reduce(array, total, op=self._mpi.SUM, root=COORDINATOR)
        return total

    def send_progress(self, report: dict[str, Any]) -> None:
        """Worker → coordinator, without waiting."""
        self._sending = [request for request in self._sending if not request.Test()]
        self._sending.append(self._world.isend(report, dest=COORDINATOR, tag=PROGRESS_TAG))

    def send_last_words(self, error: str) -> None:
        """Worker → coordinator, before this rank takes all others down with it."""
        self.send_progress({"phase": "dying", "error": error})
        until = clock_ns() + _LAST_WORDS_NS
        while clock_ns() < until:  # MPI moves messages only while it is called
            self._world.Iprobe(source=COORDINATOR, tag=ORDER_TAG)
            time.sleep(_POLL_S)

    def progress_reports(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Coordinator: (world rank, report) for every report that has arrived."""
        status = self._mpi.Status()
        while self._world.Iprobe(source=self._mpi.ANY_SOURCE, tag=PROGRESS_TAG, status=status):
            source = status.Get_source()
            yield source, self._world.recv(source=source, tag=PROGRESS_TAG)

    def order_stop(self) -> None:
        """Coordinator → all workers: stop early."""
        self._order([None] * (self.size - 1))

    def order_change(self, changes: Sequence[LoadChange]) -> None:
        """Coordinator → each worker: another number of users, from a moment of its own clock on."""
        self._order(changes)

    def _order(self, orders: Sequence[LoadChange | None]) -> None:
        for rank, order in enumerate(orders, start=1):
            self._sending.append(self._world.isend(order, dest=rank, tag=ORDER_TAG))

    def orders(self) -> Iterator[LoadChange | None]:
        """Worker: what the coordinator has ordered and is not obeyed yet; None: to stop."""
        while self._world.Iprobe(source=COORDINATOR, tag=ORDER_TAG):
            yield self._world.recv(source=COORDINATOR, tag=ORDER_TAG)

    def drain_messages(self) -> None:
        """Receive what is still under way, so that MPI can end. All ranks, after a barrier."""
        if self.rank == COORDINATOR:
            for _report in self.progress_reports():
                pass
        else:
            for _order in self.orders():
                pass

    def measure_offsets_ns(self, leaders: Sequence[int]) -> list[int]:
        """Coordinator: each world rank's clock minus its own, by ping-pong.

        ``leaders`` is, by world rank from 1, the one that answers for it: ranks of a host
        have one clock. The sample with the lowest round trip counts; its error is at most
        half of that. The leaders answer with ``answer_clock``.
        """
        offsets = {leader: self._offset_ns(leader) for leader in dict.fromkeys(leaders)}
        return [0, *(offsets[leader] for leader in leaders)]

    def _offset_ns(self, rank: int) -> int:
        peer = np.zeros(1, dtype=np.int64)
        best_rtt, best_offset = None, 0
        for _ in range(_PINGS):
            sent = clock_ns()
            self._world.Send(peer, dest=rank, tag=CLOCK_TAG)
            self._world.Recv(peer, source=rank, tag=CLOCK_TAG)
            received = clock_ns()
            if best_rtt is None or received - sent < best_rtt:
                best_rtt = received - sent
                best_offset = int(peer[0]) - (sent + received) // 2
        return best_offset

    def answer_clock(self) -> None:
        """Worker: the other side of ``measure_offsets_ns``."""
        now = np.zeros(1, dtype=np.int64)
        for _ in range(_PINGS):
            self._world.Recv(now, source=COORDINATOR, tag=CLOCK_TAG)
            now[0] = clock_ns()
            self._world.Send(now, dest=COORDINATOR, tag=CLOCK_TAG)

    def send_part(self, rank: int, part: Any) -> None:
        """Coordinator: a big value to one rank."""
        self._world.send(part, dest=rank, tag=PART_TAG)

    def receive_part(self) -> Any:
        """Worker: the value sent by ``send_part``."""
        return self._world.recv(source=COORDINATOR, tag=PART_TAG)

    def send_trace(self, records: bytes) -> None:
        """Worker → coordinator: some of the I/O trace's records; none: that was all."""
        self._world.send(records, dest=COORDINATOR, tag=TRACE_TAG)

    def receive_trace(self, rank: int) -> Iterator[bytes]:
        """Coordinator: the records that a rank sends by ``send_trace``."""
        while records := self._world.recv(source=rank, tag=TRACE_TAG):
            yield records

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        self._world.Abort(code)
