"""What a store that ranks share brings of the options, and what it refuses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import Options, build_options
from pytest_kvcache.workloads.scenarios import TABLE
from tests.factories import layout_of, make_plan
from tests.plan.planned import plan_of

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan

SHARED: dict[str, Any] = {
    "backend": "file", "cache_dir": "/data", "sharing": "run", "lookup": "all", "publish": "link",
}  # fmt: skip


def options_of(texts: dict[str, str]) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


def planned(**texts: str) -> Plan:
    options = options_of({"backend": "file", "cache_dir": "/data", **texts})
    return plan_of(options, block_tokens=options.block_tokens or 256)


@pytest.mark.parametrize("sharing", ["host", "run"])
def test_a_shared_store_is_asked_and_its_objects_appear_whole(sharing: str) -> None:
    options = options_of({"sharing": sharing})
    assert (options.lookup, options.publish) == ("first-miss", "link")
    plan = planned(sharing=sharing)
    assert plan.shares
    assert plan.origins["lookup"] == plan.origins["publish"] == "--kv-sharing"
    assert plan.calls is not None


def test_a_store_of_ones_own_brings_nothing() -> None:
    options = options_of({"sharing": "rank"})
    assert (options.lookup, options.publish) == ("memory", "in-place")
    assert not planned(sharing="rank").shares


def test_an_engine_asks_and_publishes_in_its_own_way() -> None:
    options = options_of({"sharing": "run", "engine": "vllm-fs"})
    assert (options.lookup, options.publish) == ("all", "rename")
    plan = planned(sharing="run", engine="vllm-fs")
    assert plan.changed == ()
    assert plan.origins["lookup"] == "vllm-fs"


def test_only_hosts_that_share_one_store_see_what_others_stored() -> None:
    together = make_plan(layout=layout_of(n1=2, n2=1), **SHARED)
    assert together.shares_between_hosts
    assert [together.group_of(rank) for rank in range(3)] == [0, 0, 0]
    apart = make_plan(layout=layout_of(n1=2, n2=1), **SHARED | {"sharing": "host"})
    assert not apart.shares_between_hosts
    assert [apart.group_of(rank) for rank in range(3)] == [0, 0, 1]
    assert apart.sharers_of(1) == (0, 1)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"sharing": "all"}, "--kv-sharing is 'all'; it must be one of rank, host, run"),
        ({"lookup": "memory"}, "--kv-lookup=memory knows only what this rank has stored"),
        ({"publish": "in-place"}, "where others would find them half written"),
        ({"engine": "vllm-disk"}, "keeps objects in slots of a file of its own"),
        ({"engine": "mooncake-offset"}, "keeps objects in slots of a file of its own"),
        ({"engine": "lmcache-local-disk"}, "--kv-engine=lmcache-local-disk knows only what this"),
        ({"cpu_mem_gb": "1GiB"}, "can't go with --kv-cpu-mem-gb yet"),
        ({"gpu_mem_gb": "1GiB"}, "can't go with --kv-gpu-mem-gb yet"),
        ({"layout": "layer"}, "can't go with --kv-layout=layer yet"),
        ({"layout": "kv"}, "can't go with --kv-layout=kv yet"),
        ({"engine": "sglang-nixl"}, "where others would find them half written"),
        ({"reread_factor": "2"}, "can't go with --kv-reread-factor yet"),
        ({"io_trace": "file.jsonl"}, "can't go with --kv-io-trace yet"),
        ({"enable_rag": "true"}, "can't go with --kv-enable-rag yet"),
        ({"interference": "true"}, "can't go with --kv-interference yet"),
        ({"fill": "90%"}, "can't go with --kv-fill yet"),
        ({"phase": "prefill"}, "can't go with --kv-phase=prefill yet"),
        ({"store": "slab"}, "--kv-sharing is run, which has a way of its own to keep objects"),
        ({"io_engine": "io_uring"}, "--kv-sharing is run, whose calls are made one"),
        ({"precondition": "1GiB"}, "--kv-sharing is run, and --kv-precondition overwrites"),
        ({"sharing": "rank", "metrics": "visibility.p95_ms"}, "needs a store that ranks share"),
    ],
)  # fmt: skip
def test_what_one_rank_alone_knows_or_does_is_refused(texts: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)) as refused:
        options_of({"sharing": "run", **texts})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "null"}, "--kv-backend is null, which keeps nothing in a directory"),
        ({"dialogues": TABLE.dialogues("rag")}, "read documents beside their prefixes"),
        ({"own_block_bytes": 1 << 20}, "has objects that no other rank has"),
        ({"lookup": "memory"}, "lookup is memory and publish link"),
    ],
)
def test_what_has_no_name_of_its_content_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)):
        make_plan(**SHARED | changes)
