"""``--kv-datasize``: how much a load needs, from the formula that plans the runs.

Controller side; imports neither pytest nor MPI. Returns text.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.options.options import OPTIONS
from pytest_kvcache.plan.planner import CaseName, Planner, name_cases
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.tables import describe_block
from pytest_kvcache.traces.reuse import hit_curve
from pytest_kvcache.units import format_bytes, format_count
from pytest_kvcache.workloads.replay import recorded_span_s
from pytest_kvcache.workloads.synthetic import SyntheticFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import WorkloadFamily

_RANKS = (1, 2, 4, 8, 16, 32, 64)
_HIT_SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # of what an infinite cache would hit
_CONTEXT_TOKENS = (4_096, 8_192, 32_768, 131_072)
# Options that decide the sizes, in the order of the report.
_DECIDES = (
    "scenario", "model", "trace", "num_users", "context_scale", "block_tokens",
    "tensor_parallel", "layout", "storage_capacity_gb",
)  # fmt: skip
_INDENT = " " * 28
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
    lines: list[str] = [*_ini_lines(options)]
    for name in _one_rank_cases(options, registry):
        lines += _case(options, registry, planner, name)
        lines.append("")
    return "\n".join(lines).rstrip()


def _ini_lines(options: Options) -> Iterator[str]:
    """What an ini file decides of the sizes: a checkout may have one for a quick look."""
    found = [
        f"{name} = {text if isinstance(text, str) else ' '.join(text)}"
        for name in _DECIDES
        for text, origin in [options.texts.get(name, ("", "default"))]
        if origin == "ini"
    ]
    if found:
        told = f"From the ini file: {', '.join(found)}. The command line wins over it."
        yield from textwrap.wrap(told, 79)
        yield ""


def _one_rank_cases(options: Options, registry: Registry) -> Iterator[CaseName]:
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))
    seen = set()
    for name in name_cases(options, registry):
        key = (name.scenario, name.model.name)
        if key not in seen:
            seen.add(key)
            yield CaseName(scenario=name.scenario, model=name.model, layout=layout)


def _case(options: Options, registry: Registry, planner: Planner, name: CaseName) -> Iterator[str]:
    case = planner.plan(options, name)
    plan = case.plan
    yield f"{name.scenario} · {name.model.name}"
    if case.trace is not None:
        yield from _trace_lines(case.trace)
    else:
        yield from _user_lines(options, registry.workload(name.scenario), plan)
    yield from _model_lines(options, name.model, plan)
    need = plan.need_blocks * plan.stored_bytes
    users = "the trace" if case.trace is not None else format_count(plan.users, "user")
    blocks = format_count(plan.need_blocks, "block")
    yield f"  working set per rank      {format_bytes(need)} ({users}, {blocks})"
    if case.trace is None:
        yield f"  working set per user      {format_bytes(need // plan.users)} on average"
    yield f"  tiers per rank            gpu 0 B, cpu 0 B, storage {format_bytes(need)}"
    yield f"  storage capacity per rank {format_bytes(plan.capacity_bytes)}{_why_less(plan)}"
    if case.trace is None and plan.capacity_blocks < plan.need_blocks:
        held = plan.capacity_blocks / plan.need_blocks
        yield f"{_INDENT}{held:.0%} of the working set; how much is hit then depends"
        yield f"{_INDENT}on the storage's speed too"
    memory, buffers = format_bytes(plan.memory_bytes), format_bytes(plan.buffer_bytes)
    yield f"  memory per rank           {memory}, of them {buffers} buffers"
    if case.trace is None:
        yield ""
        yield from _contexts_table(plan)
    yield ""
    yield from _ranks_table(options, planner, name, plan)
    if case.trace is not None:
        yield ""
        yield from _hit_lines(case.trace, plan)


def _user_lines(options: Options, family: WorkloadFamily, plan: Plan) -> Iterator[str]:
    """Who the users are, and where their number and their contexts come from."""
    yield f"  users per rank            {plan.users:,} ({_origin(options, 'num_users')})"
    scale, origin = plan.context_scale, _origin(options, "context_scale")
    yield f"  context scale             {scale:g} ({origin})"
    if not isinstance(family, SyntheticFamily):
        return  # a plugin's: it tells its need and nothing else
    users = family.users_of(plan.context(0, None)).values()
    lengths = [profile.context_tokens for profile, _count in users]
    mean = sum(profile.context_tokens * count for profile, count in users) / plan.users
    yield f"  longest context of a user {_tokens(min(lengths), max(lengths), mean)}"
    low = min(profile.think_s.low for profile, _count in users)
    high = max(profile.think_s.high for profile, _count in users)
    think = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    yield f"  think time                {think} s"


def _trace_lines(trace: Trace) -> Iterator[str]:
    """What is replayed, and what its times are in."""
    span = recorded_span_s(trace, 1)
    yield f"  trace                     {format_count(len(trace), 'request')} within {span:,.6g} s"
    if trace.reading is not None:
        yield f"  timestamps                {trace.reading.unit}"
    if trace.reading is not None and trace.reading.unit.doubt:
        yield from _noted("doubt", trace.reading.unit.doubt)
    prompts = trace.input_tokens
    told = _tokens(int(prompts.min()), int(prompts.max()), float(prompts.mean()))
    yield f"  prompt                    {told}"
    if trace.reading is not None and trace.reading.block_why:
        yield from _noted("block size", trace.reading.block_why)


def _tokens(low: int, high: int, mean: float) -> str:
    """A span and its mean, unless all are the same."""
    if low == high:
        return format_count(low, "token")
    return f"{low:,} to {high:,} tokens, {mean:,.0f} on average"


def _origin(options: Options, name: str) -> str:
    origin = options.origins.get(name, "default")
    return "ini file" if origin == "ini" else origin


def _noted(label: str, text: str) -> Iterator[str]:
    wrapped = textwrap.wrap(
        text, 79, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
    )
    yield f"  {label:<26}" + "\n".join(wrapped).lstrip()


def _model_lines(options: Options, model: ModelSpec, plan: Plan) -> Iterator[str]:
    whole = model.bytes_per_token
    shard = model.shard_bytes_per_token(options.tensor_parallel)
    per_rank = "" if shard == whole else f", {shard:,} per rank of {options.tensor_parallel}"
    yield f"  bytes per token           {whole:,}{per_rank}"
    own = _origin(options, "block_tokens") if plan.trace is None else ""
    tokens = format_count(plan.block_tokens, "token") + (f" ({own})" if own else "")
    yield f"  block                     {tokens}, {describe_block(plan)}"
    if model.note:
        yield from _noted("note", model.note)


def _why_less(plan: Plan) -> str:
    if plan.capacity_blocks >= plan.need_blocks:
        return ""
    if plan.origins["capacity_blocks"] != "default":
        return f" (from the {plan.origins['capacity_blocks']})"
    return f" (90 % of what is free in {plan.cache_dir})"


def _contexts_table(plan: Plan) -> Iterator[str]:
    """Whatever the scenario's contexts are: what contexts of other lengths take."""
    found = [tokens // plan.block_tokens * plan.stored_bytes for tokens in _CONTEXT_TOKENS]
    rows = {
        "context of a user, tokens": [f"{tokens:,}" for tokens in _CONTEXT_TOKENS],
        "one user": [format_bytes(size) for size in found],
        format_count(plan.users, "user"): [format_bytes(size * plan.users) for size in found],
    }
    for label, cells in rows.items():
        yield f"  {label:<25}" + "".join(f"{cell:>13}" for cell in cells)


def _ranks_table(options: Options, planner: Planner, name: CaseName, plan: Plan) -> Iterator[str]:
    """Users of all ranks, and need of the largest rank and of all ranks of one host."""
    of_users = plan.trace is None
    yield (
        f"  {'ranks':>7}{'all users' if of_users else '':>12}{'largest rank':>16}"
        f"{'all ranks':>16}{'memory of all':>18}"
    )
    for ranks in _RANKS:
        layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=ranks),))
        try:
            largest, total = planner.size(options, replace(name, layout=layout))
        except OptionError:
            return  # a trace with conversations for fewer ranks
        yield (
            f"  {ranks:>7}{plan.users * ranks if of_users else '':>12}"
            f"{format_bytes(largest * plan.stored_bytes):>16}"
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
    own = min(plan.capacity_blocks, curve.distinct_blocks)
    rows = {blocks for blocks in found if blocks is not None} | {own}
    for blocks in sorted(rows):
        mark = f"   your {format_bytes(plan.capacity_bytes)}" if blocks == own else ""
        yield (
            f"  {blocks:>9}{format_bytes(blocks * plan.stored_bytes):>16}"
            f"{curve.hit_ratio(blocks):>12.4f}{curve.hit_token_ratio(blocks):>18.4f}{mark}"
        )
