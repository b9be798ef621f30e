"""A fixed amount of work by real ranks and the whole command: equal hits, and a time to finish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.__main__ import main
from tests.site import PATIENCE_S, PYTEST, SUITE, Site, output

if TYPE_CHECKING:
    from typing import Any

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

RANKS, REQUESTS = 2, 40


def measured(site: Site, *more: str) -> dict[str, Any]:
    """The one trial of the newest run file."""
    (site.path / "small.toml").write_text(
        "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
    )
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, f"--kv-np={RANKS}", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-model=small.toml", "--kv-trials=1", "--kv-scenario=chat", "--kv-num-users=5",
        f"--kv-requests={REQUESTS}", "--kv-storage-capacity-gb=160KiB", "--kv-block-tokens=64",
        "--kv-cache-dir=.", "--kv-allow-invalid", "--kv-metrics=run.s,run.write_gib_per_s",
        *more, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK, output(result)
    assert "until 40 requests of each rank are done" in " ".join(output(result).split())
    run_file = site.run_files()[-1]
    assert main(["verify", str(run_file)]) == 0
    trial: dict[str, Any] = json.loads(run_file.read_text())["cases"][0]["trials"][0]
    return trial


def test_real_ranks_do_the_same_work_on_any_storage_and_say_how_long_it_took(
    real_site: Site,
) -> None:
    runs = [
        measured(real_site, f"--kv-backend={backend}", *more)
        for backend, more in (
            ("null", ()),
            ("file", ()),
            ("slow", ("--kv-plugin=kvcache_test_backends", "--kv-queue-depth=3")),
        )
    ]
    for trial in runs:
        done = trial["requests"]
        assert (done["offered"], done["completed"]) == (RANKS * REQUESTS,) * 2
        span_s = max(rank["stop_s"] for rank in trial["ranks"]) - min(
            rank["start_s"] for rank in trial["ranks"]
        )
        assert trial["run"]["s"] == pytest.approx(span_s)
        assert trial["run"]["write_gib_per_s"] > 0
    names = ("prompt_blocks", "hit_blocks", "hit_ratio", "evictions", "populated_blocks")
    decided = [[trial["cache"][name] for name in names] for trial in runs]
    assert decided[0] == decided[1] == decided[2]
    assert decided[0][1] > 0
    assert decided[0][3] > 0
    assert [trial["write"]["count"] for trial in runs] == [runs[0]["write"]["count"]] * 3
    assert runs[2]["run"]["s"] > runs[0]["run"]["s"]
