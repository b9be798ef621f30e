"""A rank's loop in a thread of its own, and who looks after it meanwhile.

Rank-side; imports neither pytest nor MPI. The loop may be stuck inside a system call for as
long as the storage pleases. So the thread that calls the methods here only ticks, ten times a
second: it tells the others that this rank is alive and how long it has been waiting, hears
whether to stop, and gives up when the time is over.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from pytest_kvcache.engine.loop import Loop
from pytest_kvcache.errors import StalledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_kvcache.engine.load import LoadChange
    from pytest_kvcache.engine.operations import TransferSettings
    from pytest_kvcache.ioengines.protocol import IoEngine
    from pytest_kvcache.measure.counters import Tally
    from pytest_kvcache.workloads.protocol import Request

_TICK_S = 0.1
_LAST_OPERATIONS_NS = 60_000_000_000  # for what is in flight when everything else has ended


class Engine:
    """Drives one backend with one workload; ``populate``, ``run``, ``close``, once each.

    Takes what `Loop` takes.
    """

    def __init__(
        self,
        *,
        settings: TransferSettings,
        io: IoEngine,
        clock: Callable[[], int] = time.monotonic_ns,
        **parts: Any,
    ) -> None:
        self.settings = settings
        self.io = io
        self._clock = clock
        self.loop = Loop(settings=settings, io=io, clock=clock, **parts)

    @property
    def counters(self) -> Tally:
        """Counts since the run began."""
        return self.loop.counters

    @property
    def began_ns(self) -> int:
        """When the first request of the run was issued."""
        return self.loop.began_ns

    @property
    def first_error(self) -> str | None:
        """The first failed operation's message; it ends the run."""
        return self.loop.first_error

    def longest_wait_ns(self) -> int:
        """How long the oldest call under way has been waited for, in any tier; 0: none is."""
        now = self._clock()
        return max(each.longest_wait_ns(now) for each in self.loop.waiting_for)

    def populate(self, tick: Callable[[], bool], before: Iterable[Request] = ()) -> None:
        """Store what comes before, then every user's context until all are in or it is full.

        ``tick`` is called a few times a second; true means: stop early.
        """
        self._beside(lambda: self.loop.populate(before), tick, None, 0.0)

    def run(
        self, *, start_ns: int, end_ns: int | None, drain_s: float, tick: Callable[[], bool]
    ) -> int:
        """Run the loop (`Loop.run`). Raises StalledError if what is in flight does not end."""

        def work() -> None:
            self.loop.run(start_ns=start_ns, end_ns=end_ns, drain_s=drain_s)

        self._beside(work, tick, end_ns, drain_s)
        return self.loop.stopped_ns

    def set_active(self, change: LoadChange) -> None:
        """From a moment to come on so many users take turns, those with the lowest numbers.

        Raises ValueError for more than the workload has, where no users take turns, and for a
        moment before that of another change to come.
        """
        most, changes = self.loop.users, self.loop.changes
        if not 0 <= change.users <= most:
            raise ValueError(f"active users are {change.users}; they must be 0 to {most}")
        if changes and change.at_ns < changes[-1].at_ns:
            raise ValueError(f"{change} comes before {changes[-1]}; order it first")
        changes.append(change)

    def close(self) -> None:
        """Let what is in flight end."""
        self.loop.close()

    def _beside(
        self,
        work: Callable[[], None],
        tick: Callable[[], bool],
        end_ns: int | None,
        drain_s: float,
    ) -> None:
        """Tick while a thread works; raise what it raises."""
        loop = self.loop
        loop.stop_asked = False
        failure: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  raised again below
                failure.append(error)

        thread = threading.Thread(target=run, name="kvcache-loop", daemon=True)
        thread.start()
        limit_ns = int(drain_s * 1e9) + _LAST_OPERATIONS_NS
        while thread.is_alive():
            thread.join(_TICK_S)
            if tick():
                loop.stop_asked = True
                end_ns = self._clock() if end_ns is None else min(end_ns, self._clock())
            over_ns = loop.stopped_ns or end_ns
            if over_ns is not None and self._clock() >= over_ns + limit_ns and thread.is_alive():
                raise StalledError(
                    f"operations in flight did not end within {_LAST_OPERATIONS_NS / 1e9:g} s;"
                    " look at the device, its log and its network"
                )
        if failure:
            raise failure[0]
