"""How long a rank was paused (stopped, kept from a core), and whether its clock was.

Rank-side; imports neither pytest nor MPI. A rank that is paused measures on: its
latencies contain the pause, and nothing else tells it from a slow storage. The main
thread looks around ten times a second, so that two looks far apart are a pause. While a
machine is suspended the clock of all measurements stands still, and its ranks' window is
no longer that of the others: then, and if that clock steps, nothing is measured rightly.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SAMPLES = 9  # of two clocks; the one in which least time passed between them counts
_NOTED_NS = 250_000_000  # between two looks, which are 0.1 s apart
_MOST_NOTED = 10_000
_MOST_APART_NS = 10_000_000  # a busy host may part the two readings of every sample


def boottime_ns() -> int:
    """The clock that goes on while the machine is suspended; the monotonic one does not.

    From clock_gettime(2), CLOCK_BOOTTIME.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class PauseWatch:
    """The times between two looks of a window, and two clocks of which one measures."""

    def __init__(
        self,
        clock: Callable[[], int] = boottime_ns,
        measuring: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._clock = clock
        self._measuring = measuring
        self._ahead_ns = 0
        self._looked_ns: int | None = None
        self._longest_ns: int | None = None
        self._begun_ns = 0
        self._noted: list[tuple[int, int]] = []

    def begin(self, in_ns: int) -> None:
        """The window begins ``in_ns`` from now; nothing before that counts."""
        self._looked_ns = self._begun_ns = self._clock() + in_ns
        self._longest_ns = None
        self._noted = []
        self._ahead_ns = self._offset_ns()

    def clock_fault(self) -> str | None:
        """Why the clock of measurements can't be trusted since ``begin``; None: it can."""
        apart_ns = self._offset_ns() - self._ahead_ns
        if abs(apart_ns) <= _MOST_APART_NS:
            return None
        return (
            f"the monotonic clock and the time since boot went {apart_ns / 1e9:.3f} s apart in the"
            " run, of which both must measure the same: the machine was suspended, or its clock"
            " stepped; look into its log, and keep it awake"
        )

    def _offset_ns(self) -> int:
        """What the other clock is ahead of the measuring one."""
        samples = []
        for _ in range(_SAMPLES):
            before, other, after = self._measuring(), self._clock(), self._measuring()
            samples.append((abs(after - before), other - (before + after) // 2))
        return min(samples)[1]

    def look(self) -> None:
        """Called by the main thread, a few times a second and at the window's end."""
        now = self._clock()
        if self._looked_ns is None or now < self._looked_ns:
            return
        self._longest_ns = max(self._longest_ns or 0, now - self._looked_ns)
        if now - self._looked_ns >= _NOTED_NS and len(self._noted) < _MOST_NOTED:
            self._noted.append((self._looked_ns - self._begun_ns, now - self._begun_ns))
        self._looked_ns = now

    @property
    def spans_ns(self) -> tuple[tuple[int, int], ...]:
        """When two looks were far apart: from and to, since the window's begin."""
        return tuple(self._noted)

    @property
    def longest_s(self) -> float | None:
        """The longest pause; None if nobody has looked since the window began."""
        return None if self._longest_ns is None else self._longest_ns / 1e9
