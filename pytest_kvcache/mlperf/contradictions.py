"""Where a result of the MLPerf Storage KV cache benchmark contradicts itself. Pure.

Nothing here says who is right: two of its own figures can't both be. A sentence each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_kvcache.mlperf.figures import (
    LARGEST,
    SUMS,
    absent_ranks,
    closed_option,
    figures_of,
    surplus_files,
)
from pytest_kvcache.mlperf.published import SUMMARY, number_of
from pytest_kvcache.units import format_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.mlperf.figures import OptionFigures
    from pytest_kvcache.mlperf.published import Command, Published, RankFile

CLOSED_SEED = 42
CLOSED_PAUSE_S = 90
CLOSED_TRIALS = 3
_SAME = 1e-6  # relative: both were computed from the same numbers
_TOKENS_SHARE = 0.05  # tokens/s may count what is read, or what is read and written
_RATE_SHARE = 0.02  # a window may be a little longer than it should
_MOST_NAMED = 3
_WHOLE_OBJECT_MS = ("read", "write")
# Of the metadata → of the command that started the ranks.
_RECORDED = {
    "model": "model",
    "num_users": "num-users",
    "duration": "duration",
    "gpu_mem_gb": "gpu-mem-gb",
    "cpu_mem_gb": "cpu-mem-gb",
    "generation_mode": "generation-mode",
}
_SWITCHES = ("enable_rag", "enable_autoscaling", "disable_multi_turn", "disable_prefix_caching")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Two figures of a result that can't both be; ``option`` None: it is of the whole run."""

    kind: str
    option: str | None
    text: str

    def __str__(self) -> str:
        return self.text if self.option is None else f"option {self.option}: {self.text}"

    def to_json(self) -> dict[str, str | None]:
        """All of it."""
        return {"kind": self.kind, "option": self.option, "text": self.text}


def contradictions_of(run: Published) -> list[Contradiction]:
    """All of a run's, those of the whole run first."""
    found = [
        Contradiction(kind=kind, option=None, text=text)
        for kind, text in (*_of_summary(run), *_of_metadata(run))
    ]
    for name in run.option_names:
        figures = figures_of(run, name)
        found += [
            Contradiction(kind=kind, option=name, text=text)
            for kind, text in (
                *_of_layout(run, name),
                *_absences(figures),
                *_of_tokens(figures),
                *_of_latency(run, figures),
                *_of_sums(figures),
                *_of_files(run, name),
                *_of_commands(run, name),
            )
        ]
    return found


# --- the whole run ----------------------------------------------------------------------------


def _of_summary(run: Published) -> Iterator[tuple[str, str]]:
    summary = run.summary
    if run.summary_name is None:
        yield "summary", f"there is no {SUMMARY}, although there are options"
        return
    if run.summary_name != SUMMARY:
        yield (
            "summary",
            (
                f"its summary is named {run.summary_name}; the benchmark's report reads {SUMMARY}"
                " alone, and leaves this run out"
            ),
        )
    counts = [number_of(summary, name) for name in ("total_ranks", "npernode", "host_count")]
    total, each, hosts = counts
    if None not in counts and total != (each or 0) * (hosts or 0):
        yield (
            "ranks",
            f"total_ranks is {total:g}, and host_count times npernode is {hosts:g} times {each:g}",
        )
    failed = [name for name, option in run.options.items() if option.get("partial_failure")]
    if "partial_failure" in summary and bool(summary["partial_failure"]) != bool(failed):
        whose = f"of options {', '.join(failed)}" if failed else "of no option"
        yield "failure", f"partial_failure is {summary['partial_failure']}, and it is so {whose}"
    if summary.get("trial_failures"):
        yield "failure", f"trials failed ({summary['trial_failures']}), and the run has figures"


def _of_metadata(run: Published) -> Iterator[tuple[str, str]]:
    """What the metadata says ran, against the commands that it records beside."""
    if not run.commands:
        return
    told = {**run.metadata, **_parameters(run.metadata)}
    for name, option in _RECORDED.items():
        if name not in told:
            continue
        recorded = [c for c in _once(run.commands) if option in c.given]
        differing = [c for c in recorded if not _same(told[name], c.given[option])]
        if differing:
            there = ", ".join(f"{c.given[option]} (option {c.option})" for c in differing)
            yield (
                "metadata",
                (
                    f"{run.metadata_name} says that {name} is {told[name]}; the recorded commands"
                    f" have {there}"
                ),
            )
    arguments = run.metadata.get("args")
    told = arguments if isinstance(arguments, dict) else {}
    for name in _SWITCHES:
        flag = "--" + name.replace("_", "-")
        if told.get(name) is True and not any(flag in c.words for c in run.commands):
            yield (
                "metadata",
                f"{run.metadata_name} says that {name} is on; no recorded command has {flag}",
            )
    if told.get("mode") == "closed":
        yield from _of_closed_run(run, told)


def _parameters(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = metadata.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _once(commands: Sequence[Command]) -> list[Command]:
    """One command of each option."""
    return list({command.option: command for command in reversed(commands)}.values())[::-1]


def _same(left: object, right: str) -> bool:
    """Whether a value of JSON is what a word of a command line says."""
    try:
        return math.isclose(float(str(left)), float(right))
    except ValueError:
        return str(left) == right


def _of_closed_run(run: Published, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What rules fix of a run that calls itself closed (Rules.md 6.3.2.1, v3.0)."""
    rules = {"seed": CLOSED_SEED, "trials": CLOSED_TRIALS, "inter_option_delay": CLOSED_PAUSE_S}
    for name, value in rules.items():
        if told.get(name) not in (None, value):
            yield "rules", f"the run is closed, and {name} is {told[name]}; the rules say {value}"
    missing = [name for name in ("1", "2", "3") if name not in run.option_names]
    if missing:
        yield "rules", f"the run is closed, and has no option {', '.join(missing)}"
    preloads = [word for c in run.commands for word in c.words if word.startswith("LD_PRELOAD")]
    if preloads:
        yield (
            "preload",
            (
                f"the run is closed, and its commands set {preloads[0]}, which may change what is"
                " written and read"
            ),
        )


# --- an option ----------------------------------------------------------------------------------


def _of_layout(run: Published, name: str) -> Iterator[tuple[str, str]]:
    """How many ranks and trials it should have, and has."""
    option = run.options.get(name)
    if option is None:
        if run.summary_name is not None:
            yield "summary", f"there are ranks' files, and {run.summary_name} has no such option"
        return
    for own, whole in (("rank_count", "total_ranks"), ("trial_count", "trials_per_option")):
        values = number_of(option, own), number_of(run.summary, whole)
        if None not in values and values[0] != values[1]:
            yield "ranks", f"{own} is {values[0]:g}, and {whole} is {values[1]:g}"
    missing = option.get("missing_files")
    missing = missing if isinstance(missing, list) else []
    if missing:
        yield (
            "missing",
            (
                f"rank files missing: {len(missing)} of {_all_files(run)} ({_some(missing)}), and"
                " it is averaged over the others"
            ),
        )
    if bool(option.get("partial_failure")) != bool(missing):
        yield (
            "failure",
            (
                f"partial_failure is {option.get('partial_failure')}, and"
                f" {format_count(len(missing), 'file')} are missing"
            ),
        )
    surplus = surplus_files(run, name)
    if surplus:
        yield (
            "ranks",
            (
                f"{format_count(len(surplus), 'rank file')} more than total_ranks and"
                f" trials_per_option have ({_some(surplus)})"
            ),
        )
    absent = [path for path in absent_ranks(run, name) if not _names(missing, path)]
    if absent:
        yield (
            "missing",
            (
                f"{format_count(len(absent), 'rank')} left no file ({_some(absent)}), and"
                " missing_files does not say so"
            ),
        )
    idle = option.get("cpu_tier_ranks")
    if idle:
        yield (
            "missing",
            (
                f"{format_count(len(idle), 'rank')} ({_some(idle)}) stored nothing, and count as"
                " ranks of its storage"
            ),
        )


def _names(missing: Sequence[Any], path: str) -> bool:
    return any(str(each).rstrip("/").endswith(path) for each in missing)


def _all_files(run: Published) -> str:
    counts = [number_of(run.summary, name) for name in ("trials_per_option", "total_ranks")]
    trials, ranks = counts
    return "so many" if None in counts else f"{(trials or 0) * (ranks or 0):g}"


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _absences(figures: OptionFigures) -> Iterator[tuple[str, str]]:
    for name, value in figures.stated.items():
        if value == 0.0:
            best = ", the best there is" if name in LARGEST else ""
            yield (
                "zero",
                f"{name} is 0.0{best}: what was not measured must be null",
            )


def _of_tokens(figures: OptionFigures) -> Iterator[tuple[str, str]]:
    stated = figures.stated["aggregated_storage_throughput_tokens_per_sec"]
    by_reads = figures.tokens_per_s_by_read_bytes
    written = figures.stated["aggregated_write_bandwidth_gbps"]
    read = figures.stated["aggregated_read_bandwidth_gbps"]
    if stated is None or by_reads is None or not read:
        return
    most = by_reads * (1 + (written or 0.0) / read)
    if (1 - _TOKENS_SHARE) * by_reads <= stated <= (1 + _TOKENS_SHARE) * most:
        return
    yield (
        "tokens",
        (
            f"aggregated_storage_throughput_tokens_per_sec is {stated:,.4g}, and {read:,.4g} GiB/s"
            f" are {by_reads:,.0f} tokens/s of {figures.model} ({figures.bytes_per_token:,} bytes"
            " each)"
        ),
    )


def _of_latency(run: Published, figures: OptionFigures) -> Iterator[tuple[str, str]]:
    if figures.window_s is None:
        return
    for name in LARGEST:
        value = figures.stated[name]
        if value is not None and value > 1000 * figures.window_s:
            yield (
                "latency",
                (
                    f"{name} is {value / 1000:,.0f} s in a window of {figures.window_s:,.0f} s:"
                    " that is the age of a queue, not a time of the storage"
                ),
            )
    files = run.files_of(figures.name)
    tails = {file.path: file.number("end_to_end_latency_ms", "p95") or 0.0 for file in files}
    longer = {path: ms for path, ms in tails.items() if ms > 1000 * figures.window_s}
    if longer:
        yield (
            "latency",
            (
                f"the P95 of end_to_end_latency_ms is up to {max(longer.values()) / 1000:,.0f} s in"
                f" a window of {figures.window_s:,.0f} s, in {len(longer)} of"
                f" {format_count(len(files), 'rank file')} ({_some(list(longer))})"
            ),
        )


def _of_sums(figures: OptionFigures) -> Iterator[tuple[str, str]]:
    """The summary against what the ranks' files add up to."""
    for name in (*SUMS, *LARGEST):
        stated, summed = figures.stated[name], figures.summed[name]
        if stated is None or summed is None or math.isclose(stated, summed, rel_tol=_SAME):
            continue
        how = "the largest of the ranks' is" if name in LARGEST else "the ranks' files add up to"
        yield "sums", f"{name} is {stated:.10g}, and {how} {summed:.10g}"


def _of_files(run: Published, name: str) -> Iterator[tuple[str, str]]:
    """Each rank's file against itself."""
    for file in run.files_of(name):
        for fault in (*_of_rates(file), *_of_seed(run, file)):
            yield "rank", f"{file.path}: {fault}"


def _of_rates(file: RankFile) -> Iterator[str]:
    elapsed_s = file.number("elapsed_time")
    if not elapsed_s:
        return
    for what in _WHOLE_OBJECT_MS:
        rate = f"tier_storage_{what}_bandwidth_gbps"
        moved = "read" if what == "read" else "written"
        amount = f"tier_storage_kv_bytes_{moved}_gb"
        stated, gib = file.number("cache_stats", rate), file.number("cache_stats", amount)
        if stated is None or gib is None:
            continue
        if not math.isclose(stated, gib / elapsed_s, rel_tol=_RATE_SHARE, abs_tol=1e-9):
            yield (
                f"{rate} is {stated:.6g}, and {amount} over {elapsed_s:.0f} s is"
                f" {gib / elapsed_s:.6g}"
            )


def _of_seed(run: Published, file: RankFile) -> Iterator[str]:
    """Rank r has the seed of the command plus r."""
    seed = number_of(file.data, "seed")
    base = next((c.number("seed-base") for c in run.commands_of(file.option)), None)
    if seed is not None and base is not None and seed != base + file.rank:
        yield f"its seed is {seed:.0f}, and that of rank {file.rank} is {base + file.rank:.0f}"


def _of_commands(run: Published, name: str) -> Iterator[tuple[str, str]]:
    """The recorded command of a closed run against the table of the rules."""
    arguments = run.metadata.get("args")
    is_closed = isinstance(arguments, dict) and arguments.get("mode") == "closed"
    closed, commands = closed_option(name), run.commands_of(name)
    if not is_closed or closed is None or not commands:
        return
    rules = {
        "model": closed.model,
        "num-users": closed.users,
        "duration": closed.duration_s,
        "gpu-mem-gb": closed.gpu_mem_gb,
        "cpu-mem-gb": closed.cpu_mem_gb,
        "max-concurrent-allocs": closed.most_stores,
        "generation-mode": closed.generation_mode,
    }
    for option, value in rules.items():
        found = sorted({c.given[option] for c in commands if option in c.given})
        if not all(_same(value, text) for text in found):
            yield (
                "rules",
                (
                    f"the run is closed, and its command has --{option} {' and '.join(found)}; the"
                    f" rules say {value}"
                ),
            )
