"""The plan of one case: every effective value, nothing that did not run. Pure.

``Options`` are what the user asked for; a ``Plan`` is what is going to happen on every
rank, written as JSON into the run directory and broadcast from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.backends.buffers import Workers, buffer_bytes
from pytest_kvcache.backends.calls import (
    BUCKET_ROOM_BYTES,
    OURS,
    BucketCalls,
    FileCalls,
    SlotCalls,
)
from pytest_kvcache.backends.posix.allocator import slab_count
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.cache.identity import MAX_ORIGINS, MAX_PARTS
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import RankLayout
from pytest_kvcache.models import BlockPart, ModelSpec, block_parts
from pytest_kvcache.options.engines import WHOLE_OBJECT, brought_by
from pytest_kvcache.phases import PHASES
from pytest_kvcache.plan.interference import check_interference
from pytest_kvcache.plan.loadsteps import check_load_steps, schedule_of
from pytest_kvcache.plan.origins import decided_by
from pytest_kvcache.plan.peaksearch import PeakSearch
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.units import MIB, format_bytes, format_count
from pytest_kvcache.workloads.openloop import MAX_ARRIVALS
from pytest_kvcache.workloads.protocol import WorkloadContext
from pytest_kvcache.workloads.scenarios import Dialogues, Service

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.calls import Calls, Lookup, Publish
    from pytest_kvcache.backends.profiles import EngineProfile
    from pytest_kvcache.backends.protocol import Store
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.options.sharing import Sharing
    from pytest_kvcache.phases import RestartBy
    from pytest_kvcache.plan.interference import Interference
    from pytest_kvcache.plan.loadsteps import LoadStep
    from pytest_kvcache.traces.read import Trace

GENERATION_S_PER_TOKEN = {"none": 0.0, "fast": 0.002, "realistic": 0.030}
# What a storage that reduces data can't reduce of each kind of it.
WITHSTANDS = MappingProxyType(
    {
        "normal": "deduplication by 4 KiB and compression within a transfer; not longer windows,"
        " smaller blocks or a search for what is similar",
        "strict": "deduplication by 512 bytes and more, and compression with any window",
    }
)
_MIN_DRAIN_S = 30.0
# Of a rank's memory, without pages that ranks share: interpreter, numpy, MPI and histograms
# (31 MiB were measured), logs, and the 32 MiB that calibration copies back and forth.
_RANK_BYTES = 96 * MIB
_WAITING_BUCKETS = 4  # of 256 MiB, beside one that is written: Mooncake has 1.25 GiB for them
_ARENA_BYTES = 32 * MIB  # of these, calibration's; more only for longer transfers
# Of a block: its key, its place in the index and in the users' contexts (430 to 510 bytes
# were measured).
_BLOCK_MEMORY_BYTES = 640
# Of each further object of a block: its place in the slabs (210 bytes were measured) and,
# while it is asked for, in the queue.
_OBJECT_MEMORY_BYTES = 640
# Of an object that a restart finds again: its key and its size, as stored and as found, and the
# time of its call (414 bytes were measured).
_FOUND_MEMORY_BYTES = 480
# Of a rank with a tier on a device: importing torch took 480 MiB; as much again for the driver.
_DEVICE_MEMORY_BYTES = 1024 * MIB

# What a plan says of one run of it: neither an option decides it, nor does it change what
# is measured.
_OF_THE_RUN = frozenset(
    {"run_id", "version", "trial", "need_blocks", "origins", "label", "search_step"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlan:
    """The trace of a replay; ``digest`` is of its columns after ``limit``.

    ``time_unit`` is what its timestamps were taken to be in, ``span_s`` how long it was
    recorded (``date`` and ``none`` are no units), ``ids`` where equal blocks come from: ids of
    ``prefix`` or of ``content``, lengths of ``cached`` prefixes, keys of ``objects``, or ``none``:
    no reuse.
    ``left_out`` requests of the file are not replayed; ``tokens_by`` counted the tokens of
    texts, empty where the file has their numbers. ``overwrites``, of an I/O trace, store an
    object that is there, which is deleted first; such a trace tells of no prompts, and its hit
    ratios are None.
    """

    name: str
    format: str
    digest: str
    requests: int
    time_unit: str
    span_s: float
    ids: str
    left_out: int
    tokens_by: str
    speedup: float
    cycles: int
    limit: int | None
    one_rank_hit_ratio: float | None
    partitioned_hit_ratio: float | None
    overwrites: int | None

    @property
    def shares_nothing(self) -> bool:
        """Whether no prompt has what another one had: a later cycle would."""
        return self.ids == "none" and self.cycles == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One case, ready to be launched; ``trial`` counts from 0.

    ``duration_s`` None: until the trace ends, or ``requests`` of each rank are done, where that
    is given. ``capacity_blocks`` is per rank.
    ``object_layout`` is ``block`` (a block is one object), ``layer`` (one per layer) or ``kv`` (one
    of its keys, one of its values);
    ``layout`` is where the ranks are.
    ``traits`` are what the backend is like, ``backend_options`` the settings that were given
    for it, with a mask in the place of what is secret, ``store`` which of its ways to keep
    objects is taken, None where there is no choice.
    ``need_blocks`` is what one rank would store if nothing were evicted. ``cores`` is
    ``split`` (ranks of a host divide its cores) or ``shared`` (as the launcher bound them).
    ``io_engine`` is what was asked for: which one that is on a rank, its result says.
    ``transfer_size`` is the largest transfer asked for, None: one call per object.
    ``request_rate`` is that of all ranks together, per second; None, and no ``arrival``:
    a closed loop, or the times of a trace. ``tiers`` lie in front of the storage, fastest
    first, and fill by ``tier_policy``. ``load_steps`` are the active users of each rank in
    equally long parts of the window; none: all of them, all the time. Every block that a
    request stores is read again ``reread_factor`` times. ``most_stores`` is how many objects of a
    rank wait to be stored before its users wait, None: what the queue depth gives; ``closed``: by
    the rules of closed MLPerf submissions. ``label`` is what a test calls its case.
    ``io_trace``: every operation on the storage is noted, which costs something.
    ``own_block_bytes``: blocks have sizes of their own, and that is the largest; None: all are as
    large as the model says.
    ``dialogues`` are how the users of a synthetic scenario talk; None elsewhere.
    Each rank writes ``precondition_bytes`` before it fills the cache, of which at least
    ``fill_blocks`` are taken when the run begins, if need be by blocks that nobody asks for.
    ``service`` are the objectives of requests with --kv-performance-profile=latency.
    ``prefill_tokens_per_s`` is what one GPU computes, None: computing takes no time;
    ``cost_per_hour`` and ``power_w`` are those of the storage of all ranks. None: nobody says.
    ``search_mode`` is how the number of users is searched for, None: it is given; ``search`` are
    the objectives that the answer must keep, of a step those that it is judged by.
    ``search_step``: the case tries one number of them.
    ``restart_by`` is how an index is made usable again by a phase that restarts, None elsewhere;
    ``drop_caches``: the hosts forget what they know of files before that.
    ``engine`` is whose calls store and load objects, where it is one's; ``lookup`` who knows what
    is stored, ``publish`` how a file gets its name; ``request_depth`` objects of one request are
    under way at the same time, None: all. ``sharing`` is who stores in one place;
    ``full_queue`` says whether users ``wait`` for a full store queue, or their stores ``drop``.
    ``interference``: loads of stored contexts, the same in a launch ``with-stores`` beside them and
    in one ``without-stores``; None: nobody asked for that.
    """

    version: str
    run_id: str
    scenario: str
    model: ModelSpec
    layout: RankLayout
    trial: int
    seed: int
    users: int
    load_steps: tuple[int, ...]
    duration_s: float | None
    ramp_s: float
    requests: int | None
    context_scale: float
    block_tokens: int
    tensor_parallel: int
    generation_mode: str
    phase: str
    request_rate: float | None
    arrival: str | None
    backend: str
    traits: BackendTraits
    backend_options: Mapping[str, str]
    object_layout: str
    store: Store | None
    io: str
    sync: str
    cache_dir: str
    capacity_blocks: int
    need_blocks: int
    queue_depth: int
    io_engine: str
    transfer_size: int | None
    cores: str
    verify: str
    data: str
    reread_factor: int
    keep: bool
    deadline_s: float
    plugins: tuple[str, ...]
    trace: TracePlan | None
    tiers: tuple[MemoryTier, ...] = ()
    tier_policy: TierPolicy = "write-through"
    most_stores: int | None = None
    closed: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    io_trace: bool = False
    own_block_bytes: int | None = None
    dialogues: Dialogues | None = None
    service: Service | None = None
    precondition_bytes: int = 0
    fill_blocks: int = 0
    prefill_tokens_per_s: float | None = None
    cost_per_hour: float | None = None
    power_w: float | None = None
    search: tuple[str, ...] = ()
    search_step: bool = False
    search_mode: str | None = None
    engine: str | None = None
    lookup: Lookup = "memory"
    publish: Publish = "in-place"
    request_depth: int | None = None
    sharing: Sharing = "rank"
    full_queue: str = "wait"
    interference: Interference | None = None
    restart_by: RestartBy | None = None
    drop_caches: bool = False

    def __post_init__(self) -> None:
        if not os.path.isabs(self.cache_dir):  # noqa: PTH117  as text, whatever is there
            raise OptionError(
                f"cache_dir is {self.cache_dir!r}; it must be an absolute path, for ranks have"
                " working directories of their own"
            )
        if self.capacity_blocks < 1:
            block = format_bytes(self.stored_bytes)
            raise OptionError(
                f"the storage capacity per rank holds no block of {block};"
                " raise --kv-storage-capacity-gb, or lower --kv-block-tokens"
            )
        if self.objects_per_block > MAX_PARTS:
            raise OptionError(
                f"--kv-layout is layer and {self.model.name} has {self.objects_per_block} layers; a"
                f" block can be at most {MAX_PARTS} objects, use --kv-layout=block"
            )
        self._check_tiers()
        self._check_unlike_parts()
        self._check_parts()
        self._check_arrivals()
        self._check_rereads()
        self._check_requests()
        self._check_precondition()
        self._check_fill()
        self._check_slots()
        self._check_buckets()
        self._check_sharing()
        self._check_full_queue()
        self._check_restart()
        check_load_steps(self)
        check_interference(self)

    def _check_tiers(self) -> None:
        names = [tier.name for tier in self.tiers]
        if names not in ([], ["cpu"], ["gpu"], ["gpu", "cpu"]):
            raise OptionError(f"tiers are {', '.join(names)}; they must be gpu, cpu or gpu, cpu")
        for tier in self.tiers:
            if tier.capacity_bytes < self.stored_bytes:
                raise OptionError(
                    f"{tier.flag} is {format_bytes(tier.capacity_bytes)} per rank, which holds no"
                    f" block of {format_bytes(self.stored_bytes)}; raise it, or lower"
                    " --kv-block-tokens"
                )

    def _check_unlike_parts(self) -> None:
        """What takes all objects of a block for equal, or reads a block whole, can't have others.

        Layers with a window or a state are read of the last blocks of a prefix alone.
        """
        if not self.unlike_parts:
            return
        kinds = ", ".join(dict.fromkeys(group.kind for group in self.model.layer_groups))
        why = f"{self.model.name} has groups of layers ({kinds}) that are stored and read apart"
        if self.model.keeps_all:
            why = f"{self.model.name} has keys and values of two sizes, and --kv-layout is kv"
        if self.tiers:
            raise OptionError(
                f"{self.tiers[0].flag} is {format_bytes(self.tiers[0].capacity_bytes)}; {why},"
                " which memory tiers can't do yet, so leave it out"
            )
        if len(set(self._stored_sizes)) == 1:
            return
        if self.store == "slab":
            raise OptionError(
                f"--kv-store is slab; {why}, in objects of several sizes, and a slab has one; use"
                " --kv-store=file"
            )
        if self.traits.bounded_by == "memory":
            raise OptionError(
                f"--kv-backend is {self.backend}; {why}, in objects of several sizes, and it keeps"
                " as much memory for each; use --kv-backend=file or null"
            )

    def _check_parts(self) -> None:
        """A backend that takes whole objects must take those of this plan."""
        traits = self.traits
        sizes = self._stored_sizes
        size = min(sizes) if min(sizes) < traits.smallest_part_bytes else max(sizes)
        if traits.unit != "object":
            return
        most = traits.largest_part_bytes
        if size < traits.smallest_part_bytes:
            limit, fix = f"at least {traits.smallest_part_bytes}", "raise --kv-block-tokens"
            fix += "" if self.object_layout == "block" else " or use --kv-layout=block"
        elif most is not None and size > most:
            limit, fix = f"at most {most}", "lower --kv-block-tokens"
            fix += "" if self.object_layout == "layer" else " or use --kv-layout=layer"
        else:
            return
        raise OptionError(
            f"--kv-backend is {self.backend}, which moves whole objects of {limit} bytes, and one"
            f" of {self.model.name} has {size} bytes; {fix}"
        )

    def _check_fill(self) -> None:
        """What nobody asks for lies in whole blocks of one size, on a storage by itself."""
        if not self.fill_blocks:
            return
        shown = (
            f"--kv-fill is given, for {self.fill_blocks:,} of the {self.capacity_blocks:,} blocks"
            " of a rank"
        )
        if not self.traits.is_storage:
            raise OptionError(
                f"{shown}, and --kv-backend={self.backend} is no storage that could be filled;"
                " leave it out or use --kv-backend=file"
            )
        if self.tiers:
            raise OptionError(
                f"{shown}, and {self.tiers[0].flag} puts a tier in front, which can't be aged yet;"
                " leave one of them out"
            )
        if self.own_block_bytes is not None:
            raise OptionError(
                f"{shown}, and the blocks of {self.scenario} have sizes of their own; leave one of"
                " them out"
            )

    def _check_slots(self) -> None:
        """All slots of a file are as large as the largest object."""
        differ = self.own_block_bytes is not None or len(set(self._stored_sizes)) > 1
        kept = {SlotCalls: "keeps objects in slots", BucketCalls: "packs objects into buckets, all"}
        if not isinstance(self.calls, FileCalls | None) and differ:
            raise OptionError(
                f"--kv-engine is {self.engine}, which {kept[type(self.calls)]} of one size, and"
                f" {self.scenario} with {self.model.name} has objects of several; leave the engine"
                " out, or name one with a file per object"
            )

    def _check_buckets(self) -> None:
        """What is packed into buckets goes with them, and is read of one storage alone."""
        if not self.in_buckets:
            return
        told = f"--kv-engine is {self.engine}, which packs objects into buckets"
        bucket = self.bucket_blocks * self.stored_bytes
        if self.capacity_blocks < self.bucket_blocks:
            takes = format_bytes(self.bucket_blocks * self.disk_bytes_per_block)
            raise OptionError(
                f"{told} of {format_bytes(bucket)}, each {takes} with the table beside it, and the"
                f" storage capacity per rank holds {self.capacity_blocks:,} of the"
                f" {format_count(self.bucket_blocks, 'block')} of one; raise"
                " --kv-storage-capacity-gb"
            )
        retrieves = self.dialogues is not None and self.dialogues.retrieval is not None
        why = None
        if self.objects_per_block > 1:
            why = f"a block of {self.model.name} is {self.objects_per_block} objects"
        elif self.tiers:
            why = f"{self.tiers[0].flag} puts a memory tier in front"
        elif retrieves:
            why = f"users of {self.scenario} read documents beside their prefixes"
        elif self.replays_operations:
            why = f"{self.scenario} deletes objects one by one"
        elif self.reread_factor:
            why = f"--kv-reread-factor is {self.reread_factor}"
        if why is not None:
            raise OptionError(f"{told}, and {why}, which can't go together yet; leave one out")

    def _check_full_queue(self) -> None:
        """Stores that others depend on are not dropped."""
        if self.full_queue == "drop" and (self.replays_operations or self.own_block_bytes):
            raise OptionError(
                f"--kv-full-queue is drop, and the requests of {self.scenario} read again what they"
                " stored, whatever became of it; leave one of them out"
            )

    def _check_sharing(self) -> None:
        """Blocks of a shared store have names that follow from their content, a file each."""
        if not self.shares:
            return
        told = f"--kv-sharing is {self.sharing}"
        retrieves = self.dialogues is not None and self.dialogues.retrieval is not None
        why = None
        if not self.needs_directory:
            why = f"--kv-backend is {self.backend}, which keeps nothing in a directory"
        elif self.unlike_parts:
            why = f"{self.model.name} stores several objects per block"
        elif self.own_block_bytes is not None or self.replays_operations:
            why = f"{self.scenario} has objects that no other rank has"
        elif retrieves:
            why = f"users of {self.scenario} read documents beside their prefixes"
        elif not self.asks_storage or self.publish == "in-place":
            why = f"lookup is {self.lookup} and publish {self.publish}"
        elif self.np > MAX_ORIGINS:
            why = f"there are {self.np:,} ranks, of which a head can name {MAX_ORIGINS:,}"
        if why is not None:
            raise OptionError(f"{told}, and {why}, which can't be shared yet; leave one out")

    @property
    def shares(self) -> bool:
        """Whether several ranks store in one place, or would if there were several."""
        return self.sharing != "rank"

    @property
    def shares_between_hosts(self) -> bool:
        """Whether ranks of one host store where those of another one look."""
        return self.sharing == "run" and len(self.layout.hosts) > 1

    def group_of(self, rank: int) -> int:
        """The number of the store that a rank shares."""
        return 0 if self.sharing == "run" else self._hosts.index(self.layout.host_of(rank))

    def sharers_of(self, rank: int) -> tuple[int, ...]:
        """The ranks that store in one place with a rank, itself included."""
        own = self.group_of(rank)
        return tuple(each for each in range(self.np) if self.group_of(each) == own)

    @property
    def _hosts(self) -> list[str]:
        return [host.name for host in self.layout.hosts]

    def _check_restart(self) -> None:
        """What restarts has a way to, and no time: it is over when it is done."""
        if self.restarts != (self.restart_by is not None):
            raise OptionError(
                f"restart_by is {self.restart_by!r} and phase is {self.phase}; a restart has a way"
                " to find objects again, and no other phase has one"
            )
        if self.drop_caches and not self.restarts:
            raise OptionError(
                f"--kv-drop-caches is given, and --kv-phase is {self.phase}; only a restart begins"
                " with caches that were dropped, so leave it out"
            )
        if self.restarts and (self.duration_s is not None or self.ramp_s or self.tiers):
            raise OptionError(
                f"--kv-phase is {self.phase}, with a duration, a ramp or memory tiers; it has none"
                " of them, leave them out"
            )
        if self.restarts and (self.store == "slab" or not isinstance(self.calls, FileCalls | None)):
            raise OptionError(
                f"--kv-phase is {self.phase}, which finds objects by the names of their files, and"
                f" those of this plan have none (store {self.store}, engine {self.engine}); use"
                " --kv-store=file"
            )

    def _check_arrivals(self) -> None:
        rate = self.request_rate
        if (rate is None) != (self.arrival is None):
            raise OptionError(f"arrival is {self.arrival!r}; it must go with a request_rate")
        if rate is None:
            return
        if self.trace is not None:
            raise OptionError(
                f"--kv-request-rate is {rate:g}; a trace has times of its own, so leave it out and"
                " use --kv-trace-speedup"
            )
        arrivals = rate / self.np * (self.ramp_s + (self.duration_s or 0.0))
        if arrivals > MAX_ARRIVALS:
            raise OptionError(
                f"--kv-request-rate is {rate:g}, which makes {arrivals:.3g} requests of a rank in"
                f" ramp and window; it must be at most {MAX_ARRIVALS:,}, so lower it, use more"
                " ranks, or shorten --kv-duration"
            )

    def _check_requests(self) -> None:
        ends_itself = self.trace is None and self.request_rate is None and not self.load_steps
        if self.requests is not None and not (
            ends_itself and self.duration_s is None and not self.ramp_s
        ):
            raise OptionError(
                f"--kv-requests is {self.requests}; it can't go with a trace, a duration, a ramp, a"
                " request rate or load steps, leave them out"
            )

    def _check_rereads(self) -> None:
        if self.reread_factor and not PHASES[self.phase].is_whole:
            kind = "reads" if PHASES[self.phase].stores else "stores"
            kind = "reads and stores" if self.restarts else kind
            raise OptionError(
                f"--kv-reread-factor is {self.reread_factor}, which reads what was stored, and"
                f" --kv-phase={self.phase} {kind} nothing; leave one of them out"
            )

    def _check_precondition(self) -> None:
        """What it writes must come to a storage."""
        shown = f"--kv-precondition is {format_bytes(self.precondition_bytes)}"
        if self.precondition_bytes and not self.traits.is_storage:
            raise OptionError(
                f"{shown}, and --kv-backend={self.backend} is no storage that it could be written"
                " to; leave it out or use --kv-backend=file"
            )
        if self.precondition_bytes and self.io == "buffered" and self.sync == "none":
            raise OptionError(
                f"{shown}, which must reach the storage, and --kv-io is buffered without a sync;"
                " use --kv-io=direct or --kv-sync=data"
            )

    @property
    def np(self) -> int:
        """Ranks that do I/O."""
        return self.layout.np

    @property
    def world_size(self) -> int:
        """Processes under the launcher: the ranks and the coordinator."""
        return self.np + 1

    @property
    def case(self) -> str:
        """The name that makes cases of different runs comparable."""
        return case_name(self.scenario, self.model, self.layout, self.label)

    @property
    def block_bytes(self) -> int:
        """Logical bytes of a block on one rank, of the largest one where they differ."""
        if self.own_block_bytes is not None:
            return self.own_block_bytes
        return self.model.block_bytes(self.block_tokens, self.tensor_parallel)

    @property
    def parts(self) -> tuple[BlockPart, ...]:
        """The objects that a block is stored as: what a group of layers, or one, keeps of it."""
        return block_parts(
            self.model, self.object_layout, self.block_tokens, self.tensor_parallel, self.page_bytes
        )

    @property
    def objects_per_block(self) -> int:
        """How many objects a block is stored as."""
        return 1 if self.own_block_bytes is not None else len(self.parts)

    @property
    def unlike_parts(self) -> tuple[BlockPart, ...]:
        """The objects of a block where some are not as large, or not read for every block."""
        if self.own_block_bytes is not None:
            return ()
        parts = self.parts
        alike = self.model.keeps_all and len({part.object_bytes for part in parts}) == 1
        return () if alike else parts

    @property
    def object_bytes(self) -> int:
        """Logical bytes of the largest object of a block, which most often is like all others."""
        if self.own_block_bytes is not None:
            return self.own_block_bytes
        return max(part.object_bytes for part in self.parts)

    @property
    def object_stored_bytes(self) -> int:
        """Its bytes as they are transferred: in whole pages, or as the backend wants."""
        return max(self._stored_sizes)

    @property
    def _stored_sizes(self) -> list[int]:
        if self.own_block_bytes is not None:
            return [padded(self.own_block_bytes, self.traits)]
        return [part.stored_bytes for part in self.parts]

    @property
    def page_bytes(self) -> int:
        """What every object is padded to on the storage, and every transfer a multiple of."""
        return unit_bytes(self.traits)

    @property
    def stored_bytes(self) -> int:
        """What a block takes on the storage: all its objects, each padded."""
        return sum(self._stored_sizes)

    @property
    def profile(self) -> EngineProfile | None:
        """That of the engine whose calls are made."""
        return None if self.engine is None else PROFILES[self.engine]

    @property
    def changed(self) -> tuple[str, ...]:
        """The options by which the plan departs from its engine's profile."""
        brought = brought_by(self.engine)
        has = {
            "block_tokens": self.block_tokens,
            "io": self.io,
            "layout": self.object_layout,
            "queue_depth": self.queue_depth,
            "transfer_size": self.transfer_size or WHOLE_OBJECT,
            "lookup": self.lookup,
            "request_depth": self.request_depth,
            "publish": self.publish,
            "restart_by": self.restart_by or brought.get("restart_by"),
        }
        return tuple(name for name, value in has.items() if brought.get(name, value) != value)

    @property
    def calls(self) -> Calls | None:
        """What moves whole objects; None: transfers, in our own way."""
        if self.profile is None and (self.lookup, self.publish) == ("memory", "in-place"):
            return None
        ours = replace(OURS, before_store=("access",)) if self.shares else OURS
        calls = ours if self.profile is None else self.profile.calls
        if not isinstance(calls, FileCalls):
            return calls
        calls = replace(calls, publish=self.publish)
        size = self.transfer_size
        return calls if size is None else replace(calls, write_bytes=size, read_bytes=size)

    @property
    def batch_submits(self) -> int | None:
        """Files of a batch that each io_submit(2) begins to move; None: there are no batches."""
        return self.calls.batch_submits if isinstance(self.calls, FileCalls) else None

    @property
    def in_buckets(self) -> bool:
        """Whether blocks are packed into buckets, which are written and displaced whole."""
        return isinstance(self.calls, BucketCalls)

    @property
    def never_direct(self) -> bool:
        """Whether the engine's objects lie so that whole pages can't be moved."""
        return self.in_buckets or (isinstance(self.calls, SlotCalls) and bool(self.calls.header))

    @property
    def bucket_blocks(self) -> int:
        """How many blocks a bucket has; 0: there are none."""
        calls = self.calls
        return calls.blocks(self.object_stored_bytes) if isinstance(calls, BucketCalls) else 0

    @property
    def bucket_readers(self) -> int | None:
        """How many requests are loaded from buckets at a time; None: there are none."""
        return self.calls.readers if isinstance(self.calls, BucketCalls) else None

    @property
    def most_waiting_stores(self) -> int | None:
        """How many objects wait to be stored before users wait; None: as the queue depth gives."""
        if self.in_buckets:
            return _WAITING_BUCKETS * self.bucket_blocks
        return self.most_stores

    @property
    def workers(self) -> Workers | None:
        """How many objects are under way, where it is so many of each kind or of a request."""
        if self.profile is None:
            if self.calls is None and self.request_depth is None:
                return None
            return Workers.of_all(self.queue_depth, self.request_depth)
        found = self.profile
        if self.in_buckets:
            batches = Workers.of_batches(self.bucket_blocks, None)
            readers = self.bucket_readers or 1
            return replace(batches, lanes=1, read_batches=readers, packs=True)
        if self.batch_submits is not None:
            return Workers.of_batches(self.queue_depth // 2, self.request_depth)
        if found.shares_workers or self.queue_depth != found.depth:
            return Workers.of_all(self.queue_depth, self.request_depth, tiles=found.tiles)
        return Workers(
            readers=found.readers, writers=found.writers, lanes=self.request_depth,
            tiles=found.tiles,
        )  # fmt: skip

    @property
    def lookup_threads(self) -> int:
        """How many threads ask for what is stored."""
        return 1 if self.profile is None else self.profile.lookup_threads

    @property
    def most_in_flight(self) -> int:
        """Transfers that can be under way in this phase: of readers and writers apart, its own."""
        workers, phase = self.workers, PHASES[self.phase]
        if self.bucket_readers is not None:
            return min(self.bucket_readers, self.bucket_blocks) * phase.loads + phase.stores
        if workers is None:
            return self.queue_depth
        each = workers.readers * phase.loads + workers.writers * phase.stores
        return min(self.queue_depth, each)

    @property
    def disk_bytes_per_block(self) -> int:
        """What a block takes with what lies before its objects."""
        calls = self.calls
        beside = calls.header_room_bytes if isinstance(calls, SlotCalls) else 0
        if self.in_buckets:
            beside = BUCKET_ROOM_BYTES
        return self.stored_bytes + beside * self.objects_per_block

    @property
    def asks_storage(self) -> bool:
        """Whether what is stored is asked of the storage, before it is loaded."""
        return self.lookup != "memory" and PHASES[self.phase].loads

    @property
    def chunk_bytes(self) -> int:
        """The bytes of the largest transfer."""
        if self.calls is not None:
            return self.object_stored_bytes
        wanted = self.object_stored_bytes if self.transfer_size is None else self.transfer_size
        return _transfer_bytes(self.traits, self.object_stored_bytes, wanted)

    @property
    def capacity_bytes(self) -> int:
        """The hard cap on disk of one rank."""
        return self.capacity_blocks * self.stored_bytes

    @property
    def tier_blocks(self) -> tuple[int, ...]:
        """Blocks that each memory tier of one rank holds."""
        return tuple(tier.capacity_bytes // self.stored_bytes for tier in self.tiers)

    @property
    def room_blocks(self) -> int:
        """Different blocks that one rank holds, wherever: the slowest tier has all, or its part."""
        through = self.tier_policy == "write-through"
        return self.capacity_blocks + (0 if through else sum(self.tier_blocks))

    @property
    def capacity_objects(self) -> int:
        """Objects that one rank stores at the same time at most."""
        return self.capacity_blocks * self.objects_per_block

    @property
    def most_blocks(self) -> int:
        """Blocks that one rank may take room for: all there is in slabs, else what it stores."""
        calls = self.calls
        is_allocated = isinstance(calls, SlotCalls) and calls.allocates
        if self.store == "slab" or is_allocated:
            return self.capacity_blocks
        return min(self.capacity_blocks, self.stored_blocks)

    @property
    def most_inodes(self) -> int:
        """Files and directories that one rank makes for its objects, at most."""
        calls, objects = self.calls, self.most_blocks * self.objects_per_block
        if self.store == "slab" or isinstance(calls, SlotCalls):
            return 0
        if self.in_buckets:
            return 2 * -(-objects // self.bucket_blocks)
        directories, below = 0, 1
        for digits in calls.levels if isinstance(calls, FileCalls) else ():
            below *= 16**digits
            directories += min(below, objects)
        return objects + directories

    @property
    def stored_blocks(self) -> int:
        """Different blocks that one rank stores if nothing is evicted, asked for or not."""
        return self.need_blocks + self.fill_blocks

    @property
    def slab_files(self) -> int:
        """Files that one rank keeps open as its slabs."""
        if self.store != "slab":
            return 0
        return slab_count(self.capacity_objects, self.object_stored_bytes)

    @property
    def buffer_bytes(self) -> int:
        """Buffers of one rank; a memory tier has a transfer under way at a time."""
        found = sum(buffer_bytes(1, self.chunk_bytes) for tier in self.tiers if tier.holds_bytes)
        if self.traits.stores_data:
            found += buffer_bytes(self.queue_depth, self.chunk_bytes, self.workers)
        return found

    @property
    def memory_bytes(self) -> int:
        """What one rank takes of its host at most, shared libraries apart: the forecast."""
        held = self.capacity_bytes if self.traits.bounded_by == "memory" else 0
        held += sum(tier.host_bytes for tier in self.tiers)
        if self.traits.is_storage:  # the others are not calibrated
            held += max(0, self.chunk_bytes - _ARENA_BYTES)
        held += sum(_DEVICE_MEMORY_BYTES for tier in self.tiers if tier.is_on_device)
        of_block = _BLOCK_MEMORY_BYTES + _OBJECT_MEMORY_BYTES * (self.objects_per_block - 1)
        rooms = (self.capacity_blocks, *self.tier_blocks)
        known = of_block * sum(min(room, self.stored_blocks) for room in rooms)
        if self.restarts:
            known += _FOUND_MEMORY_BYTES * self.most_blocks * self.objects_per_block
        return _RANK_BYTES + self.buffer_bytes + known + held

    @property
    def needs_directory(self) -> bool:
        """Whether ranks own a directory."""
        return self.traits.directory

    @property
    def secret_options(self) -> frozenset[str]:
        """The settings of the backend that were given and whose values are not in the plan."""
        return self.traits.secrets.intersection(self.backend_options)

    @property
    def open_loop(self) -> bool:
        """Whether requests come at times of their own, however fast the answers are."""
        return self.request_rate is not None or bool(self.trace and self.trace.speedup > 0)

    @property
    def phases_before_window(self) -> tuple[str, ...]:
        """What ranks do together before they run, once the storage is open."""
        before = ["precondition"] * bool(self.precondition_bytes)
        if self.restarts:  # it has no operations that could be calibrated
            return (*before, "population", "shut-down", *["drop-caches"] * self.drop_caches)
        return ("calibration", *before, "population")

    @property
    def restarts(self) -> bool:
        """Whether there are no requests: what was stored before is found again."""
        return PHASES[self.phase].restarts

    @property
    def scenarios_of_its_own(self) -> tuple[str, ...]:
        """The scenario, where the table of distributions has it: a workload file may bring it."""
        return () if self.dialogues is None else (self.scenario,)

    @property
    def most_search_steps(self) -> int:
        """Launches of a search for users at most, before those of its answer; 0: there is none."""
        if self.search_mode is None:
            return 0
        return PeakSearch(most=self.users, predicts=self.search_mode == "predictive").most_steps

    @property
    def launches_per_trial(self) -> int:
        """Two where loads are measured with stores and without."""
        return 1 if self.interference is None else 2

    @property
    def load_schedule(self) -> tuple[LoadStep, ...]:
        """When how many users are active; none: all of them, all the time."""
        return schedule_of(self)

    @property
    def drain_s(self) -> float:
        """How long operations in flight may take after the window."""
        return max(_MIN_DRAIN_S, self.duration_s or 0.0)

    @property
    def generation_s_per_token(self) -> float:
        """Seconds of simulated generation per token."""
        return GENERATION_S_PER_TOKEN[self.generation_mode]

    @property
    def recompute_tokens_per_s(self) -> float | None:
        """What computes a rank's tokens: the GPUs that share its model. None: nobody says."""
        rate = self.prefill_tokens_per_s
        return None if rate is None else rate * self.tensor_parallel

    @property
    def digest(self) -> str:
        """The digest of the whole plan: ranks check that they run the same one."""
        return _digest(self.to_json())

    @property
    def identity(self) -> str:
        """The digest of what is launched, wherever values come from: asked for twice, run once."""
        data = self.to_json()
        del data["origins"], data["trial"]
        return _digest(data)

    @property
    def workload_digest(self) -> str:
        """The digest of what is measured: equal in two runs that may be compared."""
        return _digest(self.workload)

    @property
    def workload(self) -> dict[str, Any]:
        """What is measured: the plan without where, when and under which name."""
        data = {key: value for key, value in self.to_json().items() if key not in _NOT_MEASURED}
        data["traits"] = {k: v for k, v in data["traits"].items() if k != "options"}
        if data["trace"] is not None:
            data["trace"] = {k: v for k, v in data["trace"].items() if k != "name"}
        if data["dialogues"] is not None:
            data["dialogues"] = {k: v for k, v in data["dialogues"].items() if k != "file"}
        data["tiers"] = {tier["name"]: tier for tier in data["tiers"]}
        if self.workers is not None:  # a profile's name stands for what it was in this version
            data["calls"] = f"{self.calls} {self.workers} {self.lookup_threads}"
        data["model"] = {k: v for k, v in data["model"].items() if k not in ("note", "source")}
        return {**data, "np": self.np}

    @property
    def given(self) -> frozenset[str]:
        """The fields that somebody gave an option for."""
        places = ("command line", "ini", "call")
        return frozenset(name for name, place in self.origins.items() if place in places)

    def context(self, rank: int, trace: Trace | None) -> WorkloadContext:
        """What a rank's workload is made from; ``trace`` is the rank's part."""
        return WorkloadContext(
            users=self.users,
            block_tokens=self.block_tokens,
            context_scale=self.context_scale,
            seed=self.seed,
            trial=self.trial,
            rank=rank,
            trace=trace,
            trace_speedup=self.trace.speedup if self.trace else 0.0,
            trace_cycles=self.trace.cycles if self.trace else 1,
            token_bytes=self.model.shard_bytes_per_token(self.tensor_parallel),
            dialogues=self.dialogues,
        )

    @property
    def ends_by_itself(self) -> bool:
        """Whether a rank is done when its work is, which may be more than another's."""
        has_work = self.requests is not None or self.trace is not None or self.restarts
        return self.duration_s is None and has_work

    @property
    def replays_operations(self) -> bool:
        """Whether it replays an I/O trace: once, as it was recorded."""
        return self.trace is not None and self.trace.ids == "objects"

    def allows(self, code: str) -> bool:
        """Whether a trial with this invalidating verdict is reported instead of failed."""
        return "allow_invalid" in self.origins or (
            code == "PRELOADED" and "allow_preload" in self.origins
        )

    def for_trial(self, trial: int) -> Plan:
        """The plan of another launch of the same case."""
        return replace(self, trial=trial)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same plan back."""
        data = {name: getattr(self, name) for name in Plan.__dataclass_fields__}
        data["model"] = self.model.to_json()
        data["layout"] = self.layout.to_json()
        data["traits"] = self.traits.to_json()
        data["backend_options"] = dict(self.backend_options)
        data["trace"] = None if self.trace is None else asdict(self.trace)
        data["tiers"] = [tier.to_json() for tier in self.tiers]
        data["plugins"] = list(self.plugins)
        data["load_steps"] = list(self.load_steps)
        data["search"] = list(self.search)
        data["origins"] = dict(self.origins)
        data["service"] = None if self.service is None else self.service.to_json()
        data["dialogues"] = None if self.dialogues is None else self.dialogues.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of ``to_json``; KeyError where a field is left out."""
        values = {name: data[name] for name in cls.__dataclass_fields__}
        if more := data.keys() - values.keys():
            raise TypeError(f"a plan has no {', '.join(sorted(more))}")
        values["model"] = ModelSpec.from_json(values["model"])
        values["layout"] = RankLayout.from_json(values["layout"])
        values["traits"] = BackendTraits.from_json(values["traits"])
        values["tiers"] = tuple(map(MemoryTier.from_json, data["tiers"]))
        values["plugins"] = tuple(values["plugins"])
        values["load_steps"] = tuple(values["load_steps"])
        values["search"] = tuple(values["search"])
        if values["trace"] is not None:
            values["trace"] = TracePlan(**values["trace"])
        if data["service"] is not None:
            values["service"] = Service.from_json(data["service"])
        if data["dialogues"] is not None:
            values["dialogues"] = Dialogues.from_json(data["dialogues"])
        return cls(**values)


def case_name(scenario: str, model: ModelSpec, layout: RankLayout, label: str | None) -> str:
    """The name of a case, planned or not; ``label`` is a test's own part of it."""
    return f"{scenario}-{model.name}-np{layout.np}" + ("" if label is None else f"-{label}")


DECIDED_BY: Final = decided_by(Plan.__dataclass_fields__)
"""Field of the plan → the option that decides it."""

_NOT_MEASURED: Final = _OF_THE_RUN | {
    name for name, spec in DECIDED_BY.items() if not spec.is_measured
}


def unit_bytes(traits: BackendTraits) -> int:
    """What every transfer is a multiple of: pages are verified, whatever a backend takes."""
    return max(PAGE_BYTES, traits.alignment_bytes)


def padded(size_bytes: int, traits: BackendTraits) -> int:
    """A size in whole units of what the backend transfers."""
    unit = unit_bytes(traits)
    return -(-size_bytes // unit) * unit


def _transfer_bytes(traits: BackendTraits, object_bytes: int, wanted_bytes: int) -> int:
    """The object where it moves whole; else what is wanted, as far as the backend takes it."""
    if traits.unit == "object":
        return object_bytes
    unit = unit_bytes(traits)
    most = wanted_bytes if traits.largest_part_bytes is None else traits.largest_part_bytes
    least = padded(traits.smallest_part_bytes, traits)
    return min(max(min(wanted_bytes, most) // unit * unit, least), object_bytes)


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
