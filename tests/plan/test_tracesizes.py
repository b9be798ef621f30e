from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.plan.planner import Planner, name_cases
from pytest_kvcache.plan.tracesizes import sizes_of
from pytest_kvcache.registry import build_registry
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.traces.reuse import distinct_blocks, hit_curve
from tests.recordings import AGENTS, MOONCAKE, real_trace, small_trace, trace_path
from tests.traces.test_reuse import PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.read import Trace


def planned(path: Path, **texts: str) -> tuple[Plan, Trace]:
    options = build_options(
        {
            name: (text, "command line")
            for name, text in {"backend": "null", "trace": str(path), **texts}.items()
        }
    )
    registry = build_registry()
    (name,) = name_cases(options, registry)
    layout = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=1),))
    case = Planner(registry, "sizes", launches=False).plan(options, replace(name, layout=layout))
    assert case.trace is not None
    return case.plan, case.trace


@pytest.fixture
def mooncake() -> Path:
    return trace_path(MOONCAKE)


@pytest.mark.thorough
def test_the_sizes_are_what_the_forecast_of_a_run_says(mooncake: Path) -> None:
    plan, trace = planned(mooncake, storage_capacity_gb="500")
    found, run = sizes_of(trace, plan, 8), forecast(plan, trace, None)  # type: ignore[arg-type]
    (own,) = [point for point in found.curve if point.of_reachable_percent is None]
    assert own.hit_ratio == run.hit_ratio
    assert found.stored_blocks * plan.stored_bytes == run.written_bytes
    assert found.reachable_hit_ratio == run.best_hit_ratio
    assert found.distinct_blocks == plan.need_blocks


@pytest.mark.thorough
@pytest.mark.parametrize("policy", ["write-through", "demote"])
def test_sizes_behind_memory_are_what_the_forecast_of_a_run_says(
    mooncake: Path, policy: str
) -> None:
    asked = {"storage_capacity_gb": "500", "cpu_mem_gb": "27", "tier_policy": policy}
    plan, trace = planned(mooncake, **asked)
    found, run = sizes_of(trace, plan, 8), forecast(plan, trace, None)  # type: ignore[arg-type]
    assert found.behind is not None
    (own,) = [point for point in found.behind.points if point.is_own]
    ratios = {"cpu": own.memory_hit_ratio, "storage": own.storage_hit_ratio}
    assert ratios == pytest.approx(dict(run.tier_hit_ratios))
    assert own.stored_bytes == run.written_bytes


@pytest.mark.thorough
def test_the_parts_of_ranks_are_those_of_a_run(mooncake: Path) -> None:
    plan, trace = planned(mooncake)
    found = sizes_of(trace, plan, 8)
    assert [part.ranks for part in found.parts] == [1, 2, 4, 8, 16, 32, 64]
    assert found.parts[0].hit_ratios == tuple(point.hit_ratio for point in found.curve)
    for part in found.parts[1:4]:
        parts = [trace.select(indices) for indices in partition(trace, part.ranks)]
        needs = [len(np.unique(each.block_ids)) for each in parts]
        assert (part.largest_blocks, part.all_blocks) == (max(needs), sum(needs))
        share = found.curve[2].capacity_blocks // part.ranks
        hits = sum(hit_curve(each).hit_blocks(share) for each in parts)
        assert part.hit_ratios[2] == hits / len(trace.block_ids)


def test_requests_are_counted_in_the_order_in_which_a_replay_decides(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [
        f'{{"timestamp": {t}, "input_length": 512, "output_length": 1, "hash_ids": [{i}]}}\n'
        for t, i in ((3000, 1), (1000, 1), (2000, 2))
    ]
    path.write_text("".join(lines))
    first = {
        speedup: sizes_of(trace, plan, 8).curve[0].capacity_blocks
        for speedup in ("1", "0")
        for plan, trace in [planned(path, trace_speedup=speedup, trace_time_unit="ms")]
    }
    assert first == {"1": 2, "0": 1}  # by the clock 2 lies between, in the file nothing


@pytest.mark.parametrize("name", [MOONCAKE, AGENTS])
def test_the_least_capacity_for_a_share_is_the_least(name: str) -> None:
    curve = hit_curve(real_trace(name))
    most = curve.hit_blocks(curve.distinct_blocks)
    for percent in (50, 80, 90, 95, 99, 100):
        blocks = curve.capacity_for_share(percent)
        assert curve.hit_blocks(blocks) * 100 >= percent * most
        assert curve.hit_blocks(blocks - 1) * 100 < percent * most


@settings(deadline=None)
@given(st.lists(PATHS, max_size=20))
def test_distinct_blocks_are_those_of_the_working_set(prompts: list[list[int]]) -> None:
    trace = small_trace(prompts)
    assert distinct_blocks(trace) == len({block for ids in prompts for block in ids})
