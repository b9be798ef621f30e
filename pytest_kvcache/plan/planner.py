"""Options → cases → plans: reads the trace and looks at this machine's free space.

Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.cachedir import validate_cache_dir
from pytest_kvcache.errors import OptionError, TraceError
from pytest_kvcache.hosts.hostlist import HostSpec, RankLayout, bracketed, layout_ranks
from pytest_kvcache.hosts.localhost import available_disk_bytes, available_memory_bytes, is_local
from pytest_kvcache.options.options import scenario_names
from pytest_kvcache.options.table import MAX_DURATION_S
from pytest_kvcache.plan.backendrules import check_backend, secrets_of
from pytest_kvcache.plan.building import (
    DEFAULT_BLOCK_TOKENS,
    CaseFacts,
    build_plan,
    dialogues_of,
    effective_block_tokens,
)
from pytest_kvcache.plan.decode import check_contexts_fit
from pytest_kvcache.plan.dialogues import check_reads
from pytest_kvcache.plan.iotrace import check_holds, check_io_replay
from pytest_kvcache.plan.plan import Plan, TracePlan, case_name
from pytest_kvcache.plan.tiers import check_reaches_storage, choose_library, wants_devices
from pytest_kvcache.plan.wholeobjects import (
    block_tokens_of,
    check_filesystems,
    check_whole_objects,
    most_stores_of,
    options_of,
)
from pytest_kvcache.system.devicechain import is_network_type
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.system.gpus import find_devices
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from pytest_kvcache.units import format_count
from pytest_kvcache.version import VERSION
from pytest_kvcache.workloads.protocol import Need, WholeObjectFamily, WorkloadContext
from pytest_kvcache.workloads.replay import recorded_span_s
from pytest_kvcache.workloads.scenarios import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Sized

    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.masking import Secrets
    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.system.gpus import Devices
    from pytest_kvcache.workloads.protocol import WorkloadFamily


_LABEL = re.compile(r"[A-Za-z0-9][\w.-]{0,39}", re.ASCII)
_FOREVER_S = 1e9  # as a deadline: 30 years, which timers of 64 bits can still hold


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseName:
    """What identifies a case before it is planned; ``label`` is a test's own name for it."""

    scenario: str
    model: ModelSpec
    layout: RankLayout
    label: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not _LABEL.fullmatch(str(self.label)):
            raise OptionError(
                f"label is {self.label!r}; it must be at most 40 letters, digits, dots, dashes and"
                " underscores, and begin with a letter or digit"
            )

    def __str__(self) -> str:
        return case_name(self.scenario, self.model, self.layout, self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A planned case; ``trace`` is the whole trace of a replay, as the plan limits it.

    ``secrets`` are those settings of the backend that the plan only has a mask of.
    """

    plan: Plan
    trace: Trace | None
    secrets: Secrets


def name_cases(options: Options, registry: Registry) -> tuple[CaseName, ...]:
    """Every (scenario, model, ranks) the options ask for.

    OptionError for unknown names, and for what the backend can't do.
    """
    table = options.workload
    families = {
        scenario: registry.workload(scenario, table.scenarios)
        for scenario in scenario_names(options)
    }
    for scenario in options.workload.scenarios.keys() - TABLE.scenarios.keys():
        if scenario in registry.workloads:
            raise OptionError(
                f"{options.workload.file} has a scenario {scenario!r}, which is one already; give"
                " it another name"
            )
    check_backend(options, registry.backend(options.backend).traits)
    for scenario, family in families.items():
        check_whole_objects(options, scenario, family)
    return tuple(
        CaseName(scenario=scenario, model=model, layout=layout)
        for scenario, family in families.items()
        for model, layout in itertools.product(
            _models(options_of(options, family), family, registry), layouts(options)
        )
    )


def layouts(options: Options) -> tuple[RankLayout, ...]:
    """One rank layout per count of ``--kv-np``; this machine's ranks come first."""
    local = [host for host in options.hosts if is_local(host.name)]
    if len(local) > 1:
        raise OptionError(_one_machine(local))
    others = [host for host in options.hosts if host not in local]
    hosts = [*map(_listable, local), *others]
    for host in others:
        if ":" in host.name:
            raise OptionError(
                f"--kv-hosts has {bracketed(host.name)}; launchers take no IPv6 address in their"
                " lists of hosts, so give it a name in /etc/hosts or the name server and use that"
            )
    counts: Sequence[int | None] = options.np or (None,)
    return tuple(layout_ranks(hosts, np=np, npernode=options.npernode) for np in counts)


def _listable(host: HostSpec) -> HostSpec:
    """This machine under a name that launchers can take."""
    return replace(host, name="localhost") if ":" in host.name else host


def _one_machine(names: Sequence[HostSpec]) -> str:
    """Why two names of this machine are no two hosts."""
    first, second, *_ = (bracketed(host.name) for host in names)
    ranks = sum(host.slots or 1 for host in names)
    return (
        f"--kv-hosts names {first} and {second}, which are both this machine, with one disk and"
        f" one set of cores; name it once, with its ranks as {first}:{ranks}"
    )


def most_ranks_per_machine(layout: RankLayout) -> int:
    """The ranks of the fullest machine."""
    return max(host.ranks for host in layout.hosts)


class Planner:
    """Makes plans; reads a trace once however many cases replay it.

    ``launches`` false: the plans are read for their sizes only.
    """

    def __init__(self, registry: Registry, run_id: str, *, launches: bool = True) -> None:
        self._registry = registry
        self._launches = launches
        self._run_id = run_id
        self._traces: dict[tuple[object, ...], Trace] = {}
        self._devices: dict[str, Devices] = {}  # of this machine, by the interpreter that told

    def plan(self, options: Options, name: CaseName, survey: Survey | None = None) -> Case:
        """Decide everything of one case; raises OptionError where that is impossible.

        ``survey`` None: all ranks are on this machine.
        """
        family = self._registry.workload(name.scenario, options.workload.scenarios)
        options = options_of(options, family)
        trace = self._trace(options) if family.needs_trace else None
        operations = None if trace is None else trace.operations
        if operations is not None:
            check_io_replay(options, operations)
        block_tokens = _block_tokens(options, family, trace)
        parts = _parts(family, trace, name.layout.np, options.trace_limit)
        traits = self._registry.backend(options.backend).traits
        available_bytes, sharers = _space(options, traits, name.layout, survey)
        facts = CaseFacts(
            run_id=self._run_id,
            version=VERSION,
            need=_largest(_needs(options, name.scenario, family, block_tokens, parts)),
            available_bytes=available_bytes,
            sharers=sharers,
            trace=None if trace is None else _trace_plan(options, trace, parts),
            on_network=traits.directory and _on_network(options, survey),
            block_why="" if trace is None or not trace.reading else trace.reading.block_why,
            gpu_kind=self._gpu_kind(options, survey),
            own_block_bytes=_own_block_bytes(options, name.model, family, trace),
            sizes_differ=isinstance(family, WholeObjectFamily)
            or (operations is not None and operations.sizes_differ),
            recorded_users=_recorded_users(parts),
            most_stores=most_stores_of(family),
            unit_is_assumed=(
                trace is not None and trace.reading is not None and trace.reading.unit.is_assumed
            ),
        )
        plan = build_plan(
            options,
            scenario=name.scenario,
            model=name.model,
            layout=name.layout,
            block_tokens=block_tokens,
            traits=traits,
            facts=facts,
        )
        if trace is not None and self._launches:
            _check_times(options, trace)
            if plan.duration_s is None:
                _check_span(options, trace)
        if self._launches:
            check_filesystems(options)
            check_contexts_fit(plan, family, options.trials.high)
            check_reaches_storage(plan)
            check_reads(plan)
            if operations is not None:
                check_holds(plan, operations)
        deadline_s = min(plan.deadline_s, _FOREVER_S)
        return Case(
            plan=replace(plan, deadline_s=deadline_s, label=name.label),
            trace=trace,
            secrets=secrets_of(options, traits),
        )

    def size(self, options: Options, name: CaseName) -> tuple[int, int]:
        """Blocks that the largest rank and that all ranks together would store."""
        family = self._registry.workload(name.scenario, options.workload.scenarios)
        options = options_of(options, family)
        trace = self._trace(options) if family.needs_trace else None
        block_tokens = _block_tokens(options, family, trace)
        parts = _parts(family, trace, name.layout.np, options.trace_limit)
        needs = _needs(options, name.scenario, family, block_tokens, parts)
        blocks = [need.working_set_blocks for need in needs]
        total = sum(blocks) if len(blocks) == name.layout.np else blocks[0] * name.layout.np
        return max(blocks), total

    def _gpu_kind(self, options: Options, survey: Survey | None) -> TierKind:
        """What a gpu tier is made of; OptionError where that can't be had."""
        if not (self._launches and wants_devices(options)):
            return options.gpu_backend or "torch"
        if survey is not None:
            known = {name: facts.gpus for name, facts in survey.facts.items()}
            return choose_library(options, {n: found for n, found in known.items() if found})
        python = options.python or sys.executable
        if python not in self._devices:
            self._devices[python] = find_devices(python)
        return choose_library(options, {"this machine": self._devices[python]})

    def _trace(self, options: Options) -> Trace:
        if options.trace is None:
            raise OptionError("--kv-scenario is 'trace'; name the file with --kv-trace=FILE")
        asked = options.block_tokens if options.overrides("block_tokens") else None
        how = (asked, options.trace_time_unit, options.trace_ids)
        key = (options.trace, *how, options.trace_limit)
        if key not in self._traces:
            trace = read_trace(
                options.trace,
                block_tokens=asked,
                unit=options.trace_time_unit,
                ids=options.trace_ids,
                default_block_tokens=DEFAULT_BLOCK_TOKENS,
            )
            self._traces[key] = (
                trace if options.trace_limit is None else trace.limit(options.trace_limit)
            )
        return self._traces[key]


def _block_tokens(options: Options, family: WorkloadFamily, trace: Trace | None) -> int:
    """A scenario's own, the user's, a trace's own, else the default."""
    return block_tokens_of(options, family) or effective_block_tokens(options, trace)


def _own_block_bytes(
    options: Options, model: ModelSpec, family: WorkloadFamily, trace: Trace | None
) -> int | None:
    """The largest block where blocks have sizes of their own; None: they have the plan's."""
    if trace is not None and trace.operations is not None:
        return trace.operations.largest_bytes
    tokens = block_tokens_of(options, family)
    return None if tokens is None else model.block_bytes(tokens, options.tensor_parallel)


def _models(options: Options, family: WorkloadFamily, registry: Registry) -> tuple[ModelSpec, ...]:
    """The models of a scenario's cases; one of whole objects knows no windows."""
    models = registry.models_of(options.model, options.kv_dtype)
    if isinstance(family, WholeObjectFamily):
        return tuple(model.without_windows() for model in models)
    return models


def _parts(
    family: WorkloadFamily, trace: Trace | None, np: int, limit: int | None
) -> list[Trace | None]:
    """What each rank replays; without a trace one None, or one for each rank whose need differs."""
    if trace is None and isinstance(family, WholeObjectFamily):
        return [None] * np
    if trace is None or np == 1:
        return [trace]  # all of it, which may be too large to be copied
    shards = partition(trace, np)
    filled = _filled(shards)
    if filled < np:
        raise OptionError(_too_few_parts(trace, np, filled, limit))
    return [trace.select(indices) for indices in shards]


def _filled(shards: Sequence[Sized]) -> int:
    return sum(1 for indices in shards if len(indices))


def _too_few_parts(trace: Trace, np: int, parts: int, limit: int | None) -> str:
    """Fewer ranks help; more requests do where the limit may have kept some out."""
    ranks = parts
    while (filled := _filled(partition(trace, ranks))) < ranks:  # fewer ranks tear less
        ranks = filled
    whole = "requests with a common prefix stay together"
    if trace.operations is not None and trace.operations.has_ranks:
        whole = "what a rank asked for stays together"
    elif trace.conversations is not None:
        whole = "conversations stay whole"
    most = "" if ranks == 1 else " at most"
    longer = " or raise --kv-trace-limit" if limit is not None and len(trace) >= limit else ""
    return (
        f"--kv-np is {np}, and {format_count(len(trace), 'request')} of --kv-trace={trace.name}"
        f" make {format_count(parts, 'part')} for ranks to replay ({whole}); use --kv-np={ranks}"
        f"{most}{longer}"
    )


def _recorded_users(parts: Sequence[Trace | None]) -> int:
    """How many users of an I/O trace the part with the most has; 0 where none are named."""
    asked_for = (part.operations for part in parts if part is not None)
    return max((part.users for part in asked_for if part is not None), default=0)


def _check_times(options: Options, trace: Trace) -> None:
    """A replay at recorded times must know what they are in."""
    if options.trace_speedup and trace.reading is not None and trace.reading.unit.doubt:
        raise TraceError(str(options.trace), 0, trace.reading.unit.doubt)


def _check_span(options: Options, trace: Trace) -> None:
    """A replay that nothing ends but its last request must come to it."""
    speedup, recorded_s = options.trace_speedup, recorded_span_s(trace, options.trace_cycles)
    if not speedup or recorded_s / speedup <= MAX_DURATION_S:
        return
    raise OptionError(
        f"--kv-trace-speedup is {speedup:g}, so the {recorded_s:g} s of the trace take"
        f" {recorded_s / speedup:g} s; without --kv-duration a replay must end within"
        f" {MAX_DURATION_S:,.0f} s, raise the speedup, lower --kv-trace-cycles or --kv-trace-limit,"
        " give a --kv-duration, or say with --kv-trace-time-unit what the timestamps are in"
    )


def _trace_plan(options: Options, trace: Trace, parts: Sequence[Trace | None]) -> TracePlan:
    one_rank, partitioned = _hit_ratios(trace, parts, options.trace_cycles)
    return TracePlan(
        name=trace.name,
        format=trace.format,
        digest=trace.digest,
        requests=len(trace),
        time_unit="ns" if trace.reading is None else trace.reading.unit.name,
        span_s=recorded_span_s(trace, 1),
        ids="prefix" if trace.reading is None else trace.reading.ids,
        left_out=0 if trace.reading is None else trace.reading.left_out,
        tokens_by="" if trace.reading is None else trace.reading.tokens_by,
        speedup=options.trace_speedup,
        cycles=options.trace_cycles,
        limit=options.trace_limit,
        one_rank_hit_ratio=one_rank,
        partitioned_hit_ratio=partitioned,
        overwrites=None if trace.operations is None else trace.operations.overwrites,
    )


def _hit_ratios(
    trace: Trace, parts: Sequence[Trace | None], cycles: int
) -> tuple[float | None, float | None]:
    """Hits of an endless cache, of one rank and of these parts; None of what has no prompts."""
    if trace.operations is not None:
        return None, None
    once = len(trace.block_ids)
    again = (cycles - 1) * once  # what a cycle has stored is all there in the next one
    partitioned = sum(infinite_hits(part) for part in parts if part is not None) + again
    one_rank = infinite_hits(trace) + again
    blocks = max(1, cycles * once)
    return (one_rank / blocks, partitioned / blocks) if once else (0.0, 0.0)


def _needs(
    options: Options,
    scenario: str,
    family: WorkloadFamily,
    block_tokens: int,
    parts: Iterable[Trace | None],
) -> list[Need]:
    """The need of each part's rank; one entry alone stands for all ranks."""
    return [
        family.need(
            WorkloadContext(
                users=options.num_users,
                block_tokens=block_tokens,
                context_scale=options.context_scale,
                seed=options.seed,
                trial=0,
                rank=rank,
                trace=part,
                trace_speedup=options.trace_speedup,
                trace_cycles=options.trace_cycles,
                dialogues=dialogues_of(options, scenario),
            )
        )
        for rank, part in enumerate(parts)
    ]


def _largest(needs: Sequence[Need]) -> Need:
    """The need of the rank that needs most, field by field."""
    return replace(
        max(needs, key=lambda need: need.working_set_blocks),
        accessed_blocks=max(need.accessed_blocks for need in needs),
        span_s=max(need.span_s for need in needs),
    )


def _space(
    options: Options, traits: BackendTraits, layout: RankLayout, survey: Survey | None
) -> tuple[int | None, int]:
    """What is free where the blocks go (None: it does not matter), and the ranks that share it."""
    fullest = most_ranks_per_machine(layout)
    if traits.bounded_by == "nothing":
        return None, fullest
    if survey is None:
        return _available_bytes(options, traits), fullest
    if traits.bounded_by == "memory":
        memories = [facts.memory_bytes for facts in survey.facts.values()]
        return min((free for free in memories if free is not None), default=None), fullest
    return survey.tightest_share(layout) or (None, fullest)


def _on_network(options: Options, survey: Survey | None) -> bool:
    """Whether the cache directory of any host is on a network filesystem."""
    if survey is None:
        return probe_filesystem(options.cache_dir, "127.0.0.1").is_network
    found = [facts.filesystem for facts in survey.facts.values()]
    return any(is_network_type(str(each["type"])) for each in found if each is not None)


def _available_bytes(options: Options, traits: BackendTraits) -> int | None:
    """Free space where the blocks go, on this machine."""
    if traits.bounded_by == "memory":
        return available_memory_bytes()
    validate_cache_dir(options.cache_dir)
    return available_disk_bytes(options.cache_dir)
