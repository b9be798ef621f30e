"""``--kv-datasize``: how much a load needs, from the formula that plans the runs.

Controller side; imports neither pytest nor MPI. Returns text.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.cache.reuse import hit_curve
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts import HostRanks, RankLayout
from pytest_kvcache.options import OPTIONS
from pytest_kvcache.planning import CaseName, Planner, name_cases
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report import describe_block
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options import Options
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.workloads.trace_file import Trace

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_HIT_SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # of what an infinite cache would hit
_MANY_CYCLES = 1_000_000  # with more of them, no digit that is printed changes any more


def datasize_report(options: Options) -> str:
    """The sizes of every scenario and model; OptionError for a distributed option.

    Distributed options count only where they were typed: an ini that serves runs as
    well must not forbid this.
    """
    for spec in OPTIONS:
        if spec.distributed and options.origins.get(spec.name) == "command line":
            raise OptionError(
                f"{spec.flag} is given together with --kv-datasize, which calculates per rank"
                f" and for 1, 2, 4 … ranks; drop {spec.flag}"
            )
    registry = build_registry(options.plugin)
    planner = Planner(registry, "datasize", launches=False)
    lines: list[str] = []
    for name in _one_rank_cases(options, registry):
        lines += _case(options, planner, name)
        lines.append("")
    return "\n".join(lines).rstrip()


def _one_rank_cases(options: Options, registry: Registry) -> Iterator[CaseName]:
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))
    seen = set()
    for name in name_cases(options, registry):
        key = (name.scenario, name.model.name)
        if key not in seen:
            seen.add(key)
            yield CaseName(scenario=name.scenario, model=name.model, layout=layout)


def _case(options: Options, planner: Planner, name: CaseName) -> Iterator[str]:
    case = planner.plan(options, name)
    plan = case.plan
    yield f"{name.scenario} · {name.model.name}"
    yield from _model_lines(options, name.model, plan)
    need = plan.need_blocks * plan.stored_bytes
    users = "the trace" if case.trace is not None else f"{plan.users} users"
    yield f"  working set per rank      {format_bytes(need)} ({users}, {plan.need_blocks} blocks)"
    yield f"  tiers per rank            gpu 0 B, cpu 0 B, storage {format_bytes(need)}"
    yield f"  storage capacity per rank {format_bytes(plan.capacity_bytes)}{_why_less(plan)}"
    memory, buffers = format_bytes(plan.memory_bytes), format_bytes(plan.buffer_bytes)
    yield f"  memory per rank           {memory}, of them {buffers} buffers"
    yield ""
    yield from _ranks_table(options, planner, name, plan)
    if case.trace is not None:
        yield ""
        yield from _hit_lines(case.trace, plan)


def _model_lines(options: Options, model: ModelSpec, plan: Plan) -> Iterator[str]:
    whole = model.bytes_per_token
    shard = model.shard_bytes_per_token(options.tensor_parallel)
    per_rank = "" if shard == whole else f", {shard:,} per rank of {options.tensor_parallel}"
    yield f"  bytes per token           {whole:,}{per_rank}"
    yield f"  block                     {plan.block_tokens} tokens, {describe_block(plan)}"
    if model.note:
        indent = " " * 28
        text = textwrap.wrap(model.note, 79, initial_indent=indent, subsequent_indent=indent)
        yield "  note                      " + "\n".join(text).lstrip()


def _why_less(plan: Plan) -> str:
    if plan.capacity_blocks >= plan.need_blocks:
        return ""
    if plan.origins["capacity_blocks"] != "default":
        return f" (from the {plan.origins['capacity_blocks']})"
    return f" (90 % of what is free in {plan.cache_dir})"


def _ranks_table(options: Options, planner: Planner, name: CaseName, plan: Plan) -> Iterator[str]:
    """Need of the largest rank and of all ranks of one host."""
    yield f"  {'ranks':>7}{'largest rank':>16}{'all ranks':>16}{'memory of all':>18}"
    for ranks in _RANKS:
        layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=ranks),))
        try:
            largest, total = planner.size(options, replace(name, layout=layout))
        except OptionError:
            return  # a trace with conversations for fewer ranks
        yield (
            f"  {ranks:>7}{format_bytes(largest * plan.stored_bytes):>16}"
            f"{format_bytes(total * plan.stored_bytes):>16}"
            f"{format_bytes(plan.memory_bytes * ranks):>18}"
        )


def _hit_lines(trace: Trace, plan: Plan) -> Iterator[str]:
    """Capacity → hit ratio of an exact LRU-prefix cache, one rank."""
    cycles = 1 if plan.trace is None else plan.trace.cycles
    curve = hit_curve(trace, min(cycles, _MANY_CYCLES))
    most = curve.hit_ratio(curve.distinct_blocks)
    passes = f", {cycles} cycles" if cycles > 1 else ""
    yield f"  hit ratio by capacity, one rank{passes}; {most:.4f} at most"
    yield f"  {'blocks':>9}{'capacity':>16}{'hit ratio':>12}{'token hit ratio':>18}"
    found = [curve.capacity_for(share * most) for share in _HIT_SHARES]
    for blocks in dict.fromkeys(blocks for blocks in found if blocks is not None):
        yield (
            f"  {blocks:>9}{format_bytes(blocks * plan.stored_bytes):>16}"
            f"{curve.hit_ratio(blocks):>12.4f}{curve.hit_token_ratio(blocks):>18.4f}"
        )
