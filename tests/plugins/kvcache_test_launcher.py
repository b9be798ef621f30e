"""A launcher without ranks: ``--kv-plugin kvcache_test_launcher --kv-mpi-bin canned``.

Its command, a shell script, leaves the record that ranks would have written, with figures
that depend on the plan, the trial and the environment alone. What the pytest side and the
controller make of a launch can then be tested without MPI, at once, and to the last bit.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pytest_kvcache
from pytest_kvcache.atomic import write_json
from pytest_kvcache.launchers.family import LauncherFamily
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, SECTIONS
from pytest_kvcache.measure.series import (
    KINDS,
    CommonRange,
    TimeSeries,
    TimeSeriesLedger,
    coarse_index,
)
from pytest_kvcache.measure.steps import STEP_SECTIONS, StepCounts, StepHistograms
from pytest_kvcache.measure.worth import LengthCounts
from pytest_kvcache.phases import PHASES
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.results.events import EventWriter
from pytest_kvcache.results.invariants import tier_counters
from pytest_kvcache.results.record import RankResult, TrialRecord
from pytest_kvcache.system.clocks import ClockRecord
from pytest_kvcache.system.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.launchers.protocol import LaunchJob

OPERATIONS = 2_000  # of each kind, in each trial: enough for p99
BYTES_PER_S = 1 << 30  # of each direction and rank, at KVCACHE_TEST_FACTOR 1, in trial 0
HOST = os.environ.get("KVCACHE_TEST_HOST")
BLANKS = {
    "int": 0, "float": 0.0, "str": "", "bool": False, "tuple[Stall, ...]": (),
    "tuple[StepCounts, ...]": (),
    "tuple[ServiceCounts, ...]": (), "tuple[LengthCounts, ...]": (),
}  # fmt: skip
ABSENT = (
    "delete",
    "lookup",
    "visibility",
    "restart",
    "scheduling_lag",
    "demote",
    *MEMORY_SECTIONS,
)  # sections in which nothing was recorded


if HOST:  # a host of its own name has a lock of its own, so that tests need not wait
    socket.gethostname = lambda: str(HOST)


class CannedLauncher:
    """Launches one script; what it is going to leave is prepared when it is asked for."""

    def argv(self, job: LaunchJob) -> list[str]:
        run_dir = Path(job.program[-2])
        if (run_dir / "plan.json").exists():  # not for a dry run
            prepare(run_dir)
        return ["/bin/sh", str(run_dir / "ranks.sh")]


@pytest_kvcache.hookimpl
def kvcache_launchers() -> Mapping[str, LauncherFamily]:
    family = LauncherFamily(
        title="canned ranks", make=lambda _found: CannedLauncher(), is_program=False
    )
    return {"canned": family}


def slowness(trial: int) -> float:
    """How many times as slow the trial is as trial 0 usually is; 1 % more for each trial."""
    return float(os.environ.get("KVCACHE_TEST_FACTOR", "1")) * (1 + 0.01 * trial)


def latencies_ns(trial: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """0.5 to 1.5 ms, evenly."""
    even = np.linspace(500_000, 1_500_000, OPERATIONS) * slowness(trial)
    return even.astype(np.int64)


def of_plan_ns(plan: Plan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of this launch; without stores KVCACHE_TEST_RELIEF times as fast, beside them 1."""
    relief = float(os.environ.get("KVCACHE_TEST_RELIEF", "1"))
    alone = plan.interference == "without-stores"
    return (latencies_ns(plan.trial) / (relief if alone else 1)).astype(np.int64)


def blank_rank(**known: Any) -> RankResult:
    """A rank's record in which everything that is not given is zero, empty or None."""
    values = {field.name: BLANKS.get(str(field.type)) for field in fields(RankResult)}
    return RankResult(**{**values, **known})


def blank_surroundings(span_s: float) -> Surroundings:
    """Surroundings of which the kernel tells nothing."""
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(Surroundings))
    values |= {"span_s": span_s, "io_limits": (), "preloaded": (), "wrappers": ()}
    return Surroundings(**values)


def canned_rank(plan: Plan, rank: int, histogram: Histogram) -> RankResult:
    window_s = plan.duration_s or 1.0
    moved = int(BYTES_PER_S * window_s / slowness(plan.trial))
    stop_s = plan.ramp_s + window_s
    share = OPERATIONS * (rank + 1) // plan.np - OPERATIONS * rank // plan.np
    p95_ms = Latencies.of(histogram).p95
    stores = PHASES[plan.phase].stores
    written = {
        "write_count": share, "write_bytes": moved, "write_p95_ms": p95_ms,
        "write_op_bytes": moved, "requested_write_bytes": moved, "requested_writes": share,
    }  # fmt: skip
    return blank_rank(
        **{**dict.fromkeys(tier_counters(plan), 0), "storage_hit_blocks": 300},
        memory_tiers_s=0.0 if any(tier.holds_bytes for tier in plan.tiers) else None,
        io_engine="threads", io_engine_reason="canned",
        rank=rank, host="n1", pid=1000 + rank, stop_s=stop_s, drained_s=stop_s,
        read_count=share, read_bytes=moved, read_p95_ms=p95_ms, read_op_bytes=moved,
        device_bytes=2 * moved, offered=100, completed=100, completed_in_window=100,
        prompt_blocks=400, hit_blocks=300, first_half_blocks=200, first_half_hits=150,
        second_half_blocks=200, second_half_hits=150, prompt_tokens=400, generated_tokens=100,
        arrived_tokens=400, hit_tokens=300, io_mode="direct", sync="none",
        average_queue_depth=float(plan.queue_depth),
        is_storage=plan.traits.is_storage,
        requested_read_bytes=moved, requested_transfers=2 * share, cpu_s=0.1,
        surroundings=blank_surroundings(stop_s),
        load_steps=canned_steps(plan, rank, moved),
        **canned_loads(plan, share),
        **(written if stores else {}),
    )  # fmt: skip


def canned_loads(plan: Plan, count: int) -> dict[str, Any]:
    """Loads of a token each, all of which paid, where the plan judges them."""
    if plan.prefill_tokens_per_s is None:
        return {}
    lengths = (LengthCounts(tokens=1, loads=count, useful=count),)
    return {"load_lengths": lengths, "loaded_tokens": count, "useful_tokens": count}


def part_of(total: int, number: int, parts: int) -> int:
    """One of so many parts, as equal as whole numbers can be."""
    return total * (number + 1) // parts - total * number // parts


def canned_steps(plan: Plan, rank: int, moved: int) -> tuple[StepCounts, ...]:
    """What a rank did in each load step: as much as in any other."""
    steps = len(plan.load_steps)
    return tuple(
        StepCounts(
            users=step.users, begin_s=step.begin_ns / 1e9, obeyed_s=step.begin_ns / 1e9,
            answered=part_of(part_of(OPERATIONS, number, steps), rank, plan.np),
            answered_users=step.users, answered_later=1,
            read_op_bytes=part_of(moved, number, steps),
            write_op_bytes=part_of(moved, number, steps), demote_op_bytes=0,
            prompt_blocks=part_of(400, number, steps), hit_blocks=part_of(300, number, steps),
            load_censored=0, request_censored=0,
        )
        for number, step in enumerate(plan.load_schedule)
    )  # fmt: skip


def step_histograms(plan: Plan) -> tuple[StepHistograms, ...]:
    """Of each load step as many of the latencies as of any other."""
    found, values, steps = [], latencies_ns(plan.trial), len(plan.load_steps)
    for number in range(steps):
        count = part_of(OPERATIONS, number, steps)
        histogram = Histogram()
        histogram.record(values[:count])
        values = values[count:]
        found.append({**dict.fromkeys(STEP_SECTIONS, histogram), "demote": Histogram()})
    return tuple(found)


def even_series(trial: int, window_s: float, moved_bytes: Mapping[str, int]) -> TimeSeries:
    """The bytes of each kind, moved by as many operations each second."""
    window_ns = round(window_s * 1e9)
    ledger = TimeSeriesLedger(0, window_ns)
    for kind, total in moved_bytes.items():
        if total:
            done_ns = np.linspace(0, window_ns - 1, OPERATIONS).astype(np.int64)
            sizes = np.full(OPERATIONS, total // OPERATIONS, dtype=np.int64)
            sizes[-1] += total % OPERATIONS
            ledger.add(kind, done_ns, coarse_index(latencies_ns(trial)), sizes)
    common = CommonRange.of(window_ns, [ledger.used_range()])
    return TimeSeries.from_dense(ledger.dense(common), common)


def canned_record(plan: Plan) -> TrialRecord:
    """What ranks of this plan would have gathered."""
    histogram = Histogram()
    histogram.record(of_plan_ns(plan))
    waits = Histogram()
    waits.record(of_plan_ns(plan) // 2)
    absent = ABSENT if PHASES[plan.phase].stores else (*ABSENT, "write")
    window_s = plan.duration_s or 1.0
    ranks = tuple(canned_rank(plan, rank, histogram) for rank in range(plan.np))
    moved_bytes = {kind: sum(getattr(r, f"{kind}_bytes") for r in ranks) for kind in KINDS}
    return TrialRecord(
        plan_digest=plan.digest,
        trial=plan.trial,
        window_s=window_s,
        ranks=ranks,
        histograms={
            name: {**dict.fromkeys(absent, Histogram()), "queue": waits}.get(name, histogram)
            for name in SECTIONS
        },
        series=even_series(plan.trial, window_s, moved_bytes),
        load_steps=step_histograms(plan),
        clock=ClockRecord(
            coordinator_s=plan.ramp_s + window_s, controller_least_s=None,
            controller_most_s=None, drift_s=0.0, drift_rank=0,
        ),
    )  # fmt: skip


def report_progress(plan: Plan, path: Path) -> None:
    events = EventWriter(path)
    ranks = [{"host": "n1", "pid": 1000 + rank} for rank in range(plan.np)]
    events.write("ranks", t_s=0.0, coordinator_pid=os.getpid(), ranks=ranks)
    events.write("phase", t_s=0.1, phase="window")
    for second in (1, 2):
        events.write(
            "progress", t_s=float(second), phase="window", waiting=None, read_bytes=second << 30,
            write_bytes=second << 30, completed=second, prompt_blocks=4, hit_blocks=3,
            cached_bytes=4 << 20, free_bytes=second << 40, interval=None,
            recent=None if second == 1 else {
                "operations_per_s": 5_000.0, "read_gib_per_s": 1.0, "write_gib_per_s": 1.0,
                "read_p99_ms": 1.5,
            },
        )  # fmt: skip
    if os.environ.get("KVCACHE_TEST_FAULT") == "failed":
        events.write("failed", t_s=3.0, rank=1, host="n1", error="the disk is on fire")
    events.close()


def fault_of(trial: int) -> str:
    """What is to go wrong in this trial; KVCACHE_TEST_FAULT_TRIAL chooses one of them."""
    wanted = os.environ.get("KVCACHE_TEST_FAULT_TRIAL", str(trial))
    return os.environ.get("KVCACHE_TEST_FAULT", "") if wanted == str(trial) else ""


# What is odd about a record, and about its last rank.
ODD_RECORD: dict[str, dict[str, Any]] = {
    "another-plan": {"plan_digest": "0" * 16},
    "another-schema": {"schema": "pytest-kvcache/trial/0"},
}
ODD_RANK: dict[str, dict[str, Any]] = {
    "rank-error": {"error": "host n1: can't read object x: I/O error", "read_failed": 3},
    "delete-error": {"error": "host n1: can't delete object x: I/O error"},
    "cleanup-error": {"cleanup_error": "host n1: can't remove /x: Permission denied"},
}
NOTHING = dict.fromkeys(("read_count", "write_count", "read_bytes", "write_bytes"), 0)


def damaged(data: dict[str, Any], fault: str) -> dict[str, Any]:
    """The record as a launch that went wrong might have left it."""
    data |= ODD_RECORD.get(fault, {})
    data["ranks"][-1] |= ODD_RANK.get(fault, {})
    if fault == "missing-rank":
        data["ranks"].pop()
    elif fault == "short-window":
        data["window_s"] /= 2
        data["ranks"][-1]["stop_s"] /= 2
    elif fault == "impossible":
        data["ranks"][1]["read_bytes"] *= 10
    elif fault == "no-operation":
        empty = Histogram().to_json()
        data["histograms"] = dict.fromkeys(data["histograms"], empty)
        data["ranks"] = [{**rank, **NOTHING} for rank in data["ranks"]]
    elif fault == "idle-rank":
        whole = data["ranks"][0]
        data["ranks"][1] |= NOTHING
        data["ranks"][0] |= {name: 2 * whole[name] for name in ("read_count", "write_count")}
    if fault != "impossible":
        moved_bytes = {k: sum(r[f"{k}_bytes"] for r in data["ranks"]) for k in KINDS}
        series = even_series(data["trial"], data["window_s"], moved_bytes)
        data["series"] = series.to_json()
    return data


ENDS = {
    "hang": "sleep 600",
    "slow": "sleep 2; mv prepared.json trial.json",
    "exit-3": "exit 3",
    "failed": "exit 3",
    "no-record": "exit 0",
    "cut-off": "head -c 40 prepared.json > trial.json",
}


def prepare(run_dir: Path) -> None:
    """Write the script, and what it is going to publish."""
    plan = Plan.from_json(json.loads((run_dir / "plan.json").read_text()))
    fault = fault_of(plan.trial)
    report_progress(plan, run_dir / "prepared.jsonl")
    write_json(run_dir / "prepared.json", damaged(canned_record(plan).to_json(), fault))
    lines = [
        f"cd {shlex.quote(str(run_dir))} || exit 9",
        f"echo a line of rank 0 in trial {plan.trial}",
        "mv prepared.jsonl events.jsonl",
        ENDS.get(fault, "mv prepared.json trial.json"),
    ]
    (run_dir / "ranks.sh").write_text("\n".join(lines) + "\n")
