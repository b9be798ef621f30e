"""What a restart found again, and what it took, in words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_kvcache.report.text import figure
from pytest_kvcache.units import format_bytes, format_count

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial

_WAYS: Final = {"scan": "a scan of their directories", "lookups": "a lookup of each key"}


def describe_restart(plan: Plan) -> str:
    """How an index is made usable again, as a part of the sentence on what runs."""
    caches = "caches dropped before" if plan.drop_caches else "metadata warm"
    return f"restart by {_WAYS[plan.restart_by or '']}, {caches}"


def describe_found(plan: Plan, trial: Trial) -> str:
    """What was found, by how many calls, and what the disks were asked for meanwhile."""
    counted = trial.counters
    objects = format_count(counted.restart_objects or 0, "object")
    if plan.restart_by == "scan":
        listed_s = figure(counted.restart_listing_s or 0.0)
        how = (
            f"by a stat of each; {_directories(counted.restart_directories or 0)} read, which took"
            f" {listed_s} s of the slowest rank's time"
        )
    else:
        how = f"by a lookup of each, in {format_count(plan.lookup_threads, 'thread')} per rank"
    read = counted.device_read_bytes
    seen = "" if read is None else f"; the kernel read {format_bytes(read)} of devices for it"
    stored = format_bytes(counted.cached_bytes)
    memory = format_bytes(counted.peak_rss_bytes)
    return (
        f"last trial: {objects} of {stored} found again, {how}{seen}; at most {memory} of memory"
        " per rank"
    )


def _directories(count: int) -> str:
    return "1 directory" if count == 1 else f"{count:,} directories"
