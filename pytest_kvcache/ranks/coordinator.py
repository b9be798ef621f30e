"""What world rank 0 does instead of I/O: broadcast, watch, gather, record.

Rank-side; never imports pytest. It runs on the controller's own host, reads the plan
and the trace from the run directory, and writes ``events.jsonl`` and ``trial.json``
there. It sleeps instead of spinning.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_kvcache.atomic import write_json
from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.iospool import spool_name
from pytest_kvcache.measure.live import LiveFigures
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.measure.series import CommonRange, TimeSeries, empty_dense
from pytest_kvcache.measure.sharing import CLOCK_ERROR_NS
from pytest_kvcache.measure.steps import StepLedger, histograms_of
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.plan.secretfile import take_secrets
from pytest_kvcache.ranks.comm import Comm, clock_ns
from pytest_kvcache.ranks.load import FixedSchedule, LoadConductor
from pytest_kvcache.results.events import EventWriter
from pytest_kvcache.results.record import TrialRecord
from pytest_kvcache.system.clocks import ClockRecord
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.read import Trace
from pytest_kvcache.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STALLED_EXIT = 97
_LEAD_NS = 50_000_000  # from the agreement on a start to the start
_SILENCE_S = 10.0
_LONG_WAIT_S = 2.0  # for one transfer, worth telling
_PROGRESS_S = 1.0
_INTERVAL_S = 15.0  # over which a log's lines are averaged
_SELF_KILL_GRACE_S = 60.0


class _Watch:
    """Receives the ranks' heartbeats, reports to the controller, and notices who is silent."""

    def __init__(self, comm: Comm, plan: Plan, events: EventWriter, hosts: list[str]) -> None:
        self._comm = comm
        self._plan = plan
        self._events = events
        self._hosts = hosts
        self._began = time.monotonic()
        self._last_report = 0.0
        self._stopped = False
        self._reports: dict[int, dict[str, Any]] = {}
        self._last_received: dict[int, float] = {}
        self._live = LiveFigures(comm.size - 1)
        self._interval = LiveFigures(comm.size - 1)
        self._interval_began = self._began
        self.phase = "set-up"
        self.load: LoadConductor | None = None

    def elapsed_s(self) -> float:
        """Seconds since the ranks were together."""
        return time.monotonic() - self._began

    def enter(self, phase: str, **facts: int) -> float:
        """A new phase: who was silent before gets a new chance. Returns when it began."""
        self.phase = phase
        self._live.restart()
        self._interval.restart()
        self._interval_began = time.monotonic()
        self._last_received = dict.fromkeys(range(1, self._comm.size), time.monotonic())
        t_s = self.elapsed_s()
        self._events.write("phase", t_s=t_s, phase=phase, **facts)
        return t_s

    def tick(self) -> None:
        """Read what has arrived; stop everyone if a rank failed; abort if one is silent."""
        now = time.monotonic()
        for rank, report in self._comm.progress_reports():
            self._last_received[rank] = now
            self._reports[rank] = report
            if report["phase"] == self.phase and report.get("recent") is not None:
                self._live.receive(rank, report["recent"])
                self._interval.receive(rank, report["recent"])
                if self.load is not None:
                    self.load.receive(rank, report["recent"])
            if report["phase"] == "dying":
                self.fail(rank - 1, report["error"])
            elif report["error"] is not None and not self._stopped:
                self._stopped = True
                self._comm.order_stop()
        if now - self._last_report >= _PROGRESS_S:
            self._last_report = now
            self._report_progress()
        if self.load is not None and self.phase == "window" and not self._stopped:
            self.load.tick(clock_ns())
        self._notice_silence(now)

    def _notice_silence(self, now: float) -> None:
        if self.phase not in ("precondition", "population", "window"):
            return
        for rank, received in self._last_received.items():
            if now - received > _SILENCE_S:
                self.fail(rank - 1, f"has not reported for {_SILENCE_S:g} s")
                self._comm.abort(STALLED_EXIT)

    def fail(self, rank: int, error: str) -> None:
        """Report to the controller why this trial can't succeed."""
        host = self._hosts[rank]
        self._events.write("failed", t_s=self.elapsed_s(), rank=rank, host=host, error=error)

    def _report_progress(self) -> None:
        # A report of the phase before would count what was stored in it as not found.
        reports = [
            report
            for report in self._reports.values()
            if "read_bytes" in report and report["phase"] == self.phase
        ]
        totals = {
            name: sum(report[name] for report in reports)
            for name in (
                "read_bytes", "write_bytes", "completed",
                "prompt_blocks", "hit_blocks", "cached_bytes",
            )
        }  # fmt: skip
        self._events.write(
            "progress", t_s=self.elapsed_s(), phase=self.phase, **totals, waiting=self._waiting(),
            recent=self._live.take(), interval=self._averaged(), free_bytes=self._free_bytes(),
        )  # fmt: skip

    def _averaged(self) -> dict[str, float | None] | None:
        """The figures of a whole interval, when one is over; one that lacks a rank goes on."""
        if self._last_report - self._interval_began < _INTERVAL_S:
            return None
        figures = self._interval.take()
        if figures is not None:
            self._interval_began = self._last_report
        return figures

    def _free_bytes(self) -> int | None:
        """Free bytes of the host with the least; None: one does not know, or nothing is stored."""
        known = [r["free_bytes"] for r in self._reports.values() if "free_bytes" in r]
        return min(known) if known and None not in known else None

    def _waiting(self) -> dict[str, Any] | None:
        """The rank whose storage has not answered for longest, if that is long."""
        waits = {r: report.get("waiting_s", 0.0) for r, report in self._reports.items()}
        rank = max(waits, key=lambda r: waits[r], default=None)
        if rank is None or waits[rank] < _LONG_WAIT_S:
            return None
        return {"rank": rank - 1, "host": self._hosts[rank - 1], "s": waits[rank]}


def coordinate(comm: Comm, run_dir: Path) -> int:
    """The coordinator's whole life; returns the exit code."""
    text = _read_plan(run_dir)
    plan = Plan.from_json(json.loads(text))
    faulthandler.dump_traceback_later(plan.deadline_s + _SELF_KILL_GRACE_S, exit=True)
    comm.broadcast(text)
    if plan.secret_options:
        comm.broadcast(take_secrets(run_dir).reveal())
    ranks = comm.gather(None)
    assert ranks is not None
    events = EventWriter(run_dir / "events.jsonl")
    try:
        watch = _Watch(comm, plan, events, [rank["host"] for rank in ranks[1:]])
        events.write("ranks", t_s=0.0, coordinator_pid=os.getpid(), ranks=ranks[1:])
        problem = _mismatch(plan, ranks[1:])
        if problem is not None:
            watch.fail(*problem)
        comm.broadcast(problem is None)
        if problem is not None:
            return 1
        if plan.trace is not None:
            _send_shards(comm, plan, run_dir)
        return _conduct(comm, plan, run_dir, watch)
    finally:
        events.close()


def _read_plan(run_dir: Path) -> str:
    try:
        return (run_dir / "plan.json").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ResultError(
            f"there is no {run_dir}/plan.json on {socket.gethostname()}; world rank 0 must run on"
            " the host that pytest runs on"
        ) from error


def _misplaced(plan: Plan, hosts: list[str]) -> tuple[int, str] | None:
    """The first rank that is on another host than planned.

    Hosts have names of their own beside those the user gave them; but ranks of one
    planned host must be together, of two apart, and none on a host of another's name.
    Launchers were seen to swap hosts in silence.
    """
    real: dict[str, str] = {}
    planned = {host.name: host.name for host in plan.layout.hosts}
    for rank, host in enumerate(hosts):
        name = plan.layout.host_of(rank)
        first, owner = real.setdefault(name, host), planned.setdefault(host, name)
        if owner != name or first != host:
            why = f"where the ranks of {owner} are or belong"
            if owner == name:
                why = f"and others of its host on {first}"
            return rank, (
                f"runs on {host}, {why}; the plan has it on {name}: the launcher has placed"
                " ranks in its own way, look at --kv-mpi-params and the launcher's own settings"
            )
    return None


def _mismatch(plan: Plan, ranks: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The first rank that does not run the same thing as we do."""
    for number, rank in enumerate(ranks):
        if rank["version"] != VERSION:
            return number, (
                f"has pytest-kvcache {rank['version']}, the controller {VERSION};"
                " install the same version on every host"
            )
        if rank["digest"] != plan.digest:
            return (
                number,
                "read another plan than the coordinator; use the same version everywhere",
            )
    return _misplaced(plan, [rank["host"] for rank in ranks])


def _send_shards(comm: Comm, plan: Plan, run_dir: Path) -> None:
    trace = Trace.load(run_dir / "trace.npz")
    for number, indices in enumerate(partition(trace, plan.np)):
        comm.send_part(number + 1, trace.select(indices))


def _agreed(comm: Comm, watch: _Watch, deadline_s: float) -> bool:
    """Wait for all ranks to end a phase; report the first error to the controller."""
    comm.wait_all(what=watch.phase, deadline_s=deadline_s, tick=watch.tick)
    errors = comm.gather(None)
    assert errors is not None
    failed = [(number, error) for number, error in enumerate(errors[1:]) if error is not None]
    if failed:
        watch.fail(*failed[0])
    comm.broadcast(not failed)
    return not failed


def _conduct(comm: Comm, plan: Plan, run_dir: Path, watch: _Watch) -> int:
    for phase in ("set-up", *plan.phases_before_window):
        watch.enter(phase)
        if not _agreed(comm, watch, plan.deadline_s):
            _leave(comm, watch, plan)
            return 1
    leaders = [1 + plan.layout.first_on_host(r) for r in range(plan.np)]
    offsets_ns = comm.measure_offsets_ns(leaders)
    start_ns = clock_ns() + _LEAD_NS
    begin_ns = start_ns + int(plan.ramp_s * 1e9)
    if plan.load_steps:
        control = FixedSchedule(plan.load_schedule)
        watch.load = LoadConductor(control, begin_ns, offsets_ns[1:], comm.order_change)
    began_s = watch.enter("window", start_ns=start_ns)
    users = None if watch.load is None else watch.load.first_users
    comm.scatter([(start_ns + offset, users) for offset in offsets_ns])
    comm.wait_all(what="drain", deadline_s=plan.deadline_s, tick=watch.tick)
    span_s = watch.enter("clean-up") - began_s
    clock = _clock(offsets_ns, comm.measure_offsets_ns(leaders), span_s)
    comm.wait_all(what="read-back", deadline_s=plan.deadline_s, tick=watch.tick)
    comm.wait_all(what="clean-up", deadline_s=plan.deadline_s, tick=watch.tick)
    record = _gather(comm, plan, clock, _clock_error_ns(clock, watch.elapsed_s()))
    fault = _keep_io_trace(comm, plan, run_dir) if plan.io_trace else None
    _leave(comm, watch, plan)
    if fault is not None:
        watch.fail(*fault)
        return 1
    write_json(run_dir / "trial.json", record.to_json())
    return 0


def _keep_io_trace(comm: Comm, plan: Plan, run_dir: Path) -> tuple[int, str] | None:
    """Write what each rank has of the I/O trace; return a rank and why its part is not whole.

    Ranks send all of it even so: they would wait for ever.
    """
    fault: tuple[int, str] | None = None
    for rank in range(plan.np):
        chunks = comm.receive_trace(rank + 1)
        try:
            with (run_dir / spool_name(rank)).open("wb") as file:
                for records in chunks:
                    file.write(records)
        except OSError as error:
            why = (
                f"its part of the I/O trace can't be written into {run_dir} on"
                f" {socket.gethostname()} ({error.strerror or error}); make room there, or name"
                " another --kv-results-dir"
            )
            fault = fault or (rank, why)
            for _rest in chunks:
                pass
    return fault


def _clock(before_ns: Sequence[int], after_ns: Sequence[int], span_s: float) -> ClockRecord:
    """How far the ranks' clocks went from ours; both lists begin with ourselves."""
    drifts_ns = [after - before for before, after in zip(before_ns, after_ns, strict=True)][1:]
    rank = max(range(len(drifts_ns)), key=lambda number: abs(drifts_ns[number]))
    return ClockRecord(
        coordinator_s=span_s,
        controller_least_s=None,
        controller_most_s=None,
        drift_s=drifts_ns[rank] / 1e9,
        drift_rank=rank,
    )


def _clock_error_ns(clock: ClockRecord, elapsed_s: float) -> int:
    """How far apart two moments must be on the ranks' clocks to have an order.

    They may have drifted before the window as they did in it.
    """
    share = elapsed_s / clock.coordinator_s if clock.coordinator_s else 1.0
    return CLOCK_ERROR_NS + int(abs(clock.drift_s) * 1e9 * max(1.0, share))


def _gather(comm: Comm, plan: Plan, clock: ClockRecord, clock_error_ns: int) -> TrialRecord:
    """The common window ends where the first rank stopped; then everything is summed."""
    if plan.shares:
        comm.exchange({})
        comm.broadcast(clock_error_ns)
    spans = comm.gather(None)
    assert spans is not None
    slice_ns = max(slice_ns for _span, slice_ns, _used, _steps in spans[1:])
    span_ns = min(span for span, _slice, _used, _steps in spans[1:])
    steps = max(steps for _span, _slice, _used, steps in spans[1:])
    if plan.duration_s is not None:
        span_ns = min(span_ns, int(plan.duration_s * 1e9))
    window_ns = max(0, span_ns // slice_ns * slice_ns)
    common = CommonRange.of(window_ns, [used for _span, _slice, used, _steps in spans[1:]])
    comm.broadcast((window_ns, slice_ns, common, steps))
    empty = np.stack([Histogram().counts for _name in SECTIONS])
    counts = comm.sum_arrays(empty)
    series = comm.sum_arrays(empty_dense(common))
    stepwise = comm.sum_arrays(StepLedger().dense(steps))
    gathered = comm.gather(None)
    assert counts is not None
    assert series is not None
    assert stepwise is not None
    assert gathered is not None
    results = [result for result, _parts, _steps in gathered[1:]]
    return TrialRecord(
        plan_digest=plan.digest,
        trial=plan.trial,
        window_s=window_ns / 1e9,
        ranks=tuple(results),
        histograms={
            name: Histogram.added(
                counts[row], [parts[row] for _result, parts, _steps in gathered[1:]]
            )
            for row, name in enumerate(SECTIONS)
        },
        series=TimeSeries.from_dense(series, common),
        load_steps=histograms_of(
            stepwise, [of_steps for _result, _parts, of_steps in gathered[1:]]
        ),
        clock=clock,
    )


def _leave(comm: Comm, watch: _Watch, plan: Plan) -> None:
    comm.wait_all(what="clean-up", deadline_s=plan.deadline_s, tick=watch.tick)
    comm.wait_all(what="end", deadline_s=plan.deadline_s, tick=watch.tick)
    comm.drain_messages()
