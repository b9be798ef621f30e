"""Objectives of requests, from the ranks' records to the run file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.service import ServiceCounts
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.invariants import record_faults
from pytest_kvcache.results.record import RankResult, TrialRecord
from pytest_kvcache.workloads.scenarios import TABLE
from tests.factories import make_plan, rank_result, sound_record

PLAN = make_plan(np=2, service=TABLE.service, duration_s=60.0)


def counts(name: str, **changes: int) -> ServiceCounts:
    values: dict[str, Any] = {
        "judged": 100, "within_p95": 96, "within_p99": 98, "within_p999": 99,
        "within_p9999": 100, "completed_in_window": 90, "good_in_window": 80,
    }  # fmt: skip
    return ServiceCounts(name=name, **values | changes)


CLASSES = tuple(map(counts, TABLE.service.classes))


def rank(number: int, classes: tuple[ServiceCounts, ...] = CLASSES, **changes: Any) -> RankResult:
    good = sum(each.good_in_window for each in classes)
    completed = sum(each.completed_in_window for each in classes)
    values = {"good_in_window": good, "completed_in_window": completed} | changes
    return rank_result(rank=number, service_classes=classes, **values)


def record_of(*ranks: RankResult) -> TrialRecord:
    """A trial in which each request of the window was judged once."""
    answered = Histogram()
    judged = sum(each.judged for rank in ranks for each in rank.service_classes)
    answered.record(np.full(judged, 5_000_000, dtype=np.int64))
    record = sound_record(PLAN, ranks)
    return replace(record, histograms={**record.histograms, "request": answered})


def faults(*classes: ServiceCounts, **changes: Any) -> list[str]:
    record = record_of(rank(0), rank(1, classes or CLASSES, **changes))
    return [fault for fault in record_faults(record, PLAN) if "service" in fault or "good" in fault]


def test_the_ranks_counts_are_added_up() -> None:
    trial = trial_of(sound_record(PLAN, (rank(0), rank(1))), PLAN)
    first = trial.service_classes[0]
    assert (first.name, first.judged, first.good_in_window) == ("interactive", 200, 160)
    assert (first.p95_ratio, first.p9999_ratio, first.keeps) == (0.96, 1.0, True)
    assert first.goodput_per_s == pytest.approx(160 / trial.window_s)
    assert trial.requests.goodput_per_s == pytest.approx(3 * 160 / trial.window_s)
    told = trial.to_json()
    assert told["requests"]["goodput_per_s"] == trial.requests.goodput_per_s
    assert told["service_classes"][0]["name"] == "interactive"


def test_the_class_that_has_least_decides() -> None:
    bad = (*CLASSES[:2], counts("batch", within_p95=90))
    trial = trial_of(sound_record(PLAN, (rank(0, bad), rank(1, bad))), PLAN)
    assert trial.requests.compliance_ratio == 0.9
    assert [each.keeps for each in trial.service_classes] == [True, True, False]


def test_a_class_without_requests_says_nothing() -> None:
    none = dict.fromkeys(
        ("judged", "within_p95", "within_p99", "within_p999", "within_p9999",
         "completed_in_window", "good_in_window"), 0,
    )  # fmt: skip
    idle = (*CLASSES[:2], counts("batch", **none))
    trial = trial_of(sound_record(PLAN, (rank(0, idle), rank(1, idle))), PLAN)
    batch = trial.service_classes[2]
    assert (batch.p95_ratio, batch.keeps, batch.goodput_per_s) == (None, None, 0.0)
    assert trial.requests.compliance_ratio == 0.96


def test_none_in_time_is_a_goodput_of_0_and_no_objectives_are_none() -> None:
    late = tuple(replace(each, good_in_window=0) for each in CLASSES)
    trial = trial_of(sound_record(PLAN, (rank(0, late), rank(1, late))), PLAN)
    assert trial.requests.goodput_per_s == 0.0
    plain = make_plan(np=2, duration_s=60.0)
    ranks = (rank_result(rank=0), rank_result(rank=1))
    trial = trial_of(sound_record(plain, ranks), plain)
    assert trial.requests.goodput_per_s is None
    assert trial.requests.compliance_ratio is None
    assert trial.service_classes == ()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"within_p95": 99}, "service class batch: within_p95 is 99; it must be at least 0 and at"),
        ({"within_p9999": 101}, "service class batch: within_p9999 is 101; it must be at least"),
        ({"good_in_window": 91}, "service class batch: good_in_window is 91; it must be at least"),
    ],
)
def test_counts_that_contradict_themselves_are_found(changes: dict[str, int], fault: str) -> None:
    assert faults() == []
    found = faults(*CLASSES[:2], counts("batch", **changes))
    assert any(fault in each for each in found)


def test_classes_are_the_plans_and_their_sum_is_the_ranks() -> None:
    assert any("service_classes are ['batch']" in each for each in faults(CLASSES[2]))
    found = faults(*CLASSES, good_in_window=1)
    assert any("good_in_window of its service classes is 240 in all" in each for each in found)
    plain = make_plan(np=2, duration_s=60.0)
    record = sound_record(plain, (rank(0), rank(1)))
    assert any("service_classes are" in each for each in record_faults(record, plain))


@pytest.mark.parametrize(
    ("changes", "judged", "is_sound"),
    [
        ({}, 600, True),
        ({}, 599, False),
        ({}, 601, False),
        ({"request_censored": 3}, 603, True),
        ({"request_censored": 3}, 600, False),
        ({"read_failed": 2}, 602, True),
        ({"read_failed": 2}, 600, True),
        ({"read_failed": 2}, 603, False),
        ({"error": "lost"}, 601, True),  # what it had no time to count
    ],
)
def test_each_request_of_the_window_is_judged_once(
    changes: dict[str, Any], judged: int, *, is_sound: bool
) -> None:
    """Whoever raises ``judged``, and all that follows from it, is found."""
    more = judged - 600
    changed = (*CLASSES[:2], counts("batch", judged=100 + more, within_p9999=99))
    honest = record_of(rank(0), rank(1))
    ranks = (honest.ranks[0], replace(honest.ranks[1], service_classes=changed, **changes))
    found = list(record_faults(replace(honest, ranks=ranks), PLAN))
    named = [fault for fault in found if fault.startswith("judged of its service classes")]
    assert not named if is_sound else f"is {judged} in all; it must be request.count" in named[0]


def test_a_rank_keeps_its_classes_in_json() -> None:
    assert RankResult.from_json(rank(0).to_json()) == rank(0)


@pytest.mark.parametrize(
    ("changes", "sound"),
    [
        ({}, True),
        ({"precondition_bytes": 12_288, "precondition_s": 1.0}, True),
        ({"precondition_bytes": 4_096, "precondition_s": 1.0}, False),
        ({"precondition_bytes": 16_384, "precondition_s": 1.0}, False),
        ({"precondition_bytes": 12_288}, False),
    ],
)
def test_what_was_written_before_is_what_the_plan_asks_for(
    changes: dict[str, Any], *, sound: bool
) -> None:
    asked = 9_000 if changes else 0
    plan = make_plan(backend="file", np=1, duration_s=60.0, precondition_bytes=asked)
    record = sound_record(plan, (rank_result(**changes),))
    found = [fault for fault in record_faults(record, plan) if "precondition" in fault]
    assert (not found) == sound, found


@pytest.mark.parametrize("name", ["precondition_bytes", "precondition_s"])
def test_nothing_was_written_before_where_the_plan_asks_for_nothing(name: str) -> None:
    plan = make_plan(np=1, duration_s=60.0)
    record = sound_record(plan, (rank_result(**{name: 5, "precondition_arrived_bytes": 5}),))
    found = [fault for fault in record_faults(record, plan) if "precondition" in fault]
    assert len(found) >= 2
