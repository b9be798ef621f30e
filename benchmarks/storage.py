"""How fast is the engine beside fio? Prints every target of the engine and what was reached.

    python -m benchmarks.storage [--rounds N] [--seconds S] [--cache-dir DIR] [--memory-dir DIR]

Bandwidth, CPU and memory are those of whole runs (pytest, mpirun, two ranks with 8
transfers in flight); operations per second and percentiles those of single ranks without
a launcher. Ours and fio take turns within every round, and change places from round to
round, for a disk's speed drifts; what counts is the median of the rounds' ratios. Nothing
here is a test. docs/speed.md has the figures, and why a target is missed where it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import fio, scale
from benchmarks.cases import launch, options, plan_case
from benchmarks.figures import MIB, table, where
from benchmarks.fio import FioJob
from benchmarks.ratioplot import ratio_plot
from benchmarks.storagefigures import figures_of, percentile_table
from pytest_kvcache.atomic import write_json
from pytest_kvcache.system.filesystem import probe_filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.storagefigures import Raw

ROOT = Path(__file__).parents[1]
PLUGIN = "benchmarks.uniform"
KIB = 1 << 10
GIB = 1 << 30
CHUNK_BYTES = 4 * MIB
PHASES = {"read": "decode", "write": "prefill"}
SCENARIOS = {"read": "uniform-read", "write": "uniform-overwrite"}
STORES = {"read": "auto", "write": "slab"}
BANDWIDTH_BYTES = (64 * KIB, MIB, 4 * MIB, 32 * MIB)
OPERATION_BYTES = (16 * KIB, 64 * KIB, 256 * KIB)
PERCENTILE_BYTES = (16 * KIB, 64 * KIB)
DATA_GIB = 0.5  # of a rank's data set, and of a fio job's file
# Slabs are overwritten in place, as fio overwrites its files. What --kv-store=auto makes a
# file of its own has a second row, of new files: fio knows nothing like them.
NEW_FILE_BYTES = tuple(size for size in BANDWIDTH_BYTES if size > MIB)
APPEND_GIB = 16.0  # of a rank's room for those, more than a window fills
MEMORY_GIB = 0.25  # likewise where the storage is memory
RAMP_S = 0.5
FIO_BUFFER_BYTES = 2 * 8 * CHUNK_BYTES
SMALL_PAGES = (
    "fio's buffers are of small pages and ours of huge ones, which flatters us at 1 MiB and"
    f" more: sysctl vm.nr_hugepages={2 * FIO_BUFFER_BYTES // (2 * MIB)} gives fio some"
)
MEMORY_SECONDS = 1.0  # enough for any percentile there
GATHERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where it is measured, and for how long each window lasts."""

    disk: Path
    memory: Path
    seconds: float
    fio_buffers: str

    def ours(
        self,
        kind: str,
        size: int,
        *,
        store: str = "auto",
        sync: str = "none",
        np: int = 2,
        depth: int = 8,
        users: int = 16,
    ) -> dict[str, Any]:
        """One trial of a whole session with the file backend."""
        anew = kind == "write" and store == "file"
        with tempfile.TemporaryDirectory(prefix="kvcache-storage-") as results:
            asked = {
                "plugin": PLUGIN, "scenario": "uniform-append" if anew else SCENARIOS[kind],
                "model": "uniform-1k", "store": store, "sync": sync,
                "phase": PHASES[kind], "block-tokens": size // KIB, "num-users": users, "np": np,
                "context-scale": APPEND_GIB if anew else DATA_GIB, "queue-depth": depth,
                "duration": self.seconds, "ramp": RAMP_S, "trials": 1, "cache-dir": self.disk,
                "results-dir": results, "metrics": f"{kind}.gib_per_s",
            }  # fmt: skip
            command = [
                sys.executable, "-m", "pytest", "--pyargs", "pytest_kvcache.suite", "-q", "-c",
                os.devnull, "-p", "no:cacheprovider", "--kv-oversubscribe",
                "--kv-allow-run-as-root", "--kv-allow-invalid",
                *(f"--kv-{name}={value}" for name, value in asked.items()),
            ]  # fmt: skip
            done = subprocess.run(
                command, check=False, cwd=results, env=environment(), capture_output=True,
                text=True,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"a run of {kind}s of {size} bytes failed:\n{done.stdout[-4000:]}")
            (path,) = Path(results).glob("*/run.json")
            return trial_figures(json.loads(path.read_text(encoding="utf-8")), kind)

    def fio(self, kind: str, size: int) -> dict[str, Any]:
        """The same pattern. libaio keeps 8 in flight without threads: the higher bar."""
        job = FioJob(
            kind=kind, block_bytes=min(size, CHUNK_BYTES), jobs=2, depth=8, engine="libaio",
            size_bytes=int(DATA_GIB * GIB), seconds=self.seconds, memory=self.fio_buffers,
        )  # fmt: skip
        return job.run(self.disk)

    def fio_readahead(self) -> dict[str, Any]:
        """One reader through the page cache, once through a file: the kernel reads ahead."""
        job = FioJob(
            kind="read", block_bytes=MIB, jobs=1, depth=1, engine="psync",
            size_bytes=2 * int(DATA_GIB * GIB), seconds=None, direct=False,
        )  # fmt: skip
        return job.run(self.disk)

    def fio_memory(self, kind: str, size: int, jobs: int = 1) -> dict[str, Any]:
        """One operation at a time per job, on tmpfs."""
        job = FioJob(
            kind=kind, block_bytes=size, jobs=jobs, depth=1, engine="psync",
            size_bytes=int(MEMORY_GIB * GIB), seconds=MEMORY_SECONDS, direct=False,
        )  # fmt: skip
        return job.run(self.memory)

    def fio_null(self, kind: str, size: int) -> dict[str, Any]:
        """Of an operation, fio's own cost."""
        job = FioJob(
            kind=kind, block_bytes=size, jobs=1, depth=1, engine="null",
            size_bytes=GIB, seconds=MEMORY_SECONDS, ramp_s=0.0,
        )  # fmt: skip
        return job.run(self.memory)

    def one_thread(
        self, kind: str, size: int, *, backend: str = "file", np: int = 1, calibrate: bool = False
    ) -> list[dict[str, Any]]:
        """Ranks of one thread each, without a launcher; one answer per rank."""
        asked = {
            "plugin": [PLUGIN], "scenario": SCENARIOS[kind], "model": "uniform-1k",
            "phase": PHASES[kind], "block_tokens": str(size // KIB), "num_users": "2",
            "context_scale": str(MEMORY_GIB), "queue_depth": "1", "np": str(np),
            "oversubscribe": "true", "duration": str(MEMORY_SECONDS), "ramp": str(RAMP_S),
            "cache_dir": str(self.memory), "backend": backend,
        }  # fmt: skip
        more = ["calibrate"] if calibrate else []
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.onerank", json.dumps(asked), str(rank), *more],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
            )
            for rank in range(np)
        ]  # fmt: skip
        return start_together(children)

    def calibrated(self, kind: str, size: int) -> dict[str, Any]:
        """One rank of one thread on tmpfs, and what it can do without any storage."""
        return self.one_thread(kind, size, calibrate=True)[0]


def environment() -> dict[str, str]:
    """With the checkout on the path, for the plugin."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start_together(children: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Start all when the last one is ready; their answers."""
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            for other in children:
                other.kill()
            raise SystemExit(f"a rank did not get ready: {child.args!r}")
    start_ns = time.monotonic_ns() + 50_000_000
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{start_ns}\n")
        child.stdin.flush()
    answers = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"a rank failed: {children[0].args!r}")
    return [json.loads(answer) for answer in answers]


def trial_figures(run: dict[str, Any], kind: str) -> dict[str, Any]:
    """What the rows need of a run file of one trial."""
    trial = run["cases"][0]["trials"][0]
    ranks = trial["ranks"]
    return {
        "gib_per_s": trial[kind]["gib_per_s"],
        "count": trial[kind]["count"],
        "ms": {name: trial[kind]["ms"][name] for name in ("p50", "p95", "p99", "p999")},
        "cpu_s_per_gib": trial["harness"]["cpu_s_per_gib"],
        "peak_rss_bytes": max(rank["peak_rss_bytes"] for rank in ranks),
        "mean_depth": [rank["mean_depth"] for rank in ranks],
        "evictions": sum(rank["evictions"] for rank in ranks),
        "io_mode": trial["proof"]["io_mode"],
        "proof": trial["proof"]["verdict"],
        "verdicts": [verdict["code"] for verdict in trial["verdicts"]],
    }


def in_turn(number: int, steps: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Carry the steps out, in every other round from the last one to the first."""
    order = list(steps)[:: -1 if number % 2 else 1]
    done = {name: steps[name]() for name in order}
    return {name: done[name] for name in steps}


def one_round(site: Site, number: int, work: Path) -> Iterator[tuple[str, str, Any]]:
    """(part, row, raw figures) of everything, once; percentiles in the first round only."""
    for kind, size in itertools.product(PHASES, BANDWIDTH_BYTES):
        yield "bandwidth", f"{kind} {size}", beside(site, number, kind, size, STORES[kind])
    for size in NEW_FILE_BYTES:
        yield "new files", f"write {size}", beside(site, number, "write", size, "file")
    alone = partial(site.ours, "read", 32 * MIB, np=1, depth=4, users=1)
    yield "single", "read", in_turn(number, {"ours": alone, "fio": site.fio_readahead})
    for kind, size in itertools.product(PHASES, OPERATION_BYTES):
        steps = {
            "ours": partial(site.calibrated, kind, size),
            "fio": partial(site.fio_memory, kind, size),
            "fio_null": partial(site.fio_null, kind, size),
        }
        yield "operations", f"{kind} {size}", in_turn(number, steps)
    for kind, size, np in itertools.product(PHASES, PERCENTILE_BYTES, () if number else (1, 2)):
        yield "percentiles", f"{kind} {size} {np}", percentiles(site, number, kind, size, np)
    yield "start", "s", started_s(number, work)


def beside(site: Site, number: int, kind: str, size: int, store: str) -> dict[str, Any]:
    """A whole run, and fio at the same pattern."""
    ours = partial(site.ours, kind, size, store=store)
    return in_turn(number, {"ours": ours, "fio": partial(site.fio, kind, size)})


def percentiles(site: Site, number: int, kind: str, size: int, np: int) -> dict[str, Any]:
    """Operations of one thread per rank: fio's, and ours with each backend."""
    steps: dict[str, Callable[[], Any]] = {
        "fio": lambda: [site.fio_memory(kind, size, np)],
        "tmpfs": partial(site.one_thread, kind, size, np=np),
        "memory": partial(site.one_thread, kind, size, np=np, backend="memory"),
        "null": partial(site.one_thread, kind, size, np=np, backend="null"),
    }
    return in_turn(number, steps)


def started_s(number: int, work: Path) -> float:
    """From the launcher's start to the first measured operation of two ranks."""
    asked = options(
        backend="null", num_users="8", context_scale="0.05", block_tokens="16",
        duration="1", ramp="0", np="2", oversubscribe="true",
    )  # fmt: skip
    directory = work / f"start-{number}"
    directory.mkdir()
    return launch(plan_case(asked), directory)[0]


def measure(site: Site, rounds: int, *, gathers: bool) -> Raw:
    """All raw figures, by part and row, one per round."""
    raw: Raw = {}
    with tempfile.TemporaryDirectory(prefix="kvcache-storage-") as work:
        for number in range(rounds):
            for part, row, value in one_round(site, number, Path(work)):
                print(f"\rround {number + 1} of {rounds}: {part}, {row:<20}", end="", flush=True,
                      file=sys.stderr)  # fmt: skip
                raw.setdefault(part, {}).setdefault(row, []).append(value)
    if gathers:
        raw["gather"] = {"s": [scale.measure(64).gather_s for _ in range(GATHERS)]}
    print(f"\r{'':<60}\r", end="", file=sys.stderr)
    return raw


def arguments() -> argparse.Namespace:
    """As given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every window")
    parser.add_argument("--cache-dir", type=Path, default=Path("/var/tmp"), help="on the disk")
    parser.add_argument("--memory-dir", type=Path, default=Path("/dev/shm"), help="on tmpfs")
    parser.add_argument("--json", type=Path, default=Path("results/storage.json"))
    parser.add_argument("--svg", type=Path, default=Path("results/storage.svg"))
    parser.add_argument("--no-gather", action="store_true", help="leave the 64 ranks out")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    given = arguments()
    if fio.is_missing():
        print(fio.MISSING, file=sys.stderr)
        return 2
    began = time.monotonic()
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    buffers = fio.memory_for(2 * FIO_BUFFER_BYTES, meminfo)  # twice: other jobs may have some
    if buffers == "malloc":
        print(SMALL_PAGES, file=sys.stderr)
    with (
        tempfile.TemporaryDirectory(prefix="kvcache-", dir=given.cache_dir) as disk,
        tempfile.TemporaryDirectory(prefix="kvcache-", dir=given.memory_dir) as memory,
    ):
        site = Site(
            disk=Path(disk), memory=Path(memory), seconds=given.seconds, fio_buffers=buffers
        )
        filesystem = probe_filesystem(disk, "localhost").to_json()
        raw = measure(site, given.rounds, gathers=not given.no_gather)
    figures = figures_of(raw)
    print(table(figures))
    print(f"\n{percentile_table(raw)}")
    record = {
        **where(), "fio": fio.version(), "fio_buffers": buffers, "filesystem": filesystem,
        "rounds": given.rounds, "seconds": given.seconds, "took_s": time.monotonic() - began,
        "figures": [figure.to_json() for figure in figures], "raw": raw,
    }  # fmt: skip
    for path in (given.json, given.svg):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.json, record)
    given.svg.write_text(ratio_plot(figures), encoding="utf-8")
    print(f"\nwhy a target is missed: docs/speed.md; written: {given.json}, {given.svg}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
