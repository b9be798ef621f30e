from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.calls import BucketCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.cache.index import Blocked, CacheIndex
from pytest_kvcache.models import MODELS
from pytest_kvcache.plan.forecast import Forecast, describe_forecast, describe_hits, forecast
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.traces.partition import partition
from pytest_kvcache.workloads.replay import ReplayFamily
from pytest_kvcache.workloads.synthetic import SyntheticFamily
from tests.factories import Family, Script, ask, key_of, make_plan, make_trace_plan
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
    family = SyntheticFamily()
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
        for entry in admission.inserts:
            index.commit(entry)
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


def test_what_is_stored_is_read_again_as_often_as_was_asked_for() -> None:
    trace = small_trace([[1, 2], [1, 2, 3]])
    assert replayed(trace, reread_factor=2).read_bytes == (2 + 2 * 3) * BLOCK
    # The cpu tier keeps 1, which is read there; 2, a hit later, and 3 are the storage's alone.
    tiered = replayed(trace, reread_factor=2, tiers=tiers_of(1))
    assert tiered.read_bytes == (1 + 2 * 2) * BLOCK


def test_of_buckets_the_oldest_goes_whole_and_what_is_read_of_the_storage_is_not_told() -> None:
    first, second = [*range(300)], [*range(300, 600)]
    trace = small_trace([first, second, first, second])
    found = replayed(trace, engine="mooncake-bucket", capacity_blocks=500)  # a bucket
    assert found.hit_ratio == pytest.approx(600 / 1200)
    assert (found.written_bytes, found.read_bytes) == (500 * BLOCK, None)
    prefill = replayed(trace, engine="mooncake-bucket", capacity_blocks=500, phase="prefill")
    assert (prefill.written_bytes, prefill.read_bytes) == (500 * BLOCK, 0)


@pytest.mark.parametrize(("capacity", "told"), [(500, "buckets go whole"), (100_000, "")])
def test_the_hits_of_users_are_told_where_no_bucket_goes(capacity: int, told: str) -> None:
    found = synthetic(
        scenario="chat", engine="mooncake-bucket", capacity_blocks=capacity, requests=200,
        duration_s=None,
    )  # fmt: skip
    assert found.need_bytes < 500 * BLOCK
    assert (found.hit_ratio is None) == bool(told)
    assert told in found.why_no_hit_ratio


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_of_a_replay_has_a_cache_of_its_own(ranks: int) -> None:
    trace = small_trace([[1, 2], [3, 4], [1, 2], [3, 4, 5]])
    found = replayed(trace, np=ranks, capacity_blocks=3)
    expected = [served(trace.select(part), 3, 1) for part in partition(trace, ranks)]
    assert found.hit_ratio == pytest.approx(sum(hits for hits, _ in expected) / 9)
    assert found.written_bytes == sum(stored for _, stored in expected) * BLOCK
    assert found.capacity_bytes == 3 * ranks * BLOCK


def test_a_replay_into_buckets_hits_what_went_into_one_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = BucketCalls(objects=2, size_bytes=1 << 40, readers=16)
    of_two = replace(PROFILES["mooncake-bucket"], calls=calls)
    monkeypatch.setattr("pytest_kvcache.plan.plan.PROFILES", {"mooncake-bucket": of_two})
    trace = small_trace([[1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [7]])  # 1 is used, and oldest
    packs = {"engine": "mooncake-bucket", "io": "buffered", "queue_depth": 1000}
    found = replayed(trace, capacity_blocks=4, **packs)
    assert found.hit_ratio == pytest.approx(2 / 11)
    assert replayed(trace, capacity_blocks=4).hit_ratio == pytest.approx(4 / 11)
    assert found.written_bytes == 8 * BLOCK  # 1 2, 3 4, 5 6, 1 2; the 7 waits
    assert found.read_bytes is None


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


# -- tiers ---------------------------------------------------------------------------------


def tiers_of(*blocks: int) -> tuple[MemoryTier, ...]:
    """A cpu tier of so many blocks, in front of it a gpu tier if there are two numbers."""
    *gpu, cpu = (each * BLOCK for each in blocks)
    return (
        *(MemoryTier(name="gpu", kind="simulated", capacity_bytes=size) for size in gpu),
        MemoryTier(name="cpu", kind="index", capacity_bytes=cpu),
    )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("policy", "ratios", "stored"),
    [
        ("write-through", {"cpu": "0.038104", "storage": "0.224349"}, 89_890),
        ("demote", {"cpu": "0.033501", "storage": "0.243057"}, 87_732),
    ],
)
def test_a_recorded_trace_hits_in_each_tier_what_its_table_says(
    policy: str, ratios: dict[str, str], stored: int
) -> None:
    trace = real_trace(MOONCAKE)
    found = replayed(trace, capacity_blocks=4_392, tiers=tiers_of(439), tier_policy=policy)
    assert {name: f"{ratio:.6f}" for name, ratio in found.tier_hit_ratios} == ratios
    assert found.hit_ratio == pytest.approx(sum(ratio for _name, ratio in found.tier_hit_ratios))
    assert found.read_bytes == round(float(ratios["storage"]) * len(trace.block_ids)) * BLOCK
    assert found.written_bytes == stored * BLOCK


def test_what_tiers_serve_and_keep_does_not_reach_the_storage() -> None:
    trace = small_trace([[1, 2], [3], [1, 2], [1, 2]])
    through = replayed(trace, tiers=tiers_of(1, 2))
    assert through.written_bytes == 3 * BLOCK
    assert [name for name, _ratio in through.tier_hit_ratios] == ["gpu", "cpu", "storage"]
    # Of [3]: gpu has 3, cpu 3 and 1, so that only 2 is read; then cpu has all that gpu lacks.
    assert [ratio * 7 for _name, ratio in through.tier_hit_ratios] == pytest.approx([1, 2, 1])
    assert (through.read_bytes, through.room_bytes) == (BLOCK, through.capacity_bytes)
    demote = replayed(trace, tiers=tiers_of(1, 2), tier_policy="demote")
    assert (demote.written_bytes, demote.read_bytes) == (0, 0)
    assert demote.room_bytes == demote.capacity_bytes + 3 * BLOCK
    assert through.hit_ratio == demote.hit_ratio == pytest.approx(4 / 7)


def test_replays_through_tiers_that_take_too_long_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pytest_kvcache.plan.forecast._MOST_BLOCKS", 3)
    found = replayed(small_trace([[1, 2], [1, 2]]), tiers=tiers_of(1))
    assert (found.hit_ratio, found.written_bytes, found.tier_hit_ratios) == (None, None, ())
    assert "of more than 3 blocks in tiers" in found.why_no_hit_ratio
    assert replayed(small_trace([[1, 2], [1]]), tiers=tiers_of(1)).hit_ratio == 1 / 3


def test_decode_stores_behind_tiers_what_they_do_not_keep() -> None:
    trace = small_trace([[1, 2], [1, 2, 3]])
    for policy, there in (("write-through", 3), ("demote", 1)):
        found = replayed(
            trace, phase="decode", capacity_blocks=3, tiers=tiers_of(2), tier_policy=policy
        )
        assert found.population_bytes == there * BLOCK
        assert (found.hit_ratio, found.read_bytes, found.written_bytes) == (1.0, None, 0)


@pytest.mark.parametrize(("policy", "kept"), [("write-through", 0), ("demote", 30)])
def test_dialogues_store_behind_tiers_what_these_do_not_keep(policy: str, kept: int) -> None:
    bare = synthetic()
    found = synthetic(tiers=tiers_of(10, 20), tier_policy=policy)
    assert found.population_bytes == bare.population_bytes - kept * BLOCK
    assert found.hit_ratio == bare.hit_ratio


def test_where_a_block_is_in_one_tier_all_of_them_together_decide_whether_it_fits() -> None:
    need = synthetic().need_bytes // BLOCK
    for policy, reported in (("write-through", False), ("demote", True)):
        found = synthetic(capacity_blocks=need - 5, tiers=tiers_of(5), tier_policy=policy)
        assert (found.hit_ratio is not None) == reported


# -- dialogues -----------------------------------------------------------------------------


def test_dialogues_store_every_context_before_the_clock_starts() -> None:
    plan = make_plan()
    workload = SyntheticFamily().build(plan.context(0, None))
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


def test_users_that_are_not_active_ask_for_nothing() -> None:
    spans: dict[str, Any] = {"users": 8, "duration_s": 6.0, "ramp_s": 2.0}
    whole, stepped = synthetic(**spans), synthetic(**spans, load_steps=(8, 2, 2))
    assert whole.read_bytes
    assert stepped.read_bytes == pytest.approx(whole.read_bytes * 40 / 64, rel=1e-3)
    assert stepped.population_bytes == whole.population_bytes
    assert synthetic(**spans, load_steps=(8, 8, 8)) == whole


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


def test_dialogues_read_what_is_beside_their_prefixes_and_what_they_read_again() -> None:
    turns = [
        ask(0, "a", "b", beside=(key_of("x"),), stores_beside=True),
        ask(0, "a", "b", "c", beside=(key_of("x"), key_of("y")), rereads=2),
        ask(0, "z", think_s=9.0),  # beyond the window
    ]
    plan = make_plan(duration_s=1.0, users=1)

    def found(reread_factor: int) -> Forecast:
        scripted = Family(Script([turns]))
        return forecast(replace(plan, reread_factor=reread_factor), None, scripted)

    # The prefix, x, and twice c; with a factor of 1 once more each of a, b and c.
    assert found(0).read_bytes == (2 + 1 + 2) * BLOCK
    assert found(1).read_bytes == (2 + 1 + 2 + 3) * BLOCK
    assert found(0).written_bytes == 4 * BLOCK
    assert found(0).best_hit_ratio == pytest.approx(2 / 5)


def test_a_fixed_amount_of_work_stores_and_reads_so_much_however_long_it_takes() -> None:
    turns = [[ask(user, f"{user}a"), ask(user, f"{user}a", f"{user}b")] for user in range(2)]
    plan = make_plan(duration_s=None, requests=3, users=2, np=2)
    found = forecast(plan, None, Family(Script(turns)))
    assert (found.written_bytes, found.read_bytes, found.window_s) == (6 * BLOCK, 2 * BLOCK, None)
    few, many = (synthetic(duration_s=None, requests=count) for count in (100, 40_000))
    assert many.written_bytes is not None
    assert few.written_bytes is not None
    assert many.written_bytes > 300 * few.written_bytes / 2


def test_one_side_of_the_service_only_reads_or_only_writes() -> None:
    decode, prefill = synthetic(phase="decode"), synthetic(phase="prefill", duration_s=9.0)
    assert (decode.hit_ratio, decode.written_bytes) == (1.0, 0)
    assert prefill.read_bytes == 0
    assert prefill.written_bytes


# -- as sentences --------------------------------------------------------------------------


def reported(found: Forecast, plan: Plan, trials: int) -> list[str]:
    return list(describe_forecast(found, plan, trials))


def test_a_replay_says_what_its_capacity_hits_and_what_more_would() -> None:
    trace = small_trace([[1, 2], [3, 4], [1, 2]])
    plan = replay_plan(trace, capacity_blocks=2, backend="file")
    assert reported(forecast(plan, trace, ReplayFamily()), plan, 3) == [
        "writes 72 KiB in all to /nowhere, of which at most 8 KiB are there at a time",
        "hit ratio 0.0000 with a capacity of 8 KiB; 16 KiB would give 0.3333",
    ]


def test_room_is_told_per_rank_as_the_option_has_it_and_in_all() -> None:
    # One rank has three blocks and the other one two: each must have room for three.
    found = replace(
        synthetic(), exact=True, hit_ratio=0.25, best_hit_ratio=0.5, room_bytes=4 * BLOCK,
        need_bytes=5 * BLOCK, ranks=2, rank_need_bytes=3 * BLOCK,
    )  # fmt: skip
    assert describe_hits(found) == (
        "hit ratio 0.2500 with a capacity of 8 KiB per rank (16 KiB in all); 12 KiB per rank"
        " (24 KiB in all) would give 0.5000"
    )
    # As much as all need together is not enough where it does not lie with who needs it.
    assert "would give" in describe_hits(replace(found, room_bytes=5 * BLOCK))
    assert "would give" not in describe_hits(replace(found, room_bytes=6 * BLOCK))


def test_a_forecast_knows_what_its_neediest_rank_takes() -> None:
    trace = small_trace([[1, 2], [3, 4], [5]])
    plan = replay_plan(trace, np=2)
    found = forecast(plan, trace, ReplayFamily())
    needs = [len(set(trace.select(part).block_ids)) for part in partition(trace, 2)]
    assert (found.ranks, found.rank_need_bytes) == (2, max(needs) * BLOCK)
    assert max(needs) * 2 > sum(needs)
    dialogues = synthetic(np=2, need_blocks=3)
    assert (dialogues.ranks, dialogues.rank_need_bytes) == (2, 3 * BLOCK)


def test_a_replay_says_what_each_tier_has_of_the_hits() -> None:
    trace = small_trace([[1, 2], [1, 2]])
    plan = replay_plan(trace, capacity_blocks=9, tiers=tiers_of(1), backend="file")
    assert reported(forecast(plan, trace, ReplayFamily()), plan, 1) == [
        "writes 8 KiB in all to /nowhere, of which at most 8 KiB are there at a time",
        "hit ratio 0.5000 (cpu 0.2500, storage 0.2500) with a capacity of 36 KiB",
    ]


def test_a_tier_that_holds_all_is_said_to_leave_nothing_to_read() -> None:
    plan = make_plan(need_blocks=2, tiers=tiers_of(1, 2))
    found = forecast(plan, None, SyntheticFamily())
    assert reported(found, plan, 1)[-1].startswith(
        "the cpu tier holds all that a rank needs, so that"
    )
    assert reported(found, replace(plan, need_blocks=3), 1)[-1].startswith("hit ratio")


def test_dialogues_say_about_how_much_they_write() -> None:
    plan = make_plan(backend="file", duration_s=10.0, ramp_s=1.0)
    found = forecast(plan, None, SyntheticFamily())
    assert found.window_s == 11.0
    writes, hits = reported(found, plan, 1)
    assert writes.startswith("writes about ")
    assert " to " in writes
    assert hits.startswith("hit ratio about 0.")


def test_nothing_is_said_to_be_written_where_nothing_is_stored() -> None:
    plan = make_plan(backend="null")
    found = forecast(plan, None, SyntheticFamily())
    assert not any(line.startswith("writes") for line in reported(found, plan, 1))


def test_what_is_read_of_windows_and_states_is_not_told_beforehand() -> None:
    # They are read of the last blocks of each prefix alone.
    trace = small_trace([[1, 2, 3], [1, 2, 3, 4]])
    plans = replay_plan(trace), replay_plan(trace, model=MODELS["gpt-oss-20b"])
    plain, windows = (forecast(plan, trace, ReplayFamily()) for plan in plans)
    assert plain.read_bytes == 3 * BLOCK
    assert windows.read_bytes is None
    assert windows.written_bytes == 4 * plans[1].stored_bytes
    assert synthetic().read_bytes is not None
    assert synthetic(model=MODELS["gpt-oss-20b"]).read_bytes is None
