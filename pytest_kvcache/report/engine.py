"""Whose calls were made, in words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.options.table import flag_of
from pytest_kvcache.phases import PHASES
from pytest_kvcache.report.text import figure, wrapped
from pytest_kvcache.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial


def describe_engine(plan: Plan) -> str:
    """A part of the sentence on what runs; empty: nobody's calls but our own."""
    calls, told = plan.calls, []
    if not plan.traits.stores_data:
        return "" if plan.workers is None else ", which makes none of an engine's calls"
    if plan.engine is not None:
        changed = ", ".join(map(flag_of, plan.changed))
        changed = f" (changed: {changed})" if changed else ""
        told.append(f"by the calls of {plan.engine}{changed}")
    elif isinstance(calls, FileCalls):
        told.append("a file per object")
    if isinstance(calls, FileCalls) and PHASES[plan.phase].stores:
        told.append({
            "in-place": "published in place",
            "rename": "published by rename",
            "link": "published by link",
        }[plan.publish])  # fmt: skip
    if plan.shares:
        whose = "the ranks of each host" if plan.sharing == "host" else "all ranks"
        told.append(f"one store of {whose}")
    if plan.asks_storage:
        which = "up to the first miss" if plan.lookup == "first-miss" else "all of them"
        told.append(f"the storage asked for blocks ({which})")
    if plan.in_buckets:
        told += _packing(plan)
    elif plan.workers is not None and plan.workers.batches:
        told.append(f"a request's in batches of up to {plan.workers.readers} objects")
    elif plan.request_depth is not None:
        told.append(f"{plan.request_depth} of a request at a time")
    return "".join(f", {part}" for part in told)


def _packing(plan: Plan) -> Iterator[str]:
    """How large buckets are, and how they are read."""
    size = format_bytes(plan.bucket_blocks * plan.object_stored_bytes)
    yield f"packed into buckets of {size} ({format_count(plan.bucket_blocks, 'block')})"
    if PHASES[plan.phase].loads:
        yield f"read an object of each of {plan.bucket_readers} requests at a time"


def engine_lines(plan: Plan, trial: Trial) -> Iterator[str]:
    """Which engine that is, what was changed of it, and what was asked of the storage."""
    if plan.profile is not None:
        changed = ", ".join(map(flag_of, plan.changed)) or "nothing"
        displaced = "blocks are displaced at the capacity, LRU"
        if plan.in_buckets:
            displaced = "buckets are displaced at the capacity, FIFO"
        yield from wrapped(
            f"{plan.engine}: {plan.profile.version}; changed: {changed}. It does not imitate"
            f" {plan.profile.misses}. Of its own accord it evicts: {plan.profile.evicts}; here"
            f" {displaced}",
            indent="  ",
        )
    lookup, counted = trial.lookup, trial.counters
    if lookup is not None and counted.asked_objects:
        p95, mean = lookup.ms.p95, lookup.ms.mean
        shown = "" if p95 is None else f", p95 {figure(p95)} ms"
        if mean is not None:
            each_us = mean * 1000 * lookup.count / counted.asked_objects
            shown += f", {figure(each_us)} µs an object"
        yield from wrapped(
            f"lookups: {format_count(lookup.count, 'request')} asked for"
            f" {counted.asked_objects:,} objects, of which {counted.found_objects:,} were"
            f" there{shown}",
            indent="  ",
        )


def staged_lines(plan: Plan, trial: Trial) -> Iterator[str]:
    """What was hit in memory, where blocks wait there for their bucket."""
    staged, hits = trial.counters.staged_hit_blocks, trial.counters.hit_blocks
    if plan.in_buckets and staged is not None:
        yield from wrapped(
            f"buckets: {staged:,} of {format_count(hits, 'hit')} were of blocks in memory, which"
            " waited for their bucket to be full or written: nothing was read of them",
            indent="  ",
        )


def drop_lines(plan: Plan, trial: Trial) -> Iterator[str]:
    """What was not stored because too much waited to be."""
    dropped = trial.counters.dropped_blocks
    if dropped is not None:
        what = "the store queue was full" if dropped else "the store queue was never full"
        yield from wrapped(
            f"stores dropped: {format_count(dropped, 'block')}, for {what} (--kv-full-queue="
            f"{plan.full_queue})",
            indent="  ",
        )


def sharing_lines(plan: Plan, trial: Trial) -> Iterator[str]:
    """What ranks had of each other's blocks."""
    counted, sharing = trial.counters, trial.sharing
    if sharing is None:
        return
    hits = format_count(counted.hit_blocks, "hit")
    displaced = format_count(counted.displaced_blocks or 0, "block")
    told = [
        f"in the window {counted.other_hit_blocks:,} of {hits} were of blocks of other ranks",
        f"in the whole run {displaced} found, and displaced before being read",
    ]
    if counted.others_objects is not None:
        told.append(f"{counted.others_objects:,} heads read that name another rank")
    told += [
        f"{format_count(counted.races_lost or 0, 'race')} lost",
        f"{format_count(counted.vanished_blocks or 0, 'block')} gone before being read",
    ]
    seen = trial.visibility
    if seen is not None and seen.ms.mean is not None:
        known = {"p50": seen.ms.p50, "p99": seen.ms.p99}
        shown = " and ".join(f"{name} {figure(ms)} ms" for name, ms in known.items() if ms)
        mean = f"{figure(seen.ms.mean)} ms on average"
        told.append(f"first found by another host after {shown or mean}")
    late_s = counted.longest_stale_s
    told.append(
        "no stale lookup"
        if late_s is None
        else f"{format_count(counted.stale_lookups or 0, 'stale lookup')}, up to {late_s:.3g} s"
        " after the store"
    )
    yield from wrapped(f"shared by {plan.sharing}: {'; '.join(told)}", indent="  ")
