from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.cache.index import Blocked, CacheIndex
from pytest_kvcache.plan.forecast import Forecast, describe_forecast, forecast
from pytest_kvcache.traces.partition import deal
from pytest_kvcache.workloads.replay import ReplayFamily
from pytest_kvcache.workloads.scenarios import SYNTHETIC
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import make_plan, make_trace_plan
from tests.recordings import MOONCAKE, REFERENCE, real_trace, small_trace

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.traces.read import Trace

BLOCK = make_plan().stored_bytes


def replay_plan(trace: Trace, *, speedup: float = 0.0, cycles: int = 1, **changes: Any) -> Plan:
    planned = make_trace_plan(requests=len(trace), speedup=speedup, cycles=cycles)
    values: dict[str, Any] = {"scenario": "trace", "trace": planned, "duration_s": None}
    return make_plan(**values | changes)


def replayed(trace: Trace, **changes: Any) -> Forecast:
    return forecast(replay_plan(trace, **changes), trace, ReplayFamily())


def synthetic(**changes: Any) -> Forecast:
    family = SyntheticFamily(SYNTHETIC[changes.get("scenario", "chat")])
    plan = make_plan(**changes)
    need = family.need(plan.context(0, None)).working_set_blocks
    plan = replace(plan, need_blocks=changes.get("need_blocks", need))
    return forecast(plan, None, family)


# -- replays -------------------------------------------------------------------------------

CHAINS = st.lists(  # prompts of three conversations, each of which only grows
    st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=12
).map(lambda turns: [[100 * who + at for at in range(length)] for who, length in turns])


def served(trace: Trace, capacity: int, cycles: int) -> tuple[int, int]:
    """Hits and stored blocks of a cache that serves these requests one after another."""
    index = CacheIndex(capacity, page_bytes=1)
    stored = 0
    for number in [*range(len(trace))] * cycles:
        keys = [int(block).to_bytes(8, "big") for block in trace.blocks(number)]
        admission = index.admit(keys, len(keys), 1)
        assert not isinstance(admission, Blocked)
        for slot in admission.inserts:
            index.commit(slot)
        stored += len(admission.inserts)
        index.release(admission)
    return index.hit_blocks, stored


@settings(deadline=None)
@given(CHAINS, st.integers(1, 12), st.integers(1, 3))
def test_a_replay_hits_and_stores_what_its_cache_will(
    prompts: list[list[int]], capacity: int, cycles: int
) -> None:
    trace = small_trace(prompts)
    found = replayed(trace, capacity_blocks=capacity, cycles=cycles)
    hits, stored = served(trace, capacity, cycles)
    blocks = len(trace.block_ids) * cycles
    if not blocks:
        assert found.hit_ratio is None
        assert found.why_no_hit_ratio == "the trace has no block ids"
        return
    assert found.hit_ratio == pytest.approx(hits / blocks)
    assert (found.written_bytes, found.read_bytes) == (stored * BLOCK, hits * BLOCK)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_of_a_replay_has_a_cache_of_its_own(ranks: int) -> None:
    trace = small_trace([[1, 2], [3, 4], [1, 2], [3, 4, 5]])
    found = replayed(trace, np=ranks, capacity_blocks=3)
    expected = [served(trace.select(part), 3, 1) for part in deal(trace, ranks)]
    assert found.hit_ratio == pytest.approx(sum(hits for hits, _ in expected) / 9)
    assert found.written_bytes == sum(stored for _, stored in expected) * BLOCK
    assert found.capacity_bytes == 3 * ranks * BLOCK


@pytest.mark.thorough
@pytest.mark.parametrize(("capacity", "ratio"), [(439, "0.038104"), (4_392, "0.262338")])
def test_a_recorded_trace_has_the_hit_ratio_of_its_reference(capacity: int, ratio: str) -> None:
    found = replayed(real_trace(MOONCAKE), capacity_blocks=capacity)
    assert f"{found.hit_ratio:.6f}" == ratio
    assert found.best_hit_ratio == pytest.approx(0.639604, abs=5e-7)
    assert found.need_bytes == REFERENCE[MOONCAKE].distinct_blocks * BLOCK


def test_an_endless_cache_stores_every_block_of_a_recorded_trace_once() -> None:
    found = replayed(real_trace(MOONCAKE), capacity_blocks=10**6)
    assert found.written_bytes == REFERENCE[MOONCAKE].distinct_blocks * BLOCK


def test_a_replay_at_its_recorded_times_lasts_as_long_as_the_trace() -> None:
    trace = replace(small_trace([[1], [2], [3]]), arrival_ns=np.array([0, 10**9, 4 * 10**9]))
    assert replayed(trace, speedup=2.0).window_s == 2.0
    assert replayed(trace, speedup=0.0).window_s is None


def test_a_window_that_is_shorter_than_the_trace_counts_what_arrives_in_it() -> None:
    trace = replace(small_trace([[1], [1], [1]]), arrival_ns=np.array([4 * 10**9, 10**9, 0]))
    found = replayed(trace, speedup=1.0, duration_s=2.0)
    assert found.hit_ratio == 0.5  # two requests, in order of arrival
    assert found.written_bytes == BLOCK
    closed = replayed(trace, speedup=0.0, duration_s=2.0)
    assert (closed.hit_ratio, closed.written_bytes, closed.exact) == (None, None, False)
    assert closed.why_no_hit_ratio == "the window may end before the trace does"


def test_what_decode_loads_was_stored_before() -> None:
    trace = small_trace([[1, 2], [1, 2, 3]])
    found = replayed(trace, phase="decode", capacity_blocks=3)
    assert (found.hit_ratio, found.written_bytes) == (1.0, 0)
    assert found.population_bytes == 3 * BLOCK
    small = replayed(trace, phase="decode", capacity_blocks=2)
    assert small.hit_ratio is None
    assert small.population_bytes == 2 * BLOCK


def test_prefill_of_a_trace_reads_nothing_and_has_hits() -> None:
    found = replayed(small_trace([[1, 2], [1, 2, 3]]), phase="prefill")
    assert (found.read_bytes, found.written_bytes) == (0, 3 * BLOCK)
    assert found.hit_ratio == pytest.approx(2 / 5)


# -- dialogues -----------------------------------------------------------------------------


def test_dialogues_store_every_context_before_the_clock_starts() -> None:
    plan = make_plan()
    workload = SyntheticFamily(SYNTHETIC["chat"]).build(plan.context(0, None))
    distinct = {key for request in workload.population() for key in request.keys}
    assert synthetic().population_bytes == len(distinct) * BLOCK
    assert synthetic(np=3).population_bytes == 3 * len(distinct) * BLOCK


def test_a_cache_that_is_full_ends_the_population() -> None:
    assert synthetic(capacity_blocks=5).population_bytes == 5 * BLOCK


def test_dialogues_that_fit_hit_what_was_said_before() -> None:
    found = synthetic(duration_s=20.0, users=20)
    assert found.hit_ratio is not None
    assert 0.5 < found.hit_ratio < 1
    assert not found.exact
    assert found.written_bytes
    assert found.read_bytes


def test_a_hit_ratio_that_the_storage_decides_is_not_told() -> None:
    found = synthetic(duration_s=20.0, users=20, capacity_blocks=40)
    assert found.hit_ratio is None
    assert "depends on how many turns" in found.why_no_hit_ratio
    assert found.written_bytes is None
    assert found.least_written_bytes() == found.population_bytes == 40 * BLOCK


@pytest.mark.thorough
@pytest.mark.parametrize("users", [500, 5_000])
def test_more_users_ask_for_more(users: int) -> None:
    few, many = synthetic(duration_s=5.0, users=50), synthetic(duration_s=5.0, users=users)
    assert few.read_bytes
    assert many.read_bytes == pytest.approx(few.read_bytes * users / 50, rel=0.25)


def test_a_longer_window_than_is_rehearsed_asks_for_as_much_per_second() -> None:
    short, long = synthetic(duration_s=30.0), synthetic(duration_s=3_000.0)
    assert short.read_bytes
    assert long.read_bytes == pytest.approx(100 * short.read_bytes, rel=0.25)


def test_generated_tokens_take_their_time() -> None:
    quick = synthetic(duration_s=60.0)
    slow = synthetic(duration_s=60.0, generation_mode="realistic", context_scale=0.5)
    assert quick.read_bytes
    assert slow.read_bytes
    assert slow.read_bytes < quick.read_bytes * 10


def test_a_declared_rate_decides_what_is_asked_for() -> None:
    def at(rate: float) -> Forecast:
        return synthetic(duration_s=10.0, request_rate=rate, arrival="poisson", np=2)

    few, many = at(10.0), at(100.0)
    assert few.read_bytes
    assert many.read_bytes == pytest.approx(10 * few.read_bytes, rel=0.3)


def test_one_side_of_the_service_only_reads_or_only_writes() -> None:
    decode, prefill = synthetic(phase="decode"), synthetic(phase="prefill", duration_s=9.0)
    assert (decode.hit_ratio, decode.written_bytes) == (1.0, 0)
    assert prefill.read_bytes == 0
    assert prefill.written_bytes


# -- as sentences --------------------------------------------------------------------------


def told(found: Forecast, plan: Plan, trials: int) -> list[str]:
    return list(describe_forecast(found, plan, trials))


def test_a_replay_says_what_its_capacity_hits_and_what_more_would() -> None:
    trace = small_trace([[1, 2], [3, 4], [1, 2]])
    plan = replay_plan(trace, capacity_blocks=2, backend="file")
    assert told(forecast(plan, trace, ReplayFamily()), plan, 3) == [
        "writes 72 KiB in all to /nowhere, of which at most 8 KiB are there at a time",
        "hit ratio 0.0000 with a capacity of 8 KiB; 16 KiB would give 0.3333",
    ]


def test_dialogues_say_about_how_much_they_write() -> None:
    plan = make_plan(backend="file", duration_s=10.0, ramp_s=1.0)
    found = forecast(plan, None, SyntheticFamily(SYNTHETIC["chat"]))
    assert found.window_s == 11.0
    writes, hits = told(found, plan, 1)
    assert writes.startswith("writes about ")
    assert " to " in writes
    assert hits.startswith("hit ratio about 0.")


def test_nothing_is_said_to_be_written_where_nothing_is_stored() -> None:
    plan = make_plan(backend="null")
    found = forecast(plan, None, SyntheticFamily(SYNTHETIC["chat"]))
    assert not any(line.startswith("writes") for line in told(found, plan, 1))
