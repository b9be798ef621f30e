"""Plain calls, one after the other, in ``submit``.

For a queue depth of 1, where nothing could be in flight beside a call, and for backends that
never wait. Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.protocol import DELETE, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.ioengines.protocol import Completion, IoEngineName

_Staged = tuple[int, int, str, int, memoryview]


def call_backend(backend: Backend, kind: int, key: str, offset: int, view: memoryview) -> None:
    """Make the one call of a backend that a kind stands for."""
    if kind == READ:
        backend.get_into(key, offset, view)
    elif kind == WRITE:
        backend.put_from(key, offset, view)
    elif kind == DELETE:
        backend.delete(key)
    else:
        backend.sync(key)


class InlineEngine:
    """Makes every call of a backend itself (implements ``IoEngine``)."""

    name: IoEngineName = "inline"

    def __init__(
        self, backend: Backend, depth: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.depth = depth
        self.lags_ns: list[int] = []
        self._backend = backend
        self._get_into = backend.get_into
        self._clock = clock
        self._staged: list[_Staged] = []
        self._done: list[Completion] = []
        self._began_ns = 0  # of the call that is under way; 0: none is

    @property
    def in_flight(self) -> int:
        """No transfer is in flight: what has begun has ended."""
        return 0

    def register(self, buffers: Sequence[memoryview]) -> None:
        """Prepare nothing: each call gets its own memory."""

    def stage(  # noqa: PLR0917  as the protocol has it
        self, slot: int, kind: int, key: str, offset: int, view: memoryview, transfers: int
    ) -> None:
        """Keep a transfer for ``submit``."""
        del transfers
        self._staged.append((slot, kind, key, offset, view))

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        """Make the calls; with nothing to do or to reap, sleep."""
        staged = self._staged
        if len(staged) > limit:
            now, self._staged = staged[:limit], staged[limit:]
        else:
            now, self._staged = staged, []
        if now:
            self._call(now)
        elif wait_until_ns is not None and not self._done:
            time.sleep(max(0, wait_until_ns - self._clock()) / 1e9)
        return len(now)

    def _call(self, staged: list[_Staged]) -> None:
        clock, get_into, done = self._clock, self._get_into, self._done
        for slot, kind, key, offset, view in staged:
            error = None
            self._began_ns = began = clock()
            try:
                if kind == READ:
                    get_into(key, offset, view)
                else:
                    call_backend(self._backend, kind, key, offset, view)
            except StorageError as problem:
                error = problem
            done.append((slot, began, clock(), error))
        self._began_ns = 0

    def look(self) -> int:
        """Look for nothing: all completions have their times already."""
        return len(self._done)

    def reap(self) -> Sequence[Completion]:
        """Return what has ended."""
        done, self._done = self._done, []
        return done

    def withdraw(self) -> list[int]:
        """Take back what is staged."""
        staged, self._staged = self._staged, []
        return [item[0] for item in staged]

    def longest_wait_ns(self, now_ns: int) -> int:
        """The call under way is the only one."""
        began_ns = self._began_ns
        return max(0, now_ns - began_ns) if began_ns else 0

    def close(self) -> None:
        """Forget what is staged."""
        self._staged.clear()


class PacedEngine(InlineEngine):
    """Makes one call each time that it is `allow`ed to, so that a loop never waits for two."""

    def __init__(self, backend: Backend, clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(backend, 1, clock)
        self._allowed = 0

    def allow(self) -> None:
        """Let the next ``submit`` make a call."""
        self._allowed = 1

    def submit(self, limit: int, wait_until_ns: int | None = None) -> int:
        """Make the call that is allowed; never sleep."""
        del wait_until_ns
        made = super().submit(min(limit, self._allowed))
        self._allowed -= made
        return made
