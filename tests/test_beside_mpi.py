"""Blocks beside prefixes and rereads, by real ranks on files: what the storage saw is exact."""

from __future__ import annotations

import pytest

from pytest_kvcache.__main__ import main
from tests.plugins.kvcache_test_chunks import CHUNKS, REREADS, TURNS
from tests.site import PATIENCE_S, PYTEST, SUITE, Site, output

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

USERS, RANKS = 4, 2


@pytest.mark.parametrize("factor", [0, 1])
def test_real_ranks_read_beside_prefixes_and_read_again_exactly_what_was_asked_for(
    real_site: Site, factor: int
) -> None:
    (real_site.path / "small.toml").write_text(
        "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
    )
    result = real_site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, f"--kv-np={RANKS}", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-plugin=kvcache_test_chunks",
        "--kv-scenario=chunks", f"--kv-num-users={USERS}", "--kv-duration=1", "--kv-ramp=0",
        "--kv-backend=file", "--kv-cache-dir=.", "--kv-verify=full", "--kv-allow-invalid",
        "--kv-metrics=cache.hit_ratio", f"--kv-reread-factor={factor}", timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK, output(result)
    trial = real_site.case()["trials"][0]
    cache, users = trial["cache"], USERS * RANKS
    prompts = users * TURNS * (TURNS + 1) // 2
    assert (cache["prompt_blocks"], cache["hit_blocks"]) == (prompts, prompts - users * TURNS)
    assert cache["beside_blocks"] == 2 * users * TURNS
    chunks = CHUNKS - cache["populated_blocks"] // RANKS  # of a rank, that were not there
    assert chunks == CHUNKS // 2
    assert cache["beside_hit_blocks"] == cache["beside_blocks"] - chunks * RANKS
    assert cache["reread_count"] == users * TURNS * (REREADS + factor)
    assert trial["write"]["count"] == users * TURNS + chunks * RANKS
    loaded = cache["hit_blocks"] + cache["beside_hit_blocks"]
    assert trial["read"]["count"] == loaded + cache["reread_count"]
    assert trial["requests"]["completed"] == users * TURNS
    assert main(["verify", str(real_site.run_file())]) == 0
