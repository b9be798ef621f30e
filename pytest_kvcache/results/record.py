"""What the ranks of a trial found: the record that the coordinator writes. Pure.

Imports neither pytest nor MPI. Ranks send a ``RankResult`` each and one set of summed
histograms; trial.py makes of it what people read.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pytest_kvcache.errors import ResultError
from pytest_kvcache.measure.counters import TABLE, Counters
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.sections import SECTIONS
from pytest_kvcache.measure.series import TimeSeries
from pytest_kvcache.measure.service import ServiceCounts
from pytest_kvcache.measure.stalls import Stall
from pytest_kvcache.measure.steps import STEP_SECTIONS, StepCounts, StepHistograms
from pytest_kvcache.measure.worth import LengthCounts
from pytest_kvcache.system.blockstat import DeviceReport
from pytest_kvcache.system.clocks import ClockRecord
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.system.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_kvcache.plan.plan import Plan

TRIAL_SCHEMA = "pytest-kvcache/trial/1"
SOURCES = ("trial.json", "controller.json", "events.jsonl", "mpirun.log")
"""The files that a trial is made of; all but the second are the ranks' and the launcher's."""


def check_finite(data: Mapping[str, Any]) -> None:
    """ResultError for a number that no float holds: infinity would pass every comparison."""
    left: list[tuple[str, Any]] = [("", data)]
    for path, value in left:  # which grows
        if isinstance(value, dict):
            left += [(f"{path}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
        elif isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max:
            raise ResultError(f"{path} is {value!s:.20}; every number of it must be finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerRecord:
    """What the controller alone knows of a trial, as in ``controller.json``.

    After which numbers of trials the case may end, and the window by the controller's clock
    (see ``ClockRecord``).
    """

    looks: tuple[int, ...]
    controller_least_s: float | None
    controller_most_s: float | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same record back."""
        return {**asdict(self), "looks": list(self.looks)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ControllerRecord:
        """The inverse of ``to_json``."""
        return cls(**{**data, "looks": tuple(data["looks"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class IoTraceFacts:
    """What an I/O trace took of a rank while it was measured.

    ``operations`` of the whole trial, population included, as ``spooled_bytes`` in ``directory``
    of the rank's host; ``on_measured_filesystem``: the cache directory is on the same one.
    """

    operations: int
    spooled_bytes: int
    directory: str
    on_measured_filesystem: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult(Counters):
    """One rank's record of one trial: what it counted, who it is, and what it found.

    ``start_s``, ``stop_s`` and ``drained_s`` are on the coordinator's clock, counted from the
    agreed start: when the rank began, stopped issuing, and had nothing in flight any more.
    ``device`` is what the first rank of each host with a directory saw of its disks
    (devicewatch.py). ``io_trace`` is None where none was written.
    """

    rank: int
    host: str
    pid: int
    start_s: float
    stop_s: float
    drained_s: float
    stalls: tuple[Stall, ...]
    load_steps: tuple[StepCounts, ...]
    service_classes: tuple[ServiceCounts, ...]
    load_lengths: tuple[LengthCounts, ...]
    io_mode: str
    io_note: str | None
    io_engine: str
    io_engine_reason: str
    io_engine_asynchronous: bool | None
    sync: str
    is_storage: bool
    filesystem: FilesystemFacts | None
    device: DeviceReport | None
    io_trace: IoTraceFacts | None
    error: str | None
    cleanup_error: str | None
    surroundings: Surroundings

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; ``from_json`` gives the same result back."""
        data = {name: getattr(self, name) for name in _FIELDS}
        for name in _LISTS:
            data[name] = [asdict(part) for part in data[name]]
        data["surroundings"] = self.surroundings.to_json()
        for name in ("filesystem", "device"):
            data[name] = None if data[name] is None else data[name].to_json()
        data["io_trace"] = None if self.io_trace is None else asdict(self.io_trace)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RankResult:
        """The inverse of ``to_json``; ResultError if a field is missing or unknown."""
        if set(data) != set(_FIELDS):
            odd = ", ".join(sorted(set(_FIELDS).symmetric_difference(data)))
            raise ResultError(f"a rank's record has other fields than this version's: {odd}")
        for name in _LISTS:
            if not isinstance(data[name], (list, tuple)):
                raise ResultError(f"a rank's {name} are {data[name]!r}; they must be a list")
        found, seen, traced = data["filesystem"], data["device"], data["io_trace"]
        parts = {
            "stalls": tuple(map(Stall.from_json, data["stalls"])),
            "load_steps": tuple(StepCounts(**step) for step in data["load_steps"]),
            "service_classes": tuple(ServiceCounts(**each) for each in data["service_classes"]),
            "load_lengths": tuple(LengthCounts(**each) for each in data["load_lengths"]),
            "surroundings": Surroundings.from_json(data["surroundings"]),
            "filesystem": None if found is None else FilesystemFacts.from_json(found),
            "device": None if seen is None else DeviceReport.from_json(seen),
            "io_trace": None if traced is None else IoTraceFacts(**traced),
        }
        return cls(**{**data, **parts})


_LISTS = ("stalls", "load_steps", "service_classes", "load_lengths")
_WHO = ("rank", "host", "pid", "start_s", "stop_s", "drained_s")
_FIELDS = (
    *_WHO,
    *TABLE,
    *(part.name for part in fields(RankResult) if part.name not in (*_WHO, *TABLE)),
)
"""Of a rank's JSON, in its order: who it is, what it counted, what it found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What the coordinator wrote: all ranks' scalars, the summed histograms and series.

    ``load_steps`` are the histograms of each part of the window in which the load was constant;
    none: it never changed.
    """

    plan_digest: str
    trial: int
    window_s: float
    ranks: tuple[RankResult, ...]
    histograms: Mapping[str, Histogram]
    series: TimeSeries
    load_steps: tuple[StepHistograms, ...]
    clock: ClockRecord

    def to_json(self) -> dict[str, Any]:
        """The record as it is written into ``trial.json``."""
        return {
            "schema": TRIAL_SCHEMA,
            "plan_digest": self.plan_digest,
            "trial": self.trial,
            "window_s": self.window_s,
            "ranks": [rank.to_json() for rank in self.ranks],
            "histograms": {name: h.to_json() for name, h in self.histograms.items()},
            "series": self.series.to_json(),
            "load_steps": [
                {name: h.to_json() for name, h in step.items()} for step in self.load_steps
            ],
            "clock": self.clock.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], plan: Plan) -> TrialRecord:
        """Read and check against the plan; ResultError says what is missing."""
        missing = {part.name for part in fields(cls)} - set(data)
        if missing:
            raise ResultError(f"the trial's record lacks {', '.join(sorted(missing))}")
        if data.get("schema") != TRIAL_SCHEMA:
            raise ResultError(
                f"the trial's record has schema {data.get('schema')!r}, not {TRIAL_SCHEMA!r}"
            )
        if data["plan_digest"] != plan.digest or data["trial"] != plan.trial:
            raise ResultError("the trial's record belongs to another plan or trial")
        check_finite(data)
        try:
            return cls._of_parts(data, plan)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ResultError(
                f"a part of the trial's record is missing or odd: {error!r}"
            ) from error

    @classmethod
    def _of_parts(cls, data: Mapping[str, Any], plan: Plan) -> TrialRecord:
        ranks = tuple(RankResult.from_json(rank) for rank in data["ranks"])
        if [rank.rank for rank in ranks] != list(range(plan.np)):
            raise ResultError(f"the trial's record has {len(ranks)} ranks; the plan has {plan.np}")
        if set(data["histograms"]) != set(SECTIONS):
            raise ResultError(f"the trial's record has histograms {sorted(data['histograms'])}")
        histograms = {name: Histogram.from_json(h) for name, h in data["histograms"].items()}
        return cls(
            plan_digest=data["plan_digest"],
            trial=data["trial"],
            window_s=data["window_s"],
            ranks=ranks,
            histograms=histograms,
            series=TimeSeries.from_json(data["series"]),
            load_steps=tuple(map(_step_histograms, data["load_steps"])),
            clock=ClockRecord.from_json(data["clock"]),
        )

    @classmethod
    def of_run_file(cls, data: Mapping[str, Any], plan: Plan) -> TrialRecord:
        """What the run file has of the record: a section that a trial lacks was empty."""
        sections = {name: data[name] for name in SECTIONS}
        return cls(
            plan_digest=plan.digest,
            trial=plan.trial,
            window_s=data["window_s"],
            ranks=tuple(RankResult.from_json(rank) for rank in data["ranks"]),
            histograms={name: _histogram_of(section) for name, section in sections.items()},
            series=TimeSeries.from_json(data["series"]),
            load_steps=tuple(
                {name: _histogram_of(step[name]) for name in STEP_SECTIONS}
                for step in data["load_steps"]
            ),
            clock=ClockRecord.from_json(data["clock"]),
        )


def _histogram_of(section: Mapping[str, Any] | None) -> Histogram:
    """That of a section of the run file; one that a trial lacks was empty."""
    return Histogram() if section is None else Histogram.from_json(section["histogram"])


def _step_histograms(data: Mapping[str, Any]) -> StepHistograms:
    """Those of a load step, of which each has the same sections."""
    if set(data) != set(STEP_SECTIONS):
        raise ResultError(f"a load step of the trial's record has histograms {sorted(data)}")
    return {name: Histogram.from_json(data[name]) for name in STEP_SECTIONS}
