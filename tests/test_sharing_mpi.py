"""Real ranks that share a store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.backends.calls import FileCalls
from pytest_kvcache.backends.profiles import PROFILES
from pytest_kvcache.results.verify import verify_run
from tests.site import PATIENCE_S, PYTEST, SUITE, output

if TYPE_CHECKING:
    from typing import Any

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

SMALL = "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 128\ndtype = 'int8'\n"
SHARING = {
    name: row.calls
    for name, row in PROFILES.items()
    if row.lookup != "memory"
    and isinstance(row.calls, FileCalls)
    and row.calls.publish != "in-place"
}  # those of slots know in memory what is where


def measured(site: Site, *words: str) -> dict[str, Any]:
    """The one trial of a fixed amount of work; the run file is sound, nothing is left."""
    (site.path / "small.toml").write_text(SMALL)
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=2", "--kv-oversubscribe", "--kv-allow-run-as-root",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-requests=60", "--kv-num-users=6",
        "--kv-scenario=agent", "--kv-block-tokens=64", "--kv-context-scale=0.1",
        "--kv-metrics=run.s", "--kv-allow-invalid", "--kv-cache-dir=.", "--kv-verify=full",
        "--kv-sharing=run", *words, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    assert "shared by " in output(result)
    file = max(site.run_files(), key=lambda path: path.stat().st_mtime_ns)
    run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert not verify_run(run)
    assert not list(site.path.glob("kvcache-*"))
    trial: dict[str, Any] = run["cases"][0]["trials"][0]
    return trial


def test_what_one_rank_has_stored_another_one_hits(real_site: Site) -> None:
    trial = measured(real_site)
    sharing = trial["sharing"]
    assert sharing["other_hit_blocks"] > 0
    assert sharing["own_hit_blocks"] + sharing["other_hit_blocks"] == trial["cache"]["hit_blocks"]
    assert sharing["others_objects"] > 0
    assert (sharing["lost_blocks"], sharing["stale_lookups"]) == (0, 0)
    assert sharing["vanished_blocks"] == 0  # all fits, so nobody deletes
    assert trial["integrity"]["failed"] == 0
    assert trial["visibility"] is None  # there is one host
    # Of shared prompts one copy is there, whoever was first.
    assert len({rank["cached_blocks"] for rank in trial["ranks"]}) <= 2


def test_blocks_that_are_deleted_under_others_are_no_errors(real_site: Site) -> None:
    trial = measured(real_site, "--kv-storage-capacity-gb=1MiB")
    assert trial["delete"]["count"] > 0
    assert trial["sharing"]["lost_blocks"] == 0
    for rank in trial["ranks"]:
        assert rank["cached_bytes"] <= 1 << 20


@pytest.mark.parametrize("name", SHARING)
def test_an_engine_that_asks_the_storage_can_share_it(real_site: Site, name: str) -> None:
    trial = measured(real_site, f"--kv-engine={name}", "--kv-block-tokens=64")
    sharing = trial["sharing"]
    assert sharing["others_objects"] > 0  # of two that stored one prompt, one reads the other's
    # Where two write into one temporary file, a head does not tell whose the block is: what both
    # stored at once can count as each one's own.
    assert sharing["other_hit_blocks"] > 0 or (
        SHARING[name].shares_temporary and sharing["races_lost"] > 0
    )
    assert trial["sharing"]["lost_blocks"] == 0
    assert trial["integrity"]["failed"] == 0


def test_alone_a_rank_hits_as_much_of_a_shared_store_as_of_its_own(real_site: Site) -> None:
    """One user after the other: what is stored is there when it is asked for."""
    words = ("--kv-np=1", "--kv-num-users=1")
    shared = measured(real_site, *words)
    own = measured(real_site, *words, "--kv-lookup=all", "--kv-sharing=host")
    assert shared["cache"]["hit_blocks"] == own["cache"]["hit_blocks"] > 0
    assert shared["sharing"]["other_hit_blocks"] == 0
