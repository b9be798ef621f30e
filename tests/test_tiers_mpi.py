"""Recorded traces through memory tiers and a storage, by real ranks and the whole command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.recordings import MOONCAKE, REFERENCE, TWO_TIERS, trace_path
from tests.site import PATIENCE_S, PYTEST, SUITE

if TYPE_CHECKING:
    from typing import Any

    from tests.site import Site

pytestmark = [pytest.mark.mpi, pytest.mark.thorough]

# Blocks of 512 tokens are 1 KiB and, like everything that is stored, padded to a page.
SMALL = "[small]\nlayers = 1\nkv_heads = 1\nhead_dim = 1\ndtype = 'int8'\n"
PAGE = 4096


def replayed(site: Site, memory: int, storage: int, policy: str, *more: str) -> dict[str, Any]:
    """The one trial of the trace, its requests decided one after another."""
    (site.path / "small.toml").write_text(SMALL)
    result = site.pytester.runpytest_subprocess(
        *PYTEST, *SUITE, "--kv-np=1", "--kv-allow-run-as-root", "--kv-model=small.toml",
        "--kv-trials=1", f"--kv-trace={trace_path(MOONCAKE)}", "--kv-trace-speedup=0",
        f"--kv-cpu-mem-gb={memory * PAGE}B", f"--kv-storage-capacity-gb={storage * PAGE}B",
        f"--kv-tier-policy={policy}", "--kv-metrics=cache.storage_hit_ratio",
        "--kv-allow-invalid", *more, timeout=2 * PATIENCE_S,
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    trial: dict[str, Any] = site.case()["trials"][0]
    return trial


@pytest.mark.parametrize(
    ("capacities", "policy", "hits", "stored", "more"),
    [
        (*row[1:], more)
        for row in TWO_TIERS
        for capacities, more in (
            ((439, 4_392), ("--kv-backend=null", "--kv-cpu-tier=index")),
            ((2_196, 21_962), ("--kv-backend=file", "--kv-cache-dir=.")),
        )
        if row[:2] == (MOONCAKE, capacities)
    ],
)  # fmt: skip
def test_a_recorded_trace_hits_and_stores_in_every_tier_what_its_table_says(  # noqa: PLR0917
    real_site: Site,
    capacities: tuple[int, int],
    policy: str,
    hits: tuple[int, int],
    stored: int,
    more: tuple[str, ...],
) -> None:
    trial = replayed(real_site, *capacities, policy, *more)
    cache = trial["cache"]
    cpu, storage = cache["tiers"]["cpu"], cache["tiers"]["storage"]
    assert cache["tiers"]["gpu"] is None
    assert cache["prompt_blocks"] == REFERENCE[MOONCAKE].prompt_blocks
    assert (cpu["hit_blocks"], storage["hit_blocks"]) == hits
    assert cache["hit_blocks"] == sum(hits)
    assert (storage["stored_blocks"], storage["blocks"]) == (stored, capacities[1])
    assert (cpu["blocks"], cpu["bytes"]) == (capacities[0], cpu["capacity_bytes"])
    assert trial["read"]["count"] == hits[1]
    demotes = policy == "demote"
    moved = trial["demote"] if demotes else trial["write"]
    assert moved["count"] == stored
    assert demotes or trial["demote"] is None
    assert not demotes or trial["write"]["count"] == 0
    holds = "--kv-cpu-tier=index" not in more
    assert (trial["cpu_read"] is not None) == holds
    if holds:
        assert trial["cpu_read"]["count"] == hits[0]
        promoted = None if demotes else trial["cpu_promote"]["count"] * 1_024
        assert cpu["promoted_in_bytes"] == (promoted or 0)
        assert trial["integrity"]["checked"] == sum(hits) + trial["integrity"]["read_back"]
    assert trial["integrity"]["failed"] == 0
    if "--kv-backend=file" in more:
        assert trial["proof"]["writes"]["verdict"] is not None
        assert trial["proof"]["requested_write_bytes"] == stored * PAGE
