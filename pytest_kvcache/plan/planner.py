"""Options → cases → plans: reads the trace and looks at this machine's free space.

Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_kvcache.backends.posix.cachedir import validate_cache_dir
from pytest_kvcache.errors import OptionError, TraceError
from pytest_kvcache.hosts.hostlist import HostSpec, RankLayout, bracketed, layout_ranks
from pytest_kvcache.hosts.localhost import available_disk_bytes, available_memory_bytes, is_local
from pytest_kvcache.options.options import scenario_names
from pytest_kvcache.options.table import MAX_DURATION_S
from pytest_kvcache.plan.backendrules import check_backend, secrets_of
from pytest_kvcache.plan.decode import check_contexts_fit
from pytest_kvcache.plan.plan import (
    CaseFacts,
    Plan,
    TracePlan,
    build_plan,
    case_name,
    effective_block_tokens,
)
from pytest_kvcache.system.devicechain import is_network_type
from pytest_kvcache.system.filesystem import probe_filesystem
from pytest_kvcache.traces.partition import deal
from pytest_kvcache.traces.read import Trace, read_trace
from pytest_kvcache.traces.reuse import infinite_hits
from pytest_kvcache.version import VERSION
from pytest_kvcache.workloads.protocol import Need, WorkloadContext
from pytest_kvcache.workloads.replay import recorded_span_s

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_kvcache.backends.traits import BackendTraits
    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.masking import Secrets
    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.registry import Registry
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
    scenarios = scenario_names(options)
    for scenario in scenarios:
        registry.workload(scenario)
    check_backend(options, registry.backend(options.backend).traits)
    return tuple(
        CaseName(scenario=scenario, model=model, layout=layout)
        for scenario, model, layout in itertools.product(
            scenarios, registry.models_of(options.model), layouts(options)
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

    def plan(self, options: Options, name: CaseName, survey: Survey | None = None) -> Case:
        """Decide everything of one case; raises OptionError where that is impossible.

        ``survey`` None: all ranks are on this machine.
        """
        family = self._registry.workload(name.scenario)
        trace = self._trace(options) if family.needs_trace else None
        block_tokens = effective_block_tokens(options, trace)
        parts = _parts(trace, name.layout.np)
        traits = self._registry.backend(options.backend).traits
        available_bytes, sharers = _space(options, traits, name.layout, survey)
        facts = CaseFacts(
            run_id=self._run_id,
            version=VERSION,
            need=_largest(_needs(options, family, block_tokens, parts)),
            available_bytes=available_bytes,
            sharers=sharers,
            trace=None if trace is None else _trace_plan(options, trace, parts),
            on_network=traits.directory and _on_network(options, survey),
            block_why="" if trace is None or not trace.reading else trace.reading.block_why,
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
            check_contexts_fit(plan, family, options.trials.high)
        deadline_s = min(plan.deadline_s, _FOREVER_S)
        return Case(
            plan=replace(plan, deadline_s=deadline_s, label=name.label),
            trace=trace,
            secrets=secrets_of(options, traits),
        )

    def size(self, options: Options, name: CaseName) -> tuple[int, int]:
        """Blocks that the largest rank and that all ranks together would store."""
        family = self._registry.workload(name.scenario)
        trace = self._trace(options) if family.needs_trace else None
        block_tokens = effective_block_tokens(options, trace)
        needs = _needs(options, family, block_tokens, _parts(trace, name.layout.np))
        blocks = [need.working_set_blocks for need in needs]
        total = sum(blocks) if trace is not None else blocks[0] * name.layout.np
        return max(blocks), total

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
            )
            self._traces[key] = (
                trace if options.trace_limit is None else trace.limit(options.trace_limit)
            )
        return self._traces[key]


def _parts(trace: Trace | None, np: int) -> list[Trace | None]:
    """What each rank replays; one None without a trace."""
    if trace is None:
        return [None]
    dealt = deal(trace, np)
    if not all(len(indices) for indices in dealt):
        raise OptionError(
            f"--kv-np is {np}; the trace has conversations for fewer ranks, lower it or raise"
            " --kv-trace-limit"
        )
    return [trace.select(indices) for indices in dealt]


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
    once, cycles = len(trace.block_ids), options.trace_cycles
    again = (cycles - 1) * once  # what a cycle has stored is all there in the next one
    dealt = sum(infinite_hits(part) for part in parts if part is not None) + again
    one_rank = infinite_hits(trace) + again
    blocks = max(1, cycles * once)
    return TracePlan(
        name=trace.name,
        format=trace.format,
        digest=trace.digest,
        requests=len(trace),
        time_unit="ns" if trace.reading is None else trace.reading.unit.name,
        span_s=recorded_span_s(trace, 1),
        ids=options.trace_ids,
        speedup=options.trace_speedup,
        cycles=cycles,
        limit=options.trace_limit,
        one_rank_hit_ratio=one_rank / blocks if once else 0.0,
        dealt_hit_ratio=dealt / blocks if once else 0.0,
    )


def _needs(
    options: Options, family: WorkloadFamily, block_tokens: int, parts: Iterable[Trace | None]
) -> list[Need]:
    """The need of each part's rank; one entry stands for all ranks where there is no trace."""
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
