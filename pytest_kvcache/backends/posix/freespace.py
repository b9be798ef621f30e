"""How much the cache directory's filesystem has left, looked at once a second.

Rank-side; imports neither pytest nor MPI. In a thread of its own, because a filesystem
that hangs lets the call hang: the rank's heartbeat has to go on, and to say so.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_INTERVAL_S = 1.0
_STALE_S = 5.0  # an answer that is older says nothing about now


class FreeSpace:
    """What unprivileged users may still write below a path; begins at once."""

    def __init__(
        self,
        path: str,
        *,
        ask: Callable[[str], os.statvfs_result] = os.statvfs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._ask = ask
        self._clock = clock
        self._answer: tuple[float, int] | None = None  # when, bytes
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="kvcache-space", daemon=True).start()

    @property
    def available_bytes(self) -> int | None:
        """The last answer; None: there is none, or only an old one."""
        answer = self._answer
        if answer is None or self._clock() - answer[0] > _STALE_S:
            return None
        return answer[1]

    def close(self) -> None:
        """Ask no more. Does not wait for a call that hangs."""
        self._closed.set()

    def _run(self) -> None:
        while True:
            try:
                found = self._ask(self._path)
            except OSError:  # not known: said as None, and asked again
                self._answer = None
            else:
                self._answer = (self._clock(), found.f_bavail * found.f_frsize)
            if self._closed.wait(_INTERVAL_S):
                return
