"""One rank without a launcher, in a process of its own.

    python -m benchmarks.onerank OPTIONS RANK [calibrate]

OPTIONS is JSON, option name → text (or texts); ``calibrate`` as a third argument asks
for what the engine can do without the storage. Says "ready" when the cache is filled, reads the
moment to start at (monotonic ns) from standard input, runs, and prints what it measured
as one line of JSON. Several of them started together are ranks that share a machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.cases import options, plan_case
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.results.trial import latencies_ms


def _go_on() -> bool:
    return False


def measure(given: dict[str, Any], number: int, *, calibrates: bool) -> dict[str, Any]:
    """Run rank ``number`` of the only case of the options."""
    plan = plan_case(options(**given)).plan
    registry = build_registry(plan.plugins)
    os.sched_setaffinity(0, plan.layout.share_of(number, sorted(os.sched_getaffinity(0))))
    rank = Rank(plan, number, "localhost", None)
    rank.set_up(registry)
    if calibrates:
        rank.calibrate(_go_on)
    rank.populate(_go_on)
    print("ready", flush=True)
    origin_ns = int(sys.stdin.readline().strip() or time.monotonic_ns())
    rank.run(origin_ns, _go_on)
    error = rank.close()
    rank.leave()
    slice_ns = rank.recorder.ledger.slice_ns
    window_ns = (rank.stopped_ns - rank.window_begin_ns) // slice_ns * slice_ns
    result = rank.result(
        origin_ns=origin_ns, window_ns=window_ns, slice_ns=slice_ns, cleanup_error=error
    )
    if result.error or result.corrupt or error:
        raise SystemExit(f"the rank failed: {result.error or error or 'corrupt data'}")
    kind = "read" if plan.phase == "decode" else "write"
    done_bytes = result.read_bytes if kind == "read" else result.write_bytes
    return {
        "ops_per_s": done_bytes / plan.object_bytes / (window_ns / 1e9),
        "ms": latencies_ms(rank.recorder.histograms[kind]),
        "null_ops_per_s": result.null_ops_per_s,
        "memory_ops_per_s": result.memory_ops_per_s,
        "peak_rss_bytes": result.peak_rss_bytes,
        "checked": result.checked,
        "evictions": result.evictions,
        "io_mode": result.io_mode,
    }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(measure(asked, int(sys.argv[2]), calibrates="calibrate" in sys.argv[3:])))
