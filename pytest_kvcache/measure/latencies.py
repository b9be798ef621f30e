"""What people read of a histogram: mean, percentiles and maximum, where it has enough for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_kvcache.measure.metrics import MIN_SAMPLES_BEYOND, PERCENTILES

if TYPE_CHECKING:
    from pytest_kvcache.measure.histogram import Histogram

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Mean, percentiles and maximum in ms; None where too few samples lie beyond it."""

    mean: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    p999: float | None
    max: float | None

    @classmethod
    def of(cls, histogram: Histogram, censored: int = 0) -> Latencies:
        """Those of a histogram.

        ``censored`` began and were not seen to end: longer than all others, for all we know.
        """
        whole = not censored
        found = {name: _percentile_ms(histogram, q, censored) for name, q in PERCENTILES.items()}
        return cls(
            mean=_ms(histogram.mean_ns()) if whole else None,
            max=_ms(histogram.max_ns) if whole else None,
            **found,
        )


def _percentile_ms(histogram: Histogram, q: float, censored: int) -> float | None:
    if histogram.samples_beyond(q, censored=censored) < MIN_SAMPLES_BEYOND:
        return None
    return _ms(histogram.percentile_ns(q, censored=censored))


def _ms(value_ns: float | None) -> float | None:
    return None if value_ns is None else value_ns / _NS_PER_MS
