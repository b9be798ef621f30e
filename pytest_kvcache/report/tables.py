"""RunResult → text that fits 80 columns. Pure; prints nothing."""

from __future__ import annotations

import itertools
import math
from statistics import median
from typing import TYPE_CHECKING

from pytest_kvcache.measure.counters import TABLE
from pytest_kvcache.measure.metrics import ALWAYS_SHOWN, METRICS
from pytest_kvcache.measure.sections import OPERATIONS, TIERS
from pytest_kvcache.measure.series import DONE, KINDS
from pytest_kvcache.phases import PHASES
from pytest_kvcache.plan.possible import possible
from pytest_kvcache.plan.tiers import describe_tiers
from pytest_kvcache.report.engine import (
    describe_engine,
    drop_lines,
    engine_lines,
    sharing_lines,
    staged_lines,
)
from pytest_kvcache.report.headline import describe_users, sum_up
from pytest_kvcache.report.interference import interference_lines
from pytest_kvcache.report.load import describe_changes, describe_room
from pytest_kvcache.report.restart import describe_found, describe_restart
from pytest_kvcache.report.service import class_lines
from pytest_kvcache.report.text import figure, row, wrapped
from pytest_kvcache.report.usersearch import path_lines
from pytest_kvcache.report.worth import describe_worth
from pytest_kvcache.results.absence import absent_in_brief
from pytest_kvcache.results.prooftext import describe_io, describe_proof
from pytest_kvcache.results.summary import MetricSeries
from pytest_kvcache.results.verdicts.sizes import size_of
from pytest_kvcache.showable import COLUMNS
from pytest_kvcache.system.mountoptions import asks_for_flushes
from pytest_kvcache.traces.recorded import reading_notes
from pytest_kvcache.traces.times import TimeUnit
from pytest_kvcache.units import GIB, format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pytest_kvcache.hosts.cluster import Survey
    from pytest_kvcache.measure.counters import Counters
    from pytest_kvcache.plan.plan import Plan, TracePlan
    from pytest_kvcache.results.case import CaseResult
    from pytest_kvcache.results.outcome import TrialResult
    from pytest_kvcache.results.run import RunResult
    from pytest_kvcache.results.trial import Section, TierFigures, Trial
    from pytest_kvcache.results.verdictcodes import Verdict

_BARS = " ▁▂▃▄▅▆▇█"
_ASCII_BARS = " .:-=+*#@"
_HOST_WIDTH = 17
_NAME_WIDTH = 22  # of a metric
_LATE_S = 0.1  # a rank that changes its load so late is told of
_SHARED_WIDTH = 13  # what the other columns leave


def report_run(run: RunResult, metrics: Sequence[str]) -> str:
    """All cases of a run, one table each."""
    return "\n\n".join("\n".join(_case(case, metrics)) for case in run.shown)


def report_series(case: CaseResult, *, ascii_only: bool) -> Iterator[str]:
    """GiB/s over time as a bar per interval, a line per trial and kind that moved anything.

    All trials of a case have one scale for each kind, which stands in the first line. Of
    series that are longer than the line, bars are means of equally many intervals.
    """
    rates = {kind: [*_rates(case, kind)] for kind in KINDS}
    highest = {
        kind: max(max(values) for _trial, values in rows) for kind, rows in rates.items() if rows
    }
    if highest:
        full = (_ASCII_BARS if ascii_only else _BARS)[-1]
        scale = ", ".join(f"{DONE[kind]} {figure(top)}" for kind, top in highest.items())
        yield f"{case.name}, GiB/s over time"
        yield f"  from 0 (blank) to {full} = {scale}"
    for trial, kind in itertools.product(case.trials, highest):
        values = dict(rates[kind]).get(trial.index)
        if values:
            head = f"  trial {trial.index + 1} {kind:<6}"
            tail = f" {figure(min(values))} to {figure(max(values))} GiB/s"
            width = COLUMNS - 1 - len(head) - len(tail)
            bars = sparkline(_fitted(values, width), highest[kind], ascii_only=ascii_only)
            yield f"{head}{bars}{tail}"


def _rates(case: CaseResult, kind: str) -> Iterator[tuple[int, list[float]]]:
    """GiB/s of each interval, of the trials in which anything moved."""
    for trial in case.trials:
        if trial.measured is None:
            continue
        series = trial.measured.series
        rates = [moved_bytes / series.interval_s / GIB for moved_bytes in series.moved(kind)]
        if any(rates):
            yield trial.index, rates


def _fitted(values: Sequence[float], width: int) -> list[float]:
    """At most ``width`` values: means of equally many; the last one of what is left."""
    each = -(-len(values) // width)
    parts = [values[begin : begin + each] for begin in range(0, len(values), each)]
    return [sum(part) / len(part) for part in parts]


def sparkline(values: Sequence[float], full: float, *, ascii_only: bool) -> str:
    """A character per value, from 0 (the lowest bar is left to what is 0) to ``full``."""
    bars = _ASCII_BARS if ascii_only else _BARS
    steps = len(bars) - 1
    return "".join(bars[math.ceil(value / full * steps)] if value else bars[0] for value in values)


def _case(case: CaseResult, metrics: Sequence[str]) -> Iterator[str]:
    yield case.name
    yield from wrapped(describe_case(case), indent="  ")
    judged = [trial for trial in case.trials if trial.ok or trial.invalidated]
    if len(judged) == len(case.counted) and judged:
        yield ""
        verdicts = [*(v for trial in judged for v in trial.verdicts), *case.verdicts]
        yield from wrapped(sum_up(case.plan, verdicts, _median_of(judged)), indent="  ")
        yield ""
        shown = possible(metrics, case.plan)
        of_run = case.plan.requests is not None or case.plan.restarts
        always = possible(("run.s", *ALWAYS_SHOWN) if of_run else ALWAYS_SHOWN, case.plan)
        yield from _table(case, judged, [*shown, *(m for m in always if m not in shown)])
        yield from class_lines(case.plan, judged)
        yield from interference_lines(case.plan, judged)
        worth = describe_worth(case.plan, judged)
        yield from ["", *wrapped(worth, indent="  ")] if worth else []
        yield from _tier_lines(case.plan, judged[-1])
        yield from _load_step_lines(judged)
        yield from _last_trial_lines(case.plan, judged)
        last = judged[-1].measured
        yield from [] if last is None else engine_lines(case.plan, last)
        yield from [] if last is None else sharing_lines(case.plan, last)
        yield from [] if last is None else drop_lines(case.plan, last)
        yield from [] if last is None else staged_lines(case.plan, last)
    yield from path_lines(case)
    for trial in case.trials:
        if trial.error is not None:
            first = trial.error.splitlines()[0]
            head = "" if trial.interrupted else f"trial {trial.index + 1} failed: "
            yield from wrapped(head + first, indent="  ")
    yield from _verdict_lines(judged)
    for verdict in case.verdicts:
        text = f"{verdict.code} {verdict.severity}: {verdict.text}"
        yield from wrapped(text, indent="  ")


def _median_of(trials: Sequence[TrialResult]) -> Callable[[str], str | None]:
    def median(metric: str) -> str | None:
        series = _series_of(metric, trials)
        return None if series is None else figure(series.median)

    return median


def describe_case(case: CaseResult) -> str:
    """The plan as it was carried out, on what its ranks found."""
    ranks = [rank for trial in case.measured for rank in trial.ranks]
    files = [rank.filesystem for rank in ranks if rank.filesystem is not None]
    return describe_plan(
        case.effective_plan,
        in_memory=any(facts.memory_at_end for facts in files),
        flushes=all(asks_for_flushes(facts.options) for facts in files),
    )


def describe_window(plan: Plan) -> str:
    """How long it is, or what ends it."""
    if plan.requests is not None:
        return f"until {format_count(plan.requests, 'request')} of each rank are done"
    if plan.restarts:
        return "until the index of each rank is usable again"
    return "until the trace ends" if plan.duration_s is None else f"{plan.duration_s:g} s"


def describe_plan(plan: Plan, *, in_memory: bool = False, flushes: bool = True) -> str:
    """One sentence on what runs, where.

    ``in_memory``: the cache directory's files are; ``flushes``: a sync empties the device's cache.
    """
    hosts = ", ".join(f"{host.name}:{host.ranks}" for host in plan.layout.hosts)
    window = describe_window(plan)
    how = " as slabs" if plan.store == "slab" else ""
    where = f"{how} in {plan.cache_dir}" if plan.needs_directory else ""
    lasts = plan.sync == "data" and plan.needs_directory and not in_memory
    durable = "durable" if lasts else "not durable"
    if lasts and not flushes:
        durable = "synced, but not durable (mounted without barriers)"
    derived = "" if plan.trace is None else _how_derived(plan.origins.get("block_tokens", ""))
    data = ", strict data" if plan.data == "strict" and plan.traits.stores_data else ""
    users = describe_users(plan)
    tiers = describe_tiers(plan.tiers, plan.tier_policy)
    before = f"; in front of it {tiers}" if tiers else ""
    tokens = format_count(plan.block_tokens, "token")
    blocks = f"blocks of {tokens}{derived} = {describe_block(plan)}"
    if plan.own_block_bytes is not None:
        blocks = f"objects of up to {format_bytes(plan.own_block_bytes)}"
    phase = "" if PHASES[plan.phase].is_whole else f"{plan.phase} only; "
    if plan.interference is not None:
        phase = "loads of stored contexts, with stores beside them and without; "
    if plan.restarts:
        phase = f"{describe_restart(plan)}, of what was stored for "
    changes = "".join(f"; {change}" for change in describe_changes(plan))
    if plan.request_rate is not None:
        users = f"{plan.request_rate:g} requests/s ({plan.arrival}) by {users}"
    elif plan.trace is not None and plan.trace.speedup:
        users = _replayed(plan.trace, is_assumed="trace_time_unit" in plan.origins)
    if plan.trace is not None:
        notes = reading_notes(plan.trace.ids, plan.trace.left_out, plan.trace.tokens_by)
        users = "; ".join((users, *notes))
    return (
        f"{format_count(plan.np, 'rank')} on {hosts}; {phase}{users}{changes}; {blocks};"
        f" {plan.backend}{where}{describe_engine(plan)}, {durable}{data}{describe_room(plan)}"
        f"{before};"
        f" depth {plan.most_in_flight}; window {window}"
    )


def _replayed(trace: TracePlan, *, is_assumed: bool) -> str:
    """Which requests, in which times; a unit that was only assumed is said to be."""
    unit = TimeUnit(name=trace.time_unit, is_assumed=is_assumed)
    speed = "at their recorded times"
    if trace.speedup != 1:
        speed = f"{trace.speedup:g} times as fast as recorded"
    return (
        f"{format_count(trace.requests, 'request')} of {trace.name}, recorded within"
        f" {trace.span_s:g} s ({unit}), {speed}"
    )


def _how_derived(origin: str) -> str:
    """Where a block size comes from that nobody gave."""
    return f" ({origin})" if origin.startswith("derived") else ""


def describe_block(plan: Plan) -> str:
    """The size of a block, and how many objects of which size it is if it is several."""
    size = format_bytes(plan.block_bytes)
    if plan.unlike_parts:
        parts = ", ".join(_describe_parts(plan))
        return f"{size} in {format_count(plan.objects_per_block, 'object')}: {parts}"
    if plan.object_layout == "block" or plan.objects_per_block == 1:
        return size
    objects = format_count(plan.objects_per_block, "object")
    which = "a layer each" if plan.object_layout == "layer" else "its keys and its values"
    return f"{size} in {objects} of {format_bytes(plan.object_bytes)} ({which})"


def _describe_parts(plan: Plan) -> Iterator[str]:
    """What each group of layers keeps of a block."""
    for part, alike in itertools.groupby(plan.parts):
        count = len(list(alike))
        times = f"{count} × " if count > 1 else ""
        yield f"{part.group.kind} {times}{format_bytes(part.object_bytes)}"


def describe_survey(survey: Survey) -> list[str]:
    """A table of the hosts, and a line for each problem."""
    lines = [
        f"kvcache: asked {format_count(len(survey.names), 'host')} in {survey.elapsed_s:.1f} s",
        _host_row("host", "cores", "memory", "disk free", "filesystem", "direct", "shared with"),
    ]
    for host in survey.names:
        name, *cells = _host_cells(survey, host)
        if len(name) > _HOST_WIDTH:  # whole, on a line of its own: no other has this name
            lines += wrapped(name, indent="  ")
            name = ""
        lines.append(_host_row(name, *cells))
    for host, texts in survey.problems.items():
        for text in texts:
            lines += wrapped(f"host {host}: {text}", indent="  ")
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
            shared = format_count(len(others), "other")
    return [host, str(facts.cores), memory, free, kind, direct, shared]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _some(names: Sequence[str]) -> str:
    more = len(names) - 1
    return names[0] if more == 0 else f"{names[0]} and {more} more" if names else ""


def _table(
    case: CaseResult, trials: Sequence[TrialResult], metrics: Sequence[str]
) -> Iterator[str]:
    """A row per metric; the service times of reads and writes with the depth they are of."""
    if not all(trial.ok for trial in trials):
        yield "  INVALID: what was reached all the same, for no comparison"
    head = f"{'unit':<11}{'median':>10}{'95 % CI of the mean':>23}{'CV':>7}{'n':>4}"
    yield from row("metric", _NAME_WIDTH, head)
    depth = f"@{case.plan.most_in_flight}"
    of_depth = [name for name in metrics if _depends_on_depth(name)]
    for name in metrics:
        label = f"{name} {depth}" if name in of_depth else name
        looks = max(1, len(case.looks))
        series = _series_of(name, trials, looks)
        absent = "" if series else absent_in_brief(trials, name)
        yield from row(label, _NAME_WIDTH, _cells(METRICS[name].unit, series, absent))
    if of_depth:
        yield f"  {depth}: service time with up to {case.plan.most_in_flight} in flight per rank"


def _load_step_lines(trials: Sequence[TrialResult]) -> Iterator[str]:
    """A line per load step: medians over the trials, of what began in it."""
    by_step = [*zip(*(t.measured.load_steps for t in trials if t.measured), strict=True)]
    if not by_step:
        return
    yield ""
    yield _step_row("load step", "users", "read GiB/s", "write GiB/s", "requests/s", "load p95 ms")
    for steps in by_step:
        yield _step_row(
            f"{steps[0].begin_s:.5g} to {steps[0].end_s:.5g} s",
            f"{steps[0].users_in_all:,}",
            _median_figure([step.read.gib_per_s for step in steps]),
            _median_figure([step.write.gib_per_s for step in steps]),
            _median_figure([step.requests_per_s for step in steps]),
            _median_figure([step.load.ms.p95 for step in steps]),
        )
    late_s = max(step.late_s for steps in by_step for step in steps)
    if late_s >= _LATE_S:
        yield from wrapped(
            f"a rank changed its load up to {late_s:.1f} s late: its loop was held up then",
            indent="  ",
        )


def _step_row(span: str, *cells: str) -> str:
    users, read, write, requests, load = cells
    return f"  {span:<17}{users:>11}{read:>11}{write:>12}{requests:>12}{load:>13}"


def _median_figure(values: Sequence[float | None]) -> str:
    """The median of a figure that every trial has."""
    known = [value for value in values if value is not None]
    return figure(median(known)) if len(known) == len(values) else "—"


def _series_of(metric: str, trials: Sequence[TrialResult], looks: int = 1) -> MetricSeries | None:
    """The metric over these trials, be they valid or not; None if any of them lacks it."""
    values = tuple(v for v in (trial.value(metric) for trial in trials) if v is not None)
    if len(values) != len(trials):
        return None
    spec = METRICS[metric]
    return MetricSeries(name=metric, unit=spec.unit, better=spec.better, values=values, looks=looks)


def _depends_on_depth(metric: str) -> bool:
    """Whether a metric is the time of an operation beside others, without its wait for them."""
    return METRICS[metric].latency and METRICS[metric].section in ("read", "write", "device")


def _cells(unit: str, series: MetricSeries | None, absent: str) -> str:
    if series is None:
        return f"{unit:<11}{'—':>10}   {absent}"
    interval = series.ci95
    spread = "—" if interval is None else f"{figure(interval[0])} … {figure(interval[1])}"
    cv = "—" if series.cv is None else f"{series.cv:.0%}"
    return f"{unit:<11}{figure(series.median):>10}{spread:>23}{cv:>7}{len(series.values):>4}"


def _tier_lines(plan: Plan, trial: TrialResult) -> Iterator[str]:
    """Which tier served how much, and what came into it, of the last trial; none: nothing."""
    measured = trial.measured
    if not plan.tiers or measured is None:
        return
    yield ""
    yield _tier_row(f"tier, {plan.tier_policy}", "capacity", "of prompts", "stored", "moved in")
    for name in TIERS:
        tier: TierFigures | None = getattr(measured.cache.tiers, name)
        if tier is None:
            continue
        stored = getattr(measured.counters, f"{name}_stored_blocks")
        moved = (f"{name}_{what}_in_bytes" for what in ("demoted", "promoted"))
        moved_in_bytes = sum(getattr(measured.counters, each) for each in moved if each in TABLE)
        made_of = "index only: holds no bytes" if tier.kind == "index" else tier.kind
        yield _tier_row(
            f"{name} ({made_of})",
            format_bytes(tier.capacity_bytes),
            "—" if tier.hit_ratio is None else f"{tier.hit_ratio:.2%}",
            f"{stored:,}",
            format_bytes(moved_in_bytes),
        )
    yield from wrapped(
        "of prompts: share of all prompt blocks, in the window; stored: blocks, and moved in: those"
        " that came from another tier, in the whole run; last trial",
        indent="  ",
    )


def _tier_row(tier: str, *cells: str) -> str:
    return f"  {tier:<32}" + "".join(f"{cell:>11}" for cell in cells)


def _last_trial_lines(plan: Plan, trials: Sequence[TrialResult]) -> Iterator[str]:
    """What the last trial did, and what carried it out."""
    trial = trials[-1].measured
    assert trial is not None
    yield ""
    if plan.restarts:
        yield from wrapped(describe_found(plan, trial), indent="  ")
    else:
        yield from _proof_lines(trial)
    for engine in dict.fromkeys(rank.io_engine for rank in trial.ranks):
        reasons = [r.io_engine_reason for r in trial.ranks if r.io_engine == engine]
        ranks = format_count(len(reasons), "rank")
        yield from wrapped(f"I/O engine {engine} ({ranks}): {reasons[0]}", indent="  ")
    notes = {rank.io_note for rank in trial.ranks if rank.io_note}
    for note in sorted(notes):
        yield from wrapped(f"note: {note}", indent="  ")


def _proof_lines(trial: Trial) -> Iterator[str]:
    """Where the bytes went."""
    counted = trial.counters
    sections = {kind: getattr(trial, kind) for kind in OPERATIONS}
    done = [format_count(s.count, kind) for kind, s in sections.items() if s is not None]
    answered = format_count(counted.completed_in_window, "request")
    checked = format_count(counted.checked, "transfer")
    yield from wrapped(
        f"last trial, in the window: {', '.join(done)}, {answered} answered;"
        f"{''.join(_beside_prefixes(counted))} {describe_io(trial)}. In the"
        f" whole run: {describe_proof(trial)};{_preconditioned(counted)} {checked} verified,"
        f" {counted.corrupt:,} wrong; {_cpu(trial)}; at most"
        f" {format_bytes(counted.peak_rss_bytes)} of memory per rank"
        f"{_scheduling_lag(trial.scheduling_lag)}",
        indent="  ",
    )


def _preconditioned(counted: Counters) -> str:
    """What was written before the cache was filled, and who saw it; empty: nothing was."""
    wrote, arrived = counted.precondition_bytes, counted.precondition_arrived_bytes
    if not wrote:
        return ""
    seen = "which no kernel counted"
    if arrived is not None:
        seen = f"of which the kernel gave {arrived / wrote:.0%} to devices"
    took = f"{figure(counted.precondition_s)} s"
    return f" preconditioned by {format_bytes(wrote)} before in {took}, {seen};"


def _beside_prefixes(counted: Counters) -> Iterator[str]:
    """What the hit ratio does not count: blocks beside prefixes, and reads after a store."""
    if counted.beside_blocks:
        found = counted.beside_hit_blocks / counted.beside_blocks
        yield (
            f" {counted.beside_hit_blocks:,} of"
            f" {format_count(counted.beside_blocks, 'block')} beside prefixes found ({found:.2%});"
        )
    if counted.reread_count:
        yield f" {counted.reread_count:,} of the reads were rereads of what was just stored;"


def _cpu(trial: Trial) -> str:
    per_gib = trial.harness.cpu_s_per_gib
    return "no CPU figure" if per_gib is None else f"{per_gib:.2f} CPU s per GiB"


def _scheduling_lag(section: Section | None) -> str:
    """How late the harness was for the requests of an open loop."""
    p99_ms = None if section is None else section.ms.p99
    return "" if p99_ms is None else f"; p99 of the scheduling lag {figure(p99_ms)} ms"


def _verdict_lines(trials: Sequence[TrialResult]) -> Iterator[str]:
    """Each verdict once, with the trials it was given on and the one whose words these are.

    That is the one that has it worst, where a verdict carries a size, else the first.
    """
    given: dict[str, dict[int, list[Verdict]]] = {}
    for place, trial in enumerate(trials):
        error = trial.error or ""
        for verdict in (v for v in trial.verdicts if v.text not in error):
            given.setdefault(verdict.code, {}).setdefault(place, []).append(verdict)
    for code, by_place in given.items():
        measured = {place: trials[place].measured for place in by_place}
        sizes = {
            p: None if trial is None else size_of(code, trial) for p, trial in measured.items()
        }
        known = [size for size in sizes.values() if size is not None]
        sized = len(known) == len(sizes)
        shown = next(p for p in by_place if not sized or sizes[p] == max(known))
        which = _which(trials, by_place, shown, "worst:" if sized else "as in")
        for verdict in by_place[shown]:
            yield from wrapped(f"{code}{which} {verdict.severity}: {verdict.text}", indent="  ")


def _which(
    trials: Sequence[TrialResult],
    by_place: Mapping[int, Sequence[Verdict]],
    shown: int,
    how: str,
) -> str:
    """`` (trial 1, 3; worst: trial 1)``; nothing where all trials say the same."""
    numbers = [str(trials[place].index + 1) for place in by_place]
    everywhere = len(by_place) == len(trials)
    if all(said == by_place[shown] for said in by_place.values()):
        return "" if everywhere else f" (trial {', '.join(numbers)})"
    which = f"all {len(trials)} trials" if everywhere else f"trial {', '.join(numbers)}"
    return f" ({which}; {how} trial {trials[shown].index + 1})"
