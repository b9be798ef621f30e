"""``--kv-datasize``: how much a load needs, from the formula that plans the runs.

Controller side; imports neither pytest nor MPI. Returns text, and writes JSON where asked.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.atomic import write_json
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.options.options import OPTIONS
from pytest_kvcache.plan.forecast import Forecast, describe_hits, forecast
from pytest_kvcache.plan.planner import CaseName, Planner, name_cases
from pytest_kvcache.plan.tracesizes import RANKS, TraceSizes, sizes_of
from pytest_kvcache.plan.wholeobjects import options_of
from pytest_kvcache.registry import build_registry
from pytest_kvcache.report.curveplot import COLUMNS as PLOT_COLUMNS
from pytest_kvcache.report.curveplot import plot
from pytest_kvcache.report.tables import describe_block
from pytest_kvcache.showable import can_show
from pytest_kvcache.traces.recorded import reading_notes
from pytest_kvcache.units import GIB, format_bytes, format_count
from pytest_kvcache.version import VERSION
from pytest_kvcache.workloads.replay import recorded_span_s
from pytest_kvcache.workloads.retrieval import longest_blocks
from pytest_kvcache.workloads.synthetic import SyntheticFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TextIO

    from pytest_kvcache.models import ModelSpec
    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.plan.tracesizes import CurvePoint
    from pytest_kvcache.registry import Registry
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import WorkloadFamily
    from pytest_kvcache.workloads.scenarios import Profile

SCHEMA = "pytest-kvcache/datasize/1"
_CONTEXT_TOKENS = (4_096, 8_192, 32_768, 131_072)
# Options that decide the sizes, or what a trial writes, in the order of the report.
DECIDES = (
    "closed", "plugin", "scenario", "workload", "model", "kv_dtype", "trace", "trace_speedup",
    "trace_cycles", "trace_limit", "trace_time_unit", "trace_ids", "num_users", "load_steps",
    "duration", "ramp", "requests", "request_rate", "arrival", "generation_mode", "seed",
    "context_scale", "disable_multi_turn", "disable_prefix_caching", "enable_rag", "rag_num_docs",
    "phase", "restart_by", "reread_factor", "precondition", "fill", "block_tokens",
    "tensor_parallel", "layout", "store",
    "queue_depth", "transfer_size", "engine", "lookup", "publish", "request_depth",
    "gpu_mem_gb", "cpu_mem_gb", "tier_policy", "cpu_tier",
    "gpu_backend", "storage_capacity_gb", "cache_dir", "backend",
)  # fmt: skip
_INDENT = " " * 28
# Options that change nothing here, and those that do not where a trace has its own.
UNUSED = (
    "image", "container_engine", "ssh", "python", "deadline", "wait", "trials", "target_ci",
    "performance_profile", "prefill_rate", "cost", "power", "io", "sync", "io_engine", "verify",
    "data", "keep", "results_dir", "metrics", "allow_invalid", "allow_preload", "compare",
    "compare_across", "fail", "allow_inconclusive", "slo", "html", "io_trace", "backend_option",
    "enable_autoscaling", "autoscaler_mode", "interference", "drop_caches", "sharing",
    "full_queue",
)  # fmt: skip
UNUSED_BY_A_TRACE = (
    "num_users", "load_steps", "duration", "ramp", "context_scale", "generation_mode",
    "request_rate", "arrival", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What the text goes to: ``plain`` knows no signs beyond ASCII, ``coloured`` takes colours."""

    plain: bool = True
    coloured: bool = False

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Screen:
        """Colours are for terminals, and not where NO_COLOR says so (https://no-color.org)."""
        takes = stream.isatty() and environ.get("TERM", "") not in ("", "dumb", "unknown")
        return cls(
            plain=not can_show(stream.encoding or "ascii"),
            coloured=takes and not environ.get("NO_COLOR"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSizes:
    """The sizes of one scenario and model, of one rank where nothing else is said.

    ``ranks`` has for each number of ranks: users of all, bytes of the largest rank and of
    all, and the memory of all. ``run`` is what a trial does at the least and most, as
    ``plan/forecast.py`` knows it; None: of a trace, whose own part says it.
    """

    case: CaseName
    plan: Plan
    ranks: tuple[tuple[int, int | None, int, int, int], ...]
    run: Forecast | None
    trace: Trace | None
    of_trace: TraceSizes | None
    fill_gib_per_s: float | None

    @property
    def need_bytes(self) -> int:
        """What one rank stores if nothing is evicted."""
        return self.plan.need_blocks * self.plan.stored_bytes

    @property
    def fill_bytes(self) -> int:
        """What the storage holds when it is full, or all is there."""
        return min(self.plan.capacity_blocks, self.plan.need_blocks) * self.plan.stored_bytes

    @property
    def fill_s(self) -> float | None:
        """Seconds to fill it: at the rate that was given, else at the trace's; None: neither."""
        if self.fill_gib_per_s is not None:
            return self.fill_bytes / GIB / self.fill_gib_per_s
        return None if self.of_trace is None else self.of_trace.fill_s

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; what is not known is null."""
        plan, model, replays = self.plan, self.case.model, self.trace is not None
        keys = ("ranks", "users", "largest_rank_bytes", "all_ranks_bytes", "memory_bytes")
        run = self.run
        return {
            "scenario": self.case.scenario,
            "model": model.name,
            "bytes_per_token": model.bytes_per_token,
            "tensor_parallel": plan.tensor_parallel,
            "rank_bytes_per_token": model.shard_bytes_per_token(plan.tensor_parallel),
            "block_tokens": plan.block_tokens,
            "block_bytes": plan.stored_bytes,
            "users_per_rank": None if replays else plan.users,
            "user_bytes": None if replays else self.need_bytes // plan.users,
            "need_blocks": plan.need_blocks,
            "need_bytes": self.need_bytes,
            "tiers": [tier.to_json() for tier in plan.tiers],
            "tier_policy": plan.tier_policy if plan.tiers else None,
            "storage_capacity_blocks": plan.capacity_blocks,
            "storage_capacity_bytes": plan.capacity_bytes,
            "memory_bytes": plan.memory_bytes,
            "fill_bytes": self.fill_bytes,
            "fill_gib_per_s": self.fill_gib_per_s,
            "fill_s": self.fill_s,
            "hosts": [dict(zip(keys, row, strict=True)) for row in self.ranks],
            "run": None if run is None else {
                "population_bytes": run.population_bytes, "written_bytes": run.written_bytes,
                "read_bytes": run.read_bytes, "window_s": run.window_s, "exact": run.exact,
                "hit_ratio": run.hit_ratio,
            },
            "trace": None if self.of_trace is None else self.of_trace.to_json(),
        }  # fmt: skip


def datasize_report(options: Options, screen: Screen = Screen()) -> str:
    """The sizes of every scenario and model; OptionError for a distributed option.

    Distributed options count only where they were typed: an ini that serves runs as
    well must not forbid this. ``--kv-datasize-json`` is written when all is calculated.
    """
    for spec in OPTIONS:
        if spec.distributed and options.origins.get(spec.name) == "command line":
            raise OptionError(
                f"{spec.flag} is given together with --kv-datasize, which calculates per rank"
                f" and for 1, 2, 4 … ranks; drop {spec.flag}"
            )
    target = _target(options)
    registry = build_registry(options.plugin)
    planner = Planner(registry, "datasize", launches=False)
    names = [*_one_rank_cases(options, registry)]
    lines: list[str] = [
        *_ini_lines(options, names, registry),
        *_unused_lines(options, names, registry),
    ]
    found = []
    for name in names:
        sizes = _sizes(options, registry, planner, name)
        found.append(sizes.to_json())
        lines += [*_case(options, registry, sizes, screen), ""]
    if target is not None:
        _write(target, found)
        lines.append(f"Written to {target}.")
    return "\n".join(lines).rstrip()


def _target(options: Options) -> Path | None:
    """Where the JSON goes; OptionError, before anything is calculated, if it can't."""
    if options.datasize_json is None:
        return None
    path = Path(options.datasize_json)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else "lies in a directory that does not exist"
        raise OptionError(f"--kv-datasize-json is {path}, which {what}; name a file in one")
    return path


def _write(path: Path, cases: Sequence[Mapping[str, Any]]) -> None:
    try:
        write_json(path, {"schema": SCHEMA, "version": VERSION, "cases": list(cases)})
    except OSError as error:
        raise OptionError(
            f"--kv-datasize-json is {path}, which can't be written ({error.strerror}); name a file"
            " that can"
        ) from error


def _unused_lines(options: Options, names: Sequence[CaseName], registry: Registry) -> Iterator[str]:
    """What was typed and changes nothing; an ini serves runs as well."""
    unused = {*UNUSED, *_of_no_case(options, names, registry)}
    found = [spec.flag for spec in OPTIONS if spec.name in unused and options.overrides(spec.name)]
    if found:
        yield from textwrap.wrap(
            f"Not used, since sizes do not depend on it: {', '.join(found)}.",
            79,
            break_on_hyphens=False,
        )
        yield ""


def _of_no_case(options: Options, names: Sequence[CaseName], registry: Registry) -> tuple[str, ...]:
    """What decides nothing where every case replays a trace."""
    own = options.workload.scenarios
    replays = all(registry.workload(name.scenario, own).needs_trace for name in names)
    return UNUSED_BY_A_TRACE if replays else ()


def _ini_lines(options: Options, names: Sequence[CaseName], registry: Registry) -> Iterator[str]:
    """What an ini file decides of the sizes: a checkout may have one for a quick look."""
    unused = _of_no_case(options, names, registry)
    found = [
        f"{name} = {text if isinstance(text, str) else ' '.join(text)}"
        for name in DECIDES
        for text, origin in [options.texts.get(name, ("", "default"))]
        if origin == "ini" and name not in unused
    ]
    if found:
        shown = f"From the ini file: {', '.join(found)}. The command line wins over it."
        yield from textwrap.wrap(shown, 79)
        yield ""


def _one_rank_cases(options: Options, registry: Registry) -> Iterator[CaseName]:
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))
    seen = set()
    for name in name_cases(options, registry):
        key = (name.scenario, name.model.name)
        if key not in seen:
            seen.add(key)
            yield CaseName(scenario=name.scenario, model=name.model, layout=layout)


def _sizes(options: Options, registry: Registry, planner: Planner, name: CaseName) -> CaseSizes:
    """Calculate all of one case."""
    family = registry.workload(name.scenario, options.workload.scenarios)
    options = options_of(options, family)
    case = planner.plan(options, name)
    plan, trace = case.plan, case.trace
    of_trace = None
    if trace is not None and trace.operations is None:  # an I/O trace's hits were decided
        of_trace = sizes_of(trace, plan, PLOT_COLUMNS)
    run = None
    if trace is None:
        run = forecast(plan, None, family)
    return CaseSizes(
        case=name,
        plan=plan,
        ranks=tuple(_ranks(options, planner, name, plan, of_trace)),
        run=run,
        trace=trace,
        of_trace=of_trace,
        fill_gib_per_s=options.datasize_write_gib_per_s,
    )


def _ranks(
    options: Options, planner: Planner, name: CaseName, plan: Plan, of_trace: TraceSizes | None
) -> Iterator[tuple[int, int | None, int, int, int]]:
    """Users of all ranks, and need of the largest rank and of all ranks of one host."""
    if of_trace is not None:
        for part in of_trace.parts:
            largest, total = part.largest_blocks, part.all_blocks
            yield _rank_row(plan, part.ranks, None, largest, total)
        return
    for ranks in RANKS:
        layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=ranks),))
        try:
            largest, total = planner.size(options, replace(name, layout=layout))
        except OptionError:
            return  # an I/O trace of fewer users
        users = None if plan.trace is not None else plan.users * ranks
        yield _rank_row(plan, ranks, users, largest, total)


def _rank_row(
    plan: Plan, ranks: int, users: int | None, largest: int, total: int
) -> tuple[int, int | None, int, int, int]:
    block_bytes = plan.stored_bytes
    return ranks, users, largest * block_bytes, total * block_bytes, plan.memory_bytes * ranks


# --- text -----------------------------------------------------------------------------------


def _case(options: Options, registry: Registry, sizes: CaseSizes, screen: Screen) -> Iterator[str]:
    name, plan, trace, need = sizes.case, sizes.plan, sizes.trace, sizes.need_bytes
    yield f"{name.scenario} · {name.model.name}"
    operations = None if trace is None else trace.operations
    family = registry.workload(name.scenario, options.workload.scenarios)
    if trace is None:
        yield from _user_lines(options, family, plan)
    elif operations is None:
        yield from _trace_lines(trace)
    if operations is None:
        yield from _model_lines(options, name.model, plan)
    else:
        yield f"  I/O trace                 {format_count(len(operations.kind), 'operation')}"
        yield f"  largest object            {format_bytes(operations.largest_bytes)}"
    users = "the trace" if trace is not None else format_count(plan.users, "user")
    blocks = format_count(plan.need_blocks, "block")
    yield f"  working set per rank      {format_bytes(need)} ({users}, {blocks})"
    if trace is None:
        yield f"  working set per user      {format_bytes(need // plan.users)} on average"
    yield from _tier_lines(plan, need)
    yield from _capacity_lines(plan)
    memory, buffers = format_bytes(plan.memory_bytes), format_bytes(plan.buffer_bytes)
    yield f"  memory per rank           {memory}, of them {buffers} buffers"
    yield from _fill_lines(sizes)
    yield from _run_lines(sizes)
    if trace is None and plan.own_block_bytes is None:  # contexts in blocks of one size
        yield ""
        yield from _contexts_table(plan)
    yield ""
    yield from _ranks_table(sizes)
    if sizes.of_trace is not None and trace is not None:
        yield from _hit_lines(sizes.of_trace, screen)
        if plan.in_buckets and sizes.of_trace.reachable_hit_ratio:
            yield ""
            yield from textwrap.wrap(
                f"{plan.engine} displaces whole buckets, the oldest first, and hits other blocks"
                " than LRU: --kv-dry-run counts them.",
                79, initial_indent="  ", subsequent_indent="  ",
            )  # fmt: skip
        if plan.tiers:
            yield ""
            yield from _behind_lines(sizes.of_trace)
            if sizes.of_trace.behind is None:
                found = forecast(plan, trace, family)
                yield from _noted("through these tiers", describe_hits(found))


def _capacity_lines(plan: Plan) -> Iterator[str]:
    """What a rank has room for, and what comes of it where that is less than it needs."""
    yield f"  storage capacity per rank {format_bytes(plan.capacity_bytes)}{_why_less(plan)}"
    if plan.trace is not None or plan.capacity_blocks >= plan.need_blocks:
        return
    held = f"{plan.capacity_blocks / plan.need_blocks:.0%} of the working set"
    if plan.restarts:
        yield f"{_INDENT}{held}, all of it stored and found again"
        return
    yield f"{_INDENT}{held}; how much is hit then depends"
    yield f"{_INDENT}on the storage's speed too"


def _fill_lines(sizes: CaseSizes) -> Iterator[str]:
    """How long it takes until the storage is full."""
    amount = format_bytes(sizes.fill_bytes)
    if sizes.fill_gib_per_s is not None:
        shown = f"{sizes.fill_s:,.4g} s to write {amount} at {sizes.fill_gib_per_s:g} GiB/s"
    elif sizes.fill_s is not None:
        shown = f"{sizes.fill_s:,.6g} s at the trace's own times, until {amount} were asked for"
    else:
        shown = "depends on what is written per second; --kv-datasize-write-gib-per-s=X says it"
    yield from _noted("time to fill", shown)


def _run_lines(sizes: CaseSizes) -> Iterator[str]:
    """What a trial of one rank writes."""
    plan, run, of_trace = sizes.plan, sizes.run, sizes.of_trace
    if plan.precondition_bytes:
        first = f"writes {format_bytes(plan.precondition_bytes)}, in whole blocks, before all else"
        yield from _noted("precondition", f"{first} (--kv-precondition)")
    if of_trace is not None and not plan.tiers:
        stored = format_bytes(of_trace.stored_blocks * plan.stored_bytes)
        yield from _noted("a trial of one rank", f"writes {stored} until the trace is over")
    if run is not None:
        most = "at a rate that the storage decides"
        if run.written_bytes is not None:
            most = f"up to {format_bytes(run.written_bytes)}"
        before = format_bytes(run.population_bytes)
        if plan.restarts:
            yield from _noted("a trial of one rank", f"writes {before}, and finds them again")
            return
        yield from _noted(
            "a trial of one rank", f"writes {before} before the window, and {most} in it"
        )


def _tier_lines(plan: Plan, need_bytes: int) -> Iterator[str]:
    """What is where, fastest first, and what the storage needs behind them."""
    storage = f"storage {format_bytes(need_bytes)}"
    if not plan.tiers:
        yield f"  tiers per rank            gpu 0 B, cpu 0 B, {storage}"
        return
    tiers = ", ".join([*map(str, plan.tiers), storage])
    yield from _noted("tiers per rank", f"{tiers}; {plan.tier_policy}")
    demotes = plan.tier_policy == "demote"
    held = sum(plan.tier_blocks) if demotes else max(plan.tier_blocks)
    if held >= plan.need_blocks:
        what = "is read" if not demotes else "is read or written"
        seldom = "never" if plan.trace is not None else "seldom, if at all"
        shown = f"memory holds all that a rank asks for: the storage {what} {seldom}"
        yield from _noted("larger than needed", shown)


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
    yield from _document_lines(options, plan, users)


def _document_lines(
    options: Options, plan: Plan, users: Iterable[tuple[Profile, int]]
) -> Iterator[str]:
    """Each user that retrieves has documents of its own, which may be most of what is stored."""
    retrieval = None if plan.dialogues is None else plan.dialogues.retrieval
    if retrieval is None:
        return
    of_user_bytes = longest_blocks(retrieval, plan.context(0, None)) * plan.stored_bytes
    retrieving = sum(count for profile, count in users if profile.retrieval_ratio)
    yield from _noted(
        "documents",
        f"{retrieval.documents:,} ({_origin(options, 'rag_num_docs')}) of each of"
        f" {format_count(retrieving, 'user')}: {format_bytes(retrieving * of_user_bytes)} of the"
        " working set",
    )


def _trace_lines(trace: Trace) -> Iterator[str]:
    """What is replayed, and what its times are in."""
    span_s, requests = recorded_span_s(trace, 1), format_count(len(trace), "request")
    yield f"  trace                     {requests}" + (f" within {span_s:,.6g} s" if span_s else "")
    if trace.reading is not None:
        yield f"  timestamps                {trace.reading.unit}"
    if trace.reading is not None and trace.reading.unit.doubt:
        yield from _noted("doubt", trace.reading.unit.doubt)
    prompts = trace.input_tokens
    shown = _tokens(int(prompts.min()), int(prompts.max()), float(prompts.mean()))
    yield f"  prompt                    {shown}"
    if trace.reading is not None:
        reading = trace.reading
        for note in reading_notes(reading.ids, reading.left_out, reading.tokens_by):
            yield from _noted("read", note)
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
    yield f"  stored as                 {model.dtype}"
    if model.bytes_per_late_token != whole:
        yield f"  beyond the windows        {model.bytes_per_late_token:,}"
    if model.state_bytes:
        yield f"  state of a context        {format_bytes(model.state_bytes)}, stored per block"
    own = _origin(options, "block_tokens") if plan.trace is None else ""
    if plan.own_block_bytes is not None:  # of objects of many sizes
        own = plan.origins["block_tokens"]
    tokens = format_count(plan.block_tokens, "token") + (f" ({own})" if own else "")
    label = "block" if plan.own_block_bytes is None else "largest object"
    yield from _noted(label, f"{tokens}, {describe_block(plan)}")
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


def _ranks_table(sizes: CaseSizes) -> Iterator[str]:
    of_users = sizes.trace is None
    yield (
        f"  {'ranks':>7}{'all users' if of_users else '':>12}{'largest rank':>16}"
        f"{'all ranks':>16}{'memory of all':>18}"
    )
    for ranks, users, *found in sizes.ranks:
        largest, total, memory = map(format_bytes, found)
        shown = "" if users is None else users
        yield f"  {ranks:>7}{shown:>12}{largest:>16}{total:>16}{memory:>18}"


# --- text of a trace ------------------------------------------------------------------------


def _hit_lines(found: TraceSizes, screen: Screen) -> Iterator[str]:
    """Capacity → hit ratio of an exact LRU-prefix cache that all requests share."""
    if found.reachable_hit_ratio is None:
        yield ""
        yield "  hit ratio: can't be told, the trace has no block ids"
        return
    if not found.reachable_hit_ratio:
        yield ""
        yield "  hit ratio: 0 at any capacity, for no prompt shares a block with one before it"
        return
    passes = f", {found.cycles} cycles" if found.cycles > 1 else ""
    yield ""
    yield f"  hit ratio by capacity, one cache{passes}; {found.reachable_hit_ratio:.4f} at most"
    yield (
        f"  {'of that':>7}{'blocks':>13}{'capacity':>13}{'hit ratio':>11}{'of tokens':>11}"
        f"{'optimum':>11}"
    )
    for point in found.curve:
        yield _curve_row(point)
    if found.cycles == 1:
        yield from textwrap.wrap(
            "optimum: what the best of all caches of that size hits, which knows the future"
            " (Belady's MIN for prefixes); none hits more.",
            79, initial_indent="  ", subsequent_indent="  ",
        )  # fmt: skip
    yield ""
    most = format_bytes(found.whole.capacity_bytes)
    yield from plot(found.plot, most, plain=screen.plain, coloured=screen.coloured)
    yield from _shared_lines(found)


def _curve_row(point: CurvePoint) -> str:
    percent = point.of_reachable_percent
    share = f"{percent} %" if percent else "yours"
    ratios = (point.hit_ratio, point.token_hit_ratio, point.optimal_hit_ratio)
    cells = "".join(f"{_ratio(each):>11}" for each in ratios)
    return (
        f"  {share:>7}{point.capacity_blocks:>13,}{format_bytes(point.capacity_bytes):>13}{cells}"
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _shared_lines(found: TraceSizes) -> Iterator[str]:
    """One cache for all, or one for each rank that has an equal part of the capacity."""
    if len(found.parts) < 2:  # noqa: PLR2004  one conversation, for one rank
        return
    listed = [n for n, point in enumerate(found.curve) if point.of_reachable_percent]
    yield ""
    yield "  hit ratio where ranks share one cache, or have an equal part of it each"
    sizes = "".join(f"{format_bytes(found.curve[n].capacity_bytes):>11}" for n in listed)
    yield f"  {'all ranks':<11}{sizes}"
    for part in found.parts:
        label = "shared" if part.ranks == 1 else f"{part.ranks} ranks"
        yield f"  {label:<11}" + "".join(f"{_ratio(part.hit_ratios[n]):>11}" for n in listed)


def _behind_lines(found: TraceSizes) -> Iterator[str]:
    """What a memory tier leaves to the storage."""
    behind = found.behind
    if behind is None:
        yield from textwrap.wrap(found.why_not_behind, 77, initial_indent="  ")
        return
    size = format_bytes(behind.memory_bytes)
    yield f"  storage behind {behind.memory_name} {size}, {behind.policy}; ratios of all blocks"
    yield (
        f"  {'of rest':>7}{'blocks':>13}{'capacity':>13}{'in memory':>11}{'in storage':>12}"
        f"{'is given':>13}"
    )
    for point in behind.points:
        percent = point.of_reachable_percent
        share = f"{percent} %" if percent else "yours" if point.is_own else ""
        yield (
            f"  {share:>7}{point.capacity_blocks:>13,}{format_bytes(point.capacity_bytes):>13}"
            f"{_ratio(point.memory_hit_ratio):>11}{_ratio(point.storage_hit_ratio):>12}"
            f"{format_bytes(point.stored_bytes):>13}"
        )
