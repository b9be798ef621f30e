"""The one table of metrics: name, unit, direction, and where a trial holds it.

Pure; imports nothing of the package but the exception tree and the table of sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Better = Literal["lower", "higher"]
"""The direction in which a metric improves."""

PERCENTILES: Mapping[str, float] = MappingProxyType(
    {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
)
MIN_SAMPLES_BEYOND = 10  # a percentile is shown only if it rests on this many samples above it

ALWAYS_SHOWN = ("requests.per_s", "cache.hit_ratio")  # whatever --kv-metrics names
_KIND_OF = MappingProxyType({"read": "read", "load": "read", "write": "write", "delete": "delete"})


def never_makes(kind: str, phase: str) -> bool:
    """Whether ``phase`` makes no read, write or delete."""
    return not PHASES[phase].makes(kind)


def has_answers(phase: str) -> bool:
    """Whether the answers of ``phase`` wait for reads; else they say nothing of a storage."""
    return PHASES[phase].loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a trial.

    ``path`` leads to it in the trial's JSON; ``percentile`` is the percentile it is,
    or None; ``latency`` metrics are recorded in seconds, the others as reciprocals.
    """

    name: str
    unit: str
    better: Better
    path: tuple[str, ...]
    percentile: float | None = None
    latency: bool = False

    @property
    def section(self) -> str:
        """The part of the trial it belongs to, such as ``read``."""
        return self.path[0]

    def impossible(self, phase: str) -> str | None:
        """Why no run in ``phase`` can have it; None: it can."""
        if self.section == "request" and not has_answers(phase):
            return (
                f"--kv-phase={phase} makes no reads, and an answer that waits for none says nothing"
                " of the storage"
            )
        kind = _KIND_OF.get(self.section)
        if kind is None or not never_makes(kind, phase):
            return None
        return f"--kv-phase={phase} makes no {kind}s"

    @property
    def round_name(self) -> str:
        """What pytest-benchmark's times of this metric are, with the unit at its end."""
        if self.latency:
            return self.name
        what = self.name.removesuffix(".per_s").removesuffix(".gib_per_s")
        if what == self.name:  # a ratio
            return f"{self.name}.inverse"
        singular = self.unit.removesuffix("/s").removesuffix("s").lower()
        return f"{what}.s_per_{singular}"

    def of(self, trial: Mapping[str, Any]) -> float | None:
        """Its value in a trial's JSON, None where the trial has none."""
        value: Any = trial
        for key in self.path:
            if value is None:
                return None
            value = value[key]
        return None if value is None else float(value)

    def round_s(self, value: float) -> float:
        """What pytest-benchmark records for ``value``: seconds, or seconds per unit.

        Raises ResultError for 0 of a metric that is recorded as its reciprocal.
        """
        if self.latency:
            return value / 1000
        if not value:
            raise ResultError(
                f"{self.name} is 0, and is recorded as its reciprocal; leave it out of"
                " --kv-metrics, or judge it with --kv-slo"
            )
        return 1 / value


def _latency_metrics() -> Iterator[Metric]:
    for section in SECTIONS:
        for statistic in ("mean", *PERCENTILES, "max"):
            yield Metric(
                name=f"{section}.{statistic}_ms",
                unit="ms",
                better="lower",
                path=(section, "ms", statistic),
                percentile=PERCENTILES.get(statistic),
                latency=True,
            )


def _rate_metrics() -> Iterator[Metric]:
    for name, unit, path in (
        ("read.gib_per_s", "GiB/s", ("read", "gib_per_s")),
        ("write.gib_per_s", "GiB/s", ("write", "gib_per_s")),
        ("requests.per_s", "requests/s", ("requests", "per_s")),
        ("tokens.per_s", "tokens/s", ("tokens", "per_s")),
        ("cache.hit_ratio", "ratio", ("cache", "hit_ratio")),
        ("cache.hit_token_ratio", "ratio", ("cache", "hit_token_ratio")),
    ):
        yield Metric(name=name, unit=unit, better="higher", path=path)


METRICS: Mapping[str, Metric] = MappingProxyType(
    {metric.name: metric for metric in (*_latency_metrics(), *_rate_metrics())}
)


def possible(names: Sequence[str], phase: str) -> list[str]:
    """The metrics among ``names`` that a run in ``phase`` can have."""
    return [name for name in names if METRICS[name].impossible(phase) is None]
