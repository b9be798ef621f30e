from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.buffers import buffer_bytes
from pytest_kvcache.backends.posix.allocator import slab_count
from pytest_kvcache.backends.traits import BackendOption
from pytest_kvcache.cache.identity import MAX_PARTS
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.models import MODELS, ModelSpec
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.plan.plan import (
    CaseFacts,
    Plan,
    TracePlan,
    build_plan,
    default_deadline_s,
    effective_block_tokens,
)
from pytest_kvcache.units import MIB
from pytest_kvcache.workloads.protocol import Need
from tests.factories import (
    OBJECTS,
    PAGE,
    SMALL,
    make_plan,
    make_trace_plan,
    on_backend,
    options,
    traits_of,
)
from tests.recordings import small_trace

GIB = 1 << 30
LAYOUT = RankLayout(hosts=(HostRanks(name="127.0.0.1", ranks=2),))
TRACE = make_trace_plan(
    name="small", requests=3, speedup=1.0, one_rank_hit_ratio=0.5, dealt_hit_ratio=0.4
)


def facts(**changes: Any) -> CaseFacts:
    values: dict[str, Any] = {
        "run_id": "run",
        "version": "1.0",
        "need": Need(working_set_blocks=1_000),
        "available_bytes": None,
        "sharers": 2,
        "trace": None,
    }
    return CaseFacts(**values | changes)


def plan_of(asked: Options, **changes: Any) -> Plan:
    block_tokens = changes.pop("block_tokens", 256)
    model = changes.pop("model", SMALL)
    return build_plan(
        asked,
        scenario="trace" if changes.get("trace") else "mixed",
        model=model,
        layout=LAYOUT,
        block_tokens=block_tokens,
        traits=traits_of(asked.backend),
        facts=facts(**changes),
    )


def decimals(low: float, high: float) -> st.SearchStrategy[str]:
    return st.floats(low, high).map(lambda value: f"{value:.3f}")


GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "num_users": st.integers(1, 100_000).map(str),
        "duration": decimals(0.1, 86_400),
        "ramp": decimals(0, 1_000),
        "context_scale": decimals(0.001, 16),
        "tensor_parallel": st.sampled_from(["1", "2", "4", "8"]),
        "phase": st.sampled_from(["both", "prefill", "decode"]),
        "generation_mode": st.sampled_from(["none", "fast", "realistic"]),
        "request_rate": decimals(0.001, 500),
        "backend": st.sampled_from(["file", "memory", "null", "mine"]),
        "io": st.sampled_from(["direct", "buffered"]),
        "sync": st.sampled_from(["none", "data"]),
        "cache_dir": st.sampled_from(["/var/tmp", "/data/ü b"]),
        "storage_capacity_gb": st.integers(4, 1_000).map(str),
        "queue_depth": st.integers(1, 1_024).map(str),
        "io_engine": st.sampled_from(["auto", "io_uring", "libaio", "threads"]),
        "transfer_size": st.sampled_from(["4KiB", "64KiB", "4GiB", "object"]),
        "verify": st.sampled_from(["off", "sample", "full"]),
        "data": st.sampled_from(["normal", "strict"]),
        "seed": st.integers(0, 10**18 - 1).map(str),
        "keep": st.sampled_from(["true", "false"]),
        "deadline": decimals(1, 86_400),
        "allow_invalid": st.just("true"),
        "plugin": st.just(["mine", "other.one"]),
    },
)


@settings(deadline=None)
@given(
    given_texts=GIVEN,
    model=st.sampled_from([*MODELS.values(), SMALL]),
    block_tokens=st.integers(1, 1_024),
    trace=st.sampled_from([None, TRACE]),
    origin=st.sampled_from(["command line", "ini", "call"]),
)
def test_a_plan_survives_its_json(
    given_texts: dict[str, Any], model: Any, block_tokens: int, trace: TracePlan | None, origin: Any
) -> None:
    if trace is not None and origin != "ini":
        given_texts = {name: text for name, text in given_texts.items() if name != "request_rate"}
    asked = build_options({name: (text, origin) for name, text in given_texts.items()})
    plan = plan_of(asked, model=model, block_tokens=block_tokens, trace=trace)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.digest == plan.digest
    assert again.workload_digest == plan.workload_digest
    assert again.for_trial(1).digest != plan.digest


# -- what makes two runs comparable --------------------------------------------------------

# Another value of each field.
SAME_LOAD: dict[str, Any] = {
    "run_id": "another",
    "trial": 1,
    "layout": RankLayout(
        hosts=(HostRanks(name="n1", ranks=1), HostRanks(name="n2", ranks=1)),
    ),
    "cache_dir": "/elsewhere",
    "deadline_s": 61.0,
    "keep": True,
    "origins": {"seed": "ini"},
    "plugins": ("mine",),
    "need_blocks": 7,
    "version": "2.0",
    "label": "mine",
}
OTHER_LOAD: dict[str, Any] = {
    "scenario": "agent",
    "model": replace(SMALL, head_dim=2),
    "seed": 43,
    "users": 5,
    "duration_s": 1.0,
    "ramp_s": 0.1,
    "context_scale": 0.06,
    "block_tokens": 8,
    "tensor_parallel": 2,
    "generation_mode": "fast",
    "phase": "decode",
    "request_rate": 5.0,
    "arrival": "gamma",
    "backend": "memory",
    "traits": OBJECTS,
    "backend_options": {"endpoint": "http://other"},
    "object_layout": "layer",
    "store": "slab",
    "io": "buffered",
    "sync": "data",
    "capacity_blocks": 9_999,
    "queue_depth": 5,
    "io_engine": "threads",
    "transfer_size": None,
    "cores": "split",
    "verify": "off",
    "data": "strict",
    "trace": TRACE,
}
OPEN_LOOP: dict[str, Any] = {"request_rate": 4.0, "arrival": "poisson"}
OTHER_TRACE: dict[str, Any] = {
    "digest": "e" * 64,
    "requests": 4,
    "speedup": 0.0,
    "cycles": 2,
    "limit": 3,
}


def test_every_field_of_a_plan_is_part_of_the_load_or_is_not() -> None:
    names = {field.name for field in fields(Plan)}
    assert SAME_LOAD.keys() | OTHER_LOAD.keys() == names
    assert not SAME_LOAD.keys() & OTHER_LOAD.keys()


def test_the_forecast_of_memory_grows_with_buffers_and_blocks() -> None:
    little = make_plan(capacity_blocks=1, need_blocks=1)
    many = replace(little, capacity_blocks=10**6, need_blocks=2 * 10**6)
    assert little.memory_bytes < 100 << 20
    assert many.memory_bytes - little.memory_bytes >= 500 * (10**6 - 1)
    assert replace(many, need_blocks=1).memory_bytes == little.memory_bytes
    file = on_backend(replace(little, cache_dir="/data"), "file")
    assert file.memory_bytes == little.memory_bytes + file.buffer_bytes
    memory = on_backend(file, "memory")
    assert memory.memory_bytes == file.memory_bytes + memory.capacity_bytes


# -- layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor_parallel", [1, 2, 8])
@pytest.mark.parametrize("model", MODELS.values(), ids=str)
def test_the_objects_of_a_block_are_its_layers_and_together_the_block(
    model: ModelSpec, tensor_parallel: int
) -> None:
    whole = make_plan(model=model, tensor_parallel=tensor_parallel, block_tokens=16)
    layers = replace(whole, object_layout="layer")
    assert (whole.objects_per_block, layers.objects_per_block) == (1, model.layers)
    assert layers.objects_per_block * layers.object_bytes == whole.object_bytes == whole.block_bytes
    assert layers.object_stored_bytes % PAGE == 0
    assert 0 <= layers.object_stored_bytes - layers.object_bytes < PAGE
    assert layers.stored_bytes == model.layers * layers.object_stored_bytes
    assert layers.stored_bytes - whole.stored_bytes < model.layers * PAGE
    assert layers.chunk_bytes <= layers.object_stored_bytes
    assert layers.capacity_objects == layers.capacity_blocks * model.layers
    assert layers.memory_bytes - layers.buffer_bytes > whole.memory_bytes - whole.buffer_bytes


def test_the_size_of_an_object_decides_on_the_store_and_what_blocks_take_on_the_capacity() -> None:
    model = MODELS["llama3.1-8b"]  # 32 layers, 4 KiB each per token
    changes = {"storage_capacity_gb": "1GiB", "backend": "file", "cache_dir": "/data"}
    whole = plan_of(options(**changes), model=model, block_tokens=256)
    layers = plan_of(options(**changes, layout="layer"), model=model, block_tokens=256)
    assert (whole.object_stored_bytes, whole.store) == (32 * MIB, "file")
    assert (layers.object_stored_bytes, layers.store) == (1 * MIB, "slab")
    assert whole.capacity_blocks == layers.capacity_blocks == 32
    odd = plan_of(options(**changes, layout="layer"), model=SMALL, block_tokens=1)
    assert odd.stored_bytes == SMALL.layers * PAGE > odd.block_bytes
    assert odd.capacity_bytes <= GIB
    assert odd.slab_files == slab_count(odd.capacity_objects, PAGE)


def test_a_model_with_more_layers_than_a_block_has_objects_is_refused() -> None:
    deep = replace(SMALL, layers=MAX_PARTS + 1)
    with pytest.raises(OptionError, match=r"--kv-layout is layer and .* use --kv-layout=block"):
        make_plan(model=deep, object_layout="layer")
    assert make_plan(model=deep).objects_per_block == 1


@pytest.mark.parametrize("name", SAME_LOAD)
def test_what_does_not_change_the_load_leaves_the_workload_digest(name: str) -> None:
    plan = make_plan(np=2)
    other = replace(plan, **{name: SAME_LOAD[name]})
    assert other.workload_digest == plan.workload_digest
    assert other.digest != plan.digest


@pytest.mark.parametrize("name", OTHER_LOAD)
def test_what_changes_the_load_changes_the_workload_digest(name: str) -> None:
    plan = make_plan(**(OPEN_LOOP if name in OPEN_LOOP else {}))
    other = replace(plan, **{name: OTHER_LOAD[name]})
    assert other.workload_digest != plan.workload_digest
    assert other.digest != plan.digest


@pytest.mark.parametrize("name", OTHER_TRACE)
def test_another_replay_is_another_load(name: str) -> None:
    plan = make_plan(trace=TRACE)
    other = replace(plan, trace=replace(TRACE, **{name: OTHER_TRACE[name]}))
    assert other.workload_digest != plan.workload_digest


def test_the_name_of_a_trace_file_is_no_part_of_the_load() -> None:
    plan = make_plan(trace=TRACE)
    renamed = replace(plan, trace=replace(TRACE, name="renamed.jsonl"))
    assert renamed.workload_digest == plan.workload_digest


def test_another_number_of_ranks_is_another_load() -> None:
    assert make_plan(np=1).workload_digest != make_plan(np=2).workload_digest


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


# -- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block_tokens", "block_bytes", "stored_bytes", "chunk_bytes"),
    [
        (1, 2, PAGE, PAGE),
        (2_048, PAGE, PAGE, PAGE),
        (2_049, PAGE + 2, 2 * PAGE, 2 * PAGE),
        (1 << 21, 4 << 20, 4 << 20, 4 << 20),
        ((1 << 21) + 1, (4 << 20) + 2, (4 << 20) + PAGE, 4 << 20),
    ],
)
def test_blocks_are_stored_in_whole_pages_and_moved_in_chunks(
    block_tokens: int, block_bytes: int, stored_bytes: int, chunk_bytes: int
) -> None:
    plan = make_plan(block_tokens=block_tokens, backend="file")
    assert plan.block_bytes == block_bytes
    assert plan.stored_bytes == stored_bytes
    assert plan.chunk_bytes == chunk_bytes
    assert plan.buffer_bytes == buffer_bytes(4, chunk_bytes)
    assert on_backend(plan, "null").buffer_bytes == 0


@pytest.mark.parametrize(
    ("transfer_size", "chunk_bytes"),
    [(None, 100 * MIB), (PAGE, PAGE), (64 * MIB, 64 * MIB), (128 * MIB, 100 * MIB)],
)
def test_a_transfer_is_as_large_as_asked_for_and_no_larger_than_its_object(
    transfer_size: int | None, chunk_bytes: int
) -> None:
    plan = make_plan(backend="file", block_tokens=50 * MIB, transfer_size=transfer_size)
    assert plan.object_stored_bytes == 100 * MIB
    assert plan.chunk_bytes == chunk_bytes
    assert plan.memory_bytes > plan.buffer_bytes == buffer_bytes(4, chunk_bytes)


def test_another_transfer_size_is_another_workload() -> None:
    digests = {make_plan(transfer_size=size).workload_digest for size in (None, PAGE, MIB)}
    assert len(digests) == 3


def test_a_rank_stores_one_shard() -> None:
    model = MODELS["llama3.1-8b"]
    whole = make_plan(model=model, block_tokens=16)
    assert replace(whole, tensor_parallel=4).block_bytes == whole.block_bytes // 4
    assert replace(whole, tensor_parallel=64).block_bytes == whole.block_bytes // 8


def test_ranks_own_a_directory_where_the_backend_wants_one() -> None:
    wanted = {"null": False, "memory": False, "file": True, "mine": False}
    assert {name: make_plan(backend=name).needs_directory for name in wanted} == wanted


def test_a_case_is_named_by_scenario_model_and_ranks() -> None:
    plan = make_plan(np=3)
    assert plan.case == "chat-small-np3"
    assert (plan.np, plan.world_size) == (3, 4)


# -- what the backend's traits decide ------------------------------------------------------


def objects_plan(block_tokens: int = 4 * MIB, **traits: Any) -> Plan:
    """A plan of blocks of twice as many bytes on a store of whole objects."""
    return make_plan(
        backend="mine", block_tokens=block_tokens, traits=replace(OBJECTS, **traits), cache_dir="/"
    )


@pytest.mark.parametrize("block_tokens", [1, 2048, 4 * MIB, 100 * MIB])
def test_a_store_of_whole_objects_is_called_once_for_each(block_tokens: int) -> None:
    plan = objects_plan(block_tokens)
    assert plan.chunk_bytes == plan.object_stored_bytes
    assert plan.buffer_bytes == buffer_bytes(plan.queue_depth, plan.object_stored_bytes)
    assert plan.memory_bytes > plan.buffer_bytes + max(0, plan.object_stored_bytes - 32 * MIB)


@given(
    size=st.integers(1, 64 * MIB),
    smallest=st.integers(1, 8 * MIB),
    more=st.none() | st.integers(0, 8 * MIB),
    alignment=st.sampled_from([1, PAGE, 2 * PAGE, 64 * 1024]),
)
def test_a_transfer_is_a_part_that_the_backend_takes(
    size: int, smallest: int, more: int | None, alignment: int
) -> None:
    unit = max(alignment, PAGE)
    largest = None if more is None else -(-smallest // unit) * unit + more
    plan = objects_plan(
        size, unit="range", smallest_part_bytes=smallest, largest_part_bytes=largest,
        alignment_bytes=alignment,
    )  # fmt: skip
    whole = plan.chunk_bytes == plan.object_stored_bytes
    assert plan.chunk_bytes % unit == plan.object_stored_bytes % unit == 0
    assert largest is None or plan.chunk_bytes <= largest
    assert whole or plan.chunk_bytes >= smallest
    assert plan.chunk_bytes <= max(4 * MIB, -(-smallest // unit) * unit)


@pytest.mark.parametrize(
    ("traits", "layout", "told"),
    [
        ({"largest_part_bytes": MIB}, "block", ("of at most 1048576 bytes, and one of small has"
         " 8388608 bytes; lower --kv-block-tokens or use --kv-layout=layer")),
        ({"largest_part_bytes": MIB}, "layer", "has 8388608 bytes; lower --kv-block-tokens"),
        ({"smallest_part_bytes": 16 * MIB}, "block", ("of at least 16777216 bytes, and one of small"
         " has 8388608 bytes; raise --kv-block-tokens")),
        ({"smallest_part_bytes": 16 * MIB}, "layer", ("raise --kv-block-tokens or use"
         " --kv-layout=block")),
    ],
)  # fmt: skip
def test_objects_that_the_backend_does_not_take_whole_are_refused(
    traits: dict[str, Any], layout: str, told: str
) -> None:
    with pytest.raises(OptionError) as error:
        make_plan(
            backend="mine", block_tokens=4 * MIB, traits=replace(OBJECTS, **traits),
            object_layout=layout,
        )  # fmt: skip
    assert str(error.value).startswith("--kv-backend is mine, which moves whole objects")
    assert told in str(error.value)


def test_the_meaning_of_a_backends_options_is_no_part_of_the_load() -> None:
    plan = objects_plan()
    told = BackendOption(name="endpoint", meaning="where it is")
    other = replace(plan, traits=replace(plan.traits, options=(told,)))
    assert other.workload_digest == plan.workload_digest


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
    told = {field.name for field in fields(Plan)}
    assert set(origins) == told - {
        "run_id", "version", "trial", "need_blocks", "origins", "label", "traits",
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
