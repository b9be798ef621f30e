from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.cache.tiers import TIER_POLICIES, Tier, TierAdmission, TierStack
from pytest_kvcache.errors import OptionError, StorageError
from pytest_kvcache.plan.decode import check_contexts_fit
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.registry import build_registry
from tests.factories import make_plan, options, run_rank

if TYPE_CHECKING:
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.plan.plan import Plan


def population_blocks(plan: Plan, rank: int = 0) -> int:
    context = plan.context(rank, None)
    family = build_registry().workload(plan.scenario)
    return len({key for request in family.build(context).population() for key in request.keys})


def decode(**changes: object) -> Plan:
    return make_plan(phase="decode", context_scale=0.1, need_blocks=10**6, **changes)


def check(plan: Plan, trials: int = 1) -> None:
    check_contexts_fit(plan, build_registry().workload(plan.scenario), trials)


def test_contexts_that_just_fit_are_planned_and_a_block_less_is_refused() -> None:
    plan = decode(np=1)
    blocks = population_blocks(plan)
    check(decode(np=1, capacity_blocks=blocks))
    with pytest.raises(OptionError, match=r"--kv-phase is decode.*hold those of 3; lower --kv-num"):
        check(decode(np=1, capacity_blocks=blocks - 1))


def test_every_rank_and_every_trial_must_have_room() -> None:
    plan = decode(np=3)
    blocks = [population_blocks(plan, rank) for rank in range(3)]
    worst = blocks.index(max(blocks))
    room = decode(np=3, capacity_blocks=max(blocks))
    with pytest.raises(OptionError, match=rf"of rank {worst} take .* in trial 1,"):
        check(decode(np=3, capacity_blocks=max(blocks) - 1))
    later = [
        (max(population_blocks(plan.for_trial(trial), rank) for rank in range(3)), trial)
        for trial in range(1, 20)
    ]
    first = next(trial for most, trial in later if most > max(blocks))
    check(room, trials=first)
    with pytest.raises(OptionError, match=f"in trial {first + 1},"):
        check(room, trials=first + 1)


@pytest.mark.parametrize("policy", TIER_POLICIES)
def test_all_tiers_have_room_for_contexts_where_a_block_is_in_one_of_them(
    policy: TierPolicy,
) -> None:
    """As many as the tiers themselves keep, when every user's context was stored."""
    plan = decode(np=1)
    blocks = population_blocks(plan)
    block = plan.stored_bytes
    tiers = (
        MemoryTier(name="gpu", capacity_bytes=block, kind="simulated"),
        MemoryTier(name="cpu", capacity_bytes=3 * block, kind="index"),
    )
    for missing in (0, 1):
        room = blocks - missing - (4 if policy == "demote" else 0)
        less = replace(plan, capacity_blocks=room, tiers=tiers, tier_policy=policy)
        stack = TierStack(
            [
                Tier(name=name, capacity_bytes=capacity * block, page_bytes=block)
                for name, capacity in (("gpu", 1), ("cpu", 3), ("storage", room))
            ],
            policy,
        )
        assert (stored_in(stack, less) == blocks) == (missing == 0)
        if missing:
            with pytest.raises(OptionError, match=r"--kv-phase is decode.*hold those of 3; lower"):
                check(less)
        else:
            check(less)


def stored_in(stack: TierStack, plan: Plan) -> int:
    """Different blocks that are there after the population, one request after another."""
    family = build_registry().workload(plan.scenario)
    for request in family.build(plan.context(0, None)).population():
        admission = stack.admit(request.keys, 0, plan.stored_bytes)
        assert isinstance(admission, TierAdmission)
        stack.settle(admission)
    return len({entry.key for index in stack.indices for entry in index.stored()})


@pytest.mark.thorough
def test_what_the_plan_refuses_is_what_a_rank_has_no_room_for() -> None:
    blocks = population_blocks(decode(np=1))
    fits = decode(np=1, backend="memory", capacity_blocks=blocks)
    assert run_rank(fits, build_registry()).result.error is None
    with pytest.raises(StorageError, match="contexts of 3 of 4 users"):
        run_rank(replace(fits, capacity_blocks=blocks - 1), build_registry())


@pytest.mark.parametrize("phase", ["both", "prefill"])
def test_other_phases_may_have_less_room_than_contexts(phase: str) -> None:
    check(make_plan(phase=phase, capacity_blocks=1, need_blocks=10**6))


def test_the_planner_refuses_before_anything_is_launched_and_sizing_does_not() -> None:
    registry = build_registry()
    asked = options(
        phase="decode", backend="null", scenario="chat", num_users="8",
        storage_capacity_gb="0.25",
    )  # fmt: skip
    (name,) = name_cases(asked, registry)
    with pytest.raises(OptionError, match=r"--kv-phase is decode.*--kv-storage-capacity-gb"):
        Planner(registry, "run").plan(asked, name)
    Planner(registry, "datasize", launches=False).plan(asked, name)
