"""The results of a run: complete or an error. Pure; imports neither pytest nor MPI.

The controller makes a ``TrialResult`` of a trial's record (record.py). The run file
holds everything from which its summary can be recomputed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.counters import merged
from pytest_kvcache.measure.metrics import METRICS, MIN_SAMPLES_BEYOND, PERCENTILES, has_answers
from pytest_kvcache.measure.stalls import stalls_of
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.results.devicegroups import device_groups
from pytest_kvcache.results.provenance import evidence_of
from pytest_kvcache.results.record import check_finite
from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.verdictcodes import SEVERITIES
from pytest_kvcache.units import GIB
from pytest_kvcache.version import RUN_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pytest_kvcache.measure.histogram import Histogram
    from pytest_kvcache.results.provenance import Evidence
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.results.verdictcodes import Severity

_Number = TypeVar("_Number", int, float)
_NS_PER_MS = 1e6
LEAST_HEADROOM = 2.0  # operations the harness can make to those it made; below, it is the limit
_HALVES = ("first", "second")
_REQUEST_COUNTS = ("offered", "completed", "dropped", "backlog", "generating", "storing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A reason to distrust a trial; ``invalid`` fails it, ``warning`` is shown."""

    code: str
    severity: Severity
    text: str

    @classmethod
    def of(cls, code: str, text: str) -> Verdict:
        """A verdict of a known code, whose severity the table of codes fixes."""
        return cls(code=code, severity=SEVERITIES[code], text=text)


def latencies_ms(histogram: Histogram, censored: int = 0) -> dict[str, float | None]:
    """Mean, percentiles and maximum in ms; None where too few samples lie beyond it.

    ``censored`` began and were not seen to end: longer than all others, for all we know.
    """
    whole = not censored
    result: dict[str, float | None] = {"mean": _ms(histogram.mean_ns()) if whole else None}
    for name, q in PERCENTILES.items():
        enough = histogram.samples_beyond(q, censored=censored) >= MIN_SAMPLES_BEYOND
        result[name] = _ms(histogram.percentile_ns(q, censored=censored)) if enough else None
    result["max"] = _ms(histogram.max_ns) if whole else None
    return result


def _ms(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / _NS_PER_MS


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``; None where there is no whole."""
    return part / whole if whole else None


_TRIAL_HEAD = frozenset({"index", "ok", "interrupted", "error", "verdicts", "sources"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One launch. ``data`` is the trial's JSON as in the run file; None if it gave none.

    ``sources`` are the files it was made of: path beside the run file → SHA-256.
    ``interrupted`` by the user: it neither counts nor stands against those that ended.
    """

    index: int
    error: str | None
    verdicts: tuple[Verdict, ...] = ()
    data: Mapping[str, Any] | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False

    def __post_init__(self) -> None:
        if self.interrupted and (self.error is None or self.data is not None):
            raise ResultError(f"trial {self.index} was interrupted and has a result, or no error")

    @property
    def ok(self) -> bool:
        """Whether the trial may be used."""
        return self.error is None

    @property
    def invalidated(self) -> bool:
        """Whether it failed by a verdict alone: what it measured is there, and is no result."""
        codes = [verdict.code for verdict in self.verdicts if verdict.severity == "invalid"]
        return self.error is not None and self.error.startswith(tuple(f"{c}: " for c in codes))

    def value(self, metric: str) -> float | None:
        """The metric's value, None if the trial has none."""
        return None if self.data is None else METRICS[metric].of(self.data)

    def to_json(self) -> dict[str, Any]:
        """The trial as in the run file."""
        return {
            "index": self.index,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "error": self.error,
            **(self.data or {}),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "sources": dict(self.sources),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialResult:
        """The inverse of ``to_json``."""
        rest = {key: value for key, value in data.items() if key not in _TRIAL_HEAD}
        if not isinstance(data["interrupted"], bool):
            raise ResultError(f"trial {data['index']} is interrupted or not: true or false")
        if data["ok"] != (data["error"] is None):
            raise ResultError(f"trial {data['index']} is ok and has an error, or neither")
        return cls(
            index=data["index"],
            error=data["error"],
            interrupted=data["interrupted"],
            verdicts=tuple(Verdict(**verdict) for verdict in data["verdicts"]),
            data=rest or None,
            sources=data["sources"],
        )


def _sum(ranks: Iterable[RankResult], name: str) -> int:
    return sum(getattr(rank, name) for rank in ranks)


def _sum_or_none(ranks: Sequence[RankResult], name: str) -> float | None:
    values = [getattr(rank, name) for rank in ranks]
    return None if any(value is None for value in values) else sum(values)


def trial_data(record: TrialRecord, plan: Plan) -> dict[str, Any]:
    """The trial's part of the run file, from the ranks' records alone."""
    ranks, window_s = record.ranks, record.window_s
    wakeup = record.histograms["wakeup"]
    operation_bytes = _sum(ranks, "read_op_bytes") + _sum(ranks, "write_op_bytes")
    return {
        "window_s": window_s,
        "ramp_s": plan.ramp_s,
        "start_skew_s": max(r.start_s for r in ranks) - min(r.start_s for r in ranks),
        "first_done_s": min(r.drained_s for r in ranks),
        "last_done_s": max(r.drained_s for r in ranks),
        **{name: _operations(record, name) for name in ("read", "write")},
        "delete": _section(record.histograms["delete"], failed=_sum(ranks, "delete_failed")),
        "queue": _section(record.histograms["queue"], bytes=operation_bytes),
        "demote": None,
        "device": _section(record.histograms["device"], bytes=_sum(ranks, "device_bytes")),
        "load": _censored_section(record, "load"),
        "request": _censored_section(record, "request") if has_answers(plan.phase) else None,
        "wakeup": _section(wakeup) if wakeup.count else None,  # a closed loop has none
        "requests": _requests(ranks, window_s),
        "tokens": _tokens(ranks, window_s),
        "cache": _cache(ranks, plan),
        "proof": _proof(ranks, plan),
        "harness": _harness(ranks, window_s),
        "integrity": {
            "checked": _sum(ranks, "checked"),
            "failed": _sum(ranks, "corrupt"),
            "read_back": _sum(ranks, "read_back"),
        },
        "stalls": stalls_of([rank.stalls for rank in ranks]),
        "series": record.series.to_json(),
        "clock": record.clock.to_json(),
        "surroundings": _surroundings(ranks),
        "ranks": [rank.to_json() for rank in ranks],
    }  # fmt: skip


def _operations(record: TrialRecord, name: str) -> dict[str, Any]:
    histogram = record.histograms[name]
    moved = _sum(record.ranks, f"{name}_bytes")
    return {
        "count": histogram.count,
        "failed": _sum(record.ranks, f"{name}_failed"),
        "bytes": moved,
        "gib_per_s": ratio(moved / GIB, record.window_s) if moved else None,
        "ms": latencies_ms(histogram),
        "histogram": histogram.to_json(),
    }


def _section(histogram: Histogram, censored: int = 0, **facts: int) -> dict[str, Any]:
    """Latencies with what they are of; ``censored`` began and were not seen to end."""
    return {
        "count": histogram.count,
        **facts,
        "ms": latencies_ms(histogram, censored),
        "histogram": histogram.to_json(),
    }


def _censored_section(record: TrialRecord, name: str) -> dict[str, Any]:
    """Load or request: some may have begun and not ended."""
    censored = _sum(record.ranks, f"{name}_censored")
    return {**_section(record.histograms[name], censored), "censored": censored}


def _requests(ranks: Sequence[RankResult], window_s: float) -> dict[str, Any]:
    completed = _sum(ranks, "completed_in_window")
    return {
        **{name: _sum(ranks, name) for name in _REQUEST_COUNTS},
        "half_waiting": [_sum_or_none(ranks, f"{half}_half_waiting") for half in _HALVES],
        "completed_in_window": completed,
        "per_s": ratio(completed, window_s) if completed else None,
        "goodput_per_s": None,
    }


def _tokens(ranks: Sequence[RankResult], window_s: float) -> dict[str, Any]:
    prompt, generated = _sum(ranks, "prompt_tokens"), _sum(ranks, "generated_tokens")
    total = prompt + generated
    return {
        "prompt": prompt,
        "generated": generated,
        "per_s": ratio(total, window_s) if total else None,
    }


def _cache(ranks: Sequence[RankResult], plan: Plan) -> dict[str, Any]:
    blocks, hits = _sum(ranks, "prompt_blocks"), _sum(ranks, "hit_blocks")
    cached = _sum(ranks, "cached_blocks")
    storage = {
        "blocks": cached,
        "bytes": cached * plan.stored_bytes,
        "capacity_bytes": plan.capacity_bytes * plan.np,
        "demoted_in_bytes": 0,
    }
    return {
        "prompt_blocks": blocks,
        "hit_blocks": hits,
        "hit_ratio": ratio(hits, blocks),
        "hit_token_ratio": ratio(_sum(ranks, "hit_tokens"), _sum(ranks, "arrived_tokens")),
        "half_hit_ratios": [
            ratio(_sum(ranks, f"{half}_half_hits"), _sum(ranks, f"{half}_half_blocks"))
            for half in _HALVES
        ],
        "evictions": _sum(ranks, "evictions"),
        "populated_blocks": _sum(ranks, "populated_blocks"),
        "tiers": {"gpu": None, "cpu": None, "storage": storage},
    }


def _proof(ranks: Sequence[RankResult], plan: Plan) -> dict[str, Any]:
    """What was asked for and what moved; the verdicts on it are added by verdicts/."""
    modes = sorted({rank.io_mode for rank in ranks})
    filesystems = {rank.host: rank.filesystem for rank in ranks}
    groups = device_groups(ranks, plan)
    watched = {host for group in groups for host in group.hosts} >= {rank.host for rank in ranks}
    return {
        "io_mode": "+".join(modes),
        "sync": "+".join(sorted({rank.sync for rank in ranks})),
        "requested_read_bytes": _sum(ranks, "requested_read_bytes"),
        "device_read_bytes": _sum_or_none(ranks, "device_read_bytes"),
        "requested_write_bytes": _sum(ranks, "requested_write_bytes"),
        "device_write_bytes": sum(g.moved.write_bytes for g in groups) if watched else None,
        "kernel_write_bytes": _sum_or_none(ranks, "device_write_bytes"),
        "distinct_read_bytes": _sum(ranks, "distinct_read_bytes"),
        "devices": [group.to_json() for group in groups],
        "sync_probes": {
            rank.host: rank.device["sync_probe"] for rank in ranks if rank.device is not None
        },
        "filesystem": filesystems,
        "reads": None,
        "writes": None,
        "verdict": None,
    }


_REAP_LAG = ("reap_lag_mean_ms", "reap_lag_p99_ms", "reap_lag_count")


def headroom_of(rank: RankResult, window_s: float) -> float | None:
    """How many times as many operations the rank could have made without the storage."""
    done_per_s = ratio(rank.read_count + rank.write_count, window_s)
    if rank.null_ops_per_s is None or not done_per_s:
        return None
    return rank.null_ops_per_s / done_per_s


def _harness(ranks: Sequence[RankResult], window_s: float) -> dict[str, Any]:
    headrooms = [headroom_of(rank, window_s) for rank in ranks]
    known = [headroom for headroom in headrooms if headroom is not None]
    least = min(known) if len(known) == len(ranks) else None
    cpu_s = sum(rank.cpu_s for rank in ranks)
    pauses_s = [rank.longest_pause_s for rank in ranks if rank.longest_pause_s is not None]
    moved = _sum(ranks, "requested_read_bytes") + _sum(ranks, "requested_write_bytes")
    return {
        "cpu_s": cpu_s,
        "cpu_s_per_gib": ratio(cpu_s, moved / GIB),
        "longest_pause_s": max(pauses_s, default=None),
        **{name: getattr(merged(ranks), name) for name in _REAP_LAG},
        "null_ops_per_s": _sum_or_none(ranks, "null_ops_per_s"),
        "memory_ops_per_s": _sum_or_none(ranks, "memory_ops_per_s"),
        "headroom": least,
        "client_bound": None if least is None else least < LEAST_HEADROOM,
    }


def _surroundings(ranks: Sequence[RankResult]) -> list[dict[str, Any]]:
    """Host by host what held its ranks up: of the rank that it held up most."""
    hosts: dict[str, list[RankResult]] = {}
    for rank in ranks:
        hosts.setdefault(rank.host, []).append(rank)
    return [{"host": host, **_host_surroundings(of_host)} for host, of_host in hosts.items()]


def _host_surroundings(ranks: Sequence[RankResult]) -> dict[str, Any]:
    """None where no rank of the host was told."""
    found = [rank.surroundings for rank in ranks]
    waits = ("memory_pressure_s", "group_memory_pressure_s")
    limits = dict.fromkeys(limit for around in found for limit in around.io_limits)
    worst = max(found, key=lambda around: around.throttled_s or 0.0)
    stolen = [(a.steal_s, a.span_s * rank.cores) for a, rank in zip(found, ranks, strict=True)]
    return {
        "cpu_quota_cores": _known(min, [around.cpu_quota_cores for around in found]),
        "cpu_periods": worst.cpu_periods,
        "throttled_periods": worst.throttled_periods,
        "throttled_ratio": _largest([(a.throttled_s, a.span_s) for a in found]),
        "steal_ratio": _largest(stolen),
        "memory_limit_bytes": _known(min, [around.memory_limit_bytes for around in found]),
        "memory_limit_hits_per_s": _largest([(a.memory_limit_hits, a.span_s) for a in found]),
        "memory_pressure_ratio": _largest(
            [(getattr(a, w), a.span_s) for a in found for w in waits]
        ),
        "io_limits": [asdict(limit) for limit in limits],
    }


def _largest(parts: Sequence[tuple[float | None, float]]) -> float | None:
    """The largest of these parts of their wholes; None if no part is known."""
    return _known(max, [ratio(part, whole) for part, whole in parts if part is not None])


def _known(
    of: Callable[[list[_Number]], _Number], values: Iterable[_Number | None]
) -> _Number | None:
    """The least or the largest of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return of(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """All trials of one case.

    ``looks`` are the numbers of trials after which it may end (`stopping.planned_looks`),
    ``metrics`` those that were asked for.
    """

    plan: Plan
    trials: tuple[TrialResult, ...] = ()
    looks: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def name(self) -> str:
        """The benchmark's fullname without the metric."""
        return self.plan.case

    @property
    def counted(self) -> tuple[TrialResult, ...]:
        """The trials that came to their own end; one that was interrupted says nothing."""
        return tuple(trial for trial in self.trials if not trial.interrupted)

    @property
    def error(self) -> str | None:
        """The error of the first trial that failed or was interrupted."""
        return next((trial.error for trial in self.trials if trial.error is not None), None)

    @property
    def effective_plan(self) -> Plan:
        """The plan with the I/O that really was: direct I/O may have been refused."""
        proofs = [trial.data["proof"] for trial in self.trials if trial.data is not None]
        modes = sorted({proof["io_mode"] for proof in proofs} - {"none"})
        syncs = sorted({proof["sync"] for proof in proofs})
        if not modes:
            return self.plan
        return replace(self.plan, io="+".join(modes), sync="+".join(syncs))

    @property
    def plan_digest(self) -> str:
        """Equal in two runs that measured the same thing: as planned, and as it was."""
        planned, ran = self.plan.workload_digest, self.effective_plan.workload_digest
        return planned if ran == planned else f"{planned}-{ran}"

    def with_trial(self, trial: TrialResult) -> CaseResult:
        """The case with one more trial."""
        return replace(self, trials=(*self.trials, trial))

    def series(self, metric: str) -> MetricSeries | None:
        """The metric over all trials that count; None if any of them failed or lacks it."""
        values = [trial.value(metric) for trial in self.counted if trial.ok]
        known = tuple(value for value in values if value is not None)
        if not known or len(known) != len(self.counted):
            return None
        spec = METRICS[metric]
        return MetricSeries(
            name=metric,
            unit=spec.unit,
            better=spec.better,
            values=known,
            looks=max(1, len(self.looks)),
        )

    def summary(self) -> dict[str, Any]:
        """Metric → median, mean, cv and confidence interval, where all trials have it."""
        found = {name: self.series(name) for name in METRICS}
        return {name: series.to_json() for name, series in found.items() if series is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseResult:
        """The inverse of ``to_json``; what is derived is not believed but derived again."""
        trials = tuple(TrialResult.from_json(trial) for trial in data["trials"])
        return cls(
            plan=Plan.from_json(data["plan"]),
            trials=trials,
            looks=tuple(data["looks"]),
            metrics=tuple(data["metrics"]),
            verdicts=tuple(Verdict(**verdict) for verdict in data["verdicts"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The case as in the run file."""
        plan = self.plan
        return {
            "name": self.name,
            "scenario": plan.scenario,
            "model": plan.model.name,
            "np": plan.np,
            "hosts": [host.name for host in plan.layout.hosts],
            "plan_digest": self.plan_digest,
            "plan": plan.to_json(),
            "looks": list(self.looks),
            "metrics": list(self.metrics),
            "trials": [trial.to_json() for trial in self.trials],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "summary": self.summary(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Everything of one pytest invocation: the run file."""

    run_id: str
    started_at: str
    command: tuple[str, ...]
    version: str
    commit: str | None
    environment: Mapping[str, Any]
    cases: tuple[CaseResult, ...] = field(default=())

    def evidence(self, case: CaseResult) -> Evidence:
        """What stands behind the values of one of its cases."""
        return evidence_of(
            [trial.to_json() for trial in case.trials],
            case.effective_plan.workload,
            {**self.environment, "version": self.version},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunResult:
        """The inverse of ``to_json``; ResultError for another schema or a missing part."""
        if data.get("schema") != RUN_SCHEMA:
            raise ResultError(f"the schema is {data.get('schema')!r}; it must be {RUN_SCHEMA!r}")
        if not isinstance(data.get("cases"), list):
            raise ResultError("a run file's cases must be a list")
        check_finite(data)
        try:
            return cls(
                run_id=data["run_id"],
                started_at=data["started_at"],
                command=tuple(data["command"]),
                version=data["version"],
                commit=data["commit"],
                environment=data["environment"],
                cases=tuple(CaseResult.from_json(case) for case in data["cases"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"a part of the run file is missing or odd: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """The run file."""
        return {
            "schema": RUN_SCHEMA,
            "run_id": self.run_id,
            "started_at": self.started_at,
            "command": list(self.command),
            "version": self.version,
            "commit": self.commit,
            "environment": dict(self.environment),
            "cases": [case.to_json() for case in self.cases],
        }
