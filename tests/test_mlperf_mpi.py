"""An mlperf scenario by real ranks on files: run, verified, exported and imported again."""

from __future__ import annotations

import pytest

from pytest_kvcache.__main__ import main
from pytest_kvcache.workloads.mlperf import draw_users, object_tokens
from tests.site import PATIENCE_S, PYTEST, SUITE, Site, output

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

USERS, RANKS, SCALE = 12, 2, 0.05
TOKEN_BYTES = 1024


@pytest.mark.parametrize("tier", [[], ["--kv-cpu-mem-gb=0.002"]])
def test_real_ranks_store_objects_of_whole_turns_and_read_them_again(
    real_site: Site, tier: list[str]
) -> None:
    (real_site.path / "small.toml").write_text(
        "[small]\nlayers = 4\nkv_heads = 2\nhead_dim = 64\ndtype = 'int8'\n"
    )
    result = real_site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, f"--kv-np={RANKS}", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-scenario=mlperf-1",
        f"--kv-num-users={USERS}", f"--kv-context-scale={SCALE}", "--kv-duration=4",
        "--kv-backend=file", "--kv-cache-dir=.", "--kv-verify=full", "--kv-allow-invalid",
        "--kv-metrics=requests.per_s", *tier, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK, output(result)
    case = real_site.case()
    trial = case["trials"][0]
    cache, users = trial["cache"], [*draw_users(42, USERS), *draw_users(43, USERS)]
    assert "NO_SUBMISSION" in [verdict["code"] for verdict in trial["verdicts"]]
    assert (cache["hit_blocks"], cache["populated_blocks"]) == (0, 0)
    assert cache["prompt_blocks"] >= USERS * RANKS
    assert 0 < cache["beside_hit_blocks"] < cache["beside_blocks"]  # nobody stores the prompts
    longest = max(object_tokens(user.context_tokens, SCALE) for user in users)
    assert case["plan"]["block_tokens"] == 1_250 >= longest
    stored = trial["write"]["bytes"] / trial["write"]["count"]
    assert TOKEN_BYTES * 6 < stored < TOKEN_BYTES * longest
    if not tier:
        assert cache["reread_count"] > 2 * trial["write"]["count"]
        assert trial["read"]["count"] > cache["reread_count"]
    assert main(["verify", str(real_site.run_file())]) == 0
    exported = real_site.path / "exported"
    assert main(["mlperf", "export", str(real_site.run_file()), str(exported)]) == 0
    assert main(["mlperf", "import", str(exported)]) == 0
