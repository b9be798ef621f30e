"""Metrics with their values, and what stands behind them. Not a test module."""

from __future__ import annotations

from typing import Any

from pytest_kvcache.results.provenance import KINDS, Provenance
from pytest_kvcache.results.summary import MetricSeries

SERIES = "read.p99_ms"
CASE = "mixed-llama3.1-8b-np2"
STORAGE = Provenance(is_storage=True, verdicts=())
NO_STORAGE = Provenance(is_storage=False, verdicts=("NOT_STORAGE",))
IN_MEMORY = Provenance(is_storage=True, verdicts=("SHORT_WINDOW", "TMPFS"))


def reported(**facts: dict[str, Any]) -> Provenance:
    """Provenance of a run on storage, with these facts and no others."""
    every = {kind: facts.get(kind, {}) for kind in KINDS}
    return Provenance(is_storage=True, verdicts=(), facts=every)


def latency(*values: float) -> MetricSeries:
    """One p99 of reads per trial, ms."""
    return MetricSeries(name="read.p99_ms", unit="ms", better="lower", values=values)


def throughput(*values: float) -> MetricSeries:
    """One bandwidth of reads per trial."""
    return MetricSeries(name="read.gib_per_s", unit="GiB/s", better="higher", values=values)
