"""What does a launch cost as ranks grow? Prints a row per count of ranks.

    python -m benchmarks.scale [--np 2,16,64,256] [--json FILE]

All ranks run on this machine, oversubscribed, with the null backend, which allocates no
buffers and moves nothing: what is left is the launch, the barriers, the gathering and
what the controller keeps. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.sections import SECTIONS

POLL_S = 0.002
MIB = 1 << 20
WINDOW_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One launch. Seconds from the start of the launcher; sizes in bytes."""

    np: int
    together_s: float
    """Until all ranks had been gathered once."""
    gather_s: float
    """From the end of the window until the whole record was on disk."""
    record_bytes: int
    """The trial's record."""
    controller_rss_bytes: int
    """pytest's peak."""
    coordinator_rss_bytes: int
    """World rank 0's peak, as seen while it ran."""
    rank_pss_bytes: int
    """A rank's share of the memory, on average."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--np", default="2,16,64,256", help="counts of ranks")
    parser.add_argument("--json", type=Path, help="write the rows there")
    given = parser.parse_args()
    print(f"{'ranks':>6}{'together':>11}{'gather':>9}{'record':>11}{'pytest':>10}"
          f"{'coordinator':>13}{'rank':>9}")  # fmt: skip
    rows = []
    for count in map(int, given.np.split(",")):
        row = measure(count)
        rows.append(row)
        print(
            f"{row.np:>6}{row.together_s:>9.2f} s{row.gather_s:>7.2f} s"
            f"{row.record_bytes / MIB:>7.2f} MiB{row.controller_rss_bytes / MIB:>6.0f} MiB"
            f"{row.coordinator_rss_bytes / MIB:>9.0f} MiB{row.rank_pss_bytes / MIB:>5.0f} MiB",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(f"\n{'ranks':>6}{'summed in a tree':>20}{'gathered at the root':>24}")
    for row in rows:
        tree_s, gather_s, root_bytes = reduction(row.np)
        print(f"{row.np:>6}{tree_s:>18.2f} s{gather_s:>12.2f} s{root_bytes / MIB:>6.0f} MiB")


REDUCTION = """
import sys, time
import numpy as np
from mpi4py import MPI
world = MPI.COMM_WORLD
own = np.ones((int(sys.argv[1]), int(sys.argv[2])), dtype=np.int64)
total = np.zeros_like(own) if world.rank == 0 else None
world.Barrier()
began = time.monotonic()
world.Reduce(own, total, op=MPI.SUM, root=0)
summed = time.monotonic() - began
every = np.zeros((world.size, *own.shape), dtype=np.int64) if world.rank == 0 else None
world.Barrier()
began = time.monotonic()
world.Gather(own, every, root=0)
if world.rank == 0:
    added = every.sum(axis=0)
    assert (added == total).all()
    print(summed, time.monotonic() - began, every.nbytes)
"""


def reduction(count: int) -> tuple[float, float, int]:
    """Seconds for the histograms of all ranks to be summed in a tree, and to be gathered first."""
    mpirun = Path(sys.prefix, "bin", "mpirun")
    launch = [
        str(mpirun), "--allow-run-as-root", "--host", f"localhost:{count + 1}", "--bind-to", "none",
        "--mca", "pml", "ob1", "--mca", "btl", "self,sm,tcp",
        "-x", "OMPI_MCA_mpi_yield_when_idle=1", "-n", str(count + 1),
    ]  # fmt: skip
    shape = [str(len(SECTIONS)), str(len(Histogram().counts))]
    program = [sys.executable, "-m", "mpi4py", "-c", REDUCTION, *shape]
    done = subprocess.run([*launch, *program], check=True, capture_output=True, text=True)
    tree_s, gather_s, root_bytes = done.stdout.split()[-3:]
    return float(tree_s), float(gather_s), int(root_bytes)


def measure(count: int) -> Row:
    """One session of one trial."""
    with tempfile.TemporaryDirectory(prefix="kvcache-scale-") as directory:
        results = Path(directory)
        process = subprocess.Popen(command(count, results), stdout=subprocess.DEVNULL)
        try:
            return watch(process, count, results)
        finally:
            process.kill()
            process.wait()


def command(count: int, results: Path) -> list[str]:
    """Pytest with as little of everything as there can be."""
    return [
        sys.executable, "-m", "pytest", "--pyargs", "pytest_kvcache.suite", "-q",
        "-p", "no:cacheprovider", f"--kv-np={count}", "--kv-oversubscribe",
        "--kv-allow-run-as-root", "--kv-backend=null", "--kv-model=tiny-1b", "--kv-num-users=1",
        "--kv-context-scale=0.05", f"--kv-duration={WINDOW_S}", "--kv-ramp=0", "--kv-trials=1",
        "--kv-queue-depth=1", "--kv-allow-invalid", "--kv-metrics=requests.per_s",
        f"--kv-results-dir={results}", "--kv-deadline=600",
    ]  # fmt: skip


def watch(process: subprocess.Popen[bytes], count: int, results: Path) -> Row:
    """Look at the run's files, and at the memory of its processes, while it runs."""
    begun_s = wait_for(process, lambda: find(results, "plan.json"))
    together_s = wait_for(process, lambda: has_event(results, "ranks"))
    wait_for(process, lambda: has_event(results, "window"))
    time.sleep(WINDOW_S / 2)
    coordinator, pss = memory(results)
    end_s = wait_for(process, lambda: has_event(results, "clean-up"))
    record_s = wait_for(process, lambda: find(results, "trial.json"))
    record = find(results, "trial.json")
    assert record is not None
    size = record.stat().st_size
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the session of {count} ranks failed")
    return Row(
        np=count,
        together_s=together_s - begun_s,
        gather_s=record_s - end_s,
        record_bytes=size,
        controller_rss_bytes=usage.ru_maxrss * 1024,
        coordinator_rss_bytes=coordinator,
        rank_pss_bytes=pss // count,
    )


def wait_for(process: subprocess.Popen[bytes], condition: Any) -> float:
    """The moment at which something was first seen."""
    while not condition():
        if process.poll() is not None:
            raise SystemExit("the session ended early")
        time.sleep(POLL_S)
    return time.monotonic()


def find(results: Path, name: str) -> Path | None:
    """The trial's file of that name."""
    return next(results.glob(f"*/*/trial-0/{name}"), None)


def has_event(results: Path, word: str) -> bool:
    """Whether the coordinator has told of it."""
    path = find(results, "events.jsonl")
    return path is not None and f'"{word}"' in path.read_text(encoding="utf-8")


def memory(results: Path) -> tuple[int, int]:
    """(resident bytes of the coordinator, bytes of all ranks with shared pages divided)."""
    events = find(results, "events.jsonl")
    assert events is not None
    first = json.loads(events.read_text(encoding="utf-8").splitlines()[0])
    pss = sum(kib(rank["pid"], "smaps_rollup", "Pss") for rank in first["ranks"])
    return kib(first["coordinator_pid"], "status", "VmHWM") * 1024, pss * 1024


def kib(pid: int, name: str, key: str) -> int:
    """One figure of a process, in KiB."""
    text = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")))


if __name__ == "__main__":
    main()
