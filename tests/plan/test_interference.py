"""The two launches of a trial, with stores and without: what they share, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.plan.decode import check_contexts_fit
from pytest_kvcache.plan.interference import is_with_stores_first, without_stores
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.registry import build_registry
from tests.factories import make_plan, make_trace_plan, memory_tiers

WITH = make_plan(interference="with-stores")


def test_the_sides_differ_in_what_is_stored_and_in_their_names_alone() -> None:
    alone = without_stores(WITH)
    differing = {
        name for name in Plan.__dataclass_fields__ if getattr(alone, name) != getattr(WITH, name)
    }
    assert differing == {"phase", "interference", "label"}
    assert (alone.phase, alone.case) == ("decode", f"{WITH.case}-without-stores")
    assert without_stores(replace(WITH, label="mine")).label == "mine-without-stores"
    assert Plan.from_json(alone.to_json()) == alone


def test_the_sides_take_turns_in_being_first() -> None:
    assert [is_with_stores_first(trial) for trial in range(4)] == [True, False, True, False]


def test_a_trial_of_two_sides_is_two_launches() -> None:
    assert (make_plan().launches_per_trial, WITH.launches_per_trial) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"phase": "decode"}, "--kv-phase is decode; it decides that itself"),
        ({"interference": "without-stores"}, "--kv-phase is both"),
        ({"interference": "sideways"}, "--kv-phase is both"),
        ({"trace": make_trace_plan()}, "--kv-scenario is chat, whose requests load what those"),
        ({"own_block_bytes": 1 << 20}, "--kv-scenario is chat"),
        ({"reread_factor": 2}, "--kv-reread-factor is 2, which reads what was just stored"),
        ({"tiers": memory_tiers("cpu")}, "--kv-cpu-mem-gb puts a tier in front"),
    ],
)
def test_sides_that_would_not_load_alike_are_no_plan(
    changes: dict[str, Any], reported: str
) -> None:
    with pytest.raises(OptionError, match=r"^--kv-interference is given") as refused:
        replace(WITH, **changes)
    assert reported in str(refused.value)


def test_contexts_that_do_not_fit_are_refused() -> None:
    plan = make_plan(
        interference="with-stores", context_scale=0.1, need_blocks=10**6, capacity_blocks=1
    )
    family = build_registry().workload(plan.scenario)
    with pytest.raises(OptionError, match=r"--kv-interference is given.*hold those of 0; lower"):
        check_contexts_fit(plan, family, 1)
    check_contexts_fit(replace(plan, interference=None), family, 1)
