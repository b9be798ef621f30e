"""How fast is the engine beside fio? Prints every target of the engine and what was reached.

    python -m benchmarks.storage [--rounds N] [--seconds S] [--only TEXT] [--cache-dir DIR]

Bandwidth, CPU, latencies and memory are those of whole runs (pytest, mpirun, everything on),
with one rank of 16 transfers in flight (1×16) and two of 8 (2×8); ours by ``--kv-io-engine``
auto and threads, and fio with libaio, take turns within every round and change places from
round to round, for a disk's speed drifts; what counts is the median of the rounds' ratios.
Nothing here is a test. docs/speed.md has the figures, and why a target is missed where it is.
"""

from __future__ import annotations

import argparse
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
from benchmarks.storagefigures import GIB, KIB, figures_of, row_name
from pytest_kvcache.atomic import write_json
from pytest_kvcache.system.filesystem import probe_filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from benchmarks.storagefigures import Raw

ROOT = Path(__file__).parents[1]
PLUGIN = "benchmarks.uniform"
TRANSFER_BYTES = 4 * MIB
PHASES = {"read": "decode", "write": "prefill"}
SHAPES = ((1, 16), (2, 8))  # ranks × transfers in flight of each
READ_BYTES = (16 * KIB, 64 * KIB, MIB, 4 * MIB, 32 * MIB)
WRITE_BYTES = (64 * KIB, MIB, 4 * MIB, 32 * MIB)
UNVERIFIED_BYTES = (64 * KIB, MIB, 4 * MIB)
DATA_GIB = 1.0  # of all ranks' data, and of fio's files
APPEND_GIB = 32.0  # of room for new files, more than a window fills
RAMP_S = 0.5
FIO_BUFFER_BYTES = 16 * TRANSFER_BYTES
SMALL_PAGES = (
    "fio's buffers are of small pages and ours of huge ones, which flatters us at 1 MiB and"
    f" more: sysctl vm.nr_hugepages={2 * FIO_BUFFER_BYTES // (2 * MIB)} gives fio some"
)
GATHERS = 3
NULL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where it is measured, and for how long each window lasts."""

    disk: Path
    seconds: float
    fio_buffers: str

    def ours(
        self, kind: str, size: int, shape: tuple[int, int], *, store: str = "auto", **asked: str
    ) -> dict[str, Any]:
        """One trial of a whole session with the file backend."""
        np, depth = shape
        anew = store == "file"
        writes = "append" if anew else "overwrite"
        with tempfile.TemporaryDirectory(prefix="kvcache-storage-") as results:
            every = {
                "plugin": PLUGIN, "model": "uniform-1k", "store": store, "np": np,
                "scenario": f"uniform-{kind if kind == 'read' else writes}",
                "phase": PHASES[kind], "block-tokens": size // KIB, "num-users": 32 // np,
                "context-scale": (APPEND_GIB if anew else DATA_GIB) / np, "queue-depth": depth,
                "duration": self.seconds, "ramp": RAMP_S, "trials": 1, "cache-dir": self.disk,
                "results-dir": results, "metrics": f"{kind}.gib_per_s", **asked,
            }  # fmt: skip
            command = [
                sys.executable, "-m", "pytest", "--pyargs", "pytest_kvcache.suite", "-q", "-c",
                os.devnull, "-p", "no:cacheprovider", "--kv-oversubscribe",
                "--kv-allow-run-as-root", "--kv-allow-invalid",
                *(f"--kv-{name.replace('_', '-')}={value}" for name, value in every.items()),
            ]  # fmt: skip
            done = subprocess.run(
                command, check=False, cwd=results, env=environment(), capture_output=True,
                text=True,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"a run of {kind}s of {size} bytes failed:\n{done.stdout[-4000:]}")
            (path,) = Path(results).glob("*/run.json")
            return trial_figures(json.loads(path.read_text(encoding="utf-8")), kind)

    def fio(self, kind: str, size: int, shape: tuple[int, int]) -> dict[str, Any]:
        """The same pattern; libaio keeps as many in flight without threads."""
        jobs, depth = shape
        job = FioJob(
            kind=kind, block_bytes=min(size, TRANSFER_BYTES), jobs=jobs,
            depth=depth, engine="libaio", size_bytes=int(DATA_GIB * GIB) // jobs,
            seconds=self.seconds, memory=self.fio_buffers,
        )  # fmt: skip
        return job.run(self.disk)

    def null(self, size: int, *, checked: bool) -> dict[str, Any]:
        """One rank without a launcher and without storage; with the calibration's checks."""
        asked = {
            "plugin": [PLUGIN], "scenario": "uniform-read", "model": "uniform-1k",
            "phase": "decode", "block_tokens": str(size // KIB), "num_users": "32",
            "context_scale": "0.25", "queue_depth": "16", "duration": str(NULL_SECONDS),
            "ramp": str(RAMP_S), "cache_dir": str(self.disk),
            "backend": "file" if checked else "null",
        }  # fmt: skip
        more = ["calibrate"] if checked else []
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.onerank", json.dumps(asked), "0", *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        return start_together([child])[0]


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
        "average_queue_depth": [rank["average_queue_depth"] for rank in ranks],
        "evictions": sum(rank["evictions"] for rank in ranks),
        "io_mode": trial["proof"]["io_mode"],
        "io_engine": [rank["io_engine"] for rank in ranks],
        "proof": trial["proof"]["verdict"],
        "verdicts": [verdict["code"] for verdict in trial["verdicts"]],
    }


def in_turn(number: int, steps: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Carry the steps out, in every other round from the last one to the first."""
    order = list(steps)[:: -1 if number % 2 else 1]
    done = {name: steps[name]() for name in order}
    return {name: done[name] for name in steps}


def rows(site: Site) -> Iterator[tuple[str, str, Mapping[str, Callable[[], Any]]]]:
    """(part, row, steps) of everything that is measured beside fio."""
    for shape in SHAPES:
        for size in READ_BYTES:
            yield "reads", row_name("read", size, shape), beside(site, "read", size, shape)
        for size in UNVERIFIED_BYTES:
            steps = beside(site, "read", size, shape, verify="off")
            yield "unverified", row_name("read", size, shape), steps
    for size in WRITE_BYTES:
        steps = beside(site, "write", size, (2, 8), store="slab")
        yield "writes", row_name("write", size, (2, 8)), steps


def beside(
    site: Site, kind: str, size: int, shape: tuple[int, int], *, store: str = "auto", **asked: str
) -> dict[str, Callable[[], Any]]:
    """Whole runs with the engine of choice and with threads, and fio at the same pattern."""
    run = partial(site.ours, kind, size, shape, store=store, **asked)
    return {
        "ours": partial(run, io_engine="auto"),
        "threads": partial(run, io_engine="threads"),
        "fio": partial(site.fio, kind, size, shape),
    }


def started_s(number: int, work: Path) -> float:
    """From the launcher's start to the first measured operation of two ranks."""
    asked = options(
        backend="null", num_users="8", context_scale="0.05", block_tokens="16",
        duration="1", ramp="0", np="2", oversubscribe="true",
    )  # fmt: skip
    directory = work / f"start-{number}"
    directory.mkdir()
    return launch(plan_case(asked), directory)[0]


def measure(site: Site, rounds: int, only: str, *, gathers: bool) -> Raw:
    """All raw figures, by part and row, one per round."""
    raw: Raw = {}
    chosen = [row for row in rows(site) if only in f"{row[0]} {row[1]}"]
    with tempfile.TemporaryDirectory(prefix="kvcache-storage-") as work:
        for number in range(rounds):
            for part, row, steps in chosen:
                print(f"\rround {number + 1} of {rounds}: {part}, {row:<24}", end="", flush=True,
                      file=sys.stderr)  # fmt: skip
                raw.setdefault(part, {}).setdefault(row, []).append(in_turn(number, steps))
            if not only:
                alone = {
                    "null": site.null(64 * KIB, checked=False),
                    "checked": site.null(64 * KIB, checked=True),
                    "start": started_s(number, Path(work)),
                }
                for part, value in alone.items():
                    raw.setdefault(part, {}).setdefault("s", []).append(value)
    if gathers and not only:
        raw["gather"] = {"s": [scale.measure(64).gather_s for _ in range(GATHERS)]}
    print(f"\r{'':<60}\r", end="", file=sys.stderr)
    return raw


def arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of every window")
    parser.add_argument("--only", default="", help="rows that contain this, e.g. 'reads read 64'")
    parser.add_argument("--cache-dir", type=Path, default=Path("/var/tmp"), help="on the disk")
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
    with tempfile.TemporaryDirectory(prefix="kvcache-", dir=given.cache_dir) as disk:
        site = Site(disk=Path(disk), seconds=given.seconds, fio_buffers=buffers)
        filesystem = probe_filesystem(disk, "localhost").to_json()
        raw = measure(site, given.rounds, given.only, gathers=not given.no_gather)
    figures = figures_of(raw)
    print(table(figures))
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
