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
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, TIERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.measure.series import TimeSeries
    from pytest_kvcache.measure.stalls import StallSummary
    from pytest_kvcache.measure.worth import LengthCounts
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
        """The section of a histogram."""
        return cls(ms=Latencies.of(histogram, censored), histogram=histogram, censored=censored)

    @property
    def count(self) -> int:
        """How many operations were timed."""
        return self.histogram.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(Section):
    """Reads, writes or demotions; ``gib_per_s`` is of those completed in the window, or None."""

    gib_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests per second, and how many waited for the storage, by halves of the window.

    ``goodput_per_s`` are those within their objectives, ``compliance_ratio`` is that of the class
    that has least; None: there are no objectives, or no request was judged.
    """

    half_waiting: tuple[float | None, float | None]
    per_s: float | None
    goodput_per_s: float | None
    compliance_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFigures:
    """A class of service: which shares of the judged requests were within each of its limits.

    ``keeps`` is whether the first of them is at least ``target_ratio``. None: none was judged.
    """

    name: str
    judged: int
    p95_ratio: float | None
    p99_ratio: float | None
    p999_ratio: float | None
    p9999_ratio: float | None
    target_ratio: float
    keeps: bool | None
    completed_in_window: int
    good_in_window: int
    goodput_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Prompt and generated tokens per second."""

    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Whether the storage pays; what nobody gave an option for is None.

    With ``--kv-prefill-rate``: ``useful_hit_ratio`` is the share of all prompt tokens whose load
    took less time than recomputing them; ``gpus_saved`` is how many GPUs would be busy with
    computing these all the time, ``gpus_busy`` those with what was not loaded.
    ``turning_tokens`` is the length from which on loads pay, None where all do, or none;
    ``load_gib_per_s`` what one load moves on average, ``turning_gib_per_s`` what it must to pay.
    ``cost_per_mtok`` and ``joules_per_mtok`` are of hit tokens, useful or not;
    ``dwpd`` is how often a day the capacity of all ranks is written. ``lengths`` are the loads of
    all ranks by length.
    """

    useful_hit_ratio: float | None
    gpus_saved: float | None
    gpus_busy: float | None
    turning_tokens: int | None
    turning_gib_per_s: float | None
    load_gib_per_s: float | None
    cost_per_mtok: float | None
    joules_per_mtok: float | None
    dwpd: float | None
    lengths: tuple[LengthCounts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Users:
    """How many there were, where users are searched for and the trial keeps every objective."""

    per_rank: int | None
    in_all: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """How long a fixed amount of work took, and what was read and written per second of that.

    From the first request of all ranks until the last one is answered and stored; rates None:
    nothing was read, or written.
    """

    s: float
    read_gib_per_s: float | None
    write_gib_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartFigures(Section):
    """Calls that found again what was stored, one for each object: how long each of them took.

    ``objects_per_s`` are those of all ranks in ``run.s``; ``by`` how they were found,
    ``dropped_caches``: the hosts were told to forget what they knew of files.
    """

    by: str
    dropped_caches: bool
    objects_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFigures:
    """A tier of all ranks: what it is, what it may hold, its share of all prompt blocks.

    ``kind`` is what the tier is made of: a backend's name, or a memory tier's kind.
    ``hit_ratio`` None: nothing was looked up.
    """

    kind: str
    capacity_bytes: int
    hit_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSet:
    """The tiers of a trial; None: there is no such tier."""

    gpu: TierFigures | None
    cpu: TierFigures | None
    storage: TierFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Which share of the blocks, and of the tokens, was found; None: nothing was looked up."""

    hit_ratio: float | None
    hit_token_ratio: float | None
    half_hit_ratios: tuple[float | None, float | None]
    tiers: TierSet


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
        """The filesystems there are, each host's."""
        return [facts for facts in self.filesystem.values() if facts is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harness:
    """What the ranks themselves could have done; None: not known, or nothing was moved."""

    cpu_s_per_gib: float | None
    headroom: float | None
    client_bound: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSurroundings:
    """What held up the ranks of one host: of the rank that it held up most; None: not known."""

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
class StepMoved(Moved):
    """Reads, writes or demotions that began in a load step, and their bytes."""

    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """What all ranks together measured in one load step: of what began in it.

    ``begin_s`` and ``end_s`` are from the window's begin, ``late_s`` is how much later the last
    rank did as it was told. ``users`` were active on each rank, ``users_in_all`` on all of them.
    ``demote`` is None where the plan has no tier whose blocks move to the storage.
    """

    begin_s: float
    end_s: float
    users: int
    users_in_all: int
    late_s: float
    answered_users: int
    answered_later: int
    read: StepMoved
    write: StepMoved
    demote: StepMoved | None
    load: Section
    request: Section | None
    requests_per_s: float | None
    prompt_blocks: int
    hit_blocks: int
    hit_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """A load step's part of the run file."""
        told = {part.name: getattr(self, part.name) for part in fields(self)}
        for kind in ("read", "write", "demote"):
            moved: StepMoved | None = told[kind]
            told[kind] = moved and _timed(moved, bytes=moved.bytes, gib_per_s=moved.gib_per_s)
        for name in ("load", "request"):
            section: Section | None = told[name]
            told[name] = section and _timed(section, censored=section.censored)
        return told


_PROMOTED = {"promoted_in_bytes": None}  # into the storage nothing can be: none is slower


def _timed(section: Section, **facts: float | str | None) -> dict[str, Any]:
    """A section of the run file: how many, these facts of them, how long they took."""
    return {
        "count": section.count,
        **facts,
        "ms": _plain(section.ms),
        "histogram": section.histogram.to_json(),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What ranks had of a store that they share, beside its counters.

    ``other_hit_ratio`` is the share of the blocks found that other ranks had stored.
    """

    other_hit_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Everything that one launch of all ranks measured.

    ``counters`` are those of all ranks together. ``run`` is None where time ended the work,
    ``request`` where answers wait for no reads, ``lookup`` where memory knows what is stored,
    ``restart`` where there are requests,
    ``visibility`` and ``sharing`` where ranks share no store, and the former where one host has it
    for itself, ``scheduling_lag`` where no request had a time to come at; ``demote`` and the
    sections of memory tiers where the plan has no tier that it could be done in.
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
    demote: Moved | None
    device: Section
    lookup: Section | None
    restart: RestartFigures | None
    load: Section
    request: Section | None
    visibility: Section | None
    scheduling_lag: Section | None
    gpu_read: Section | None
    gpu_write: Section | None
    gpu_promote: Section | None
    cpu_read: Section | None
    cpu_write: Section | None
    cpu_promote: Section | None
    cpu_demote: Section | None
    run: RunFigures | None
    requests: Requests
    service_classes: tuple[ServiceFigures, ...]
    tokens: Tokens
    worth: Worth
    sharing: Sharing | None
    users: Users
    cache: Cache
    proof: Proof
    harness: Harness
    stalls: StallSummary
    series: TimeSeries
    load_steps: tuple[StepFigures, ...]
    clock: ClockRecord
    surroundings: tuple[HostSurroundings, ...]
    ranks: tuple[RankResult, ...]

    @property
    def is_storage(self) -> bool:
        """Whether every rank's backend is a storage."""
        return all(rank.is_storage for rank in self.ranks)

    def to_json(self) -> dict[str, Any]:
        """The trial's part of the run file, in the order of its documentation."""
        counted = self.counters
        operation_bytes = counted.read_op_bytes + counted.write_op_bytes + counted.demote_op_bytes
        tiers = {
            name: None
            if (tier := getattr(self.cache.tiers, name)) is None
            else _plain(tier) | _PROMOTED | self._counted("cache", "tiers", name)
            for name in TIERS
        }
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
            "demote": self.demote
            and self._section("demote", gib_per_s=self.demote.gib_per_s),
            "device": self._section("device"),
            "lookup": self._section("lookup"),
            "restart": self.restart
            and self._section(
                "restart",
                by=self.restart.by,
                dropped_caches=self.restart.dropped_caches,
                objects_per_s=self.restart.objects_per_s,
            ),
            "load": self._section("load"),
            "request": self._section("request"),
            "visibility": self._section("visibility"),
            "scheduling_lag": self._section("scheduling_lag"),
            **{name: self._section(name) for name in MEMORY_SECTIONS},
            "run": _plain(self.run),
            "requests": self._counted("requests") | _plain(self.requests),
            "service_classes": _plain(self.service_classes),
            "tokens": self._counted("tokens") | _plain(self.tokens),
            "worth": self._counted("worth") | _plain(self.worth),
            "sharing": self.sharing and self._counted("sharing") | _plain(self.sharing),
            "users": _plain(self.users),
            "cache": self._counted("cache") | cache
            | {"tiers": tiers},
            "proof": self._counted("proof") | _plain(self.proof),
            "harness": self._counted("harness") | _plain(self.harness),
            "integrity": self._counted("integrity"),
            "stalls": _plain(self.stalls),
            "series": self.series.to_json(),
            "load_steps": _plain(self.load_steps),
            "clock": self.clock.to_json(),
            "surroundings": _plain(self.surroundings),
            "ranks": _plain(self.ranks),
        }  # fmt: skip

    def _section(self, name: str, **facts: float | str | None) -> dict[str, Any] | None:
        section: Section | None = getattr(self, name)
        if section is None:
            return None
        return _timed(section, **self._counted(name), **facts)

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
