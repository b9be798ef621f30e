"""How fast and how small is the harness itself? Prints each figure against its target.

    python -m benchmarks.harness [--json FILE] [--rounds N]

The null backend moves nothing, so what is left is ours: workload, index, queue, threads,
log, histograms. Ranks are started by the real mpirun. Figures are medians over the
rounds, with the range; nothing here is a test, and no target fails a build.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cases import launch, options, plan_case
from benchmarks.figures import MIB, Figure, table, where
from pytest_kvcache.atomic import write_json
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.session import new_run_id
from pytest_kvcache.traces.read import Trace

if TYPE_CHECKING:
    from pytest_kvcache.plan.planner import Case


def made_up_trace(requests: int = 4000, blocks: int = 30) -> Trace:
    """Conversations of ten turns that grow by three blocks: as many blocks as Mooncake's."""
    ids, offsets, fresh = [], [0], 0
    for request in range(requests):
        if request % 10 == 0:
            chain: list[int] = list(range(fresh, fresh + blocks // 2))
            fresh += len(chain)
        chain = [*chain, *range(fresh, fresh + 3)]
        fresh += 3
        ids += chain
        offsets.append(len(ids))
    counts = np.array([end - begin for begin, end in itertools.pairwise(offsets)], dtype=np.int64)
    return Trace(
        name="made-up",
        format="mooncake",
        block_tokens=16,
        arrival_ns=np.arange(requests, dtype=np.int64) * 1_000_000,
        input_tokens=counts * 16,
        output_tokens=np.full(requests, 100, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        block_ids=np.array(ids, dtype=np.int64),
    )


def write_mooncake(trace: Trace, path: Path) -> None:
    """The trace in Mooncake's format."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(len(trace)):
            row = {
                "timestamp": int(trace.arrival_ns[index]) // 1_000_000,
                "input_length": int(trace.input_tokens[index]),
                "output_length": int(trace.output_tokens[index]),
                "hash_ids": trace.blocks(index).tolist(),
            }
            file.write(json.dumps(row) + "\n")


def operations_per_s(case: Case) -> float:
    """Operations of one rank of this process, everything on, null backend."""
    rank = Rank(case.plan, 0, "localhost", case.trace)
    rank.set_up(build_registry())
    rank.populate(lambda: False)
    began = time.monotonic_ns()
    rank.run(began, lambda: False)
    elapsed_s = (rank.stopped_ns - began) / 1e9
    rank.close()
    histograms = rank.recorder.histograms
    return (histograms["read"].count + histograms["write"].count) / elapsed_s


def plan_seconds(path: Path) -> float:
    """Parse and plan a trace of about as many requests as Mooncake's, from the file on."""
    began = time.perf_counter()
    plan_case(options(trace=str(path), backend="null", np="2", oversubscribe="true"))
    return time.perf_counter() - began


def measure(rounds: int, work: Path) -> list[Figure]:
    """Measure all figures of the harness."""
    trace_path = work / "made-up.jsonl"
    write_mooncake(made_up_trace(), trace_path)
    common = {"backend": "null", "block_tokens": "16"}
    null = plan_case(options(trace=str(trace_path), trace_speedup="0", num_users="100", **common))
    timed = {"duration": "1", "ramp": "0", "np": "2", "oversubscribe": "true"}
    started = plan_case(options(num_users="8", context_scale="0.05", **common, **timed))
    storing = plan_case(options(num_users="8", context_scale="0.05", cache_dir=str(work), **timed))
    speeds, starts, sizes, plans = [], [], [], []
    for number in range(rounds):
        speeds.append(operations_per_s(null) / 1000)
        directory = work / f"start-{number}"
        directory.mkdir()
        starts.append(launch(started, directory)[0])
        directory = work / f"store-{number}"
        directory.mkdir()
        fresh = replace(storing, plan=replace(storing.plan, run_id=new_run_id()))
        sizes.append(launch(fresh, directory)[1] / MIB)
        plans.append(plan_seconds(trace_path))
    return [
        Figure(name="null backend, operations per rank", unit="k/s", target=50, at_least=True,
               values=tuple(speeds)),
        Figure(name="2 ranks, launch to first operation", unit="s", target=1.5, at_least=False,
               values=tuple(starts)),
        Figure(name="resident memory per rank, file", unit="MiB", target=256, at_least=False,
               values=tuple(sizes)),
        Figure(name="parse and plan 4,000 requests", unit="s", target=1, at_least=False,
               values=tuple(plans)),
    ]  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("results/harness.json"))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        figures = measure(given.rounds, Path(work))
    print(table(figures))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    record = {
        **where(),
        "rounds": given.rounds,
        "cpu_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime,
        "figures": [figure.to_json() for figure in figures],
    }
    write_json(given.json, record)
    print(f"written to {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
