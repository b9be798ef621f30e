"""``--kv-dry-run``: what a run would do, what it costs, and every value with its origin.

Pure text; prints nothing. Controller side; imports neither pytest nor MPI.
"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.plan.forecast import describe_forecast
from pytest_kvcache.plan.plan import WITHSTANDS
from pytest_kvcache.report.progress import short_duration
from pytest_kvcache.report.tables import describe_block, describe_plan
from pytest_kvcache.showable import COLUMNS
from pytest_kvcache.units import GIB, format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_kvcache.options.options import Options
    from pytest_kvcache.plan.forecast import Forecast
    from pytest_kvcache.plan.plan import Plan

_START_S = 8.0  # until ranks are together, and until everything is cleared away
_BYTES_PER_S = GIB  # assumed of what is stored before the window, and said
_LABEL = 11  # columns of a fact's name
_NAME = 21  # columns of an option's name


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
    yield from _fact("takes", time_needed(found.forecast, found.options))
    for sentence in describe_forecast(found.forecast, plan, found.options.trials.high):
        label = next((label for label in ("writes", "hit ratio") if sentence.startswith(label)), "")
        yield from _fact(label, sentence.removeprefix(label).lstrip(": "))
    for line in found.storage:
        yield from _fact("storage", line)
    if plan.traits.stores_data:
        yield from _fact("data", f"{plan.data}, withstands {WITHSTANDS[plan.data]}")
    if not _has_own_users(plan):
        yield from _fact("users", f"{plan.users:,} per rank, {plan.users * plan.np:,} in total")
    memory = format_bytes(plan.memory_bytes)
    yield from _fact("memory", f"{memory} per rank, {format_bytes(plan.memory_bytes * plan.np)}"
                     " in total, at most")  # fmt: skip


def _has_own_users(plan: Plan) -> bool:
    """A trace at its recorded times."""
    return plan.trace is not None and plan.trace.speedup > 0


def _fact(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS - 1,
        initial_indent=f"  {label:<{_LABEL}}", subsequent_indent=" " * (_LABEL + 2),
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def time_needed(found: Forecast, options: Options) -> str:
    """How long all trials take, and what that is made of."""
    low, high = options.trials.low, options.trials.high
    many = f"{low} to {high} trials" if low != high else format_count(high, "trial")
    storing_s = found.population_bytes / _BYTES_PER_S
    storing = ""
    if found.population_bytes:
        stored = format_bytes(found.population_bytes)
        storing = f", {short_duration(storing_s)} to store {stored} at 1 GiB/s"
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
    """Of an option, and of the plan's field that it becomes; a session's has none."""
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
    if not _has_own_users(plan):
        yield _value(found, "num_users", f"{plan.users:,} per rank", "users")
    if plan.trace is None:
        yield _value(found, "context_scale", f"{plan.context_scale:g}", "context_scale")
    else:
        trace = plan.trace
        yield _value(found, "trace", f"{trace.name}, {format_count(trace.requests, 'request')}")
        yield _value(found, "trace_speedup", f"{trace.speedup:g}")
        yield _value(found, "trace_cycles", trace.cycles)
        yield _value(found, "trace_limit", trace.limit or "none")
    if plan.request_rate is not None:
        yield _value(found, "request_rate", f"{plan.request_rate:g} per s", "request_rate")
        yield _value(found, "arrival", plan.arrival, "arrival")
    window = "until the trace ends" if plan.duration_s is None else f"{plan.duration_s:g} s"
    yield _value(found, "duration", window, "duration_s")
    yield _value(found, "ramp", f"{plan.ramp_s:g} s", "ramp_s")
    yield _value(found, "trials", options.trials)
    yield _value(found, "phase", plan.phase, "phase")
    yield _value(found, "generation_mode", plan.generation_mode, "generation_mode")
    yield _value(found, "seed", plan.seed, "seed")


def _storage(found: DryRun) -> Iterator[_Value]:
    plan, options = found.plan, found.options
    yield _value(found, "backend", plan.backend, "backend")
    if plan.backend_options:
        settings = " ".join(f"{name}={value}" for name, value in plan.backend_options.items())
        yield _value(found, "backend_option", settings, "backend_options")
    if plan.needs_directory:
        yield _value(found, "cache_dir", plan.cache_dir, "cache_dir")
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
        yield _value(found, name, getattr(plan, name), name)


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
