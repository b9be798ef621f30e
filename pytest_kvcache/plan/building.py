"""From what was asked for and what was found to the plan of one case. Pure.

What an option leaves open is decided here: block sizes, the store, capacity, deadline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_kvcache.backends.calls import BucketCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.launchers.protocol import binds_ranks
from pytest_kvcache.models import block_parts
from pytest_kvcache.options.engines import WHOLE_OBJECT, header_bytes, makes_calls
from pytest_kvcache.options.options import objectives_of
from pytest_kvcache.phases import PHASES
from pytest_kvcache.plan.backendrules import shown_settings
from pytest_kvcache.plan.origins import origins_of
from pytest_kvcache.plan.plan import DECIDED_BY, Plan, padded, unit_bytes
from pytest_kvcache.plan.tiers import tiers_of
from pytest_kvcache.units import MIB, format_bytes, format_count
from pytest_kvcache.workloads.openloop import DEFAULT_ARRIVAL

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pytest_kvcache.backends.protocol import Store
    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.hosts.hostlist import RankLayout
    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import TracePlan
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Need
    from pytest_kvcache.workloads.scenarios import Dialogues

DEFAULT_BLOCK_TOKENS = 256
# Objects up to this size, as stored, go into slabs. Measured on ext4 (docs/why.md, "Two
# stores"): at 64 KiB a file per object costs 2.5 times an overwrite in a slab, at 1 MiB
# 2.1 times (2.6 with a sync), at 32 MiB nothing; between the two nothing was measured.
SLAB_UP_TO_BYTES = MIB
FREE_SHARE = 0.9  # of the free space that a run may fill
_SLOWEST_BYTES_PER_S = 20e6  # of a whole host, for the default deadline
_SLOWEST_TOUCH_BYTES_PER_S = 200e6  # likewise: memory tiers, before they are used
_SLOWEST_OBJECTS_PER_S = 200.0  # likewise: made and removed, read or overwritten
_START_S = 120.0  # for the default deadline: start of the ranks and their end


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFacts:
    """What planning needs beside the options; ``available_bytes`` None: unknown or endless.

    ``available_bytes`` is the space free for users where the blocks go, ``sharers`` how
    many ranks share it; ``on_network`` whether that is a network filesystem. ``block_why``
    says how the block size was derived from a trace, if it was; ``unit_is_assumed``, that
    nobody gave the unit of its timestamps and nothing in it shows one. ``gpu_kind`` is what a
    gpu tier is made of, if one is asked for. ``own_block_bytes`` is the largest block where
    blocks have sizes of their own, which all are the same unless ``sizes_differ``.
    ``recorded_users`` are those of an I/O trace in the rank with the most, 0: it names none;
    ``most_stores`` is the scenario's own, if it has one.
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
    gpu_kind: TierKind = "simulated"
    own_block_bytes: int | None = None
    sizes_differ: bool = False
    recorded_users: int = 0
    most_stores: int | None = None


def effective_block_tokens(options: Options, trace: Trace | None) -> int:
    """The user's, else a trace's own, else 256."""
    if trace is not None:
        return trace.block_tokens
    return options.block_tokens or DEFAULT_BLOCK_TOKENS


def effective_store(asked: str, traits: BackendTraits, sizes: Collection[int]) -> Store | None:
    """``file`` or ``slab``, by an object's size where ``auto``; None where there is no choice.

    ``sizes``: stored bytes of a block's objects; slabs have one.
    """
    if not traits.stores:
        return None
    if asked == "auto":
        return "slab" if max(sizes) <= SLAB_UP_TO_BYTES and len(set(sizes)) == 1 else "file"
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
    restarts = PHASES[options.phase].restarts
    requests = None if replays or restarts else options.requests
    is_timed = not replays and not restarts and requests is None

    def stands(name: str) -> bool:
        return is_timed or (replays and options.overrides(name))

    duration_s = options.duration if stands("duration") else None
    ramp_s = options.ramp if stands("ramp") else 0.0
    if ramp_s is None:
        ramp_s = min(30.0, (duration_s or 0.0) / 10)
    request_rate = options.request_rate if stands("request_rate") else None
    parts = block_parts(
        model, options.layout, block_tokens, options.tensor_parallel, unit_bytes(traits)
    )
    sizes = [part.stored_bytes for part in parts]
    if facts.own_block_bytes is not None:
        sizes = [padded(facts.own_block_bytes, traits)]
    calls = makes_calls(options)
    # The names of files tell what is stored; what slabs hold is in memory.
    has_names = facts.sizes_differ or calls or (restarts and options.store == "auto")
    asked_store = "file" if has_names else options.store
    tiers = tiers_of(options, facts.gpu_kind)
    beside = header_bytes(options.engine) * len(sizes)
    capacity_blocks = _capacity_blocks(options, traits, sum(sizes) + beside, facts)
    capacity_blocks = _whole_buckets(capacity_blocks, options, sizes, facts)
    fill_blocks = _fill_blocks(options, capacity_blocks, facts)
    plan = Plan(
        version=facts.version,
        run_id=facts.run_id,
        scenario=scenario,
        model=model,
        layout=layout,
        trial=0,
        seed=options.seed,
        users=facts.recorded_users or options.num_users,
        load_steps=options.load_steps or () if is_timed else (),
        duration_s=duration_s,
        ramp_s=ramp_s,
        requests=requests,
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
        store=effective_store(asked_store, traits, sizes),
        io=options.io,
        sync=options.sync or ("none" if options.io == "direct" or calls else "data"),
        cache_dir=options.cache_dir,
        capacity_blocks=capacity_blocks,
        fill_blocks=fill_blocks,
        need_blocks=facts.need.working_set_blocks,
        queue_depth=options.queue_depth,
        io_engine=options.io_engine,
        transfer_size=None if options.transfer_size == WHOLE_OBJECT else int(options.transfer_size),
        cores="shared" if binds_ranks(options.mpi_params) else "split",
        verify=options.verify,
        data=options.data or ("strict" if facts.on_network else "normal"),
        reread_factor=options.reread_factor,
        keep=options.keep,
        deadline_s=options.deadline or 1.0,
        plugins=options.plugin,
        trace=facts.trace,
        tiers=tiers,
        tier_policy=options.tier_policy if tiers else "write-through",
        most_stores=facts.most_stores,
        closed=options.closed,
        origins=origins_of(DECIDED_BY, options, facts),
        io_trace=options.io_trace is not None,
        own_block_bytes=facts.own_block_bytes,
        dialogues=dialogues_of(options, scenario),
        precondition_bytes=options.precondition or 0,
        prefill_tokens_per_s=options.prefill_rate,
        cost_per_hour=options.cost,
        power_w=options.power,
        engine=options.engine,
        lookup=options.lookup,
        publish=options.publish,
        request_depth=options.request_depth,
        sharing=options.sharing,
        full_queue=options.full_queue,
        interference="with-stores" if options.interference else None,
        restart_by=options.restart_by if restarts else None,
        drop_caches=options.drop_caches and restarts,
        search=tuple(map(str, objectives_of(options))),
        search_mode=(options.autoscaler_mode or "qos") if options.enable_autoscaling else None,
        service=options.workload.service if options.performance_profile == "latency" else None,
    )
    return (
        plan if options.deadline else replace(plan, deadline_s=default_deadline_s(plan, facts.need))
    )


def dialogues_of(options: Options, scenario: str) -> Dialogues | None:
    """How the users of a scenario talk; None where it is not one of the table."""
    if scenario not in options.workload.scenarios:
        return None
    return options.workload.dialogues(
        scenario,
        multi_turn=not options.disable_multi_turn,
        prefix_caching=not options.disable_prefix_caching,
        enable_rag=options.enable_rag,
        documents=options.rag_num_docs,
    )


def _capacity_blocks(
    options: Options, traits: BackendTraits, stored_bytes: int, facts: CaseFacts
) -> int:
    """The user's cap; else the need, or 90 % of the rank's share of the free space.

    What is to be filled takes all of that share.
    """
    if options.storage_capacity_gb:
        return options.storage_capacity_gb // stored_bytes
    need = max(1, facts.need.working_set_blocks)
    if facts.available_bytes is None:
        return need
    share = FREE_SHARE * facts.available_bytes / facts.sharers
    if traits.bounded_by == "memory":
        share -= sum(tier.host_bytes for tier in tiers_of(options, facts.gpu_kind))
    if share < stored_bytes:
        raise OptionError(_no_room(options, traits, stored_bytes, facts))
    has_room = math.floor(share / stored_bytes)
    return has_room if options.fill else min(need, has_room)


def _whole_buckets(
    capacity_blocks: int, options: Options, sizes: Sequence[int], facts: CaseFacts
) -> int:
    """What a capacity holds of an engine's buckets; where the need decides, at least one."""
    calls = None if options.engine is None else PROFILES[options.engine].calls
    if not isinstance(calls, BucketCalls):
        return capacity_blocks
    bucket_blocks = calls.blocks(max(sizes))
    if capacity_blocks >= facts.need.working_set_blocks:
        least_blocks = 0 if options.storage_capacity_gb else bucket_blocks
        return max(least_blocks, capacity_blocks)
    if capacity_blocks < bucket_blocks:
        return capacity_blocks  # which is refused
    return capacity_blocks // bucket_blocks * bucket_blocks


def _fill_blocks(options: Options, capacity_blocks: int, facts: CaseFacts) -> int:
    """How many blocks are stored before the window, asked for or not; 0: only the contexts.

    A restart has nothing but these: all that its users need at most, as far as it has room.
    """
    restarts = PHASES[options.phase].restarts
    wanted = min(capacity_blocks, max(1, facts.need.working_set_blocks)) if restarts else 0
    if options.fill is None:
        return wanted
    fill_blocks = math.floor(options.fill * capacity_blocks)
    if not fill_blocks:
        raise OptionError(
            f"--kv-fill is {options.fill:.4%} of {format_count(capacity_blocks, 'block')} per rank,"
            " which is less than one; raise it or --kv-storage-capacity-gb"
        )
    if fill_blocks < wanted:
        raise OptionError(
            f"--kv-fill is {options.fill:.4%}, {format_count(fill_blocks, 'block')} per rank, and"
            f" --kv-phase=restart stores the {wanted:,} of its users' contexts in any case; raise"
            " it or --kv-storage-capacity-gb, or lower --kv-num-users"
        )
    return fill_blocks


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
    host, everything that is written before the window, or read and written in a replay or by a
    fixed number of requests, or found again by a restart;
    and, at 200 MB/s, what memory tiers hold.
    """
    ranks_per_host = max(host.ranks for host in plan.layout.hosts)
    longest_blocks = 2 * -(-need.working_set_blocks // plan.users)  # of a context, and some more
    asked = (plan.requests or 0) * longest_blocks + need.accessed_blocks
    blocks = asked * (1 + plan.reread_factor)
    if plan.trace is None and need.is_populated:
        blocks += min(plan.capacity_blocks, need.working_set_blocks)
    blocks += plan.fill_blocks
    bytes_s = plan.stored_bytes / _SLOWEST_BYTES_PER_S
    objects_s = plan.objects_per_block / _SLOWEST_OBJECTS_PER_S
    moved_s = blocks * ranks_per_host * (bytes_s + objects_s)
    if plan.restarts:
        moved_s += plan.fill_blocks * ranks_per_host * objects_s
    preconditioned = plan.precondition_bytes / plan.stored_bytes
    moved_s += preconditioned * ranks_per_host * (bytes_s + objects_s)
    held_bytes = sum(tier.capacity_bytes for tier in plan.tiers if tier.holds_bytes)
    moved_s += ranks_per_host * held_bytes / _SLOWEST_TOUCH_BYTES_PER_S
    window_s = need.span_s if plan.duration_s is None else plan.duration_s
    if plan.requests is not None:
        turns = -(-plan.requests // plan.users)
        computing_s = plan.generation_s_per_token
        if plan.recompute_tokens_per_s is not None:
            computing_s += 1 / plan.recompute_tokens_per_s
        window_s = turns * longest_blocks * plan.block_tokens * computing_s
    return _START_S + plan.ramp_s + window_s + plan.drain_s + moved_s
