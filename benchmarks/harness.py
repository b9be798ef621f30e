"""How fast and how small is the harness itself? Prints each figure against its target.

    python benchmarks/harness.py [--json FILE] [--rounds N]

The null backend moves nothing, so what is left is ours: workload, index, queue, threads,
log, histograms. Ranks are started by the real mpirun. Figures are medians over the
rounds, with the range; nothing here is a test, and no target fails a build.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.atomic import write_json
from pytest_kvcache.bench import new_run_id
from pytest_kvcache.launchers.protocol import LaunchJob
from pytest_kvcache.options import build_options
from pytest_kvcache.planning import Planner, name_cases
from pytest_kvcache.preflight import find_setup
from pytest_kvcache.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.workloads.trace_file import Trace

if TYPE_CHECKING:
    from pytest_kvcache.options import Options
    from pytest_kvcache.planning import Case

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured quantity; ``values`` one per round."""

    name: str
    unit: str
    target: float
    at_least: bool
    values: tuple[float, ...]

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        median = statistics.median(self.values)
        return median >= self.target if self.at_least else median <= self.target

    def line(self) -> str:
        """As printed."""
        sign = "≥" if self.at_least else "≤"
        median = statistics.median(self.values)
        spread = f"{min(self.values):,.2f} … {max(self.values):,.2f}"
        target = f"{sign} {self.target:,g}"
        verdict = "met" if self.met else "MISSED"
        return f"{self.name:<34}{median:>12,.2f} {self.unit:<6}{spread:>24}{target:>12} {verdict}"

    def to_json(self) -> dict[str, Any]:
        """As written."""
        return {
            "name": self.name,
            "unit": self.unit,
            "target": self.target,
            "at_least": self.at_least,
            "values": list(self.values),
            "median": statistics.median(self.values),
            "met": self.met,
        }


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


def options(**given: str) -> Options:
    """Options as given in a call."""
    return build_options({name: (value, "call") for name, value in given.items()})


def plan_case(asked: Options) -> Case:
    """The one case the options ask for."""
    registry = build_registry()
    return Planner(registry, new_run_id()).plan(asked, name_cases(asked, registry)[0])


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


def launch(case: Case, directory: Path) -> tuple[float, float]:
    """Seconds from the launch to the first measured operation; peak MiB of a rank."""
    plan = case.plan
    write_json(directory / "plan.json", plan.to_json())
    asked = options(allow_run_as_root="true")
    setup = find_setup(asked, build_registry(), os.environ)
    argv = setup.launcher.argv(
        LaunchJob(
            hosts=(("127.0.0.1", plan.np),),
            controller_host="127.0.0.1",
            local_hosts=frozenset({"127.0.0.1"}),
            program=(
                setup.python, "-m", "mpi4py", "-m", "pytest_kvcache.worker",
                str(directory), str(plan.world_size),
            ),
            env={"OMP_NUM_THREADS": "1"},
            params=(),
            allow_run_as_root=True,
        )
    )  # fmt: skip
    began_ns = time.monotonic_ns()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    record = json.loads((directory / "trial.json").read_text())
    lines = (directory / "events.jsonl").read_text().splitlines()
    start_ns = next(e["start_ns"] for e in map(json.loads, lines) if "start_ns" in e)
    population_s = max(rank["population_s"] for rank in record["ranks"])
    first_s = min(rank["start_s"] for rank in record["ranks"])
    peak = max(rank["peak_rss_bytes"] for rank in record["ranks"])
    return (start_ns - began_ns) / 1e9 + first_s - population_s, peak / MIB


def plan_seconds(path: Path) -> float:
    """Parse and plan a trace of about as many requests as Mooncake's, from the file on."""
    began = time.perf_counter()
    plan_case(options(trace=str(path), backend="null", np="2", oversubscribe="true"))
    return time.perf_counter() - began


def measure(rounds: int, work: Path) -> list[Figure]:
    """All figures."""
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
        sizes.append(launch(fresh, directory)[1])
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
    print(f"{'figure':<34}{'median':>12} {'':<6}{'range':>24}{'target':>12}")
    for figure in figures:
        print(figure.line())
    given.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "rounds": given.rounds,
        "cpu_s": resource.getrusage(resource.RUSAGE_SELF).ru_utime,
        "figures": [figure.to_json() for figure in figures],
    }
    write_json(given.json, facts)
    print(f"written to {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
