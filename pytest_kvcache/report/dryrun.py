"""``--kv-dry-run``: what a run would do, what it costs, and every value with its origin.

Pure text; prints nothing. Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.phases import PHASES
from pytest_kvcache.plan.forecast import describe_forecast, preconditioned_bytes
from pytest_kvcache.plan.plan import WITHSTANDS
from pytest_kvcache.plan.tiers import describe_tiers
from pytest_kvcache.report.headline import describe_aim
from pytest_kvcache.report.progress import short_duration
from pytest_kvcache.report.tables import describe_block, describe_plan, describe_window
from pytest_kvcache.showable import COLUMNS
from pytest_kvcache.units import GIB, format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.forecast import Forecast
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.workloads.scenarios import Dialogues

_START_S = 8.0  # until ranks are together, and until everything is cleared away
_BYTES_PER_S = GIB  # assumed of what is stored before the window, and said
_LABEL = 11  # columns of a fact's name
_NAME = 24  # columns of an option's name


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """Everything that is to be said of one case.

    ``storage`` says on what the cache directory is, a line per kind of it; ``argv`` is the
    launcher's command.
    """

    plan: Plan
    options: Options
    forecast: Forecast
    storage: Sequence[str]
    argv: Sequence[str]


def describe_dry_run(found: DryRun, *, whole: bool) -> Iterator[str]:
    """The case in 80 columns; ``whole``: with the values that are nobody's choice as well."""
    plan = found.plan
    yield plan.case
    yield from textwrap.wrap(
        describe_plan(plan), COLUMNS - 1, initial_indent="  ", subsequent_indent="    ",
        break_on_hyphens=False,
    )  # fmt: skip
    yield ""
    yield from _facts(found)
    yield ""
    yield from _values(found, whole=whole)
    yield ""
    yield "  command (with -v: all values)" if not whole else "  command"
    yield f"    {shlex.join(found.argv)}"


# --- what it costs --------------------------------------------------------------------------


def _facts(found: DryRun) -> Iterator[str]:
    plan = found.plan
    yield from _fact("takes", time_needed(plan, found.forecast, found.options))
    for sentence in describe_forecast(found.forecast, plan, found.options.trials.high):
        label = next((label for label in ("writes", "hit ratio") if sentence.startswith(label)), "")
        yield from _fact(label, sentence.removeprefix(label).lstrip(": "))
    for line in found.storage:
        yield from _fact("storage", line)
    if plan.traits.stores_data:
        yield from _fact("data", f"{plan.data}, withstands {WITHSTANDS[plan.data]}")
    if not _has_own_users(plan):
        yield from _fact("users", f"{plan.users:,} per rank, {plan.users * plan.np:,} in total")
    if plan.tiers:
        yield from _fact("tiers", describe_tiers(plan.tiers, plan.tier_policy))
        yield from _fact("", f"on a host they take at most {_tiers_of_a_host(plan)}")
    memory = format_bytes(plan.memory_bytes)
    yield from _fact("memory", f"{memory} per rank, {format_bytes(plan.memory_bytes * plan.np)}"
                     " in total, at most")  # fmt: skip


def _tiers_of_a_host(plan: Plan) -> str:
    """The bytes of all ranks of the fullest host, where they are bytes at all."""
    ranks = max(host.ranks for host in plan.layout.hosts)
    device = ranks * sum(tier.capacity_bytes for tier in plan.tiers if tier.is_on_device)
    memory = ranks * sum(tier.host_bytes for tier in plan.tiers)
    taken = f"{format_bytes(memory) if memory else 'nothing'} of its memory"
    return f"{taken} and {format_bytes(device)} of its GPUs'" if device else taken


def _has_own_users(plan: Plan) -> bool:
    """Whether the users are those of a trace at its recorded times."""
    return plan.trace is not None and plan.trace.speedup > 0


def _fact(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS - 1,
        initial_indent=f"  {label:<{_LABEL}}", subsequent_indent=" " * (_LABEL + 2),
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def time_needed(plan: Plan, found: Forecast, options: Options) -> str:
    """How long all trials take, and what that is made of."""
    low, high = options.trials.low, options.trials.high
    many = f"{low} to {high} trials" if low != high else format_count(high, "trial")
    if plan.search_mode is not None:
        low, high = low + 1, high + plan.most_search_steps
        many = f"a search of up to {format_count(plan.most_search_steps, 'load')}, and {many}"
    if plan.interference is not None:
        low, high = 2 * low, 2 * high
        launches = f"{low} to {high}" if low != high else f"{high}"
        many = f"{launches} launches ({many}, each with stores and without)"
    storing_s = found.population_bytes / _BYTES_PER_S
    storing = ""
    if found.population_bytes:
        stored = format_bytes(found.population_bytes)
        storing = f", {short_duration(storing_s)} to store {stored} at 1 GiB/s"
    if before_bytes := preconditioned_bytes(plan):
        before_s = before_bytes / _BYTES_PER_S
        written = f"{short_duration(before_s)} to precondition by {format_bytes(before_bytes)}"
        storing_s, storing = storing_s + before_s, f"{storing}, {written} at 1 GiB/s"
    if found.window_s is None:
        before = short_duration(_START_S + storing_s)
        return f"as long as the storage needs for it: {many}, each with {before} before it{storing}"
    each_s = _START_S + storing_s + found.window_s
    span = short_duration(each_s * high)
    if low != high:
        span = f"{short_duration(each_s * low)} to {span}"
    window = short_duration(found.window_s)
    return (
        f"about {span}: {many} of {short_duration(each_s)} ({window} ramp and window,"
        f" {_START_S:.0f} s start and end{storing})"
    )


# --- the values -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """An option by its name, what it comes to, and where that comes from."""

    name: str
    text: str
    origin: str


def _values(found: DryRun, *, whole: bool) -> Iterator[str]:
    for title, values in _groups(found):
        shown = [value for value in values if whole or value.origin not in ("default", "derived")]
        if shown:
            yield f"  {title}"
        for value in shown:
            yield f"    {value.name:<{_NAME}}{value.text} ({value.origin})"


def _groups(found: DryRun) -> Iterator[tuple[str, list[_Value]]]:
    yield "load", list(_load(found))
    yield "cache and storage", list(_storage(found))
    yield "launch", list(_launch(found))


def _value(found: DryRun, name: str, text: object, field: str | None = None) -> _Value:
    """The value of an option, or of the plan's field that it becomes; a session's has none."""
    origins = found.options.origins
    origin: str = origins.get(name, "default")
    if field is not None:
        origin = found.plan.origins.get(field, "derived")
    shown = "no" if text is False else "yes" if text is True else str(text)
    return _Value(name=name, text=shown, origin=origin)


def _load(found: DryRun) -> Iterator[_Value]:
    plan, options = found.plan, found.options
    yield _value(found, "scenario", plan.scenario, "scenario")
    yield _value(found, "model", plan.model.name, "model")
    yield _value(found, "kv_dtype", plan.model.dtype)
    if not _has_own_users(plan):
        yield _value(found, "num_users", f"{plan.users:,} per rank", "users")
    if plan.load_steps:
        steps = ", ".join(f"{users:,}" for users in plan.load_steps)
        yield _value(found, "load_steps", f"{steps} users per rank", "load_steps")
    if plan.trace is None:
        yield _value(found, "context_scale", f"{plan.context_scale:g}", "context_scale")
    else:
        trace = plan.trace
        yield _value(
            found,
            "trace",
            f"{trace.name} ({trace.format}), {format_count(trace.requests, 'request')}",
        )
        yield _value(found, "trace_speedup", f"{trace.speedup:g}")
        yield _value(found, "trace_cycles", trace.cycles)
        yield _value(found, "trace_limit", trace.limit or "none")
    if plan.request_rate is not None:
        yield _value(found, "request_rate", f"{plan.request_rate:g} per s", "request_rate")
        yield _value(found, "arrival", plan.arrival, "arrival")
    if plan.requests is not None:
        yield _value(found, "requests", f"{plan.requests:,} per rank", "requests")
    yield _value(found, "duration", describe_window(plan), "duration_s")
    yield _value(found, "ramp", f"{plan.ramp_s:g} s", "ramp_s")
    yield _value(found, "trials", options.trials)
    yield _value(found, "phase", plan.phase, "phase")
    yield _value(found, "interference", plan.interference is not None, "interference")
    yield from _of_restart(found)
    yield _value(found, "generation_mode", plan.generation_mode, "generation_mode")
    yield from _of_worth(found)
    if PHASES[plan.phase].is_whole:
        yield _value(found, "reread_factor", plan.reread_factor, "reread_factor")
    if plan.precondition_bytes:
        size = f"{format_bytes(plan.precondition_bytes)} per rank"
        yield _value(found, "precondition", size, "precondition_bytes")
    if plan.fill_blocks:
        filled = f"{format_bytes(plan.fill_blocks * plan.stored_bytes)} per rank"
        yield _value(found, "fill", filled, "fill_blocks")
    yield _value(found, "performance_profile", options.performance_profile)
    if plan.dialogues is not None:
        yield from _of_dialogues(found, plan.dialogues)
    yield _value(found, "seed", plan.seed, "seed")


def _of_restart(found: DryRun) -> Iterator[_Value]:
    """How objects are found again, where that is what is measured."""
    plan = found.plan
    if plan.restarts:
        yield _value(found, "restart_by", plan.restart_by, "restart_by")
        yield _value(found, "drop_caches", plan.drop_caches, "drop_caches")


def _of_worth(found: DryRun) -> Iterator[_Value]:
    """What computing takes, and what the storage costs and draws, as far as somebody says."""
    plan, rate = found.plan, found.plan.prefill_tokens_per_s
    shown = "none: computing takes no time" if rate is None else f"{rate:,.6g} tokens/s"
    yield _value(found, "prefill_rate", shown, "prefill_tokens_per_s")
    if plan.cost_per_hour is not None:
        yield _value(found, "cost", f"{plan.cost_per_hour:g} per hour", "cost_per_hour")
    if plan.power_w is not None:
        yield _value(found, "power", f"{plan.power_w:g} W", "power_w")
    if plan.search_mode is not None:
        yield _value(found, "enable_autoscaling", describe_aim(plan), "search")


def _of_dialogues(found: DryRun, dialogues: Dialogues) -> Iterator[_Value]:
    """What an option changes of the users of a synthetic scenario."""
    yield _value(found, "workload", dialogues.file or "as shipped")
    yield _value(found, "disable_multi_turn", not dialogues.multi_turn)
    yield _value(found, "disable_prefix_caching", not dialogues.prefix_caching)
    yield _value(found, "enable_rag", found.options.enable_rag)
    if dialogues.retrieval is not None:
        yield _value(found, "rag_num_docs", dialogues.retrieval.documents)


def _storage(found: DryRun) -> Iterator[_Value]:
    plan, options = found.plan, found.options
    yield _value(found, "backend", plan.backend, "backend")
    if plan.backend_options:
        settings = " ".join(f"{name}={value}" for name, value in plan.backend_options.items())
        yield _value(found, "backend_option", settings, "backend_options")
    if plan.needs_directory:
        yield _value(found, "cache_dir", plan.cache_dir, "cache_dir")
    yield from _tier_values(found)
    blocks = format_count(plan.capacity_blocks, "block")
    capacity = f"{format_bytes(plan.capacity_bytes)} per rank, {blocks}"
    decided = _value(found, "storage_capacity_gb", capacity, "capacity_blocks")
    if not options.storage_capacity_gb:  # 0: what is needed, or what there is
        decided = _Value(name=decided.name, text=capacity, origin="derived")
    yield decided
    tokens = f"{format_count(plan.block_tokens, 'token')} = {describe_block(plan)}"
    yield _value(found, "block_tokens", tokens, "block_tokens")
    yield _value(found, "layout", plan.object_layout, "object_layout")
    if plan.store is not None:
        yield _value(found, "store", plan.store, "store")
    if plan.traits.unit == "range":
        yield _value(found, "transfer_size", format_bytes(plan.chunk_bytes), "transfer_size")
    if plan.calls is not None or plan.request_depth is not None:
        yield _value(found, "engine", plan.engine or "none", "engine")
        yield _value(found, "lookup", plan.lookup, "lookup")
        yield _value(found, "publish", plan.publish, "publish")
        depth = "one after the other" if plan.in_buckets else plan.request_depth or "all"
        yield _value(found, "request_depth", depth, "request_depth")
    if plan.shares:
        yield _value(found, "sharing", plan.sharing, "sharing")
    if PHASES[plan.phase].stores:
        yield _value(found, "full_queue", plan.full_queue, "full_queue")
    for name in (
        "io",
        "sync",
        "queue_depth",
        "io_engine",
        "tensor_parallel",
        "verify",
        "data",
        "keep",
    ):
        packed = name == "queue_depth" and plan.in_buckets
        shown = _depth_of_buckets(plan) if packed else getattr(plan, name)
        yield _value(found, name, shown, name)


def _depth_of_buckets(plan: Plan) -> str:
    """What is under way of a store that packs: its queue depth is that of objects in memory."""
    phase = PHASES[plan.phase]
    written, read = "a bucket", f"{plan.bucket_readers} loads"
    return " and ".join([written] * phase.stores + [read] * phase.loads)


def _tier_values(found: DryRun) -> Iterator[_Value]:
    """What an option says of a tier that is not there is nobody's value."""
    plan, options = found.plan, found.options
    tiers = {tier.name: tier for tier in plan.tiers}
    for name, size in (("gpu", options.gpu_mem_gb), ("cpu", options.cpu_mem_gb)):
        yield _value(found, f"{name}_mem_gb", f"{format_bytes(size)} per rank")
    if "gpu" in tiers:
        yield _value(found, "gpu_backend", tiers["gpu"].kind)
    if "cpu" in tiers:
        yield _value(found, "cpu_tier", tiers["cpu"].kind)
    if tiers:
        yield _value(found, "tier_policy", plan.tier_policy, "tier_policy")


def _launch(found: DryRun) -> Iterator[_Value]:
    plan, options = found.plan, found.options
    hosts = ", ".join(f"{host.name}:{host.ranks}" for host in plan.layout.hosts)
    yield _value(found, "hosts", hosts)
    yield _value(found, "np", plan.np)
    yield _value(found, "mpi_bin", options.mpi_bin)
    if plan.plugins:
        yield _value(found, "plugin", " ".join(plan.plugins), "plugins")
    yield _value(found, "deadline", f"{plan.deadline_s:.0f} s per launch", "deadline_s")
    yield _value(found, "results_dir", options.results_dir)
