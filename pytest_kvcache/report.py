"""RunResult → text that fits 80 columns. Pure; prints nothing."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from pytest_kvcache.metrics import METRICS
from pytest_kvcache.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.cluster import Survey
    from pytest_kvcache.plan import Plan
    from pytest_kvcache.results import CaseResult, RunResult, TrialResult
    from pytest_kvcache.summary import MetricSeries

WIDTH = 80
_ALWAYS = ("requests.per_s", "cache.hit_ratio")
_GIB = 1 << 30
_HOST_WIDTH = 17
_SHARED_WIDTH = 13  # what the other columns leave
_SHORTEST_S = 0.01  # between two progress events that give a rate


def report_run(run: RunResult, metrics: Sequence[str]) -> str:
    """All cases of a run, one table each."""
    return "\n\n".join("\n".join(_case(case, metrics)) for case in run.cases)


def _case(case: CaseResult, metrics: Sequence[str]) -> Iterator[str]:
    yield case.name
    yield from _wrapped(describe_plan(case.effective_plan), indent="  ")
    good = [trial for trial in case.trials if trial.ok]
    if len(good) == len(case.trials) and good:
        yield ""
        yield from _table(case, [*metrics, *(m for m in _ALWAYS if m not in metrics)])
        yield from _proof_lines(good)
    for trial in case.trials:
        if trial.error is not None:
            first = trial.error.splitlines()[0]
            yield from _wrapped(f"trial {trial.index} failed: {first}", indent="  ")
    yield from _verdict_lines(good)


def describe_plan(plan: Plan) -> str:
    """One sentence on what ran, where."""
    hosts = ", ".join(f"{host.name}:{host.ranks}" for host in plan.layout.hosts)
    window = "until the trace ends" if plan.duration_s is None else f"{plan.duration_s:g} s"
    where = f" in {plan.cache_dir}" if plan.needs_directory else ""
    durable = "durable" if plan.sync == "data" else "not durable"
    users = f"{plan.users} users per rank"
    if plan.request_rate is not None:
        users = f"{plan.request_rate:g} requests/s ({plan.arrival}) by {users}"
    elif plan.trace is not None and plan.trace.speedup:
        users = f"{plan.trace.requests} requests of {plan.trace.name} at their recorded times"
    return (
        f"{plan.np} rank{'s' * (plan.np > 1)} on {hosts}; {users}; blocks of"
        f" {plan.block_tokens} tokens = {format_bytes(plan.block_bytes)};"
        f" {plan.backend}{where}, {durable}; depth {plan.queue_depth}; window {window}"
    )


def describe_survey(survey: Survey) -> list[str]:
    """A table of the hosts, and a line for each problem."""
    lines = [
        f"kvcache: asked {_counted(survey.names, 'host')} in {survey.elapsed_s:.1f} s",
        _host_row("host", "cores", "memory", "disk free", "filesystem", "direct", "shared with"),
    ]
    for host in survey.names:
        name, *cells = _host_cells(survey, host)
        if len(name) > _HOST_WIDTH:  # whole, on a line of its own: no other has this name
            lines += _wrapped(name, indent="  ")
            name = ""
        lines.append(_host_row(name, *cells))
    for host, texts in survey.problems.items():
        for text in texts:
            lines += _wrapped(f"host {host}: {text}", indent="  ")
    return lines


def _host_row(host: str, *cells: str) -> str:
    cores, memory, free, kind, direct, shared = cells
    columns = f"{host:<{_HOST_WIDTH}}{cores:>6}{memory:>11}{free:>11}  {_cut(kind, 10):<11}"
    return f"  {columns}{direct:<7}{shared}"


def _host_cells(survey: Survey, host: str) -> list[str]:
    facts = survey.facts.get(host)
    if facts is None:
        return [host, *"——————"]
    memory = "—" if facts.memory_bytes is None else format_bytes(facts.memory_bytes)
    free, kind, direct, shared = "—", "—", "—", "—"
    if facts.filesystem is not None:
        free, kind = format_bytes(facts.filesystem["available_bytes"]), facts.filesystem["type"]
        direct = "yes" if facts.direct else "no"
        others = [name for name in survey.names if name in survey.group_of(host) and name != host]
        shared = _some(others) or "no host"
        if len(shared) > _SHARED_WIDTH:
            shared = _counted(others, "other")
    return [host, str(facts.cores), memory, free, kind, direct, shared]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _counted(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] if more == 0 else f"{names[0]} and {more} more" if names else ""


def _table(case: CaseResult, metrics: Sequence[str]) -> Iterator[str]:
    head = f"  {'metric':<22}{'unit':<11}{'median':>10}{'95 % CI of the mean':>23}"
    yield f"{head}{'CV':>7}{'n':>4}"
    for name in metrics:
        series = case.series(name)
        yield _row(name, METRICS[name].unit, series)


def _row(name: str, unit: str, series: MetricSeries | None) -> str:
    if series is None:
        return f"  {name:<22}{unit:<11}{'—':>10}   too few samples, or none"
    interval = series.ci95
    spread = "—" if interval is None else f"{figure(interval[0])} … {figure(interval[1])}"
    cv = "—" if series.cv is None else f"{series.cv:.0%}"
    count = len(series.values)
    return f"  {name:<22}{unit:<11}{figure(series.median):>10}{spread:>23}{cv:>7}{count:>4}"


def figure(value: float) -> str:
    """Four significant digits, without exponents."""
    magnitude = abs(value)
    if magnitude >= 1000:  # noqa: PLR2004  from here on digits behind the point say nothing
        return f"{value:,.0f}"
    for limit, digits in ((100, 1), (10, 2), (1, 3)):
        if magnitude >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def _proof_lines(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Where the bytes went, of the trial with the median read rate (the last one)."""
    data = trials[-1].data
    assert data is not None
    proof, requests = data["proof"], data["requests"]
    reads = _moved(proof["requested_read_bytes"], proof["device_read_bytes"])
    writes = _moved(proof["requested_write_bytes"], proof["device_write_bytes"])
    yield ""
    yield from _wrapped(
        f"last trial: {data['read']['count']} reads, {data['write']['count']} writes,"
        f" {requests['completed']} requests; {proof['io_mode']} I/O, sync {proof['sync']};"
        f" device moved {reads} of"
        f" the bytes read, {writes} of those written; {data['integrity']['checked']}"
        f" transfers verified, {data['integrity']['failed']} wrong;"
        f" {_cpu(data['harness'])}{_wakeup(data['wakeup'])}",
        indent="  ",
    )
    notes = {rank["io_note"] for rank in data["ranks"] if rank["io_note"]}
    for note in sorted(notes):
        yield from _wrapped(f"note: {note}", indent="  ")


def _moved(asked: int, moved: int | None) -> str:
    if moved is None:
        return "an unknown share"
    return f"{moved / asked:.0%}" if asked else "none"


def _cpu(harness: Mapping[str, Any]) -> str:
    per_gib = harness["cpu_s_per_gib"]
    return "no CPU figure" if per_gib is None else f"{per_gib:.2f} CPU s per GiB"


def _wakeup(section: Mapping[str, Any] | None) -> str:
    """How late the harness was for the requests of an open loop."""
    p99_ms = None if section is None else section["ms"]["p99"]
    return "" if p99_ms is None else f"; p99 of the wake-up lag {figure(p99_ms)} ms"


def _verdict_lines(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Each verdict once, with the trials it was given on."""
    given: dict[str, list[int]] = {}
    texts: dict[str, str] = {}
    for trial in trials:
        for verdict in trial.verdicts:
            given.setdefault(verdict.code, []).append(trial.index)
            texts[verdict.code] = f"{verdict.severity}: {verdict.text}"
    for code, indices in given.items():
        count = "" if len(indices) == len(trials) else f" (trial {', '.join(map(str, indices))})"
        yield from _wrapped(f"{code}{count} {texts[code]}", indent="  ")


def _wrapped(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH - 1, initial_indent=indent, subsequent_indent=indent + "  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def describe_progress(
    case: CaseResult, trial: int, trials: int, event: Mapping[str, Any], rate: ProgressRate
) -> str:
    """One line on a running trial; ``rate`` remembers the last event."""
    where = f"{case.name} trial {trial + 1}/{trials} {event['phase']}"
    if event["event"] != "progress":
        return where
    read, write = rate.gib_per_s(event)
    parts = [f"{event['t_s']:.0f} s"]
    if event["phase"] == "population":
        stored = event["cached_blocks"] * case.plan.stored_bytes
        parts.append(f"{format_bytes(stored)} stored")
    elif event["phase"] == "window" and event["prompt_blocks"]:
        parts.append(f"r {read:.2f} w {write:.2f} GiB/s")
        parts.append(f"hit {event['hit_blocks'] / event['prompt_blocks']:.0%}")
    return f"{where} {', '.join(parts)}"


class ProgressRate:
    """Turns the counters of two consecutive progress events into rates."""

    def __init__(self) -> None:
        self._last: Mapping[str, Any] | None = None

    def gib_per_s(self, event: Mapping[str, Any]) -> tuple[float, float]:
        """(read, write) since the event before; 0 where there was none."""
        last, self._last = self._last, event
        elapsed = 0.0 if last is None else event["t_s"] - last["t_s"]
        if last is None or elapsed < _SHORTEST_S or event["phase"] != last["phase"]:
            return 0.0, 0.0
        read = max(0, event["read_bytes"] - last["read_bytes"]) / elapsed / _GIB
        write = max(0, event["write_bytes"] - last["write_bytes"]) / elapsed / _GIB
        return read, write
