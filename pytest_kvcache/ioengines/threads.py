"""Calls that block, on as many threads as may be in flight.

For backends whose calls wait, and wherever nothing better can be had: each call costs a
hand-over to a thread and one back. Each thread stamps what it does itself. Rank-side;
imports neither pytest nor MPI.
"""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.inline import call_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.ioengines.protocol import Completion, IoEngineName

Staged = tuple[int, int, str, int, memoryview]

# Calls shorter than this are over before another thread is awake (a wake-up was measured at
# 5 to 50 µs), so one thread carries all of a batch out faster than several.
_QUICK_CALL_NS = 5_000
_CALLS_REMEMBERED = 16


class ThreadsEngine:
    """Makes calls of a backend on ``depth`` threads, or so many (implements ``IoEngine``).

    Threads and loop share two queues, whose items move once each; all else belongs to one.
    """

    name: IoEngineName = "threads"

    def __init__(
        self,
        backend: Backend,
        depth: int,
        clock: Callable[[], int] = time.monotonic_ns,
        threads: int | None = None,
    ) -> None:
        count = depth if threads is None else threads
        self.depth = depth
        self.in_flight = 0
        self.lags_ns: list[int] = []
        self._backend = backend
        self._clock = clock
        self._staged: list[Staged] = []
        self._todo: SimpleQueue[list[Staged] | None] = SimpleQueue()
        self._ended: SimpleQueue[Completion | BaseException | None] = SimpleQueue()
        self._done: list[Completion] = []
        self._call_ns = 10.0 * _QUICK_CALL_NS  # recent mean; slow until dozens of calls were quick
        self._began_ns = [0] * count  # of the call that each thread makes; 0: none
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name="kvcache-io", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Prepare nothing: each call gets its own memory."""

    def stage(  # noqa: PLR0917  as the protocol has it
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        """Keep a transfer for ``submit``."""
        del transfers
        self._staged.append((slot, kind, key, offset, view))

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        """Hand calls over: one to a thread, or all to one where calls are quick."""
        staged = self._staged
        now, self._staged = staged[:limit], staged[limit:]
        self.in_flight += len(now)
        if now:
            self._hand_over(now)
        if wait_until_ns is not None and not self._done:
            self._wait(wait_until_ns)
        return len(now)

    def _hand_over(self, now: list[Staged]) -> None:
        if self._call_ns < _QUICK_CALL_NS:
            self._todo.put(now)
        else:
            for item in now:
                self._todo.put([item])

    def _wait(self, until_ns: int) -> None:
        try:
            self._take(self._ended.get(timeout=max(0, until_ns - self._clock()) / 1e9))
        except Empty:
            return

    def wake(self) -> None:
        """End the sleep of a ``submit``; any thread may."""
        self._ended.put(None)

    def _take(self, ended: Completion | BaseException | None) -> None:
        if ended is None:
            return
        if isinstance(ended, BaseException):
            raise ended
        self.in_flight -= 1
        _slot, started_ns, done_ns, _error = ended
        self._call_ns += (done_ns - started_ns - self._call_ns) / _CALLS_REMEMBERED
        self._done.append(ended)

    def look(self) -> int:
        """Take what the threads have ended and stamped."""
        for _ in range(self._ended.qsize()):
            self._take(self._ended.get())
        return len(self._done)

    def reap(self) -> Sequence[Completion]:
        """Return what has ended."""
        done, self._done = self._done, []
        return done

    def withdraw(self) -> list[int]:
        """Take back what no thread was given."""
        staged, self._staged = self._staged, []
        return [item[0] for item in staged]

    def longest_wait_ns(self, now_ns: int) -> int:
        """The oldest of the calls that the threads are in."""
        begun = [began_ns for began_ns in self._began_ns if began_ns]
        return max(0, now_ns - min(begun)) if begun else 0

    def close(self) -> None:
        """Let the calls under way end, and the threads with them."""
        self._staged.clear()
        for _thread in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self, number: int) -> None:
        """One thread's life: take calls, make them, report their ends."""
        try:
            while (items := self._todo.get()) is not None:
                for completion in self._all_carried_out(number, items):
                    self._ended.put(completion)
        except BaseException as error:  # noqa: BLE001  the loop raises it again
            self._ended.put(error)

    def _all_carried_out(self, number: int, items: list[Staged]) -> Iterable[Completion]:
        """One after the other."""
        for item in items:
            yield self._carried_out(number, item)

    def _carried_out(self, number: int, item: Staged) -> Completion:
        slot, kind, key, offset, view = item
        error = None
        self._began_ns[number] = began = self._clock()
        try:
            call_backend(self._backend, kind, key, offset, view)
        except StorageError as problem:
            error = problem
        ended = self._clock()
        self._began_ns[number] = 0
        return slot, began, ended, error
