"""What an engine profile brings of the options, and what can't go with it."""

from __future__ import annotations

import re

import pytest

from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.engines import brought_by
from pytest_kvcache.options.options import Options, Origin, build_options


def typed(**texts: str) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_brings_its_values(name: str) -> None:
    options, profile = typed(engine=name), PROFILES[name]
    assert {each: getattr(options, each) for each in brought_by(name)} == brought_by(name)
    assert (options.block_tokens, options.io, options.sync) == (
        profile.block_tokens, profile.io, "none",
    )  # fmt: skip
    assert options.queue_depth == profile.readers + profile.writers
    publish = profile.calls.publish if isinstance(profile.calls, FileCalls) else "in-place"
    assert (options.lookup, options.publish) == (profile.lookup, publish)


@pytest.mark.parametrize("origin", ["command line", "ini", "call"])
def test_what_is_given_wins_over_the_profile(origin: Origin) -> None:
    texts = {"request_depth": "all", "io": "buffered", "engine": "vllm-fs"}
    options = build_options({name: (text, origin) for name, text in texts.items()})
    assert (options.request_depth, options.io) == (None, "buffered")
    assert options.lookup == "all"


def test_without_a_profile_nothing_is_another_way() -> None:
    options = typed()
    assert (options.engine, options.lookup, options.publish) == (None, "memory", "in-place")
    assert options.request_depth is None


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"engine": "vllm"}, "--kv-engine is 'vllm'"),
        ({"engine": "vllm-fs", "store": "slab"}, "engine is vllm-fs, which has a way of its own"),
        ({"engine": "vllm-fs", "sync": "data"}, "no engine syncs what it stores"),
        ({"publish": "rename", "sync": "data"}, "--kv-publish is rename, and --kv-sync is data"),
        ({"lookup": "all", "store": "slab"}, "--kv-lookup is all, which has a way of its own"),
        ({"engine": "vllm-fs", "io_engine": "io_uring"}, "made one after the other by threads"),
        ({"engine": "sglang-nixl", "io_engine": "libaio"}, "calls are made in batches by threads"),
        ({"engine": "sglang-nixl", "publish": "rename"}, "under their own names, and --kv-publish"),
        ({"engine": "sglang-nixl", "transfer_size": "4MiB"}, "moves any, each by one call, and"),
        ({"engine": "vllm-fs", "precondition": "1GiB"}, "overwrites objects in place"),
        ({"engine": "vllm-disk", "publish": "rename"}, "a slot has no name"),
        ({"engine": "vllm-disk", "lookup": "all"}, "slot holds what is known in memory alone"),
        ({"engine": "vllm-disk", "store": "file"}, "slots of one file, and --kv-store is file"),
        ({"engine": "kvbm-disk", "keep": "true"}, "nothing of it could be kept"),
        ({"lookup": "all", "phase": "prefill"}, "--kv-phase=prefill loads nothing"),
        ({"request_depth": "64", "queue_depth": "4"}, "--kv-request-depth is 64 and --kv-queue"),
        ({"autoscaler_mode": "predictive", "enable_autoscaling": "true", "num_users": "4"},
         "give at least 8"),
        ({"engine": "mooncake-offset", "io": "direct"}, "headers of a few bytes before them"),
        ({"engine": "kvbm-disk", "transfer_size": "4MiB"}, "each moved by one call"),
        *(
            ({"engine": "mooncake-bucket", name: text}, f"buckets and can't go with {flag}")
            for name, text, flag in (
                ("publish", "rename", "--kv-publish=rename"),
                ("lookup", "all", "--kv-lookup=all"),
                ("store", "file", "--kv-store=file"),
                ("io", "direct", "--kv-io=direct"),
                ("transfer_size", "4MiB", "--kv-transfer-size"),
                ("queue_depth", "16", "--kv-queue-depth"),
                ("request_depth", "1", "--kv-request-depth"),
                ("layout", "kv", "--kv-layout=kv"),
                ("fill", "50%", "--kv-fill"),
                ("interference", "true", "--kv-interference"),
                ("io_trace", "trace", "--kv-io-trace"),
            )
        ),
        ({"request_depth": "0"}, "--kv-request-depth is 0; it must be at least 1, or all"),
        ({"request_depth": "some"}, "or all"),
        ({"lookup": "some"}, "--kv-lookup is 'some'; it must be one of memory, first-miss, all"),
        ({"publish": "copy"}, "--kv-publish is 'copy'; it must be one of in-place, rename, link"),
        ({"metrics": "lookup.p95_ms"}, "lookup.p95_ms, which needs a storage that is asked"),
    ],
)  # fmt: skip
def test_what_contradicts_is_one_sentence(texts: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=re.escape(said)) as refused:
        typed(**texts)
    assert "\n" not in str(refused.value)


def test_a_metric_of_lookups_goes_with_an_engine_that_makes_some() -> None:
    assert typed(engine="vllm-fs", metrics="lookup.p95_ms").metrics == ("lookup.p95_ms",)
    with pytest.raises(OptionError, match=r"--kv-phase=prefill makes no reads"):
        typed(engine="vllm-fs", metrics="lookup.p95_ms", phase="prefill")
