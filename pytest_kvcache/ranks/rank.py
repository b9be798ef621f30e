"""One rank's part of a trial: storage, cache, workload and engine put together.

Rank-side; imports neither pytest nor MPI, so that it runs without a launcher too
(the unit tests and the harness benchmark do).
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.posix.cachedir import (
    claim_rank_dir,
    remove_rank_dir,
    remove_run_dir,
    run_dir,
    run_name,
)
from pytest_kvcache.backends.posix.freespace import FreeSpace
from pytest_kvcache.backends.protocol import PAGE_BYTES, BackendFacts, BackendPlan
from pytest_kvcache.cache.index import CacheIndex
from pytest_kvcache.engine.engine import Engine
from pytest_kvcache.engine.operations import TransferSettings
from pytest_kvcache.engine.payload import make_payload
from pytest_kvcache.errors import StorageError
from pytest_kvcache.ioengines.choose import EngineChoice, Situation, choose_engine, make_engine
from pytest_kvcache.ioengines.echo import echo_engine
from pytest_kvcache.masking import Secrets
from pytest_kvcache.measure.recorder import Recorder, Window
from pytest_kvcache.ranks.calibration import ArenaBackend, closed_loop, operations_per_s
from pytest_kvcache.ranks.cleanup import Janitor
from pytest_kvcache.ranks.devicewatch import DeviceWatch
from pytest_kvcache.ranks.inventory import Inventory
from pytest_kvcache.ranks.pauses import PauseWatch
from pytest_kvcache.ranks.readback import ReadBack
from pytest_kvcache.ranks.report import mean_depth, recorded, window_sums
from pytest_kvcache.results.record import RankResult
from pytest_kvcache.system.filesystem import IoCounters, Place, probe_filesystem, sample_io
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES
from pytest_kvcache.system.preloads import check_preloads
from pytest_kvcache.system.surroundings import SurroundingsWatch
from pytest_kvcache.workloads.openloop import OpenLoop, arrival_offsets_ns
from pytest_kvcache.workloads.phases import ChecksPopulation, build_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import IoEngine, IoEngineName
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.system.filesystem import FilesystemFacts
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Workload, WorkloadContext, WorkloadFamily

# The stop stamp of a transfer waits for the GIL; with the default of 5 ms a thread that
# computes holds it for so long that p99 of 16 KiB reads was measured at over 1 ms.
_SWITCH_INTERVAL_S = 1e-5


class Rank:
    """Set up, calibrate, make ready, populate, run, close, report; each once, in this order."""

    def __init__(
        self, plan: Plan, rank: int, host: str, trace: Trace | None, secrets: Secrets | None = None
    ) -> None:
        self.plan = plan
        self.secrets = secrets or Secrets()
        self.rank = rank
        self.host = host
        self._trace = trace
        self._sync = plan.sync
        self._owns_directory = False
        self._place: Place | None = None
        self._directory: str | None = None
        self._place_fault: str | None = None
        self._clock_fault: str | None = None
        self._probe_fault: str | None = None
        self._pauses = PauseWatch()
        self._surroundings = SurroundingsWatch()
        self._janitor: Janitor | None = None
        self._space: FreeSpace | None = None
        self._backend: Backend | None = None
        self._family: WorkloadFamily | None = None
        self._workload: Workload | None = None
        self._null_ops_per_s: float | None = None
        self._memory_ops_per_s: float | None = None
        self._facts: BackendFacts | None = None
        self._choice = EngineChoice(name="inline", reason="nothing was opened")
        self._filesystem: FilesystemFacts | None = None
        self._watch: DeviceWatch | None = None
        self._read_back = ReadBack()
        self._payload_used: Payload | None = None
        self._stored_before = 0  # generations of blocks, when the run began
        self._population_s = 0.0
        self._populated_blocks = 0
        self._admitted_blocks = (0, 0)  # by the population: asked for, found
        self._cpu_s = 0.0
        self._io: IoCounters | None = None
        self.start_ns = 0
        self.stopped_ns = 0
        self.drained_ns = 0
        self.recorder = Recorder()
        self.index = _empty_index(plan)
        self.engine: Engine | None = None

    def set_up(self, registry: Registry) -> None:
        """Open the storage. Raises StorageError, or PreflightError for a preload."""
        plan = self.plan
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._surroundings.find_preloads()
        if not plan.allows("PRELOADED"):
            check_preloads(self._surroundings.preloads)
        self._backend, facts = self._opened(registry.backend(plan.backend))
        self._facts = facts
        self._choice = choose_engine(plan.io_engine, self._situation(self._backend))
        if plan.traits.kernel_counts:
            filesystem = probe_filesystem(plan.cache_dir, self.host)
            self._filesystem = filesystem
            if not plan.layout.local_index(self.rank):
                own = f"{run_dir(plan.cache_dir, plan.run_id)}/rank-{self.rank}"
                self._watch = DeviceWatch(filesystem.chain, own)
        self._family = registry.workload(plan.scenario)

    def calibrate(self, tick: Callable[[], bool]) -> None:
        """Find out what the engine could do without the storage, which is not touched."""
        if not self.plan.traits.is_storage:
            return  # the run itself tells
        self._null_ops_per_s = self._without_storage(self._idle_engine(), tick)
        gc.collect()  # an engine and its loop hold each other, and all their buffers
        self._memory_ops_per_s = self._without_storage(self._copying_engine(), tick)
        gc.collect()

    def _idle_engine(self) -> IoEngine:
        """The run's I/O engine with nothing behind it."""
        name, depth = self._choice.name, self.plan.queue_depth
        if name in KERNEL_ENGINES:
            return echo_engine(name, depth)
        return make_engine(name, NullBackend(), self._situation(NullBackend()))

    def _copying_engine(self) -> IoEngine:
        """An engine that copies within memory; where the kernel would move bytes, the loop does."""
        backend = ArenaBackend(self.plan.chunk_bytes)
        name: IoEngineName = "threads" if self._choice.name == "threads" else "inline"
        return make_engine(name, backend, self._situation(backend))

    def _without_storage(self, io: IoEngine, tick: Callable[[], bool]) -> float | None:
        plan, recorder = self.plan, Recorder()
        workload = closed_loop(self._build_workload, plan.context(self.rank, self._trace))
        if workload is None:
            return None
        engine = self._make_engine(
            io,
            _empty_index(plan),
            workload,
            self._payload(),
            recorder,
            generation_s_per_token=0.0,
            blind=True,
        )
        with _undisturbed():
            return operations_per_s(engine, recorder, tick)

    def _payload(self) -> Payload:
        plan, seed = self.plan, self._payload_seed()
        return make_payload(plan.data, seed, plan.chunk_bytes, plan.object_stored_bytes)

    def _build_workload(self, context: WorkloadContext) -> Workload:
        assert self._family is not None
        return build_workload(self._family, context, self.plan.phase)

    def _make_engine(
        self,
        io: IoEngine,
        index: CacheIndex,
        workload: Workload,
        payload: Payload | None,
        recorder: Recorder,
        *,
        generation_s_per_token: float,
        blind: bool = False,
    ) -> Engine:
        plan = self.plan
        return Engine(
            settings=TransferSettings(
                queue_depth=plan.queue_depth,
                object_bytes=plan.object_bytes,
                stored_bytes=plan.object_stored_bytes,
                transfer_bytes=plan.chunk_bytes,
                sync=self._sync == "data",
                verify=plan.verify,
                blind=blind,
                objects_per_block=plan.objects_per_block,
            ),
            block_tokens=plan.block_tokens,
            generation_s_per_token=generation_s_per_token,
            phase=plan.phase,
            io=io,
            index=index,
            workload=workload,
            payload=payload,
            recorder=recorder,
        )

    def _ready_engine(self) -> Engine:
        """The engine of the run; all buffers are touched."""
        plan = self.plan
        assert self._backend is not None
        self._workload = self._build_workload(plan.context(self.rank, self._trace))
        self._payload_used = self._payload() if plan.traits.stores_data else None
        return self._make_engine(
            make_engine(self._choice.name, self._backend, self._situation(self._backend)),
            self.index,
            self._at_its_rate(self._workload),
            self._payload_used,
            self.recorder,
            generation_s_per_token=plan.generation_s_per_token,
        )

    def _at_its_rate(self, workload: Workload) -> Workload:
        """At a declared rate a rank issues its share of the requests."""
        plan = self.plan
        if plan.request_rate is None or plan.arrival is None:
            return workload
        identity = f"{plan.seed}/{plan.trial}/{self.rank}"
        offsets_ns = arrival_offsets_ns(
            per_s=plan.request_rate / plan.np,
            arrival=plan.arrival,
            span_s=plan.ramp_s + (plan.duration_s or 0.0),
            identity=f"{identity}/arrivals",
        )
        return OpenLoop(workload, offsets_ns, f"{identity}/turns")

    def _opened(self, factory: Callable[[], Backend]) -> tuple[Backend, BackendFacts]:
        """Open the storage; a fallback from direct to buffered brings its default sync.

        Unsynced, what was just written would be read back from the page cache.
        """
        backend, asked = self._made(factory), self._backend_plan()
        facts = backend.open(asked)
        fell_back = asked.io == "direct" and facts.io_mode == "buffered"
        if not (fell_back and asked.sync == "none" and self.plan.origins["sync"] == "default"):
            return backend, facts
        backend.close()
        backend = self._made(factory)
        self._sync = "data"
        buffered = backend.open(replace(asked, io="buffered", sync="data"))
        return backend, replace(buffered, io_note=facts.io_note)

    def _made(self, factory: Callable[[], Backend]) -> Backend:
        """A backend that is not open; without a directory, what is in it is kept account of."""
        traits = self.plan.traits
        return Inventory(factory()) if traits.is_storage and not traits.directory else factory()

    def _situation(self, backend: Backend) -> Situation:
        """What the choice of an I/O engine depends on."""
        plan = self.plan
        return Situation(
            host=self.host,
            files=getattr(backend, "in_files", None),
            directory=self._directory,
            depth=plan.queue_depth,
            transfer_bytes=plan.chunk_bytes,
            never_waits=plan.traits.never_waits,
        )

    def _payload_seed(self) -> int:
        """Other data on every rank, in every trial and run.

        Or a storage could deduplicate it, and serve what an earlier run left.
        """
        plan = self.plan
        identity = f"{plan.run_id}/{plan.seed}/{plan.trial}/{self.rank}".encode()
        return int.from_bytes(blake2b(identity, digest_size=8).digest(), "big")

    def _backend_plan(self) -> BackendPlan:
        plan = self.plan
        directory = None
        if plan.needs_directory:
            directory = claim_rank_dir(plan.cache_dir, plan.run_id, self.rank, self.host)
            self._owns_directory = True
            self._place = Place(directory, self.host)
            self._directory = directory
            if not plan.keep and not plan.layout.local_index(self.rank):
                self._janitor = Janitor.hire(plan.cache_dir, plan.run_id, os.environ)
            if not plan.layout.local_index(self.rank):  # one of a host is enough
                self._space = FreeSpace(plan.cache_dir)
        return BackendPlan(
            directory=directory,
            object_bytes=plan.object_stored_bytes,
            chunk_bytes=plan.chunk_bytes,
            io="direct" if plan.io == "direct" else "buffered",
            sync="data" if plan.sync == "data" else "none",
            host=self.host,
            namespace=f"{run_name(plan.run_id)}/trial-{plan.trial + 1}/rank-{self.rank}",
            capacity_objects=plan.capacity_objects,
            store=plan.store,
            options={**plan.backend_options, **self._given_secrets()},
        )

    def _given_secrets(self) -> dict[str, str]:
        """What the plan has a mask of; StorageError if a value did not come."""
        found = self.secrets.reveal()
        missing = self.plan.secret_options.difference(found)
        if missing:
            raise StorageError(
                f"{self.host}: the value of {', '.join(sorted(missing))} (--kv-backend-option) did"
                " not reach this rank, and the plan does not hold it"
            )
        return found

    def make_ready(self) -> None:
        """Build what the run needs and touch its buffers: maybe seconds without a tick."""
        if self.engine is None:
            self.engine = self._ready_engine()

    def populate(self, tick: Callable[[], bool]) -> None:
        """Fill the cache. Raises StorageError with the first failed operation."""
        self.make_ready()
        assert self.engine is not None
        began = time.monotonic()
        self.engine.populate(tick)
        self._population_s = time.monotonic() - began
        self._populated_blocks = self.index.present_blocks
        if self.engine.first_error is not None:
            self._look_at_the_place()
            raise StorageError(self._with_its_cause(self.engine.first_error))
        if isinstance(self._workload, ChecksPopulation):
            self._workload.check_population()

    def look_around(self) -> None:
        """While no rank does I/O: what others do to this host's disks, and whether sync syncs.

        From here on the disks are watched. A probe that fails is told with the result: here
        nobody listens.
        """
        if self._watch is not None:
            self._look_at_the_disks(self._watch)
        self._surroundings.begin()

    def _look_at_the_disks(self, watch: DeviceWatch) -> None:
        watch.look(durable=self._is_durable)
        try:
            if self._sync == "data":
                watch.probe_sync()
        except StorageError as error:
            self._probe_fault = str(error)
        watch.begin()

    def run(self, start_ns: int, tick: Callable[[], bool]) -> None:
        """Ramp, window and drain, from ``start_ns`` on this host's clock."""
        assert self.engine is not None
        plan = self.plan
        begin_ns = start_ns + int(plan.ramp_s * 1e9)
        end_ns = None if plan.duration_s is None else begin_ns + int(plan.duration_s * 1e9)
        self.recorder.open_window(Window(begin_ns, end_ns))
        self._admitted_blocks = (self.index.prompt_blocks, self.index.hit_blocks)
        self._stored_before = self.index.generation
        with _undisturbed():
            counters, cpu_s = sample_io(), _cpu_s()
            self._pauses.begin(begin_ns - time.monotonic_ns())
            self._surroundings.until(end_ns)
            self.stopped_ns = self.engine.run(
                start_ns=start_ns, end_ns=end_ns, drain_s=plan.drain_s, tick=self._looking(tick)
            )
            self.drained_ns = time.monotonic_ns()
            self._surroundings.end()
            self._cpu_s = _cpu_s() - cpu_s
            self._io = sample_io().since(counters)
        self._pauses.look()
        self._clock_fault = self._pauses.clock_fault()
        self.start_ns = self.engine.began_ns

    def look_back(self) -> None:
        """When all ranks have drained, and before any of them does anything else."""
        if self._watch is not None:
            self._watch.end()

    @property
    def _is_durable(self) -> bool:
        """Whether what was stored is said to have left the page cache."""
        assert self._facts is not None
        return self._sync == "data" or self._facts.io_mode == "direct"

    def look_again(self) -> None:
        """While no rank does I/O: whether others began on the disks during the run."""
        if self._watch is not None:
            self._watch.look_again(durable=self._is_durable)

    def read_back(self, tick: Callable[[], object]) -> None:
        """Outside every span: read some of what the run has stored, and compare all of it.

        Where nothing is ever read (prefill), only this finds what never arrived.
        """
        assert self.engine is not None
        assert self._backend is not None
        if self._payload_used is None or self.plan.verify == "off" or self.engine.first_error:
            return
        self._read_back.examine(
            [slot for slot in self.index.stored() if slot.generation > self._stored_before],
            backend=self._backend,
            payload=self._payload_used,
            settings=self.engine.settings,
            seed=self._payload_seed(),
            tick=tick,
        )

    def _looking(self, tick: Callable[[], bool]) -> Callable[[], bool]:
        """The tick, by which this rank also sees whether it stood still, and what held it up."""

        def look_and_tick() -> bool:
            self._pauses.look()
            self._surroundings.look()
            return tick()

        return look_and_tick

    def progress(self) -> dict[str, Any]:
        """Counts for the people who wait; since the start of the run, not of its window."""
        if self.engine is None:
            return {"error": None}
        counters, index, error = self.engine.counters, self.index, self.engine.first_error
        space = {} if self._space is None else {"free_bytes": self._space.available_bytes}
        return {
            **space,
            "error": error and self.secrets.mask(error),
            "read_bytes": counters.requested_read_bytes,
            "write_bytes": counters.requested_write_bytes,
            "completed": counters.completed,
            "prompt_blocks": index.prompt_blocks - self._admitted_blocks[0],
            "hit_blocks": index.hit_blocks - self._admitted_blocks[1],
            "cached_bytes": index.present_bytes,
            "waiting_s": self.engine.longest_wait_ns() / 1e9,
            "recent": self.recorder.take_recent(time.monotonic_ns()),
        }

    @property
    def window_begin_ns(self) -> int:
        """The window's begin on this host's clock."""
        return self.recorder.ledger.origin_ns

    def close(self) -> str | None:
        """End the threads, give the storage back; returns what went wrong in cleaning up."""
        if self.engine is not None:
            self.engine.close()
            self.recorder.finish()
        self._look_at_the_place()
        return self._clean_up()

    def _look_at_the_place(self) -> None:
        """Find out whether paths still lead to the directory that this rank was given.

        Asked only when nothing is measured any more: a storage that hangs would stop the rank.
        """
        if self._place is not None:
            self._place_fault = self._place_fault or self._place.fault()

    def _with_its_cause(self, error: str | None) -> str | None:
        """The first failed operation, and why none of them can be trusted."""
        faults = (error, self._probe_fault, self._place_fault, self._clock_fault)
        return self.secrets.mask("; ".join(filter(None, faults))) or None

    def leave(self) -> None:
        """After all ranks have closed: the first one of a host removes the run's directory."""
        if self._janitor is not None:
            self._remove_run_dir()
            self._janitor.dismiss()
            self._janitor = None

    def _remove_run_dir(self) -> None:
        """Raises StorageError, with what went wrong before that: it may be the reason."""
        try:
            remove_run_dir(self.plan.cache_dir, self.plan.run_id, self.host)
        except StorageError as error:
            before = None if self.engine is None else self.engine.first_error
            told = self._with_its_cause(before)
            raise StorageError(f"{told}; {error}" if told else str(error)) from error

    def _clean_up(self) -> str | None:
        """Close the backend and remove what the rank has stored, unless it is to be kept."""
        if self._space is not None:
            self._space.close()
        if self._place is not None:
            self._place.close()
        try:
            if self._backend is not None:
                if isinstance(self._backend, Inventory) and not self.plan.keep:
                    self._backend.clear(self.plan.queue_depth)
                self._backend.close()
            if self._owns_directory and not self.plan.keep:
                remove_rank_dir(self.plan.cache_dir, self.plan.run_id, self.rank, self.host)
                self._owns_directory = False
        except StorageError as error:
            return self.secrets.mask(str(error))
        return None

    def result(
        self, *, origin_ns: int, window_ns: int, slice_ns: int, cleanup_error: str | None
    ) -> RankResult:
        """This rank's scalars; ``origin_ns`` is the agreed start on this host's clock.

        The common window is the first ``window_ns`` after the window's begin, a multiple
        of ``slice_ns``, which all ranks share.
        """
        self.recorder.ledger.coarsen(slice_ns)
        return RankResult(
            rank=self.rank,
            host=self.host,
            pid=os.getpid(),
            start_s=(self.start_ns - origin_ns) / 1e9,
            stop_s=(self.stopped_ns - origin_ns) / 1e9,
            drained_s=(self.drained_ns - origin_ns) / 1e9,
            population_s=self._population_s,
            populated_blocks=self._populated_blocks,
            mean_depth=mean_depth(self.recorder, self.window_begin_ns, self.drained_ns),
            longest_pause_s=self._pauses.longest_s,
            stalls=self.recorder.found_stalls(window_ns, self._pauses.spans_ns),
            cpu_s=self._cpu_s,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            cores=len(os.sched_getaffinity(0)),
            null_ops_per_s=self._null_ops_per_s,
            memory_ops_per_s=self._memory_ops_per_s,
            cleanup_error=cleanup_error,
            surroundings=self._surroundings.facts(),
            **window_sums(self.recorder.ledger, window_ns, slice_ns),
            **self._operation_counts(),
            **self._io_facts(),
        )

    def _operation_counts(self) -> dict[str, Any]:
        """What the engine, its log and its index counted."""
        assert self.engine is not None
        loop = self.engine.loop
        return {
            **self.engine.counters.counted(),
            **recorded(self.recorder),
            "evictions": self.index.evictions,
            "cached_blocks": self.index.present_blocks,
            "cached_bytes": self.index.present_bytes,
            "checked": loop.checked + self._read_back.checked,
            "corrupt": loop.corrupt + self._read_back.corrupt,
            "read_back": self._read_back.checked,
            "error": self._with_its_cause(self.engine.first_error or self._read_back.error),
        }

    def _io_facts(self) -> dict[str, Any]:
        """How the storage was used, and what the kernel counted meanwhile."""
        assert self.engine is not None
        assert self._facts is not None
        assert self._io is not None
        return {
            "io_mode": self._facts.io_mode,
            "io_engine": self._choice.name,
            "io_engine_reason": self._choice.reason,
            "io_engine_asynchronous": self._choice.asynchronous,
            "io_note": self._facts.io_note and self.secrets.mask(self._facts.io_note),
            "sync": self._sync,
            "is_storage": self.plan.traits.is_storage,
            "filesystem": self._filesystem,
            "device": None if self._watch is None else self._watch.report(),
            "device_read_bytes": self._io.read_bytes,
            "device_write_bytes": self._io.write_bytes,
        }


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A collection of garbage would stop all threads in the middle of the window."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()  # what is frozen is never freed: calibration's buffers, for one


def _empty_index(plan: Plan) -> CacheIndex:
    return CacheIndex(
        plan.capacity_bytes, page_bytes=PAGE_BYTES, objects_per_block=plan.objects_per_block
    )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
