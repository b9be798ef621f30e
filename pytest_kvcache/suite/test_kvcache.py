"""One item per (case, metric); all metrics of a case share its launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_kvcache.fixture import KVCache
    from pytest_kvcache.plan.planner import CaseName


def test_kvcache(kvcache: KVCache, kv_case: CaseName, kv_metric: str) -> None:
    """Run the case under mpirun and record the metric, one round per trial."""
    kvcache.record(kv_case, kv_metric)
