"""One item per (case, metric); all metrics of a case share its launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_kvcache.fixture import KVCache
    from pytest_kvcache.planning import CaseName


# A case that failed leaves the benchmark fixture unused, and says so itself.
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")
def test_kvcache(benchmark: Any, kvcache: KVCache, kv_case: CaseName, kv_metric: str) -> None:
    """Run the case under mpirun and record the metric, one round per trial."""
    kvcache.record(benchmark, kv_case, kv_metric)
