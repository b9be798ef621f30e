"""What stores do to loads: two launches of the same loads, one with stores beside them. Pure.

A ratio is of one pair, never of percentiles of several trials. It is None where the sides did
not load alike or nothing was stored: it would tell the sizes of loads, or nothing. Where requests
waited for room before their loads, fewer loads competed: only ratios of whole requests are told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.measure.metrics import samples_for
from pytest_kvcache.units import format_bytes, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.results.trial import Section, Trial
    from pytest_kvcache.results.verdictcodes import Verdict

_NS_PER_MS: Final = 1e6
MOST_APART: Final = 0.05
"""By how much the bytes of an average load may differ; beyond, the loads are others."""
MOST_WAITED: Final = 0.1
"""By how much of a request what it takes beside its load may differ; beyond, loads tell little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFigures:
    """The loads of one launch that began in its window, and what was stored meanwhile.

    ``bytes_per_load`` are those that its reads took from the storage, on average. A percentile of
    too few is None. ``request_…`` are of whole requests, from arrival to answer; the means are of
    what ended. ``verdicts`` are the codes of those on the launch.
    """

    loads: int
    loads_per_s: float | None
    bytes_per_load: float | None
    load_mean_ms: float | None
    load_p50_ms: float | None
    load_p99_ms: float | None
    request_mean_ms: float | None
    request_p50_ms: float | None
    request_p99_ms: float | None
    read_p99_ms: float | None
    write_gib_per_s: float | None
    verdicts: tuple[str, ...]

    @classmethod
    def of(cls, trial: Trial, verdicts: tuple[Verdict, ...], *, withholds: bool) -> SideFigures:
        """Of a launch; where its ranks ended apart, its times and rates are of no one load."""
        load, request, counted = trial.load, trial.request, trial.counters
        times: dict[str, float | None] = {
            "load_mean_ms": _mean_ms(load),
            "load_p50_ms": load.ms.p50,
            "load_p99_ms": load.ms.p99,
            "request_mean_ms": _mean_ms(request),
            "request_p50_ms": None if request is None else request.ms.p50,
            "request_p99_ms": None if request is None else request.ms.p99,
            "read_p99_ms": trial.read.ms.p99,
        }
        return cls(
            loads=load.count,
            loads_per_s=None if withholds else ratio(load.count, trial.window_s),
            bytes_per_load=ratio(counted.read_op_bytes, load.count),
            write_gib_per_s=None if withholds else trial.write.gib_per_s,
            verdicts=tuple(dict.fromkeys(verdict.code for verdict in verdicts)),
            **(dict.fromkeys(times) if withholds else times),
        )

    @property
    def beside_load_ms(self) -> float | None:
        """What an average request takes that is no load: it waits, and is answered."""
        if self.request_mean_ms is None or self.load_mean_ms is None:
            return None
        return self.request_mean_ms - self.load_mean_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class InterferenceFigures:
    """Both launches of a trial, and how many times as long it takes with stores."""

    with_stores: SideFigures
    without_stores: SideFigures

    @property
    def sides(self) -> tuple[tuple[str, SideFigures], ...]:
        """Both, by what they are called."""
        return (("with stores", self.with_stores), ("without stores", self.without_stores))

    @property
    def unlike(self) -> str | None:
        """Why the sides can't be compared at all; None: they can."""
        sizes = [side.bytes_per_load for _name, side in self.sides]
        loaded, alone = sizes
        if not loaded or not alone:
            return "a side made no load that read from the storage"
        if max(loaded, alone) > (1 + MOST_APART) * min(loaded, alone):
            return (
                f"an average load was {format_bytes(round(loaded))} with stores and"
                f" {format_bytes(round(alone))} without ({loaded / alone - 1:+.0%}): what is stored"
                " displaces what is to be loaded"
            )
        if not self.with_stores.write_gib_per_s:
            return "nothing was stored in the window of the side with stores"
        return None

    @property
    def waited(self) -> str | None:
        """Why loads alone don't tell what stores cost; None: requests wait for them alike."""
        if None in (self.with_stores.load_mean_ms, self.without_stores.load_mean_ms):
            return None  # there is nothing of loads to tell
        loaded, alone = (side.beside_load_ms for _name, side in self.sides)
        longer = max((side.request_mean_ms or 0.0) for _name, side in self.sides)
        if loaded is None or alone is None:
            return "of a side no request was seen to end, so nothing tells how long they waited"
        if abs(loaded - alone) <= MOST_WAITED * longer:
            return None
        return (
            f"an average request took {loaded:.3g} ms beside its load with stores and {alone:.3g}"
            " ms without: while requests wait before their loads, fewer loads compete, so that"
            " loads look faster than what users wait for"
        )

    @property
    def few(self) -> str | None:
        """Why a side has no p99 of its loads; None: both have one."""
        without = [(name, side) for name, side in self.sides if side.load_p99_ms is None]
        if not without:
            return None
        counts = " and ".join(f"{side.loads:,} {name}" for name, side in without)
        needed = samples_for(99)
        if min(side.loads for _name, side in without) < needed:
            return f"a p99 needs {needed:,} loads, and there were {counts}"
        return f"ranks ended apart (UNEVEN), or too much had not ended ({counts} had)"

    @property
    def request_p99_ratio(self) -> float | None:
        """That of the requests that take longest, from arrival to answer."""
        return self._ratio("request_p99_ms")

    @property
    def request_p50_ratio(self) -> float | None:
        """That of a typical request."""
        return self._ratio("request_p50_ms")

    @property
    def load_p99_ratio(self) -> float | None:
        """That of the loads that take longest."""
        return self._ratio_of_loads("load_p99_ms")

    @property
    def load_p50_ratio(self) -> float | None:
        """That of a typical load."""
        return self._ratio_of_loads("load_p50_ms")

    @property
    def read_p99_ratio(self) -> float | None:
        """That of single reads, each of an object."""
        return self._ratio_of_loads("read_p99_ms")

    def _ratio_of_loads(self, name: str) -> float | None:
        return None if self.waited is not None else self._ratio(name)

    def _ratio(self, name: str) -> float | None:
        loaded, alone = (getattr(side, name) for _name, side in self.sides)
        if loaded is None or not alone or self.unlike is not None:
            return None
        return float(loaded / alone)

    def to_json(self) -> dict[str, Any]:
        """As in the run file; the ratios follow from the sides."""
        return {
            "with_stores": _side_json(self.with_stores),
            "without_stores": _side_json(self.without_stores),
            "load_p99_ratio": self.load_p99_ratio,
            "load_p50_ratio": self.load_p50_ratio,
            "read_p99_ratio": self.read_p99_ratio,
            "request_p99_ratio": self.request_p99_ratio,
            "request_p50_ratio": self.request_p50_ratio,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InterferenceFigures:
        """The inverse of ``to_json``; what is derived is not believed but derived again."""
        return cls(
            with_stores=_side_of(data["with_stores"]),
            without_stores=_side_of(data["without_stores"]),
        )


def _mean_ms(section: Section | None) -> float | None:
    """Of those that ended, though some had not."""
    mean_ns = None if section is None else section.histogram.mean_ns()
    return None if mean_ns is None else mean_ns / _NS_PER_MS


def _side_json(side: SideFigures) -> dict[str, Any]:
    return {**asdict(side), "verdicts": list(side.verdicts)}


def _side_of(data: Mapping[str, Any]) -> SideFigures:
    return SideFigures(**{**data, "verdicts": tuple(data["verdicts"])})
