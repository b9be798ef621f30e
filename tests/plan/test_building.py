"""What options, and what was found, make of a case: its capacity, its values, its deadline."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.plan.building import (
    default_deadline_s,
    effective_block_tokens,
)
from pytest_kvcache.plan.plan import Plan, TracePlan
from pytest_kvcache.report.tables import describe_plan
from pytest_kvcache.units import GIB, MIB
from pytest_kvcache.workloads.protocol import Need
from tests.factories import (
    PAGE,
    SMALL,
    make_plan,
    options,
)
from tests.plan.planned import OPEN_LOOP, TRACE, plan_of
from tests.recordings import small_trace

# -- capacity ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_gib", "need", "available", "sharers", "capacity_blocks"),
    [
        ("1", 10, None, 2, GIB // PAGE),  # what the user says
        ("1", 10, 100 * PAGE, 2, GIB // PAGE),  # whatever else there is
        ("0", 1_000, None, 2, 1_000),  # the need, where space does not matter
        ("0", 1_000, 10_000 * PAGE, 2, 1_000),  # the need, where there is room
        ("0", 1_000, 1_000 * PAGE, 1, 900),  # 90 % of what is free
        ("0", 1_000, 1_000 * PAGE, 2, 450),  # divided by those who share it
        ("0", 1_000, 1_000 * PAGE, 7, 128),
        ("0", 0, None, 1, 1),  # a load that stores nothing
    ],
)
def test_the_capacity_is_the_cap_or_the_need_or_the_share_of_what_is_free(
    asked_gib: str, need: int, available: int | None, sharers: int, capacity_blocks: int
) -> None:
    plan = plan_of(
        options(storage_capacity_gb=asked_gib),
        need=Need(working_set_blocks=need),
        available_bytes=available,
        sharers=sharers,
    )
    assert plan.capacity_blocks == capacity_blocks
    assert plan.need_blocks == need
    assert plan.capacity_bytes == capacity_blocks * PAGE


@settings(deadline=None)
@given(
    need=st.integers(0, 1 << 30),
    available=st.integers(0, 1 << 50),
    sharers=st.integers(1, 1_000),
    block_tokens=st.integers(1, 100_000),
)
def test_all_ranks_together_never_claim_more_than_nine_tenths(
    need: int, available: int, sharers: int, block_tokens: int
) -> None:
    changes = {
        "need": Need(working_set_blocks=need),
        "available_bytes": available,
        "sharers": sharers,
        "block_tokens": block_tokens,
    }
    try:
        plan = plan_of(options(), **changes)
    except OptionError:
        stored_bytes = -(-2 * block_tokens // PAGE) * PAGE
        assert 0.9 * available / sharers < stored_bytes
        return
    claimed = plan.capacity_bytes * sharers
    assert claimed <= 0.9 * available * (1 + 1e-12)
    if plan.capacity_blocks < max(1, need):
        assert claimed + sharers * plan.stored_bytes > 0.9 * available * (1 - 1e-12)


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        (options(), {"available_bytes": 2 * PAGE}),
        (options(), {"available_bytes": 0}),
    ],
)
def test_a_full_disk_is_refused_with_what_is_free_and_where(
    asked: Options, changes: dict[str, Any]
) -> None:
    free = "8 KiB" if changes["available_bytes"] else "0 B"
    with pytest.raises(
        OptionError,
        match=rf"^--kv-cache-dir is /var/tmp, where {free} are free; 90% of it.* hold no block of"
        r" .*, so free some space, name another directory, or lower --kv-block-tokens$",
    ):
        plan_of(asked, **changes)


def test_a_capacity_below_one_block_is_refused() -> None:
    with pytest.raises(OptionError, match=r"holds no block of .*; raise --kv-storage-capacity-gb"):
        plan_of(options(storage_capacity_gb="0.0001"), block_tokens=100_000)


# -- effective values ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "trace", "duration_s", "ramp_s"),
    [
        ({}, None, 60.0, 6.0),
        ({"duration": "600"}, None, 600.0, 30.0),
        ({"duration": "10"}, None, 10.0, 1.0),
        ({"ramp": "0"}, None, 60.0, 0.0),
        ({"ramp": "45"}, None, 60.0, 45.0),
        ({}, TRACE, None, 0.0),
        ({"duration": "10"}, TRACE, 10.0, 0.0),
        ({"duration": "10", "ramp": "2"}, TRACE, 10.0, 2.0),
    ],
)
def test_duration_and_ramp(
    texts: dict[str, str], trace: TracePlan | None, duration_s: float | None, ramp_s: float
) -> None:
    plan = plan_of(options(**texts), trace=trace)
    assert (plan.duration_s, plan.ramp_s) == (duration_s, ramp_s)


def test_a_replay_keeps_its_own_values_against_an_ini() -> None:
    texts = {"duration": "10", "ramp": "1", "context_scale": "0.5", "request_rate": "9"}
    asked = build_options({name: (text, "ini") for name, text in texts.items()})
    plan = plan_of(asked, trace=TRACE)
    assert (plan.duration_s, plan.ramp_s, plan.context_scale) == (None, 0.0, 1.0)
    assert (plan.request_rate, plan.arrival) == (None, None)
    assert plan.origins["request_rate"] == plan.origins["arrival"] == "scenario"
    assert plan.origins["duration_s"] == plan.origins["ramp_s"] == "scenario"
    assert plan_of(asked).origins["duration_s"] == "ini"


@pytest.mark.parametrize(
    ("texts", "arrival", "origin"),
    [
        ({"request_rate": "9"}, "poisson", "default"),
        ({"request_rate": "9", "arrival": "gamma"}, "gamma", "ini"),
        ({"arrival": "gamma"}, None, "default"),
        ({}, None, "default"),
    ],
)
def test_arrivals_belong_to_a_rate(texts: dict[str, str], arrival: str | None, origin: str) -> None:
    plan = plan_of(build_options({name: (text, "ini") for name, text in texts.items()}))
    assert (plan.arrival, plan.origins["arrival"]) == (arrival, origin)
    assert plan.open_loop == (plan.request_rate is not None) == ("request_rate" in texts)


@pytest.mark.parametrize(("speedup", "is_open"), [(2.0, True), (0.0, False)])
def test_a_trace_at_recorded_times_is_an_open_loop(speedup: float, *, is_open: bool) -> None:
    assert make_plan(trace=replace(TRACE, speedup=speedup)).open_loop == is_open


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_rate": 4.0}, "arrival is None; it must go with a request_rate"),
        ({"arrival": "gamma"}, "arrival is 'gamma'; it must go with a request_rate"),
        ({**OPEN_LOOP, "trace": TRACE}, "--kv-request-rate is 4; a trace has times of its own"),
        (
            {**OPEN_LOOP, "request_rate": 1e6, "duration_s": 90.0, "ramp_s": 10.1, "np": 2},
            "--kv-request-rate is 1e+06, which makes 5",
        ),
    ],
)
def test_a_rate_that_can_not_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        make_plan(**changes)
    make_plan(**OPEN_LOOP, duration_s=90.0, ramp_s=10.0, np=2)
    make_plan(arrival="poisson", request_rate=1e6, duration_s=90.0, ramp_s=10.0, np=2)


@pytest.mark.parametrize(
    ("texts", "sync"),
    [
        ({}, "none"),
        ({"io": "buffered"}, "data"),
        ({"io": "buffered", "sync": "none"}, "none"),
        ({"sync": "data"}, "data"),
    ],
)
def test_buffered_files_are_synced_unless_told_otherwise(texts: dict[str, str], sync: str) -> None:
    assert plan_of(options(**texts)).sync == sync


@pytest.mark.parametrize(
    ("texts", "stored_bytes", "store"),
    [
        ({}, PAGE, "slab"),
        ({}, MIB, "slab"),
        ({}, MIB + PAGE, "file"),
        ({"store": "auto"}, MIB, "slab"),
        ({"store": "auto"}, 32 * MIB, "file"),
        ({"store": "file"}, PAGE, "file"),
        ({"store": "slab"}, 32 * MIB, "slab"),
        ({"backend": "memory"}, PAGE, None),
        ({"backend": "null"}, PAGE, None),
        ({"backend": "mine"}, PAGE, None),
    ],
)
def test_the_size_of_an_object_chooses_its_store_unless_somebody_did(
    texts: dict[str, str], stored_bytes: int, store: str | None
) -> None:
    plan = plan_of(options(**texts), block_tokens=stored_bytes // 2)
    assert (plan.stored_bytes, plan.store) == (stored_bytes, store)
    assert plan.origins["store"] == ("command line" if "store" in texts else "default")


def test_slabs_take_room_for_the_whole_capacity_and_keep_files_open() -> None:
    slabs = make_plan(backend="file", store="slab", capacity_blocks=100, need_blocks=10)
    assert (slabs.most_blocks, slabs.slab_files) == (100, 8)
    files = replace(slabs, store="file")
    assert (files.most_blocks, files.slab_files) == (10, 0)


def test_every_value_tells_where_it_comes_from() -> None:
    asked = build_options(
        {"num_users": ("7", "command line"), "duration": ("9", "ini"), "plugin": (["m"], "ini")}
    )
    origins = plan_of(asked).origins
    reported = {field.name for field in fields(Plan)}
    assert set(origins) == reported - {
        "run_id", "version", "trial", "need_blocks", "origins", "label", "traits",
        "own_block_bytes", "search_step",
    }  # fmt: skip
    assert origins["users"] == "command line"
    assert origins["duration_s"] == origins["plugins"] == "ini"
    assert origins["ramp_s"] == origins["capacity_blocks"] == "default"


def test_a_run_that_allows_invalid_trials_says_so() -> None:
    assert plan_of(options(allow_invalid="true")).origins["allow_invalid"] == "command line"
    assert "allow_invalid" not in plan_of(options()).origins
    assert plan_of(options(allow_preload="true")).origins["allow_preload"] == "command line"


def test_an_allowance_is_for_what_it_names() -> None:
    codes = ("PRELOADED", "CLOCK", "TMPFS")
    allowed = {
        name: [code for code in codes if plan_of(options(**{name: "true"})).allows(code)]
        for name in ("allow_invalid", "allow_preload")
    }
    assert allowed == {"allow_invalid": list(codes), "allow_preload": ["PRELOADED"]}
    assert not any(map(plan_of(options()).allows, codes))


def test_the_block_size_is_the_traces_then_the_users_then_the_default() -> None:
    trace = small_trace([[1]], block_tokens=512)
    assert effective_block_tokens(options(block_tokens="16"), trace) == 512
    assert effective_block_tokens(options(block_tokens="16"), None) == 16
    assert effective_block_tokens(options(), None) == 256


def test_a_context_has_the_plans_values_and_the_ranks_part() -> None:
    trace = small_trace([[1]])
    context = make_plan(trace=replace(TRACE, speedup=2.0, cycles=3), trial=4).context(5, trace)
    assert (context.trace_speedup, context.trace_cycles) == (2.0, 3)
    assert (context.trial, context.rank, context.seed, context.users) == (4, 5, 42, 4)
    assert context.trace is trace
    plain = make_plan().context(0, None)
    assert (plain.trace_speedup, plain.trace_cycles) == (0.0, 1)


def test_plans_are_the_same_launch_wherever_their_values_come_from() -> None:
    plan = make_plan()
    assert replace(plan, origins={"seed": "ini"}).identity == plan.identity
    assert plan.for_trial(1).identity == plan.identity
    assert replace(plan, cache_dir="/elsewhere").identity != plan.identity
    assert replace(plan, seed=1).identity != plan.identity


# -- deadline ------------------------------------------------------------------------------


def test_the_users_deadline_stands() -> None:
    assert plan_of(options(deadline="77")).deadline_s == 77.0


def test_a_deadline_leaves_time_for_everything_that_a_slow_storage_must_move() -> None:
    need = Need(working_set_blocks=10_000_000)
    plan = plan_of(options(duration="100", ramp="5"), need=need)
    moved_s = 10_000_000 * 2 * (PAGE / 20e6 + 1 / 200)  # two ranks on the host
    assert plan.deadline_s == default_deadline_s(plan, need)
    assert plan.deadline_s - moved_s >= 5 + 100 + plan.drain_s
    assert plan.deadline_s - moved_s < 600


def test_a_deadline_counts_every_layer_of_a_block_as_an_object() -> None:
    need, deep = Need(working_set_blocks=1_000), replace(SMALL, layers=4)
    whole, layers = (
        plan_of(options(layout=layout), need=need, model=deep) for layout in ("block", "layer")
    )
    assert (whole.objects_per_block, layers.objects_per_block) == (1, 4)
    more = 1_000 * 2 * 3  # objects, on a host of two ranks
    assert layers.deadline_s - whole.deadline_s >= more / 200


def test_the_deadline_of_a_replay_covers_its_span_and_all_that_it_reads() -> None:
    need = Need(working_set_blocks=10, requests=3, accessed_blocks=10_000_000, span_s=3_000.0)
    plan = plan_of(options(), need=need, trace=TRACE)
    moved_s = 10_000_000 * 2 * (PAGE / 20e6 + 1 / 200)
    assert 3_000 < plan.deadline_s - moved_s < 3_600


def test_operations_get_as_long_as_the_window_but_at_least_half_a_minute_to_end() -> None:
    assert make_plan(duration_s=10.0).drain_s == 30.0
    assert make_plan(duration_s=300.0).drain_s == 300.0
    assert make_plan(duration_s=None).drain_s == 30.0


@pytest.mark.parametrize(("mode", "seconds"), [("none", 0.0), ("fast", 0.002), ("realistic", 0.03)])
def test_generation_takes_its_time_per_token(mode: str, seconds: float) -> None:
    assert make_plan(generation_mode=mode).generation_s_per_token == seconds


@pytest.mark.parametrize(
    ("params", "cores"),
    [
        (None, "split"),
        ("--mca pml ob1", "split"),
        ("--bind-to none", "shared"),
        ("-bind-to=core", "shared"),
        ("--cpu-set 0,1", "shared"),
    ],
)
def test_ranks_divide_the_cores_unless_the_user_binds_them(params: str | None, cores: str) -> None:
    asked = options() if params is None else options(mpi_params=[params])
    assert plan_of(asked).cores == cores


def test_ranks_can_not_be_given_a_relative_directory() -> None:
    with pytest.raises(OptionError, match="cache_dir is 'here'; it must be an absolute path"):
        make_plan(cache_dir="here")


# -- a storage that is filled ----------------------------------------------------------------


def filled(**texts: str) -> Plan:
    return plan_of(options(fill="90%", **texts), available_bytes=10_000 * PAGE)


def test_a_storage_is_filled_to_a_part_of_its_capacity() -> None:
    plan = filled(storage_capacity_gb=f"{1_000 * PAGE}B")
    assert (plan.capacity_blocks, plan.fill_blocks) == (1_000, 900)
    assert plan.most_blocks == 1_000
    assert "3.52 MiB of the 3.91 MiB of each rank taken before" in describe_plan(plan)


def test_without_a_capacity_the_filesystems_free_space_is_filled() -> None:
    assert filled().capacity_blocks == 4_500
    assert filled().fill_blocks == 4_050
    assert plan_of(options(), available_bytes=10_000 * PAGE).capacity_blocks == 1_000


def test_filling_takes_time_that_the_deadline_allows_for() -> None:
    little, much = (filled(storage_capacity_gb=f"{blocks * PAGE}B") for blocks in (2_000, 90_000))
    assert much.deadline_s - little.deadline_s > 0.9 * 88_000 / 200


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"backend": "null"}, "--kv-backend=null is no storage that could be filled"),
        ({"cpu_mem_gb": "1"}, "--kv-cpu-mem-gb puts a tier in front"),
    ],
)
def test_what_can_not_be_filled_is_refused(texts: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        filled(storage_capacity_gb="1", **texts)


def test_a_fill_of_less_than_a_block_is_refused() -> None:
    with pytest.raises(OptionError, match="which is less than one; raise it"):
        plan_of(options(fill="0.1%", storage_capacity_gb=f"{9 * PAGE}B"))


@pytest.mark.parametrize("text", ["0%", "101%", "0.9", "90", "much", "-5%"])
def test_a_fill_is_a_percentage(text: str) -> None:
    with pytest.raises(OptionError, match=r"--kv-fill is .*; it must be"):
        options(fill=text)
