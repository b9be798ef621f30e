"""The file I/O of the MLPerf Storage KV cache benchmark beside ours, in the same run.

    python -m benchmarks.reference [--rounds N] [--seconds S] [--cache-dir DIR] [--json FILE]

What its storage tier does (mlcommons/storage, kv_cache_benchmark, July 2026), without the
rest of it: an object is written with ``numpy.save`` through the page cache and then synced,
and read, after its pages were dropped, with ``numpy.load`` and a copy. Ours are whole runs
with objects of the same size, a file each, synced. Both have two processes with 8 objects in
flight, and take turns in every round. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import MIB, ratios, short, where
from benchmarks.storage import DATA_GIB, PHASES, Site, environment, in_turn, start_together
from benchmarks.storagefigures import GIB
from pytest_kvcache.atomic import write_json

OBJECT_BYTES = 32 * MIB
PROCESSES = 2
THREADS = 8
SHAPE = (PROCESSES, THREADS)
FIELDS = (
    ("gib_per_s", "GiB/s", 1.0),
    ("cpu_s_per_gib", "CPU s per GiB", 1.0),
    ("peak_rss_bytes", "GiB of memory, largest rank", 1 / GIB),
)


def _write(path: Path, data: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, data, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    np.array(np.load(path, allow_pickle=False))


class _Rank:
    """Threads that write or read one object after the other until the end."""

    def __init__(self, kind: str, directory: Path, number: int) -> None:
        self._kind = kind
        self._number = number
        self._data = np.random.default_rng(number).random(OBJECT_BYTES // 8)
        count = max(THREADS, int(DATA_GIB * GIB) // PROCESSES // OBJECT_BYTES)
        self._paths = [directory / f"{number}-{index}.npy" for index in range(count)]
        self._ended_ns: list[int] = []
        if kind == "read":
            for path in self._paths:
                _write(path, self._data)

    def run(self, start_ns: int, seconds: float) -> dict[str, float]:
        """From the moment on; bandwidth of what ended within, CPU time of all that ended."""
        time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
        before, end_ns = _cpu_s(), start_ns + int(seconds * 1e9)
        threads = [
            threading.Thread(target=self._work, args=(index, end_ns)) for index in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        object_gib = OBJECT_BYTES / GIB
        inside = sum(ended_ns <= end_ns for ended_ns in self._ended_ns)
        return {
            "gib_per_s": inside * object_gib / seconds,
            "cpu_s_per_gib": (_cpu_s() - before) / (len(self._ended_ns) * object_gib),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def _work(self, index: int, end_ns: int) -> None:
        """Every thread has files of its own, as a request has in the benchmark."""
        turn = 0
        own = self._paths[index::THREADS]
        while time.monotonic_ns() < end_ns:
            path = own[turn % len(own)]
            turn += 1
            if self._kind == "write":
                _write(path, self._data)
            else:
                _read(path)
            self._ended_ns.append(time.monotonic_ns())


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def theirs(kind: str, disk: Path, seconds: float) -> dict[str, float]:
    """The figures of all reference processes together."""
    with tempfile.TemporaryDirectory(prefix="kvcache-", dir=disk) as directory:
        asked = [kind, directory, str(seconds)]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.reference", "--rank", str(number), *asked],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        answers = start_together(children)
    return {
        "gib_per_s": sum(answer["gib_per_s"] for answer in answers),
        "cpu_s_per_gib": statistics.mean(answer["cpu_s_per_gib"] for answer in answers),
        "peak_rss_bytes": max(answer["peak_rss_bytes"] for answer in answers),
    }


def measure(site: Site, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Per kind, one entry of both sides per round."""
    raw: dict[str, list[dict[str, Any]]] = {kind: [] for kind in PHASES}
    for number in range(rounds):
        for kind, entries in raw.items():
            steps = {
                "ours": partial(site.ours, kind, OBJECT_BYTES, SHAPE, store="file", sync="data"),
                "theirs": partial(theirs, kind, site.disk, site.seconds),
            }
            entries.append(in_turn(number, steps))
    return raw


def lines(raw: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Medians of both sides, and of the rounds' ratios with their range."""
    found = [f"{'32 MiB, synced':<34}{'ours':>8}{'theirs':>9}{'ours / theirs':>24}"]
    for kind, entries in raw.items():
        for field, name, scale in FIELDS:
            sides = [[entry[side][field] * scale for entry in entries] for side in entries[0]]
            ours, others = map(statistics.median, sides)
            between = ratios(*sides)
            spread = f"{short(min(between))} … {short(max(between))}"
            found.append(
                f"{f'{kind}: {name}':<34}{short(ours):>8}{short(others):>9}"
                f"{short(statistics.median(between)):>8}{spread:>16}"
            )
    return found


def main() -> int:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--rank"]:
        number, kind, directory, seconds = sys.argv[2:]
        rank = _Rank(kind, Path(directory), int(number))
        print("ready", flush=True)
        print(json.dumps(rank.run(int(sys.stdin.readline()), float(seconds))))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of every window")
    parser.add_argument("--cache-dir", type=Path, default=Path("/var/tmp"), help="on the disk")
    parser.add_argument("--json", type=Path, default=Path("results/reference.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvcache-", dir=given.cache_dir) as disk:
        site = Site(disk=Path(disk), seconds=given.seconds, fio_buffers="malloc")
        raw = measure(site, given.rounds)
    print("\n".join(lines(raw)))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.json, {**where(), "seconds": given.seconds, "raw": raw})
    return 0


if __name__ == "__main__":
    sys.exit(main())
