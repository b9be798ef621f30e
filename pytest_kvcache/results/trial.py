"""What a trial measured: the figures of all its ranks together, as values. Pure.

``figures`` makes a ``Trial`` of the record that the ranks left; from there on to the report,
the verdicts and the gates it is read by its fields. It becomes JSON once, in the run file
(``to_json``), where each counter stands at the place that the table of counters gives it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.measure.counters import TABLE
from pytest_kvcache.measure.latencies import Latencies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.measure.series import Series
    from pytest_kvcache.measure.stalls import StallSummary
    from pytest_kvcache.results.devicegroups import DeviceGroup
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.system.blockstat import SyncProbe
    from pytest_kvcache.system.cgroups import IoLimit
    from pytest_kvcache.system.clocks import ClockRecord
    from pytest_kvcache.system.filesystem import FilesystemFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """How long the operations of one kind took, or the loads, or the requests.

    ``censored`` of them began and were not seen to end.
    """

    ms: Latencies
    histogram: Histogram
    censored: int = 0

    @classmethod
    def of(cls, histogram: Histogram, censored: int = 0) -> Section:
        """That of a histogram."""
        return cls(ms=Latencies.of(histogram, censored), histogram=histogram, censored=censored)

    @property
    def count(self) -> int:
        """How many were timed."""
        return self.histogram.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Section):
    """Reads or writes; ``gib_per_s`` is of those completed in the window, None: none was."""

    gib_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests per second, and how many waited for the storage, by halves of the window."""

    half_waiting: tuple[float | None, float | None]
    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Prompt and generated tokens per second."""

    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageTier:
    """What the storage may hold of all ranks, and was given by other tiers."""

    capacity_bytes: int
    demoted_in_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Which share of the blocks, and of the tokens, was found; None: nothing was looked up."""

    hit_ratio: float | None
    hit_token_ratio: float | None
    half_hit_ratios: tuple[float | None, float | None]
    storage: StorageTier


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """Reads, or writes: whether they reached a device.

    ``process_share`` and ``device_share`` are the least share of what was asked for that
    the kernel counted for a rank, and that the disks of a group moved; None: not counted.
    ``verdict`` is ``PROVEN``, or a code that stands against it, ``why`` in words; None: nothing
    was read, or written.
    """

    process_share: float | None = None
    device_share: float | None = None
    why: str | None = None
    verdict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was asked of the storage, and what moved: by host, and by group of disks."""

    io_mode: str
    sync: str
    device_write_bytes: int | None
    devices: tuple[DeviceGroup, ...]
    sync_probes: Mapping[str, SyncProbe | None]
    filesystem: Mapping[str, FilesystemFacts | None]
    reads: Direction
    writes: Direction
    verdict: str | None

    @property
    def filesystems(self) -> list[FilesystemFacts]:
        """Those that there are, each host's."""
        return [facts for facts in self.filesystem.values() if facts is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """What the ranks themselves could have done; None: not known, or nothing was moved."""

    cpu_s_per_gib: float | None
    headroom: float | None
    client_bound: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSurroundings:
    """What held up the ranks of one host: of the rank that it held up most; None: not told."""

    host: str
    cpu_quota_cores: float | None
    cpu_periods: int | None
    throttled_periods: int | None
    throttled_ratio: float | None
    steal_ratio: float | None
    memory_limit_bytes: int | None
    memory_limit_hits_per_s: float | None
    memory_pressure_ratio: float | None
    io_limits: tuple[IoLimit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Everything that one launch of all ranks measured.

    ``counters`` are those of all ranks together. ``request`` is None where answers wait for
    no reads, ``wakeup`` where no request had a time to come at.
    """

    window_s: float
    ramp_s: float
    start_skew_s: float
    first_done_s: float
    last_done_s: float
    counters: Counters
    read: Moved
    write: Moved
    delete: Section
    queue: Section
    device: Section
    load: Section
    request: Section | None
    wakeup: Section | None
    requests: Requests
    tokens: Tokens
    cache: Cache
    proof: Proof
    harness: Harness
    stalls: StallSummary
    series: Series
    clock: ClockRecord
    surroundings: tuple[HostSurroundings, ...]
    ranks: tuple[RankResult, ...]

    @property
    def is_storage(self) -> bool:
        """Whether every rank's backend is one."""
        return all(rank.is_storage for rank in self.ranks)

    def to_json(self) -> dict[str, Any]:
        """The trial's part of the run file, in the order of its documentation."""
        counted = self.counters
        operation_bytes = counted.read_op_bytes + counted.write_op_bytes
        storage = self._counted("cache", "tiers", "storage") | _plain(self.cache.storage)
        cache = {k: _plain(getattr(self.cache, k))
                 for k in ("hit_ratio", "hit_token_ratio", "half_hit_ratios")}  # fmt: skip
        return {
            "window_s": self.window_s,
            "ramp_s": self.ramp_s,
            "start_skew_s": self.start_skew_s,
            "first_done_s": self.first_done_s,
            "last_done_s": self.last_done_s,
            "read": self._section("read", gib_per_s=self.read.gib_per_s),
            "write": self._section("write", gib_per_s=self.write.gib_per_s),
            "delete": self._section("delete"),
            "queue": self._section("queue", bytes=operation_bytes),
            "demote": None,
            "device": self._section("device"),
            "load": self._section("load"),
            "request": self._section("request"),
            "wakeup": self._section("wakeup"),
            "requests": self._counted("requests") | _plain(self.requests)
            | {"goodput_per_s": None},
            "tokens": self._counted("tokens") | _plain(self.tokens),
            "cache": self._counted("cache") | cache
            | {"tiers": {"gpu": None, "cpu": None, "storage": storage}},
            "proof": self._counted("proof") | _plain(self.proof),
            "harness": self._counted("harness") | _plain(self.harness),
            "integrity": self._counted("integrity"),
            "stalls": _plain(self.stalls),
            "series": self.series.to_json(),
            "clock": self.clock.to_json(),
            "surroundings": _plain(self.surroundings),
            "ranks": _plain(self.ranks),
        }  # fmt: skip

    def _section(self, name: str, **facts: float | None) -> dict[str, Any] | None:
        section: Section | None = getattr(self, name)
        if section is None:
            return None
        return {
            "count": section.count,
            **self._counted(name),
            **facts,
            "ms": _plain(section.ms),
            "histogram": section.histogram.to_json(),
        }

    def _counted(self, *section: str) -> dict[str, Any]:
        """The counters whose place is in this section."""
        return {
            row.place[-1]: getattr(self.counters, name)
            for name, row in TABLE.items()
            if row.place[:-1] == section
        }


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "items"):
        return {name: _plain(part) for name, part in value.items()}
    return value
