"""What a trial's record and its plan can't say without contradicting themselves. Pure.

These are the laws that hold between figures that stand for themselves, whatever happened
in the trial. What is derived from others is not looked at here: it is derived anew where a
record is read, and verify.py compares.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError, ResultError
from pytest_kvcache.masking import MASK
from pytest_kvcache.measure.counters import (
    MAY_BE_UNKNOWN,
    TABLE,
    AtMost,
    AtMostPlanned,
    CountOf,
    merged,
)
from pytest_kvcache.measure.metrics import never_makes
from pytest_kvcache.measure.recorder import widest_slice_s
from pytest_kvcache.measure.series import KINDS, MAX_POINTS
from pytest_kvcache.measure.stalls import EVERY
from pytest_kvcache.plan.origins import decided_by
from pytest_kvcache.plan.plan import DECIDED_BY, TracePlan
from pytest_kvcache.registry import BACKENDS
from pytest_kvcache.system.devicechain import end_of_type, may_be_disk
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES
from pytest_kvcache.system.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.measure.counters import Law
    from pytest_kvcache.options.table import OptionSpec
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.system.devicechain import Link

_CLOCK_S = 1e-6  # what seconds as floats may be off
_ROUNDING = 1e-9  # of a quotient
_BUSY_ROUNDING_S = 0.1  # the kernel counts busy time in its own ticks

# Of the filesystem that ranks of a host share: what is taken and freed (ZFS's size is what is
# free and what it holds) while one rank after the other looks.
_CHANGES_IN_TIME = frozenset({"total_bytes", "available_bytes", "available_inodes"})

_ORDERED = ("start_s", "stop_s", "drained_s")
_AROUND = tuple(
    fact.name for fact in fields(Surroundings) if str(fact.type).startswith(("int", "float"))
)


def record_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Every contradiction within a trial's record, a sentence each."""
    for rank in record.ranks:
        for fault in _rank_faults(rank, plan):
            yield f"rank {rank.rank} on host {rank.host}: {fault}"
    yield from _count_faults(record)
    yield from _clock_faults(record)
    yield from _device_faults(record)
    yield from _window_faults(record, plan)
    yield from _series_faults(record, plan)
    yield from _arrival_faults(record, plan)


def check_record(record: TrialRecord, plan: Plan) -> None:
    """Raise ResultError with the first contradiction within a record."""
    fault = next(record_faults(record, plan), None)
    if fault is not None:
        raise ResultError(
            f"the trial's record contradicts itself: {fault}; run it again, and report the"
            " trial.json if that comes back"
        )


_IO_ENGINES = (*KERNEL_ENGINES, "threads", "inline")


def _rank_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    for name in ("pid", *TABLE):
        value = getattr(rank, name)
        if not (value is None and name in MAY_BE_UNKNOWN) and not value >= 0:
            yield f"{name} is {value}; it must be at least 0"
    for name, row in TABLE.items():
        for law in row.laws:
            yield from _law_faults(name, law, rank, plan)
    yield from _surroundings_faults(rank.surroundings)
    yield from _place_faults(rank, plan)
    yield from _engine_faults(rank, plan)
    for early, late in itertools.pairwise(_ORDERED):
        before, after = getattr(rank, early), getattr(rank, late)
        if not before <= after + _CLOCK_S:
            yield f"{early} is {before}; it must be at most {late}, which is {after}"
    drained_s = rank.drained_s - plan.ramp_s
    beyond = (stall for stall in rank.stalls if stall.end_s > drained_s + _CLOCK_S)
    yield from (f"a stall ends at {s.end_s} s; the rank was done at {drained_s} s" for s in beyond)
    if any(stall.paused_s for stall in rank.stalls) and not rank.longest_pause_s:
        yield f"a stall has paused_s; longest_pause_s is {rank.longest_pause_s}, so it must have 0"


def _law_faults(name: str, law: Law, rank: RankResult, plan: Plan) -> Iterator[str]:
    """What breaks a law of the table of counters, as far as it is about one rank."""
    value = getattr(rank, name)
    if isinstance(law, AtMost):
        names = (name, *law.beside)
        part, whole = sum(getattr(rank, each) for each in names), getattr(rank, law.whole)
        if part > whole:
            yield f"{' + '.join(names)} is {part}; it must be at most {law.whole}, which is {whole}"
    elif isinstance(law, AtMostPlanned):
        limit = getattr(plan, law.limit)
        if (value or 0) > limit * (1 + _ROUNDING):
            yield f"{name} is {value}; it must be at most the plan's {law.limit}, which is {limit}"
    elif value and never_makes(law.section, plan.phase):
        yield f"{name} is {value}; it must be 0 with phase {plan.phase}"


def _count_faults(record: TrialRecord) -> Iterator[str]:
    """What the ranks have counted one by one, and what their histograms hold."""
    together = merged(record.ranks)
    for name, row in TABLE.items():
        for law in row.laws:
            if isinstance(law, CountOf):
                counted, held = getattr(together, name), record.histograms[law.section].count
                if counted != held:
                    yield (
                        f"its ranks counted {counted} {law.section}s; the histogram holds {held}"
                    )


def _place_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """What is measured is what the backend's traits say; the directory is the plan's."""
    if rank.is_storage != plan.traits.is_storage:
        yield (
            f"is_storage is {rank.is_storage}; by the traits of the backend {plan.backend} it must"
            f" be {plan.traits.is_storage}"
        )
    if rank.filesystem is not None and not plan.traits.kernel_counts:
        yield (
            f"filesystem is there; by the traits of the backend {plan.backend} no filesystem tells"
            " of its bytes"
        )
    if rank.filesystem is not None:
        for name, value in (("host", rank.host), ("path", plan.cache_dir)):
            found = getattr(rank.filesystem, name)
            if found != value:
                yield f"filesystem.{name} is {found!r}; it must be {value!r}"


def _engine_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """What carried transfers out is the engine that was asked for, and says what it is."""
    name, asynchronous = rank.io_engine, rank.io_engine_asynchronous
    if name not in _IO_ENGINES:
        yield f"io_engine is {name!r}; it must be one of {', '.join(_IO_ENGINES)}"
        return
    if plan.io_engine not in ("auto", name):
        yield f"io_engine is {name!r}; the plan asks for {plan.io_engine}"
    if not rank.io_engine_reason:
        yield f"io_engine_reason is {rank.io_engine_reason!r}; it must say why {name} was taken"
    if isinstance(asynchronous, bool) != (name in KERNEL_ENGINES):
        yield (
            f"io_engine_asynchronous is {asynchronous!r}; it must be true or false where the kernel"
            f" moves the bytes, and null elsewhere, and io_engine is {name!r}"
        )


def _surroundings_faults(around: Surroundings) -> Iterator[str]:
    """Counters only grow; a group is not stopped more often than it has periods."""
    for name in _AROUND:
        value = getattr(around, name)
        if value is not None and not value >= 0:
            yield f"surroundings.{name} is {value}; it must be at least 0"
    told = (around.cpu_periods, around.throttled_periods, around.throttled_s)
    if len({value is None for value in told}) > 1:
        yield "surroundings has some of a quota's counters only; the kernel tells all or none"
    periods, throttled = around.cpu_periods or 0, around.throttled_periods or 0
    if throttled > periods:
        yield (
            f"surroundings.throttled_periods is {throttled}; it must be at most cpu_periods, which"
            f" is {periods}"
        )
    if around.throttled_s and not throttled:
        yield (
            f"surroundings.throttled_s is {around.throttled_s}; it must be 0, as no period was"
            " throttled"
        )


def _clock_faults(record: TrialRecord) -> Iterator[str]:
    """What several clocks say of one span."""
    clock = record.clock
    least_s, most_s = clock.controller_least_s, clock.controller_most_s
    if not clock.coordinator_s > 0:
        yield f"clock.coordinator_s is {clock.coordinator_s}; it must be above 0"
    if (least_s is None) != (most_s is None):
        yield "clock has one of controller_least_s and controller_most_s; it must have both or none"
    elif least_s is not None and most_s is not None and not 0 <= least_s <= most_s:
        yield (
            f"clock.controller_least_s is {least_s}; it must be between 0 and controller_most_s,"
            f" which is {most_s}"
        )
    if not 0 <= clock.drift_rank < len(record.ranks):
        yield f"clock.drift_rank is {clock.drift_rank}; it must be one of the ranks"


def _device_faults(record: TrialRecord) -> Iterator[str]:
    """The first rank of each host with a directory, and no other one, has watched its disks."""
    hosts: dict[str, list[RankResult]] = {}
    for rank in record.ranks:
        hosts.setdefault(rank.host, []).append(rank)
    for host, ranks in hosts.items():
        for number, rank in enumerate(ranks):
            if (rank.device is not None) != (number == 0 and rank.filesystem is not None):
                yield (
                    f"rank {rank.rank} on host {host} has {'a' if rank.device else 'no'} device;"
                    " the first rank of a host with a filesystem has one, no other"
                )
        found = [rank.filesystem for rank in ranks if rank.filesystem is not None]
        yield from _shared_faults(host, found)
        for fault in itertools.chain(*map(_filesystem_faults, found[:1]), _watch_faults(ranks)):
            yield f"host {host}: {fault}"


def _shared_faults(host: str, found: Sequence[FilesystemFacts]) -> Iterator[str]:
    """Ranks of one host use one directory; only its room changes while they look, one by one."""
    for name in sorted({fact.name for fact in fields(FilesystemFacts)} - _CHANGES_IN_TIME):
        if any(getattr(facts, name) != getattr(found[0], name) for facts in found):
            yield f"ranks on host {host} differ in filesystem.{name}; they share one directory"


def _filesystem_faults(facts: FilesystemFacts) -> Iterator[str]:
    """What the chain below a filesystem can't be. All that follows from it is derived anew."""
    ends = facts.chain.ends
    for name in filter(None, (facts.device or "").split("+")):
        if not any(end.startswith(name) for end in ends):  # a partition may be the end of it
            yield f"filesystem.device has {name}, which is not at the end of the chain"
    yield from _chain_faults(facts.chain.links, facts.type)


def _chain_faults(chain: Sequence[Link], fs_type: str) -> Iterator[str]:
    """Links below each other, from the filesystem down to where each branch ends."""
    if [link.name for link in chain[:1]] != [fs_type]:
        yield f"chain does not begin with the filesystem, {fs_type}"
    carrying = {link.above for link in chain}
    for index, link in enumerate(chain):
        above, end, name = link.above, link.end, link.name
        if (above is None) != (index == 0) or (above is not None and not 0 <= above < index):
            yield f"chain[{index}].above is {above}; every link but the first is below another"
        if end is None and index not in carrying:
            yield f"chain[{index}].end is None, and nothing is below it"
        known = end_of_type(name) if link.kind == "filesystem" else None
        if known is not None and end != known:
            yield f"chain[{index}].end is {end!r}; of {name} it is {known!r}"
        if end == "disk" and not (link.kind == "disk" and may_be_disk(name)):
            yield f"chain[{index}] ends in a disk; {name}, a {link.kind}, is none"


def _watch_faults(ranks: Sequence[RankResult]) -> Iterator[str]:
    """Counters that a disk can have, over a span that covers the ranks' own."""
    first = ranks[0]
    if first.device is None or first.filesystem is None:
        return
    watch, disks = first.device, first.device.disks
    if not watch.run_s >= first.drained_s - _CLOCK_S:
        yield f"device.run_s is {watch.run_s}; it must be at least {first.drained_s}, drained_s"
    names = [disk.name for disk in disks]
    if disks and names != list(first.filesystem.chain.disks):
        yield f"device.disks are {names}; they must be those at the end of the chain"
    for disk in disks:
        for span, moved, span_s in (
            ("quiet", disk.quiet, watch.quiet_s),
            ("run", disk.run, watch.run_s),
            ("after", disk.after, watch.after_s),
        ):
            for name, value in asdict(moved).items():
                if not value >= 0:
                    yield f"device {disk.name}: {span}.{name} is {value}; it must be at least 0"
            if not moved.busy_s <= span_s + _BUSY_ROUNDING_S:
                yield f"device {disk.name}: {span}.busy_s is more than the time there was"
    if watch.sync_probe is not None and first.sync != "data":
        yield "device.sync_probe is there; without --kv-sync=data there is none"


def _window_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """The common window lasts until the first rank stops, cut to whole slices."""
    stop_s = min(rank.stop_s for rank in record.ranks) - plan.ramp_s
    if plan.duration_s is not None:
        stop_s = min(stop_s, plan.duration_s)
    most_s = max(0.0, stop_s)
    booked_s = max(rank.drained_s for rank in record.ranks) - plan.ramp_s
    least_s = max(0.0, most_s - widest_slice_s(booked_s))
    if not least_s - _CLOCK_S <= record.window_s <= most_s + _CLOCK_S:
        yield (
            f"window_s is {record.window_s}; by the ranks' stop_s it must be between"
            f" {least_s:.6g} and {most_s:.6g}"
        )


def _series_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """The series has the window's whole intervals."""
    series, window_ns = record.series, round(record.window_s * 1e9)
    points = window_ns // series.interval_ns
    if series.points != points:
        yield f"the series has {series.points} points; a window of {record.window_s} s has {points}"
    booked_s = max(rank.drained_s for rank in record.ranks) - plan.ramp_s
    if series.interval_ns / 1e9 > max(1.0, 2 * booked_s / MAX_POINTS):
        yield (
            f"the series has intervals of {series.interval_ns / 1e9:g} s; {booked_s:.6g} s fit"
            f" into {MAX_POINTS} narrower ones"
        )
    for kind in KINDS:
        yield from _series_bytes_faults(record, plan, kind)
        yield from _stall_faults(record, kind)


def _series_bytes_faults(record: TrialRecord, plan: Plan, kind: str) -> Iterator[str]:
    """No bytes that the window lacks; where objects are of one size, so much of each."""
    series, window_ns = record.series, round(record.window_s * 1e9)
    told = series.moved(kind)
    moved_bytes, op_bytes, count = (
        sum(getattr(rank, f"{kind}_{what}") for rank in record.ranks)
        for what in ("bytes", "op_bytes", "count")
    )
    whole = series.points * series.interval_ns == window_ns
    if sum(told) > moved_bytes or (whole and sum(told) != moved_bytes):
        yield (
            f"the series has {sum(told)} bytes of {kind}s; it must be {'' if whole else 'at most '}"
            f"those of the window, which are {moved_bytes}"
        )
    if count and op_bytes == count * plan.object_bytes:
        operations = series.done(kind)
        for point, (found, moved) in enumerate(zip(operations, told, strict=True)):
            if moved != found * plan.object_bytes:
                yield (
                    f"the series has {moved} bytes of {found} {kind}s in interval {point}; each"
                    f" moves {plan.object_bytes}"
                )


def _stall_faults(record: TrialRecord, kind: str) -> Iterator[str]:
    """A stall begins in the window; nothing was completed where all ranks stood still."""
    series, spans = record.series, []
    for rank in record.ranks:
        late = [stall for stall in rank.stalls if stall.begin_s >= record.window_s + _CLOCK_S]
        if late and kind == KINDS[0]:
            yield f"rank {rank.rank}: a stall begins at {late[0].begin_s} s, after the window"
        spans.append([(s.begin_s, s.end_s) for s in rank.stalls if s.kind in (EVERY, kind)])
    width_s = series.interval_ns / 1e9
    for point, done in enumerate(series.done(kind)):
        begin_s, end_s = point * width_s, (point + 1) * width_s
        stood = all(any(b < begin_s and end_s <= e for b, e in of_rank) for of_rank in spans)
        if done and stood:
            yield (
                f"the series has {done} {kind}s in interval {point}, in which all ranks stood still"
            )


def _arrival_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """In an open loop whatever has an answer, or waits for one, has arrived."""
    arrived = record.histograms["wakeup"].count
    if not (plan.open_loop or arrived):
        return
    answered = record.histograms["request"].count
    waited = answered + sum(rank.request_censored for rank in record.ranks)
    offered = sum(rank.offered for rank in record.ranks)
    if not waited <= arrived <= offered:
        yield (
            f"wakeup.count is {arrived}; it must be between the {waited} requests of the window"
            f" and all {offered} that were offered"
        )


# --- the plan ---------------------------------------------------------------------------------

_CORES = ("split", "shared")


def plan_faults(plan: Plan) -> Iterator[str]:
    """Every value of a plan that no option could have led to, a sentence each."""
    yield from _broken_rules(plan, DECIDED_BY, "plan.")
    for name, minimum in (("trial", 0), ("capacity_blocks", 1), ("need_blocks", 0)):
        value = getattr(plan, name)
        if type(value) is not int or value < minimum:
            yield f"plan.{name} is {value!r}; it must be a whole number of at least {minimum}"
    if not plan.deadline_s > 0:
        yield f"plan.deadline_s is {plan.deadline_s}; it must be above 0"
    if plan.cores not in _CORES:
        yield f"plan.cores is {plan.cores!r}; it must be one of {', '.join(_CORES)}"
    built_in = BACKENDS.get(plan.backend)
    if built_in is not None and plan.traits != built_in.traits:
        yield f"plan.traits are not those of the backend {plan.backend}, which is built in"
    yield from _setting_faults(plan)
    stores = plan.traits.stores or (None,)
    if plan.store not in stores:
        known = " or ".join(str(store) for store in stores)
        yield f"plan.store is {plan.store!r}; for the backend {plan.backend} it must be {known}"
    if plan.trace is not None:
        deciding = decided_by(TracePlan.__dataclass_fields__, "trace.")
        yield from _broken_rules(plan.trace, deciding, "plan.trace.")


def _setting_faults(plan: Plan) -> Iterator[str]:
    """The settings of the backend are such as it knows, and none of them tells a secret."""
    known = {option.name for option in plan.traits.options}
    for name in sorted(plan.backend_options.keys() - known):
        yield f"plan.backend_options has {name!r}, which the backend {plan.backend} does not know"
    for name in sorted(plan.secret_options):
        if plan.backend_options[name] != MASK:
            yield f"plan.backend_options.{name} is a secret; it must be {MASK!r}, not its value"


def _broken_rules(
    plan: Plan | TracePlan, deciding: Mapping[str, OptionSpec], path: str
) -> Iterator[str]:
    """What no parser of an option would have let through, of the values that are as parsed."""
    optional = {part.name for part in fields(plan) if str(part.type).endswith("| None")}
    for name, spec in deciding.items():
        value = getattr(plan, name)
        if not spec.is_verbatim or (value is None and name in optional):
            continue
        text = value if isinstance(value, str) else repr(value)
        try:
            parsed = spec.parse(text, f"{path}{name}")
        except OptionError as error:
            yield str(error)
            continue
        if isinstance(value, str) and not isinstance(parsed, str):
            yield f"{path}{name} is {value!r}, a text; it must be a number"
