"""The one table of what ranks count: unit, meaning, law, and how the ranks' counts become one.

A field of ``Counters`` is a row. From the table follow the record that a rank sends, the
figures of all ranks together and their places in the run file, what a record must not
contradict (``consistency``), docs/counters.md, and what the tests' ranks have counted. What
the engine itself counts while it runs is a field of ``Tally``, by the same name.

Pure; imports nothing of the package.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Number = int | float
Merge = Literal["sum", "largest", "mean", "own"]
"""How the ranks' counts become one.

``sum``, which is not known if one of them is not; the ``largest`` and the ``mean`` of those
that are known; ``own``: they stay the ranks' own.
"""
Unit = Literal["", "bytes", "tokens", "blocks", "requests", "transfers", "operations", "s", "ms",
               "cores", "per s"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """The counter, with those ``beside`` it, is a part of another one."""

    whole: str
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        beside = "".join(f"with `{name}` " for name in self.beside)
        return f"{beside}at most `{self.whole}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMostPlanned:
    """A field of the plan allows no more of it."""

    limit: str

    def __str__(self) -> str:
        return f"at most the plan's `{self.limit}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountOf:
    """All ranks together have as many as a section's histogram; none in a phase without any."""

    section: str

    def __str__(self) -> str:
        return f"in all `{self.section}.count`"


Law = AtMost | AtMostPlanned | CountOf
"""What holds between a counter and other figures, whatever happened; none is below 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the table says of a counter beside its name and its type.

    ``place`` is where a trial of the run file has it, of all ranks together: sections from
    the outermost in, its name there last. Empty: only the ranks' records have it.
    """

    meaning: str
    unit: Unit
    merge: Merge
    place: tuple[str, ...]
    laws: tuple[Law, ...]


_ROW: Final = "row"


def _row(
    unit: Unit, meaning: str, *laws: Law, place: str = "", merge: Merge = "sum"
) -> dict[str, Row]:
    places = tuple(filter(None, place.split(".")))
    return {_ROW: Row(meaning=meaning, unit=unit, merge=merge, place=places, laws=laws)}


_OF_A_TIER: Final[Mapping[str, tuple[Unit, str]]] = MappingProxyType(
    {
        "hit_blocks": ("blocks", "of `hit_blocks` that the {} tier served"),
        "stored_blocks": ("blocks", "written or moved into the {} tier in the run, and there"),
        "demoted_in_bytes": ("bytes", "of those that had left a faster tier"),
        "promoted_in_bytes": ("bytes", "of those that are copies of what a slower tier served"),
        "blocks": ("blocks", "in the {} tier at the end"),
        "bytes": ("bytes", "that they take, padded to pages"),
        "failed": ("operations", "of the {} tier that failed; `null` where it holds no bytes"),
    }
)


def _tier(name: str, *laws: Law) -> dict[str, Row]:
    """A counter of a tier, by its name: ``cpu_hit_blocks``."""
    tier, _, what = name.partition("_")
    unit, meaning = _OF_A_TIER[what]
    absent = "" if tier == "storage" else "; `null` where there is no such tier"
    meaning = f"{meaning.format(tier)}{'' if 'null' in meaning else absent}"
    return _row(unit, meaning, *laws, place=f"cache.tiers.{tier}.{what}")


def _memory(section: str) -> dict[str, Row]:
    """The bytes of a section of a memory tier."""
    meaning = f"of the operations that the latencies of `{section}` are of"
    return _row("bytes", meaning, place=f"{section}.bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one rank counted in a trial, or all ranks together (``merged``); null: not known."""

    # fmt: off
    # --- operations on the storage ---
    read_count: int = field(metadata=_row(
        "operations", "reads that began in the window", CountOf(section="read")))
    read_failed: int = field(metadata=_row(
        "operations", "reads that failed, from the start of the run to its end",
        place="read.failed"))
    read_bytes: int = field(metadata=_row(
        "bytes", "of reads completed in the common window", AtMost(whole="requested_read_bytes"),
        place="read.bytes"))
    read_p95_ms: float | None = field(metadata=_row(
        "ms", "p95 of the rank's reads: the slowest rank is found here, not in an average",
        merge="own"))
    write_count: int = field(metadata=_row(
        "operations", "writes that began in the window", CountOf(section="write")))
    write_failed: int = field(metadata=_row(
        "operations", "writes that failed", place="write.failed"))
    write_bytes: int = field(metadata=_row(
        "bytes", "of writes completed in the common window",
        AtMost(whole="requested_write_bytes", beside=("demote_bytes",)), place="write.bytes"))
    write_p95_ms: float | None = field(metadata=_row(
        "ms", "p95 of the rank's writes", merge="own"))
    delete_count: int = field(metadata=_row(
        "operations", "deletes that began in the window", CountOf(section="delete")))
    delete_failed: int = field(metadata=_row(
        "operations", "deletes that failed", place="delete.failed"))
    delete_p95_ms: float | None = field(metadata=_row(
        "ms", "p95 of the rank's deletes", merge="own"))
    demote_count: int = field(metadata=_row(
        "operations", "writes into the storage of blocks that had left a faster tier, that began"
        " in the window", CountOf(section="demote")))
    demote_failed: int = field(metadata=_row(
        "operations", "of them that failed", place="demote.failed"))
    demote_bytes: int = field(metadata=_row(
        "bytes", "of those completed in the common window", place="demote.bytes"))
    demote_p95_ms: float | None = field(metadata=_row(
        "ms", "p95 of the rank's demotions", merge="own"))
    device_bytes: int = field(metadata=_row(
        "bytes", "of the transfers that the latencies of `device` are of", place="device.bytes"))
    read_op_bytes: int = field(metadata=_row(
        "bytes", "of the reads that the latencies are of", AtMost(whole="requested_read_bytes")))
    write_op_bytes: int = field(metadata=_row(
        "bytes", "of the writes that the latencies are of",
        AtMost(whole="requested_write_bytes", beside=("demote_op_bytes",))))
    demote_op_bytes: int = field(metadata=_row(
        "bytes", "of the demotions that the latencies are of"))
    lookup_count: int | None = field(metadata=_row(
        "requests", "that asked the storage what it has, in the window; `null` with"
        " `--kv-lookup=memory`", CountOf(section="lookup")))
    asked_objects: int | None = field(metadata=_row(
        "operations", "that they made for it, one for each object", place="lookup.asked_objects"))
    found_objects: int | None = field(metadata=_row(
        "operations", "of those that found the object", AtMost(whole="asked_objects"),
        place="lookup.found_objects"))
    # --- a restart, which has no requests ---
    restart_count: int | None = field(metadata=_row(
        "operations", "of the restart, one for each object: a stat of its file, or a lookup of its"
        " key; `null` without `--kv-phase=restart`", CountOf(section="restart")))
    restart_objects: int | None = field(metadata=_row(
        "operations", "of those that found an object which was stored, one for each",
        AtMost(whole="restart_count"), place="restart.objects"))
    restart_directories: int | None = field(metadata=_row(
        "", "directories that a scan has read; `null` likewise, and by lookups",
        place="restart.directories"))
    restart_listing_s: float | None = field(metadata=_row(
        "s", "of the scan that went into opening and reading directories, of the slowest rank;"
        " `null` likewise, and by lookups", merge="largest", place="restart.listing_s"))
    # --- requests, from the start of the run until issuing stopped ---
    offered: int = field(metadata=_row(
        "requests", "that arrived, or that a user made", place="requests.offered"))
    completed: int = field(metadata=_row(
        "requests", "that were answered", AtMost(whole="offered", beside=("request_censored",)),
        AtMost(whole="offered", beside=("dropped",)), place="requests.completed"))
    completed_in_window: int = field(metadata=_row(
        "requests", "answered in the common window",
        AtMost(whole="offered", beside=("dropped",)), place="requests.completed_in_window"))
    good_in_window: int | None = field(metadata=_row(
        "requests", "of those answered in the common window, within what their class of service"
        " expects; `null` without `--kv-performance-profile=latency`",
        AtMost(whole="completed_in_window"), place="requests.good_in_window"))
    dropped: int = field(metadata=_row(
        "requests", "of an open loop that too many were under way for", place="requests.dropped"))
    backlog: int = field(metadata=_row(
        "requests", "without an answer when issuing stopped",
        AtMost(whole="offered", beside=("dropped",)), place="requests.backlog"))
    generating: int = field(metadata=_row(
        "requests", "of the backlog whose answer is only simulated", AtMost(whole="backlog"),
        place="requests.generating"))
    storing: int = field(metadata=_row(
        "requests", "that are answered and not wholly stored", AtMost(whole="completed"),
        place="requests.storing"))
    prompt_tokens: int = field(metadata=_row(
        "tokens", "of the prompts of requests completed in the common window",
        place="tokens.prompt"))
    generated_tokens: int = field(metadata=_row(
        "tokens", "of their answers", place="tokens.generated"))
    # --- the cache ---
    prompt_blocks: int = field(metadata=_row(
        "blocks", "looked up by requests that arrived in the window", place="cache.prompt_blocks"))
    hit_blocks: int = field(metadata=_row(
        "blocks", "of those that were found", AtMost(whole="prompt_blocks"),
        place="cache.hit_blocks"))
    staged_hit_blocks: int | None = field(metadata=_row(
        "blocks", "of `hit_blocks`, those that were in memory, as the bucket that they go with was"
        " not written yet: nothing is read of them; `null` where no engine packs blocks into"
        " buckets", AtMost(whole="hit_blocks"), place="cache.staged_hit_blocks"))
    beside_blocks: int = field(metadata=_row(
        "blocks", "that requests which arrived in the window had beside their prefixes, to be read"
        " where they are there: in `prompt_blocks` and hit ratios they are not; 0 in replays and"
        " where no user of a synthetic scenario retrieves",
        place="cache.beside_blocks"))
    beside_hit_blocks: int = field(metadata=_row(
        "blocks", "of those that were there", AtMost(whole="beside_blocks"),
        place="cache.beside_hit_blocks"))
    own_hit_blocks: int | None = field(metadata=_row(
        "blocks", "of `hit_blocks`, those that the rank which asked had stored; `null` with"
        " `--kv-sharing=rank`", AtMost(whole="hit_blocks", beside=("other_hit_blocks",)),
        place="sharing.own_hit_blocks"))
    other_hit_blocks: int | None = field(metadata=_row(
        "blocks", "of `hit_blocks`, those that another rank had stored",
        place="sharing.other_hit_blocks"))
    others_objects: int | None = field(metadata=_row(
        "operations", "verified reads, from the very start, of objects whose head names another"
        " rank as who wrote them; `null` with `--kv-verify=off`", AtMost(whole="checked"),
        place="sharing.others_objects"))
    displaced_blocks: int | None = field(metadata=_row(
        "blocks", "that a lookup had found, from the very start, and that the rank which asked had"
        " displaced itself before it could decide the request: no hits",
        place="sharing.displaced_blocks"))
    vanished_blocks: int | None = field(metadata=_row(
        "blocks", "that a lookup had found, and that were deleted before they were read: the prefix"
        " ends there", place="sharing.vanished_blocks"))
    races_lost: int | None = field(metadata=_row(
        "blocks", "that a rank was storing, from the very start, when another one had stored them"
        " since it had asked: given up, or written over the other's", place="sharing.races_lost"))
    stale_lookups: int | None = field(metadata=_row(
        "requests", "from the very start, whose lookup began over 1 ms after another rank had"
        " stored a block, and did not find it though nobody had deleted it",
        place="sharing.stale_lookups"))
    longest_stale_s: float | None = field(metadata=_row(
        "s", "after the end of the store, at most, that such a lookup began; `null`: there was"
        " none", place="sharing.longest_stale_s", merge="largest"))
    lost_blocks: int | None = field(metadata=_row(
        "blocks", "that were gone though no rank had deleted them: of a sound store 0",
        place="sharing.lost_blocks"))
    reread_count: int = field(metadata=_row(
        "operations", "of the reads of the storage (`read.count`), those of what the request itself"
        " had just stored; 0 without `--kv-reread-factor` in replays and synthetic scenarios",
        AtMost(whole="read_count"), place="cache.reread_count"))
    arrived_tokens: int = field(metadata=_row(
        "tokens", "of the prompts of requests that arrived in the window"))
    hit_tokens: int = field(metadata=_row(
        "tokens", "of those that were found", AtMost(whole="arrived_tokens")))
    loaded_tokens: int | None = field(metadata=_row(
        "tokens", "of the loads that began in the window and ended: prefixes, and blocks beside"
        " them; `null` without `--kv-prefill-rate`", place="worth.loaded_tokens"))
    useful_tokens: int | None = field(metadata=_row(
        "tokens", "of those, of loads that took less time than recomputing their tokens does",
        AtMost(whole="loaded_tokens"), place="worth.useful_tokens"))
    first_half_blocks: int = field(metadata=_row(
        "blocks", "looked up in the first half of the common window",
        AtMost(whole="prompt_blocks", beside=("second_half_blocks",))))
    first_half_hits: int = field(metadata=_row(
        "blocks", "of those that were found", AtMost(whole="first_half_blocks"),
        AtMost(whole="hit_blocks", beside=("second_half_hits",))))
    second_half_blocks: int = field(metadata=_row(
        "blocks", "looked up in the second half"))
    second_half_hits: int = field(metadata=_row(
        "blocks", "of those that were found", AtMost(whole="second_half_blocks")))
    first_half_waiting: float | None = field(metadata=_row(
        "requests", "that waited for the storage, on average in the first half"))
    second_half_waiting: float | None = field(metadata=_row(
        "requests", "that waited for the storage, on average in the second half"))
    evictions: int = field(metadata=_row(
        "blocks", "evicted since the very start", place="cache.evictions"))
    cached_blocks: int = field(metadata=_row(
        "blocks", "stored at the end", AtMost(whole="cached_bytes"),
        place="cache.tiers.storage.blocks"))
    cached_bytes: int = field(metadata=_row(
        "bytes", "that they take, padded to pages", AtMostPlanned(limit="capacity_bytes"),
        place="cache.tiers.storage.bytes"))
    # --- its tiers, and what is done in memory ---
    gpu_hit_blocks: int | None = field(metadata=_tier("gpu_hit_blocks", AtMost(whole="hit_blocks")))
    gpu_stored_blocks: int | None = field(metadata=_tier("gpu_stored_blocks"))
    gpu_demoted_in_bytes: int | None = field(metadata=_tier("gpu_demoted_in_bytes"))
    gpu_promoted_in_bytes: int | None = field(metadata=_tier("gpu_promoted_in_bytes"))
    gpu_blocks: int | None = field(metadata=_tier("gpu_blocks", AtMost(whole="gpu_bytes")))
    gpu_bytes: int | None = field(metadata=_tier("gpu_bytes"))
    gpu_failed: int | None = field(metadata=_tier("gpu_failed"))
    cpu_hit_blocks: int | None = field(metadata=_tier("cpu_hit_blocks", AtMost(whole="hit_blocks")))
    cpu_stored_blocks: int | None = field(metadata=_tier("cpu_stored_blocks"))
    cpu_demoted_in_bytes: int | None = field(metadata=_tier("cpu_demoted_in_bytes"))
    cpu_promoted_in_bytes: int | None = field(metadata=_tier("cpu_promoted_in_bytes"))
    cpu_blocks: int | None = field(metadata=_tier("cpu_blocks", AtMost(whole="cpu_bytes")))
    cpu_bytes: int | None = field(metadata=_tier("cpu_bytes"))
    cpu_failed: int | None = field(metadata=_tier("cpu_failed"))
    storage_hit_blocks: int = field(
        metadata=_tier("storage_hit_blocks", AtMost(whole="hit_blocks")))
    storage_stored_blocks: int = field(metadata=_tier("storage_stored_blocks"))
    storage_demoted_in_bytes: int = field(metadata=_tier("storage_demoted_in_bytes"))
    gpu_read_bytes: int | None = field(metadata=_memory("gpu_read"))
    gpu_write_bytes: int | None = field(metadata=_memory("gpu_write"))
    gpu_promote_bytes: int | None = field(metadata=_memory("gpu_promote"))
    cpu_read_bytes: int | None = field(metadata=_memory("cpu_read"))
    cpu_write_bytes: int | None = field(metadata=_memory("cpu_write"))
    cpu_promote_bytes: int | None = field(metadata=_memory("cpu_promote"))
    cpu_demote_bytes: int | None = field(metadata=_memory("cpu_demote"))
    # --- what was there before, and what waited ---
    populated_blocks: int = field(metadata=_row(
        "blocks", "stored before the window", place="cache.populated_blocks"))
    population_s: float = field(metadata=_row("s", "that it took to store them", merge="largest"))
    precondition_bytes: int = field(metadata=_row(
        "bytes", "that `--kv-precondition` wrote before that, padded to pages; they are no other"
        " counter's", place="cache.precondition_bytes"))
    precondition_s: float = field(metadata=_row("s", "that it took to write them", merge="largest"))
    precondition_arrived_bytes: int | None = field(metadata=_row(
        "bytes", "that the kernel gave to devices meanwhile; `null`: nothing was written, or it"
        " does not count them"))
    store_stall_s: float = field(metadata=_row(
        "s", "users were held back by a full store queue, summed over users"))
    dropped_blocks: int | None = field(metadata=_row(
        "blocks", "that requests did not store as too many waited to be stored, from the start of"
        " the run; `null` without `--kv-full-queue=drop`", place="cache.dropped_blocks"))
    load_censored: int = field(metadata=_row(
        "requests", "whose load had not ended when the drain did", place="load.censored"))
    request_censored: int = field(metadata=_row(
        "requests", "whose answer had not come when the drain ended", place="request.censored"))
    average_queue_depth: float | None = field(metadata=_row(
        "operations", "calls of the backend (transfers, syncs, deletes) in flight on average, in"
        " the window", AtMostPlanned(limit="queue_depth"), merge="mean"))
    longest_pause_s: float | None = field(metadata=_row(
        "s", "longest time, from the begin of the window until nothing was in flight any more, in"
        " which the rank did not look around; it does so every 0.1 s, so that 0.2 s is normal."
        " Suspension of the machine counts. `null` if the rank stopped before the window began",
        place="harness.longest_pause_s", merge="largest"))
    reap_lag_mean_ms: float | None = field(metadata=_row(
        "ms", "between the look at what has ended that found an end and the look before it, on"
        " average over ends, from the start of the run to its end: so much later than the end a"
        " stamp can be."
        " `null` where each call's end is stamped by the thread that made it",
        place="harness.reap_lag_mean_ms", merge="largest"))
    reap_lag_p99_ms: float | None = field(metadata=_row(
        "ms", "of those times, the p99", place="harness.reap_lag_p99_ms", merge="largest"))
    reap_lag_count: int = field(metadata=_row(
        "", "how many there are", place="harness.reap_lag_count"))
    # --- what was asked of the storage in the whole run, and what the kernel counted ---
    requested_read_bytes: int = field(metadata=_row(
        "bytes", "of all completed reads, padded to pages", place="proof.requested_read_bytes"))
    requested_write_bytes: int = field(metadata=_row(
        "bytes", "of all completed writes, demotions included, padded to pages",
        place="proof.requested_write_bytes"))
    requested_transfers: int = field(metadata=_row(
        "transfers", "that all completed reads and writes took"))
    requested_writes: int = field(metadata=_row(
        "operations", "all completed writes, demotions included, each of an object",
        AtMost(whole="requested_transfers"), AtMost(whole="requested_write_bytes")))
    device_read_bytes: int | None = field(metadata=_row(
        "bytes", "that the kernel read from devices for the process",
        place="proof.device_read_bytes"))
    device_write_bytes: int | None = field(metadata=_row(
        "bytes", "that the kernel wrote for it", place="proof.kernel_write_bytes"))
    checked: int = field(metadata=_row(
        "transfers", "that were verified, from the very start", place="integrity.checked"))
    corrupt: int = field(metadata=_row(
        "transfers", "of those whose content was wrong", AtMost(whole="checked"),
        place="integrity.failed"))
    read_back: int = field(metadata=_row(
        "transfers", "of those that were read after the window", AtMost(whole="checked"),
        place="integrity.read_back"))
    distinct_read_bytes: int = field(metadata=_row(
        "bytes", "of the blocks that were read, each once", place="proof.distinct_read_bytes"))
    distinct_reads: int = field(metadata=_row(
        "operations", "of their objects, the first read of each",
        AtMost(whole="distinct_read_bytes")))
    # --- the rank as a process ---
    cpu_s: float = field(metadata=_row(
        "s", "of CPU time from the start of the run to its end", place="harness.cpu_s"))
    peak_rss_bytes: int = field(metadata=_row(
        "bytes", "of memory that the process ever had", merge="largest"))
    memory_tiers_s: float | None = field(metadata=_row(
        "s", "of the run that the rank's loop spent on memory tiers (copying, preparing and"
        " checking data), in which it did nothing for the storage; `null` without a tier that"
        " holds bytes", place="harness.memory_tiers_s"))
    cores: int = field(metadata=_row(
        "cores", "that the rank might use"))
    null_ops_per_s: float | None = field(metadata=_row(
        "per s", "operations with nothing behind the I/O engine; `null` for backends that are no"
        " storage, and for workloads that know only a schedule of their own",
        place="harness.null_ops_per_s"))
    memory_ops_per_s: float | None = field(metadata=_row(
        "per s", "operations with a backend that copies memory; `null` likewise",
        place="harness.memory_ops_per_s"))
    # fmt: on


TABLE: Final[Mapping[str, Row]] = MappingProxyType(
    {counter.name: counter.metadata[_ROW] for counter in fields(Counters)}
)
"""Name of a counter → its row, in the order of a rank's record."""

TIER_COUNTERS: Final = tuple(
    name for name in TABLE if name.startswith(("gpu_", "cpu_", "storage_")) and name != "cpu_s"
)
"""Those of single tiers, and of what is done in memory."""

SHARING_COUNTERS: Final = tuple(
    name for name, row in TABLE.items() if row.place[:1] == ("sharing",)
)
"""Those of a store that ranks share."""
RESTART_COUNTERS: Final = tuple(name for name in TABLE if name.startswith("restart_"))
"""Those of a restart."""

MAY_BE_UNKNOWN: Final = frozenset(
    counter.name for counter in fields(Counters) if str(counter.type).endswith("| None")
)
"""Counters that are null where the rank can't tell."""


def nothing_counted() -> dict[str, Any]:
    """Every counter at 0, or not known if it may be that: what is left to say of a rank."""
    return {name: None if name in MAY_BE_UNKNOWN else 0 for name in TABLE}


def merged(ranks: Iterable[Counters]) -> Counters:
    """What all ranks counted together, each counter by the rule of its row."""
    ranks = list(ranks)
    values: dict[str, Any] = {
        name: _MERGED[row.merge]([getattr(rank, name) for rank in ranks])
        for name, row in TABLE.items()
    }
    return Counters(**values)


def _sum(values: list[Any]) -> Number | None:
    return None if None in values else sum(values)


def _largest(values: list[Any]) -> Number | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: list[Any]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


_MERGED: Final[Mapping[str, Any]] = MappingProxyType(
    {"sum": _sum, "largest": _largest, "mean": _mean, "own": lambda _values: None}
)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the engine counts beside its log, from the start of the run on.

    Every field is a counter of the table; one in ``_ns`` is reported in seconds there.
    """

    read_failed: int = 0
    write_failed: int = 0
    delete_failed: int = 0
    demote_failed: int = 0
    requested_read_bytes: int = 0
    requested_write_bytes: int = 0
    requested_transfers: int = 0
    requested_writes: int = 0
    distinct_read_bytes: int = 0
    distinct_reads: int = 0
    offered: int = 0
    completed: int = 0
    dropped: int = 0
    backlog: int = 0
    generating: int = 0
    storing: int = 0
    store_stall_ns: int = 0
    dropped_blocks: int = 0

    def counted(self) -> dict[str, Any]:
        """The counters that it is about, by their names in the table."""
        counted: dict[str, Any] = {}
        for counter in fields(self):
            value = getattr(self, counter.name)
            if counter.name.endswith("_ns"):
                counted[counter.name.removesuffix("_ns") + "_s"] = value / 1e9
            else:
                counted[counter.name] = value
        return counted
