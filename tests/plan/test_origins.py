"""Options decide the fields of a plan by the columns of their table."""

from __future__ import annotations

import pytest

from pytest_kvcache.options.table import OPTIONS
from pytest_kvcache.plan.origins import decided_by
from pytest_kvcache.plan.plan import DECIDED_BY, Plan, TracePlan
from tests.factories import make_plan

FOUND_OUT = {
    "run_id", "version", "trial", "need_blocks", "origins", "label", "traits", "tiers",
    "own_block_bytes", "most_stores", "search_step",
}  # fmt: skip


def test_every_field_of_a_plan_is_decided_by_an_option_or_found_out() -> None:
    fields = set(Plan.__dataclass_fields__)
    assert fields - set(DECIDED_BY) == FOUND_OUT, "give the option's row its column decides="


def test_an_option_decides_a_field_that_there_is() -> None:
    fields = {*Plan.__dataclass_fields__, *(f"trace.{f}" for f in TracePlan.__dataclass_fields__)}
    named = {spec.decides for spec in OPTIONS if spec.decides is not None}
    assert named - fields == set()
    assert not [s.name for s in OPTIONS if s.trace_has_own and s not in DECIDED_BY.values()]


def test_no_two_options_decide_one_field() -> None:
    deciding = [spec.decides or spec.name for spec in OPTIONS]
    assert len(set(deciding)) == len(deciding)


@pytest.mark.parametrize("name", ["speedup", "cycles", "limit", "time_unit", "ids"])
def test_what_is_asked_of_a_replay_is_in_its_own_part_of_the_plan(name: str) -> None:
    found = decided_by(TracePlan.__dataclass_fields__, "trace.")
    assert found[name].name == f"trace_{name}"


def test_plans_that_differ_in_a_place_or_a_limit_alone_measure_the_same() -> None:
    plan = make_plan()
    for change in ({"cache_dir": "/x"}, {"keep": True}, {"deadline_s": 7.0}, {"plugins": ("a",)}):
        other = make_plan(**change)
        assert other.workload == plan.workload, change
    assert make_plan(queue_depth=3).workload != plan.workload
