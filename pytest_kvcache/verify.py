"""Checks a run file against itself: nothing that is derived is believed. Pure.

Sums over ranks, percentiles from histograms, bandwidths, verdicts and summaries are
computed again from the ranks' scalars and the histograms, and compared. What those are
made of, and the plan's own values, must keep the laws of consistency.py. Where the files
that the trials left behind lie beside the run file, it must agree with them
(``source_faults``). Whoever writes all of them anew, by these very rules, is not found.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.clocks import ClockRecord
from pytest_kvcache.consistency import plan_faults, record_faults
from pytest_kvcache.errors import ResultError
from pytest_kvcache.latency import Histogram
from pytest_kvcache.metrics import METRICS
from pytest_kvcache.recorder import SECTIONS
from pytest_kvcache.results import CaseResult, RunResult
from pytest_kvcache.series import Series
from pytest_kvcache.stopping import planned_looks
from pytest_kvcache.trialrecord import RankResult, TrialRecord
from pytest_kvcache.verdicts import evaluate_case, evaluate_trial, idle_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_kvcache.plan import Plan
    from pytest_kvcache.results import TrialResult


def source_faults(
    data: Mapping[str, Any], read: Callable[[str], bytes | None]
) -> tuple[list[str], int]:
    """What of a run file that ``verify_run`` found sound is not what its trials left behind.

    ``read`` gives a file's content by its path beside the run file, None where it is not
    there. Also the number of trials whose record is there and was compared.
    """
    problems, compared = [], 0
    for case in RunResult.from_json(data).cases:
        for trial in case.trials:
            contents = {path: read(path) for path in trial.sources}
            problems += [
                f"{case.name}: trial {trial.index}: {path} is not the file that it was made of"
                for path, content in contents.items()
                if content is not None
                and hashlib.sha256(content).hexdigest() != trial.sources[path]
            ]
            for path, content in contents.items():
                if content is not None and path.endswith("/trial.json"):
                    compared += 1
                    problems += [
                        f"{case.name}: trial {trial.index}: {path}: {problem}"
                        for problem in _record_faults(trial, case.plan, content)
                    ]
    return problems, compared


def _record_faults(trial: TrialResult, plan: Plan, content: bytes) -> Iterator[str]:
    """What a trial of the run file has otherwise than the record it was made of."""
    try:
        record = TrialRecord.from_json(json.loads(content), plan.for_trial(trial.index))
    except (ValueError, TypeError, KeyError, AttributeError, ResultError) as error:
        if trial.data is not None:
            yield f"it can't be read as the trial's record ({error})"
        return
    if trial.data is not None:
        # What the controller's own clock says of the window it wrote into the run file alone.
        record = replace(record, clock=ClockRecord.from_json(trial.data["clock"]))
        data, _verdicts = evaluate_trial(record, plan.for_trial(trial.index))
        yield from _differences(data, trial.data, "")


def verify_run(data: Mapping[str, Any]) -> list[str]:
    """Every contradiction as a sentence; empty: the file is sound.

    Raises ResultError if it is no run file of this schema.
    """
    run = RunResult.from_json(data)
    problems = [] if run.cases else ["the run has no case; a run file has at least one"]
    try:
        for case, written in zip(run.cases, data["cases"], strict=True):
            problems += [f"{case.name}: {problem}" for problem in _case(case, written)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"a part of the run file is missing or odd: {error!r}") from error
    return problems


def _case(case: CaseResult, written: Mapping[str, Any]) -> Iterator[str]:
    expected = case.to_json()
    for key in ("name", "scenario", "model", "np", "hosts", "plan_digest", "summary"):
        yield from _differences(expected[key], written[key], key)
    yield from plan_faults(case.plan)
    unknown = [metric for metric in case.metrics if metric not in METRICS]
    if unknown:
        yield f"metrics has {', '.join(map(repr, unknown))}; it must name known metrics"
        return
    yield from _design_faults(case)
    verdicts = evaluate_case(case)
    if verdicts != case.verdicts:
        codes = [verdict.code for verdict in case.verdicts]
        yield f"the verdicts are {codes}; they must be {[v.code for v in verdicts]}"
    if not case.trials:
        yield "it has no trial; a case has at least one"
    if [trial.index for trial in case.trials] != list(range(len(case.trials))):
        yield "the trials are not numbered 0, 1, 2 …"
    if any(trial.interrupted for trial in case.trials[:-1]):
        yield "a trial that was interrupted is followed by another one"
    for trial in case.trials:
        for problem in _trial(trial, case.plan):
            yield f"trial {trial.index + 1}: {problem}"


def _design_faults(case: CaseResult) -> Iterator[str]:
    """When it might end must be what options can lead to."""
    looks = case.looks
    numbers = all(type(look) is int and look > 0 for look in looks)
    if not looks or not numbers or looks != planned_looks(looks[0], looks[-1]):
        yield f"looks are {list(looks)}; they must be those between a least and a most of trials"
    elif len(case.trials) > looks[-1]:
        yield f"it has {len(case.trials)} trials; by its looks it has {looks[-1]} at most"


def _trial(trial: TrialResult, plan: Plan) -> Iterator[str]:
    if trial.data is None:
        if trial.ok:
            yield "it is ok, but has no data"
        return
    record = _record(trial.data, plan)
    data, verdicts = evaluate_trial(record, plan)
    yield from _differences(data, trial.data, "")
    yield from record_faults(record, plan)
    if verdicts != trial.verdicts:
        codes = [verdict.code for verdict in trial.verdicts]
        yield f"the verdicts are {codes}; they must be {[v.code for v in verdicts]}"
    if [rank.rank for rank in record.ranks] != list(range(plan.np)):
        yield f"it has {len(record.ranks)} ranks; the plan has {plan.np}"
    for name in ("read", "write", "delete"):
        counted = sum(getattr(rank, f"{name}_count") for rank in record.ranks)
        if counted != record.histograms[name].count:
            yield f"its ranks counted {counted} {name}s; the histogram holds {data[name]['count']}"
    if trial.ok:
        invalid = {verdict.code for verdict in verdicts if verdict.severity == "invalid"}
        yield from _why_not_ok(record, data, plan, invalid)


def _record(data: Mapping[str, Any], plan: Plan) -> TrialRecord:
    return TrialRecord(
        plan_digest=plan.digest,
        trial=plan.trial,
        window_s=data["window_s"],
        ranks=tuple(RankResult.from_json(rank) for rank in data["ranks"]),
        histograms={name: _histogram(data[name]) for name in SECTIONS},
        series=Series.from_json(data["series"]),
        clock=ClockRecord.from_json(data["clock"]),
    )


def _histogram(section: Mapping[str, Any] | None) -> Histogram:
    """A section's; one that a trial does not have is empty."""
    return Histogram() if section is None else Histogram.from_json(section["histogram"])


def _why_not_ok(
    record: TrialRecord, data: Mapping[str, Any], plan: Plan, invalid: set[str]
) -> Iterator[str]:
    """What a trial that calls itself ok must not have."""
    sections = ("read", "write", "delete", "integrity")
    failed = sum(data[name]["failed"] for name in sections)
    if failed or any(rank["error"] for rank in data["ranks"]):
        yield f"it is ok, but {failed} operations failed"
    if any(rank["cleanup_error"] for rank in data["ranks"]):
        yield "it is ok, but a rank could not clean up"
    idle = idle_error(record.ranks)
    if idle is not None:
        yield f"it is ok, but {idle}"
    invalid = {code for code in invalid if not plan.allows(code)}
    if invalid:
        yield f"it is ok, but its verdicts {sorted(invalid)} invalidate it"


def _differences(expected: Any, found: Any, path: str) -> Iterator[str]:
    """Where two JSON values differ, leaf by leaf."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in sorted(expected.keys() | found.keys()):
            below = f"{path}.{key}" if path else key
            if key not in expected or key not in found:
                yield f"{below} is {'missing' if key not in found else 'unknown'}"
            else:
                yield from _differences(expected[key], found[key], below)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (left, right) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif expected != found:
        yield f"{path} is {found!r}; computed from the ranks' records it is {expected!r}"
