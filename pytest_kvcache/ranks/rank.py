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
from functools import partial
from hashlib import blake2b
from tempfile import gettempdir
from typing import TYPE_CHECKING

from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.backends.null import NullBackend
from pytest_kvcache.backends.protocol import PAGE_BYTES, LooksUp, NamesObjects
from pytest_kvcache.cache.buckets import BucketIndex
from pytest_kvcache.cache.index import CacheIndex, ContentEntry
from pytest_kvcache.cache.tiers import Tier, TierStack
from pytest_kvcache.engine.engine import Engine
from pytest_kvcache.engine.iotracer import IoTracer, untraced
from pytest_kvcache.engine.load import NOTICE_NS, LoadChange
from pytest_kvcache.engine.lookups import Lookups
from pytest_kvcache.engine.operations import TransferSettings, object_key_of
from pytest_kvcache.engine.payload import make_payload
from pytest_kvcache.engine.shared import SharedCache
from pytest_kvcache.engine.tiered import Tiers
from pytest_kvcache.errors import StalledError, StorageError
from pytest_kvcache.ioengines.choose import EngineChoice, Situation, choose_engine, make_engine
from pytest_kvcache.ioengines.echo import echo_engine
from pytest_kvcache.ioengines.threads import ThreadsEngine
from pytest_kvcache.masking import Secrets
from pytest_kvcache.measure.iospool import Spool
from pytest_kvcache.measure.recorder import Recorder, Window
from pytest_kvcache.measure.service import Limits, ServiceBook
from pytest_kvcache.measure.sharing import LOST
from pytest_kvcache.measure.worth import WorthBook
from pytest_kvcache.phases import PHASES
from pytest_kvcache.ranks.calibration import ArenaBackend, closed_loop, operations_per_s
from pytest_kvcache.ranks.devicewatch import DeviceWatch
from pytest_kvcache.ranks.pauses import PauseWatch
from pytest_kvcache.ranks.precondition import Precondition
from pytest_kvcache.ranks.readback import ReadBack
from pytest_kvcache.ranks.report import (
    average_queue_depth,
    lookup_counts,
    recorded,
    restart_counts,
    sharing_counts,
    staged_hits,
    tier_counts,
    window_sums,
)
from pytest_kvcache.ranks.restart import Restart
from pytest_kvcache.ranks.sharing import RankSharing
from pytest_kvcache.ranks.storage import RankStorage
from pytest_kvcache.results.record import IoTraceFacts, RankResult
from pytest_kvcache.system.dropcaches import check_may_drop, drop_caches
from pytest_kvcache.system.filesystem import (
    IoCounters,
    probe_filesystem,
    sample_io,
)
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES
from pytest_kvcache.system.preloads import check_preloads
from pytest_kvcache.system.surroundings import SurroundingsWatch
from pytest_kvcache.units import GIB
from pytest_kvcache.workloads.filling import filling
from pytest_kvcache.workloads.fixedwork import FixedWork
from pytest_kvcache.workloads.openloop import OpenLoop, arrival_offsets_ns
from pytest_kvcache.workloads.phases import ChecksPopulation, build_workload
from pytest_kvcache.workloads.scenarios import LIMITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pytest_kvcache.backends.protocol import Backend
    from pytest_kvcache.cache.index import BlockEntry
    from pytest_kvcache.engine.iotracer import Traced
    from pytest_kvcache.engine.payload import Payload
    from pytest_kvcache.ioengines.protocol import IoEngine, IoEngineName
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.system.filesystem import FilesystemFacts
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import (
        Request,
        Workload,
        WorkloadContext,
        WorkloadFamily,
    )
    from pytest_kvcache.workloads.scenarios import Service

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
        self._storage = RankStorage(plan, rank, host, self.secrets)
        self._clock_fault: str | None = None
        self._probe_fault: str | None = None
        self._pauses = PauseWatch()
        self._surroundings = SurroundingsWatch()
        self._family: WorkloadFamily | None = None
        self._workload: Workload | None = None
        self._null_ops_per_s: float | None = None
        self._memory_ops_per_s: float | None = None
        self._choice = EngineChoice(name="inline", reason="nothing was opened")
        self._filesystem: FilesystemFacts | None = None
        self._watch: DeviceWatch | None = None
        self._spool: Spool | None = None
        self._tracer: IoTracer | None = None
        self._read_back = ReadBack()
        self._precondition: Precondition | None = None
        self._restart: Restart | None = None
        self._populates = False
        self._payload_used: Payload | None = None
        self._stored_before = 0  # versions of blocks, when the run began
        self._population_s = 0.0
        self._populated_blocks = 0
        self._admitted_blocks = (0, 0)  # by the population: asked for, found
        self._cpu_s = 0.0
        self._io: IoCounters | None = None
        self.start_ns = 0
        self.stopped_ns = 0
        self.drained_ns = 0
        self.recorder = Recorder(
            service=None if plan.service is None else _service_book(plan.service),
            worth=_worth_book(plan.recompute_tokens_per_s),
        )
        self.sharing = RankSharing(plan, rank) if plan.shares else None
        self.stack = _empty_stack(plan) if plan.tiers else None
        self.index = self._empty_index() if self.stack is None else self.stack.indices[-1]
        self.engine: Engine | None = None

    def set_up(self, registry: Registry) -> None:
        """Open the storage. Raises StorageError, or PreflightError for a preload."""
        plan = self.plan
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._surroundings.find_preloads()
        if not plan.allows("PRELOADED"):
            check_preloads(self._surroundings.preloads)
        if plan.drop_caches:
            check_may_drop()
        self._storage.open(registry.backend(plan.backend))
        self._choice = choose_engine(plan.io_engine, self._situation(self._storage.backend))
        if plan.traits.kernel_counts:
            filesystem = probe_filesystem(plan.cache_dir, self.host)
            self._filesystem = filesystem
            if not plan.layout.local_index(self.rank):
                assert self._storage.directory is not None  # what the kernel counts is in files
                self._watch = DeviceWatch(filesystem.chain, self._storage.directory)
        self._family = registry.workload(plan.scenario, plan.scenarios_of_its_own)

    def _empty_index(self) -> CacheIndex:
        """Of what this rank has stored."""
        plan = self.plan
        if plan.in_buckets:
            return BucketIndex(
                plan.capacity_bytes, page_bytes=plan.page_bytes, block_bytes=plan.object_bytes,
                bucket_blocks=plan.bucket_blocks,
            )  # fmt: skip
        if self.sharing is None:
            return CacheIndex(plan.capacity_bytes, **_index_sizes(plan))
        entry = partial(ContentEntry, self.sharing.origin)
        return CacheIndex(plan.capacity_bytes, **_index_sizes(plan), entry=entry)

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
            CacheIndex(plan.capacity_bytes, **_index_sizes(plan)),
            workload,
            self._payload(),
            recorder,
            generation_s_per_token=0.0,
            discards_findings=True,
        )
        with _undisturbed():
            return operations_per_s(engine, recorder, tick)

    def _payload(self, *, shared: bool = False) -> Payload:
        plan, seed = self.plan, self._payload_seed()
        return make_payload(
            plan.data, seed, plan.chunk_bytes, plan.object_stored_bytes, shared=shared
        )

    def _build_workload(self, context: WorkloadContext) -> Workload:
        assert self._family is not None
        return build_workload(
            self._family,
            context,
            self.plan.phase,
            self.plan.reread_factor,
            stores_beside=self.plan.interference == "with-stores",
        )

    def _make_engine(
        self,
        io: IoEngine,
        cache: CacheIndex | Tiers | SharedCache,
        workload: Workload,
        payload: Payload | None,
        recorder: Recorder,
        *,
        generation_s_per_token: float,
        prefill_tokens_per_s: float | None = None,
        discards_findings: bool = False,
        traced: Traced = untraced,
        lookups: Lookups | None = None,
    ) -> Engine:
        plan = self.plan
        return Engine(
            settings=TransferSettings(
                queue_depth=plan.queue_depth,
                object_bytes=plan.object_bytes,
                stored_bytes=plan.object_stored_bytes,
                transfer_bytes=plan.chunk_bytes,
                sync=self._storage.sync == "data",
                verify=plan.verify,
                discards_findings=discards_findings,
                objects_per_block=plan.objects_per_block,
                parts=plan.unlike_parts,
                most_stores=plan.most_waiting_stores,
                workers=plan.workers,
                shared=isinstance(cache, SharedCache),
                drops_stores=plan.full_queue == "drop",
            ),
            block_tokens=plan.block_tokens,
            generation_s_per_token=generation_s_per_token,
            prefill_tokens_per_s=prefill_tokens_per_s,
            phase=plan.phase,
            io=io,
            cache=cache,
            workload=workload,
            payload=payload,
            recorder=recorder,
            traced=traced,
            lookups=lookups,
            to_first_miss=plan.lookup == "first-miss",
        )

    def _ready_engine(self) -> Engine:
        """The engine of the run; all buffers are touched."""
        plan, backend = self.plan, self._storage.backend
        self._workload = self._build_workload(plan.context(self.rank, self._trace))
        payload = self._payload(shared=plan.shares)
        self._payload_used = payload if plan.traits.stores_data else None
        cache: CacheIndex | Tiers | SharedCache = self.index
        if self.sharing is not None:
            assert isinstance(plan.calls, FileCalls)  # as the plan has made sure
            cache = SharedCache(
                self.index,
                self.sharing.log,
                origin=self.sharing.origin,
                to_first_miss=plan.lookup == "first-miss",
                trusts_heads=not plan.calls.shares_temporary,
            )
        elif self.stack is not None:
            cache = Tiers(stack=self.stack, memories=tuple(self._storage.memories), payload=payload)
        io = make_engine(self._choice.name, backend, self._situation(backend))
        return self._make_engine(
            io,
            cache,
            self._as_issued(self._workload),
            self._payload_used,
            self.recorder,
            generation_s_per_token=plan.generation_s_per_token,
            prefill_tokens_per_s=plan.recompute_tokens_per_s,
            traced=self._traced(),
            lookups=self._lookups(io),
        )

    def _lookups(self, io: IoEngine) -> Lookups | None:
        """What asks the storage for what it has; None: the index knows."""
        plan, backend = self.plan, self._storage.backend
        if not plan.asks_storage:
            return None
        assert isinstance(backend, LooksUp)  # as its traits say
        if not isinstance(io, ThreadsEngine):  # a loop that makes calls itself makes these, too
            return Lookups(backend, 0)
        return Lookups(backend, plan.lookup_threads, io.wake)

    def _traced(self) -> Traced:
        """What notes operations for the I/O trace, if there is to be one."""
        if not self.plan.io_trace:
            return untraced
        try:
            self._spool = Spool(self.host)
        except OSError as error:
            raise StorageError(
                f"{self.host}: the I/O trace can't be kept in {gettempdir()} while the ranks run"
                f" ({error.strerror or error}); name a directory for temporary files (TMPDIR), or"
                " leave out --kv-io-trace"
            ) from error
        self._tracer = IoTracer(self._spool)
        return self._tracer.traced

    @property
    def _trace_fault(self) -> str | None:
        return None if self._spool is None else self._spool.fault

    def io_trace(self, origin_ns: int) -> Iterator[bytes]:
        """The operations of the I/O trace, many at a time; ``origin_ns`` as in ``result``."""
        if self._spool is not None:
            yield from self._spool.chunks(origin_ns)

    def _as_issued(self, workload: Workload) -> Workload:
        """At a declared rate a rank issues its share of the requests; or a fixed number of them."""
        plan = self.plan
        if plan.requests is not None:
            return FixedWork(workload, plan.requests)
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

    def _situation(self, backend: Backend) -> Situation:
        """What the choice of an I/O engine depends on."""
        plan = self.plan
        return Situation(
            host=self.host,
            files=getattr(backend, "in_files", None),
            directory=self._storage.directory,
            depth=plan.queue_depth,
            transfer_bytes=plan.chunk_bytes,
            never_waits=plan.traits.never_waits,
            batch_submits=plan.batch_submits,
            bucket_readers=plan.bucket_readers,
            buckets=getattr(backend, "buckets", None),
        )

    def _payload_seed(self) -> int:
        """Other data on every rank, in every launch; of those that share a store the same.

        Or a storage could deduplicate it, and serve what an earlier run left.
        """
        plan = self.plan
        side = "" if plan.interference is None else f"/{plan.interference}"
        owner = str(self.rank)
        if self.sharing is not None:
            owner = f"shared-{plan.group_of(self.rank)}-{plan.digest}"
        identity = f"{plan.run_id}/{plan.seed}/{plan.trial}/{owner}{side}".encode()
        return int.from_bytes(blake2b(identity, digest_size=8).digest(), "big")

    def make_ready(self) -> None:
        """Build what the run needs and touch its buffers: maybe seconds without a tick."""
        if self.engine is None:
            self.engine = self._ready_engine()

    def precondition(self, tick: Callable[[], bool]) -> None:
        """Overwrite objects in place. Raises StorageError if that fails or does not arrive."""
        self.make_ready()
        assert self.engine is not None
        plan, backend = self.plan, self._storage.backend
        self._precondition = Precondition(
            plan.precondition_bytes, plan.capacity_blocks, self.engine.settings
        )
        self._precondition.run(
            make_engine(self._choice.name, backend, self._situation(backend)),
            self._payload(),
            tick,
            must_arrive=plan.traits.kernel_counts and self._storage.is_durable,
        )

    def populate(self, tick: Callable[[], bool]) -> None:
        """Fill the cache. Raises StorageError with the first failed operation."""
        self.make_ready()
        assert self.engine is not None
        self._populates = True
        began = time.monotonic()
        self.engine.populate(tick, self._filling())
        self._population_s = time.monotonic() - began
        self._populated_blocks = self.index.present_blocks
        fault = self.engine.first_error or self._trace_fault
        if fault is not None:
            self._storage.look_at_the_directory()
            raise StorageError(self._with_its_cause(self.engine.first_error))
        if isinstance(self._workload, ChecksPopulation):
            self._workload.check_population()

    def _filling(self) -> Iterator[Request]:
        """What is stored before the contexts of the users; they are asked for once more for it."""
        plan = self.plan
        if not plan.fill_blocks:
            return iter(())
        contexts = self._build_workload(plan.context(self.rank, self._trace)).population()
        identity = f"{plan.seed}/{plan.trial}/{self.rank}"
        return filling(plan.fill_blocks, contexts, identity, plan.capacity_blocks)

    def shut_down(self) -> None:
        """Forget what a process that ends forgets, and close what it holds open.

        What was stored is known from here on to compare with alone. Raises StorageError where
        there is nothing that could be found again.
        """
        assert self.engine is not None
        backend, settings = self._storage.backend, self.engine.settings
        if not isinstance(backend, NamesObjects):
            raise StorageError(
                f"{self.host}: the backend {self.plan.backend} does not say how the files of its"
                " objects are named, so that a restart can't find them; use --kv-backend=file"
            )
        self.engine.close()
        self.engine.loop.end_population()
        backend.close()
        several = settings.objects_per_block > 1
        parts = range(settings.objects_per_block) if several else (None,)
        stored = {
            object_key_of(entry, part): settings.stored_bytes_of(entry, part)
            for entry in self.index.stored()
            for part in parts
        }
        if not stored:
            raise StorageError(
                "it stored no object before its restart: no context of a user fits into the cache;"
                " raise --kv-storage-capacity-gb, or lower --kv-context-scale"
            )
        self._restart = Restart(
            backend,
            stored,
            threads=None if self.plan.restart_by == "scan" else self.plan.lookup_threads,
            host=self.host,
        )
        gc.collect()
        gc.freeze()  # or the collection before the window would take so long that it begins late

    def drop_caches(self) -> None:
        """The first rank of a host has it forget what it knows of files, when all have closed."""
        if not self.plan.layout.local_index(self.rank):
            drop_caches(self.plan.cache_dir)

    def look_around(self) -> None:
        """While no rank does I/O: what others do to this host's disks, and whether sync syncs.

        From here on the disks are watched. A probe that fails is reported with the result: here
        nobody listens.
        """
        if self._watch is not None:
            self._look_at_the_disks(self._watch)
        self._surroundings.begin()

    def _look_at_the_disks(self, watch: DeviceWatch) -> None:
        watch.look(durable=self._storage.is_durable)
        try:
            if self._storage.sync == "data":
                watch.probe_sync()
        except StorageError as error:
            self._probe_fault = str(error)
        watch.begin()

    def run(self, start_ns: int, tick: Callable[[], bool], active_users: int | None = None) -> None:
        """Ramp, window and drain, from ``start_ns`` on this host's clock.

        So many users are active until ``change_load`` says otherwise; None: all of them.
        """
        assert self.engine is not None
        if active_users is not None:
            self.engine.set_active(LoadChange(start_ns, active_users))
        plan = self.plan
        begin_ns = start_ns + int(plan.ramp_s * 1e9)
        end_ns = None if plan.duration_s is None else begin_ns + int(plan.duration_s * 1e9)
        self.recorder.open_window(Window(begin_ns, end_ns))
        self._admitted_blocks = self.engine.loop.blocks.looked_up
        self._stored_before = self.index.last_version
        with _undisturbed():
            counters, cpu_s = sample_io(), _cpu_s()
            self._pauses.begin(begin_ns - time.monotonic_ns())
            self._surroundings.until(end_ns)
            if self._restart is not None:
                self._run_restart(self._restart, start_ns, self._looking(tick))
            else:
                self.stopped_ns = self.engine.run(
                    start_ns=start_ns, end_ns=end_ns, drain_s=plan.drain_s, tick=self._looking(tick)
                )
                self.start_ns = self.engine.began_ns
                self.drained_ns = time.monotonic_ns()
            self._surroundings.end()
            self._cpu_s = _cpu_s() - cpu_s
            self._io = sample_io().since(counters)
        self._pauses.look()
        self._clock_fault = self._pauses.clock_fault()

    def _run_restart(self, restart: Restart, start_ns: int, tick: Callable[[], bool]) -> None:
        """The window of a phase without requests."""
        restart.run(start_ns, tick)
        self.start_ns = restart.began_ns
        self.stopped_ns = self.drained_ns = restart.done_ns
        self.recorder.histograms["restart"].record(restart.times_ns)

    def change_load(self, change: LoadChange) -> None:
        """From a moment of this host's clock on another number of users is active.

        Raises StalledError if the moment is over, or so near that the loop may sleep through it.
        """
        assert self.engine is not None
        late_ns = time.monotonic_ns() + NOTICE_NS - change.at_ns
        if late_ns > 0:
            raise StalledError(
                f"rank {self.rank} on host {self.host} was to change its load to {change.users}"
                f" users, and heard of it {late_ns / 1e9:.3f} s too late to do it with the others;"
                " look for what kept it from looking around (an overloaded or suspended host, a CPU"
                " quota), or leave out --kv-load-steps"
            )
        self.engine.set_active(change)

    def look_back(self) -> None:
        """When all ranks have drained, and before any of them does anything else."""
        if self._watch is not None:
            self._watch.end()

    def look_again(self) -> None:
        """While no rank does I/O: whether others began on the disks during the run."""
        if self._watch is not None:
            self._watch.look_again(durable=self._storage.is_durable)

    def read_back(self, tick: Callable[[], object]) -> None:
        """Outside every span: read some of what the run has stored, and compare all of it.

        Where nothing is ever read (prefill), only this finds what never arrived. What a restart
        has found is compared with what was stored before it.
        """
        assert self.engine is not None
        if self._restart is not None:
            self._restart.compare()
            return
        if self._payload_used is None or self.plan.verify == "off" or self.engine.first_error:
            return
        self._read_back.examine(
            [entry for entry in self.index.stored() if entry.object_version > self._stored_before],
            backend=self._storage.backend,
            payload=self._payload_used,
            settings=self.engine.settings,
            seed=self._payload_seed(),
            tick=tick,
            lose=self._note_loss,
        )

    def _note_loss(self, entry: BlockEntry) -> None:
        """A block that this rank has stored is gone when nobody stores any more."""
        assert self.sharing is not None
        now_ns = time.monotonic_ns()
        self.sharing.log.note(LOST, entry.key, now_ns, now_ns)

    def _looking(self, tick: Callable[[], bool]) -> Callable[[], bool]:
        """The tick, by which this rank also sees whether it was paused, and what held it up."""

        def look_and_tick() -> bool:
            self._pauses.look()
            self._surroundings.look()
            return tick()

        return look_and_tick

    def progress(self) -> dict[str, Any]:
        """Counts for the people who wait; since the start of the run, not of its window."""
        if self.engine is None:
            return {"error": None}
        counters = self.engine.counters
        error = self._first_error or self._trace_fault
        (prompt_blocks, hit_blocks), before = (
            self.engine.loop.blocks.looked_up, self._admitted_blocks,
        )  # fmt: skip
        space = self._storage.space
        free = {} if space is None else {"free_bytes": space.available_bytes}
        return {
            **free,
            "error": error and self.secrets.mask(error),
            "read_bytes": counters.requested_read_bytes,
            "write_bytes": counters.requested_write_bytes
            if self._populates
            else self._preconditioned_bytes,
            "completed": counters.completed if self._restart is None else self._restart.calls,
            "prompt_blocks": prompt_blocks - before[0],
            "hit_blocks": hit_blocks - before[1],
            "cached_bytes": self.index.present_bytes,
            "waiting_s": self._longest_wait_ns / 1e9,
            "recent": self.recorder.take_recent(time.monotonic_ns()),
        }

    @property
    def _first_error(self) -> str | None:
        """Of the engine, or of the restart that came after it."""
        assert self.engine is not None
        restart = None if self._restart is None else self._restart.error
        return self.engine.first_error or restart

    @property
    def _longest_wait_ns(self) -> int:
        assert self.engine is not None
        if self._restart is not None:
            return self._restart.longest_wait_ns
        return self.engine.longest_wait_ns()

    @property
    def _preconditioned_bytes(self) -> int:
        return 0 if self._precondition is None else self._precondition.written_bytes

    @property
    def window_begin_ns(self) -> int:
        """The window's begin on this host's clock."""
        return self.recorder.ledger.origin_ns

    def dealt_moments(self, origin_ns: int) -> dict[int, bytes]:
        """Rank → what it is to join of what this one noted of the shared store."""
        assert self.sharing is not None
        return self.sharing.dealt(origin_ns)

    def join_moments(self, parts: Sequence[bytes], clock_error_ns: int) -> None:
        """Join what the others have dealt to this rank, by clocks that may differ by so much."""
        assert self.sharing is not None
        self.sharing.join(parts, self.recorder.histograms["visibility"], clock_error_ns)

    def close(self) -> str | None:
        """End the threads, give the storage back; returns what went wrong in cleaning up."""
        if self.engine is not None:
            self.engine.close()
            self.recorder.finish()
        if self._spool is not None and self._tracer is not None:
            self._tracer.finish()
            self._spool.finish()
        self._storage.look_at_the_directory()
        return self._storage.clean_up()

    def leave(self) -> None:
        """After all ranks have closed: the first one of a host removes the run's directory.

        Raises StorageError, with what went wrong before that: it may be the reason.
        """
        if self._spool is not None:
            self._spool.close()
        try:
            self._storage.leave()
        except StorageError as error:
            before = None if self.engine is None else self.engine.first_error
            cause = self._with_its_cause(before)
            raise StorageError(f"{cause}; {error}" if cause else str(error)) from error

    def _with_its_cause(self, error: str | None) -> str | None:
        """The first failed operation, and why none of them can be trusted."""
        faults = (
            error,
            self._trace_fault,
            self._probe_fault,
            self._storage.directory_fault,
            self._clock_fault,
        )
        return self.secrets.mask("; ".join(filter(None, faults))) or None

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
            precondition_bytes=self._preconditioned_bytes,
            precondition_s=0.0 if self._precondition is None else self._precondition.span_s,
            precondition_arrived_bytes=None
            if self._precondition is None
            else self._precondition.arrived_bytes,
            average_queue_depth=average_queue_depth(
                self.recorder, self.window_begin_ns, self.drained_ns
            ),
            longest_pause_s=self._pauses.longest_s,
            stalls=self.recorder.found_stalls(window_ns, self._pauses.spans_ns),
            cpu_s=self._cpu_s,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            cores=len(os.sched_getaffinity(0)),
            null_ops_per_s=self._null_ops_per_s,
            memory_ops_per_s=self._memory_ops_per_s,
            cleanup_error=cleanup_error,
            io_trace=self._traced_facts(),
            surroundings=self._surroundings.facts(),
            load_steps=self.recorder.steps.counted(self.window_begin_ns),
            **self._service_counts(window_ns, slice_ns),
            **self._worth_counts(),
            **window_sums(self.recorder.ledger, window_ns, slice_ns),
            **lookup_counts(self.recorder, asks=self.plan.asks_storage),
            **restart_counts(self._restart),
            **self._operation_counts(),
            **self._io_facts(),
        )

    def _traced_facts(self) -> IoTraceFacts | None:
        """What the I/O trace took of this host while it was measured."""
        spool = self._spool
        if spool is None:
            return None
        return IoTraceFacts(
            operations=spool.operations,
            spooled_bytes=spool.spooled_bytes,
            directory=spool.directory,
            on_measured_filesystem=self._storage.is_on(spool.device),
        )

    def _service_counts(self, window_ns: int, slice_ns: int) -> dict[str, Any]:
        """What was answered within its objective; not known where there are none."""
        if self.recorder.service is None:
            return {"service_classes": (), "good_in_window": None}
        classes = self.recorder.service.counted(window_ns, slice_ns)
        good = sum(each.good_in_window for each in classes)
        return {"service_classes": classes, "good_in_window": good}

    def _worth_counts(self) -> dict[str, Any]:
        """Which loads paid; not known where nobody says what recomputing takes."""
        worth = self.recorder.worth
        if worth is None:
            return {"load_lengths": (), "loaded_tokens": None, "useful_tokens": None}
        return {
            "load_lengths": worth.counted(),
            "loaded_tokens": worth.loaded_tokens,
            "useful_tokens": worth.useful_tokens,
        }

    def _operation_counts(self) -> dict[str, Any]:
        """What the engine, its log and its index counted."""
        assert self.engine is not None
        loop, counters = self.engine.loop, self.engine.counters
        drops = self.plan.full_queue == "drop"
        lost = None if self.sharing is None else self.sharing.error
        return {
            **counters.counted(),
            "dropped_blocks": counters.dropped_blocks if drops else None,
            "staged_hit_blocks": staged_hits(self.recorder, in_buckets=self.plan.in_buckets),
            **sharing_counts(self.recorder, self.sharing, self._others_objects),
            **recorded(self.recorder),
            **tier_counts(self.plan, self.recorder, loop.blocks.counted()),
            "evictions": self.index.evictions,
            "cached_blocks": self.index.present_blocks,
            "cached_bytes": self.index.present_bytes,
            "checked": loop.checked + self._read_back.checked,
            "corrupt": loop.corrupt + self._read_back.corrupt,
            "read_back": self._read_back.checked,
            "error": self._with_its_cause(self._first_error or self._read_back.error or lost),
        }

    @property
    def _others_objects(self) -> int | None:
        """Verified objects that another rank wrote; None: nothing is verified."""
        assert self.engine is not None
        return None if self.plan.verify == "off" else self.engine.loop.others_objects

    def _io_facts(self) -> dict[str, Any]:
        """How the storage was used, and what the kernel counted meanwhile."""
        assert self.engine is not None
        assert self._io is not None
        facts = self._storage.facts
        return {
            "io_mode": facts.io_mode,
            "io_engine": self._choice.name,
            "io_engine_reason": self._choice.reason,
            "io_engine_asynchronous": self._choice.asynchronous,
            "io_note": facts.io_note and self.secrets.mask(facts.io_note),
            "sync": self._storage.sync,
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


def _service_book(service: Service) -> ServiceBook:
    limits = {
        name: tuple(getattr(each, limit) for limit in LIMITS)
        for name, each in service.classes.items()
    }
    ns_per_byte = 1e9 / (service.load_gib_per_s * GIB)
    return ServiceBook(
        Limits(of_class=limits, ns_per_byte=ns_per_byte, unclassed=service.unclassed)
    )


def _worth_book(recompute_tokens_per_s: float | None) -> WorthBook | None:
    return None if recompute_tokens_per_s is None else WorthBook(recompute_tokens_per_s)


def _index_sizes(plan: Plan) -> dict[str, Any]:
    """What an index of the storage knows of the sizes of objects."""
    return {
        "page_bytes": plan.page_bytes,
        "objects_per_block": plan.objects_per_block,
        "part_bytes": [part.object_bytes for part in plan.unlike_parts],
    }


def _empty_stack(plan: Plan) -> TierStack:
    """The plan's tiers; memory is given in whole pages, the storage pads as its backend wants."""
    tiers = [
        Tier(
            name=name,
            capacity_bytes=capacity_bytes,
            page_bytes=page_bytes,
            objects_per_block=plan.objects_per_block,
        )
        for name, capacity_bytes, page_bytes in (
            *((tier.name, tier.capacity_bytes, PAGE_BYTES) for tier in plan.tiers),
            ("storage", plan.capacity_bytes, plan.page_bytes),
        )
    ]
    return TierStack(tiers, plan.tier_policy, promotes=PHASES[plan.phase].loads)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
