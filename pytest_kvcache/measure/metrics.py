"""The one table of metrics: name, unit, direction, and where a trial holds it.

Pure; imports nothing of the package but the exception tree and the table of sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, SECTIONS, TIERS
from pytest_kvcache.phases import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Better = Literal["lower", "higher"]
"""The direction in which a metric improves."""

PERCENTILES: Mapping[str, float] = MappingProxyType(
    {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
)
MIN_SAMPLES_BEYOND = 10  # a percentile is shown only if it rests on this many samples above it


def samples_for(percentile: float) -> int:
    """How many samples a percentile needs."""
    return round(100 * MIN_SAMPLES_BEYOND / (100 - percentile))


ALWAYS_SHOWN = (  # whatever --kv-metrics names, of those that there can be
    "restart.objects_per_s", "restart.p50_ms", "restart.p99_ms",
    "requests.per_s", "cache.hit_ratio",
)  # fmt: skip
_KIND_OF = MappingProxyType(
    {
        "read": "read",
        "lookup": "read",
        "visibility": "read",
        "load": "read",
        "write": "write",
        "delete": "delete",
        "demote": "write",
    }
    | {name: "read" if name.endswith("_read") else "write" for name in MEMORY_SECTIONS}
)


def never_makes(what: str, phase: str) -> bool:
    """Whether ``phase`` makes none of a section: no read, write or delete that it is of."""
    return not PHASES[phase].makes(_KIND_OF.get(what, what))


def has_answers(phase: str) -> bool:
    """Whether the answers of ``phase`` wait for reads; else they say nothing of a storage."""
    return PHASES[phase].loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number of a trial.

    ``path`` leads to it, in a trial and in its JSON alike; ``percentile`` is the percentile it is,
    or None; ``latency`` metrics and times are recorded in seconds, and as reciprocals what is
    better when higher. ``needs`` is the option without which it is absent, ``of_kind`` what it
    tells of where its section does not say that.
    """

    name: str
    unit: str
    better: Better
    path: tuple[str, ...]
    percentile: float | None = None
    latency: bool = False
    needs: str | None = None
    of_kind: str | None = None

    @property
    def section(self) -> str:
        """The part of the trial it belongs to, such as ``read``."""
        return self.path[0]

    @property
    def of_the_whole(self) -> bool:
        """Whether it is sound of a fixed amount of work whose ranks ended at different times.

        Rates are of the common window, and latencies of loads that grew lighter meanwhile. Those
        of a restart are told with it, whose load is what the ranks have stored.
        """
        return self.section in {"run", "cache", "restart"}

    @property
    def kind(self) -> str | None:
        """What it tells of: reads, writes or deletes; None: of none of them alone."""
        what = self.path[1].removesuffix("_gib_per_s") if self.section == "run" else self.section
        return self.of_kind or _KIND_OF.get(what)

    @property
    def of_a_pair(self) -> bool:
        """Whether it is of two launches, and no single one has it."""
        return self.section == "interference"

    @property
    def limits_a_load(self) -> bool:
        """Whether more users make it no better: what an objective of a load is of."""
        return self.latency or self.unit == "ratio"

    @property
    def tells_of_loads(self) -> bool:
        """Whether it tells what the tokens of hit prefixes are worth."""
        return self.section == "worth" and self.kind == "read"

    def impossible(self, phase: str) -> str | None:
        """Why no run in ``phase`` can have it; None: it can."""
        restarts = PHASES[phase].restarts
        if restarts or self.section == "restart":
            return self._of_restart(phase, restarts=restarts)
        if self.section == "request" and not has_answers(phase):
            return (
                f"--kv-phase={phase} makes no reads, and an answer that waits for none says nothing"
                " of the storage"
            )
        if self.kind is None or not never_makes(self.kind, phase):
            return None
        return f"--kv-phase={phase} makes no {self.kind}s"

    def _of_restart(self, phase: str, *, restarts: bool) -> str | None:
        if not restarts:
            return f"only --kv-phase=restart finds again what was stored, and this one is {phase}"
        if self.section == "restart" or self.name == "run.s":
            return None
        return f"--kv-phase={phase} makes no requests"

    @property
    def round_name(self) -> str:
        """What pytest-benchmark's times of this metric are, with the unit at its end."""
        if self.better == "lower":
            return self.name
        what = self.name.removesuffix(".per_s").removesuffix(".gib_per_s")
        what = what.removesuffix("_gib_per_s").removesuffix("_per_s")
        if what == self.name:  # a ratio
            return f"{self.name}.inverse"
        singular = self.unit.removesuffix("/s").removesuffix("s").lower()
        return f"{what}.s_per_{singular}"

    def of(self, trial: object) -> float | None:
        """The metric's value of a trial, None where the trial has none."""
        value: Any = trial
        for name in self.path:
            if value is None:
                return None
            value = getattr(value, name)
        return None if value is None else float(value)

    def round_s(self, value: float) -> float:
        """What pytest-benchmark records for ``value``: seconds, or seconds per unit.

        Raises ResultError for 0 of a metric that is recorded as its reciprocal.
        """
        if self.latency:
            return value / 1000
        if self.better == "lower":  # as pytest-benchmark has it of all it records
            return value
        if not value:
            raise ResultError(
                f"{self.name} is 0, and is recorded as its reciprocal; leave it out of"
                " --kv-metrics, or judge it with --kv-slo"
            )
        return 1 / value


_NEEDS = MappingProxyType({"lookup": "lookup", "visibility": "sharing"})
"""Section → the option that brings it."""


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
                needs=_NEEDS.get(section),
            )


def _rate_metrics() -> Iterator[Metric]:
    yield Metric(name="run.s", unit="s", better="lower", path=("run", "s"))
    for name, unit, path in (
        ("read.gib_per_s", "GiB/s", ("read", "gib_per_s")),
        ("write.gib_per_s", "GiB/s", ("write", "gib_per_s")),
        ("demote.gib_per_s", "GiB/s", ("demote", "gib_per_s")),
        ("run.read_gib_per_s", "GiB/s", ("run", "read_gib_per_s")),
        ("run.write_gib_per_s", "GiB/s", ("run", "write_gib_per_s")),
        ("restart.objects_per_s", "objects/s", ("restart", "objects_per_s")),
        ("requests.per_s", "requests/s", ("requests", "per_s")),
        ("tokens.per_s", "tokens/s", ("tokens", "per_s")),
        ("cache.hit_ratio", "ratio", ("cache", "hit_ratio")),
        ("cache.hit_token_ratio", "ratio", ("cache", "hit_token_ratio")),
        *((f"cache.{t}_hit_ratio", "ratio", ("cache", "tiers", t, "hit_ratio")) for t in TIERS),
    ):
        yield Metric(name=name, unit=unit, better="higher", path=path)
    for name, unit in (("goodput_per_s", "requests/s"), ("compliance_ratio", "ratio")):
        yield Metric(
            name=f"requests.{name}",
            unit=unit,
            better="higher",
            path=("requests", name),
            needs="performance_profile",
        )


def _sharing_metrics() -> Iterator[Metric]:
    """What ranks have of a store that they share."""
    yield Metric(
        name="sharing.other_hit_ratio",
        unit="ratio",
        better="higher",
        path=("sharing", "other_hit_ratio"),
        needs="sharing",
        of_kind="read",
    )


def _user_metrics() -> Iterator[Metric]:
    """What a search for users has found."""
    for name in ("per_rank", "in_all"):
        yield Metric(
            name=f"users.{name}",
            unit="users",
            better="higher",
            path=("users", name),
            needs="enable_autoscaling",
        )


def _interference_metrics() -> Iterator[Metric]:
    """How many times as long it takes with stores as without; of a pair of launches."""
    for name in ("load_p99", "load_p50", "read_p99", "request_p99", "request_p50"):
        yield Metric(
            name=f"interference.{name}_ratio",
            unit="times",
            better="lower",
            path=("interference", f"{name}_ratio"),
            needs="interference",
            of_kind="read",
        )


def _worth_metrics() -> Iterator[Metric]:
    """Whether the storage pays, by what the user says of computing, of cost and of power."""
    rows: tuple[tuple[str, str, Better, str, str | None], ...] = (
        ("useful_hit_ratio", "ratio", "higher", "read", "prefill_rate"),
        ("gpus_saved", "GPUs", "higher", "read", "prefill_rate"),
        ("turning_tokens", "tokens", "lower", "read", "prefill_rate"),
        ("cost_per_mtok", "currency", "lower", "read", "cost"),
        ("joules_per_mtok", "J", "lower", "read", "power"),
        ("dwpd", "per day", "lower", "write", None),
    )
    for name, unit, better, kind, needs in rows:
        yield Metric(
            name=f"worth.{name}",
            unit=unit,
            better=better,
            path=("worth", name),
            needs=needs,
            of_kind=kind,
        )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            *_latency_metrics(),
            *_rate_metrics(),
            *_worth_metrics(),
            *_sharing_metrics(),
            *_interference_metrics(),
            *_user_metrics(),
        )
    }
)
