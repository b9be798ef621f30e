from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_kvcache.backends.buffers import buffer_bytes
from pytest_kvcache.backends.posix.allocator import slab_count
from pytest_kvcache.backends.traits import BackendOption
from pytest_kvcache.cache.identity import MAX_PARTS
from pytest_kvcache.errors import OptionError
from pytest_kvcache.hosts.hostlist import HostRanks, RankLayout
from pytest_kvcache.models import MODELS, LayerGroup, ModelSpec
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.building import (
    effective_store,
)
from pytest_kvcache.plan.plan import Plan, TracePlan
from pytest_kvcache.plan.tiers import MemoryTier
from pytest_kvcache.units import GIB, MIB
from pytest_kvcache.workloads.scenarios import TABLE
from tests.factories import (
    OBJECTS,
    PAGE,
    SMALL,
    make_plan,
    on_backend,
    options,
    traits_of,
)
from tests.plan.planned import OPEN_LOOP, TRACE, plan_of


def commas(counts: list[int]) -> str:
    return ",".join(map(str, counts))


def decimals(low: float, high: float) -> st.SearchStrategy[str]:
    return st.floats(low, high).map(lambda value: f"{value:.3f}")


GIVEN = st.fixed_dictionaries(
    {},
    optional={
        "num_users": st.integers(1, 100_000).map(str),
        "load_steps": st.lists(st.integers(1, 9), min_size=2, max_size=16).map(commas),
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
        own = ("request_rate", "load_steps")
        given_texts = {name: text for name, text in given_texts.items() if name not in own}
    if trace is None and "load_steps" in given_texts:
        given_texts |= {"num_users": "9", "duration": "32"}
        given_texts.pop("request_rate", None)
    asked = build_options({name: (text, origin) for name, text in given_texts.items()})
    heads = [group.kv_heads for group in model.groups] or [model.kv_heads]
    assume(all(n is None or not n % asked.tensor_parallel for n in heads))  # else refused
    assume(not model.groups or asked.backend != "memory")  # refused too
    plan = plan_of(asked, model=model, block_tokens=block_tokens, trace=trace)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.digest == plan.digest
    assert again.workload_digest == plan.workload_digest
    assert again.for_trial(1).digest != plan.digest


# -- what makes two runs comparable --------------------------------------------------------


def test_what_somebody_gave_an_option_for_is_known() -> None:
    asked = build_options({"num_users": ("7", "command line"), "ramp": ("1", "ini")})
    assert plan_of(asked).given == {"users", "ramp_s"}


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
    "closed": True,
    "cost_per_hour": 2.0,
    "power_w": 30.0,
    "search_step": True,
}
OTHER_LOAD: dict[str, Any] = {
    "io_trace": True,
    "own_block_bytes": 1 << 20,
    "dialogues": TABLE.dialogues("chat", enable_rag=True),
    "service": TABLE.service,
    "precondition_bytes": 1,
    "prefill_tokens_per_s": 9_000.0,
    "search": ("load.p95_ms<200",),
    "search_mode": "capacity",
    "scenario": "agent",
    "model": replace(SMALL, head_dim=2),
    "seed": 43,
    "users": 5,
    "most_stores": 3,
    "load_steps": (4, 2),
    "duration_s": 1.0,
    "ramp_s": 0.1,
    "context_scale": 0.06,
    "block_tokens": 8,
    "tensor_parallel": 2,
    "generation_mode": "fast",
    "phase": "decode",
    "request_rate": 5.0,
    "arrival": "gamma",
    "reread_factor": 1,
    "requests": 6,
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
    "engine": "vllm-fs",
    "fill_blocks": 3,
    "lookup": "all",
    "publish": "rename",
    "request_depth": 2,
    "sharing": "run",
    "full_queue": "drop",
    "interference": "with-stores",
    "restart_by": "lookups",
    "drop_caches": True,
    "transfer_size": None,
    "cores": "split",
    "verify": "off",
    "data": "strict",
    "trace": TRACE,
    "tiers": (MemoryTier(name="cpu", capacity_bytes=MIB, kind="memory"),),
    "tier_policy": "demote",
}
RESTART: dict[str, Any] = {
    "backend": "file", "phase": "restart", "restart_by": "scan", "duration_s": None,
}  # fmt: skip
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


@pytest.mark.parametrize(
    "timed", [{"duration_s": 1.0}, {"ramp_s": 1.0}, {"trace": TRACE}, {"load_steps": (1, 2)}]
)
def test_a_fixed_amount_of_work_has_no_time(timed: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="--kv-requests is 5; it can't go with"):
        make_plan(**{"requests": 5, "duration_s": None} | timed)


def test_a_fixed_amount_of_work_may_take_as_long_as_it_is_much() -> None:
    little, much = (
        plan_of(options(requests=str(count), generation_mode="realistic"))
        for count in (100, 100_000)
    )
    assert (little.duration_s, little.ramp_s, little.requests) == (None, 0.0, 100)
    assert little.origins["duration_s"] == little.origins["load_steps"] == "requests"
    assert little.origins["requests"] == "command line"
    assert much.deadline_s - little.deadline_s > 99_900 / little.users * 0.03 * 4_096


def test_what_an_ini_says_of_times_is_not_for_a_fixed_amount_of_work() -> None:
    ini = {"duration": ("60", "ini"), "ramp": ("5", "ini"), "request_rate": ("9", "ini"),
           "load_steps": ("2,4", "ini")}  # fmt: skip
    plan = plan_of(build_options({**ini, "requests": ("7", "command line")}))  # type: ignore[dict-item]
    assert (plan.duration_s, plan.ramp_s, plan.request_rate, plan.load_steps) == (
        None,
        0.0,
        None,
        (),
    )
    timed = plan_of(build_options({"duration": ("60", "ini")}))
    assert (timed.duration_s, timed.requests) == (60.0, None)


@pytest.mark.parametrize(("phase", "what"), [("prefill", "reads"), ("decode", "stores")])
def test_only_a_whole_service_reads_again_what_it_has_stored(phase: str, what: str) -> None:
    with pytest.raises(OptionError, match=f"--kv-reread-factor is 2.*phase={phase} {what} nothing"):
        make_plan(phase=phase, reread_factor=2)
    assert make_plan(phase=phase).reread_factor == 0


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
@pytest.mark.parametrize("name", ["tiny-1b", "llama3.1-70b-instruct", "deepseek-v3.2", "qwen3-32b"])
def test_the_objects_of_a_block_are_its_layers_and_together_the_block(
    name: str, tensor_parallel: int
) -> None:
    model = MODELS[name]
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
    base: dict[str, Any] = OPEN_LOOP if name in OPEN_LOOP else {}
    if name == "requests":
        base = {"requests": 5, "duration_s": None}
    if name in {"precondition_bytes", "fill_blocks"}:
        base = {"backend": "file"}
    if name == "sharing":
        base = {"backend": "file", "lookup": "all", "publish": "link"}
    if name in {"restart_by", "drop_caches"}:
        base = RESTART
    plan = make_plan(**{"duration_s": 4.0, **base})
    other = replace(plan, **{name: OTHER_LOAD[name]})
    assert other.workload_digest != plan.workload_digest
    assert other.digest != plan.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"restart_by": None}, "restart_by is None and phase is restart"),
        ({"phase": "both"}, "restart_by is 'scan' and phase is both"),
        ({"phase": "both", "restart_by": None, "drop_caches": True}, "caches that were dropped"),
        ({"duration_s": 1.0}, "with a duration, a ramp or memory tiers"),
        ({"ramp_s": 1.0}, "with a duration, a ramp or memory tiers"),
        ({"tiers": OTHER_LOAD["tiers"]}, "with a duration, a ramp or memory tiers"),
        ({"store": "slab"}, "those of this plan have none"),
        ({"engine": "vllm-disk"}, "those of this plan have none"),
        ({"reread_factor": 1}, "--kv-phase=restart reads and stores nothing"),
    ],
)
def test_a_plan_that_restarts_has_a_way_and_no_time(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make_plan(**RESTART | changes)


def test_a_restart_calibrates_nothing_and_ends_by_itself() -> None:
    plan = make_plan(**RESTART)
    assert plan.phases_before_window == ("population", "shut-down")
    assert plan.ends_by_itself
    dropping = replace(plan, drop_caches=True, precondition_bytes=1)
    assert dropping.phases_before_window == (
        "precondition", "population", "shut-down", "drop-caches",
    )  # fmt: skip


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
    ("traits", "layout", "reported"),
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
    traits: dict[str, Any], layout: str, reported: str
) -> None:
    with pytest.raises(OptionError) as error:
        make_plan(
            backend="mine", block_tokens=4 * MIB, traits=replace(OBJECTS, **traits),
            object_layout=layout,
        )  # fmt: skip
    assert str(error.value).startswith("--kv-backend is mine, which moves whole objects")
    assert reported in str(error.value)


def test_the_meaning_of_a_backends_options_is_no_part_of_the_load() -> None:
    plan = objects_plan()
    reported = BackendOption(name="endpoint", meaning="where it is")
    other = replace(plan, traits=replace(plan.traits, options=(reported,)))
    assert other.workload_digest == plan.workload_digest


# -- groups of layers ----------------------------------------------------------------------


SLIDES = LayerGroup(kind="sliding", layers=2, kv_heads=1, head_dim=512, window_tokens=8)
FULL = LayerGroup(kind="full", layers=1, kv_heads=4, head_dim=512)
STATE = LayerGroup(kind="state", layers=3, state_bytes=PAGE, state_heads=1)
HYBRID = ModelSpec(name="hybrid", layers=6, dtype="int8", groups=(FULL, SLIDES, STATE))
WIDE_KEYS = ModelSpec(name="wide", layers=1, dtype="int8", groups=(
    LayerGroup(kind="full", layers=1, kv_heads=1, head_dim=1024, v_head_dim=512),
))  # fmt: skip


def test_a_block_of_a_hybrid_takes_what_all_its_objects_take() -> None:
    plan = make_plan(model=HYBRID, block_tokens=4)
    assert [part.object_bytes for part in plan.parts] == [4 * 4096, 4 * 2048, 3 * PAGE]
    assert (plan.objects_per_block, plan.object_bytes) == (3, 4 * 4096)
    assert plan.block_bytes == plan.stored_bytes == 9 * PAGE
    assert plan.chunk_bytes == 4 * PAGE
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_by_layer_a_hybrid_has_an_object_of_each_layer() -> None:
    plan = make_plan(model=HYBRID, block_tokens=4, object_layout="layer")
    assert [part.object_bytes // PAGE for part in plan.parts] == [4, 1, 1, 1, 1, 1]
    assert plan.stored_bytes == 9 * PAGE


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (SMALL, [SMALL.block_bytes(4, 1) // 2] * 2),
        (HYBRID, [2 * 4096] * 2 + [2 * 2048] * 2 + [3 * PAGE]),
        (MODELS["deepseek-v3"], [MODELS["deepseek-v3"].block_bytes(4, 1)]),
        (WIDE_KEYS, [4 * 1024, 4 * 512]),
    ],
)
def test_keys_and_values_apart_are_objects_where_a_group_has_both(
    model: ModelSpec, sizes: list[int]
) -> None:
    plan = make_plan(model=model, block_tokens=4, object_layout="kv")
    assert [part.object_bytes for part in plan.parts] == sizes
    assert sum(sizes) == plan.block_bytes
    assert plan.objects_per_block == len(sizes)


def test_keys_and_values_of_two_sizes_are_refused_by_what_takes_objects_for_equal() -> None:
    plan = make_plan(model=WIDE_KEYS, block_tokens=8, object_layout="kv")
    assert plan.unlike_parts == plan.parts
    assert make_plan(model=WIDE_KEYS, block_tokens=8).unlike_parts == ()
    with pytest.raises(OptionError, match="wide has keys and values of two sizes, and --kv-layout"):
        replace(plan, tiers=(MemoryTier(name="cpu", capacity_bytes=1 << 30, kind="memory"),))
    # of sizes that differ in what they hold, and not in what they take, too
    assert make_plan(model=WIDE_KEYS, block_tokens=1, object_layout="kv").unlike_parts


def test_objects_of_a_hybrid_are_padded_each() -> None:
    plan = make_plan(model=HYBRID, block_tokens=1)
    assert [part.stored_bytes // PAGE for part in plan.parts] == [1, 1, 3]
    assert plan.capacity_bytes == plan.capacity_blocks * 5 * PAGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiers": (MemoryTier(name="cpu", capacity_bytes=1 << 30, kind="memory"),)},
         "--kv-cpu-mem-gb is 1 GiB; hybrid has groups of layers (full, sliding, state) that are"),
        ({"backend": "file", "traits": traits_of("file"), "store": "slab"},
         "--kv-store is slab; hybrid has groups of layers"),
        ({"backend": "memory", "traits": traits_of("memory")}, "--kv-backend is memory; hybrid"),
    ],
)  # fmt: skip
def test_what_takes_blocks_whole_or_all_objects_for_equal_refuses_a_hybrid(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        make_plan(model=HYBRID, **changes)
    assert str(caught.value).startswith(message)


def test_slabs_take_a_hybrid_whose_objects_are_equal_and_auto_none_whose_differ() -> None:
    assert effective_store("auto", traits_of("file"), [PAGE, PAGE]) == "slab"
    assert effective_store("auto", traits_of("file"), [PAGE, 2 * PAGE]) == "file"
    even = ModelSpec(name="even", layers=2, dtype="int8", groups=(
        replace(FULL, kv_heads=1), replace(SLIDES, layers=1),
    ))  # fmt: skip
    plan = make_plan(model=even, backend="file", traits=traits_of("file"), store="slab")
    assert plan.slab_files > 0


def test_what_is_said_of_a_model_changes_nothing_that_is_measured() -> None:
    plan = make_plan(model=HYBRID)
    other = make_plan(model=replace(HYBRID, note="other", source="elsewhere"))
    assert plan.workload_digest == other.workload_digest
    assert plan.workload_digest != make_plan(model=replace(HYBRID, dtype="float16")).workload_digest
