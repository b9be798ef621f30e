"""What an engine profile makes of a plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pytest_kvcache.backends.buffers import Workers
from pytest_kvcache.backends.calls import OURS, BucketCalls, FileCalls, SlotCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import build_options
from pytest_kvcache.plan.backendrules import check_backend
from pytest_kvcache.plan.plan import Plan
from pytest_kvcache.report.engine import describe_engine
from pytest_kvcache.report.tables import describe_plan
from pytest_kvcache.units import MIB
from pytest_kvcache.workloads.protocol import Need
from tests.factories import traits_of
from tests.plan.planned import plan_of


def planned(**texts: str) -> Plan:
    options = build_options({name: (text, "command line") for name, text in texts.items()})
    return plan_of(options, block_tokens=options.block_tokens or 256)


@pytest.mark.parametrize("name", PROFILES)
def test_a_plan_has_the_calls_of_its_engine_and_comes_back_from_json(name: str) -> None:
    plan, profile = planned(engine=name), PROFILES[name]
    assert plan.calls == profile.calls
    assert plan.changed == ()
    assert plan.chunk_bytes == plan.object_stored_bytes
    assert plan.asks_storage == (profile.lookup != "memory")
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.origins["request_depth"] == plan.origins["io"] == name


def test_what_is_given_is_told_as_a_change() -> None:
    plan = planned(engine="vllm-fs", request_depth="all", io="buffered")
    assert plan.changed == ("io", "request_depth")
    assert plan.origins["io"] == "command line"
    told = "by the calls of vllm-fs (changed: --kv-io, --kv-request-depth), published by rename"
    assert told in describe_plan(plan)
    assert planned(engine="vllm-fs", request_depth="1").changed == ()


def test_two_plans_of_different_engines_measure_different_things() -> None:
    same = {"block_tokens": "16", "io": "direct", "queue_depth": "4"}
    digests = {planned(engine=name, **same).workload_digest for name in ("vllm-fs", "aibrix-shfs")}
    assert len({*digests, planned(**same).workload_digest}) == 3


def test_no_engine_and_no_knob_are_our_own_way() -> None:
    plan = planned()
    assert (plan.calls, plan.workers, plan.asks_storage) == (None, None, False)
    assert describe_engine(plan) == ""


def test_a_knob_alone_is_a_file_per_object_by_as_many_workers_as_the_queue_is_deep() -> None:
    plan = planned(publish="link", queue_depth="5")
    assert isinstance(plan.calls, FileCalls)
    assert (plan.calls.publish, plan.calls.levels) == ("link", OURS.levels)
    assert plan.workers == Workers.of_all(5, None)
    assert planned(request_depth="2").workers == Workers.of_all(16, 2)
    assert planned(request_depth="2").calls is None


def test_a_transfer_size_is_the_largest_call_of_an_object_that_moves_whole() -> None:
    plan = planned(engine="lmcache-fs", transfer_size="4KiB")
    assert isinstance(plan.calls, FileCalls)
    assert (plan.calls.write_bytes, plan.calls.read_bytes) == (4096, 4096)
    assert plan.chunk_bytes == plan.object_stored_bytes
    assert plan.changed == ("transfer_size",)


@pytest.mark.parametrize(
    ("texts", "workers"),
    [
        ({"engine": "vllm-fs"}, Workers.of_all(32, 1)),
        ({"engine": "sglang-file"}, Workers(readers=1, writers=1, lanes=1)),
        ({"engine": "sglang-file", "queue_depth": "6"}, Workers.of_all(6, 1)),
        ({"engine": "lmcache-fs-native"}, Workers.of_all(4, 4, tiles=True)),
        ({"engine": "lmcache-local-disk"}, Workers(readers=4, writers=4, lanes=None)),
        ({"engine": "sglang-nixl"}, Workers.of_batches(256, None)),
        ({"engine": "sglang-nixl", "queue_depth": "9"}, Workers.of_batches(4, None)),
        ({"engine": "sglang-nixl", "queue_depth": "1"}, Workers.of_batches(1, None)),
        ({"engine": "sglang-nixl", "request_depth": "8"}, Workers.of_batches(8, None)),
    ],
)
def test_workers_are_those_of_the_engine_unless_a_depth_is_given(
    texts: dict[str, str], workers: Workers
) -> None:
    assert planned(**texts).workers == workers


def test_buffers_are_one_for_each_worker_and_some_to_check_what_was_read() -> None:
    plan = planned(engine="sglang-file")
    assert plan.buffer_bytes == (2 + 1 + 2) * plan.chunk_bytes
    assert plan.chunk_bytes < MIB


def test_keys_and_values_apart_are_two_objects_in_one_batch() -> None:
    plan = planned(engine="sglang-nixl")
    assert (plan.object_layout, plan.objects_per_block) == ("kv", 2)
    assert 2 * plan.object_bytes == plan.block_bytes
    assert plan.batch_submits == 64
    assert "a request's in batches of up to 256 objects" in describe_plan(plan)
    assert "2 objects of 64 B (its keys and its values)" in describe_plan(plan)
    assert planned(engine="sglang-file").batch_submits is planned().batch_submits is None


def test_phases_without_loads_ask_for_nothing() -> None:
    assert not planned(engine="vllm-fs", phase="prefill").asks_storage


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"engine": "vllm-fs", "backend": "memory"}, "--kv-engine is vllm-fs and --kv-backend is"),
        ({"lookup": "all", "backend": "memory"}, "--kv-lookup is all and --kv-backend is memory"),
        ({"publish": "rename", "backend": "memory"}, "--kv-publish is rename and --kv-backend is"),
    ],
)
def test_a_backend_that_makes_no_calls_refuses_them(texts: dict[str, str], said: str) -> None:
    options = build_options({name: (text, "command line") for name, text in texts.items()})
    with pytest.raises(OptionError, match=said):
        check_backend(options, traits_of(options.backend))


def test_slots_of_one_size_refuse_objects_of_several() -> None:
    options = build_options({"engine": ("vllm-disk", "command line")})
    with pytest.raises(OptionError, match="slots of one size"):
        plan_of(options, block_tokens=16, own_block_bytes=1 << 20, sizes_differ=True)
    assert isinstance(planned(engine="vllm-disk").calls, SlotCalls)


def test_calls_of_an_engine_are_never_synced_however_files_are_opened() -> None:
    assert planned(publish="rename", io="buffered").sync == "none"
    assert planned(engine="lmcache-fs").sync == "none"
    assert planned(io="buffered").sync == "data"


def test_what_a_profile_says_is_part_of_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(engine="vllm-fs")
    before = plan.workload_digest
    calls = PROFILES["lmcache-fs"].calls
    changed = {"vllm-fs": replace(PROFILES["vllm-fs"], calls=calls)}
    monkeypatch.setattr("pytest_kvcache.plan.plan.PROFILES", changed)
    assert plan.workload_digest != before


def test_a_header_beside_each_object_takes_room_of_the_capacity() -> None:
    plain, headed = (
        planned(engine=name, storage_capacity_gb="1MiB")
        for name in ("vllm-disk", "mooncake-offset")
    )
    assert headed.capacity_blocks == (1 << 20) // (headed.stored_bytes + 4096)
    assert headed.capacity_blocks < plain.capacity_blocks


def test_what_is_allocated_ahead_is_all_of_the_capacity() -> None:
    sparse, allocated = (
        planned(engine=name, storage_capacity_gb="1GiB") for name in ("vllm-disk", "kvbm-disk")
    )
    assert sparse.most_blocks == sparse.need_blocks < sparse.capacity_blocks
    assert allocated.most_blocks == allocated.capacity_blocks


def test_a_bucket_has_as_many_blocks_as_fit_into_it() -> None:
    plan = planned(engine="mooncake-bucket", storage_capacity_gb="1GiB")
    assert (plan.in_buckets, plan.bucket_blocks) == (True, 500)
    assert plan.workers == replace(
        Workers.of_batches(500, None), lanes=1, read_batches=16, packs=True
    )
    assert plan.bucket_readers == 16
    assert plan.most_waiting_stores == 2_000
    assert plan.disk_bytes_per_block == plan.stored_bytes + 256
    assert "packed into buckets of " in describe_plan(plan)
    assert (planned().in_buckets, planned().bucket_blocks) == (False, 0)
    assert BucketCalls(objects=500, size_bytes=256 * MIB, readers=1).blocks(2 * MIB) == 128
    assert BucketCalls(objects=500, size_bytes=256 * MIB, readers=1).blocks(300 * MIB) == 1
    with pytest.raises(OptionError, match="objects are 513; a bucket must have one"):
        BucketCalls(objects=513, size_bytes=MIB, readers=1)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"storage_capacity_gb": "32KiB"}, "holds 7 of the 500 blocks of one; raise --kv-st"),
        ({"cpu_mem_gb": "1GiB"}, "--kv-cpu-mem-gb puts a memory tier in front"),
        ({"reread_factor": "2"}, "--kv-reread-factor is 2"),
        ({"layout": "layer"}, "objects into buckets"),
    ],
)
def test_what_can_not_be_packed_into_buckets_is_refused(texts: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        planned(engine="mooncake-bucket", **texts)


@pytest.mark.parametrize(
    ("given", "need_blocks", "capacity_blocks"),
    [
        ("5MiB", 10_000, 1_000),  # two buckets of 2.08 MiB, and what would be 230 blocks more
        ("5MiB", 1_100, 1_204),  # all there will be
        ("0", 1_100, 1_100),
        ("0", 3, 500),  # the need decides, and is less than a bucket
    ],
)
def test_a_capacity_is_of_whole_buckets_unless_all_blocks_fit(
    given: str, need_blocks: int, capacity_blocks: int
) -> None:
    options = build_options({
        "engine": ("mooncake-bucket", "ini"), "storage_capacity_gb": (given, "ini"),
    })  # fmt: skip
    plan = plan_of(options, need=Need(working_set_blocks=need_blocks))
    assert plan.bucket_blocks == 500
    assert plan.capacity_blocks == capacity_blocks


def test_the_words_on_buckets_are_those_of_the_phase() -> None:
    def said(phase: str) -> str:
        return describe_engine(planned(engine="mooncake-bucket", phase=phase))

    reads = ", read an object of each of 16 requests at a time"
    assert said("both").endswith(reads)
    assert "of a request at a time" not in said("both")
    assert reads not in said("prefill")


def test_buckets_refuse_objects_of_several_sizes() -> None:
    options = build_options({"engine": ("mooncake-bucket", "command line")})
    with pytest.raises(OptionError, match="packs objects into buckets, all of one size"):
        plan_of(options, block_tokens=16, own_block_bytes=1 << 20, sizes_differ=True)


@pytest.mark.parametrize(
    ("texts", "inodes"),
    [
        ({}, 0),  # slabs
        ({"store": "file"}, 1_000),
        ({"publish": "rename"}, 1_000 + 256),
        ({"engine": "sglang-file"}, 1_000),
        ({"engine": "vllm-fs"}, 3 * 1_000),
        ({"engine": "aibrix-shfs"}, 1_000 + 256 + 1_000),
        ({"engine": "vllm-disk"}, 0),
        ({"engine": "mooncake-bucket"}, 2 * 2),
        ({"engine": "sglang-nixl"}, 2 * 1_000 + 256),
    ],
)
def test_a_plan_knows_how_many_files_and_directories_there_will_be(
    texts: dict[str, str], inodes: int
) -> None:
    assert planned(**texts).most_inodes == inodes
