"""What ``--kv-compare`` names: earlier results, out of a run file or a pytest-benchmark JSON.

Nothing in it is believed that can be computed anew: a run file must pass ``verify``, with
what its trials left behind where that lies beside it; a
pytest-benchmark JSON holds one value per trial and nothing that they come from, so there
the summaries, the rounds and their statistics must be those of the values.
Pure except ``load_baseline``; imports neither pytest nor MPI. Controller side.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.gates.compare import Found
from pytest_kvcache.measure.metrics import METRICS
from pytest_kvcache.results.leftbehind import LeftBehind
from pytest_kvcache.results.provenance import UNKNOWN, Provenance
from pytest_kvcache.results.run import RunResult
from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.verify import source_faults, verify_run
from pytest_kvcache.version import RUN_SCHEMA, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from os import PathLike

_EXTRA_KEYS: Final = frozenset({"case", "metric", "unit", "better", "values", "plan_digest"})
_NAMED: Final = 3  # cases that a sentence can hold
_ROUNDING: Final = 1e-9  # what another Python may round otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineEntry:
    """What a baseline holds of one case under one plan."""

    case: str
    """The case's name."""
    digest: str | None
    """The digest of its plan; None where the file states none."""
    metrics: Mapping[str, MetricSeries]
    """Metric name to its values; at least one."""
    provenance: Provenance = UNKNOWN
    """What stands behind the values."""

    def trials_of(self, metric: str) -> int:
        """How many trials have the metric."""
        return len(self.metrics[metric].values) if metric in self.metrics else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What ``--kv-compare`` names: earlier results, by case and plan."""

    source: str
    """The file, as the user gave it."""
    entries: tuple[BaselineEntry, ...]
    """In the file's order; cases without any value are left out."""
    recorded_at: str = ""
    """When the session began that it is of."""

    def find(self, case: str, metric: str, digest: str) -> Found:
        """Return what to compare the metric with, for a case of this name and plan.

        An entry of the same plan comes first, and the one with most trials where options
        that are no part of the plan gave several. Without one of the same plan the only
        entry of that name stands in for it; of several none does.
        """
        named = [entry for entry in self.entries if entry.case == case]
        same = [entry for entry in named if entry.digest == digest]
        if not same and len(named) > 1:
            return Found(
                reason=f"the baseline has {len(named)} results of this case, none with this "
                "run's plan (plan_digest): compare runs of the same options"
            )
        best = max(same or named, key=lambda entry: entry.trials_of(metric), default=None)
        if best is None:
            return Found(reason=f"the baseline has no such case, {self._described()}")
        if metric not in best.metrics:
            return Found(
                reason="the baseline has the case without that metric: compare runs that both have"
                " it"
            )
        return Found(
            series=best.metrics[metric],
            provenance=best.provenance,
            other_plan=best.digest != digest,
        )

    def _described(self) -> str:
        """The names of its cases, as far as one can read them."""
        names = list(dict.fromkeys(entry.case for entry in self.entries))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return f"only {', '.join(names[:_NAMED])}{more}: compare runs that both have it"

    def all_series(self) -> Iterator[MetricSeries]:
        """Every series that the baseline holds."""
        for entry in self.entries:
            yield from entry.metrics.values()


def load_baseline(path: str | PathLike[str]) -> Baseline:
    """Read a run file or a pytest-benchmark JSON; OptionError names --kv-compare and it.

    Entries of a pytest-benchmark file that carry none of our extra_info are other
    people's benchmarks and are left out.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise OptionError(
            f"--kv-compare is {path}; it must be a readable JSON file, and is not ({cause}): "
            "give the run.json or the --benchmark-json file of an earlier run"
        ) from error
    try:
        entries = _entries(data, LeftBehind(Path(path)))
    except ResultError as error:
        raise OptionError(
            f"--kv-compare is {path}; it must be an intact run file or pytest-benchmark "
            f"JSON of this plugin, and is not ({error}): record the baseline anew"
        ) from error
    recorded_at = data.get("started_at") or data.get("datetime") or ""
    return Baseline(source=str(path), entries=entries, recorded_at=str(recorded_at))


def _entries(data: object, left: LeftBehind) -> tuple[BaselineEntry, ...]:
    """Return what either kind of file holds; ResultError if it is neither, or holds nothing."""
    if isinstance(data, Mapping) and data.get("schema") == RUN_SCHEMA:
        found = list(_run_entries(data, left))
    elif isinstance(data, Mapping) and "schema" in data:
        raise ResultError(f"its schema is {data['schema']!r}, this version reads {RUN_SCHEMA!r}")
    elif isinstance(data, Mapping) and "benchmarks" in data:
        found = _joined(benchmark_entries(data))
    else:
        raise ResultError('it has neither "schema" nor "benchmarks"')
    entries = tuple(entry for entry in found if entry.metrics)
    if not entries:
        raise ResultError("it holds no result of this plugin")
    return entries


def _run_entries(data: Mapping[str, Any], left: LeftBehind) -> Iterator[BaselineEntry]:
    """Yield an entry per case; ResultError with the first contradictions in the file.

    Where what its trials left lies beside it, that counts as well.
    """
    problems = verify_run(data) or source_faults(data, left)[0]
    if problems:
        more = f" (and {len(problems) - 1} more contradictions)" if len(problems) > 1 else ""
        version = data["version"]
        other = "" if version == VERSION else f"; version {version} wrote it, this is {VERSION}"
        raise ResultError(f"{problems[0]}{more}{other}")
    run = RunResult.from_json(data)
    for case in run.asked:
        found = {metric: case.series(metric) for metric in METRICS}
        metrics = {metric: series for metric, series in found.items() if series is not None}
        provenance = run.provenance(case)
        yield BaselineEntry(
            case=case.name, digest=case.plan_digest, metrics=metrics, provenance=provenance
        )


def benchmark_entries(data: Mapping[str, object]) -> Iterator[BaselineEntry]:
    """Yield an entry per metric of ours; ResultError for one that contradicts itself."""
    for benchmark in _objects(data, "benchmarks"):
        info = benchmark.get("extra_info")
        if not isinstance(info, Mapping) or not set(info) >= _EXTRA_KEYS:
            continue
        if not isinstance(info["metric"], str) or info["metric"] not in METRICS:
            raise ResultError(f"its metric {info['metric']!r} is none of this version's")
        series = MetricSeries.from_json(info["metric"], info)
        _check_rounds(series, benchmark)
        provenance = Provenance.from_json(info)
        entry = _entry(info["case"], info["plan_digest"], {series.name: series}, provenance)
        if benchmark.get("fullname") != f"{entry.case}-{series.name}":
            raise ResultError(
                f"{series.name} of {entry.case} stands under the name {benchmark.get('fullname')!r}"
            )
        yield entry


def _check_rounds(series: MetricSeries, benchmark: Mapping[str, Any]) -> None:
    """Raise ResultError where pytest-benchmark's figures are not those of the values."""
    spec = METRICS[series.name]
    stats = benchmark.get("stats")
    if not isinstance(stats, Mapping):
        raise ResultError(f"{series.name} has no stats")
    rounds_s = [spec.round_s(value) for value in series.values]
    expected: dict[str, Any] = {
        "rounds": len(rounds_s),
        "min": min(rounds_s),
        "max": max(rounds_s),
        "mean": statistics.mean(rounds_s),
        "median": statistics.median(rounds_s),
    }
    for name, value in expected.items():
        if not _is_close(stats.get(name), value):
            raise ResultError(
                f"{series.name} has the {name} {stats.get(name)!r} of its rounds, but its values"
                f" give {value!r}"
            )
    data = stats.get("data")  # left out of a file that --benchmark-save made
    if data is not None and not (
        isinstance(data, list)
        and len(data) == len(rounds_s)
        and all(map(_is_close, data, rounds_s))
    ):
        raise ResultError(f"{series.name} has rounds {data!r}, but its values give {rounds_s!r}")


def _is_close(stated: object, value: float) -> bool:
    return (
        isinstance(stated, (int, float))
        and not isinstance(stated, bool)
        and math.isclose(stated, value, rel_tol=_ROUNDING)
    )


def _entry(
    case: object, digest: object, metrics: Mapping[str, MetricSeries], provenance: Provenance
) -> BaselineEntry:
    if not isinstance(case, str) or not (digest is None or isinstance(digest, str)):
        raise ResultError(f"a case has name {case!r} and plan_digest {digest!r}")
    return BaselineEntry(case=case, digest=digest, metrics=metrics, provenance=provenance)


def _joined(entries: Iterable[BaselineEntry]) -> list[BaselineEntry]:
    """Join the metrics of one case and plan; ResultError when one is there twice."""
    known: dict[tuple[object, ...], BaselineEntry] = {}
    for entry in entries:
        kind = (entry.case, entry.digest, entry.provenance)
        before = known[kind].metrics if kind in known else {}
        if twice := before.keys() & entry.metrics.keys():
            raise ResultError(f"case {entry.case!r} has {', '.join(sorted(twice))} twice")
        known[kind] = replace(entry, metrics={**before, **entry.metrics})
    return list(known.values())


def _objects(data: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    items = data.get(key)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ResultError(f"its {key!r} is no list of objects")
    return items
