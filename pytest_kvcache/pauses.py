"""How long a rank stood still: stopped, suspended, or kept from a core.

Rank-side; imports neither pytest nor MPI. A rank that stands still measures on: its
latencies contain the pause, and nothing else tells it from a slow storage. The main
thread looks around ten times a second, so that two looks far apart are a pause.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def boottime_ns() -> int:
    """The clock that goes on while the machine is suspended; the monotonic one does not.

    From clock_gettime(2), CLOCK_BOOTTIME.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class PauseWatch:
    """The longest time between two looks of a window."""

    def __init__(self, clock: Callable[[], int] = boottime_ns) -> None:
        self._clock = clock
        self._looked_ns: int | None = None
        self._longest_ns: int | None = None

    def begin(self, in_ns: int) -> None:
        """The window begins ``in_ns`` from now; nothing before that counts."""
        self._looked_ns = self._clock() + in_ns
        self._longest_ns = None

    def look(self) -> None:
        """Called by the main thread, a few times a second and at the window's end."""
        now = self._clock()
        if self._looked_ns is None or now < self._looked_ns:
            return
        self._longest_ns = max(self._longest_ns or 0, now - self._looked_ns)
        self._looked_ns = now

    @property
    def longest_s(self) -> float | None:
        """None if nobody has looked since the window began."""
        return None if self._longest_ns is None else self._longest_ns / 1e9
