"""What a rank's recorder holds, by the names of the rank's record.

Rank-side; imports neither pytest nor MPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.measure.counters import RESTART_COUNTERS, SHARING_COUNTERS, TIER_COUNTERS
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, OPERATIONS, tier_sections
from pytest_kvcache.units import ratio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pytest_kvcache.measure.recorder import Ledger, Recorder
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.ranks.restart import Restart
    from pytest_kvcache.ranks.sharing import RankSharing


def window_sums(ledger: Ledger, window_ns: int, slice_ns: int) -> dict[str, Any]:
    """What was completed in the common window, and what was looked up, by halves.

    The window is a whole number of slices.
    """
    half_ns = window_ns // 2 // slice_ns * slice_ns
    sums, first = ledger.sums(0, window_ns), ledger.sums(0, half_ns)
    arrived = ledger.sums(0, ledger.end_ns)
    return {
        "read_bytes": sums["read_bytes"],
        "write_bytes": sums["write_bytes"],
        "demote_bytes": sums["demote_bytes"],
        "completed_in_window": sums["requests"],
        "prompt_tokens": sums["prompt_tokens"],
        "generated_tokens": sums["output_tokens"],
        "prompt_blocks": arrived["prompt_blocks"],
        "hit_blocks": arrived["hit_blocks"],
        "beside_blocks": arrived["beside_blocks"],
        "beside_hit_blocks": arrived["beside_hit_blocks"],
        "arrived_tokens": arrived["arrived_tokens"],
        "hit_tokens": arrived["hit_tokens"],
        "first_half_blocks": first["prompt_blocks"],
        "first_half_hits": first["hit_blocks"],
        "second_half_blocks": sums["prompt_blocks"] - first["prompt_blocks"],
        "second_half_hits": sums["hit_blocks"] - first["hit_blocks"],
        "first_half_waiting": ratio(first["waiting"], first["samples"]),
        "second_half_waiting": ratio(
            sums["waiting"] - first["waiting"], sums["samples"] - first["samples"]
        ),
    }


def staged_hits(recorder: Recorder, *, in_buckets: bool) -> int | None:
    """Hits of blocks that waited in memory; null: none has to."""
    if not in_buckets:
        return None
    return recorder.ledger.sums(0, recorder.ledger.end_ns)["staged_hit_blocks"]


def lookup_counts(recorder: Recorder, *, asks: bool) -> dict[str, Any]:
    """What requests asked the storage for, and what was there; null: they ask memory."""
    if not asks:
        return {"lookup_count": None, "asked_objects": None, "found_objects": None}
    sums = recorder.ledger.sums(0, recorder.ledger.end_ns)
    return {
        "lookup_count": recorder.histograms["lookup"].count,
        "asked_objects": sums["asked_objects"],
        "found_objects": sums["found_objects"],
    }


def sharing_counts(
    recorder: Recorder, sharing: RankSharing | None, others_objects: int | None
) -> dict[str, Any]:
    """What came of sharing a store, by the names of the table; null: each rank has its own.

    ``others_objects`` is how many heads of others were read.
    """
    if sharing is None:
        return dict.fromkeys(SHARING_COUNTERS)
    sums = recorder.ledger.sums(0, recorder.ledger.end_ns)
    noted, found = sharing.log, sharing.joined
    late_ns = found.longest_stale_ns
    return {
        "own_hit_blocks": sums["own_hit_blocks"],
        "other_hit_blocks": sums["other_hit_blocks"],
        "others_objects": others_objects,
        "displaced_blocks": noted.displaced,
        "vanished_blocks": noted.vanished,
        "races_lost": found.races,
        "stale_lookups": found.stale,
        "longest_stale_s": None if late_ns is None else late_ns / 1e9,
        "lost_blocks": found.unexplained,
    }


def restart_counts(restart: Restart | None) -> dict[str, Any]:
    """What a restart found again, and by how many calls; null where there was none."""
    if restart is None:
        return dict.fromkeys(RESTART_COUNTERS)
    return restart.counted()


def tier_counts(
    plan: Plan, recorder: Recorder, counted: Mapping[str, float | None]
) -> dict[str, Any]:
    """What each tier served and was given, and the bytes moved in memory; null: not there.

    ``counted`` is what the engine counted.
    """
    names = [tier.name for tier in plan.tiers]
    sections = tier_sections(plan.tiers, plan.tier_policy)
    hits = recorder.ledger.sums(0, recorder.ledger.end_ns)
    found = dict.fromkeys(TIER_COUNTERS) | dict(counted)
    if not names:
        return found | {"storage_hit_blocks": hits["hit_blocks"] - hits["staged_hit_blocks"]}
    found |= {f"{name}_hit_blocks": hits[f"{name}_hit_blocks"] for name in (*names, "storage")}
    moved = {s: recorder.section_bytes[s] for s in MEMORY_SECTIONS if s in sections}
    return found | {f"{section}_bytes": size for section, size in moved.items()}


def recorded(recorder: Recorder) -> dict[str, Any]:
    """Operations that began in the window, what was cut off, and how late stamps can be."""
    lag = recorder.reap_lag
    mean_ns, p99_ns = lag.mean_ns(), lag.percentile_ns(99)
    found: dict[str, Any] = {
        "device_bytes": recorder.section_bytes["device"],
        "reread_count": recorder.rereads,
        "load_censored": recorder.censored["load"],
        "request_censored": recorder.censored["request"],
        "reap_lag_mean_ms": None if mean_ns is None else mean_ns / 1e6,
        "reap_lag_p99_ms": None if p99_ns is None else p99_ns / 1e6,
        "reap_lag_count": lag.count,
    }
    for kind in OPERATIONS:
        found[f"{kind}_count"] = recorder.histograms[kind].count
        found[f"{kind}_p95_ms"] = Latencies.of(recorder.histograms[kind]).p95
        if kind in recorder.section_bytes:
            found[f"{kind}_op_bytes"] = recorder.section_bytes[kind]
    return found


def average_queue_depth(recorder: Recorder, begin_ns: int, drained_ns: int) -> float | None:
    """Calls in flight on average (transfers, syncs, deletes): their time over the span.

    From the window's begin to its end, or to that of the last call if there is none then.
    """
    end_ns = recorder.window_end_ns
    last_ns = drained_ns if end_ns is None else min(drained_ns, end_ns)
    span_ns = last_ns - begin_ns
    return recorder.in_flight_ns / span_ns if span_ns > 0 else None
