"""Checks a run file against itself: nothing that is derived is believed. Pure.

Sums over ranks, percentiles from histograms, bandwidths, verdicts and summaries are
computed again from the ranks' scalars and the histograms, and compared. What those are
made of, and the plan's own values, must keep the laws of invariants.py. Where the files
that the trials left behind lie beside the run file, it must agree with them
(``source_faults``). Whoever writes all of them anew, by these very rules, is not found.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.measure.sections import OPERATIONS, TIERS
from pytest_kvcache.options.stopping import planned_looks
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import plan_faults, record_faults
from pytest_kvcache.results.outcome import HEAD
from pytest_kvcache.results.pairs import pair_faults
from pytest_kvcache.results.record import ControllerRecord, TrialRecord
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.usersearch import path_faults
from pytest_kvcache.results.verdicts.noise import evaluate_case
from pytest_kvcache.results.verdicts.trial import idle_error, verdicts_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.results.trial import Trial
    from pytest_kvcache.results.verdictcodes import Verdict

_RECORD: Final = "trial.json"
_SEEN: Final = "controller.json"


class Beside(Protocol):
    """What lies beside a run file, by its path from there (``leftbehind``)."""

    def names(self) -> list[str]:
        """Every file that a trial is made of: ``CASE/trial-N/FILE``."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it is not there."""


def source_faults(data: Mapping[str, Any], beside: Beside) -> tuple[list[str], int]:
    """What of a run file that ``verify_run`` found sound is not what its trials left behind.

    Also the number of trials whose record is there and was compared: every one that lies
    there under a case's name, whatever the run file says that it was made of.
    """
    cases = RunResult.from_json(data).cases
    names = beside.names()
    directories = _directories(cases, names)
    problems: list[str] = []
    compared = 0
    for case, directory in zip(cases, directories, strict=True):
        left = [name for name in names if PurePosixPath(name).parts[0] == directory]
        problems += _strays(case, left)
        for trial in case.trials:
            where = f"{case.name}: trial {trial.index + 1}: "
            paths = [name for name in left if _number_of(name) == trial.index + 1]
            read = {path: beside.read(path) for path in dict.fromkeys([*trial.sources, *paths])}
            contents = {path: content for path, content in read.items() if content is not None}
            compared += any(PurePosixPath(path).name == _RECORD for path in contents)
            problems += [where + fault for fault in _source_faults(case, trial, contents)]
    return problems, compared


def _directories(cases: Sequence[CaseResult], names: Sequence[str]) -> list[str | None]:
    """Where each case's trials are: what its sources say, else the next one of its name."""
    found = [
        next((PurePosixPath(path).parts[0] for t in case.trials for path in t.sources), None)
        for case in cases
    ]
    there = sorted({PurePosixPath(name).parts[0] for name in names}, key=lambda d: (len(d), d))
    for index, case in enumerate(cases):
        if found[index] is None:
            its = re.compile(rf"{re.escape(case.name)}(-\d+)?")
            free = (d for d in there if its.fullmatch(d) and d not in found)
            found[index] = next(free, None)
    return found


def _number_of(name: str) -> int | None:
    """The trial whose directory a file is in, as people count."""
    text = PurePosixPath(name).parent.name.removeprefix("trial-")
    return int(text) if text.isdecimal() else None


def _strays(case: CaseResult, left: Sequence[str]) -> Iterator[str]:
    """Trials that the case does not have, and that lie beside the run file."""
    known = {trial.index + 1 for trial in case.trials}
    strays = [name for name in left if _number_of(name) not in known]
    for directory in dict.fromkeys(str(PurePosixPath(name).parent) for name in strays):
        yield f"{case.name}: {directory} lies beside the run file, which has no such trial"


def _source_faults(
    case: CaseResult, trial: TrialResult, contents: Mapping[str, bytes]
) -> Iterator[str]:
    """What a trial has otherwise than the files that lie beside the run file."""
    left_nothing = trial.measured is None and not trial.sources  # it ended before it was read
    for path, content in contents.items():
        if path in trial.sources:
            if hashlib.sha256(content).hexdigest() != trial.sources[path]:
                yield f"{path} is not the file that it was made of"
        elif not left_nothing:
            yield f"{path} lies beside the run file, but its sources have no such file"
    by_name = {PurePosixPath(path).name: path for path in contents}
    if _RECORD in by_name and trial.measured is not None:
        seen = contents.get(by_name.get(_SEEN, ""))
        path = by_name[_RECORD]
        if seen is None:
            yield f"{path} lies beside the run file without its {_SEEN}"
        else:
            for fault in _record_faults(trial, case, contents[path], seen):
                yield f"{path}: {fault}"


def _record_faults(
    trial: TrialResult, case: CaseResult, content: bytes, seen: bytes
) -> Iterator[str]:
    """What a trial of the run file has otherwise than the records it was made of."""
    plan = case.plan.for_trial(trial.index)
    assert trial.measured is not None
    try:
        record = TrialRecord.from_json(json.loads(content), plan)
        own = ControllerRecord.from_json(json.loads(seen))
    except (ValueError, TypeError, KeyError, AttributeError, ResultError) as error:
        yield f"it can't be read as the trial's record ({error})"
        return
    clock = replace(
        record.clock,
        controller_least_s=own.controller_least_s,
        controller_most_s=own.controller_most_s,
    )
    left = trial_of(replace(record, clock=clock), plan)
    yield from _differences(left.to_json(), trial.measured.to_json(), "")
    if own.looks != case.looks:
        yield f"looks are {list(case.looks)}; when it ran they were {list(own.looks)}"


def verify_run(data: Mapping[str, Any], *, ended: bool = True) -> list[str]:
    """Every contradiction as a sentence; empty: the file is sound.

    ``ended``: it must have come to its end, which a run that goes on, or was killed, has not.
    Raises ResultError if it is no run file of this schema.
    """
    run = RunResult.from_json(data)
    problems = [] if run.cases else ["the run has no case; a run file has at least one"]
    known = {(case.name, case.plan_digest): case for case in run.cases}
    try:
        for case, written in zip(run.cases, data["cases"], strict=True):
            problems += [f"{case.name}: {problem}" for problem in _case(case, written)]
            problems += [f"{case.name}: {problem}" for problem in _ending_faults(case) if ended]
            problems += [f"{case.name}: {problem}" for problem in path_faults(case, known)]
            paired = pair_faults(case, run.cases, ended=ended)
            problems += [f"{case.name}: {problem}" for problem in paired]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(f"a part of the run file is missing or odd: {error!r}") from error
    return problems


def _case(case: CaseResult, written: Mapping[str, Any]) -> Iterator[str]:
    expected = case.to_json()
    for key in ("name", "scenario", "model", "np", "hosts", "plan_digest", "search", "summary"):
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
    if not all(trial.ok for trial in case.trials[:-1]):
        yield "a trial that failed or was interrupted is followed by another one"
    for trial, of_file in zip(case.trials, written["trials"], strict=True):
        for problem in (*_numbering(trial), *_trial(trial, of_file, case.plan)):
            yield f"trial {trial.index + 1}: {problem}"


def _numbering(trial: TrialResult) -> Iterator[str]:
    """Which of its files are those of another trial: two may have been swapped."""
    for path in trial.sources:
        if _number_of(path) != trial.index + 1:
            yield f"it was made of {path}, which is not of its directory trial-{trial.index + 1}"


def _design_faults(case: CaseResult) -> Iterator[str]:
    """When it might end must be what options can lead to."""
    looks = case.looks
    numbers = all(type(look) is int and look > 0 for look in looks)
    if not looks or not numbers or looks != planned_looks(looks[0], looks[-1]):
        yield f"looks are {list(looks)}; they must be those between a least and a most of trials"
    elif len(case.trials) > looks[-1]:
        yield f"it has {len(case.trials)} trials; by its looks it has {looks[-1]} at most"


def _ending_faults(case: CaseResult) -> Iterator[str]:
    """A case ends where it may: after a look, or with a trial that failed or was interrupted.

    Launches without stores end with those that they go with (``pair_faults``).
    """
    count = len(case.trials)
    if case.plan.interference == "without-stores":
        return
    if count and case.trials[-1].ok and count not in case.looks:
        yield (
            f"it ends with trial {count}, which is sound; by its looks it ends after"
            f" {', '.join(map(str, case.looks))}: trials are missing, or the run was killed or"
            " goes on"
        )


def _trial(trial: TrialResult, written: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    """What a trial of the file has otherwise than its ranks' records give: every leaf counts."""
    found, pair = trial.measured, trial.interference
    stated_pair = written["interference"]
    yield from _differences(None if pair is None else pair.to_json(), stated_pair, "interference")
    if found is None:
        if trial.ok:
            yield "it is ok, but has no data"
        return
    record = TrialRecord.of_run_file(written, plan)
    stated = {name: value for name, value in written.items() if name not in HEAD}
    yield from _differences(found.to_json(), stated, "")
    yield from record_faults(record, plan)
    verdicts = verdicts_on(found, plan)
    if verdicts != trial.verdicts:
        codes = [verdict.code for verdict in trial.verdicts]
        yield f"the verdicts are {codes}; they must be {[v.code for v in verdicts]}"
    if [rank.rank for rank in found.ranks] != list(range(plan.np)):
        yield f"it has {len(found.ranks)} ranks; the plan has {plan.np}"
    if trial.ok:
        yield from _why_not_ok(found, plan, verdicts)


def _why_not_ok(trial: Trial, plan: Plan, verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What a trial that calls itself ok must not have."""
    counted = trial.counters
    failed = (
        sum(getattr(counted, f"{what}_failed") or 0 for what in (*OPERATIONS, *TIERS[:-1]))
        + counted.corrupt
    )
    if failed or any(rank.error for rank in trial.ranks):
        yield f"it is ok, but {failed} operations failed"
    if any(rank.cleanup_error for rank in trial.ranks):
        yield "it is ok, but a rank could not clean up"
    idle = idle_error(trial.ranks)
    if idle is not None:
        yield f"it is ok, but {idle}"
    codes = {verdict.code for verdict in verdicts if verdict.severity == "invalid"}
    invalid = sorted(code for code in codes if not plan.allows(code))
    if invalid:
        yield f"it is ok, but its verdicts {invalid} invalidate it"


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
