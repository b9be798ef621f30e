"""A scaling study: what more ranks of the same load come to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_kvcache.report.scaling import report_scaling
from tests.canned import case_of, measuring, trial_of
from tests.factories import make_plan

if TYPE_CHECKING:
    from pytest_kvcache.results.case import CaseResult

METRICS = ("load.p50_ms", "read.gib_per_s", "cache.hit_ratio")


def case(np: int, *gib_per_s: float, hit_ratio: float = 0.9, **changes: Any) -> CaseResult:
    """A case of so many ranks, with a trial for each bandwidth."""
    plan = make_plan(np=np, **changes)
    trials = []
    for index, value in enumerate(gib_per_s):
        trial = trial_of(plan, index)
        assert trial.measured is not None
        read = replace(trial.measured.read, gib_per_s=value)
        cache = replace(trial.measured.cache, hit_ratio=hit_ratio)
        trials.append(measuring(trial, read=read, cache=cache))
    return case_of(plan, *trials)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_rates_have_an_efficiency_per_rank_and_times_have_none() -> None:
    text = report_scaling([case(1, 1.0, 1.0), case(4, 3.0, 3.0), case(2, 1.9, 1.9)], METRICS)
    assert text.startswith("scaling of chat-small: as many users on each rank (weak)\n")
    found = rows(text)
    assert ["read.gib_per_s", "1", "1.000", "—", "—"] in found
    assert ["2", "1.900", "1.9x", "95%", "±", "0%"] in found
    assert ["4", "3.000", "3x", "75%", "±", "0%"] in found
    assert [row[-1] for row in found if row[0] == "load.p50_ms"] == ["—"]
    assert max(map(len, text.splitlines())) < 80


def test_the_noise_of_both_is_that_of_the_efficiency() -> None:
    text = report_scaling([case(1, 0.9, 1.1), case(2, 1.8, 2.2)], ["read.gib_per_s"])
    assert text.endswith("100% ± 20%")
    alone = report_scaling([case(1, 1.0), case(2, 2.0)], ["read.gib_per_s"])
    assert alone.endswith("100%")


def test_only_what_differs_in_nothing_else_is_one_study() -> None:
    assert report_scaling([case(1, 1.0)], METRICS) == ""
    assert report_scaling([case(1, 1.0), case(2, 2.0, users=7)], METRICS) == ""
    assert report_scaling([case(1, 1.0), case(2, 2.0, label="mine")], METRICS) == ""
    capped: dict[str, Any] = {"origins": {"capacity_blocks": "command line"}}
    few, many = (
        case(1, 1.0, capacity_blocks=10, **capped),
        case(2, 2.0, capacity_blocks=99, **capped),
    )
    assert report_scaling([few, many], METRICS) == ""
    assert (
        report_scaling([case(1, 1.0), case(2, 2.0), case(2, 5.0, capacity_blocks=9)], METRICS) == ""
    )
    fixed: dict[str, Any] = {"request_rate": 5.0, "arrival": "poisson"}
    assert report_scaling([case(1, 1.0, **fixed), case(2, 2.0, **fixed)], METRICS) == ""


def test_hits_that_differ_are_said_for_they_make_other_work() -> None:
    text = report_scaling([case(1, 1.0), case(2, 2.0, hit_ratio=0.8)], METRICS)
    assert "the hit ratios differ (0.900, 0.800): ranks read another share" in text
    assert "same capacity" not in text
    assert "hit ratios differ" not in report_scaling([case(1, 1.0), case(2, 2.0)], METRICS)


def test_a_long_name_has_a_line_of_its_own() -> None:
    text = report_scaling([case(1, 1.0), case(2, 2.0)], ["requests.goodput_per_s", *METRICS])
    assert max(map(len, text.splitlines())) < 80
