"""What can be computed again of a result of the benchmark, from what it is made of. Pure.

How the benchmark adds up (Rules.md 6.3.4, v3.0): within a trial ranks' bandwidths and tokens/s are
summed, over trials the sums are averaged; of latencies it takes the largest P95. A rank that is
missing counts as nothing there, and is an unknown here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pytest_kvcache.mlperf.published import number_of
from pytest_kvcache.models import MODELS
from pytest_kvcache.units import GIB
from pytest_kvcache.workloads.mlperf import CLOSED_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.mlperf.published import Published, RankFile
    from pytest_kvcache.workloads.mlperf import ClosedOption

# Of the summary → of a rank's file, below its summary.
SUMS = {
    "aggregated_read_bandwidth_gbps": ("cache_stats", "tier_storage_read_bandwidth_gbps"),
    "aggregated_write_bandwidth_gbps": ("cache_stats", "tier_storage_write_bandwidth_gbps"),
    "aggregated_avg_throughput_tokens_per_sec": ("avg_throughput_tokens_per_sec",),
    "aggregated_storage_throughput_tokens_per_sec": ("storage_throughput_tokens_per_sec",),
}
LARGEST = {
    "aggregated_p95_latency_ms": ("storage_io_latency_ms", "p95"),
    "aggregated_device_read_p95_ms": ("cache_stats", "storage_read_device_p95_ms"),
    "aggregated_device_write_p95_ms": ("cache_stats", "storage_write_device_p95_ms"),
}

OF_RATES = (
    ("elapsed_time",),
    *(
        ("cache_stats", f"tier_storage_{what}")
        for what in (
            "kv_bytes_read_gb",
            "kv_bytes_written_gb",
            "read_bandwidth_gbps",
            "write_bandwidth_gbps",
        )
    ),
)
"""What a rank's bandwidths are computed again from, and they themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionFigures:
    """One option: what is said of it, and what comes of what it is made of.

    ``stated`` are the summary's figures, ``summed`` the same from the ranks' files where all of
    them are there. ``model`` is the recorded command's, else our export's, else the closed
    rules'. Bandwidths are in GiB/s. ``tokens_per_s_by_read_bytes`` is the stated read bandwidth in
    tokens of that model. None: it can't be told.
    """

    name: str
    model: str | None
    bytes_per_token: int | None
    window_s: float | None
    stated: Mapping[str, float | None]
    summed: Mapping[str, float | None]
    tokens_per_s_by_read_bytes: float | None
    rank_files: int
    expected_rank_files: int | None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "stated": dict(self.stated), "summed": dict(self.summed)}


def closed_option(name: str) -> ClosedOption | None:
    """The workload of this number, None for another name."""
    return next((each for each in CLOSED_OPTIONS if str(each.number) == name), None)


def figures_of(run: Published, name: str) -> OptionFigures:
    """Everything that can be said of an option in figures."""
    stated = {key: number_of(run.options.get(name, {}), key) for key in (*SUMS, *LARGEST)}
    model, token_bytes, window_s = _what_ran(run, name)
    read = stated["aggregated_read_bandwidth_gbps"]
    expected = _expected(run)
    files = run.files_of(name)
    return OptionFigures(
        name=name,
        model=model,
        bytes_per_token=token_bytes,
        window_s=window_s,
        stated=stated,
        summed=_summed(files, expected),
        tokens_per_s_by_read_bytes=(
            None if read is None or token_bytes is None else read * GIB / token_bytes
        ),
        rank_files=len(files),
        expected_rank_files=None if expected is None else expected[0] * expected[1],
    )


def unchecked_of(run: Published, name: str) -> list[str]:
    """What is stated of an option and can't be computed again, a sentence each."""
    return [f"can't be recomputed: {why}" for why in _unchecked(run, figures_of(run, name))]


def _unchecked(run: Published, figures: OptionFigures) -> Iterator[str]:
    told, files = run.options.get(figures.name, {}), run.files_of(figures.name)
    counts = [c for c in ("trials_per_option", "total_ranks") if number_of(run.summary, c) is None]
    for key, path in {**SUMS, **LARGEST}.items():
        value = told.get(key)
        if value is None:
            continue
        lacking = [file.path for file in files if file.number(*path) is None]
        if figures.stated[key] is None:
            yield f"{key} is {value!r}, which is no number"
        elif figures.summed[key] is not None:
            continue
        elif counts:
            yield f"{key}, for {' and '.join(counts)} of the summary is no number"
        elif len(files) != figures.expected_rank_files or not lacking:
            yield (
                f"{key}, for there are {len(files)} rank files of {figures.expected_rank_files},"
                " which must be one of each rank and trial"
            )
        else:
            yield (
                f"{key}, for {'.'.join(path)} is no number in {len(lacking)} of {len(files)} rank"
                f" files ({lacking[0]})"
            )
    yield from _unchecked_beside(figures, files)


def _unchecked_beside(figures: OptionFigures, files: Sequence[RankFile]) -> Iterator[str]:
    """What other checks lack: the model, the window, a rank's own bytes and time."""
    if figures.bytes_per_token is None:
        yield f"tokens from bytes, for those of a token of model {figures.model} are not known"
    if figures.window_s is None:
        yield "whether latencies are within the window, for its length is not told"
    for file in files:
        lacking = [".".join(path) for path in OF_RATES if file.number(*path) is None]
        if lacking:
            yield f"{file.path}: its bandwidths, for it has no number {', '.join(lacking)}"


def _what_ran(run: Published, name: str) -> tuple[str | None, int | None, float | None]:
    """An option's model, the bytes of a token, and the window in seconds.

    From the recorded command, else from what an export of ours says of the option, else from the
    rules of closed runs.
    """
    closed, commands, own = closed_option(name), run.commands_of(name), run.own_option(name)
    told = {} if closed is None else {"model": closed.model, "duration": str(closed.duration_s)}
    told |= {key: str(value) for key, value in own.items()}
    told |= commands[0].given if commands else {}
    model = told.get("model")
    stated = number_of(own, "kv_bytes_per_token")
    shipped = MODELS[model].bytes_per_token if model is not None and model in MODELS else None
    token_bytes = shipped if stated is None or commands else int(stated)
    try:
        return model, token_bytes, float(told["duration"])
    except (KeyError, ValueError):
        return model, token_bytes, None


def _expected(run: Published) -> tuple[int, int] | None:
    """Trials and ranks that each option should have."""
    trials = number_of(run.summary, "trials_per_option")
    ranks = number_of(run.summary, "total_ranks")
    return None if trials is None or ranks is None else (int(trials), int(ranks))


def absent_ranks(run: Published, name: str) -> list[str]:
    """The rank directories of an option in which a result should be and is not."""
    expected = _expected(run)
    if expected is None or not run.rank_files:
        return []
    trials, ranks = expected
    there = {(file.trial, file.rank) for file in run.files_of(name)}
    return [
        f"option_{name}/trial_{trial}/rank_{rank}"
        for trial in range(trials)
        for rank in range(ranks)
        if (trial, rank) not in there
    ]


def surplus_files(run: Published, name: str) -> list[str]:
    """Rank files of trials or ranks that the summary does not have, or second ones of a rank."""
    expected, seen, found = _expected(run), set(), []
    for file in run.files_of(name):
        place = (file.trial, file.rank)
        beyond = expected is not None and not (file.trial < expected[0] and file.rank < expected[1])
        if beyond or place in seen:
            found.append(file.path)
        seen.add(place)
    return found


def _summed(files: Sequence[RankFile], expected: tuple[int, int] | None) -> dict[str, float | None]:
    """The summary's figures from the ranks' files; all None unless every one is there."""
    unknown: dict[str, float | None] = dict.fromkeys((*SUMS, *LARGEST))
    trials = sorted({file.trial for file in files})
    if expected is None or len(files) != expected[0] * expected[1] or not files:
        return unknown
    if {(file.trial, file.rank) for file in files} != set(product(*map(range, expected))):
        return unknown
    found = dict(unknown)
    for key, path in SUMS.items():
        by_trial = [[f.number(*path) for f in files if f.trial == trial] for trial in trials]
        sums = [sum(v for v in values if v is not None) for values in by_trial]
        if all(value is not None for values in by_trial for value in values):
            found[key] = fmean(sums)
    for key, path in LARGEST.items():
        values = [file.number(*path) for file in files]
        known = [value for value in values if value is not None]
        found[key] = max(known) if len(known) == len(values) else None
    return found
