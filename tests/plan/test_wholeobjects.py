"""Scenarios that bring values of their own: what stands, what wins, what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.plan.forecast import describe_forecast, forecast
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.plan.wholeobjects import changed_values, check_filesystems
from pytest_kvcache.registry import Registry, build_registry
from pytest_kvcache.results.verdicts.mlperf import check_submission
from pytest_kvcache.units import GIB
from pytest_kvcache.workloads.mlperf import FAMILIES, draw_users
from tests.factories import make_plan

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.plan.plan import Plan


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry()


def plans_of(registry: Registry, ini: dict[str, str] | None = None, **typed: str) -> list[Plan]:
    given = {name: (text, "ini") for name, text in (ini or {}).items()}
    given |= {name: (text, "command line") for name, text in typed.items()}
    options = build_options({"backend": ("null", "command line"), **given})  # type: ignore[dict-item]
    planner = Planner(registry, "test")
    return [planner.plan(options, name).plan for name in name_cases(options, registry)]


INI = {"num_users": "7", "duration": "3", "context_scale": "0.1", "block_tokens": "4",
       "seed": "5", "ramp": "2", "layout": "layer"}  # fmt: skip


def test_a_scenarios_own_values_stand_whatever_an_ini_file_has(registry: Registry) -> None:
    one, two, three = plans_of(registry, INI, scenario="mlperf-1,mlperf-2,mlperf-3")
    assert [(plan.users, plan.duration_s, plan.ramp_s) for plan in (one, two, three)] == [
        (200, 300.0, 0.0), (100, 300.0, 0.0), (70, 300.0, 0.0),
    ]  # fmt: skip
    assert [plan.model.name for plan in (one, two, three)] == [
        "llama3.1-8b", "llama3.1-8b", "llama3.1-70b-instruct",
    ]  # fmt: skip
    assert {plan.seed for plan in (one, two, three)} == {42}
    assert {plan.context_scale for plan in (one, two, three)} == {1.0}
    assert {plan.object_layout for plan in (one, two, three)} == {"block"}
    assert (one.tiers, one.tier_policy, one.most_stores) == ((), "write-through", 16)
    assert [(tier.name, tier.capacity_bytes) for tier in two.tiers] == [("cpu", 4 * GIB)]
    assert (two.tier_policy, three.most_stores) == ("demote", 4)
    fields = ("model", "users", "duration_s", "ramp_s", "seed", "tiers", "generation_mode",
              "block_tokens", "context_scale", "most_stores")  # fmt: skip
    assert {two.origins[name] for name in fields} == {"scenario"}


def test_what_is_typed_wins_over_the_scenarios_own_value(registry: Registry) -> None:
    (plan,) = plans_of(
        registry, INI, scenario="mlperf-1", num_users="10", model="tiny-1b", seed="1",
        cpu_mem_gb="1", context_scale="0.01",
    )  # fmt: skip
    assert (plan.users, plan.model.name, plan.seed) == (10, "tiny-1b", 1)
    assert plan.block_tokens == 250
    assert plan.origins["users"] == plan.origins["tiers"].split(" and ")[-1] == "command line"
    assert plan.origins["duration_s"] == "scenario"


def test_other_scenarios_beside_have_what_the_ini_file_says(registry: Registry) -> None:
    one, chat = plans_of(registry, {"num_users": "7"}, scenario="mlperf-1,chat")
    assert (one.users, chat.users) == (200, 7)
    assert chat.most_stores is None


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"block_tokens": "16"}, "--kv-block-tokens is 16, and --kv-scenario is mlperf-1, where"),
        ({"layout": "layer"}, "--kv-layout is layer, and"),
        ({"store": "slab"}, "--kv-store is slab, and"),
        ({"phase": "prefill"}, "--kv-phase is prefill, and"),
    ],
)
def test_what_objects_of_whole_turns_can_not_be_is_refused(
    registry: Registry, typed: dict[str, str], sentence: str
) -> None:
    given = {"scenario": "mlperf-1", **typed}
    options = build_options({name: (text, "command line") for name, text in given.items()})
    with pytest.raises(OptionError, match=sentence):
        name_cases(options, registry)


def test_an_engine_that_stores_keys_and_values_apart_has_no_objects_of_whole_turns(
    registry: Registry,
) -> None:
    engine = {"scenario": "mlperf-1", "engine": "sglang-nixl", "backend": "file"}
    options = build_options({name: (text, "command line") for name, text in engine.items()})
    with pytest.raises(OptionError) as refused:
        name_cases(options, registry)
    assert str(refused.value) == (
        "--kv-engine is sglang-nixl, whose layout is kv, and --kv-scenario is mlperf-1, where an"
        " object holds all layers of a turn; leave one of them out, or add --kv-layout=block"
    )
    engine["layout"] = "block"
    options = build_options({name: (text, "command line") for name, text in engine.items()})
    assert len(name_cases(options, registry)) == 1
    others = {**engine, "engine": "vllm-fs"}
    del others["layout"]
    options = build_options({name: (text, "command line") for name, text in others.items()})
    assert len(name_cases(options, registry)) == 1


def test_the_need_is_that_of_the_users_of_the_scenario(registry: Registry) -> None:
    (plan,) = plans_of(registry, scenario="mlperf-1")
    tokens = 50 * sum(user.context_tokens for user in draw_users(42, 200))
    assert plan.need_blocks * plan.block_tokens == pytest.approx(tokens, abs=25_000)
    assert plan.capacity_blocks == plan.need_blocks  # null is not checked against a disk
    assert plan.deadline_s < 1_000  # nothing is stored before the window


def test_every_ranks_own_users_count_for_the_need(registry: Registry) -> None:
    def blocks(rank: int) -> int:
        tokens = 50 * sum(user.context_tokens for user in draw_users(42 + rank, 200))
        return -(-tokens // 25_000)

    each = [blocks(rank) for rank in range(9)]
    assert max(each) > each[0]  # else rank 0 would do
    (plan,) = plans_of(registry, scenario="mlperf-1", np="9")
    assert plan.need_blocks == plan.capacity_blocks == max(each)
    options = build_options({"scenario": ("mlperf-1", "command line"), "np": ("9", "command line")})
    (name,) = name_cases(options, registry)
    assert Planner(registry, "test").size(options, name) == (max(each), sum(each))


def test_a_forecast_counts_the_bytes_of_objects_of_their_own_sizes(registry: Registry) -> None:
    (plan,) = plans_of(registry, scenario="mlperf-1", duration="10")
    found = forecast(plan, None, FAMILIES["mlperf-1"])
    written, read = found.written_bytes, found.read_bytes
    assert written is not None
    assert read is not None
    requests = 200 * 10 * 2.457
    assert written == pytest.approx(requests * 559 * 2**20, rel=0.1)
    assert read / written == pytest.approx(7.2, rel=0.1)
    assert (found.population_bytes, found.hit_ratio) == (0, 0.0)
    small = replace(plan, capacity_blocks=3)
    assert forecast(small, None, FAMILIES["mlperf-1"]).written_bytes == written
    assert any(line.startswith("hit ratio") for line in describe_forecast(found, plan, 3))


def test_results_and_cache_of_a_closed_run_are_on_two_filesystems(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    closed = Options(
        closed=True, cache_dir=str(tmp_path / "cache"), results_dir=str(tmp_path / "new" / "dir")
    )
    with pytest.raises(OptionError, match="which are on one filesystem"):
        check_filesystems(closed)
    check_filesystems(replace(closed, closed=False))
    check_filesystems(replace(closed, cache_dir="/nowhere/here"))
    if os.stat("/dev/shm").st_dev != os.stat(tmp_path).st_dev:  # noqa: PTH116
        check_filesystems(replace(closed, results_dir="/dev/shm/results"))


def test_a_scenarios_load_stands_whatever_an_ini_file_has(registry: Registry) -> None:
    for name, text in LOAD.items():
        (plan,) = plans_of(registry, {name: text}, scenario="mlperf-2")
        (bare,) = plans_of(registry, scenario="mlperf-2")
        assert replace(plan, origins={}) == replace(bare, origins={}), name
        assert "with its values" in verdict_of(plan), name


LOAD = {"kv_dtype": "fp8", "tensor_parallel": "8", "reread_factor": "2", "request_rate": "5",
        "load_steps": "1,2", "requests": "9", "cpu_tier": "index"}  # fmt: skip


def verdict_of(plan: Plan) -> str:
    (verdict,) = check_submission(plan)
    assert (verdict.code, verdict.severity) == ("NO_SUBMISSION", "warning")
    assert "no MLPerf submission" in verdict.text
    return verdict.text


@pytest.mark.parametrize(
    ("name", "text"),
    [*LOAD.items(), ("storage_capacity_gb", "9"), ("num_users", "3"), ("model", "tiny-1b"),
     ("duration", "20"), ("cpu_mem_gb", "5"), ("tier_policy", "write-through"), ("seed", "1"),
     ("generation_mode", "fast"), ("ramp", "1"), ("context_scale", "0.5")],
)  # fmt: skip
def test_what_is_typed_and_changes_the_load_is_named_by_every_trial(
    registry: Registry, name: str, text: str
) -> None:
    typed = {"scenario": "mlperf-2", "cpu_mem_gb": "4", name: text}
    (plan,) = plans_of(registry, None, **typed)
    assert plan == type(plan).from_json(plan.to_json())
    assert name in changed_values(plan, FAMILIES["mlperf-2"])
    found = verdict_of(plan)
    assert "is made after option 2" in found
    assert f"--kv-{name.replace('_', '-')}" in found
    assert ("a user waits for its answer" in found) == (name not in ("request_rate", "requests"))


def test_typed_values_that_are_the_scenarios_own_change_nothing(registry: Registry) -> None:
    (plan,) = plans_of(
        registry, scenario="mlperf-1", kv_dtype="bfloat16", num_users="200",
        storage_capacity_gb="2000000",
    )  # fmt: skip
    assert changed_values(plan, FAMILIES["mlperf-1"]) == ()
    assert "does to the storage, with its values; this is no" in verdict_of(plan)


def test_a_closed_run_says_that_it_kept_the_rules(registry: Registry) -> None:
    (plan,) = plans_of(registry, scenario="mlperf-3")
    assert "by its rules for closed runs" in verdict_of(replace(plan, closed=True))
    assert "option 3" in verdict_of(plan)
    assert list(check_submission(make_plan())) == []
