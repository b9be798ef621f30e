"""The plan of one case: every effective value, nothing that did not run. Pure.

``Options`` are what the user asked for; a ``Plan`` is what is going to happen on every
rank, written as JSON into the run directory and broadcast from there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.backends.buffers import buffer_bytes
from pytest_kvcache.backends.posix.allocator import slab_count
from pytest_kvcache.backends.protocol import PAGE_BYTES
from pytest_kvcache.backends.traits import BackendTraits
from pytest_kvcache.cache.identity import MAX_PARTS
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import RankLayout
from pytest_kvcache.launchers.protocol import binds_ranks
from pytest_kvcache.models import ModelSpec
from pytest_kvcache.options.table import WHOLE_OBJECT
from pytest_kvcache.plan.backendrules import shown_settings
from pytest_kvcache.plan.origins import decided_by, origins_of
from pytest_kvcache.units import MIB, format_bytes
from pytest_kvcache.workloads.openloop import DEFAULT_ARRIVAL, MAX_ARRIVALS
from pytest_kvcache.workloads.protocol import Need, WorkloadContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.backends.protocol import Store
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.traces.read import Trace

DEFAULT_BLOCK_TOKENS = 256
# Objects up to this size, as stored, go into slabs. Measured on ext4 (docs/why.md, "Two
# stores"): at 64 KiB a file per object costs 2.5 times an overwrite in a slab, at 1 MiB
# 2.1 times (2.6 with a sync), at 32 MiB nothing; between the two nothing was measured.
SLAB_UP_TO_BYTES = MIB
FREE_SHARE = 0.9  # of the free space that a run may fill
GENERATION_S_PER_TOKEN = {"none": 0.0, "fast": 0.002, "realistic": 0.030}
# What a storage that reduces data can't reduce of each kind of it.
WITHSTANDS = MappingProxyType(
    {
        "normal": "deduplication by 4 KiB and compression within a transfer; not longer windows,"
        " smaller blocks or a search for what is similar",
        "strict": "deduplication by 512 bytes and more, and compression with any window",
    }
)
_SLOWEST_BYTES_PER_S = 20e6  # of a whole host, for the default deadline
_SLOWEST_OBJECTS_PER_S = 200.0  # likewise: made and removed, read or overwritten
_START_S = 120.0  # for the default deadline: start of the ranks and their end
_MIN_DRAIN_S = 30.0
# Of a rank's memory, without pages that ranks share: interpreter, numpy, MPI and histograms
# (31 MiB were measured), logs, and the 32 MiB that calibration copies back and forth.
_RANK_BYTES = 96 * MIB
_ARENA_BYTES = 32 * MIB  # of these, calibration's; more only for longer transfers
# Of a block: its key, its place in the index and in the users' contexts (430 to 510 bytes
# were measured).
_BLOCK_MEMORY_BYTES = 640
# Of each further object of a block: its place in the slabs (210 bytes were measured) and,
# while it is asked for, in the queue.
_OBJECT_MEMORY_BYTES = 640

# What a plan says of one run of it: neither an option decides it, nor does it change what
# is measured.
_OF_THE_RUN = frozenset({"run_id", "version", "trial", "need_blocks", "origins", "label"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlan:
    """The trace of a replay; ``digest`` is of its columns after ``limit``.

    ``time_unit`` is what its timestamps were taken to be in, ``span_s`` how long it was
    recorded, ``ids`` what equal ones mean: equal ``prefix`` or equal ``content``.
    """

    name: str
    format: str
    digest: str
    requests: int
    time_unit: str
    span_s: float
    ids: str
    speedup: float
    cycles: int
    limit: int | None
    one_rank_hit_ratio: float
    dealt_hit_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One case, ready to be launched; ``trial`` counts from 0.

    ``duration_s`` None: until the trace ends. ``capacity_blocks`` is per rank.
    ``object_layout`` is ``block`` (a block is one object) or ``layer`` (one per layer);
    ``layout`` is where the ranks are.
    ``traits`` are what the backend is like, ``backend_options`` the settings that were given
    for it, with a mask in the place of what is secret, ``store`` which of its ways to keep
    objects is taken, None where there is no choice.
    ``need_blocks`` is what one rank would store if nothing were evicted. ``cores`` is
    ``split`` (ranks of a host divide its cores) or ``shared`` (as the launcher bound them).
    ``io_engine`` is what was asked for: which one that is on a rank, its result says.
    ``transfer_size`` is the largest transfer asked for, None: one call per object.
    ``request_rate`` is that of all ranks together, per second; None, and no ``arrival``:
    a closed loop, or the times of a trace. ``label`` is what a test calls its case.
    """

    version: str
    run_id: str
    scenario: str
    model: ModelSpec
    layout: RankLayout
    trial: int
    seed: int
    users: int
    duration_s: float | None
    ramp_s: float
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
    keep: bool
    deadline_s: float
    plugins: tuple[str, ...]
    trace: TracePlan | None
    origins: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None

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
                f"--kv-layout is layer and {self.model.name} has {self.model.layers} layers; a"
                f" block can be at most {MAX_PARTS} objects, use --kv-layout=block"
            )
        self._check_parts()
        self._check_arrivals()

    def _check_parts(self) -> None:
        """A backend that takes whole objects must take those of this plan."""
        traits, size = self.traits, self.object_stored_bytes
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
        """Logical bytes of a block on one rank."""
        return self.model.block_bytes(self.block_tokens, self.tensor_parallel)

    @property
    def objects_per_block(self) -> int:
        """How many objects a block is stored as."""
        return objects_per_block(self.object_layout, self.model)

    @property
    def object_bytes(self) -> int:
        """Logical bytes of an object: a block's, or those of one layer of it."""
        return self.block_bytes // self.objects_per_block

    @property
    def object_stored_bytes(self) -> int:
        """The same padded to whole pages, or to what the backend wants: what is transferred."""
        return _padded(self.object_bytes, self.traits)

    @property
    def stored_bytes(self) -> int:
        """What a block takes on the storage: all its objects, each padded."""
        return self.objects_per_block * self.object_stored_bytes

    @property
    def chunk_bytes(self) -> int:
        """The largest transfer."""
        wanted = self.object_stored_bytes if self.transfer_size is None else self.transfer_size
        return _transfer_bytes(self.traits, self.object_stored_bytes, wanted)

    @property
    def capacity_bytes(self) -> int:
        """The hard cap on disk of one rank."""
        return self.capacity_blocks * self.stored_bytes

    @property
    def capacity_objects(self) -> int:
        """Objects that one rank stores at the same time at most."""
        return self.capacity_blocks * self.objects_per_block

    @property
    def most_blocks(self) -> int:
        """Blocks that one rank may take room for: all there is in slabs, else what it stores."""
        return (
            self.capacity_blocks
            if self.store == "slab"
            else min(self.capacity_blocks, self.need_blocks)
        )

    @property
    def slab_files(self) -> int:
        """Files that one rank keeps open as its slabs."""
        if self.store != "slab":
            return 0
        return slab_count(self.capacity_objects, self.object_stored_bytes)

    @property
    def buffer_bytes(self) -> int:
        """Buffers of one rank."""
        return buffer_bytes(self.queue_depth, self.chunk_bytes) if self.traits.stores_data else 0

    @property
    def memory_bytes(self) -> int:
        """What one rank takes of its host at most, shared libraries apart: the forecast."""
        held = self.capacity_bytes if self.traits.bounded_by == "memory" else 0
        if self.traits.is_storage:  # the others are not calibrated
            held += max(0, self.chunk_bytes - _ARENA_BYTES)
        of_block = _BLOCK_MEMORY_BYTES + _OBJECT_MEMORY_BYTES * (self.objects_per_block - 1)
        known = of_block * min(self.capacity_blocks, self.need_blocks)
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
    def drain_s(self) -> float:
        """How long operations in flight may take after the window."""
        return max(_MIN_DRAIN_S, self.duration_s or 0.0)

    @property
    def generation_s_per_token(self) -> float:
        """Simulated generation."""
        return GENERATION_S_PER_TOKEN[self.generation_mode]

    @property
    def digest(self) -> str:
        """Of the whole plan: ranks check that they run the same one."""
        return _digest(self.to_json())

    @property
    def identity(self) -> str:
        """Of what is launched, wherever its values come from: asked for twice, run once."""
        data = self.to_json()
        del data["origins"], data["trial"]
        return _digest(data)

    @property
    def workload_digest(self) -> str:
        """Of what is measured: equal in two runs that may be compared."""
        return _digest(self.workload)

    @property
    def workload(self) -> dict[str, Any]:
        """What is measured: the plan without where, when and under which name."""
        data = {key: value for key, value in self.to_json().items() if key not in _NOT_MEASURED}
        data["traits"] = {k: v for k, v in data["traits"].items() if k != "options"}
        if data["trace"] is not None:
            data["trace"] = {k: v for k, v in data["trace"].items() if k != "name"}
        return {**data, "np": self.np}

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
        )

    def allows(self, code: str) -> bool:
        """Whether a trial with this invalidating verdict is reported instead of failed."""
        return "allow_invalid" in self.origins or (
            code == "PRELOADED" and "allow_preload" in self.origins
        )

    def for_trial(self, trial: int) -> Plan:
        """The same case, another launch."""
        return replace(self, trial=trial)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same plan back."""
        data = {name: getattr(self, name) for name in Plan.__dataclass_fields__}
        data["model"] = self.model.to_json()
        data["layout"] = self.layout.to_json()
        data["traits"] = self.traits.to_json()
        data["backend_options"] = dict(self.backend_options)
        data["trace"] = None if self.trace is None else asdict(self.trace)
        data["plugins"] = list(self.plugins)
        data["origins"] = dict(self.origins)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of ``to_json``."""
        values = dict(data)
        values["model"] = ModelSpec.from_json(values["model"])
        values["layout"] = RankLayout.from_json(values["layout"])
        values["traits"] = BackendTraits.from_json(values["traits"])
        values["plugins"] = tuple(values["plugins"])
        values["label"] = data["label"]  # null, but there
        if values["trace"] is not None:
            values["trace"] = TracePlan(**values["trace"])
        return cls(**values)


def case_name(scenario: str, model: ModelSpec, layout: RankLayout, label: str | None) -> str:
    """The name of a case, planned or not; ``label`` is a test's own part of it."""
    return f"{scenario}-{model.name}-np{layout.np}" + ("" if label is None else f"-{label}")


DECIDED_BY: Final = decided_by(Plan.__dataclass_fields__)
"""Field of the plan → the option that decides it."""

_NOT_MEASURED: Final = _OF_THE_RUN | {
    name for name, spec in DECIDED_BY.items() if not spec.is_measured
}


def objects_per_block(object_layout: str, model: ModelSpec) -> int:
    """How many objects a block is stored as: 1, or one per layer."""
    return model.layers if object_layout == "layer" else 1


def _unit_bytes(traits: BackendTraits) -> int:
    """What every transfer is a multiple of: pages are verified, whatever a backend takes."""
    return max(PAGE_BYTES, traits.alignment_bytes)


def _padded(size_bytes: int, traits: BackendTraits) -> int:
    unit = _unit_bytes(traits)
    return -(-size_bytes // unit) * unit


def _transfer_bytes(traits: BackendTraits, object_bytes: int, wanted_bytes: int) -> int:
    """The object where it moves whole; else what is wanted, as far as the backend takes it."""
    if traits.unit == "object":
        return object_bytes
    unit = _unit_bytes(traits)
    most = wanted_bytes if traits.largest_part_bytes is None else traits.largest_part_bytes
    least = _padded(traits.smallest_part_bytes, traits)
    return min(max(min(wanted_bytes, most) // unit * unit, least), object_bytes)


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """What planning needs beside the options; ``available_bytes`` None: unknown or endless.

    ``available_bytes`` is the space free for users where the blocks go, ``sharers`` how
    many ranks share it; ``on_network`` whether that is a network filesystem. ``block_why``
    says how the block size was derived from a trace, if it was; ``unit_is_assumed``, that
    nobody gave the unit of its timestamps and nothing in it shows one.
    """

    run_id: str
    version: str
    need: Need
    available_bytes: int | None
    sharers: int
    trace: TracePlan | None
    on_network: bool = False
    block_why: str = ""
    unit_is_assumed: bool = False


def effective_block_tokens(options: Options, trace: Trace | None) -> int:
    """The user's, else a trace's own, else 256."""
    if trace is not None:
        return trace.block_tokens
    return options.block_tokens or DEFAULT_BLOCK_TOKENS


def effective_store(asked: str, traits: BackendTraits, stored_bytes: int) -> Store | None:
    """``file`` or ``slab``, by an object's size where ``auto``; None where there is no choice."""
    if not traits.stores:
        return None
    if asked == "auto":
        return "slab" if stored_bytes <= SLAB_UP_TO_BYTES else "file"
    return "slab" if asked == "slab" else "file"


def build_plan(
    options: Options,
    *,
    scenario: str,
    model: ModelSpec,
    layout: RankLayout,
    block_tokens: int,
    traits: BackendTraits,
    facts: CaseFacts,
) -> Plan:
    """Everything of one case decided; raises OptionError where that is impossible."""
    replays = facts.trace is not None
    duration_s = options.duration if options.overrides("duration") or not replays else None
    ramp_s = options.ramp if options.overrides("ramp") or not replays else 0.0
    if ramp_s is None:
        ramp_s = min(30.0, (duration_s or 0.0) / 10)
    asked_rate = options.overrides("request_rate") or not replays
    request_rate = options.request_rate if asked_rate else None
    objects = objects_per_block(options.layout, model)
    stored = _padded(model.block_bytes(block_tokens, options.tensor_parallel) // objects, traits)
    plan = Plan(
        version=facts.version,
        run_id=facts.run_id,
        scenario=scenario,
        model=model,
        layout=layout,
        trial=0,
        seed=options.seed,
        users=options.num_users,
        duration_s=duration_s,
        ramp_s=ramp_s,
        context_scale=1.0 if replays else options.context_scale,
        block_tokens=block_tokens,
        tensor_parallel=options.tensor_parallel,
        generation_mode=options.generation_mode,
        phase=options.phase,
        request_rate=request_rate,
        arrival=None if request_rate is None else options.arrival or DEFAULT_ARRIVAL,
        backend=options.backend,
        traits=traits,
        backend_options=shown_settings(options, traits),
        object_layout=options.layout,
        store=effective_store(options.store, traits, stored),
        io=options.io,
        sync=options.sync or ("none" if options.io == "direct" else "data"),
        cache_dir=options.cache_dir,
        capacity_blocks=_capacity_blocks(options, traits, objects * stored, facts),
        need_blocks=facts.need.working_set_blocks,
        queue_depth=options.queue_depth,
        io_engine=options.io_engine,
        transfer_size=None if options.transfer_size == WHOLE_OBJECT else int(options.transfer_size),
        cores="shared" if binds_ranks(options.mpi_params) else "split",
        verify=options.verify,
        data=options.data or ("strict" if facts.on_network else "normal"),
        keep=options.keep,
        deadline_s=options.deadline or 1.0,
        plugins=options.plugin,
        trace=facts.trace,
        origins=origins_of(DECIDED_BY, options, facts),
    )
    return (
        plan if options.deadline else replace(plan, deadline_s=default_deadline_s(plan, facts.need))
    )


def _capacity_blocks(
    options: Options, traits: BackendTraits, stored_bytes: int, facts: CaseFacts
) -> int:
    """The user's cap; else the need, or 90 % of the rank's share of the free space."""
    if options.storage_capacity_gb:
        return options.storage_capacity_gb // stored_bytes
    need = max(1, facts.need.working_set_blocks)
    if facts.available_bytes is None:
        return need
    share = FREE_SHARE * facts.available_bytes / facts.sharers
    if share < stored_bytes:
        raise OptionError(_no_room(options, traits, stored_bytes, facts))
    return min(need, math.floor(share / stored_bytes))


def _no_room(options: Options, traits: BackendTraits, stored_bytes: int, facts: CaseFacts) -> str:
    """Where the need decides the capacity, raising it makes no room."""
    ranks = f" divided by the {facts.sharers} ranks on it" if facts.sharers > 1 else ""
    free = format_bytes(facts.available_bytes or 0)
    where = f"--kv-cache-dir is {options.cache_dir}, where"
    fix = "free some space, name another directory,"
    if traits.bounded_by == "memory":
        where, fix = f"--kv-backend is {options.backend}, for which of the memory", "free some,"
    return (
        f"{where} {free} are free; {FREE_SHARE:.0%} of it{ranks} hold no"
        f" block of {format_bytes(stored_bytes)}, so {fix} or lower --kv-block-tokens"
    )


def default_deadline_s(plan: Plan, need: Need) -> float:
    """A wall limit that only a stuck launch exceeds.

    Start and end, the window with its drain, and, at 20 MB/s and 200 objects per second of a
    host, everything that is stored before the window or, in a replay, read and written in it.
    """
    ranks_per_host = max(host.ranks for host in plan.layout.hosts)
    blocks = need.accessed_blocks or min(plan.capacity_blocks, need.working_set_blocks)
    bytes_s = plan.stored_bytes / _SLOWEST_BYTES_PER_S
    objects_s = plan.objects_per_block / _SLOWEST_OBJECTS_PER_S
    moved_s = blocks * ranks_per_host * (bytes_s + objects_s)
    window_s = need.span_s if plan.duration_s is None else plan.duration_s
    return _START_S + plan.ramp_s + window_s + plan.drain_s + moved_s
