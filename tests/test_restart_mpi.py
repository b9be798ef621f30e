"""A restart of real ranks: an index over what they stored, by a scan and by lookups."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvcache.__main__ import main
from tests.site import PATIENCE_S, PYTEST, SUITE, output

if TYPE_CHECKING:
    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

RANKS, OBJECTS = 2, 40


def measured(site: Site, *more: str) -> tuple[dict[str, Any], str]:
    """The one trial of the newest run file, and what was shown."""
    (site.path / "small.toml").write_text(
        "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
    )
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, f"--kv-np={RANKS}", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-scenario=chat", "--kv-num-users=5",
        "--kv-phase=restart", f"--kv-storage-capacity-gb={4 * OBJECTS}KiB",
        "--kv-block-tokens=64", "--kv-backend=file", "--kv-cache-dir=.", "--kv-allow-invalid",
        *more, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK, output(result)
    run_file = site.run_files()[-1]
    assert main(["verify", str(run_file)]) == 0
    trial: dict[str, Any] = json.loads(run_file.read_text())["cases"][0]["trials"][0]
    return trial, " ".join(output(result).split())


def test_real_ranks_find_again_what_they_stored(real_site: Site) -> None:
    for by, *more in (
        ("scan", "--kv-metrics=run.s,restart.p50_ms"),
        ("lookups", "--kv-engine=sglang-file", "--kv-slo=restart.objects_per_s>0"),
    ):
        trial, text = measured(real_site, f"--kv-restart-by={by}", *more)
        restart, ranks = trial["restart"], trial["ranks"]
        assert (restart["by"], restart["dropped_caches"]) == (by, False)
        assert (restart["count"], restart["objects"]) == (RANKS * OBJECTS,) * 2
        assert [rank["restart_objects"] for rank in ranks] == [OBJECTS] * RANKS
        assert restart["directories"] == (None if by == "lookups" else RANKS * 257)
        span_s = max(rank["stop_s"] for rank in ranks) - min(rank["start_s"] for rank in ranks)
        assert trial["run"]["s"] == pytest.approx(span_s)
        assert restart["objects_per_s"] == pytest.approx(RANKS * OBJECTS / span_s)
        assert trial["requests"]["offered"] == trial["read"]["count"] == 0
        assert trial["write"]["count"] == 0
        assert f"{RANKS * OBJECTS} objects of" in text
        assert "found again" in text
    left = [path.name for path in real_site.path.glob("kvcache-*")]
    assert not left
