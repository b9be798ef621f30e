"""Real ranks that store and load as engines do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.calls import BucketCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.results.verify import verify_run
from tests.site import PATIENCE_S, PYTEST, SUITE

if TYPE_CHECKING:
    from typing import Any

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

SMALL = "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 128\ndtype = 'int8'\n"


def measured(site: Site, *words: str) -> dict[str, Any]:
    """The one trial of a fixed amount of work; the run file is sound."""
    (site.path / "small.toml").write_text(SMALL)
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=2", "--kv-oversubscribe", "--kv-allow-run-as-root",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-requests=60", "--kv-num-users=6",
        "--kv-context-scale=0.1", "--kv-metrics=run.s", "--kv-allow-invalid", "--kv-cache-dir=.",
        "--kv-verify=full", *words, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    file = max(site.run_files(), key=lambda path: path.stat().st_mtime_ns)
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert not verify_run(run)
    trial: dict[str, Any] = run["cases"][0]["trials"][0]
    return trial


IN_BUCKETS = [name for name, row in PROFILES.items() if isinstance(row.calls, BucketCalls)]


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in IN_BUCKETS])
def test_ranks_do_the_same_work_with_the_calls_of_an_engine(real_site: Site, name: str) -> None:
    trial = measured(real_site, f"--kv-engine={name}", "--kv-block-tokens=64")
    assert {rank["io_engine"] for rank in trial["ranks"]} == {"threads"}
    assert trial["read"]["count"] > 0
    assert trial["write"]["count"] > 0
    assert trial["integrity"]["failed"] == 0
    assert trial["integrity"]["checked"] >= trial["read"]["count"]
    lookup, each = trial["lookup"], {"block": 1, "kv": 2}[PROFILES[name].layout]
    assert (lookup is not None) == (PROFILES[name].lookup != "memory")
    if lookup is not None:
        assert lookup["found_objects"] >= each * trial["cache"]["hit_blocks"]
        assert lookup["asked_objects"] >= lookup["found_objects"]
    if PROFILES[name].lookup == "all":
        assert lookup["asked_objects"] == each * trial["cache"]["prompt_blocks"]


@pytest.mark.parametrize("capacity", ["1GiB", "10MiB"])
@pytest.mark.parametrize("name", IN_BUCKETS)
def test_ranks_pack_blocks_into_buckets(real_site: Site, name: str, capacity: str) -> None:
    trial = measured(
        real_site, f"--kv-engine={name}", "--kv-block-tokens=8", "--kv-scenario=agent",
        "--kv-context-scale=0.5", f"--kv-storage-capacity-gb={capacity}",
    )  # fmt: skip
    cache, bucket = trial["cache"], 500
    assert trial["write"]["count"] > 0
    assert trial["read"]["count"] > 0
    assert trial["write"]["count"] % bucket == 0
    assert trial["integrity"]["failed"] == 0
    assert trial["integrity"]["checked"] >= trial["read"]["count"]
    assert cache["staged_hit_blocks"] > 0
    storage = cache["tiers"]["storage"]
    assert cache["staged_hit_blocks"] + storage["hit_blocks"] == cache["hit_blocks"]
    assert trial["delete"]["count"] * bucket == cache["evictions"]
    assert (cache["evictions"] > 0) == (capacity == "10MiB")
    assert all(rank["cached_bytes"] <= 10 << 20 for rank in trial["ranks"]) or capacity != "10MiB"


def test_hits_are_the_same_whoever_makes_the_calls(real_site: Site) -> None:
    words = ("--kv-block-tokens=64", "--kv-storage-capacity-gb=4MiB")
    found = [
        measured(real_site, *words, *more)["cache"]["hit_blocks"]
        for more in ((), ("--kv-engine=aibrix-shfs",), ("--kv-engine=vllm-disk",),
                     ("--kv-engine=sglang-nixl",))
    ]  # fmt: skip
    assert len(set(found)) == 1


def test_memory_in_front_is_not_asked_for(real_site: Site) -> None:
    trial = measured(
        real_site, "--kv-engine=vllm-fs", "--kv-block-tokens=64", "--kv-cpu-mem-gb=1MiB",
        "--kv-cpu-tier=index",
    )  # fmt: skip
    cache, lookup = trial["cache"], trial["lookup"]
    in_memory = cache["tiers"]["cpu"]["hit_blocks"]
    assert in_memory > 0
    assert lookup["asked_objects"] == cache["prompt_blocks"] - in_memory


def test_a_null_backend_takes_the_decisions_and_makes_no_calls(real_site: Site) -> None:
    trial = measured(real_site, "--kv-engine=vllm-fs", "--kv-block-tokens=64", "--kv-backend=null")
    assert {rank["io_engine"] for rank in trial["ranks"]} == {"inline"}
    assert trial["lookup"]["asked_objects"] == trial["cache"]["prompt_blocks"]
    assert trial["lookup"]["found_objects"] == trial["cache"]["hit_blocks"]


def test_a_phase_that_only_loads_asks_for_what_it_loads(real_site: Site) -> None:
    trial = measured(real_site, "--kv-engine=vllm-fs", "--kv-block-tokens=64", "--kv-phase=decode")
    assert trial["lookup"]["found_objects"] == trial["cache"]["hit_blocks"] > 0
