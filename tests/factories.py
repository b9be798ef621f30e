"""Small plans, workloads and runs, and backends that the tests hold in their hands.

Not a test module. Nothing here needs MPI or a device; what a test must wait for, it
waits for by event, at most ``PATIENCE_S``.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.backends.protocol import BackendFacts
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.engine.load import LoadChange
from pytest_kvcache.errors import StorageError
from pytest_kvcache.hosts.cluster import Survey
from pytest_kvcache.hosts.facts import HostFacts
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.measure.counters import nothing_counted
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.measure.series import (
    KINDS,
    CommonRange,
    TimeSeries,
    TimeSeriesLedger,
    coarse_index,
)
from pytest_kvcache.measure.steps import StepHistograms, StepLedger, histograms_of
from pytest_kvcache.models import MODELS, ModelSpec
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.plan import Plan, TracePlan
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.registry import BACKENDS, Registry
from pytest_kvcache.results.record import RankResult, TrialRecord
from pytest_kvcache.system.blockstat import DeviceReport
from pytest_kvcache.system.clocks import ClockRecord
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.system.surroundings import Surroundings
from pytest_kvcache.workloads.protocol import Need, Request
from pytest_kvcache.workloads.scenarios import SYNTHETIC, TABLE
from pytest_kvcache.workloads.synthetic import SyntheticFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_kvcache.backends.protocol import Backend, BackendPlan
    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.tiers import TierName
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Workload, WorkloadContext, WorkloadFamily

PATIENCE_S = 120.0  # how long a test waits for what must come; never how long it takes
PAGE = 4096
S = 1_000_000_000  # ns of a second
HOST = "test-host"

# Two bytes a token: blocks are as small as a page whatever the block size of a trace.
SMALL = ModelSpec(name="small", layers=1, kv_heads=1, head_dim=1, dtype="int8")


def options(**texts: str | list[str]) -> Options:
    """The options as if these had been typed."""
    return build_options({name: (text, "command line") for name, text in texts.items()})


def make_plan(**changes: Any) -> Plan:
    """A plan of one rank on the null backend; no directory, a window of 0.2 s."""
    backend = changes.get("backend", "null")
    values: dict[str, Any] = {
        "version": "1.0",
        "run_id": "run",
        "scenario": "chat",
        "model": SMALL,
        "layout": RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=changes.pop("np", 1)),)),
        "trial": 0,
        "seed": 42,
        "users": 4,
        "load_steps": (),
        "duration_s": 0.2,
        "ramp_s": 0.0,
        "requests": None,
        "context_scale": 0.05,
        "block_tokens": 4,
        "tensor_parallel": 1,
        "generation_mode": "none",
        "phase": "both",
        "request_rate": None,
        "arrival": None,
        "backend": "null",
        "traits": traits_of(backend),
        "backend_options": {},
        "object_layout": "block",
        "store": "file" if backend == "file" else None,
        "io": "direct",
        "sync": "none",
        "cache_dir": "/nowhere",
        "capacity_blocks": 10_000,
        "need_blocks": 10_000,
        "queue_depth": 4,
        "io_engine": "auto",
        "transfer_size": 4 << 20,
        "cores": "shared",
        "verify": "full",
        "data": "normal",
        "reread_factor": 0,
        "keep": False,
        "deadline_s": 60.0,
        "plugins": (),
        "trace": None,
    }
    values |= changes
    if values["scenario"] in SYNTHETIC:
        values.setdefault("dialogues", TABLE.dialogues(values["scenario"]))
    return Plan(**values)


OBJECTS = BackendTraits(
    unit="object",
    directory=False,
    bounded_by="nothing",
    smallest_part_bytes=1,
    largest_part_bytes=None,
    alignment_bytes=1,
    kernel_counts=False,
    is_storage=True,
)
"""What a plugin's store of whole objects is like."""


def traits_of(backend: str) -> BackendTraits:
    """Those of a built-in backend; of any other name, those of a store of whole objects."""
    return BACKENDS[backend].traits if backend in BACKENDS else OBJECTS


def on_backend(plan: Plan, backend: str) -> Plan:
    """The same plan on another backend."""
    return replace(plan, backend=backend, traits=traits_of(backend))


def make_trace_plan(**changes: Any) -> TracePlan:
    """The replay of a trace of ten requests, as fast as the storage allows."""
    values: dict[str, Any] = {
        "name": "t.jsonl",
        "format": "mooncake",
        "digest": "0" * 64,
        "requests": 10,
        "time_unit": "ms",
        "span_s": 1.0,
        "ids": "prefix",
        "left_out": 0,
        "tokens_by": "",
        "speedup": 0.0,
        "cycles": 1,
        "limit": None,
        "one_rank_hit_ratio": 0.0,
        "overwrites": None,
        "partitioned_hit_ratio": 0.0,
    }
    return TracePlan(**values | changes)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until it holds; fail the test if it never does."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it did not come"
        time.sleep(0.001)


# --- requests and workloads ---------------------------------------------------------------


def key_of(block: object) -> bytes:
    """A block key of a name."""
    return str(block).encode().rjust(16, b".")


def name_of(object_key: str) -> str:
    """The name behind a backend's object key, with ``/2`` if it is the part 2 of a block."""
    key, _generation, *part = object_key.split(".")
    return "/".join([bytes.fromhex(key).decode().lstrip("."), *part])


def ask(user: int, *blocks: object, output: Sequence[object] = (), **changes: Any) -> Request:
    """A request for named blocks of one token; those of ``output`` are only stored."""
    request = Request(
        user=user,
        keys=tuple(key_of(block) for block in (*blocks, *output)),
        prompt_blocks=len(blocks),
        prompt_tokens=len(blocks),
        output_tokens=len(output),
    )
    return request._replace(**changes)


class Script:
    """A workload that is written down (implements ``Workload``); counts what was asked for.

    ``turns``: per user its requests; in an open loop, one list in order of arrival.
    """

    def __init__(
        self,
        turns: Sequence[Sequence[Request]],
        *,
        population: Sequence[Request] = (),
        open_loop: bool = False,
    ) -> None:
        self._turns = [list(requests) for requests in turns]
        self._population = population
        self.open_loop = open_loop
        self.asked = [0] * len(turns)

    @property
    def users(self) -> int:
        return len(self._turns)

    def population(self) -> Iterator[Request]:
        return iter(self._population)

    def next_request(self, user: int) -> Request | None:
        number = self.asked[user]
        if number == len(self._turns[user]):
            return None
        self.asked[user] += 1
        return self._turns[user][number]


class Watched:
    """Another workload, and every request that it gave: by user, and in order."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self.given: dict[int, list[Request]] = defaultdict(list)
        self.order: list[Request] = []

    @property
    def users(self) -> int:
        return self._workload.users

    @property
    def open_loop(self) -> bool:
        return self._workload.open_loop

    def population(self) -> Iterator[Request]:
        for request in self._workload.population():
            self.given[request.user].append(request)
            yield request

    def next_request(self, user: int) -> Request | None:
        request = self._workload.next_request(user)
        if request is not None:
            self.given[user].append(request)
            self.order.append(request)
        return request


@dataclass(frozen=True)
class Family:
    """A scenario that consists of one finished workload (implements ``WorkloadFamily``)."""

    workload: Workload
    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        del context
        return Need(working_set_blocks=1)

    def build(self, context: WorkloadContext) -> Workload:
        del context
        return self.workload


class _Tireless(Watched):
    def __init__(self, workload: Workload, turns: int | None) -> None:
        super().__init__(workload)
        self._turns = turns
        self._asked: dict[int, int] = defaultdict(int)

    def next_request(self, user: int) -> Request | None:
        self._asked[user] += 1
        if self._turns is not None and self._asked[user] > self._turns:
            return None
        request = super().next_request(user)
        return None if request is None else request._replace(think_s=0.0)


@dataclass(frozen=True)
class Tireless:
    """A scenario whose users do not think (implements ``WorkloadFamily``).

    ``turns``: each user falls silent after so many, so that the work has an end.
    """

    family: WorkloadFamily
    turns: int | None
    needs_trace = False

    def need(self, context: WorkloadContext) -> Need:
        return self.family.need(context)

    def build(self, context: WorkloadContext) -> Workload:
        return _Tireless(self.family.build(context), self.turns)


def tireless_scenarios(turns: int | None = None) -> dict[str, WorkloadFamily]:
    """The known synthetic scenarios, without think time."""
    return {name: Tireless(SyntheticFamily(), turns) for name in SYNTHETIC}


def registry_of(
    *,
    backends: Mapping[str, Callable[[], Backend]] | None = None,
    workloads: Mapping[str, Any] | None = None,
) -> Registry:
    """A registry of these and the known models only."""
    made: Any = backends or {}  # a rank asks no factory for its traits
    return Registry(models=MODELS, backends=made, workloads=workloads or {}, launchers={})


# --- clocks -------------------------------------------------------------------------------


class FakeClock:
    """Nanoseconds that pass when told."""

    def __init__(self, now_ns: int = 1000 * S) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, ns: int) -> None:
        self.now_ns += ns


# --- backends -----------------------------------------------------------------------------


@dataclass
class _Object:
    parts: dict[int, bytes]
    length: int = 0
    synced: bool = False


class Bookkeeper:
    """Keeps objects in memory and writes down every breach of the rules (a ``Backend``).

    ``limit``: how many objects may exist at any time. ``breaches``: sentences.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.breaches: list[str] = []
        self.most_objects = 0
        self.counts: dict[str, int] = defaultdict(int)
        self.objects: dict[str, _Object] = {}
        self.ever: set[str] = set()
        self.lock = threading.Lock()
        self.object_bytes = 0
        self.syncs = False

    def prepare(self, object_bytes: int, *, syncs: bool = False) -> None:
        """What ``open`` does, for an engine without a rank."""
        self.object_bytes = object_bytes
        self.syncs = syncs

    def open(self, plan: BackendPlan) -> BackendFacts:
        self.prepare(plan.object_bytes, syncs=plan.sync == "data")
        return BackendFacts(io_mode="none", io_note=None)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.counts["put"] += 1
            stored = self.objects.get(key)
            if stored is None:
                if key in self.ever:
                    self.breaches.append(f"{key} is put again")
                self.ever.add(key)
                stored = self.objects[key] = _Object({})
                self.most_objects = max(self.most_objects, len(self.objects))
                if self.limit is not None and len(self.objects) > self.limit:
                    self.breaches.append(f"{len(self.objects)} objects, {self.limit} allowed")
            if offset in stored.parts:
                self.breaches.append(f"{key} is put twice at {offset}")
            stored.parts[offset] = bytes(buffer)
            stored.length += len(buffer)

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        with self.lock:
            self.counts["get"] += 1
            stored = self.objects.get(key)
            if stored is None or not self._is_complete(stored):
                self.breaches.append(f"{key} is read before it is complete")
                raise StorageError(f"{HOST}: no such object {key}")
            buffer[:] = stored.parts[offset]

    def delete(self, key: str) -> None:
        with self.lock:
            self.counts["delete"] += 1
            stored = self.objects.pop(key, None)
            if stored is None or not self._is_complete(stored):
                self.breaches.append(f"{key} is deleted and is not there as a whole")

    def sync(self, key: str) -> None:
        with self.lock:
            self.counts["sync"] += 1
            stored = self.objects[key]
            if stored.length != self.object_bytes or stored.synced:
                self.breaches.append(f"{key} is synced before it is complete, or again")
            stored.synced = True

    def close(self) -> None:
        """Keep everything, so that a test can look."""

    def _is_complete(self, stored: _Object) -> bool:
        return stored.length == self.object_bytes and stored.synced == self.syncs


def extremes(histogram: Histogram) -> tuple[int, int | None, int | None, int]:
    """Count, smallest, largest and sum: all that is exact."""
    return histogram.count, histogram.min_ns, histogram.max_ns, histogram.sum_ns


# --- whole ranks --------------------------------------------------------------------------


@contextmanager
def unchanged_interpreter() -> Iterator[None]:
    """Undo what a rank sets for its own process."""
    interval_s = sys.getswitchinterval()
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.enable()
        gc.unfreeze()


@dataclass(frozen=True)
class Finished:
    """A rank that ran, and everything behind its result."""

    rank: Rank
    origin_ns: int
    cleanup_error: str | None

    @property
    def histograms(self) -> dict[str, Histogram]:
        return self.rank.recorder.histograms

    @property
    def window_ns(self) -> int:
        """Its own window, in whole slices, as the coordinator cuts it."""
        span_ns = self.rank.stopped_ns - self.rank.window_begin_ns
        if self.rank.plan.duration_s is not None:
            span_ns = min(span_ns, int(self.rank.plan.duration_s * 1e9))
        slice_ns = self.rank.recorder.ledger.slice_ns
        return max(0, span_ns // slice_ns * slice_ns)

    def result_in(self, window_ns: int) -> RankResult:
        """Its result for the window that it shares with other ranks."""
        return self.rank.result(
            origin_ns=self.origin_ns,
            window_ns=window_ns,
            slice_ns=self.rank.recorder.ledger.slice_ns,
            cleanup_error=self.cleanup_error,
        )

    @cached_property
    def result(self) -> RankResult:
        """Its result for its own window."""
        return self.result_in(self.window_ns)


def run_rank(
    plan: Plan,
    registry: Registry,
    *,
    rank: int = 0,
    trace: Trace | None = None,
    tick: Callable[[], bool] = lambda: False,
    calibrates: bool = False,
) -> Finished:
    """Do what a worker does, without MPI; at its first tick it hears of all load steps."""
    one = Rank(plan, rank, HOST, trace)
    orders: list[LoadChange] = []

    def obey_and_tick() -> bool:
        while orders:
            one.change_load(orders.pop(0))
        return tick()

    with unchanged_interpreter():
        try:
            one.set_up(registry)
            if calibrates:
                one.calibrate(tick)
            one.populate(tick)
            if plan.restarts:
                one.shut_down()
            one.look_around()
            gc.freeze()  # what the tests hold is much, and would be collected in the window
            origin_ns = time.monotonic_ns()
            begin_ns = origin_ns + int(plan.ramp_s * 1e9)
            later = plan.load_schedule[1:]
            orders += [LoadChange(begin_ns + step.begin_ns, step.users) for step in later]
            one.run(origin_ns, obey_and_tick, plan.load_steps[0] if plan.load_steps else None)
            one.look_back()
            one.look_again()
            one.read_back(tick)
        except BaseException:
            one.close()
            raise
        cleanup_error = one.close()
    return Finished(one, origin_ns, cleanup_error)


def record_of(plan: Plan, ranks: Sequence[Finished]) -> TrialRecord:
    """What the coordinator writes of ranks that ran one after another."""
    window_ns = min(rank.window_ns for rank in ranks)
    histograms = {}
    for name in SECTIONS:
        parts = [rank.histograms[name] for rank in ranks]
        counts = np.sum([part.counts for part in parts], axis=0)
        histograms[name] = Histogram.added(counts, [part.extremes for part in parts])
    return TrialRecord(
        plan_digest=plan.digest,
        trial=plan.trial,
        window_s=window_ns / 1e9,
        ranks=tuple(rank.result_in(window_ns) for rank in ranks),
        histograms=histograms,
        series=series_of(window_ns, [rank.rank.recorder.series for rank in ranks]),
        load_steps=steps_of([rank.rank.recorder.steps for rank in ranks]),
        clock=clock_record(),
    )


def series_of(window_ns: int, ledgers: Sequence[TimeSeriesLedger]) -> TimeSeries:
    """What the coordinator makes of ranks that have booked this."""
    cut = CommonRange.of(window_ns, [ledger.used_range() for ledger in ledgers])
    dense = [ledger.dense(cut) for ledger in ledgers]
    return TimeSeries.from_dense(sum(dense[1:], start=dense[0]), cut)


def steps_of(ledgers: Sequence[StepLedger]) -> tuple[StepHistograms, ...]:
    """What the coordinator makes of ranks that have booked these load steps."""
    steps = max(len(ledger) for ledger in ledgers)
    dense = np.sum([ledger.dense(steps) for ledger in ledgers], axis=0)
    return histograms_of(dense, [ledger.extremes() for ledger in ledgers])


def even_series(
    window_s: float, operations: Sequence[int], moved_bytes: Sequence[int]
) -> TimeSeries:
    """A trial's series of so many reads and writes of 1 ms, evenly over the window."""
    window_ns = round(window_s * 1e9)
    ledger = TimeSeriesLedger(0, window_ns)
    for kind, wanted, total_bytes in zip(KINDS, operations, moved_bytes, strict=True):
        count = min(wanted, total_bytes)
        if count:
            sizes = np.full(count, total_bytes // count, dtype=np.int64)
            sizes[-1] += total_bytes % count
            done_ns = np.arange(count, dtype=np.int64) * window_ns // count
            bins = coarse_index(np.full(count, 1_000_000, dtype=np.int64))
            ledger.add(kind, done_ns, bins, sizes)
    return series_of(window_ns, [ledger])


# --- records ------------------------------------------------------------------------------

FILESYSTEM: dict[str, Any] = {
    "host": HOST,
    "path": "/data",
    "type": "ext4",
    "source": "/dev/sda",
    "mount_point": "/",
    "total_bytes": 1 << 40,
    "available_bytes": 1 << 39,
    "available_inodes": 1 << 30,
    "device": "sda",
    "device_model": "Disk 1",
    "dio_align_bytes": 512,
    "is_tmpfs": False,
    "is_network": False,
    "is_overlay": False,
    "counts_io": True,
    "virtual": False,
    "options": "rw",
    "memory_at_end": None,
    "unseen": None,
    "chain": [
        {"name": "ext4", "kind": "filesystem", "number": None, "above": None, "end": None,
         "note": None},
        {"name": "sda", "kind": "disk", "number": "8:0", "above": 0, "end": "disk", "note": None},
    ],
}  # fmt: skip
IDLE = {"read_ops": 0, "read_bytes": 0, "write_ops": 0, "write_bytes": 0, "busy_s": 0.0}


def watch(
    *, machine: str = "boot", name: str = "sda", run_s: float = 61.0, **moved: Any
) -> dict[str, Any]:
    """What the first rank of a host saw of one disk, which nobody else uses."""
    quiet, after = ({**IDLE, **moved.pop(name, {})} for name in ("quiet", "after"))
    run = {**IDLE, "busy_s": 30.0, **moved}
    disk = {"name": name, "largest_request_bytes": 1 << 20, "quiet": quiet, "run": run}
    disk["after"] = after
    return {
        "machine": machine,
        "quiet_s": 0.5,
        "run_s": run_s,
        "after_s": 0.5,
        "disks": [disk],
        "sync_probe": None,
    }


def watched(ranks: Sequence[RankResult]) -> tuple[RankResult, ...]:
    """The first rank of each host with a directory has seen what the ranks of it moved."""
    hosts: dict[str, list[RankResult]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank)
    result = list(ranks)
    for host, own in hosts.items():
        first = own[0]
        if first.device is None and first.filesystem is not None:
            moved: dict[str, Any] = {
                "read_bytes": sum(rank.requested_read_bytes for rank in own),
                "write_bytes": sum(rank.requested_write_bytes for rank in own),
            }
            result[ranks.index(first)] = replace(
                first,
                device=DeviceReport.from_json(
                    watch(machine=f"boot-{host}", run_s=first.drained_s + 0.5, **moved)
                ),
            )
    return tuple(result)


def surroundings(**changes: Any) -> Surroundings:
    """A minute on a quiet machine, without limits."""
    values: dict[str, Any] = {
        "span_s": 60.0,
        "raw_span_s": 60.0,
        "cpu_quota_cores": None,
        "cpu_periods": 0,
        "throttled_periods": 0,
        "throttled_s": 0.0,
        "steal_s": 0.0,
        "memory_limit_bytes": None,
        "memory_limit_hits": None,
        "memory_pressure_s": 0.0,
        "group_memory_pressure_s": None,
        "io_limits": (),
        "preloaded": (),
        "wrappers": (),
    }
    return Surroundings(**values | changes)


def clock_record(**changes: Any) -> ClockRecord:
    """A minute by all clocks."""
    values: dict[str, Any] = {
        "coordinator_s": 60.5,
        "controller_least_s": 60.4,
        "controller_most_s": 60.6,
        "drift_s": 1e-6,
        "drift_rank": 0,
    }
    return ClockRecord(**values | changes)


def rank_result(rank: int = 0, **changes: Any) -> RankResult:
    """A rank without fault: a minute at full depth on a disk of its own."""
    values: dict[str, Any] = {
        **{
            name: count for name, count in nothing_counted().items() if name != "storage_hit_blocks"
        },
        "rank": rank,
        "host": HOST,
        "pid": 100 + rank,
        "start_s": 0.0,
        "stop_s": 60.0,
        "drained_s": 60.5,
        "read_count": 1_000,
        "read_bytes": 1_000 * PAGE,
        "read_p95_ms": 1.0,
        "write_count": 500,
        "write_bytes": 500 * PAGE,
        "write_p95_ms": 1.0,
        "device_bytes": 1_500 * PAGE,
        "read_op_bytes": 1_000 * PAGE,
        "write_op_bytes": 500 * PAGE,
        "offered": 200,
        "completed": 200,
        "completed_in_window": 190,
        "prompt_tokens": 20_000,
        "generated_tokens": 2_000,
        "prompt_blocks": 2_000,
        "hit_blocks": 1_000,
        "arrived_tokens": 20_000,
        "hit_tokens": 10_000,
        "first_half_blocks": 1_000,
        "first_half_hits": 500,
        "second_half_blocks": 1_000,
        "second_half_hits": 500,
        "first_half_waiting": 1.0,
        "second_half_waiting": 1.0,
        "cached_blocks": 500,
        "cached_bytes": 500 * 64 * 1024,
        "populated_blocks": 100,
        "population_s": 1.0,
        "average_queue_depth": 4.0,
        "longest_pause_s": 0.1,
        "reap_lag_mean_ms": 0.01,
        "reap_lag_p99_ms": 0.05,
        "stalls": (),
        "load_steps": (),
        "service_classes": (),
        "load_lengths": (),
        "io_mode": "direct",
        "io_note": None,
        "io_engine": "io_uring",
        "io_engine_reason": "io_uring is asynchronous here",
        "io_engine_asynchronous": True,
        "sync": "none",
        "is_storage": True,
        "filesystem": {**FILESYSTEM, "host": changes.get("host", HOST)},
        "device": None,
        "io_trace": None,
        "requested_read_bytes": 1_000 * PAGE,
        "requested_write_bytes": 500 * PAGE,
        "requested_transfers": 1_500,
        "requested_writes": 500,
        "device_read_bytes": 1_000 * PAGE,
        "device_write_bytes": 500 * PAGE,
        "checked": 1_000,
        "distinct_read_bytes": 100 * PAGE,
        "distinct_reads": 100,
        "cpu_s": 1.0,
        "peak_rss_bytes": 1 << 26,
        "cores": 1,
        "null_ops_per_s": 1e6,
        "memory_ops_per_s": 1e6,
        "error": None,
        "cleanup_error": None,
        "surroundings": surroundings(),
    }
    values |= changes
    values.setdefault("storage_hit_blocks", values["hit_blocks"])
    for name, kind in (("filesystem", FilesystemFacts), ("device", DeviceReport)):
        if isinstance(values[name], dict):
            values[name] = kind.from_json(values[name])
    return RankResult(**values)


def memory_tiers(*names: TierName, kind: TierKind | None = None, blocks: int = 8) -> Any:
    """Tiers in front of the storage, by their names, of so many pages each."""
    usual: dict[TierName, TierKind] = {"gpu": "simulated", "cpu": "memory"}
    return tuple(
        MemoryTier(name=name, capacity_bytes=blocks * PAGE, kind=kind or usual[name])
        for name in names
    )


def sound_plan(**changes: Any) -> Plan:
    """The plan that `rank_result` belongs to."""
    values: dict[str, Any] = {"backend": "file", "cache_dir": "/data", "duration_s": 60.0}
    return make_plan(**values | changes)


def sound_record(plan: Plan, ranks: Sequence[RankResult], **changes: Any) -> TrialRecord:
    """A trial of these ranks; every read took 1 ms, every write 2 ms; evenly over the window."""
    window_s = changes.get("window_s", 60.0)
    counted = [sum(getattr(rank, f"{kind}_count") for rank in ranks) for kind in KINDS]
    moved = [sum(getattr(rank, f"{kind}_bytes") for rank in ranks) for kind in KINDS]
    counts = {
        "read": (1_000_000, sum(rank.read_count for rank in ranks)),
        "write": (2_000_000, sum(rank.write_count for rank in ranks)),
        "delete": (500_000, sum(rank.delete_count for rank in ranks)),
        "queue": (300_000, sum(rank.read_count + rank.write_count for rank in ranks)),
        "device": (1_500_000, sum(rank.read_count + rank.write_count for rank in ranks)),
        "load": (4_000_000, sum(rank.completed for rank in ranks)),
        "request": (5_000_000, sum(rank.completed for rank in ranks)),
        "scheduling_lag": (100_000, plan.open_loop * sum(rank.offered for rank in ranks)),
    }
    histograms = {name: Histogram() for name in SECTIONS}
    for name, (value_ns, count) in counts.items():
        histograms[name].record(np.full(count, value_ns, dtype=np.int64))
    return replace(
        TrialRecord(
            plan_digest=plan.digest,
            trial=plan.trial,
            window_s=60.0,
            ranks=watched(ranks),
            histograms=histograms,
            series=even_series(window_s, counted, moved),
            load_steps=(),
            clock=clock_record(),
        ),
        **changes,
    )


# --- restarts -------------------------------------------------------------------------------


def sound_restart_plan(**changes: Any) -> Plan:
    """The plan that `restart_result` belongs to."""
    values: dict[str, Any] = {
        "phase": "restart", "restart_by": "scan", "duration_s": None, "fill_blocks": 500,
    }  # fmt: skip
    return sound_plan(**values | changes)


def restart_result(rank: int = 0, **changes: Any) -> RankResult:
    """A rank without fault that has found 500 objects again within a minute."""
    nothing = {name: 0 for name in nothing_counted() if name in _OF_REQUESTS}
    values: dict[str, Any] = {
        **nothing, "read_p95_ms": None, "write_p95_ms": None, "drained_s": 60.0,
        "first_half_waiting": None, "second_half_waiting": None, "average_queue_depth": 0.0,
        "populated_blocks": 500, "restart_count": 500, "restart_objects": 500,
        "restart_directories": 257, "restart_listing_s": 1.5,
    }  # fmt: skip
    return rank_result(rank, **values | changes)


_OF_REQUESTS = frozenset({
    "read_count", "read_bytes", "write_count", "write_bytes", "device_bytes", "read_op_bytes",
    "write_op_bytes", "offered", "completed", "completed_in_window", "prompt_tokens",
    "generated_tokens", "prompt_blocks", "hit_blocks", "storage_hit_blocks", "arrived_tokens",
    "hit_tokens", "first_half_blocks", "first_half_hits", "second_half_blocks",
    "second_half_hits", "requested_read_bytes", "requested_write_bytes", "requested_transfers",
    "requested_writes", "distinct_read_bytes", "distinct_reads", "reap_lag_count",
})  # fmt: skip


def sound_restart_record(plan: Plan, ranks: Sequence[RankResult], **changes: Any) -> TrialRecord:
    """A trial of these ranks; every call took 0.2 ms."""
    record = sound_record(plan, ranks)
    restart = Histogram()
    count = sum(rank.restart_count or 0 for rank in ranks)
    restart.record(np.full(count, 200_000, dtype=np.int64))
    return replace(record, histograms={**record.histograms, "restart": restart}, **changes)


# --- other hosts --------------------------------------------------------------------------


def host_facts(name: str = "n1", **changes: Any) -> HostFacts:
    """A host without fault, with 100 GiB of disk."""
    values: dict[str, Any] = {
        "hostname": name,
        "machine": f"boot/{name}",
        "version": "1.0",
        "python": "3.11.7",
        "mpi_library": "Open MPI v5.0.11",
        "cores": 4,
        "cpu_quota_cores": None,
        "memory_bytes": 64 << 30,
        "memory_limit_bytes": None,
        "open_files": 1024,
        "filesystem": {**FILESYSTEM, "available_bytes": 100 << 30, "available_inodes": 1 << 20},
        "direct": True,
        "gpus": None,
        "wall_clock_s": 0.0,
        "problems": (),
    }
    return HostFacts(**values | changes)


def survey_of(
    facts: Mapping[str, HostFacts],
    *groups: Sequence[str],
    problems: Mapping[str, Sequence[str]] | None = None,
) -> Survey:
    """What these hosts have answered; without ``groups`` each has its own directory."""
    problems = problems or {}
    shared = groups or [[name] for name in facts]
    return Survey(
        names=tuple(dict.fromkeys([*facts, *problems])),
        facts=facts,
        problems=problems,
        groups=tuple(frozenset(group) for group in shared),
        elapsed_s=0.5,
        made_s=time.monotonic(),
    )


def layout_of(**ranks: int) -> RankLayout:
    """``layout_of(n1=2, n2=2)``."""
    return RankLayout(hosts=tuple(HostRanks(name=name, ranks=n) for name, n in ranks.items()))
