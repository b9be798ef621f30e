from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.plan.loadsteps import MIN_STEP_S
from tests.factories import make_plan, make_trace_plan, options
from tests.plan.planned import TRACE, plan_of

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

STEPPED: dict[str, Any] = {"users": 8, "load_steps": (8, 2, 8), "duration_s": 6.0}


def test_a_window_is_divided_among_its_load_steps() -> None:
    assert make_plan(**STEPPED).load_schedule == (
        (0, 2_000_000_000, 8),
        (2_000_000_000, 4_000_000_000, 2),
        (4_000_000_000, 6_000_000_000, 8),
    )
    assert make_plan().load_schedule == ()
    assert make_plan(trace=make_trace_plan(), duration_s=None).load_schedule == ()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=16), st.floats(0.0, 86_000.0))
def test_load_steps_follow_each_other_from_the_begin_of_the_window_to_its_end(
    counts: list[int], longer_s: float
) -> None:
    duration_s = MIN_STEP_S * len(counts) + longer_s
    steps = make_plan(users=9, load_steps=tuple(counts), duration_s=duration_s).load_schedule
    assert [step.users for step in steps] == counts
    assert (steps[0].begin_ns, steps[-1].end_ns) == (0, int(duration_s * 1e9))
    assert all(early.end_ns == late.begin_ns for early, late in pairwise(steps))
    lengths_ns = [step.end_ns - step.begin_ns for step in steps]
    assert max(lengths_ns) - min(lengths_ns) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 7}, "--kv-load-steps is 8,2,8; a rank has 7 users, so each must be at most"),
        ({"duration_s": 5.9}, "--kv-load-steps is 8,2,8, so that each of the 3 parts of"),
        ({"duration_s": None}, "must be at least 2 s"),
        ({"request_rate": 5.0, "arrival": "poisson"}, "with --kv-request-rate (5) requests come"),
        ({"trace": make_trace_plan()}, "a trace has users and an end of its own"),
        ({"trace": make_trace_plan(speedup=1.0)}, "a trace has users and an end of its own"),
    ],
)
def test_load_steps_that_a_run_can_not_have_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    make_plan(**STEPPED)
    with pytest.raises(OptionError, match=re.escape(message)):
        make_plan(**STEPPED | changes)


def planned(**texts: str) -> Plan:
    return plan_of(options(duration="6", **texts))


def test_what_was_asked_for_is_planned_and_where_it_comes_from_is_reported() -> None:
    plan = planned(load_steps="8,2,8")
    assert (plan.load_steps, plan.origins["load_steps"]) == ((8, 2, 8), "command line")
    plan = planned()
    assert (plan.load_steps, plan.origins["load_steps"]) == ((), "default")


def test_the_load_steps_of_an_ini_are_those_of_the_scenarios_that_can_have_them() -> None:
    asked = options(duration="6")
    in_ini = replace(asked, load_steps=(8, 2), texts={"load_steps": ("8,2", "ini")})
    assert plan_of(in_ini).load_steps == (8, 2)
    replay = plan_of(in_ini, trace=TRACE)
    assert (replay.load_steps, replay.origins["load_steps"]) == ((), "scenario")
