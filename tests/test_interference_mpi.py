"""Real ranks that load the same contexts with stores beside them and without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_kvcache.__main__ import main
from tests.site import PATIENCE_S, PYTEST, SUITE, output

if TYPE_CHECKING:
    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

RANKS, REQUESTS = 2, 700
P99 = "interference.request_p99_ratio"


def test_both_sides_load_the_very_same_bytes_and_one_stores(
    real_site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """In room for little more than the contexts: what is stored displaces nothing to be loaded."""
    (real_site.path / "small.toml").write_text(
        "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
    )
    result = real_site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, f"--kv-np={RANKS}", "--kv-allow-run-as-root", "--kv-oversubscribe",
        "--kv-model=small.toml", "--kv-trials=2", "--kv-scenario=chat", "--kv-num-users=5",
        f"--kv-requests={REQUESTS}", "--kv-block-tokens=64", "--kv-storage-capacity-gb=1MiB",
        "--kv-cache-dir=.", "--kv-allow-invalid", "--kv-interference", f"--kv-metrics={P99},run.s",
        timeout=2 * PATIENCE_S,
    )  # fmt: skip
    text = output(result)
    assert result.ret == pytest.ExitCode.OK, text
    assert "2 pairs of launches" in " ".join(text.split())
    run_file = real_site.run_file()
    assert main(["verify", str(run_file)]) == 0
    assert "as the records of 4 trials say" in capsys.readouterr().out
    cases = {case["name"]: case for case in json.loads(run_file.read_text())["cases"]}
    assert len(cases["chat-small-np2"]["summary"][P99]["values"]) == 2
    for trial, alone in zip(
        cases["chat-small-np2"]["trials"],
        cases["chat-small-np2-without-stores"]["trials"],
        strict=True,
    ):
        sides = trial["interference"]
        for name in ("loads", "bytes_per_load"):
            assert sides["with_stores"][name] == sides["without_stores"][name] > 0
        assert sides["with_stores"]["loads"] == RANKS * REQUESTS
        assert (trial["cache"]["hit_ratio"], alone["cache"]["hit_ratio"]) == (1, 1)
        assert trial["cache"]["evictions"] > 0
        assert trial["write"]["count"] > 0
        assert (alone["write"]["count"], alone["write"]["gib_per_s"]) == (0, None)
        assert sides["request_p99_ratio"] > 0
