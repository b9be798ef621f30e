"""What do the time series and the live line cost? Prints the ratio of throughputs.

    python -m benchmarks.progress [--json FILE] [--rounds N] [--backends NAMES]

One rank of this process runs the same replay on the null and on the memory backend: with
everything that a heartbeat of a real rank makes (twice a second the newest rows are
counted and a report is pickled, as MPI would), and with neither heartbeat nor series.
Both take turns in every round, so that a machine that drifts slows down both; the ratio is
taken within each round. A third figure depends less on what else the machine does: how much
of the CPU time of a run is left for all the rest. All is on one core, as of a rank that
shares a host with others (waiting for the GIL counts as ours, so it is a lower bound):
what the main thread does is taken from the threads that move. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases import options, plan_case
from benchmarks.harness import made_up_trace, write_mooncake
from pytest_kvcache.atomic import write_json
from pytest_kvcache.measure.live import Recent
from pytest_kvcache.measure.recorder import Recorder
from pytest_kvcache.measure.series import TimeSeriesLedger, coarse_index
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.session import new_run_id

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pytest_kvcache.measure.recorder import Window
    from pytest_kvcache.plan.planner import Case

    IntArray = npt.NDArray[np.int64]

BEAT_NS = 500_000_000
TARGET = 0.99  # of the throughput without
REQUESTS = {"null": 4_000, "memory": 400}  # some seconds of either


class _NoTimeSeries(TimeSeriesLedger):
    """Books nothing."""

    def add(self, *_rows: object) -> None:
        """Do nothing."""


class _BareRecorder(Recorder):
    """No series; of live figures only their sums, which nobody asks for."""

    def open_window(self, window: Window) -> None:
        """Open the window without a time series."""
        super().open_window(window)
        self.series = _NoTimeSeries(window.begin_ns, window.end_ns)


class _TimedSeries(TimeSeriesLedger):
    """Tells the CPU time that it takes."""

    cpu_s = 0.0

    def add(self, kind: str, done_ns: IntArray, bins: IntArray, moved_bytes: IntArray) -> None:
        """As ever, timed; what `_book` does beside it is done once more, to be timed too."""
        began_s = time.thread_time()
        coarse_index(done_ns - self._begin_ns)
        Recent().add(kind, bins, moved_bytes)
        super().add(kind, done_ns, bins, moved_bytes)
        self.cpu_s += time.thread_time() - began_s


class _TimedRecorder(Recorder):
    """Measures the CPU time of series and live figures."""

    cpu_s = 0.0

    def open_window(self, window: Window) -> None:
        """Open the window with a time series that is timed."""
        super().open_window(window)
        self.series = self.timed = _TimedSeries(window.begin_ns, window.end_ns)

    def total_s(self) -> float:
        """CPU time until now."""
        return self.cpu_s + self.timed.cpu_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one rank; ``cost`` is the share of its CPU time that is ours."""

    per_s: float
    per_cpu_s: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One backend, with and without, a run of each per round."""

    backend: str
    live: tuple[Run, ...]
    bare: tuple[Run, ...]

    def lines(self) -> list[str]:
        """The lines to print: throughputs as ratios within each round; what the timers measured."""
        pairs = [*zip(self.live, self.bare, strict=True)]
        return [
            self._line("operations/s", [a.per_s / b.per_s for a, b in pairs]),
            self._line("operations/CPU s", [a.per_cpu_s / b.per_cpu_s for a, b in pairs]),
            self._line("CPU of the rest", [1 - run.cost for run in self.live]),
        ]

    def _line(self, unit: str, ratios: list[float]) -> str:
        median = statistics.median(ratios)
        spread = f"{min(ratios):.3f} … {max(ratios):.3f}"
        base = statistics.median(run.per_s for run in self.bare)
        verdict = "met" if median >= TARGET else "MISSED"
        return (
            f"{self.backend:<8}{unit:<18}{base:>12,.0f}{median:>9.4f}{spread:>18}"
            f"{f'≥ {TARGET}':>9} {verdict}"
        )


def one_run(case: Case, *, live: bool) -> Run:
    """One rank of this process."""
    rank = Rank(case.plan, 0, "localhost", case.trace)
    recorder = _TimedRecorder()
    rank.recorder = recorder if live else _BareRecorder()
    rank.set_up(build_registry())
    rank.populate(lambda: False)
    beat_ns = 0

    def beat() -> bool:
        nonlocal beat_ns
        now = time.monotonic_ns()
        if now - beat_ns >= BEAT_NS:
            beat_ns = now
            began_s = time.thread_time()
            pickle.dumps({"phase": "window", **rank.progress()})
            recorder.cpu_s += time.thread_time() - began_s
        return False

    cpu_s, began = time.process_time(), time.monotonic_ns()
    rank.run(began, beat if live else lambda: False)
    elapsed_s, cpu_s = (rank.stopped_ns - began) / 1e9, time.process_time() - cpu_s
    rank.close()
    histograms = rank.recorder.histograms
    operations = histograms["read"].count + histograms["write"].count
    cost = recorder.total_s() / cpu_s if live else 0.0
    return Run(per_s=operations / elapsed_s, per_cpu_s=operations / cpu_s, cost=cost)


def compare(backend: str, rounds: int, work: Path) -> Comparison:
    """Both kinds in turn; who is first changes from round to round."""
    path = work / "made-up.jsonl"
    write_mooncake(made_up_trace(REQUESTS[backend]), path)
    case = plan_case(
        options(
            trace=str(path), trace_speedup="0", num_users="100", block_tokens="16",
            backend=backend, model="tiny-1b",
        )
    )  # fmt: skip
    found: dict[bool, list[Run]] = {True: [], False: []}
    for number in range(rounds):
        for live in (number % 2 == 0, number % 2 != 0):
            fresh = replace(case, plan=replace(case.plan, run_id=new_run_id()))
            found[live].append(one_run(fresh, live=live))
    return Comparison(backend=backend, live=tuple(found[True]), bare=tuple(found[False]))


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("results/progress.json"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--backends", default=",".join(REQUESTS))
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'backend':<8}{'':<18}{'without':>12}{'ratio':>9}{'range':>18}{'target':>9}")
    found: list[Comparison] = []
    for backend in given.backends.split(","):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
            found.append(compare(backend, given.rounds, Path(work)))
        print("\n".join(found[-1].lines()), flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.json, {"target": TARGET, "comparisons": [asdict(one) for one in found]})
    print(f"written to {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
