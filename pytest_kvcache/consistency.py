"""What a trial's record and its plan can't say without contradicting themselves. Pure.

Nothing here is derived anew (verify.py does that): these are the laws that hold between
figures that stand for themselves, whatever happened in the trial.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.optiontable import OPTIONS
from pytest_kvcache.recorder import widest_slice_s

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_kvcache.plan import Plan
    from pytest_kvcache.results import RankResult, TrialRecord

_CLOCK_S = 1e-6  # what seconds as floats may be off

# Of a rank: (what is a part, what it is a part of).
_PARTS: tuple[tuple[tuple[str, ...], str], ...] = (
    # The I/O of the window, in logical bytes, in that of the whole run, in whole pages.
    (("read_bytes",), "requested_read_bytes"),
    (("read_op_bytes",), "requested_read_bytes"),
    (("write_bytes",), "requested_write_bytes"),
    (("write_op_bytes",), "requested_write_bytes"),
    (("completed", "request_censored", "dropped"), "offered"),
    (("backlog", "dropped"), "offered"),
    (("completed_in_window", "dropped"), "offered"),
    (("hit_blocks",), "prompt_blocks"),
    (("hit_tokens",), "arrived_tokens"),
    (("first_half_hits",), "first_half_blocks"),
    (("second_half_hits",), "second_half_blocks"),
    (("first_half_blocks", "second_half_blocks"), "prompt_blocks"),
    (("first_half_hits", "second_half_hits"), "hit_blocks"),
    (("corrupt",), "checked"),
)
_ORDERED = ("start_s", "stop_s", "drained_s")
_COUNTS = (
    "pid", "read_count", "read_failed", "read_bytes", "write_count", "write_failed", "write_bytes",
    "device_bytes", "read_op_bytes", "write_op_bytes", "offered", "completed",
    "completed_in_window", "dropped", "backlog", "prompt_tokens", "generated_tokens",
    "prompt_blocks", "hit_blocks", "arrived_tokens", "hit_tokens", "first_half_blocks",
    "first_half_hits", "second_half_blocks", "second_half_hits", "evictions", "cached_blocks",
    "populated_blocks", "population_s", "store_stall_s", "requested_read_bytes",
    "requested_write_bytes", "checked", "corrupt", "cpu_s", "peak_rss_bytes", "cores",
    "load_censored", "request_censored",
)  # fmt: skip
_COUNTS_OR_NONE = (
    "read_p95_ms", "write_p95_ms", "mean_depth", "longest_pause_s", "device_read_bytes",
    "device_write_bytes",
)  # fmt: skip


def record_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Every contradiction within a trial's record, a sentence each."""
    for rank in record.ranks:
        for fault in _rank_faults(rank, plan):
            yield f"rank {rank.rank} on host {rank.host}: {fault}"
    yield from _window_faults(record, plan)


def check_record(record: TrialRecord, plan: Plan) -> None:
    """Raise ResultError with the first contradiction within a record."""
    fault = next(record_faults(record, plan), None)
    if fault is not None:
        raise ResultError(
            f"the trial's record contradicts itself: {fault}; run it again, and report the"
            " trial.json if that comes back"
        )


def _rank_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    for name in (*_COUNTS, *_COUNTS_OR_NONE):
        value = getattr(rank, name)
        if not (value is None and name in _COUNTS_OR_NONE) and not value >= 0:
            yield f"{name} is {value}; it must be at least 0"
    for names, whole in _PARTS:
        part, limit = sum(getattr(rank, name) for name in names), getattr(rank, whole)
        if part > limit:
            yield f"{' + '.join(names)} is {part}; it must be at most {whole}, which is {limit}"
    for early, late in itertools.pairwise(_ORDERED):
        before, after = getattr(rank, early), getattr(rank, late)
        if not before <= after + _CLOCK_S:
            yield f"{early} is {before}; it must be at most {late}, which is {after}"
    if rank.cached_blocks > plan.capacity_blocks:
        yield (
            f"cached_blocks is {rank.cached_blocks}; it must be at most the plan's"
            f" capacity_blocks, which is {plan.capacity_blocks}"
        )


def _window_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """The common window lasts until the first rank stops, cut to whole slices."""
    stop_s = min(rank.stop_s for rank in record.ranks) - plan.ramp_s
    if plan.duration_s is not None:
        stop_s = min(stop_s, plan.duration_s)
    most_s = max(0.0, stop_s)
    booked_s = max(rank.drained_s for rank in record.ranks) - plan.ramp_s
    least_s = max(0.0, most_s - widest_slice_s(booked_s))
    if not least_s - _CLOCK_S <= record.window_s <= most_s + _CLOCK_S:
        yield (
            f"window_s is {record.window_s}; by the ranks' stop_s it must be between"
            f" {least_s:.6g} and {most_s:.6g}"
        )


# --- the plan ---------------------------------------------------------------------------------

# Field of the plan → the option whose rule its value must keep.
_RULE_OF = {
    "seed": "seed",
    "users": "num_users",
    "duration_s": "duration",
    "ramp_s": "ramp",
    "context_scale": "context_scale",
    "block_tokens": "block_tokens",
    "tensor_parallel": "tensor_parallel",
    "generation_mode": "generation_mode",
    "io": "io",
    "sync": "sync",
    "queue_depth": "queue_depth",
    "verify": "verify",
}
_TRACE_RULE_OF = {
    "speedup": "trace_speedup",
    "cycles": "trace_cycles",
    "limit": "trace_limit",
}
_MAY_BE_NONE = frozenset({"duration_s", "trace.limit"})
_CORES = ("split", "shared")
_PARSERS = {spec.name: spec.parse for spec in OPTIONS}


def plan_faults(plan: Plan) -> Iterator[str]:
    """Every value of a plan that no option could have led to, a sentence each."""
    yield from _broken_rules({name: getattr(plan, name) for name in _RULE_OF}, _RULE_OF, "")
    for name, minimum in (("trial", 0), ("capacity_blocks", 1), ("need_blocks", 0)):
        value = getattr(plan, name)
        if type(value) is not int or value < minimum:
            yield f"plan.{name} is {value!r}; it must be a whole number of at least {minimum}"
    if not plan.deadline_s > 0:
        yield f"plan.deadline_s is {plan.deadline_s}; it must be above 0"
    if plan.cores not in _CORES:
        yield f"plan.cores is {plan.cores!r}; it must be one of {', '.join(_CORES)}"
    if plan.trace is not None:
        trace = {name: getattr(plan.trace, name) for name in _TRACE_RULE_OF}
        yield from _broken_rules(trace, _TRACE_RULE_OF, "trace.")


def _broken_rules(
    values: Mapping[str, Any], rule_of: Mapping[str, str], path: str
) -> Iterator[str]:
    for name, value in values.items():
        if value is None and path + name in _MAY_BE_NONE:
            continue
        text = value if isinstance(value, str) else repr(value)
        try:
            parsed = _PARSERS[rule_of[name]](text, f"plan.{path}{name}")
        except OptionError as error:
            yield str(error)
            continue
        if isinstance(value, str) and not isinstance(parsed, str):
            yield f"plan.{path}{name} is {value!r}, a text; it must be a number"
