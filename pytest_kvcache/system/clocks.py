"""One span of time by several clocks: that of the measurements, and others that must agree.

Imports neither pytest nor MPI. Ranks measure by their C library's monotonic clock. What
scales it (a preloaded library, a module that replaces Python's functions) seldom scales
what the kernel answers to a bare system call; the coordinator's clock stands against those
of other hosts, and the controller's, which is another process's, against the coordinator's.
"""

from __future__ import annotations

import ctypes
import platform
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# clock_gettime in the kernels' tables of system calls.
_CALL = {"x86_64": 228, "aarch64": 113, "riscv64": 113, "ppc64le": 246, "s390x": 260}
_MONOTONIC_RAW = 4  # which no time service slews, clock_gettime(2)
_SAMPLES = 9  # of two clocks; the one in which least time passed counts


class _TimeSpec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


def raw_clock_ns() -> int | None:
    """What the kernel itself says, past the C library's functions; None: not known how to ask."""
    number = _CALL.get(platform.machine())
    if number is None:
        return None
    now = _TimeSpec()
    call = ctypes.CDLL(None).syscall
    if call(ctypes.c_long(number), ctypes.c_long(_MONOTONIC_RAW), ctypes.byref(now)):
        return None
    seconds: int = now.s
    return seconds * 1_000_000_000 + int(now.ns)


@dataclass(frozen=True, slots=True)
class TwoClocks:
    """The measuring clock and the raw one (None: not known), read at one moment."""

    ns: int
    raw_ns: int | None

    @classmethod
    def read(
        cls,
        measuring: Callable[[], int] = time.monotonic_ns,
        raw: Callable[[], int | None] = raw_clock_ns,
    ) -> TwoClocks:
        """Both; a busy host may part the two readings of some sample, hardly of all."""
        samples = []
        for _ in range(_SAMPLES):
            before, other, after = measuring(), raw(), measuring()
            if other is None:
                return cls(before, None)
            samples.append((abs(after - before), (before + after) // 2, other))
        _apart, ns, raw_ns = min(samples)
        return cls(ns, raw_ns)

    def since_s(self, earlier: TwoClocks) -> tuple[float, float | None]:
        """The span between two readings, by both clocks."""
        raw_s = None
        if self.raw_ns is not None and earlier.raw_ns is not None:
            raw_s = (self.raw_ns - earlier.raw_ns) / 1e9
        return (self.ns - earlier.ns) / 1e9, raw_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockRecord:
    """The span from the begin of the phase "window" to its end, by who saw it.

    ``coordinator_s`` is by the coordinator's clock; by the controller's it is at least
    ``controller_least_s`` and at most ``controller_most_s``, for the controller looks a
    few times a second (both None: it did not see it). ``drift_s`` is how much further the
    clock of rank ``drift_rank`` went in that span than the coordinator's: the largest.
    """

    coordinator_s: float
    controller_least_s: float | None
    controller_most_s: float | None
    drift_s: float
    drift_rank: int

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same record back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClockRecord:
        """The inverse of ``to_json``."""
        return cls(**data)


class SpanWatch:
    """The controller's view of the span: between which looks its begin and end came."""

    def __init__(self, clock: Callable[[], int | None] = raw_clock_ns) -> None:
        self._clock = clock
        self._looked_ns = self._now_ns()
        self._looking_ns = self._looked_ns
        self._began_ns: tuple[int, int] | None = None
        self._ended_ns: tuple[int, int] | None = None

    def _now_ns(self) -> int:
        now_ns = self._clock()
        return time.monotonic_ns() if now_ns is None else now_ns

    def look(self) -> None:
        """The controller is about to read what has come."""
        self._looked_ns, self._looking_ns = self._looking_ns, self._now_ns()

    def receive(self, phase: str) -> None:
        """A phase has begun between the look before this one and now."""
        if phase == "window":
            self._began_ns = (self._looked_ns, self._now_ns())
        elif phase == "clean-up":
            self._ended_ns = (self._looked_ns, self._now_ns())

    def fill(self, record: ClockRecord) -> ClockRecord:
        """The record with what was seen from here."""
        if self._began_ns is None or self._ended_ns is None:
            return record
        return replace(
            record,
            controller_least_s=max(0, self._ended_ns[0] - self._began_ns[1]) / 1e9,
            controller_most_s=(self._ended_ns[1] - self._began_ns[0]) / 1e9,
        )
