"""How one launch of a case ended: with a trial that may be used, or with an error. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.results.figures import trial_of
from pytest_kvcache.results.interference import InterferenceFigures
from pytest_kvcache.results.record import TrialRecord
from pytest_kvcache.results.verdictcodes import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.trial import Trial

HEAD = frozenset({"index", "ok", "interrupted", "error", "verdicts", "sources", "interference"})
"""What the run file has of every trial; all else is what it measured, if it did."""


def withholds(verdicts: Sequence[Verdict], plan: Plan) -> bool:
    """Whether a trial with these verdicts has no metrics but those of the whole work."""
    return any(v.code == "UNEVEN" for v in verdicts) and not plan.allows("UNEVEN")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One launch. ``measured`` is what its ranks measured; None if they left no record.

    ``sources`` are the files it was made of: path beside the run file → SHA-256.
    ``withholds``: its ranks ended apart (UNEVEN), so that only metrics of the whole work are
    values of it. ``interrupted`` by the user: it neither counts nor stands against those that
    ended. ``interference``: how its launch with stores stands to the one without; None: there is
    one launch.
    """

    index: int
    error: str | None
    verdicts: tuple[Verdict, ...] = ()
    measured: Trial | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    withholds: bool = False
    interference: InterferenceFigures | None = None

    def __post_init__(self) -> None:
        if self.interrupted and (self.error is None or self.measured is not None):
            raise ResultError(f"trial {self.index} was interrupted and has a result, or no error")

    @property
    def ok(self) -> bool:
        """Whether the trial may be used."""
        return self.error is None

    @property
    def invalidated(self) -> bool:
        """Whether a trial failed by a verdict alone: what it measured is there, but no result."""
        codes = [verdict.code for verdict in self.verdicts if verdict.severity == "invalid"]
        return self.error is not None and self.error.startswith(tuple(f"{c}: " for c in codes))

    def value(self, metric: str) -> float | None:
        """The metric's value, None if the trial has none, or withholds it."""
        if METRICS[metric].of_a_pair:
            return METRICS[metric].of(self)
        if self.measured is None or (self.withholds and not METRICS[metric].of_the_whole):
            return None
        return METRICS[metric].of(self.measured)

    def to_json(self) -> dict[str, Any]:
        """The trial as in the run file."""
        return {
            "index": self.index,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "error": self.error,
            **({} if self.measured is None else self.measured.to_json()),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "sources": dict(self.sources),
            "interference": None if self.interference is None else self.interference.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], plan: Plan) -> TrialResult:
        """The inverse of ``to_json``; what is derived is not believed but derived again."""
        if not isinstance(data["interrupted"], bool):
            raise ResultError(f"trial {data['index']} is interrupted or not: true or false")
        if data["ok"] != (data["error"] is None):
            raise ResultError(f"trial {data['index']} is ok and has an error, or neither")
        verdicts = tuple(Verdict(**verdict) for verdict in data["verdicts"])
        has_data = not data.keys() <= HEAD
        return cls(
            index=data["index"],
            error=data["error"],
            interrupted=data["interrupted"],
            verdicts=verdicts,
            withholds=withholds(verdicts, plan),
            measured=trial_of(TrialRecord.of_run_file(data, plan), plan) if has_data else None,
            sources=data["sources"],
            interference=None
            if data["interference"] is None
            else InterferenceFigures.from_json(data["interference"]),
        )
