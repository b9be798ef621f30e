"""What surrounds a rank: limits, throttling, stolen time, pressure, preloaded libraries.

Rank-side facts of one rank, as a value, and who collects them; imports neither pytest nor
MPI. Each rank looks for itself: ranks of one host may be in groups and on cores of their
own. It looks before the ramp and at the window's end only, when nothing is measured.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.system.cgroups import (
    Groups,
    IoLimit,
    Throttling,
    cpu_quota_cores,
    cpu_throttling,
    io_limits,
    memory_limit,
    memory_limit_hits,
    memory_pressure_s,
    pressure_s,
)
from pytest_kvcache.system.clocks import TwoClocks
from pytest_kvcache.system.kernelfile import kernel_text
from pytest_kvcache.system.preloads import Preload, Preloads, Wrapper, find_preloads

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEAL_FIELD = 8  # of a core's line in /proc/stat, proc_stat(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """A rank's surroundings, from before the ramp to the window's end; None: not known.

    ``raw_span_s`` is ``span_s`` by a clock that no library can change. Of a quota
    ``throttled_s`` is summed over cores; ``steal_s`` is summed over the rank's cores.
    """

    span_s: float
    raw_span_s: float | None
    cpu_quota_cores: float | None
    cpu_periods: int | None
    throttled_periods: int | None
    throttled_s: float | None
    steal_s: float | None
    memory_limit_bytes: int | None
    memory_limit_hits: int | None
    memory_pressure_s: float | None
    group_memory_pressure_s: float | None
    io_limits: tuple[IoLimit, ...]
    preloaded: tuple[Preload, ...]
    wrappers: tuple[Wrapper, ...] | None

    @property
    def preloads(self) -> Preloads:
        """What was put between the rank and its C library."""
        return Preloads(preloaded=self.preloaded, wrappers=self.wrappers)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same facts back."""
        data = asdict(self)
        data["io_limits"] = list(data["io_limits"])
        data["preloaded"] = list(data["preloaded"])
        if self.wrappers is not None:
            data["wrappers"] = [
                {"library": wrapper.library, "functions": list(wrapper.functions)}
                for wrapper in self.wrappers
            ]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Surroundings:
        """The inverse of ``to_json``."""
        wrappers = data["wrappers"]
        parts = {
            "io_limits": tuple(IoLimit(**limit) for limit in data["io_limits"]),
            "preloaded": tuple(Preload(**preload) for preload in data["preloaded"]),
            "wrappers": None
            if wrappers is None
            else tuple(Wrapper(library=w["library"], functions=tuple(w["functions"]))
                       for w in wrappers),
        }  # fmt: skip
        return cls(**{**data, **parts})


@dataclass(frozen=True, slots=True)
class _Counters:
    """Everything that only grows, at one moment."""

    clocks: TwoClocks
    throttling: tuple[Throttling, ...]
    steal_s: float | None
    limit_hits: int | None
    pressure_s: float | None
    group_pressure_s: float | None


class SurroundingsWatch:
    """Looks at the start and at the window's end; ``facts`` tells what was between."""

    def __init__(self) -> None:
        self._groups = Groups.of_process()
        self._began: _Counters | None = None
        self._ended: _Counters | None = None
        self._end_ns: int | None = None
        self.preloads = Preloads(preloaded=(), wrappers=None)

    def find_preloads(self) -> None:
        """Follow the calls of this process: tens of milliseconds, before anything is measured."""
        self.preloads = find_preloads()

    def begin(self) -> None:
        """The run will begin soon; milliseconds that would be missing after it has."""
        self._began, self._ended = self._count(), None

    def until(self, end_ns: int | None) -> None:
        """The run begins; its window ends at ``end_ns``, or with the last request."""
        if self._began is None:
            self.begin()
        self._end_ns = end_ns

    def look(self) -> None:
        """Called a few times a second: the first call after the window counts."""
        if self._end_ns is not None and time.monotonic_ns() >= self._end_ns:
            self.end()

    def end(self) -> None:
        """Count no further: nothing is issued any more."""
        self._ended = self._ended or self._count()

    def _count(self) -> _Counters:
        groups = self._groups
        return _Counters(
            TwoClocks.read(),
            cpu_throttling(groups),
            steal_s(os.sched_getaffinity(0)),
            memory_limit_hits(groups),
            pressure_s(),
            memory_pressure_s(groups),
        )

    def facts(self) -> Surroundings:
        """What was found; only after ``end``."""
        assert self._began is not None
        assert self._ended is not None
        began, ended, groups = self._began, self._ended, self._groups
        span_s, raw_span_s = ended.clocks.since_s(began.clocks)
        limit = memory_limit(groups)
        worst = _most_throttled(began.throttling, ended.throttling)
        return Surroundings(
            span_s=span_s,
            raw_span_s=raw_span_s,
            cpu_quota_cores=cpu_quota_cores(groups),
            cpu_periods=None if worst is None else worst.periods,
            throttled_periods=None if worst is None else worst.throttled_periods,
            throttled_s=None if worst is None else worst.throttled_s,
            steal_s=_grown(began.steal_s, ended.steal_s),
            memory_limit_bytes=None if limit is None else limit.limit_bytes,
            memory_limit_hits=_grown_count(began.limit_hits, ended.limit_hits),
            memory_pressure_s=_grown(began.pressure_s, ended.pressure_s),
            group_memory_pressure_s=_grown(began.group_pressure_s, ended.group_pressure_s),
            io_limits=io_limits(groups),
            preloaded=self.preloads.preloaded,
            wrappers=self.preloads.wrappers,
        )


def _most_throttled(
    began: tuple[Throttling, ...], ended: tuple[Throttling, ...]
) -> Throttling | None:
    """The group along the path that was stopped for longest; None: no group counts."""
    if len(began) != len(ended):  # a controller was switched on or off meanwhile
        return None
    grown = [
        Throttling(
            periods=max(0, after.periods - before.periods),
            throttled_periods=max(0, after.throttled_periods - before.throttled_periods),
            throttled_s=max(0.0, after.throttled_s - before.throttled_s),
        )
        for before, after in zip(began, ended, strict=True)
    ]
    return max(grown, key=lambda group: group.throttled_s, default=None)


def _grown(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)


def _grown_count(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def steal_s(cores: set[int], path: str = "/proc/stat") -> float | None:
    """How long the hypervisor has run others on these cores so far; None: not known."""
    text = kernel_text(path) or ""
    names = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in text.splitlines() if line.startswith("cpu")]
    ticks = [
        int(line[_STEAL_FIELD]) for line in lines if line[0] in names and len(line) > _STEAL_FIELD
    ]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if len(ticks) == len(cores) else None
