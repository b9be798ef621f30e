"""A run of mlperf scenarios as the files in which the benchmark leaves its results. Pure.

Figures mean what they mean there (Rules.md 6.3.4, v3.0), but for tokens/s of the storage, which
are what was read divided by the bytes of a token. What this run did not measure is null: it has
no percentiles of single ranks, so that the largest of them is known of one rank alone.
"""

from __future__ import annotations

from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.mlperf.published import SUMMARY
from pytest_kvcache.plan.wholeobjects import changed_values
from pytest_kvcache.units import GIB
from pytest_kvcache.workloads.mlperf import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.results.run import RunResult
    from pytest_kvcache.results.trial import Trial

NOTE = (
    "This is no MLPerf submission and no result of the MLPerf Storage benchmark: pytest-kvcache"
    " made it. Users waited for their answers, bytes count once they have moved, and latencies are"
    " times of the storage."
)


def note_of(cases: Mapping[int, CaseResult]) -> str:
    """What every file says, and of which options the load was another than the benchmark's."""
    changed = {number: _differs_in(case) for number, case in cases.items()}
    return NOTE + "".join(
        f" What ran as option {number} differs from it in {', '.join(names)}."
        for number, names in changed.items()
        if names
    )


def _differs_in(case: CaseResult) -> list[str]:
    return [*changed_values(case.plan, FAMILIES[case.plan.scenario])]


def exported(run: RunResult) -> Mapping[str, dict[str, Any]]:
    """File names below the directory → their JSON. ResultError for a run that can't be told so."""
    cases = _cases_of(run)
    stamp = _datetime(run)
    files: dict[str, dict[str, Any]] = {SUMMARY: _summary(run, cases, stamp)}
    files[f"kv_cache_{stamp}_metadata.json"] = _metadata(run, cases, stamp)
    for number, case in cases.items():
        for trial in case.trials:
            for rank in trial.measured.ranks if trial.ok and trial.measured is not None else ():
                assert trial.measured is not None
                name = f"option_{number}/trial_{trial.index}/rank_{rank.rank}"
                files[f"{name}/kvcache_results_{stamp}.json"] = _rank_file(
                    number, case, trial.measured, rank
                )
    return files


def _cases_of(run: RunResult) -> dict[int, CaseResult]:
    """The cases of mlperf scenarios by the options' numbers."""
    cases: dict[int, CaseResult] = {}
    for case in run.cases:
        family = FAMILIES.get(case.plan.scenario)
        if family is None:
            continue
        number = family.option.number
        if number in cases:
            raise ResultError(
                f"the run has {cases[number].name} and {case.name}; a results directory has one"
                " of each option, so export runs of one number of ranks and one model"
            )
        cases[number] = case
    if not cases:
        raise ResultError(
            f"the run has no case of {', '.join(FAMILIES)}; only these can be exported"
        )
    if len({case.plan.layout for case in cases.values()}) > 1:
        raise ResultError("the cases ran on different ranks; a results directory is of one layout")
    return dict(sorted(cases.items()))


def _datetime(run: RunResult) -> str:
    return datetime.fromisoformat(run.started_at).strftime("%Y%m%d_%H%M%S")


def _summary(run: RunResult, cases: Mapping[int, CaseResult], stamp: str) -> dict[str, Any]:
    first = next(iter(cases.values()))
    hosts = first.plan.layout.hosts
    each = {host.ranks for host in hosts}
    options = {str(number): _option(number, case) for number, case in cases.items()}
    return {
        "schema_version": "1.0",
        "note": note_of(cases),
        "generator": f"pytest-kvcache {run.version}, run {run.run_id}",
        "run_datetime": stamp,
        "npernode": each.pop() if len(each) == 1 else None,
        "host_count": len(hosts),
        "total_ranks": first.plan.np,
        "trials_per_option": max(len(case.trials) for case in cases.values()),
        "options": options,
        "partial_failure": any(option["partial_failure"] for option in options.values()),
        "trial_failures": {
            str(number): [t.index for t in case.trials if not t.ok]
            for number, case in cases.items()
            if not all(t.ok for t in case.trials)
        },
    }


def _option(number: int, case: CaseResult) -> dict[str, Any]:
    """An option's figures; null unless every trial is sound."""
    trials = [t.measured for t in case.trials if t.ok and t.measured is not None]
    whole = len(trials) == len(case.trials) and bool(trials)
    missing = [
        f"option_{number}/trial_{t.index}/rank_{rank}"
        for t in case.trials
        if not t.ok
        for rank in range(case.plan.np)
    ]
    return {
        "option": number,
        **dict.fromkeys((*_MEANS, *_LARGEST)),
        **(_figures(case, trials) if whole else {}),
        "rank_count": case.plan.np,
        "trial_count": len(case.trials),
        "partial_failure": bool(missing),
        "missing_files": missing,
        "cpu_tier_ranks": [],
    }


_MEANS = (
    "aggregated_read_bandwidth_gbps",
    "aggregated_write_bandwidth_gbps",
    "aggregated_avg_throughput_tokens_per_sec",
    "aggregated_storage_throughput_tokens_per_sec",
)
_LARGEST = ("aggregated_device_read_p95_ms", "aggregated_device_write_p95_ms")


def _figures(case: CaseResult, trials: list[Trial]) -> dict[str, float | None]:
    by_trial = [
        [_rates(case, trial, rank) for rank in trial.ranks] for trial in trials
    ]  # of each rank
    means = {
        name: fmean(sum(rank[name] for rank in ranks) for ranks in by_trial) for name in _MEANS
    }
    found: dict[str, float | None] = {name: value or None for name, value in means.items()}
    if case.plan.np == 1:
        found |= {
            "aggregated_device_read_p95_ms": _largest([t.read.ms.p95 for t in trials]),
            "aggregated_device_write_p95_ms": _largest([t.write.ms.p95 for t in trials]),
        }
    return found


def _largest(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _rates(case: CaseResult, trial: Trial, rank: RankResult) -> dict[str, float]:
    """A rank's, per second of the window that all ranks share."""
    window_s = trial.window_s
    written = rank.write_bytes + (rank.demote_bytes or 0)
    token_bytes = case.plan.model.shard_bytes_per_token(case.plan.tensor_parallel)
    return {
        "aggregated_read_bandwidth_gbps": rank.read_bytes / window_s / GIB,
        "aggregated_write_bandwidth_gbps": written / window_s / GIB,
        "aggregated_avg_throughput_tokens_per_sec": rank.generated_tokens / window_s,
        "aggregated_storage_throughput_tokens_per_sec": rank.read_bytes / window_s / token_bytes,
    }


def _rank_file(number: int, case: CaseResult, trial: Trial, rank: RankResult) -> dict[str, Any]:
    rates = _rates(case, trial, rank)
    written = rank.write_bytes + (rank.demote_bytes or 0)
    alone = case.plan.np == 1
    return {
        "note": note_of({number: case}),
        "requests_completed": rank.completed_in_window,
        "total_tokens_generated": rank.generated_tokens,
        "seed": case.plan.seed + rank.rank,
        "summary": {
            "elapsed_time": trial.window_s,
            "avg_throughput_tokens_per_sec": rates["aggregated_avg_throughput_tokens_per_sec"]
            or None,
            "storage_throughput_tokens_per_sec": rates[
                "aggregated_storage_throughput_tokens_per_sec"
            ]
            or None,
            "cache_stats": {
                "tier_storage_kv_bytes_read_gb": rank.read_bytes / GIB,
                "tier_storage_kv_bytes_written_gb": written / GIB,
                "tier_storage_read_bandwidth_gbps": rates["aggregated_read_bandwidth_gbps"] or None,
                "tier_storage_write_bandwidth_gbps": rates["aggregated_write_bandwidth_gbps"]
                or None,
                "storage_read_device_p95_ms": trial.read.ms.p95 if alone else None,
                "storage_write_device_p95_ms": trial.write.ms.p95 if alone else None,
            },
        },
    }


def _metadata(run: RunResult, cases: Mapping[int, CaseResult], stamp: str) -> dict[str, Any]:
    """What ran, of each option: no single value stands for options that differ."""
    plans = {number: case.plan for number, case in cases.items()}
    first = next(iter(plans.values()))
    return {
        "benchmark_type": "kv_cache",
        "note": note_of(cases),
        "command": "run",
        "run_datetime": stamp,
        "num_processes": first.np,
        "hosts": [host.name for host in first.layout.hosts],
        "executed_command": None,
        "args": {"mode": "closed" if all(plan.closed for plan in plans.values()) else "open"},
        "options": {
            str(number): {
                "differs_in": _differs_in(case),
                "model": plan.model.name,
                "kv_dtype": plan.model.dtype,
                "tensor_parallel": plan.tensor_parallel,
                "kv_bytes_per_token": plan.model.shard_bytes_per_token(plan.tensor_parallel),
                "num_users": plan.users,
                "load_steps": [*plan.load_steps] or None,
                "request_rate": plan.request_rate,
                "requests": plan.requests,
                "reread_factor": plan.reread_factor,
                "duration": plan.duration_s,
                "gpu_mem_gb": _tier_gib(case, "gpu"),
                "cpu_mem_gb": _tier_gib(case, "cpu"),
                "generation_mode": plan.generation_mode,
                "context_scale": plan.context_scale,
                "seed": plan.seed,
                "storage_capacity_gb": plan.capacity_blocks * plan.stored_bytes / GIB,
                "cache_dir": plan.cache_dir,
            }
            for number, case in cases.items()
            for plan in (case.plan,)
        },
        "pytest_kvcache_command": list(run.command),
    }


def _tier_gib(case: CaseResult, name: str) -> float:
    return sum(tier.capacity_bytes for tier in case.plan.tiers if tier.name == name) / GIB
