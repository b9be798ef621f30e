from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.latencies import Latencies
from pytest_kvcache.measure.series import TimeSeriesLedger, coarse_index
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import check_record, record_faults
from pytest_kvcache.results.outcome import TrialResult
from pytest_kvcache.results.record import TrialRecord
from pytest_kvcache.results.verdicts.trial import verdicts_on
from tests.canned import record_of
from tests.factories import S, series_of, sound_plan
from tests.results.test_verify import answers, complaints, forged, numbers, parts, run_json

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

GIB = 1 << 30
PLAN = sound_plan(np=2, users=8, load_steps=(8, 2, 8))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def with_step(plan: Plan = PLAN, *, number: int = 0, **changes: Any) -> TrialRecord:
    """A sound record of two ranks, of which the first one has other counts in a load step."""
    record = record_of(plan)
    first, *others = record.ranks
    steps = list(first.load_steps)
    steps[number] = replace(steps[number], **changes)
    return replace(record, ranks=(replace(first, load_steps=tuple(steps)), *others))


# --- figures --------------------------------------------------------------------------------


def test_the_figures_of_a_load_step_are_of_all_ranks_together() -> None:
    record = record_of(PLAN)
    steps = trial_of(record, PLAN).load_steps
    assert [(step.begin_s, step.end_s) for step in steps] == [(0, 20), (20, 40), (40, 60)]
    assert [(step.users, step.users_in_all) for step in steps] == [(8, 16), (2, 4), (8, 16)]
    counts = [rank.load_steps[1] for rank in record.ranks]
    step, histograms = steps[1], record.load_steps[1]
    assert step.read.bytes == sum(rank.read_op_bytes for rank in counts)
    assert step.read.gib_per_s == pytest.approx(step.read.bytes / GIB / 20)
    assert step.read.ms == Latencies.of(histograms["read"])
    assert step.load.count == histograms["load"].count
    assert step.requests_per_s == sum(rank.answered for rank in counts) / 20
    assert (step.answered_users, step.answered_later) == (4, 2)
    assert (step.prompt_blocks, step.hit_blocks, step.hit_ratio) == (266, 200, 200 / 266)
    assert sum(step.read.count for step in steps) == record.histograms["read"].count


def test_a_load_step_is_as_late_as_the_last_rank_that_obeyed() -> None:
    (_first, second, _last) = trial_of(with_step(number=1, obeyed_s=20.25), PLAN).load_steps
    assert second.late_s == 0.25
    (first, *_rest) = trial_of(with_step(obeyed_s=-6.0), PLAN).load_steps
    assert first.late_s == 0.0  # they have begun with the ramp


def test_what_a_load_step_has_not_measured_is_none_and_never_zero() -> None:
    record = record_of(PLAN)
    nothing = {
        "read_op_bytes": 0, "answered": 0, "prompt_blocks": 0, "hit_blocks": 0,
    }  # fmt: skip
    ranks = tuple(
        replace(rank, load_steps=tuple(replace(step, **nothing) for step in rank.load_steps))
        for rank in record.ranks
    )
    empty = tuple(dict.fromkeys(step, Histogram()) for step in record.load_steps)
    (step, *_others) = trial_of(replace(record, ranks=ranks, load_steps=empty), PLAN).load_steps
    assert (step.read.gib_per_s, step.requests_per_s, step.hit_ratio) == (None, None, None)
    assert (step.read.ms.p50, step.read.ms.mean, step.load.ms.p95) == (None, None, None)


def test_a_percentile_of_a_load_step_is_none_where_too_few_samples_lie_beyond_it() -> None:
    (step, *_others) = trial_of(record_of(PLAN), PLAN).load_steps
    assert step.load.count == 666
    assert step.load.ms.p95 is not None
    assert step.load.ms.p99 is None


def test_a_load_whose_end_was_not_seen_is_longer_than_all_others_of_its_step() -> None:
    record = with_step(number=2, load_censored=40)
    steps = trial_of(record, PLAN).load_steps
    assert (steps[2].load.censored, steps[2].load.ms.p95, steps[2].load.ms.max) == (40, None, None)
    assert steps[1].load.ms.p95 is not None


def test_a_trial_that_was_stopped_has_the_load_steps_it_came_to() -> None:
    record = record_of(PLAN)
    first, second = record.ranks
    stopped = replace(first, load_steps=first.load_steps[:1], stop_s=PLAN.ramp_s + 21.5)
    short = replace(record, ranks=(stopped, replace(second, load_steps=second.load_steps[:2])))
    steps = trial_of(replace(short, load_steps=record.load_steps[:2]), PLAN).load_steps
    assert [(step.begin_s, step.end_s) for step in steps] == [(0, 20), (20, 21.5)]
    assert [step.users_in_all for step in steps] == [16, 2]
    early = replace(stopped, stop_s=PLAN.ramp_s + 19.5)  # the other one has just begun the second
    short = replace(record, ranks=(early, replace(second, load_steps=second.load_steps[:2])))
    steps = trial_of(replace(short, load_steps=record.load_steps[:2]), PLAN).load_steps
    assert [(step.begin_s, step.end_s) for step in steps] == [(0, 19.5), (20, 20)]
    assert steps[1].requests_per_s is None


def test_prefill_has_requests_per_second_and_no_response_times() -> None:
    plan = sound_plan(np=2, users=8, load_steps=(8, 2), phase="prefill")
    (step, _last) = trial_of(record_of(plan), plan).load_steps
    assert step.request is None
    assert step.requests_per_s is not None
    assert step.to_json()["request"] is None


# --- the record and the run file ------------------------------------------------------------


def test_load_steps_survive_the_record_s_json() -> None:
    record = record_of(PLAN)
    assert TrialRecord.from_json(through_json(record.to_json()), PLAN) == record


@pytest.mark.parametrize("phase", ["both", "prefill"])
def test_load_steps_survive_the_run_file(phase: str) -> None:
    plan = sound_plan(np=2, users=8, load_steps=(8, 2, 8), phase=phase)
    trial = TrialResult(index=0, error=None, measured=trial_of(record_of(plan), plan))
    written = through_json(trial.to_json())
    assert len(written["load_steps"]) == 3
    again = TrialResult.from_json(written, plan)
    assert through_json(again.to_json()) == written


def test_a_load_step_without_one_of_its_histograms_is_refused() -> None:
    data = through_json(record_of(PLAN).to_json())
    del data["load_steps"][1]["load"]
    with pytest.raises(ResultError, match="a load step of the trial's record has histograms"):
        TrialRecord.from_json(data, PLAN)


def in_one_step(path: tuple[str | int, ...]) -> bool:
    """Whether it is of one load step, of a trial or of one rank; and not like what others have."""
    if "load_steps" not in path or {"write", "request"} & {*path}:
        return False
    number = path[path.index("load_steps") + 1 : path.index("load_steps") + 2]
    return number == (1,) and ("ranks" not in path or path[path.index("ranks") + 1] == 1)


@pytest.mark.thorough
def test_nothing_of_a_load_step_can_be_changed_unseen() -> None:
    data = run_json(PLAN, [record_of(PLAN)])
    assert [reported for reported in complaints(data) if "load" in reported] == []
    sound = set(complaints(data))
    unseen = []
    for path, value in numbers(data):
        if in_one_step(path) and path[-1] != "min_ns":  # within its bin
            with forged(data, path, value + 1):
                if set(complaints(data)) == sound:
                    unseen.append(path)
    assert unseen == []


@pytest.mark.thorough
def test_nothing_of_a_load_step_can_be_left_out_unseen() -> None:
    data = run_json(PLAN, [record_of(PLAN)])
    sound = set(complaints(data))
    reported = {}
    for path, _value in list(parts(data)):
        if in_one_step(path) and isinstance(path[-1], str):
            with forged(data, path):
                reported[path] = answers(data)
    assert [path for path, problems in reported.items() if set(problems) == sound] == []
    assert [path for path, problems in reported.items() if "TRACEBACK" in problems[0]] == []


# --- laws -----------------------------------------------------------------------------------


def test_a_sound_record_with_load_steps_has_no_fault() -> None:
    check_record(record_of(PLAN), PLAN)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"users": 7}, "load step 1 has 7 users from 0.0 s on; by the plan it is 8 from 0.0 s"),
        ({"begin_s": 0.01}, "load step 1 has 8 users from 0.01 s on; by the plan it is 8 from"),
        ({"number": 1, "obeyed_s": 19.9}, "load step 2 is obeyed from 19.9 s on; it lasts from"),
        ({"number": 1, "obeyed_s": 40.1}, "load step 2 is obeyed from 40.1 s on; it lasts from"),
        ({"obeyed_s": 20.1}, "load step 1 is obeyed from 20.1 s on; it lasts from 0.0 to 20.0"),
        ({"number": 1, "answered_users": 3}, "answered_users is 3; it must be at most users"),
        ({"answered_users": 1, "answered": 0}, "answered_users is 1; it must be at most answered"),
        ({"answered_later": 9}, "answered_later is 9; it must be at most answered_users, which"),
        ({"hit_blocks": 134}, "hit_blocks is 134; it must be at most prompt_blocks, which is 133"),
        ({"answered_later": -1}, "answered_later is -1; it must be at least 0"),
        ({"answered": 9}, "answered 342 requests of load step 1; the histogram holds 666"),
        ({"read_op_bytes": 0}, "read_op_bytes of its load steps is"),
        ({"write_op_bytes": 0}, "write_op_bytes of its load steps is"),
        ({"prompt_blocks": 200}, "prompt_blocks of its load steps is 467 in all; it must be 400"),
        ({"hit_blocks": 99}, "hit_blocks of its load steps is 299 in all; it must be 300"),
        ({"load_censored": 1}, "load_censored of its load steps is 1 in all; it must be 0"),
        ({"request_censored": 1}, "request_censored of its load steps is 1 in all; it must be 0"),
    ],
)
def test_load_steps_that_contradict_each_other_are_a_fault(
    changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ResultError, match=re.escape(fault)):
        check_record(with_step(**changes), PLAN)


@pytest.mark.parametrize("section", ["read", "write", "load", "request"])
def test_histograms_of_load_steps_that_are_not_those_of_the_window_are_a_fault(
    section: str,
) -> None:
    record = record_of(PLAN)
    first, *others = record.load_steps
    other = Histogram()
    other.record(first[section].counts[:3] + 700_000)
    forged_steps = ({**first, section: other}, *others)
    faults = "; ".join(record_faults(replace(record, load_steps=forged_steps), PLAN))
    assert f"the {section}s of its load steps are not those of its window" in faults


def test_a_rank_that_lacks_a_load_step_fails_its_trial_unless_an_error_has_ended_it() -> None:
    record = record_of(PLAN)
    first, second = record.ranks
    short = replace(first, load_steps=first.load_steps[:2])
    with pytest.raises(ResultError, match="it had 2 load steps; the plan has 3"):
        check_record(replace(record, ranks=(short, second)), PLAN)
    ended = replace(record, ranks=(short, replace(second, error="broken")))
    assert not any("the plan has" in fault for fault in record_faults(ended, PLAN))


def test_load_steps_that_nobody_planned_are_a_fault() -> None:
    plan = replace(PLAN, load_steps=())
    with pytest.raises(ResultError, match="it had 3 load steps; the plan has 0"):
        check_record(replace(record_of(PLAN), plan_digest=plan.digest), plan)


def test_histograms_of_load_steps_that_no_rank_had_are_a_fault() -> None:
    record = record_of(PLAN)
    more = replace(record, load_steps=(*record.load_steps, record.load_steps[0]))
    with pytest.raises(ResultError, match="histograms of 4 load steps; its ranks had 3"):
        check_record(more, PLAN)


# --- steadiness -----------------------------------------------------------------------------


def unsteady(plan: Plan, gib_by_second: list[int]) -> list[str]:
    """What is said against a trial that read so much in each second, a GiB at a time."""
    window_ns = len(gib_by_second) * S
    ledger = TimeSeriesLedger(0, window_ns)
    for second, count in enumerate(gib_by_second):
        done_ns = second * S + np.arange(100 * count, dtype=np.int64)
        bins = coarse_index(np.full(len(done_ns), 1_000_000))
        ledger.add("read", done_ns, bins, np.full(len(done_ns), GIB // 100))
    trial = replace(trial_of(record_of(plan), plan), series=series_of(window_ns, [ledger]))
    return [v.text for v in verdicts_on(trial, plan) if v.code == "NOT_STEADY"]


def test_a_load_that_is_meant_to_change_is_steady_if_each_of_its_steps_is() -> None:
    seconds = [8] * 20 + [2] * 20 + [8] * 20
    assert unsteady(PLAN, seconds) == []
    assert unsteady(replace(PLAN, load_steps=()), seconds) != []


def test_the_second_in_which_users_come_or_go_is_not_held_against_a_step() -> None:
    short = replace(PLAN, load_steps=(8, 2) * 5)
    assert unsteady(short, ([80] + [8] * 5 + [80] + [2] * 5) * 5) == []


def test_a_change_within_a_load_step_is_reported_with_its_seconds_of_the_window() -> None:
    (reported,) = unsteady(PLAN, [8] * 20 + [2] * 10 + [1] * 10 + [8] * 20)
    assert "in load step 2 reads went from 2 to 1 GiB/s" in reported
    assert "medians of the seconds 21 to 30 and 30 to 40 of the window" in reported
    assert reported.count("load step") == 1


def test_a_series_that_ends_a_moment_before_the_last_step_is_looked_at_to_its_end() -> None:
    assert unsteady(PLAN, [8] * 20 + [2] * 20 + [8] * 19) == []
