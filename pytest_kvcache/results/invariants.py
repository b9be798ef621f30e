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
    RESTART_COUNTERS,
    SHARING_COUNTERS,
    TABLE,
    TIER_COUNTERS,
    AtMost,
    AtMostPlanned,
    CountOf,
    merged,
)
from pytest_kvcache.measure.histogram import Histogram
from pytest_kvcache.measure.metrics import has_answers, never_makes
from pytest_kvcache.measure.recorder import widest_slice_s
from pytest_kvcache.measure.sections import MEMORY_SECTIONS, tier_sections
from pytest_kvcache.measure.series import KINDS, MAX_POINTS
from pytest_kvcache.measure.stalls import EVERY
from pytest_kvcache.measure.steps import STEP_SECTIONS, SUMMED
from pytest_kvcache.measure.worth import LENGTH_STEP
from pytest_kvcache.plan.origins import decided_by
from pytest_kvcache.plan.plan import DECIDED_BY, TracePlan
from pytest_kvcache.registry import BACKENDS
from pytest_kvcache.system.devicechain import end_of_type, may_be_disk
from pytest_kvcache.system.filesystem import FilesystemFacts
from pytest_kvcache.system.kernelqueues import KERNEL_ENGINES
from pytest_kvcache.system.surroundings import Surroundings
from pytest_kvcache.workloads.scenarios import TRACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_kvcache.measure.counters import Law
    from pytest_kvcache.measure.steps import StepCounts
    from pytest_kvcache.options.table import OptionSpec
    from pytest_kvcache.plan.plan import Plan
    from pytest_kvcache.results.record import RankResult, TrialRecord
    from pytest_kvcache.system.devicechain import Link

_CLOCK_S = 1e-6  # what seconds as floats may be off
_ROUNDING = 1e-9  # of a quotient

# Of the filesystem that ranks of a host share: what is taken and freed (ZFS's size is what is
# free and what it holds) while one rank after the other looks.
_CHANGES_IN_TIME = frozenset({"total_bytes", "available_bytes", "available_inodes"})

_SERVICE_LAWS = (
    ("within_p95", "within_p99"),
    ("within_p99", "within_p999"),
    ("within_p999", "within_p9999"),
    ("within_p9999", "judged"),
    ("good_in_window", "completed_in_window"),
)
_FAILED = tuple(name for name in TABLE if name.endswith("_failed"))
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
    yield from _memory_faults(record, plan)
    yield from _clock_faults(record)
    yield from _device_faults(record)
    yield from _window_faults(record, plan)
    yield from _series_faults(record, plan)
    yield from _arrival_faults(record, plan)
    yield from _judged_faults(record, plan)
    yield from _length_faults(record, plan)
    yield from _work_faults(record, plan)
    yield from _found_again_faults(record, plan)
    yield from _restart_time_faults(record, plan)
    yield from _load_step_faults(record, plan)


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
    yield from _tier_faults(rank, plan)
    yield from _service_faults(rank, plan)
    yield from _worth_faults(rank, plan)
    yield from _request_faults(rank, plan)
    yield from _lookup_faults(rank, plan)
    yield from _sharing_faults(rank, plan)
    yield from _drop_faults(rank, plan)
    yield from _bucket_faults(rank, plan)
    yield from _restart_faults(rank, plan)
    yield from _fill_faults(rank, plan)
    yield from _precondition_faults(rank, plan)
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


def tier_counters(plan: Plan) -> frozenset[str]:
    """The counters of single tiers that ranks of this plan have; the others are null."""
    moved = {f"{section}_bytes" for section in tier_sections(plan.tiers, plan.tier_policy)}
    kinds: dict[str, str] = {tier.name: tier.kind for tier in plan.tiers}
    found = {name for name in TIER_COUNTERS if name in moved or name.startswith("storage_")}
    for name in set(TIER_COUNTERS) - {f"{section}_bytes" for section in MEMORY_SECTIONS}:
        kind = kinds.get(name.partition("_")[0])
        if kind is not None and (kind != "index" or not name.endswith("_failed")):
            found.add(name)
    return frozenset(found)


def _tier_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Each tier of the plan has its counters, no other one; together they serve all hits."""
    there = tier_counters(plan)
    for name in TIER_COUNTERS:
        value = getattr(rank, name)
        if (value is not None) != (name in there):
            not_null = "not " if name in there else ""
            yield f"{name} is {value}; by the plan's tiers it must {not_null}be null"
    holds = any(tier.holds_bytes for tier in plan.tiers)
    if (rank.memory_tiers_s is not None) != holds:
        not_null = "not " if holds else ""
        yield f"memory_tiers_s is {rank.memory_tiers_s}; by the plan it must {not_null}be null"
    if (rank.memory_tiers_s or 0.0) > rank.drained_s - rank.start_s + _CLOCK_S:
        yield f"memory_tiers_s is {rank.memory_tiers_s}; the rank ran shorter than that"
    yield from _served_faults(rank, plan)
    for each in plan.tiers:
        used = getattr(rank, f"{each.name}_bytes") or 0
        if used > each.capacity_bytes:
            yield (
                f"{each.name}_bytes is {used}; it must be at most the tier's capacity_bytes, which"
                f" is {each.capacity_bytes}"
            )
    for what in ("count", "failed", "bytes"):
        value = getattr(rank, f"demote_{what}")
        if value and "demote" not in tier_sections(plan.tiers, plan.tier_policy):
            yield f"demote_{what} is {value}; it must be 0, as the plan has no tier to demote from"


def _served_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Each hit was served by one of the tiers, or from where blocks wait for a bucket."""
    names = [*(tier.name for tier in plan.tiers), "storage", *["staged"] * plan.in_buckets]
    served = {name: getattr(rank, f"{name}_hit_blocks") or 0 for name in names}
    if sum(served.values()) != rank.hit_blocks:
        stated = " + ".join(f"{count} ({name})" for name, count in served.items())
        yield (
            f"the tiers served {stated} blocks; together that must be hit_blocks, {rank.hit_blocks}"
        )


def _service_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """The classes are the plan's; who is within a limit is within the next one, too."""
    names = [] if plan.service is None else list(plan.service.classes)
    found = [each.name for each in rank.service_classes]
    if found != names:
        yield f"service_classes are {found}; by the plan they must be {names}"
        return
    if (rank.good_in_window is None) != (plan.service is None):
        not_null = "" if plan.service is None else "not "
        yield f"good_in_window is {rank.good_in_window}; by the plan it must {not_null}be null"
    for each in rank.service_classes:
        for part, whole in _SERVICE_LAWS:
            least, most = getattr(each, part), getattr(each, whole)
            if not 0 <= least <= most:
                yield (
                    f"service class {each.name}: {part} is {least}; it must be at least 0 and at"
                    f" most {whole}, which is {most}"
                )
    for name in ("completed_in_window", "good_in_window") if names else ():
        total = sum(getattr(each, name) for each in rank.service_classes)
        if total != getattr(rank, name):
            yield (
                f"{name} of its service classes is {total} in all; it must be"
                f" {getattr(rank, name)}, its own"
            )


def _worth_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """What loads were worth is known with a rate of prefill alone; the lengths hold the tokens."""
    known = plan.prefill_tokens_per_s is not None
    for name in ("loaded_tokens", "useful_tokens"):
        if (getattr(rank, name) is not None) != known:
            not_null = "not " if known else ""
            yield f"{name} is {getattr(rank, name)}; by the plan it must {not_null}be null"
            return
    lengths = rank.load_lengths
    if any(later.tokens <= each.tokens for each, later in itertools.pairwise(lengths)):
        yield "load_lengths are not in the order of their tokens, each once"
    for each in lengths:
        if not (0 <= each.useful <= each.loads and each.loads > 0 and each.tokens >= 0):
            yield (
                f"load_lengths: of {each.loads} loads of {each.tokens} tokens {each.useful} are"
                " useful; these must be at most the loads, and no number below 0"
            )
    for name, counts in (
        ("loaded_tokens", [each.loads * each.tokens for each in lengths]),
        ("useful_tokens", [each.useful * each.tokens for each in lengths]),
    ):
        value, least = getattr(rank, name) or 0, sum(counts)
        if not least <= value <= least * (1 + LENGTH_STEP):
            yield (
                f"{name} is {value}; by its load_lengths it must be at least {least}, and at most"
                f" {LENGTH_STEP:.2%} more"
            )


def _request_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Nothing is read again or beside prefixes by requests of ours that don't ask for it."""
    dialogues = plan.dialogues
    if dialogues is None and plan.scenario != TRACE:
        return  # what a plugin's requests ask for, and those of whole objects, no plan tells
    if rank.reread_count and not plan.reread_factor:
        yield f"reread_count is {rank.reread_count}; without a reread_factor it must be 0"
    if rank.beside_blocks and (dialogues is None or dialogues.retrieval is None):
        yield f"beside_blocks is {rank.beside_blocks}; no user retrieves, so it must be 0"


def _fill_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """As much was stored before the window as the plan wants, unless an error ended that."""
    if rank.populated_blocks < plan.fill_blocks and rank.error is None:
        yield (
            f"populated_blocks is {rank.populated_blocks}; by the plan it must be at least"
            f" {plan.fill_blocks}"
        )


def _lookup_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """The storage is asked where the plan asks it, and nowhere else."""
    for name in ("lookup_count", "asked_objects", "found_objects"):
        value = getattr(rank, name)
        if (value is not None) != plan.asks_storage:
            must = "a number" if plan.asks_storage else "null"
            yield f"{name} is {value}; with lookup {plan.lookup} it must be {must}"
    if (rank.asked_objects or 0) < (rank.lookup_count or 0):
        yield (
            f"asked_objects is {rank.asked_objects}; it must be at least lookup_count, which is"
            f" {rank.lookup_count}"
        )


def _drop_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Dropped stores are counted where they are dropped, and nobody waits then."""
    drops = plan.full_queue == "drop"
    if (rank.dropped_blocks is not None) != drops:
        must = "a number" if drops else "null"
        yield (
            f"dropped_blocks is {rank.dropped_blocks}; with full_queue {plan.full_queue} it must be"
            f" {must}"
        )
    if drops and rank.store_stall_s:
        yield f"store_stall_s is {rank.store_stall_s}; with full_queue drop nobody waits"


def _bucket_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Hits in memory are counted where blocks wait there; what is stored are whole buckets."""
    if (rank.staged_hit_blocks is not None) != plan.in_buckets:
        must = "a number" if plan.in_buckets else "null"
        yield (
            f"staged_hit_blocks is {rank.staged_hit_blocks}; with engine {plan.engine} it must be"
            f" {must}"
        )
    if not plan.in_buckets or rank.error is not None:
        return
    for name in ("cached_blocks", "evictions"):
        value = getattr(rank, name)
        if value % plan.bucket_blocks:
            yield (
                f"{name} is {value}; it must be a multiple of {plan.bucket_blocks}, the blocks of a"
                " bucket"
            )


def _sharing_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Counts of a shared store are there where it is shared, and agree with what was found."""
    for name in SHARING_COUNTERS:
        value = getattr(rank, name)
        may_be_absent = name == "longest_stale_s" or (
            name == "others_objects" and plan.verify == "off"
        )
        if (value is not None) != plan.shares and not (plan.shares and may_be_absent):
            must = "a number" if plan.shares else "null"
            yield f"{name} is {value}; with sharing {plan.sharing} it must be {must}"
    if not plan.shares:
        return
    found = (rank.own_hit_blocks or 0) + (rank.other_hit_blocks or 0)
    if found != rank.hit_blocks:
        yield (
            f"own_hit_blocks and other_hit_blocks are {found} together; they must be hit_blocks,"
            f" which is {rank.hit_blocks}"
        )
    alone = len(plan.sharers_of(rank.rank)) == 1
    for name in ("other_hit_blocks", "others_objects", "races_lost", "stale_lookups"):
        if alone and getattr(rank, name):
            yield f"{name} is {getattr(rank, name)}; a rank that is alone with its store has none"
    if rank.lost_blocks and rank.error is None:
        yield f"lost_blocks is {rank.lost_blocks}; a rank that has lost some has an error"
    if bool(rank.stale_lookups) != (rank.longest_stale_s is not None):
        yield (
            f"stale_lookups is {rank.stale_lookups} and longest_stale_s {rank.longest_stale_s}; the"
            " latter must be there where there are some, and nowhere else"
        )


def _restart_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """What restarts counts what it finds, and a scan its directories; nothing else has that."""
    of_scan = ("restart_directories", "restart_listing_s")
    for name in RESTART_COUNTERS:
        value = getattr(rank, name)
        known = plan.restart_by == "scan" if name in of_scan else plan.restarts
        if (value is not None) != known:
            must = "a number" if known else "null"
            yield f"{name} is {value}; with phase {plan.phase} it must be {must}"
    if (rank.restart_listing_s or 0.0) > rank.drained_s - rank.start_s + _CLOCK_S:
        yield f"restart_listing_s is {rank.restart_listing_s}; the rank ran shorter than that"
    if not plan.restarts:
        return
    if rank.stop_s != rank.drained_s:
        yield (
            f"stop_s is {rank.stop_s}; with phase {plan.phase} it must be drained_s, which is"
            f" {rank.drained_s}"
        )
    if rank.restart_count and rank.restart_directories == 0:
        yield f"restart_directories is 0; it must be at least 1, for {rank.restart_count} objects"
    if rank.restart_count and rank.restart_listing_s == 0:
        yield (
            f"restart_listing_s is {rank.restart_listing_s}; it must be more than 0, for"
            f" {rank.restart_count} objects"
        )


def _restart_time_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """A thread makes one call after the other, and a scan has one, which lists as well."""
    if not plan.restarts:
        return
    scans = plan.restart_by == "scan"
    threads = 1 if scans else plan.lookup_threads
    calls = record.histograms["restart"]
    calls_s = calls.sum_ns / 1e9
    listing_s = sum(rank.restart_listing_s or 0.0 for rank in record.ranks)
    ran_s = sum(rank.drained_s - rank.start_s for rank in record.ranks)
    count = len(record.ranks)
    if calls_s + listing_s <= threads * (ran_s + count * _CLOCK_S):
        return
    listing = f" and listing {listing_s:.6g} s, one after the other"
    yield (
        f"of {count} restart{'s' * (count > 1)} {calls.count} calls took {calls_s:.6g} s"
        f"{listing if scans else f', {threads} at a time'}; it ran {ran_s:.6g} s"
    )


def _found_again_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """A restart without an error has found all that is stored, and nothing else."""
    if not plan.restarts or any(rank.error for rank in record.ranks):
        return
    for rank in record.ranks:
        stored = rank.cached_blocks * plan.objects_per_block
        for name in ("restart_objects", "restart_count"):
            found = getattr(rank, name)
            if found is not None and found != stored:
                yield (
                    f"rank {rank.rank} on host {rank.host}: {name} is {found}; it must be {stored},"
                    " the objects that are stored"
                )


def _precondition_faults(rank: RankResult, plan: Plan) -> Iterator[str]:
    """Each rank wrote what the plan asks for, in some time; nothing where it asks for nothing."""
    wanted, wrote = plan.precondition_bytes, rank.precondition_bytes
    if not wanted <= wrote < wanted + plan.stored_bytes and (wanted or wrote):
        yield (
            f"precondition_bytes is {wrote}; by the plan it must be {wanted}, in whole blocks of"
            f" {plan.stored_bytes}"
        )
    if (rank.precondition_s > 0) != (wrote > 0):
        yield f"precondition_s is {rank.precondition_s}; precondition_bytes is {wrote}"
    if rank.precondition_arrived_bytes is not None and not wanted:
        yield (
            f"precondition_arrived_bytes is {rank.precondition_arrived_bytes}; by the plan it must"
            " be null"
        )


def _law_faults(name: str, law: Law, rank: RankResult, plan: Plan) -> Iterator[str]:
    """What breaks a law of the table of counters, as far as it is about one rank."""
    value = getattr(rank, name)
    if isinstance(law, AtMost):
        names = (name, *law.beside)
        part, whole = sum(getattr(rank, each) or 0 for each in names), getattr(rank, law.whole) or 0
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
                if (counted or 0) != held:
                    yield (
                        f"its ranks counted {counted} {law.section}s; the histogram holds {held}"
                    )


def _memory_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Nothing is timed in memory that the plan's tiers can't do; what is timed moves bytes."""
    sections = tier_sections(plan.tiers, plan.tier_policy)
    for name in MEMORY_SECTIONS:
        timed = record.histograms[name].count
        moved = sum(getattr(rank, f"{name}_bytes") or 0 for rank in record.ranks)
        if timed and name not in sections:
            yield f"{name} has {timed} operations; the plan has no tier for them"
        elif (timed > 0) != (moved > 0):
            yield f"{name} has {timed} operations of {moved} bytes; each moves some"


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
    if plan.calls is not None and name in KERNEL_ENGINES:
        yield f"io_engine is {name!r}; the plan's calls are an engine's, which threads make"
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
    stated = (around.cpu_periods, around.throttled_periods, around.throttled_s)
    if len({value is None for value in stated}) > 1:
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
            if not moved.busy_s <= span_s:
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
    stated = series.moved(kind)
    moved_bytes, op_bytes, count = (
        sum(getattr(rank, f"{kind}_{what}") for rank in record.ranks)
        for what in ("bytes", "op_bytes", "count")
    )
    whole = series.points * series.interval_ns == window_ns
    if sum(stated) > moved_bytes or (whole and sum(stated) != moved_bytes):
        yield (
            f"the series has {sum(stated)} bytes of {kind}s; it must be"
            f" {'' if whole else 'at most '}"
            f"those of the window, which are {moved_bytes}"
        )
    if count and op_bytes == count * plan.object_bytes:
        operations = series.done(kind)
        for point, (found, moved) in enumerate(zip(operations, stated, strict=True)):
            if moved != found * plan.object_bytes:
                yield (
                    f"the series has {moved} bytes of {found} {kind}s in interval {point}; each"
                    f" moves {plan.object_bytes}"
                )


def _stall_faults(record: TrialRecord, kind: str) -> Iterator[str]:
    """A stall begins in the window; nothing was completed where all ranks were stalled."""
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
                f"the series has {done} {kind}s in interval {point}, in which all ranks were"
                " stalled"
            )


def _arrival_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Whatever has an answer in an open loop, or waits for one, has arrived."""
    arrived = record.histograms["scheduling_lag"].count
    if not (plan.open_loop or arrived):
        return
    answered = record.histograms["request"].count
    waited = answered + sum(rank.request_censored for rank in record.ranks)
    offered = sum(rank.offered for rank in record.ranks)
    if not waited <= arrived <= offered:
        yield (
            f"scheduling_lag.count is {arrived}; it must be between the {waited} requests of the"
            " window"
            f" and all {offered} that were offered"
        )


def _judged_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Each request of the window is judged once: answered, or not, or one with a failure."""
    if plan.service is None or not has_answers(plan.phase):
        return
    if any(rank.error for rank in record.ranks):
        return
    judged = sum(each.judged for rank in record.ranks for each in rank.service_classes)
    answered = record.histograms["request"].count
    censored = sum(rank.request_censored for rank in record.ranks)
    failed = sum(getattr(rank, name) or 0 for rank in record.ranks for name in _FAILED)
    if not 0 <= judged - answered - censored <= failed:
        more = f" and at most {failed} more, for operations that failed" if failed else ""
        yield (
            f"judged of its service classes is {judged} in all; it must be request.count,"
            f" which is {answered}, and request.censored, which is {censored}{more}"
        )


def _length_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """Each load of the window has its length."""
    if plan.prefill_tokens_per_s is None:
        return
    told = sum(each.loads for rank in record.ranks for each in rank.load_lengths)
    if told != record.histograms["load"].count:
        yield (
            f"load_lengths are those of {told} loads; they must be those of load.count, which is"
            f" {record.histograms['load'].count}"
        )


def _work_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """A fixed number of requests is what every rank made, and none is left."""
    if plan.requests is None or any(rank.error for rank in record.ranks):
        return
    for rank in record.ranks:
        for name in ("offered", "completed"):
            found = getattr(rank, name)
            if found != plan.requests:
                yield (
                    f"rank {rank.rank} on host {rank.host}: {name} is {found}; by the plan it must"
                    f" be {plan.requests}"
                )


def _load_step_faults(record: TrialRecord, plan: Plan) -> Iterator[str]:
    """The load changed when and as planned; the steps add up to the window."""
    whole = not any(rank.error for rank in record.ranks)
    for rank in record.ranks:
        for fault in _rank_step_faults(rank, plan, whole=whole):
            yield f"rank {rank.rank} on host {rank.host}: {fault}"
    steps = max(len(rank.load_steps) for rank in record.ranks)
    if len(record.load_steps) != steps:
        yield f"it has histograms of {len(record.load_steps)} load steps; its ranks had {steps}"
        return
    answered = [0] * steps
    for rank in record.ranks:
        for number, step in enumerate(rank.load_steps):
            answered[number] += step.answered
    for number, (histograms, count) in enumerate(zip(record.load_steps, answered, strict=True)):
        held = histograms["request"].count
        if has_answers(plan.phase) and held != count:
            yield (
                f"its ranks answered {count} requests of load step {number + 1}; the histogram"
                f" holds {held}"
            )
    for section in STEP_SECTIONS if steps else ():
        parts = [histograms[section] for histograms in record.load_steps]
        counts = sum((part.counts for part in parts[1:]), start=parts[0].counts)
        if Histogram.added(counts, [part.extremes for part in parts]) != record.histograms[section]:
            yield f"the {section}s of its load steps are not those of its window"


def _rank_step_faults(rank: RankResult, plan: Plan, *, whole: bool) -> Iterator[str]:
    """What a rank's load steps can't be: they are the plan's, obeyed before they were over.

    A trial that is not ``whole``, for a rank had an error, may lack those at its end.
    """
    steps, planned = rank.load_steps, plan.load_schedule
    if len(steps) > len(planned) or (whole and len(steps) < len(planned)):
        yield f"it had {len(steps)} load steps; the plan has {len(planned)}"
        return
    for number, (step, due) in enumerate(zip(steps, planned, strict=False), 1):
        stated, begin_s, end_s = f"load step {number}", due.begin_ns / 1e9, due.end_ns / 1e9
        if step.users != due.users or abs(step.begin_s - begin_s) > _CLOCK_S:
            yield (
                f"{stated} has {step.users} users from {step.begin_s} s on; by the plan it is"
                f" {due.users} from {begin_s} s on"
            )
        early = number > 1 and step.obeyed_s < begin_s - _CLOCK_S
        if early or (whole and step.obeyed_s > end_s):
            lasts = f"it lasts from {begin_s} to {end_s} s"
            yield f"{stated} is obeyed from {step.obeyed_s} s on; {lasts}"
        yield from (f"{stated}: {fault}" for fault in _step_count_faults(step))
    for name in SUMMED if steps else ():
        total, own = sum(getattr(step, name) for step in steps), getattr(rank, name)
        if total != own:
            yield f"{name} of its load steps is {total} in all; it must be {own}, its own"


def _step_count_faults(step: StepCounts) -> Iterator[str]:
    """Each active user has one request under way at most, at any moment."""
    for name, value in asdict(step).items():
        if name != "obeyed_s" and not value >= 0:
            yield f"{name} is {value}; it must be at least 0"
    for part, whole in (
        ("answered_users", "users"),
        ("answered_users", "answered"),
        ("answered_later", "answered_users"),
        ("hit_blocks", "prompt_blocks"),
    ):
        if getattr(step, part) > getattr(step, whole):
            yield (
                f"{part} is {getattr(step, part)}; it must be at most {whole}, which is"
                f" {getattr(step, whole)}"
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
