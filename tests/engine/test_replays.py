from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pytest_kvcache.errors import StorageError
from pytest_kvcache.plan.forecast import forecast
from pytest_kvcache.registry import build_registry
from pytest_kvcache.workloads.replay import ReplayFamily
from tests.factories import (
    Bookkeeper,
    S,
    Watched,
    make_plan,
    make_trace_plan,
    memory_tiers,
    on_backend,
    registry_of,
    run_rank,
    tireless_scenarios,
)
from tests.recordings import (
    AGENTS,
    MOONCAKE,
    REFERENCE,
    SHAREGPT,
    TWO_TIERS,
    real_trace,
    small_trace,
)

if TYPE_CHECKING:
    from pytest_kvcache.backends.tiers import TierKind
    from pytest_kvcache.cache.tiers import TierPolicy
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult
    from pytest_kvcache.traces.read import Trace
    from pytest_kvcache.workloads.protocol import Workload


# -- hits of real traces -------------------------------------------------------------------

# Some rows of the reference tables; real ranks replay another one of the long trace.
REPLAYED = [
    (MOONCAKE, 43_924),
    *((SHAREGPT, capacity_blocks) for capacity_blocks in (14, 294, 2_944, 14_722)),
]


def replay_plan(trace: Trace, capacity_blocks: int) -> Plan:
    return make_plan(
        scenario="trace",
        duration_s=None,
        users=100,
        queue_depth=16,
        block_tokens=trace.block_tokens,
        capacity_blocks=capacity_blocks,
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "capacity_blocks"), REPLAYED)
def test_a_real_trace_hits_what_its_reference_says(name: str, capacity_blocks: int) -> None:
    reference, trace = REFERENCE[name], real_trace(name)
    plan = replay_plan(trace, capacity_blocks)
    result = run_rank(plan, build_registry(), trace=trace).result
    assert result.error is None
    assert result.offered == result.completed == reference.requests
    assert result.prompt_blocks == reference.prompt_blocks
    assert result.arrived_tokens == reference.input_tokens
    ratios = {capacity: (blocks, tokens) for capacity, blocks, tokens in reference.lru}
    expected_blocks, expected_tokens = ratios[capacity_blocks]
    assert f"{result.hit_blocks / result.prompt_blocks:.6f}" == expected_blocks
    assert f"{result.hit_tokens / result.arrived_tokens:.6f}" == expected_tokens
    assert result.read_count == result.hit_blocks
    assert result.write_count == result.evictions + capacity_blocks
    assert result.cached_blocks == capacity_blocks
    if capacity_blocks == reference.distinct_blocks:
        assert result.hit_blocks == reference.infinite_hit_blocks
        assert result.hit_tokens == reference.infinite_hit_tokens
        assert result.evictions == 0


TIERED = [
    (*row, kind)
    for row in TWO_TIERS
    for name, capacities, kind in (
        (MOONCAKE, (1_000, 10_000), "memory"),
        (MOONCAKE, (4_392, 4_392), "index"),
        (MOONCAKE, (439, None), "index"),
        (AGENTS, (1_000, 5_000), "index"),
    )
    if row[:2] == (name, capacities)
]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "capacities", "policy", "hits", "stored", "kind"), TIERED)
def test_a_real_trace_hits_and_stores_in_two_tiers_what_its_table_says(  # noqa: PLR0917
    name: str,
    capacities: tuple[int, int | None],
    policy: TierPolicy,
    hits: tuple[int, int],
    stored: int,
    kind: TierKind,
) -> None:
    memory, storage = capacities
    trace, endless = real_trace(name), REFERENCE[name].distinct_blocks
    plan = replace(
        replay_plan(trace, endless if storage is None else storage),
        tiers=memory_tiers("cpu", kind=kind, blocks=memory),
        tier_policy=policy,
    )
    result = run_rank(plan, build_registry(), trace=trace).result
    assert result.error is None
    assert (result.cpu_hit_blocks, result.storage_hit_blocks) == hits
    assert result.storage_stored_blocks == stored
    assert (result.read_count, result.cpu_blocks) == (hits[1], memory)
    assert result.checked == (hits[0] if kind == "memory" else 0)  # null has nothing to check
    written, demoted = (0, stored) if policy == "demote" else (stored, 0)
    if name == MOONCAKE:  # no request is larger than memory
        assert (result.write_count, result.demote_count) == (written, demoted)
    assert result.write_count + result.demote_count == stored


# -- determinism ---------------------------------------------------------------------------


class Slow(Bookkeeper):
    """Every transfer gives the other threads a chance."""

    def get_into(self, key: str, offset: int, buffer: memoryview) -> None:
        time.sleep(0.0005)
        super().get_into(key, offset, buffer)

    def put_from(self, key: str, offset: int, buffer: memoryview) -> None:
        time.sleep(0.0005)
        super().put_from(key, offset, buffer)


def streams(backend: Bookkeeper, capacity_blocks: int, **changes: object) -> Watched:
    """What the users of a rank ask for, against this backend."""
    seen: list[Watched] = []

    class Spied:
        needs_trace = False
        need = build_registry().workloads["mixed"].need

        def build(self, context: object) -> Workload:
            seen.append(Watched(build_registry().workloads["mixed"].build(context)))  # type: ignore[arg-type]  # as it comes
            return seen[-1]

    registry = registry_of(backends={"memory": lambda: backend}, workloads={"mixed": Spied()})
    plan = make_plan(
        scenario="mixed", users=10, backend="memory", capacity_blocks=capacity_blocks,
        context_scale=0.02, **changes,
    )  # fmt: skip
    assert run_rank(plan, registry).result.error is None
    return seen[0]


def test_users_ask_the_same_whatever_the_speed_of_the_storage() -> None:
    quick, slow = (streams(backend, 300).given for backend in (Bookkeeper(), Slow()))
    assert set(quick) == set(slow) == set(range(10))
    for user, asked in quick.items():
        shared = min(len(asked), len(slow[user]))
        assert shared > 0
        assert asked[:shared] == slow[user][:shared]


@pytest.mark.thorough
@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_at_a_rate_the_storage_decides_nothing_of_what_is_asked_or_when(arrival: str) -> None:
    at_a_rate = {"request_rate": 500.0, "arrival": arrival}
    quick, slow = (streams(backend, 300, **at_a_rate) for backend in (Bookkeeper(), Slow()))
    assert len(quick.order) > 50
    assert quick.order == slow.order


def replayed_on(backend: Bookkeeper, plan: Plan, trace: Trace) -> RankResult:
    registry = registry_of(
        backends={"memory": lambda: backend}, workloads={"trace": ReplayFamily()}
    )
    return run_rank(plan, registry, trace=trace).result


@pytest.mark.thorough
@pytest.mark.parametrize("speedup", [0.0, 100.0])
def test_a_replay_hits_and_stores_what_was_forecast_whatever_the_speed_of_the_storage(
    speedup: float,
) -> None:
    prompts = [[100 * (n % 5), *range(100 * (n % 5) + 1, 100 * (n % 5) + n)] for n in range(1, 13)]
    recorded = small_trace(prompts)
    trace = replace(recorded, arrival_ns=np.arange(len(prompts)) * S // 10)
    planned = make_trace_plan(speedup=speedup, requests=len(trace))
    plan = on_backend(replace(replay_plan(trace, 20), users=4, trace=planned), "memory")
    found = forecast(plan, trace, ReplayFamily())
    assert found.hit_ratio
    for backend in (Bookkeeper(), Slow()):
        result = replayed_on(backend, plan, trace)
        assert result.error is None
        assert result.hit_blocks / result.prompt_blocks == pytest.approx(found.hit_ratio)
        assert result.write_count * plan.stored_bytes == found.written_bytes
        assert result.read_count * plan.stored_bytes == found.read_bytes


# -- disaggregated serving -----------------------------------------------------------------


def phase_plan(phase: str, **changes: Any) -> Plan:
    return make_plan(phase=phase, backend="memory", duration_s=0.3, context_scale=0.1, **changes)


@pytest.mark.thorough
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_phase_makes_its_own_operations_only(phase: str) -> None:
    book = Bookkeeper()
    registry = registry_of(backends={"memory": lambda: book}, workloads=tireless_scenarios())
    result = run_rank(phase_plan(phase), registry).result
    assert book.breaches == []
    assert result.error is None
    assert result.populated_blocks > 0
    assert result.hit_blocks > 0
    if phase == "prefill":
        assert (result.read_count, result.requested_read_bytes) == (0, 0)
        assert book.counts["get"] == result.read_back > 0  # after the window
        assert result.write_count > 0
        assert result.generated_tokens == 0
    else:
        assert (result.write_count, result.requested_write_bytes) == (0, 0)
        assert book.counts["put"] == len(book.objects) == result.populated_blocks
        assert result.read_count > 0
        assert result.hit_blocks == result.prompt_blocks
        assert result.generated_tokens > 0


def test_a_decode_without_room_for_every_user_fails_and_says_how_many_there_are() -> None:
    registry = registry_of(backends={"memory": Bookkeeper}, workloads=tireless_scenarios())
    with pytest.raises(StorageError, match=r"contexts of \d of 4 users.*--kv-num-users"):
        run_rank(phase_plan("decode", capacity_blocks=20), registry)


@pytest.mark.thorough
def test_a_decoded_trace_hits_everything_that_the_cache_can_hold() -> None:
    trace = real_trace(MOONCAKE).limit(500)
    plan = replay_plan(trace, 50_000)
    result = run_rank(replace(plan, phase="decode"), build_registry(), trace=trace).result
    assert result.error is None
    assert result.hit_blocks == result.prompt_blocks == result.read_count > 0
    assert result.write_count == 0
