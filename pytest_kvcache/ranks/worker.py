"""The program every rank runs: ``python -m mpi4py -m pytest_kvcache.ranks.worker RUNDIR SIZE``.

World rank 0 is the coordinator (coordinator.py), the others do I/O. ``python -m mpi4py``
ends all ranks if one raises. Rank-side; never imports pytest. Standard output and error
are for people; nothing is parsed out of them.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import KVCacheError, StorageError
from pytest_kvcache.masking import Secrets
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.ranks.comm import COORDINATOR, Comm
from pytest_kvcache.ranks.coordinator import coordinate
from pytest_kvcache.ranks.rank import Rank
from pytest_kvcache.registry import build_registry
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from pytest_kvcache.registry import Registry

import numpy as np

_BEAT_NS = 500_000_000
_SELF_KILL_GRACE_S = 60.0


class Terminated(BaseException):
    """SIGTERM came: the rank ends, and its cleanup helper cleans up."""


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated


def _take_cores(plan: Plan, rank: int) -> None:
    """Stay on this rank's share of the host's cores, unless the launcher has bound it.

    The GIL lets one thread of a rank run at a time; handed from core to core it cost
    tens of microseconds each time, and p99 on tmpfs was 2.0 ms instead of 0.05 ms.
    """
    if plan.cores == "split":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, plan.layout.share_of(rank, cores))


class _Heartbeat:
    """Reports to the coordinator twice a second and hears its orders."""

    def __init__(self, comm: Comm, rank: Rank) -> None:
        self._comm = comm
        self._rank = rank
        self._sent_ns = 0
        self._stop = False
        self.phase = "set-up"

    def tick(self) -> bool:
        """Report and obey; true: stop early. Raises StalledError for an order that came late."""
        now = time.monotonic_ns()
        if now - self._sent_ns >= _BEAT_NS:
            self._sent_ns = now
            self._comm.send_progress(self._report())
        for change in self._comm.orders():
            if change is None:
                self._stop = True
            else:
                self._rank.change_load(change)
        return self._stop

    def wait(self) -> None:
        """``tick`` for waits that can't be cut short."""
        self.tick()

    def _report(self) -> dict[str, Any]:
        return {"phase": self.phase, **self._rank.progress()}


def _attempt(rank: Rank, step: Callable[[], None]) -> str | None:
    """Run a step whose failure all ranks have to know; returns the error's text."""
    try:
        step()
    except KVCacheError as error:
        return rank.secrets.mask(str(error))
    return None


def _agree(comm: Comm, heart: _Heartbeat, error: str | None, deadline_s: float) -> bool:
    """Wait for all ranks; true if none of them has an error."""
    comm.wait_all(what=heart.phase, deadline_s=deadline_s, tick=heart.wait)
    comm.gather(error)
    return bool(comm.broadcast(None))


def _work(comm: Comm) -> int:
    """A worker's whole life; the coordinator's steps mirror these one by one."""
    plan = Plan.from_json(json.loads(comm.broadcast(None)))
    secrets = Secrets(comm.broadcast(None) if plan.secret_options else {})
    faulthandler.dump_traceback_later(plan.deadline_s + _SELF_KILL_GRACE_S, exit=True)
    _take_cores(plan, comm.rank - 1)
    comm.gather({"host": comm.host, "pid": os.getpid(), "version": VERSION, "digest": plan.digest})
    if not comm.broadcast(None):
        return 1
    part = comm.receive_part() if plan.trace is not None else None
    rank = Rank(plan, comm.rank - 1, comm.host, part, secrets)
    try:
        return _measure(comm, rank)
    except Exception as error:
        comm.send_last_words(secrets.mask(f"{type(error).__name__}: {error}"))
        if not secrets:
            raise
        print(secrets.mask(traceback.format_exc()), file=sys.stderr, flush=True)  # noqa: T201
        comm.abort(1)  # as python -m mpi4py does after a traceback, which would not be masked
        raise


def _calibrate(rank: Rank, tick: Callable[[], bool]) -> None:
    """What may take long without a tick belongs here, where nobody minds silence."""
    rank.calibrate(tick)
    rank.make_ready()


def _set_up(rank: Rank, registry: Registry) -> None:
    """Open the storage, if its backend is here what it is on the controller."""
    plan = rank.plan
    if registry.backend(plan.backend).traits != plan.traits:
        raise StorageError(
            f"{rank.host}: the backend {plan.backend} has other traits here than where pytest runs;"
            " install the same version of its plugin on every host"
        )
    rank.set_up(registry)


def _measure(comm: Comm, rank: Rank) -> int:
    plan, heart = rank.plan, _Heartbeat(comm, rank)
    registry = build_registry(plan.plugins)
    error = _attempt(rank, lambda: _set_up(rank, registry))
    if not _agree(comm, heart, error, plan.deadline_s):
        return _give_up(comm, heart, rank)
    steps: dict[str, Callable[[Callable[[], bool]], None]] = {
        "calibration": partial(_calibrate, rank),
        "precondition": rank.precondition,
        "population": rank.populate,
        "shut-down": lambda _tick: rank.shut_down(),
        "drop-caches": lambda _tick: rank.drop_caches(),
    }
    for phase in plan.phases_before_window:
        step = steps[phase]
        heart.phase = phase
        error = _attempt(rank, partial(step, heart.tick))
        if not _agree(comm, heart, error, plan.deadline_s):
            return _give_up(comm, heart, rank)
    heart.phase = "window"
    rank.look_around()
    answers = plan.layout.first_on_host(rank.rank) == rank.rank
    if answers:
        comm.answer_clock()
    origin_ns, users = comm.scatter(None)
    rank.run(origin_ns, heart.tick, users)
    heart.phase = "clean-up"
    comm.wait_all(what="drain", deadline_s=plan.deadline_s, tick=heart.wait)
    rank.look_back()
    if answers:  # once more: how far the clocks have gone apart
        comm.answer_clock()
    rank.look_again()
    # No rank reads back while the disks of another one are still being looked at.
    comm.wait_all(what="read-back", deadline_s=plan.deadline_s, tick=heart.wait)
    rank.read_back(heart.wait)
    _report(comm, heart, rank, origin_ns)
    return 0


def _report(comm: Comm, heart: _Heartbeat, rank: Rank, origin_ns: int) -> None:
    """Close, cut the common window out of the counts, send everything."""
    cleanup_error = rank.close()
    # Not in a gather, in which nobody listens: closing may take long, or raise.
    comm.wait_all(what="clean-up", deadline_s=rank.plan.deadline_s, tick=heart.wait)
    if rank.plan.shares:
        dealt = rank.dealt_moments(origin_ns)
        parts = comm.exchange({to + 1: moments for to, moments in dealt.items()})
        rank.join_moments(parts, comm.broadcast(None))
    recorder = rank.recorder
    span_ns = rank.stopped_ns - rank.window_begin_ns
    used = recorder.series.used_range()
    comm.gather((span_ns, recorder.ledger.slice_ns, used, len(recorder.steps)))
    window_ns, slice_ns, common, steps = comm.broadcast(None)
    result = rank.result(
        origin_ns=origin_ns, window_ns=window_ns, slice_ns=slice_ns, cleanup_error=cleanup_error
    )
    histograms = [recorder.histograms[name] for name in SECTIONS]
    comm.sum_arrays(np.stack([histogram.counts for histogram in histograms]))
    comm.sum_arrays(recorder.series.dense(common))
    comm.sum_arrays(recorder.steps.dense(steps))
    extremes = [histogram.extremes for histogram in histograms]
    comm.gather((result, extremes, recorder.steps.extremes()))
    if rank.plan.io_trace:
        for records in rank.io_trace(origin_ns):
            comm.send_trace(records)
        comm.send_trace(b"")
    _leave(comm, heart, rank)


def _give_up(comm: Comm, heart: _Heartbeat, rank: Rank) -> int:
    rank.close()
    _leave(comm, heart, rank)
    return 1


def _leave(comm: Comm, heart: _Heartbeat, rank: Rank) -> None:
    """After the last rank has closed, so that nobody removes what another still uses."""
    deadline_s = rank.plan.deadline_s
    comm.wait_all(what="clean-up", deadline_s=deadline_s, tick=heart.wait)
    rank.leave()
    comm.wait_all(what="end", deadline_s=deadline_s, tick=lambda: None)
    comm.drain_messages()


def main(run_dir: str, world_size: int) -> int:
    """The rank program; returns the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    comm = Comm()
    if comm.size != world_size:
        print(  # noqa: T201  into mpirun.log, for people
            f"kvcache: the world has {comm.size} ranks, the plan has {world_size}; launcher and"
            f" MPI library do not belong together (library: {comm.library})",
            file=sys.stderr,
        )
        return 1
    try:
        return coordinate(comm, Path(run_dir)) if comm.rank == COORDINATOR else _work(comm)
    except Terminated:
        os._exit(128 + signal.SIGTERM)  # MPI can't be finalised any more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
